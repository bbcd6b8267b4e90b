"""The features of one recording: the engines behind one function, measured once, and remembered by content if the caller wants.

One idea: the result depends on the samples and on nothing else, no other recording, no name, no number of threads. That is what makes it possible
to measure anywhere (see `batch.py`) and to take from a cache what was measured before.
"""

import hashlib
import os
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field
from fnmatch import fnmatchcase
from functools import cached_property, lru_cache
from importlib import metadata, resources
from pathlib import Path
from typing import Any, Self

import numpy as np
from threadpoolctl import ThreadpoolController

from clinical_ser import audio
from clinical_ser.audio.analysis import FINGERPRINT, SpeechAnalysis
from clinical_ser.audio.quality import QualityMeasures, QualityReport
from clinical_ser.audio.recording import Recording, SourceInfo
from clinical_ser.embeddings import Embedding, Encoder, column_names, find_encoder
from clinical_ser.errors import EmbeddingError, FeatureError, InvalidValueError
from clinical_ser.features import egemaps, praat, timing
from clinical_ser.features.cache import Entry, FeatureCache, key_of
from clinical_ser.features.praat import PraatTracks
from clinical_ser.features.vector import FeatureVector

FEATURE_SETS = ("egemaps", "praat", "timing", "compare")
"""In the order in which their features stand in a vector; sets of embeddings come after them."""
ENCODER = "encoder:"
"""Begins the name of a set of embeddings: `encoder:ge2e`, or `encoder:` and any other reference that `find_encoder` takes."""
DEFAULT_SETS = ("egemaps", "praat", "timing")

_LONGEST_START_S = 0.05
"""openSMILE is at work 6 ms after it was asked for, on a free core; waiting longer than this gains nothing where there is none."""

_Measured = tuple[Mapping[str, float], Mapping[str, str]]
"""Values of one set, NaN where missing, and for each missing one the reason."""


@dataclass(frozen=True)
class Source:
    """A file, or the part of it between `start` and `end` (seconds)."""

    path: Path = field(repr=False)  # a name may be a person's, and a repr ends up in logs
    start: float | None = None
    end: float | None = None


@dataclass(frozen=True, eq=False)
class Extraction:
    """All that is kept of one recording: its digest and length, what its file was like, how good it is, and its features. No samples."""

    recording: str
    duration_s: float
    source: SourceInfo
    quality: QualityMeasures
    features: FeatureVector
    cached: bool = False
    """True if nothing had to be decoded or measured."""


@dataclass(frozen=True, eq=False)
class _Given:
    """What a caller made already, or makes elsewhere."""

    analysis: SpeechAnalysis | None = None
    tracks: Callable[[], PraatTracks] | None = None
    embed: Callable[[Encoder], Embedding] | None = None


class _Work:
    """One recording while it is measured: decoded at most once, analysed at most once, and each only when something asks."""

    def __init__(self, load: Callable[[], Recording], *, threads: bool) -> None:
        self._load = load
        self.threads = threads
        self.given = _Given()
        self.running = threading.Event()
        """Set when an engine that frees Python's lock is at work and will not want it back for long."""

    @cached_property
    def recording(self) -> Recording:
        return self._load()

    @cached_property
    def analysis(self) -> SpeechAnalysis:
        return self.given.analysis or audio.analyse(self.recording)

    def embeddings(self, encoder: Encoder) -> Embedding:
        return self.given.embed(encoder) if self.given.embed else encoder.encode([self.recording], speech=[self.analysis.speech])[0]

    @property
    def praat_tracks(self) -> PraatTracks:
        return self.given.tracks() if self.given.tracks else praat.measure(self.analysis)


@dataclass(frozen=True)
class _Engine:
    names: tuple[str, ...]
    fingerprint: str
    measure: Callable[[_Work], _Measured]
    frees_gil: bool = False
    """True if it runs in native code that does not hold Python's lock, and so beside other work."""
    needs_analysis: bool = True


