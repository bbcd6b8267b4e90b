"""The simulator does what its truth says: probabilities are right by independent means, and Praat hears in the audio what was put in."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import parselmouth
import pytest
import soundfile
from numpy.typing import NDArray
from parselmouth.praat import call
from scipy.stats import multivariate_normal, norm
from sklearn.metrics import roc_auc_score

from clinical_ser.cohorts.simulation import (
    DEFAULT_SITES,
    DEMO_EFFECT_SCALE,
    LITERATURE_EFFECT_SCALE,
    PARAMETERS,
    CohortDesign,
    Language,
    Microphone,
    Sex,
    SimulatedCohort,
    Site,
    best_reachable_auc,
    draw_speakers,
    simulate,
    simulate_visits,
    true_probability,
    voices,
)
from clinical_ser.cohorts.simulation.articulation import contract, line_spectra
from clinical_ser.cohorts.simulation.cohort import _jobs, _record_one
from clinical_ser.cohorts.simulation.model import severity_to_score
from clinical_ser.cohorts.simulation.parameters import reference_mean, residual_correlation
from clinical_ser.cohorts.simulation.scene import Scene, record
from clinical_ser.cohorts.simulation.speech import EDGE_SILENCE_S, SHORTEST_PAUSE_S, Reading, VoiceSettings, draw_pauses, read_passage
from clinical_ser.cohorts.simulation.voices import Voice, get_voice
from clinical_ser.errors import InvalidValueError, SimulationError

RATE_HZ = 16_000
ONE_SITE = (Site(name="simulated-only"),)
TYPICAL = VoiceSettings(
    f0_semitones=25.5,
    f0_sd_semitones=2.6,
    tempo=1.0,
    pause_excess_s=0.35,
    pause_sd_s=0.25,
    level_db=-26.0,
    dynamics=1.0,
    jitter_percent=0.3,
    shimmer_percent=1.0,
    hnr_db=30.0,
    articulation=0.8,
    formant_scale=1.0,
)
RANGE_HZ = {Sex.MALE: (60.0, 300.0), Sex.FEMALE: (110.0, 500.0)}


def read(sex: Sex = Sex.MALE, language: Language = Language.ENGLISH, *, speech_s: float = 12.0, **changed: float) -> Reading:
    settings = replace(TYPICAL, **changed)
    return read_passage(get_voice(language, sex), settings, speech_s, np.random.default_rng(5))


def praat_sound(reading: Reading) -> parselmouth.Sound:
    return parselmouth.Sound(reading.samples, RATE_HZ)


def measured_f0_hz(sound: parselmouth.Sound, sex: Sex) -> NDArray[np.float64]:
    floor_hz, ceiling_hz = RANGE_HZ[sex]
    f0 = sound.to_pitch_ac(pitch_floor=floor_hz, pitch_ceiling=ceiling_hz).selected_array["frequency"]
    return np.asarray(f0[f0 > 0])


def measured_hnr_db(reading: Reading) -> float:
    values = praat_sound(reading).to_harmonicity_cc(minimum_pitch=60.0).values
    return float(values[values > -200].mean())


def measured_perturbation_percent(reading: Reading) -> tuple[float, float]:
    sound = praat_sound(reading)
    pulses = call(sound, "To PointProcess (periodic, cc)", 60.0, 300.0)
    jitter = call(pulses, "Get jitter (local)", 0, 0, 0.0001, 0.02, 1.3)
    shimmer = call([sound, pulses], "Get shimmer (local)", 0, 0, 0.0001, 0.02, 1.3, 1.6)
    return 100 * jitter, 100 * shimmer


def measured_formants_hz(reading: Reading, number: int, *, ceiling_hz: float = 5000.0) -> NDArray[np.float64]:
    sound = praat_sound(reading)
    formants = sound.to_formant_burg(maximum_formant=ceiling_hz)
    pitch = sound.to_pitch_ac(pitch_floor=60.0, pitch_ceiling=300.0)
    times = [t for t in pitch.xs() if np.isfinite(pitch.get_value_at_time(t))]
    values = np.array([formants.get_value_at_time(number, t) for t in times])
    return np.asarray(values[np.isfinite(values)])


def measured_gaps_s(sound: parselmouth.Sound) -> NDArray[np.float64]:
    """Lengths of the silences Praat finds inside the recording (25 dB under the peak, at least 200 ms)."""
    grid = call(sound, "To TextGrid (silences)", 100.0, 0.0, -30.0, 0.2, 0.05, "silent", "sounding")
    count = call(grid, "Get number of intervals", 1)
    spans = [
        call(grid, "Get end time of interval", 1, k) - call(grid, "Get start time of interval", 1, k)
        for k in range(2, count)
        if call(grid, "Get label of interval", 1, k) == "silent"
    ]
    return np.array(spans)


def pcm_of(folder: Path) -> dict[str, bytes]:
    return {path.name: soundfile.read(path, dtype="int16")[0].tobytes() for path in sorted(folder.glob("audio/*.flac"))}


# The generating model.


def test_true_probability_equals_bayes_rule_by_numerical_integration() -> None:
    design = CohortDesign(subjects=6, seed=3, prevalence=0.2, effect_scale=1.5, sites=ONE_SITE)
    speakers = draw_speakers(design)
    z = np.linspace(-8, 8, 4001)
    prior = norm.pdf(z, loc=norm.ppf(0.2))
    loadings = 1.5 * np.array([p.severity_r / np.sqrt(1 - p.severity_r**2) for p in PARAMETERS])
    sd = np.array([p.sd for p in PARAMETERS])
    means = reference_mean(speakers.sex, speakers.language, speakers.age)
    for k in range(6):
        residual = (speakers.voice[k] - means[k]) / sd - np.outer(z + 1.34, loadings)
        likelihood = multivariate_normal(np.zeros(len(sd)), residual_correlation()).pdf(residual)
        posterior = prior * likelihood
        assert speakers.true_probability[k] == pytest.approx(posterior[z >= 0].sum() / posterior.sum(), abs=2e-3)


def test_true_probabilities_are_calibrated() -> None:
    speakers = draw_speakers(CohortDesign(subjects=100_000, seed=1))
    for low in np.arange(0, 1, 0.1):
        inside = (speakers.true_probability >= low) & (speakers.true_probability < low + 0.1)
        stated, seen = speakers.true_probability[inside].mean(), speakers.depressed[inside].mean()
        assert abs(stated - seen) < 4 * np.sqrt(stated * (1 - stated) / inside.sum())


def test_prevalence_is_as_asked_and_sites_differ_around_it() -> None:
    speakers = draw_speakers(CohortDesign(subjects=60_000, prevalence=0.2))
    assert speakers.depressed.mean() == pytest.approx(0.2, abs=0.006)
    by_site = [speakers.depressed[speakers.site == site.name].mean() for site in DEFAULT_SITES]
    assert by_site[0] < by_site[1] - 0.04 < by_site[2] - 0.08


def test_severity_correlates_with_the_voice_as_published_at_scale_one() -> None:
    speakers = draw_speakers(CohortDesign(subjects=100_000, effect_scale=LITERATURE_EFFECT_SCALE, sites=ONE_SITE))
    deviation = speakers.voice - reference_mean(speakers.sex, speakers.language, speakers.age)
    for column, parameter in enumerate(PARAMETERS):
        assert np.corrcoef(deviation[:, column], speakers.severity)[0, 1] == pytest.approx(parameter.severity_r, abs=0.012), parameter.name


def test_no_effect_leaves_nothing_to_reach_but_the_sites_prevalence() -> None:
    assert best_reachable_auc(CohortDesign(subjects=1, effect_scale=0, sites=ONE_SITE)) == pytest.approx(0.5, abs=0.005)
    assert 0.55 < best_reachable_auc(CohortDesign(subjects=1, effect_scale=0)) < 0.65


def test_best_reachable_auc_matches_an_independent_sample_and_no_listener_beats_it() -> None:
    design = CohortDesign(subjects=40_000, seed=11, sites=ONE_SITE)
    best = best_reachable_auc(design)
    speakers = draw_speakers(design)
    assert roc_auc_score(speakers.depressed, speakers.true_probability) == pytest.approx(best, abs=0.008)
    assert roc_auc_score(speakers.depressed, speakers.voice[:, [p.name for p in PARAMETERS].index("pause_sd_s")]) < best - 0.03


def test_default_effects_are_larger_than_published_and_reach_a_demo_auc() -> None:
    assert DEMO_EFFECT_SCALE > LITERATURE_EFFECT_SCALE
    assert 0.85 <= best_reachable_auc(CohortDesign(subjects=1)) <= 0.90
    assert 0.70 <= best_reachable_auc(CohortDesign(subjects=1, effect_scale=LITERATURE_EFFECT_SCALE)) <= 0.78


def test_score_reaches_the_cut_off_exactly_at_severity_zero_and_never_falls() -> None:
    assert severity_to_score(np.array([-10.0, -1e-9, 0.0, 10.0])).tolist() == [0, 9, 10, 24]
    assert (np.diff(severity_to_score(np.linspace(-5, 5, 500))) >= 0).all()


def test_speakers_of_another_site_are_refused_by_name() -> None:
    design = CohortDesign(subjects=2, sites=ONE_SITE)
    speakers = draw_speakers(design)
    with pytest.raises(InvalidValueError, match="elsewhere"):
        true_probability(
            speakers.voice, sex=speakers.sex, language=speakers.language, age=speakers.age, site=np.array(["elsewhere"] * 2), design=design
        )  # fmt: skip


# What Praat hears of the voice parameters.


@pytest.mark.parametrize(("sex", "f0_hz"), [(Sex.MALE, 95.0), (Sex.MALE, 150.0), (Sex.FEMALE, 170.0), (Sex.FEMALE, 240.0)])
def test_pitch_is_the_speakers(sex: Sex, f0_hz: float) -> None:
    sound = praat_sound(read(sex, f0_semitones=12 * np.log2(f0_hz / 27.5)))
    assert np.median(measured_f0_hz(sound, sex)) == pytest.approx(f0_hz, rel=0.05)


@pytest.mark.parametrize("sd_st", [1.5, 3.0])
def test_pitch_range_is_the_speakers(sd_st: float) -> None:
    semitones = 12 * np.log2(measured_f0_hz(praat_sound(read(f0_sd_semitones=sd_st, speech_s=25)), Sex.MALE))
    assert semitones.std() == pytest.approx(sd_st, rel=0.2)


def test_slower_speakers_take_longer_for_the_same_words() -> None:
    spoken_s = [read(tempo=tempo, speech_s=10 / tempo).spoken.sum() / RATE_HZ for tempo in (0.8, 1.0, 1.2)]
    assert np.array(spoken_s) * [0.8, 1.0, 1.2] == pytest.approx([spoken_s[1]] * 3, rel=0.01)


@pytest.mark.parametrize("excess_s", [0.15, 0.6])
def test_pause_share_is_heard_within_three_points(excess_s: float) -> None:
    reading = read(pause_excess_s=excess_s, speech_s=25)
    inner_s = len(reading.samples) / RATE_HZ - 2 * EDGE_SILENCE_S
    assert measured_gaps_s(praat_sound(reading)).sum() / inner_s == pytest.approx(reading.pauses_s.sum() / inner_s, abs=0.03)
    assert reading.pauses_s.mean() == pytest.approx(SHORTEST_PAUSE_S + excess_s, rel=0.1)


def test_pauses_have_the_stated_mean_and_sd() -> None:
    pauses_s = draw_pauses(4000, replace(TYPICAL, pause_excess_s=0.5, pause_sd_s=0.4), np.random.default_rng(0))
    assert pauses_s.mean() == pytest.approx(SHORTEST_PAUSE_S + 0.5, rel=0.01)
    assert pauses_s.std() == pytest.approx(0.4, rel=0.03)
    assert pauses_s.min() >= SHORTEST_PAUSE_S


def test_level_is_that_of_the_spoken_parts() -> None:
    reading = read(level_db=-31.0)
    assert 10 * np.log10(np.mean(reading.samples[reading.spoken] ** 2)) == pytest.approx(-31.0, abs=0.01)


def test_wider_dynamics_spread_the_level() -> None:
    spreads = []
    for dynamics in (0.6, 1.0, 1.5):
        reading = read(dynamics=dynamics)
        frames = reading.samples[reading.spoken][: reading.spoken.sum() // 1600 * 1600].reshape(-1, 1600)
        spreads.append(np.std(10 * np.log10(np.mean(frames**2, axis=1) + 1e-9)))
    assert spreads[0] < spreads[1] - 0.5 < spreads[2] - 1.0


def test_breath_lowers_harmonicity_step_by_step() -> None:
    for sex in Sex:
        heard = [measured_hnr_db(read(sex, hnr_db=hnr_db)) for hnr_db in (26.0, 20.0, 14.0, 8.0)]
        assert (np.diff(heard) < -0.9).all()


def test_jitter_and_shimmer_are_heard_where_they_were_put() -> None:
    steady = measured_perturbation_percent(read(jitter_percent=0.1, shimmer_percent=0.5))
    rough = measured_perturbation_percent(read(jitter_percent=2.0, shimmer_percent=0.5))
    uneven = measured_perturbation_percent(read(jitter_percent=0.1, shimmer_percent=12.0))
    assert rough[0] == pytest.approx(np.hypot(steady[0], 2.0), abs=0.3)
    assert uneven[1] > steady[1] + 3.0
    assert abs(uneven[0] - steady[0]) < 0.3


def test_less_articulation_narrows_the_travel_of_the_formants() -> None:
    for sex in Sex:
        first = [measured_formants_hz(read(sex, articulation=articulation), 1).std() for articulation in (0.5, 0.75, 1.0)]
        assert first[0] < 0.93 * first[1] < 0.93 * 0.93 * first[2]
    second = [measured_formants_hz(read(articulation=articulation), 2).std() for articulation in (0.5, 1.0)]
    assert second[0] < 0.9 * second[1]


def test_formant_scale_moves_the_formants_and_not_the_pitch() -> None:
    small, large = read(formant_scale=1.1), read(formant_scale=0.92)
    for number in (2, 3, 4):
        heard = [np.median(measured_formants_hz(reading, number, ceiling_hz=5000 * scale)) for reading, scale in ((small, 1.1), (large, 0.92))]
        assert heard[0] / heard[1] == pytest.approx(1.1 / 0.92, rel=0.03)
    f0 = [np.median(measured_f0_hz(praat_sound(reading), Sex.MALE)) for reading in (small, large)]
    assert f0[0] == pytest.approx(f0[1], rel=0.02)


def test_line_spectra_give_back_the_phrase_they_came_from() -> None:
    rng = np.random.default_rng(0)
    samples = np.convolve(rng.standard_normal(8000), np.exp(-np.arange(200) / 30) * np.cos(0.4 * np.arange(200)))[:8000]
    frequencies, found = line_spectra(samples)
    assert found.all()
    assert (np.diff(frequencies, axis=1) > 0).all()
    same = contract(samples, frequencies, found, frequencies.mean(0), 1.0)
    assert np.abs(same - samples).max() < 1e-6 * np.abs(samples).max()


# The room, the microphone, the noise.


@pytest.mark.parametrize("snr_db", [10.0, 25.0])
def test_noise_is_as_far_below_the_speech_as_stated(snr_db: float) -> None:
    reading = read()
    samples = record(reading, Scene(Microphone.HEADSET, 0.0, 0.0, snr_db), np.random.default_rng(2)) / 32767
    edge = np.zeros(len(samples), bool)
    edge[: int(0.9 * EDGE_SILENCE_S * RATE_HZ)] = True
    noise = np.mean(samples[edge] ** 2)
    speech = np.mean(samples[reading.spoken] ** 2) - noise
    assert 10 * np.log10(speech / noise) == pytest.approx(snr_db, abs=0.7)


def test_a_livelier_room_fills_the_pauses() -> None:
    reading = read()
    inside = np.zeros(len(reading.samples), bool)
    inside[int(EDGE_SILENCE_S * RATE_HZ) : -int(EDGE_SILENCE_S * RATE_HZ)] = True
    pauses = ~reading.spoken & inside
    takes = [record(reading, Scene(Microphone.HEADSET, 0.0, rt60_s, 70.0), np.random.default_rng(2)) for rt60_s in (0.0, 0.2, 0.8)]
    levels = [np.mean(take[pauses] ** 2.0) for take in takes]
    assert levels[0] < 0.5 * levels[1] < 0.25 * levels[2]


def test_microphones_colour_the_same_words_differently() -> None:
    reading = read()
    takes = [record(reading, Scene(microphone, 0.0, 0.0, 60.0), np.random.default_rng(2)) / 32767 for microphone in Microphone]
    low_shares = [np.sum(np.abs(np.fft.rfft(take)[: len(take) * 150 // RATE_HZ]) ** 2) / np.sum(take**2) for take in takes]
    assert len({round(float(10 * np.log10(share)), 1) for share in low_shares}) == len(Microphone)


def test_a_loud_speaker_is_scaled_down_and_not_clipped() -> None:
    samples = record(read(level_db=-3.0), Scene(Microphone.HEADSET, 12.0, 0.2, 40.0), np.random.default_rng(2))
    assert np.abs(samples).max() == pytest.approx(0.98 * 32767, abs=1)


# Cohorts on disk.


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> SimulatedCohort:
    return simulate(8, tmp_path_factory.mktemp("cohort"), seed=4, recordings_per_subject=2, languages=["en"], speech_s=3.0)


def test_the_same_voice_is_spoken_in_every_process() -> None:
    first = get_voice(Language.ENGLISH, Sex.MALE)
    get_voice.cache_clear()
    again = get_voice(Language.ENGLISH, Sex.MALE)
    assert first is not again
    assert first.to_bytes() == again.to_bytes() == Voice.from_bytes(first.to_bytes()).to_bytes()


def test_a_synthesiser_that_fails_is_a_typed_error_without_paths(monkeypatch: pytest.MonkeyPatch) -> None:
    get_voice.cache_clear()
    monkeypatch.setitem(voices._SYNTHESISER_LANGUAGE, Language.GERMAN, "Atlantean")
    with pytest.raises(SimulationError, match="de \\(female\\)") as caught:
        get_voice(Language.GERMAN, Sex.FEMALE)
    assert "/" not in str(caught.value)


def test_samples_do_not_depend_on_workers_or_on_the_rest_of_the_cohort(cohort: SimulatedCohort, tmp_path: Path) -> None:
    parallel = simulate(8, tmp_path, seed=4, recordings_per_subject=2, languages=["en"], speech_s=3.0, workers=2)
    assert pcm_of(parallel.folder) == pcm_of(cohort.folder)
    for name in ("manifest.csv", "truth.json", "speakers.csv"):
        assert (parallel.folder / name).read_bytes() == (cohort.folder / name).read_bytes()


def test_another_seed_is_another_cohort(cohort: SimulatedCohort, tmp_path: Path) -> None:
    other = simulate(2, tmp_path, seed=5, recordings_per_subject=2, languages=["en"], speech_s=3.0)
    assert not set(pcm_of(other.folder).values()) & set(pcm_of(cohort.folder).values())
    assert len(set(pcm_of(other.folder).values())) == 4


def test_every_recording_has_a_random_stream_of_its_own(tmp_path: Path) -> None:
    design = CohortDesign(subjects=3, recordings_per_subject=2, languages=(Language.ENGLISH,), speech_s=2.0)
    jobs = _jobs(tmp_path, design, draw_speakers(design))
    assert len({job.stream for job in jobs}) == 6
    # The same speaker, place and words under another stream: another recording.
    pair = [replace(jobs[0], stream=job.stream, path=tmp_path / f"{k}.flac") for k, job in enumerate(jobs[:2])]
    for job in pair:
        _record_one(job)
    assert pair[0].path.read_bytes() != pair[1].path.read_bytes()


def test_manifest_says_what_it_must_and_that_it_is_simulated(cohort: SimulatedCohort) -> None:
    rows = pd.read_csv(cohort.manifest, dtype={"simulated": str})
    assert list(rows.columns) == [
        "path", "subject", "label", "score", "site", "sex", "age", "language", "device", "task", "simulated", "true_probability",
    ]  # fmt: skip
    assert len(rows) == 16
    assert rows["subject"].nunique() == 8
    assert (rows["simulated"] == "true").all()
    assert rows["subject"].str.startswith("simulated-").all()
    assert rows["site"].str.startswith("simulated-").all()
    assert ((rows["label"] == "depressed") == (rows["score"] >= 10)).all()
    assert rows["true_probability"].between(0, 1).all()
    for path in rows["path"]:
        info = soundfile.info(cohort.folder / path)
        assert (info.samplerate, info.channels, info.subtype) == (RATE_HZ, 1, "PCM_16")
        assert info.duration > 3.0


def test_truth_carries_the_model_and_says_when_effects_are_larger_than_published(cohort: SimulatedCohort) -> None:
    truth = json.loads(cohort.truth.read_text(encoding="utf-8"))
    assert truth["simulated"] is True
    assert truth["effects_larger_than_published"] is True
    assert truth["best_reachable_auc"] == pytest.approx(cohort.best_reachable_auc, abs=1e-4)
    assert truth["best_reachable_auc_at_published_effects"] < truth["best_reachable_auc"]
    assert {p["name"] for p in truth["parameters"]} <= set(cohort.speakers().columns)


def test_a_finished_cohort_is_reused_and_an_interrupted_one_continued(tmp_path: Path) -> None:
    calls: list[tuple[int, int]] = []

    def make() -> SimulatedCohort:
        return simulate(3, tmp_path, languages=["en"], speech_s=2.0, progress=lambda done, total: calls.append((done, total)))

    first = make()
    whole = pcm_of(tmp_path)
    assert not first.reused
    assert calls == [(1, 3), (2, 3), (3, 3)]
    assert make().reused
    (tmp_path / "truth.json").unlink()
    (tmp_path / "audio" / "simulated-0002-01.flac").unlink()
    calls.clear()
    assert not make().reused
    assert calls == [(3, 3)]
    assert pcm_of(tmp_path) == whole


def test_a_folder_with_another_cohort_is_refused(cohort: SimulatedCohort) -> None:
    before = pcm_of(cohort.folder)
    with pytest.raises(InvalidValueError, match="another simulated cohort"):
        simulate(9, cohort.folder, seed=4, languages=["en"], speech_s=3.0)
    assert pcm_of(cohort.folder) == before


def test_a_folder_with_somebodys_manifest_is_refused(tmp_path: Path) -> None:
    (tmp_path / "manifest.csv").write_text("path,subject\n", encoding="utf-8")
    with pytest.raises(InvalidValueError, match="a folder with a manifest"):
        simulate(1, tmp_path)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("languages", ["xx"]),
        ("languages", []),
        ("languages", ["en", "en"]),
        ("sites", ()),
        ("prevalence", 1.5),
        ("effect_scale", -1.0),
        ("speech_s", 0.0),
    ],
)
def test_a_bad_value_is_refused_by_name_before_anything_is_written(name: str, value: object, tmp_path: Path) -> None:
    with pytest.raises(InvalidValueError, match=name):
        simulate(1, tmp_path / "out", **{name: value})  # type: ignore[arg-type]
    assert not (tmp_path / "out").exists()


def test_visits_are_a_high_risk_a_low_risk_and_an_unusable_recording_of_unseen_people(cohort: SimulatedCohort, tmp_path: Path) -> None:
    high, low, unusable = simulate_visits(tmp_path, design=cohort.design)
    assert high.true_probability > 0.9
    assert high.score >= 10
    assert low.true_probability < 0.05
    assert low.score < 10
    samples = [soundfile.read(visit.path)[0] for visit in (high, low, unusable)]
    quietest = [np.percentile(np.abs(signal), 10) / np.percentile(np.abs(signal), 99) for signal in samples]
    assert quietest[2] > 10 * max(quietest[:2])
    again = simulate_visits(tmp_path / "again", design=cohort.design)
    assert [visit.path.read_bytes() for visit in again] == [visit.path.read_bytes() for visit in (high, low, unusable)]
