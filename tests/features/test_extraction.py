"""One recording and many, by every executor, from fresh and from the cache: always the same numbers, each measured once."""

import os
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile

from clinical_ser import audio
from clinical_ser.audio import GateLimits
from clinical_ser.errors import AudioNotFoundError, FeatureError, InvalidValueError
from clinical_ser.features import batch, egemaps, extraction, praat, timing
from clinical_ser.features.batch import extract_many, extract_row
from clinical_ser.features.cache import FeatureCache
from clinical_ser.features.compare_encoder import CompareEncoder
from clinical_ser.features.extraction import DEFAULT_SETS, Source, apply_gate, extract, extract_file, feature_names, fingerprints
from tests import signals


def spoken(seed=0, **options):
    sentence = signals.sentence(phrases=2, syllables=3, pauses_s=(0.4,), lead_s=0.3, f0_hz=115.0 + 13 * seed, seed=seed, **options)
    return signals.add_noise(sentence.samples, 45, speech_s=sentence.speech_s, seed=seed)


def save(path, samples, subtype="PCM_16"):
    soundfile.write(path, samples, signals.RATE_HZ, subtype=subtype)
    return Source(path)


@pytest.fixture(scope="module")
def recording():
    return audio.from_samples(spoken(), signals.RATE_HZ)


@pytest.fixture
def cache(tmp_path):
    return FeatureCache(tmp_path / "cache")


@pytest.fixture
def calls(monkeypatch):
    """How often anything was really decoded, analysed or measured."""
    counter = Counter()

    def counted(module, name):
        original = getattr(module, name)

        def call(*args, **options):
            counter[name if module is not timing else "timing"] += 1
            return original(*args, **options)

        monkeypatch.setattr(module, name, call)

    for module, name in [(audio, "load"), (audio, "analyse"), (egemaps, "functionals"), (praat, "measure"), (timing, "compute")]:
        counted(module, name)
    return counter


def same(first, second):
    return first.names == second.names and first.values.tobytes() == second.values.tobytes() and dict(first.missing) == dict(second.missing)


# One recording


def test_a_vector_holds_what_the_engines_measured(recording):
    vector = extract(recording)
    analysis = audio.analyse(recording)
    expected = egemaps.functionals(recording)[0] | praat.compute(analysis)[0] | timing.compute(analysis)[0]
    assert dict(zip(vector.names, vector.values, strict=True)) == pytest.approx(expected, rel=0, abs=0, nan_ok=True)
    assert 90 < vector["praat.f0_median_hz"] < 150


def test_the_order_in_which_sets_are_asked_for_does_not_matter(recording):
    assert same(extract(recording, sets=("timing", "egemaps", "timing")), extract(recording, sets=("egemaps", "timing")))
    assert feature_names(("timing", "egemaps")) == egemaps.EGEMAPS_NAMES + timing.NAMES


def test_two_threads_give_the_same_bits(recording):
    assert same(extract(recording, threads=True), extract(recording, threads=False))


def test_an_error_in_the_second_thread_is_raised_here(recording, monkeypatch):
    def fail(analysis):
        raise FeatureError("no such measure")

    monkeypatch.setattr(timing, "compute", fail)
    with pytest.raises(FeatureError, match="no such measure"):
        extract(recording)


def test_compare_is_measured_when_asked_for(recording):
    vector = extract(recording, sets=("compare",))
    assert vector.names == egemaps.COMPARE_NAMES
    assert np.isfinite(vector.values).mean() > 0.9


def test_an_analysis_that_was_made_is_not_made_again(recording, calls):
    analysis = audio.analyse(recording)
    calls.clear()
    assert same(extract(recording, analysis=analysis), extract(recording))
    assert calls["analyse"] == 1  # the second call's own


def test_a_file_is_decoded_and_analysed_once(tmp_path, calls):
    extract_file(save(tmp_path / "a.wav", spoken()))
    assert calls == {"load": 1, "analyse": 1, "functionals": 1, "measure": 1, "timing": 1}