_ENGINES: Mapping[str, _Engine] = {
    "egemaps": _Engine(
        egemaps.EGEMAPS_NAMES,
        f"{FINGERPRINT} {egemaps.FINGERPRINT}",
        lambda work: egemaps.functionals(work.recording, running=work.running.set),
        frees_gil=True,
        needs_analysis=False,
    ),
    "praat": _Engine(praat.NAMES, f"{FINGERPRINT} {praat.FINGERPRINT}", lambda work: praat.summarise(work.praat_tracks)),
    "timing": _Engine(timing.NAMES, f"{FINGERPRINT} {timing.FINGERPRINT}", lambda work: timing.compute(work.analysis)),
    "compare": _Engine(
        egemaps.COMPARE_NAMES,
        f"{FINGERPRINT} {egemaps.COMPARE_FINGERPRINT}",
        lambda work: egemaps.compare(work.recording, running=work.running.set),
        frees_gil=True,
        needs_analysis=False,
    ),
}


def _engine(feature_set: str) -> _Engine:
    return _encoder_engine(find_encoder(feature_set.removeprefix(ENCODER))) if feature_set.startswith(ENCODER) else _ENGINES[feature_set]


def _encoder_engine(encoder: Encoder) -> _Engine:
    names = column_names(encoder.spec)
    return _Engine(names, encoder.fingerprint, lambda work: _embedded(encoder, names, work), frees_gil=True)


def _embedded(encoder: Encoder, names: tuple[str, ...], work: _Work) -> _Measured:
    """Encode one recording; one that cannot be has no value in any dimension, and says why."""
    try:
        found = work.embeddings(encoder)
    except EmbeddingError as error:
        return dict.fromkeys(names, np.nan), dict.fromkeys(names, str(error))
    return dict(zip(names, found.utterance.tolist(), strict=True)), {}


def set_of(feature_set: str) -> str:
    """Return what a set is called in tables and bundles: `embedding.ge2e` for one of embeddings, else its own name."""
    if not feature_set.startswith(ENCODER):
        return feature_set
    return f"embedding.{find_encoder(feature_set.removeprefix(ENCODER)).spec.name}"


def feature_names(sets: Sequence[str] = DEFAULT_SETS) -> tuple[str, ...]:
    """Return the names of all features of these sets, in the order of a vector."""
    return _names(_chosen(sets))


def fingerprints(sets: Sequence[str] = DEFAULT_SETS) -> dict[str, str]:
    """Return for each set the fingerprint of the code that computes it: equal fingerprints, equal values."""
    return {set_of(name): _engine(name).fingerprint for name in _chosen(sets)}


def extract(
    recording: Recording,
    *,
    sets: Sequence[str] = DEFAULT_SETS,
    analysis: SpeechAnalysis | None = None,
    tracks: Callable[[], PraatTracks] | None = None,
    embed: Callable[[Encoder], Embedding] | None = None,
    threads: bool = True,
) -> FeatureVector:
    """Measure the features of one recording, in this process.

    Parameters
    ----------
    recording
        From `clinical_ser.audio.load`.
    sets
        Some of `FEATURE_SETS`, whose order does not matter, and sets of embeddings (`encoder:ge2e`).
    analysis
        The recording's shared analysis, if it was made already (the gate needs it too).
    tracks
        Gives the recording's Praat tracks, if they are measured elsewhere.
    embed
        Gives what an encoder makes of the recording, if more than the vector is wanted of it.
    threads
        openSMILE beside the analysis and Praat, in two threads: the same bits, and on two free cores 1.5 times as fast.

    Returns
    -------
    FeatureVector
        Raw values; `apply_gate` then removes those that the recording is not good enough for.

    Raises
    ------
    InvalidValueError
        An unknown feature set.
    """
    with begin(recording, sets=sets, threads=threads) as begun:
        return begun.finish(analysis, tracks=tracks, embed=embed)


