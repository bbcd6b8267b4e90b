"""The features of one recording: the engines behind one function, measured once, and remembered by content if the caller wants.

One idea: the result depends on the samples and on nothing else, no other recording, no name, no number of threads. That is what makes it possible
to measure anywhere (see `batch.py`) and to take from a cache what was measured before.
"""

import hashlib
import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
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


class _Work:
    """One recording while it is measured: decoded at most once, analysed at most once, and each only when something asks."""

    def __init__(
        self,
        load: Callable[[], Recording],
        analysis: SpeechAnalysis | None = None,
        tracks: Callable[[], PraatTracks] | None = None,
        embed: Callable[[Encoder], Embedding] | None = None,
        *,
        threads: bool,
    ) -> None:
        self._load = load
        self._given = analysis
        self._tracks = tracks
        self._embed = embed
        self.threads = threads

    @cached_property
    def recording(self) -> Recording:
        return self._load()

    @cached_property
    def analysis(self) -> SpeechAnalysis:
        return self._given or audio.analyse(self.recording)

    def embeddings(self, encoder: Encoder) -> Embedding:
        return self._embed(encoder) if self._embed else encoder.encode([self.recording], speech=[self.analysis.speech])[0]

    @property
    def praat_tracks(self) -> PraatTracks:
        return self._tracks() if self._tracks else praat.measure(self.analysis)


@dataclass(frozen=True)
class _Engine:
    names: tuple[str, ...]
    fingerprint: str
    measure: Callable[[_Work], _Measured]
    frees_gil: bool
    """True if it runs in native code that does not hold Python's lock, and so beside other work."""


_ENGINES: Mapping[str, _Engine] = {
    "egemaps": _Engine(
        egemaps.EGEMAPS_NAMES, f"{FINGERPRINT} {egemaps.FINGERPRINT}", lambda work: egemaps.functionals(work.recording), frees_gil=True
    ),
    "praat": _Engine(praat.NAMES, f"{FINGERPRINT} {praat.FINGERPRINT}", lambda work: praat.summarise(work.praat_tracks), frees_gil=False),
    "timing": _Engine(timing.NAMES, f"{FINGERPRINT} {timing.FINGERPRINT}", lambda work: timing.compute(work.analysis), frees_gil=False),
    "compare": _Engine(
        egemaps.COMPARE_NAMES, f"{FINGERPRINT} {egemaps.COMPARE_FINGERPRINT}", lambda work: egemaps.compare(work.recording), frees_gil=True
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
        openSMILE beside Praat, in two threads: the same bits, and on two free cores 1.4 times (clips of 4 s) to 1.6 times (43 s) as fast.

    Returns
    -------
    FeatureVector
        Raw values; `apply_gate` then removes those that the recording is not good enough for.

    Raises
    ------
    InvalidValueError
        An unknown feature set.
    """
    chosen = _chosen(sets)
    return _vector(chosen, _measure(chosen, _Work(lambda: recording, analysis, tracks, embed, threads=threads)))


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
        return _extraction(_Facts.of(work), chosen, _measure(chosen, work))
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


def _measure(chosen: Sequence[str], work: _Work) -> dict[str, _Measured]:
    engines = {name: _engine(name) for name in chosen}
    beside = [name for name in chosen if engines[name].frees_gil]
    others = [name for name in chosen if name not in beside]
    # One BLAS thread everywhere: how a matrix product is split over threads decides the order of its sums, and so the last bits.
    with _thread_pools().limit(limits=1):
        if not (work.threads and beside and others):
            return {name: engines[name].measure(work) for name in chosen}
        # Before both threads ask for it: decoded, and analysed where embeddings, too, ask where there is speech.
        _ = work.analysis if any(name.startswith(ENCODER) for name in beside) else work.recording
        # openSMILE stays in the caller's thread, where its objects are warm (one a thread, 5 ms each to make).
        with ThreadPoolExecutor(1) as helper:
            running = helper.submit(lambda: {name: engines[name].measure(work) for name in others})
            return {name: engines[name].measure(work) for name in beside} | running.result()


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
        with _thread_pools().limit(limits=1):
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
