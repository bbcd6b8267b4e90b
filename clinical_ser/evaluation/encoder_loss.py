"""What recognition loses when one encoder takes another's place: the same people, folds and head for both, and the difference with its interval."""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from clinical_ser import audio
from clinical_ser.cohorts.manifest import Manifest, labels_for
from clinical_ser.cohorts.splits import group_k_fold
from clinical_ser.cohorts.tasks import Task
from clinical_ser.embeddings import Encoder
from clinical_ser.embeddings.quantizing import UarLoss
from clinical_ser.errors import AudioError, EmbeddingError, ManifestError
from clinical_ser.evaluation.discrimination import Confusion, unweighted_average_recall_of
from clinical_ser.evaluation.intervals import bootstrap
from clinical_ser.models.linear_head import LinearHead

FOLDS = 5
REPLICATES = 2000
STRENGTH = 100.0
"""Ridge of the head, the same for both: vectors have hundreds of dimensions that go together, and what is compared is the vectors."""

Progress = Callable[[int, int], None]


def uar_loss(before: Encoder, after: Encoder, manifest: Manifest, task: Task, *, seed: int = 0, progress: Progress | None = None) -> UarLoss:
    """Compare two encoders on labelled recordings, subjects kept apart.

    Parameters
    ----------
    before, after
        The original, and what would take its place.
    manifest
        Recordings with subjects and labels.
    task
        What is told; without classes of its own those in the manifest.
    seed
        Of folds and bootstrap samples.
    progress
        Called with how many recordings are done, and of how many.

    Returns
    -------
    UarLoss
        Points of unweighted average recall over `FOLDS` folds by subject (fewer where a class has fewer subjects).

    Raises
    ------
    ManifestError
        Not one recording can be used.
    SplitError
        There are too few subjects.
    """
    labels = labels_for(task, manifest.frame)
    found: list[tuple[str, str, NDArray[np.float64], NDArray[np.float64]]] = []
    for done, (row, label) in enumerate(zip(manifest.frame.to_dict("records"), labels.values, strict=True), start=1):
        if label is not None:
            span = {name: float(row[name]) for name in ("start", "end") if name in row and np.isfinite(row[name])}
            try:
                recording = audio.load(row["path"], **span)
                first, second = (encoder.encode([recording])[0].utterance for encoder in (before, after))
            except (AudioError, EmbeddingError):
                continue
            found.append((str(row["subject"]), str(label), first, second))
        if progress:
            progress(done, len(manifest.frame))
    if not found:
        raise ManifestError("Not one recording of the manifest can be read and holds speech, so that nothing can be compared.")
    subjects, truth = np.array([one[0] for one in found]), np.array([one[1] for one in found])
    classes = tuple(name for name in labels.classes if name in set(truth))
    per_class = [len(set(subjects[truth == name])) for name in classes]
    folds = [(fold.train, fold.test) for fold in group_k_fold(subjects, truth, max(2, min(FOLDS, *per_class)), seed)]
    coded = np.searchsorted(np.sort(classes), truth)
    tables = [Confusion(coded, _answers(np.stack([one[place] for one in found]), coded, folds), len(classes)) for place in (2, 3)]

    def points(weight: NDArray[np.float64]) -> NDArray[np.float64]:
        first, second = (100 * unweighted_average_recall_of(table.matrix(weight)) for table in tables)
        return np.array([first, second, first - second])

    drawn = bootstrap(points, subjects, replicates=REPLICATES, seed=seed)
    low, high = drawn.interval(2, subjects=min(per_class))
    return UarLoss(
        task=task.name,
        before=float(drawn.values[0]),
        after=float(drawn.values[1]),
        loss=float(drawn.values[2]),
        low=float(low) if np.isfinite(low) else None,
        high=float(high) if np.isfinite(high) else None,
        level=drawn.level,
        subjects=len(set(subjects)),
        recordings=len(found),
        left_out=len(manifest.frame) - len(found),
    )


def _answers(vectors: NDArray[np.float64], truth: NDArray[np.int64], folds: list[tuple[NDArray[np.intp], NDArray[np.intp]]]) -> NDArray[np.int64]:
    """Return the class that each row is given by a head that has not heard its subject."""
    answers = np.zeros(len(truth), np.int64)
    for train, test in folds:
        mean, sd = vectors[train].mean(axis=0), vectors[train].std(axis=0)
        scaled = (vectors - mean) / np.where(sd > 0, sd, 1.0)
        head = LinearHead(["embedding"] * vectors.shape[1], strength=STRENGTH, balanced=True).fit(scaled[train], truth[train])
        margins = head.margins(scaled[test])
        answers[test] = (margins > 0).astype(np.int64) if margins.ndim == 1 else margins.argmax(axis=1)
    return answers