def begin(recording: Recording, *, sets: Sequence[str] = DEFAULT_SETS, threads: bool = True, ahead: bool = True) -> "Begun":
    """Begin to measure, in a thread, what needs only samples, while the caller makes the recording's analysis and the gate judges it.

    `begin(recording).finish(analysis)` is `extract(recording, analysis=analysis)`, bit for bit.

    Parameters
    ----------
    recording, sets, threads
        As for `extract`.
    ahead
        Whether to begin now; without it, or without threads, nothing is measured before `finish`.

    Raises
    ------
    InvalidValueError
        An unknown feature set.

    Examples
    --------
    >>> with begin(recording) as begun:  # doctest: +SKIP
    ...     analysis = audio.analyse(recording)
    ...     vector = begun.finish(analysis) if audio.assess(recording, limits, analysis).usable else None
    """
    return Begun(_chosen(sets), _Work(lambda: recording, threads=threads), ahead=ahead)


class Begun:
    """An extraction under way; made by `begin`. As a context manager it is abandoned where it was not finished."""

    def __init__(self, chosen: tuple[str, ...], work: _Work, *, ahead: bool) -> None:
        self._chosen, self._work = chosen, work
        self._measuring = _Measuring(chosen, work)
        if ahead:
            self._measuring.start()

    def finish(
        self,
        analysis: SpeechAnalysis | None = None,
        *,
        tracks: Callable[[], PraatTracks] | None = None,
        embed: Callable[[Encoder], Embedding] | None = None,
    ) -> FeatureVector:
        """Measure the rest and return all, as `extract` does; once."""
        self._work.given = _Given(analysis, tracks, embed)
        return _vector(self._chosen, self._measuring.finish())

    def abandon(self) -> None:
        """Wait for nothing: the call of openSMILE that is under way ends by itself, and what it found is dropped."""
        self._measuring.stop()

    def __enter__(self) -> Self:
        """Return itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Abandon what was not finished."""
        self.abandon()


def extract_file(source: Source, *, sets: Sequence[str] = DEFAULT_SETS, cache: FeatureCache | None = None, threads: bool = True) -> Extraction:
    """Decode, analyse and measure one recording, and measure the quality that a gate judges.

    Parameters
    ----------
    source
        The file, or a part of it.
    sets
        Some of `FEATURE_SETS`.
    cache
        What is found there is not measured again, and what is not found is put there.
    threads
        As for `extract`.

    Raises
    ------
    AudioError
        The file is not there, cannot be decoded or is too long.
    FeatureError
        The file changed while it was read.
    InvalidValueError
        An unknown feature set.
    """
    chosen = _chosen(sets)
    # Only a regular file is read for its digest: a pipe or a device may never end. What is wrong with others, the loader says.
    if cache is None or not source.path.is_file() or not os.access(source.path, os.R_OK):
        work = _Work(lambda: _load(source), threads=threads)
        with _Measuring(chosen, work) as measuring:
            measuring.start()
            return _extraction(_Facts.of(work), chosen, measuring.finish())
    stamp = _stamp(source.path)
    key = key_of("source", _content_digest(source.path), source.start, source.end, _audio_fingerprint())
    with cache.lock(key, room="source"):
        return _through_cache(cache, key, chosen, _Work(lambda: _load_unchanged(source, stamp), threads=threads))


def apply_gate(vector: FeatureVector, report: QualityReport) -> FeatureVector:
    """Make the features missing that the gate has switched off, each with the gate's reason.

    A feature that is missing already keeps its own reason.
    """
    off = switched_off(vector.names, report)
    values = np.array([np.nan if name in off else value for name, value in zip(vector.names, vector.values, strict=True)], np.float64)
    return FeatureVector(vector.names, values, off | dict(vector.missing))


def switched_off(names: tuple[str, ...], report: QualityReport) -> dict[str, str]:
    """Return which of these features the gate has switched off, each with the reason (where several selectors meet one, the first's)."""
    found: dict[str, str] = {}
    for selector, reason in report.switched_off.items():
        for name in select(names, selector):
            found.setdefault(name, reason)
    return found


@lru_cache(maxsize=256)
def select(names: tuple[str, ...], selector: str) -> tuple[str, ...]:
    """Return the names that a selector with shell wildcards means (`praat.shimmer_*`)."""
    return tuple(name for name in names if fnmatchcase(name, selector))