def test_a_file_gives_what_its_samples_give(tmp_path):
    source = save(tmp_path / "a.wav", spoken())
    found = extract_file(source)
    loaded = audio.load(source.path)
    assert same(found.features, extract(loaded))
    assert found.recording == loaded.sha256
    assert found.duration_s == loaded.duration_s
    assert found.quality == audio.measure(loaded, audio.analyse(loaded))


def test_a_segment_gives_the_features_of_the_segment(tmp_path):
    source = save(tmp_path / "a.wav", spoken())
    segment = extract_file(Source(source.path, 0.2, 1.0))
    assert segment.duration_s == pytest.approx(0.8)
    assert same(segment.features, extract(audio.load(source.path, start=0.2, end=1.0)))


@pytest.mark.parametrize("sets", [("opensmile",), ()])
def test_an_unknown_set_is_refused_with_those_there_are(recording, sets):
    with pytest.raises(InvalidValueError, match=r"egemaps.*praat.*timing.*compare"):
        extract(recording, sets=sets)


def test_a_source_does_not_show_its_path():
    assert "doe" not in repr(Source(Path("jane_doe.wav"), 1.0))


@pytest.mark.parametrize("samples", [np.zeros(1), np.zeros(16_000), signals.white_noise(0.5), signals.sine(440, 0.03)])
def test_a_recording_without_a_voice_has_reasons_in_place_of_values(samples):
    vector = extract(audio.from_samples(samples, signals.RATE_HZ))
    assert vector.missing["praat.f0_median_hz"]
    assert set(vector.missing) == {name for name, value in zip(vector.names, vector.values, strict=True) if np.isnan(value)}


def test_the_gate_turns_what_noise_falsifies_into_missing_with_its_reason():
    sentence = signals.sentence(phrases=3)
    noisy = audio.from_samples(signals.add_noise(sentence.samples, 22, speech_s=sentence.speech_s), signals.RATE_HZ)
    vector = extract(noisy)
    gated = apply_gate(vector, audio.assess(noisy, GateLimits.for_emotion()))
    off = set(gated.missing) - set(vector.missing)
    assert "praat.hnr_mean_db" in off
    assert all(name.split(".")[1].lower().startswith(("hnr", "shimmer", "cpps")) for name in off)
    assert "signal-to-noise ratio" in gated.missing["praat.hnr_mean_db"]
    kept = [name for name in vector.names if name not in gated.missing]
    assert [gated[name] for name in kept] == [vector[name] for name in kept]
    assert {name: gated.missing[name] for name in vector.missing} == dict(vector.missing)


def test_a_clean_recording_passes_the_gate_unchanged():
    sentence = signals.sentence(phrases=3)
    clean = audio.from_samples(signals.add_noise(sentence.samples, 60, speech_s=sentence.speech_s), signals.RATE_HZ)
    vector = extract(clean)
    assert same(apply_gate(vector, audio.assess(clean, GateLimits.for_emotion())), vector)


# Begun before the analysis is there


@pytest.fixture
def held(monkeypatch):
    """openSMILE that says that it is at work and then waits to be let go."""
    let_go, began = threading.Event(), threading.Event()
    measure = egemaps.functionals

    def functionals(recording, *, running=None):
        began.set()
        running()
        assert let_go.wait(60)
        return measure(recording)

    monkeypatch.setattr(egemaps, "functionals", functionals)
    yield let_go, began
    let_go.set()


def test_what_was_begun_ends_as_the_whole_would_and_measures_once(recording, calls):
    analysis = audio.analyse(recording)
    for options in ({}, {"ahead": False}, {"threads": False}, {"sets": ("egemaps",)}, {"sets": ("timing", "egemaps")}):
        expected = extract(recording, sets=options.get("sets", DEFAULT_SETS))
        calls.clear()
        with extraction.begin(recording, **options) as begun:
            assert same(begun.finish(analysis), expected)
        assert set(calls.values()) == {1}


def test_openSMILE_measures_while_the_analysis_is_made(recording, held):
    let_go, began = held
    with extraction.begin(recording) as begun:
        assert began.wait(30)
        analysis = audio.analyse(recording)  # would wait for ever if openSMILE were waited for
        let_go.set()
        assert np.isfinite(begun.finish(analysis)["egemaps.loudness_sma3_amean"])


