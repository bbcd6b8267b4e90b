"""From a manifest to a feature table: every row ends up in the table or, by number and reason, among its problems."""

from collections import Counter
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path

import numpy as np
import pandas as pd

from clinical_ser.audio.quality import QualityMeasures
from clinical_ser.cohorts.gating import PREFIX, quality_columns
from clinical_ser.cohorts.manifest import Manifest
from clinical_ser.cohorts.table import FeatureTable, RowProblem
from clinical_ser.errors import ManifestError
from clinical_ser.features.batch import Executor, Outcome, Progress, extract_many
from clinical_ser.features.cache import DEFAULT_MAX_AGE
from clinical_ser.features.extraction import DEFAULT_SETS, Source, feature_names, fingerprints
from clinical_ser.features.workers import JOB_TIMEOUT_S

_OWN = ("recording", "duration_s")
_FIRST = ("row", "subject")
_NOT_CARRIED = ("path",)


def build_table(
    manifest: Manifest,
    *,
    sets: Sequence[str] = DEFAULT_SETS,
    workers: int = 0,
    cache: Path | None = None,
    cache_max_age: timedelta | None = DEFAULT_MAX_AGE,
    progress: Progress | None = None,
    executor: Executor | str = Executor.PROCESSES,
    ray_address: str | None = None,
    timeout_s: float = JOB_TIMEOUT_S,
) -> FeatureTable:
    """Measure every recording of a manifest; the options are those of `features.extract_many`, and only `sets` changes the table.

    Values stand in the table as measured. What a gate switches off depends on the task, so `gating.judge_table` does that later.

    Returns
    -------
    FeatureTable
        Rows in the manifest's order; `problems` holds the manifest's own and those of recordings that could not be measured.

    Raises
    ------
    ManifestError
        A column of the manifest has the name of one of the table's own.
    InvalidValueError, FeatureError
        As `extract_many` raises.
    """
    names = feature_names(sets)
    _check_columns(manifest.frame, names)
    outcomes = extract_many(
        _sources(manifest.frame),
        sets=sets,
        workers=workers,
        cache=cache,
        cache_max_age=cache_max_age,
        progress=progress,
        executor=executor,
        ray_address=ray_address,
        timeout_s=timeout_s,
    )
    rows = _Rows(manifest.frame, names)
    for outcome in outcomes:
        rows.add(outcome)
    return FeatureTable(
        frame=rows.frame(),
        feature_names=names,
        extractors=fingerprints(sets),
        problems=tuple(sorted([*manifest.problems, *rows.problems], key=lambda problem: problem.row)),
        missing={name: dict(sorted(reasons.items())) for name, reasons in sorted(rows.missing.items())},
    )


class _Rows:
    """Gathers outcomes, in order, beside their manifest rows; the matrix is there from the start, so that 100,000 rows are held once."""

    def __init__(self, manifest: pd.DataFrame, names: tuple[str, ...]) -> None:
        self._manifest = manifest
        self._names = names
        self._values = np.empty((len(manifest), len(names)))
        self._numbers = manifest["row"].tolist()
        self._done: list[int] = []
        self._recordings: list[str] = []
        self._quality: list[QualityMeasures] = []
        self.problems: list[RowProblem] = []
        self.missing: dict[str, Counter[str]] = {}

    def add(self, outcome: Outcome) -> None:
        extraction = outcome.extraction
        if extraction is None:
            self.problems.append(RowProblem(int(self._numbers[outcome.index]), outcome.reason or ""))
            return
        self._values[len(self._done)] = extraction.features.values
        self._done.append(outcome.index)
        self._recordings.append(extraction.recording)
        self._quality.append(extraction.quality)
        for name, reason in extraction.features.missing.items():
            self.missing.setdefault(name, Counter())[reason] += 1

    def frame(self) -> pd.DataFrame:
        kept = self._manifest.iloc[self._done].reset_index(drop=True)
        others = [name for name in kept.columns if name not in {*_FIRST, *_NOT_CARRIED}]
        recordings = pd.Series(self._recordings, name="recording", dtype=object)
        features = pd.DataFrame(self._values[: len(self._done)], columns=list(self._names))
        return pd.concat([kept["row"], recordings, kept["subject"], kept[others], quality_columns(self._quality), features], axis=1)


def _check_columns(frame: pd.DataFrame, names: tuple[str, ...]) -> None:
    own = {*_OWN, *names}
    if taken := [column for column in frame.columns if column in own or str(column).startswith(PREFIX)]:
        raise ManifestError(f"The manifest's columns {taken} have names that the feature table uses itself; rename them.")


def _sources(frame: pd.DataFrame) -> list[Source]:
    starts, ends = (_seconds(frame, name) for name in ("start", "end"))
    return [Source(Path(path), start, end) for path, start, end in zip(frame["path"], starts, ends, strict=True)]


def _seconds(frame: pd.DataFrame, name: str) -> list[float | None]:
    if name not in frame:
        return [None] * len(frame)
    return [None if pd.isna(value) else float(value) for value in frame[name]]