def _chosen(sets: Sequence[str]) -> tuple[str, ...]:
    encoders = [name for name in sets if name.startswith(ENCODER)]
    if unknown := [name for name in sets if name not in {*FEATURE_SETS, *encoders}]:
        raise InvalidValueError("feature set", unknown[0], [*FEATURE_SETS, f"{ENCODER}NAME"])
    if len({set_of(name) for name in encoders}) < len(encoders):
        raise InvalidValueError("encoders", sorted(set_of(name) for name in encoders), "each under a name of its own, once")
    if not sets:
        raise InvalidValueError("feature sets", list(sets), f"at least one of {list(FEATURE_SETS)}")
    return (*(name for name in FEATURE_SETS if name in sets), *encoders)


def _names(chosen: tuple[str, ...]) -> tuple[str, ...]:
    return _joined(tuple(_engine(one).names for one in chosen))


@lru_cache(maxsize=64)  # so that all vectors share one tuple
def _joined(parts: tuple[tuple[str, ...], ...]) -> tuple[str, ...]:
    return tuple(name for part in parts for name in part)


def _vector(chosen: tuple[str, ...], measured: Mapping[str, _Measured]) -> FeatureVector:
    values = {name: value for one in chosen for name, value in measured[one][0].items()}
    missing = {name: reason for one in chosen for name, reason in measured[one][1].items()}
    names = _names(chosen)
    return FeatureVector(names, np.array([values[name] for name in names], np.float64), missing)


@lru_cache(maxsize=1)
def _thread_pools() -> ThreadpoolController:
    return ThreadpoolController()  # looks through all loaded libraries: 5 ms, so once


def one_thread() -> AbstractContextManager[Any]:
    """Keep matrix products to one thread: how one is split over threads decides the order of its sums, and so the last bits; and waiting costs."""
    limiter: AbstractContextManager[Any] = _thread_pools().limit(limits=1)
    return limiter


