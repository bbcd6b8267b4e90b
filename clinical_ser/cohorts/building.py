"""From a manifest to a feature table: every row ends up in the table or, by number and reason, among its problems."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from clinical_ser.cohorts.manifest import Manifest
from clinical_ser.cohorts.table import FeatureTable, RowProblem
from clinical_ser.errors import ManifestError
from clinical_ser.features.batch import Executor, Outcome, Progress, extract_many
from clinical_ser.features.extraction import DEFAULT_SETS, Extraction, Source, feature_names, fingerprints
from clinical_ser.features.workers import JOB_TIMEOUT_S

QUALITY = "quality."
"""Prefix of the columns that hold the gate's measurements."""
_OURS = ("recording", "duration_s")
_FIRST = ("row", "subject")


def build_table(
    manifest: Manifest,
    *,
    sets: Sequence[str] = DEFAULT_SETS,
    workers: int = 0,
    cache: Path | None = None,
    progress: Progress | None = None,
    executor: Executor | str = Executor.PROCESSES,
    ray_address: str | None = None,
    timeout_s: float = JOB_TIMEOUT_S,
) -> FeatureTable:
    """Measure every recording of a manifest; all options are those of `features.extract_many`, and none of them changes the table.

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
    rows = _Rows(len(manifest), names)
    for outcome in extract_many(
        _sources(manifest.frame),
        sets=sets,
        workers=workers,
        cache=cache,
        progress=progress,
        executor=executor,
        ray_address=ray_address,
        timeout_s=timeout_s,
    ):
        rows.add(outcome)
    numbers = manifest.frame["row"].tolist()
    problems = [*manifest.problems, *(RowProblem(int(numbers[index]), reason) for index, reason in rows.failed.items())]
    return FeatureTable(
        frame=rows.beside(manifest.frame),
        feature_names=names,
        extractors=fingerprints(sets),
        problems=tuple(sorted(problems, key=lambda problem: problem.row)),
        missing={name: dict(sorted(reasons.items())) for name, reasons in sorted(rows.missing.items())},
    )


@dataclass(eq=False)
class _Rows:
    """Gathers outcomes; the matrix is there from the start, so that 100,000 rows are held once."""

    count: int
    names: tuple[str, ...]
    extractions: dict[int, Extraction] = field(default_factory=dict)
    failed: dict[int, str] = field(default_factory=dict)
    missing: dict[str, Counter[str]] = field(default_factory=dict)
    values: NDArray[np.float64] = field(init=False)

    def __post_init__(self) -> None:
        self.values = np.empty((self.count, len(self.names)))

    def add(self, outcome: Outcome) -> None:
        if outcome.extraction is None:
            self.failed[outcome.index] = outcome.reason or "no features"
            return
        features = outcome.extraction.features
        self.values[outcome.index] = features.values
        self.extractions[outcome.index] = replace(outcome.extraction, features=_NO_FEATURES)
        for name, reason in features.missing.items():
            self.missing.setdefault(name, Counter())[reason] += 1

    def beside(self, manifest: pd.DataFrame) -> pd.DataFrame:
        """Return the manifest's rows that were measured, with what was measured to their right."""
        done = sorted(self.extractions)
        kept = manifest.iloc[done].reset_index(drop=True).drop(columns="path")
        others = [name for name in kept.columns if name not in _FIRST]
        extractions = [self.extractions[index] for index in done]
        features = pd.DataFrame(self.values[done], columns=list(self.names))
        return pd.concat([kept["row"], _digests(extractions), kept["subject"], kept[others], _measures(extractions), features], axis=1)


def _digests(extractions: Sequence[Extraction]) -> pd.Series:
    return pd.Series([extraction.recording for extraction in extractions], name="recording", dtype=object)
