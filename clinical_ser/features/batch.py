"""Many recordings: one after the other here, over processes, or over a cluster, with one result.

One idea: every executor calls the same function on one recording, so the tables are the same bit for bit, and a recording that cannot be measured
is an outcome with a reason, not the end of the run.
"""

from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from datetime import timedelta
from enum import StrEnum
from functools import partial
from pathlib import Path

from clinical_ser.errors import ClinicalSerError, FeatureError, InvalidValueError
from clinical_ser.features.cache import DEFAULT_MAX_AGE, FeatureCache
from clinical_ser.features.extraction import DEFAULT_SETS, Extraction, Source, extract_file, feature_names, fingerprints
from clinical_ser.features.vector import FeatureVector
from clinical_ser.features.workers import JOB_TIMEOUT_S, Lost, run_in_processes

# What the content of one recording can set off in decoders and engines. Anything else is a fault of this program and is not hidden.
_ROW_ERRORS = (OSError, MemoryError, ArithmeticError, LookupError, ValueError, RuntimeError)


class Executor(StrEnum):
    """Where many recordings are measured."""

    PROCESSES = "processes"
    RAY = "ray"


@dataclass(frozen=True, eq=False)
class Outcome:
    """What became of one of many recordings: an extraction, or the reason why there is none."""

    index: int
    extraction: Extraction | None
    reason: str | None = None


Progress = Callable[[Outcome], None]
"""Called once for every recording, when it is finished, so in no particular order."""


def extract_many(
    sources: Sequence[Source],
    *,
    sets: Sequence[str] = DEFAULT_SETS,
    workers: int = 0,
    cache: Path | None = None,
    cache_max_age: timedelta | None = DEFAULT_MAX_AGE,
    progress: Progress | None = None,
    executor: Executor | str = Executor.PROCESSES,
    ray_address: str | None = None,
    timeout_s: float = JOB_TIMEOUT_S,
) -> Iterator[Outcome]:
    """Measure many recordings; one that fails gives a reason, and the others go on.

    The values are the same bit for bit whatever `workers` and `executor` are (on one kind of processor: NumPy and the engines choose their
    vector instructions by it).

    Parameters
    ----------
    sources
        The recordings. On a cluster every node must see them under the same path; they are not sent, so no copy of a voice is left behind.
    sets
        Some of `FEATURE_SETS`.
    workers
        0: one after the other in this process. Otherwise as many warm processes; with Ray, the most recordings under way at once,
        and 0 leaves that to the cluster.
    cache
        A folder for what has been measured (see `FeatureCache`: it holds biometric data, sealed). A run that was killed and is started again
        goes on from there, and the same audio under two names is measured once. None: nothing is kept.
    cache_max_age
        What was measured longer ago is deleted from the cache and measured again; None: nothing expires.
    progress
        Called with each outcome as it is finished.
    executor
        `processes`, or `ray` (needs the extra `clinical-ser[cluster]`).
    ray_address
        With Ray: `auto` or an address joins a cluster that runs, None starts one on this machine for the time of the call.
    timeout_s
        With `processes` and workers: the longest that one recording may take.

    Yields
    ------
    Outcome
        One for each source, in their order.

    Raises
    ------
    InvalidValueError
        An unknown set or executor, a negative number of workers, or a folder that cannot be the cache or whose key is not here.
    FeatureError
        Workers cannot start, or Ray is not installed or not reachable.
    """
    if workers < 0:
        raise InvalidValueError("workers", workers, "0 (in this process) or more")
    if executor not in list(Executor):
        raise InvalidValueError("executor", executor, list(Executor))
    names = feature_names(sets)
    alone = executor == Executor.PROCESSES and not workers
    kept = FeatureCache(cache, max_age=cache_max_age) if cache else None
    extract_one = partial(extract_row, sets=tuple(sets), cache=kept, expected=fingerprints(sets), threads=alone)
    rows = [(index, replace(source, path=source.path.absolute())) for index, source in enumerate(sources)]
    answers: Generator[tuple[int, Outcome | Lost]]
    if executor == Executor.RAY:
        from clinical_ser.features.cluster import run_on_ray  # an optional extra

        answers = run_on_ray(extract_one, rows, address=ray_address, at_once=workers or None)
    elif not alone:
        answers = run_in_processes(extract_one, rows, workers=workers, timeout_s=timeout_s)
    else:
        answers = ((index, extract_one(row)) for index, row in enumerate(rows))
    return _in_order(answers, names, progress)


def extract_row(row: tuple[int, Source], *, sets: tuple[str, ...], cache: FeatureCache | None, expected: Mapping[str, str], threads: bool) -> Outcome:
    """Measure one of many recordings, wherever that is done; what is wrong with it becomes the outcome's reason.

    `threads` is for a process that has the cores to itself. `expected` are the fingerprints of the process that asks: a node with other versions
    answers with a reason, never with other values.
    """
    index, source = row
    try:
        if fingerprints(sets) != expected:
            raise FeatureError("The process that measures has other versions of the feature extractors than the one that started the run.")
        return Outcome(index, extract_file(source, sets=sets, cache=cache, threads=threads))
    except ClinicalSerError as error:
        return Outcome(index, None, str(error))
    except _ROW_ERRORS as error:
        # Only the kind: the text may quote a path.
        return Outcome(index, None, f"{type(error).__name__} while it was measured")


def _in_order(answers: Generator[tuple[int, Outcome | Lost]], names: tuple[str, ...], progress: Progress | None) -> Iterator[Outcome]:
    early: dict[int, Outcome] = {}
    due = 0
    with closing(answers):  # a caller who stops in the middle ends the workers too
        for index, answer in answers:
            outcome = Outcome(index, None, answer.reason) if isinstance(answer, Lost) else _with_names(answer, names)
            if progress:
                progress(outcome)
            early[index] = outcome
            while due in early:
                yield early.pop(due)
                due += 1


def _with_names(outcome: Outcome, names: tuple[str, ...]) -> Outcome:
    """Let all outcomes share one tuple of names: from another process each brings its own copy, 1 GB in 100,000 rows."""
    if outcome.extraction is None or outcome.extraction.features.names is names:
        return outcome
    features = FeatureVector(names, outcome.extraction.features.values, outcome.extraction.features.missing)
    return replace(outcome, extraction=replace(outcome.extraction, features=features))