def test_nothing_begins_ahead_where_that_is_not_wanted_or_there_are_no_threads(recording, calls):
    for options in ({"ahead": False}, {"threads": False}):
        with extraction.begin(recording, **options):
            time.sleep(0.05)
    assert not calls


def test_what_is_abandoned_is_not_waited_for(recording, held):
    started = time.monotonic()
    with extraction.begin(recording):
        assert held[1].wait(30)
    with pytest.raises(ZeroDivisionError), extraction.begin(recording):  # an analysis that fails
        _ = 1 / 0
    assert time.monotonic() - started < 30  # openSMILE is held for a minute


def test_an_embedding_is_made_here_while_openSMILE_is_busy_in_the_other_thread(recording, held, monkeypatch):
    run = CompareEncoder.run

    def run_and_let_go(self, *batch):
        held[0].set()
        return run(self, *batch)

    monkeypatch.setattr(CompareEncoder, "run", run_and_let_go)
    vector = extract(recording, sets=("egemaps", "encoder:compare"))
    assert np.isfinite(vector["embedding.compare.0"])
    assert np.isfinite(vector["egemaps.loudness_sma3_amean"])


def test_an_error_of_openSMILE_is_raised_by_finish_and_one_while_starting_delays_nothing(recording, monkeypatch):
    def fail(recording, **_):
        raise FeatureError("no openSMILE here")

    monkeypatch.setattr(egemaps, "functionals", fail)
    monkeypatch.setattr(extraction, "_LONGEST_START_S", 60.0)
    started = time.monotonic()
    with extraction.begin(recording) as begun:
        assert time.monotonic() - started < 30
        with pytest.raises(FeatureError, match="no openSMILE here"):
            begun.finish(audio.analyse(recording))


def test_an_openSMILE_that_never_says_that_it_is_at_work_is_waited_for_only_a_moment(recording, monkeypatch):
    expected = extract(recording)
    measure = egemaps.functionals
    monkeypatch.setattr(egemaps, "functionals", lambda recording, **_: measure(recording))
    assert same(extract(recording), expected)


def test_many_callers_at_once_get_the_same_bits(recording):
    expected = extract(recording)
    with ThreadPoolExecutor(4) as callers:
        assert all(same(found, expected) for found in callers.map(lambda _: extract(recording), range(8)))


# The cache


def test_the_cache_gives_back_the_same_bits_and_measures_nothing(tmp_path, cache, calls):
    source = save(tmp_path / "a.wav", spoken())
    first = extract_file(source, cache=cache)
    calls.clear()
    again = extract_file(source, cache=cache)
    assert not calls
    assert (first.cached, again.cached) == (False, True)
    assert same(first.features, again.features)
    assert same(first.features, extract_file(source).features)
    assert (again.quality, vars(again.source), again.recording, again.duration_s) == (
        first.quality,
        vars(first.source),
        first.recording,
        first.duration_s,
    )


def test_the_same_audio_under_two_names_is_measured_once(tmp_path, cache, calls):
    samples = spoken()
    extract_file(save(tmp_path / "a.wav", samples), cache=cache)
    calls.clear()
    assert extract_file(save(tmp_path / "b.wav", samples), cache=cache).cached
    assert not calls


def test_the_same_samples_in_another_container_are_not_measured_again(tmp_path, cache, calls):
    samples = np.rint(spoken() * 32_767).astype(np.int16)  # libsndfile rounds floats differently for FLAC
    first = extract_file(save(tmp_path / "a.wav", samples), cache=cache)
    calls.clear()
    flac = extract_file(save(tmp_path / "a.flac", samples), cache=cache)
    assert calls == {"load": 1, "analyse": 1}  # the container's own quality
    assert flac.recording == first.recording
    assert same(flac.features, first.features)


def test_a_finer_copy_keeps_its_own_values(tmp_path, cache):
    """24 bits and their 16-bit rounding may share a digest, but not their last digits: whose values come back must not depend on who came first."""
    samples = np.round(spoken() * 2**15) / 2**15
    samples[1:] += 2**-20 * np.sign(np.sin(np.arange(1, len(samples))))
    coarse, fine = save(tmp_path / "16.wav", np.round(samples * 2**15) / 2**15), save(tmp_path / "24.wav", samples, "PCM_24")
    extract_file(coarse, cache=cache)
    from_cache, fresh = extract_file(fine, cache=cache), extract_file(fine)
    assert from_cache.recording == extract_file(coarse).recording
    assert same(from_cache.features, fresh.features)
    assert not same(fresh.features, extract_file(coarse).features)