class _Measuring:
    """The engines of some sets at one recording: what needs no analysis in a thread from `start` on, the rest when `finish` is called."""

    def __init__(self, chosen: Sequence[str], work: _Work) -> None:
        self._work = work
        self._engines = {name: _engine(name) for name in chosen}
        beside = {name: engine for name, engine in self._engines.items() if engine.frees_gil}
        self._first = {name: engine for name, engine in beside.items() if not engine.needs_analysis}
        self._later = {name: engine for name, engine in beside.items() if engine.needs_analysis}
        self._helper = ThreadPoolExecutor(1) if work.threads and beside else None
        self._running: dict[str, Future[_Measured]] | None = None

    def start(self) -> None:
        """Begin with what needs no analysis, if there are threads to do it in."""
        if self._helper is None or self._running is not None:
            return
        _ = self._work.recording  # decoded before two threads ask for it
        self._running = self._submitted(self._first)
        for job in self._running.values():
            # Until openSMILE is at work it wants Python's lock again and again, and Praat keeps that for tens of milliseconds.
            job.add_done_callback(lambda _: self._work.running.set())
            self._work.running.wait(_LONGEST_START_S)

    def finish(self) -> dict[str, _Measured]:
        """Return what each engine found."""
        self.start()
        with one_thread():
            if self._running is None:
                return {name: engine.measure(self._work) for name, engine in self._engines.items()}
            if self._later:
                _ = self._work.analysis  # embeddings ask where there is speech: analysed before two threads ask for it
            queued = self._submitted(self._later)
            found = {name: engine.measure(self._work) for name, engine in self._engines.items() if not engine.frees_gil}
            # What still waits for the other thread is not waited for.
            found |= {name: self._engines[name].measure(self._work) for name, job in queued.items() if job.cancel()}
            return found | {name: job.result() for name, job in (self._running | queued).items() if name not in found}

    def stop(self) -> None:
        """Begin nothing more, and wait for nothing."""
        if self._helper is not None:
            self._helper.shutdown(wait=False, cancel_futures=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _submitted(self, engines: Mapping[str, _Engine]) -> dict[str, "Future[_Measured]"]:
        assert self._helper is not None
        return {name: self._helper.submit(engine.measure, self._work) for name, engine in engines.items()}


def _measure(chosen: Sequence[str], work: _Work) -> dict[str, _Measured]:
    with _Measuring(chosen, work) as measuring:
        return measuring.finish()


@dataclass(frozen=True, eq=False)
class _Facts:
    """What is known of a source before any feature: `samples` is the digest of the float samples themselves.

    `recording` (16-bit) is the same for a 24-bit file and its 16-bit copy, whose features differ in the sixth digit; `samples` is not.
    """

    recording: str
    samples: str
    duration_s: float
    source: SourceInfo
    quality: QualityMeasures

    @classmethod
    def of(cls, work: _Work) -> Self:
        recording = work.recording
        with one_thread():
            quality = audio.measure(recording, work.analysis)
        return cls(recording.sha256, hashlib.sha256(recording.samples.tobytes()).hexdigest(), recording.duration_s, recording.source, quality)

    @classmethod
    def restored(cls, entry: Entry) -> Self:
        facts: dict[str, Any] = dict(entry.facts)
        return cls(**facts | {"source": SourceInfo(**facts["source"]), "quality": QualityMeasures(**facts["quality"])})


def _extraction(facts: _Facts, chosen: tuple[str, ...], measured: Mapping[str, _Measured], *, cached: bool = False) -> Extraction:
    return Extraction(facts.recording, facts.duration_s, facts.source, facts.quality, _vector(chosen, measured), cached)


def _through_cache(cache: FeatureCache, key: str, chosen: tuple[str, ...], work: _Work) -> Extraction:
    """Take from the cache what is there, measure the rest, and put it there."""
    entry = cache.get(key)
    facts = _Facts.restored(entry) if entry else _Facts.of(work)
    if entry is None:
        cache.put(key, asdict(facts))
    with cache.lock(facts.samples, room="samples"):
        known = {name: cache.get(_set_key(facts.samples, name)) for name in chosen}
        wanted = [name for name in chosen if known[name] is None]
        measured = _measure(wanted, work) if wanted else {}
        for name, (values, missing) in measured.items():
            cache.put(_set_key(facts.samples, name), missing, [values[feature] for feature in _engine(name).names])
    remembered = {name: _remembered(name, found) for name, found in known.items() if found is not None}
    return _extraction(facts, chosen, measured | remembered, cached=entry is not None and not measured)


def _set_key(samples: str, name: str) -> str:
    # The names too: they decide which value is whose. The analysis too: Praat and timing start from it.
    engine = _engine(name)
    return key_of("features", samples, set_of(name), engine.fingerprint, _digest_of_names(engine.names), _audio_fingerprint())


def _remembered(name: str, entry: Entry) -> _Measured:
    missing = {feature: str(reason) for feature, reason in entry.facts.items()}
    return dict(zip(_engine(name).names, entry.values.tolist(), strict=True)), missing


@lru_cache(maxsize=64)
def _digest_of_names(names: tuple[str, ...]) -> str:
    return hashlib.sha256("\n".join(names).encode()).hexdigest()


@lru_cache(maxsize=1)
def _audio_fingerprint() -> str:
    """Name everything that decides what decoding and analysis give: the text of that room, and the libraries that it calls."""
    digest = hashlib.sha256()
    for file in sorted((entry for entry in resources.files(audio).iterdir() if entry.name.endswith(".py")), key=lambda entry: entry.name):
        digest.update(file.name.encode() + b"\n" + file.read_bytes())
    versions = {name: metadata.version(name) for name in ("soundfile", "av", "soxr", "praat-parselmouth", "numpy", "scipy")}
    return f"{digest.hexdigest()} {versions}"


def _content_digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _load(source: Source) -> Recording:
    return audio.load(source.path, start=source.start, end=source.end)


def _load_unchanged(source: Source, stamp: tuple[int, int, int]) -> Recording:
    """Refuse a file that changed while it was read: its digest would not be that of the samples, and the cache would pass that on."""
    recording = _load(source)
    if _stamp(source.path) != stamp:
        raise FeatureError("The file changed while it was read; run again when its recording or copying is finished.")
    return recording


def _stamp(path: Path) -> tuple[int, int, int]:
    state = path.stat()
    return state.st_ino, state.st_size, state.st_mtime_ns
