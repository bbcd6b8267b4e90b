"""Simulate a cohort to disk: recordings, a manifest like any other, and the truth beside it.

Every recording has its own random stream, named by seed, subject and number: the samples do not depend on the order or the number of
workers. A finished cohort is reused, an interrupted one continued, and a folder that holds another one refused.
"""

import hashlib
import io
import json
import multiprocessing
import os
import signal
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import parselmouth
import soundfile
from numpy.typing import NDArray

from clinical_ser.audio.recording import SAMPLE_RATE_HZ
from clinical_ser.cohorts.simulation.model import (
    DEFAULT_SITES,
    DEMO_EFFECT_SCALE,
    LITERATURE_EFFECT_SCALE,
    CohortDesign,
    Site,
    Speakers,
    best_reachable_auc,
    draw_speakers,
)
from clinical_ser.cohorts.simulation.parameters import ALL_LANGUAGES, PARAMETERS, Language, Sex, natural_values
from clinical_ser.cohorts.simulation.scene import Scene, record
from clinical_ser.cohorts.simulation.speech import VoiceSettings, read_passage
from clinical_ser.cohorts.simulation.voices import Voice, get_voice
from clinical_ser.cohorts.tasks import DEPRESSION
from clinical_ser.errors import InvalidValueError

GENERATOR_VERSION = 1
"""Counts up whenever the same design would give other samples."""
TASK_NAME = "read speech"

_DESIGN_FILE, _MANIFEST_FILE, _TRUTH_FILE, _SPEAKERS_FILE, _AUDIO_FOLDER = "simulation.json", "manifest.csv", "truth.json", "speakers.csv", "audio"
_FREE_FOLDER = "an empty folder, or one of the same design and versions"
_UNSEEN_STREAM = 2
_UNSEEN_POOL = 300
_PHRASES_APART = 4  # the next recording of a subject starts so much further into the passage

Progress = Callable[[int, int], None]
_VoiceKey = tuple[Language, Sex]


@dataclass(frozen=True, eq=False)
class SimulatedCohort:
    """A simulated cohort on disk. Not real people."""

    folder: Path
    design: CohortDesign
    best_reachable_auc: float
    """Of the true probability, in the population the cohort was drawn from (`model.best_reachable_auc`)."""
    best_sample_auc: float | None
    """The same among the cohort's own speakers; None where they are all of one class."""
    reused: bool
    """True where the finished cohort was already there."""

    @property
    def manifest(self) -> Path:
        """The manifest, one row a recording, with `simulated` and `true_probability` beside the usual columns."""
        return self.folder / _MANIFEST_FILE

    @property
    def truth(self) -> Path:
        """The generating model and its best reachable AUC, as JSON."""
        return self.folder / _TRUTH_FILE

    def speakers(self) -> pd.DataFrame:
        """One row a subject: severity, score, true probability and the voice parameters in their units."""
        return pd.read_csv(self.folder / _SPEAKERS_FILE)


@dataclass(frozen=True)
class SimulatedVisit:
    """A recording of an unseen simulated speaker, for demonstrations."""

    name: str
    path: Path
    sex: Sex
    age: int
    language: Language
    score: int
    true_probability: float


@dataclass(frozen=True, eq=False)
class _Job:
    """One recording to make; everything a worker needs besides the voices."""

    path: Path
    voice: NDArray[np.float64]
    language: Language
    sex: Sex
    site: Site
    speech_s: float
    number: int
    stream: tuple[int, ...]
    seed: int


def simulate(
    subjects: int,
    out: Path,
    *,
    seed: int = 0,
    recordings_per_subject: int = 1,
    languages: Sequence[str] = ALL_LANGUAGES,
    sites: Sequence[Site] = DEFAULT_SITES,
    prevalence: float = 0.35,
    effect_scale: float = DEMO_EFFECT_SCALE,
    speech_s: float = 27.0,
    workers: int = 1,
    progress: Progress | None = None,
) -> SimulatedCohort:
    """Simulate speakers whose true risk is known and write their recordings.

    Parameters
    ----------
    subjects
        Number of speakers.
    out
        Folder to write; a finished cohort of the same design is reused, an unfinished one continued.
    seed
        The same seed and design give the same samples on any number of workers.
    prevalence
        Share of speakers with a score of 10 or more in the population drawn from; sites differ around it.
    effect_scale
        Multiplies the published effects of severity on the voice. 1 is the literature; the default is larger than life so that a hundred
        speakers are enough to learn from; 0 gives voices that tell nothing.
    speech_s
        Seconds of speech per recording, pauses apart.
    workers
        Processes; 1 works in this one.
    progress
        Called with (recordings done, recordings in all).

    Returns
    -------
    SimulatedCohort
        `manifest.csv` has the columns path, subject, label, score, site, sex, age, language, device, task, simulated, true_probability.

    Raises
    ------
    InvalidValueError
        A value outside its range, or a folder that holds another cohort.
    """
    design = CohortDesign.checked(
        subjects=subjects,
        seed=seed,
        recordings_per_subject=recordings_per_subject,
        languages=tuple(languages),
        sites=tuple(sites),
        prevalence=prevalence,
        effect_scale=effect_scale,
        speech_s=speech_s,
    )
    speakers = draw_speakers(design)
    best = best_reachable_auc(design)
    jobs = _jobs(out, design, speakers)
    _claim(out, design)
    reused = _is_finished(out, jobs)
    if not reused:
        _make([job for job in jobs if not job.path.exists()], len(jobs), workers, progress)
        _write_tables(out, design, speakers, jobs, best)
    return SimulatedCohort(out, design, best, speakers.best_auc(), reused)