def test_segments_of_one_file_have_their_own_entries(tmp_path, cache):
    path = save(tmp_path / "a.wav", spoken()).path
    parts = [Source(path), Source(path, 0.2), Source(path, 0.2, 1.0)]
    lengths = [extract_file(part, cache=cache, sets=("timing",)).duration_s for part in parts]
    assert lengths == [extract_file(part, cache=cache, sets=("timing",)).duration_s for part in parts]
    assert len(set(lengths)) == 3


def test_a_set_that_is_added_later_is_all_that_is_measured(tmp_path, cache, calls):
    source = save(tmp_path / "a.wav", spoken())
    extract_file(source, sets=("egemaps",), cache=cache)
    calls.clear()
    both = extract_file(source, sets=("egemaps", "timing"), cache=cache)
    assert calls == {"load": 1, "analyse": 1, "timing": 1}
    assert same(both.features, extract_file(source, sets=("egemaps", "timing")).features)


def test_values_of_another_version_of_an_extractor_are_not_used(tmp_path, cache, calls, monkeypatch):
    source = save(tmp_path / "a.wav", spoken())
    extract_file(source, cache=cache)
    newer = replace(extraction._ENGINES["praat"], fingerprint="praat/next")
    monkeypatch.setattr(extraction, "_ENGINES", {**extraction._ENGINES, "praat": newer})
    calls.clear()
    extract_file(source, cache=cache)
    assert (calls["measure"], calls["functionals"]) == (1, 0)


def test_damaged_entries_are_measured_again(tmp_path, cache, calls):
    source = save(tmp_path / "a.wav", spoken())
    first = extract_file(source, cache=cache)
    for path in (tmp_path / "cache" / "entries").rglob("*"):
        if path.is_file():
            path.write_bytes(path.read_bytes()[:-1] + b"!")
    calls.clear()
    again = extract_file(source, cache=cache)
    assert same(first.features, again.features)
    assert (calls["load"], calls["functionals"], again.cached) == (1, 1, False)
    assert extract_file(source, cache=cache).cached


def test_a_file_that_changes_while_it_is_read_is_not_remembered(tmp_path, cache, monkeypatch):
    source = save(tmp_path / "a.wav", spoken())
    load = audio.load

    def load_while_it_grows(path, **options):
        save(path, spoken(seed=1))
        return load(path, **options)

    monkeypatch.setattr(audio, "load", load_while_it_grows)
    with pytest.raises(FeatureError, match="changed"):
        extract_file(source, cache=cache)
    assert len(cache) == 0


def test_a_missing_file_is_the_loaders_error_with_a_cache_too(tmp_path, cache):
    with pytest.raises(AudioNotFoundError):
        extract_file(Source(tmp_path / "none.wav"), cache=cache)


# Many


@pytest.fixture(scope="module")
def cohort(tmp_path_factory):
    """Four recordings, a copy of the first, and every kind of row that cannot be measured."""
    folder = tmp_path_factory.mktemp("cohort_of_jane_doe")
    sources = [save(folder / f"{seed}.wav", spoken(seed)) for seed in range(4)]
    sources.append(save(folder / "copy.flac", spoken(0)))
    (folder / "empty.wav").write_bytes(b"")
    (folder / "text.wav").write_text("not audio at all" * 50)
    (folder / "cut.wav").write_bytes((folder / "0.wav").read_bytes()[:30])
    os.mkfifo(folder / "pipe.wav")
    bad = [Source(folder / name) for name in ("empty.wav", "text.wav", "cut.wav", "missing.wav", "pipe.wav", ".")]
    return [*sources[:2], *bad, Source(folder / "0.wav", 100.0), Source(folder / "1.wav", 0.2, 1.0), *sources[2:]]


@pytest.fixture(scope="module")
def in_process(cohort):
    return list(extract_many(cohort))


def equal(first, second):
    if first.extraction is None or second.extraction is None:
        return first.index == second.index and first.extraction is second.extraction and first.reason == second.reason
    return (
        same(first.extraction.features, second.extraction.features)
        and first.extraction.quality == second.extraction.quality
        and first.extraction.recording == second.extraction.recording
    )


def all_equal(first, second):
    return all(equal(one, other) for one, other in zip(first, second, strict=True))


def test_a_batch_goes_on_with_the_rest(in_process):
    assert [outcome.index for outcome in in_process] == list(range(13))
    assert [outcome.extraction is None for outcome in in_process] == [False] * 2 + [True] * 7 + [False] * 4
    assert all(outcome.reason for outcome in in_process[2:9])
    assert all("doe" not in outcome.reason and "wav" not in outcome.reason for outcome in in_process[2:9])


def test_processes_with_a_cache_give_the_same_bits_and_the_second_time_at_once(cohort, in_process, tmp_path):
    for cached in (False, True):
        outcomes = list(extract_many(cohort, workers=2, cache=tmp_path / "cache"))
        assert all_equal(outcomes, in_process)
        assert {outcome.extraction.cached for outcome in outcomes if outcome.extraction} == {cached}


def test_copies_that_meet_in_two_processes_are_measured_once(tmp_path):
    sources = [save(tmp_path / f"{copy}.wav", spoken()) for copy in range(8)]
    extractions = [outcome.extraction for outcome in extract_many(sources, workers=2, cache=tmp_path / "cache")]
    assert sum(not extraction.cached for extraction in extractions) == 1
    assert len({id(extraction.features.names) for extraction in extractions}) == 1  # one tuple for all rows, whoever measured them


def test_progress_hears_of_each_recording_once(cohort, in_process):
    heard = []
    list(extract_many(cohort, sets=("timing",), progress=heard.append))
    assert sorted(outcome.index for outcome in heard) == list(range(13))


def test_a_caller_may_stop_in_the_middle(cohort):
    outcomes = extract_many(cohort, sets=("timing",), workers=1)
    assert next(outcomes).index == 0
    outcomes.close()
    assert list(outcomes) == []


def test_relative_paths_are_those_of_the_caller(tmp_path, monkeypatch):
    save(tmp_path / "a.wav", spoken())
    monkeypatch.chdir(tmp_path)
    outcomes = extract_many([Source(Path("a.wav"))], sets=("timing",), workers=1)
    monkeypatch.chdir("/")
    assert next(outcomes).extraction is not None


def test_an_engine_that_fails_costs_its_row_and_does_not_quote_it(cohort, monkeypatch):
    def fail(recording, **_):
        raise ValueError("cannot handle jane_doe.wav")

    monkeypatch.setattr(egemaps, "functionals", fail)
    outcome = next(extract_many(cohort[:1]))
    assert outcome.reason == "ValueError while it was measured"


def test_a_fault_of_the_program_is_not_taken_for_a_bad_recording(cohort, monkeypatch):
    monkeypatch.setattr(egemaps, "functionals", None)
    with pytest.raises(TypeError):
        next(extract_many(cohort[:1]))


def test_a_node_with_other_versions_gives_a_reason_and_no_values(cohort):
    expected = fingerprints(DEFAULT_SETS) | {"praat": "praat/other"}
    outcome = extract_row((0, cohort[0]), sets=DEFAULT_SETS, cache=None, expected=expected, threads=False)
    assert outcome.extraction is None
    assert "versions" in outcome.reason


@pytest.mark.parametrize("options", [{"workers": -1}, {"executor": "spark"}, {"sets": ("mfcc",)}])
def test_wrong_options_are_refused_before_anything_starts(options):
    with pytest.raises(InvalidValueError):
        extract_many([], **options)


def test_no_recording_gives_no_outcome():
    assert list(extract_many([], workers=2)) == []


def test_the_room_offers_its_public_names():
    from clinical_ser import features

    assert all(getattr(features, name) is not None for name in features.__all__)
    assert features.extract_many is batch.extract_many
    with pytest.raises(AttributeError, match="nothing_here"):
        _ = features.nothing_here