def simulate_visits(out: Path, *, design: CohortDesign | None = None, language: Language = Language.ENGLISH) -> tuple[SimulatedVisit, ...]:
    """Record three unseen speakers: one with a high true risk, one with a low one, and one in between through an unusable microphone.

    Parameters
    ----------
    out
        Folder for `high-risk.flac`, `low-risk.flac` and `unusable.flac`.
    design
        The world the speakers come from; give that of the training cohort (`SimulatedCohort.design`). They are other people in any case.

    Returns
    -------
    tuple of three SimulatedVisit, in the order above
    """
    world = (design or CohortDesign(subjects=1)).model_copy(update={"subjects": _UNSEEN_POOL, "languages": (language,)})
    site = world.sites[0].model_copy(update={"language_weights": {language: 1.0}})
    world = world.model_copy(update={"sites": (site,)})
    pool = draw_speakers(world, stream=_UNSEEN_STREAM)
    by_risk = np.argsort(pool.true_probability)
    broken = site.model_copy(update={"snr_db": 0.0, "gain_db": site.gain_db - 20})
    plan = (
        ("high-risk", int(by_risk[-1]), site, world.speech_s),
        ("low-risk", int(by_risk[0]), site, world.speech_s),
        ("unusable", int(by_risk[len(by_risk) // 2]), broken, min(6.0, world.speech_s)),
    )
    visits = []
    for name, person, place, speech_s in plan:
        path = out / f"{name}.flac"
        _record_one(_Job(path, pool.voice[person], language, Sex(pool.sex[person]), place, speech_s, 0, (_UNSEEN_STREAM, person), world.seed))
        visits.append(
            SimulatedVisit(
                name, path, Sex(pool.sex[person]), int(pool.age[person]), language, int(pool.score[person]), float(pool.true_probability[person])
            )
        )  # fmt: skip
    return tuple(visits)


def _jobs(out: Path, design: CohortDesign, speakers: Speakers) -> list[_Job]:
    sites = {site.name: site for site in design.sites}
    return [
        _Job(
            path=out / _AUDIO_FOLDER / f"{_subject_name(k)}-{number + 1:02d}.flac",
            voice=speakers.voice[k],
            language=Language(speakers.language[k]),
            sex=Sex(speakers.sex[k]),
            site=sites[str(speakers.site[k])],
            speech_s=design.speech_s,
            number=number,
            stream=(1, k, number),
            seed=design.seed,
        )
        for k in range(design.subjects)
        for number in range(design.recordings_per_subject)
    ]


def _subject_name(index: int) -> str:
    return f"simulated-{index + 1:04d}"


def _record_one(job: _Job) -> None:
    rng = np.random.default_rng(np.random.SeedSequence(job.seed, spawn_key=job.stream))
    raw_voice = _worker_voices.get((job.language, job.sex)) or get_voice(job.language, job.sex)
    settings = VoiceSettings.of_recording(job.voice, rng)
    reading = read_passage(raw_voice, settings, job.speech_s, rng, start_phrase=_PHRASES_APART * job.number)
    pcm = record(reading, Scene.at_site(job.site, rng), rng)
    encoded = io.BytesIO()
    soundfile.write(encoded, pcm, SAMPLE_RATE_HZ, format="FLAC", subtype="PCM_16")
    _write_atomically(job.path, encoded.getvalue())


def _make(jobs: list[_Job], total: int, workers: int, progress: Progress | None) -> None:
    done = total - len(jobs)
    for _ in _run(jobs, min(workers, len(jobs))):
        done += 1
        if progress is not None:
            progress(done, total)


def _run(jobs: list[_Job], workers: int) -> Iterator[None]:
    if workers <= 1:
        yield from map(_record_one, jobs)
        return
    with _voice_files({(job.language, job.sex) for job in jobs}, workers) as files:
        spawn = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(workers, mp_context=spawn, initializer=_load_voices, initargs=(files,)) as pool:
            yield from pool.map(_record_one, jobs, chunksize=max(1, len(jobs) // (8 * workers)))


# Filled once by `_load_voices` in a worker process, empty elsewhere: making a voice costs half a second, loading it a few milliseconds.
_worker_voices: dict[_VoiceKey, Voice] = {}


@contextmanager
def _voice_files(wanted: Iterable[_VoiceKey], workers: int) -> Iterator[dict[_VoiceKey, Path]]:
    with tempfile.TemporaryDirectory() as folder:
        files = {(language, sex): Path(folder) / f"{language}-{sex}.npz" for language, sex in sorted(wanted)}
        with ThreadPoolExecutor(workers) as threads:  # mostly waiting for the synthesiser's own processes
            list(threads.map(lambda key: files[key].write_bytes(get_voice(*key).to_bytes()), files))
        yield files


def _load_voices(files: dict[_VoiceKey, Path]) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's business; a worker would only print a traceback
    _worker_voices.update({key: Voice.from_bytes(path.read_bytes()) for key, path in files.items()})


def _identity(design: CohortDesign) -> dict[str, object]:
    """Return what decides the samples: the design, this generator's version and Praat's."""
    made_by = {"simulated": True, "generator_version": GENERATOR_VERSION, "praat": parselmouth.PRAAT_VERSION}
    identity: dict[str, object] = {**made_by, "design": design.model_dump(mode="json")}
    return {**identity, "digest": hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()}


def _claim(out: Path, design: CohortDesign) -> None:
    """Mark the folder as this cohort's before the first recording, so that whatever is found later is known to belong."""
    mine = _as_json(_identity(design))
    marker = out / _DESIGN_FILE
    if marker.exists():
        if marker.read_bytes() != mine:
            raise InvalidValueError("the output folder", "a folder with another simulated cohort", _FREE_FOLDER)
        return
    if (out / _MANIFEST_FILE).exists():
        raise InvalidValueError("the output folder", "a folder with a manifest", _FREE_FOLDER)
    _write_atomically(marker, mine)


def _is_finished(out: Path, jobs: list[_Job]) -> bool:
    # The truth is written last.
    return (out / _TRUTH_FILE).exists() and (out / _MANIFEST_FILE).exists() and all(job.path.exists() for job in jobs)


def _write_tables(out: Path, design: CohortDesign, speakers: Speakers, jobs: list[_Job], best: float) -> None:
    people = _people(design, speakers)
    rows = people.loc[[job.stream[1] for job in jobs]]
    rows.insert(0, "path", [job.path.relative_to(out).as_posix() for job in jobs])
    _write_atomically(out / _MANIFEST_FILE, _as_csv(rows))
    hidden = pd.DataFrame({"severity": speakers.severity, **natural_values(speakers.voice)})
    _write_atomically(out / _SPEAKERS_FILE, _as_csv(pd.concat([people, hidden], axis=1)))
    _write_atomically(out / _TRUTH_FILE, _as_json(_truth(design, speakers, best)))


def _people(design: CohortDesign, speakers: Speakers) -> pd.DataFrame:
    microphones = {site.name: site.microphone.value for site in design.sites}
    negative, positive = DEPRESSION.classes
    return pd.DataFrame(
        {
            "subject": [_subject_name(k) for k in range(len(speakers.sex))],
            "label": np.where(speakers.depressed, positive, negative),
            "score": speakers.score,
            "site": speakers.site,
            "sex": speakers.sex,
            "age": speakers.age,
            "language": speakers.language,
            "device": [microphones[str(site)] for site in speakers.site],
            "task": TASK_NAME,
            "simulated": "true",
            "true_probability": speakers.true_probability.round(6),
        }
    )


def _truth(design: CohortDesign, speakers: Speakers, best: float) -> dict[str, object]:
    literature = design.model_copy(update={"effect_scale": LITERATURE_EFFECT_SCALE})
    return {
        **_identity(design),
        "note": "Simulated speech, not people. Voices differ with severity by published correlations times effect_scale; 1 is the literature.",
        "effects_larger_than_published": design.effect_scale > LITERATURE_EFFECT_SCALE,
        "best_reachable_auc": round(best, 4),
        "best_reachable_auc_in_this_sample": speakers.best_auc(),
        "best_reachable_auc_at_published_effects": round(best_reachable_auc(literature), 4),
        "parameters": [asdict(parameter) for parameter in PARAMETERS],
    }


def _as_json(value: dict[str, object]) -> bytes:
    return (json.dumps(value, indent=2, ensure_ascii=False, sort_keys=True) + "\n").encode()


def _as_csv(frame: pd.DataFrame) -> bytes:
    text: str = frame.to_csv(index=False, lineterminator="\n")
    return text.encode()


def _write_atomically(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    partial.write_bytes(data)
    partial.replace(path)
