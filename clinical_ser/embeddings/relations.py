"""How the recordings of a cohort lie to each other: neighbours, clusters, and two dimensions for the eye.

The one idea: everything is told in one space, the directions of the vectors from their common mean. What all vectors share says nothing of any one:
as they come, 98 % of RAVDESS's pairs have cosines of 0.77 to 0.97 with GE2E and of 0.976 to 0.995 with Whisper tiny, and after it of -0.59 to 0.73
and of -0.39 to 0.50. Who is next to whom stays the same: the nearest neighbour is of the same speaker for 94 % before and after.

References
----------
Mu J, Viswanath P (2018), All-but-the-top, ICLR, arXiv 1702.01417 (the common mean). Rousseeuw PJ (1987), J Comput Appl Math 20:53-65 (silhouette).
Hubert L, Arabie P (1985), J Classif 2:193-218 (adjusted Rand index). van der Maaten L, Hinton G (2008), JMLR 9:2579-2605 (t-SNE).
Wattenberg M, Viégas F, Johnson I (2016), How to use t-SNE effectively, Distill 1:e2 (what distances between its groups do not mean).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray
from sklearn.cluster import KMeans
from sklearn.decomposition import PCA
from sklearn.manifold import TSNE
from sklearn.metrics import adjusted_rand_score, silhouette_score
from threadpoolctl import threadpool_limits

from clinical_ser.errors import InvalidValueError

LEAST_TO_CENTRE = 3
"""Two vectors less their mean are opposite, whatever they are."""
MOST_CLUSTERS = 10
"""That are tried where nobody says how many."""
STARTS = 10
"""Of k-means; the best is kept."""
SILHOUETTE_ROWS = 2000
"""Drawn by the seed where there are more: silhouettes take every pair."""
PERPLEXITY = 30.0
"""van der Maaten & Hinton's usual one; a third of the recordings where that is less."""
MOST_PLACED = 5000
"""Points of a picture: more hide each other, and t-SNE takes minutes."""
NOTEWORTHY = 0.05
"""Lift above chance below which clusters are not said to follow anything."""
_BLOCK = 512

Vectors = NDArray[np.float64] | NDArray[np.float32]


class Method(StrEnum):
    """How many dimensions become two."""

    PCA = "pca"
    TSNE = "tsne"


@dataclass(frozen=True)
class Neighbour:
    """Another row, as its place in the matrix, and how near it is: 1 the same direction, 0 unrelated, -1 opposite."""

    place: int
    cosine: float
    """In the space of all this file's answers."""
    uncentred: float
    """Of the vectors as they come, for comparison with what other programs say."""


@dataclass(frozen=True, eq=False)
class Clustering:
    """k-means: `clusters` has shape (N,), numbered from 0 by size, the largest first."""

    clusters: NDArray[np.intp]
    k: int
    inertia: float
    """Sum of squared distances to the centres, within vectors of length 1."""
    silhouette: float
    """From -1 to 1: how much nearer rows are to their own cluster than to the next; below 0.25 Kaufman & Rousseeuw see no structure."""
    tried: dict[int, float]
    """Silhouette of each number of clusters that was tried."""


@dataclass(frozen=True)
class Agreement:
    """How far clusters follow the groups that a column forms, over rows with a value in it."""

    column: str
    groups: int
    rows: int
    ari: float
    """Adjusted Rand index: 1 the same partition, 0 chance. Where groups are many more than clusters it stays low although each group is whole."""
    together: float | None
    """Share of pairs of one group that lie in one cluster; of `label`, pairs of different speakers alone. None without such a pair."""
    chance: float
    """The same share of all pairs."""

    @property
    def lift(self) -> float:
        """How much more often than chance pairs of one group lie together."""
        return 0.0 if self.together is None else self.together - self.chance


@dataclass(frozen=True, eq=False)
class Projection:
    """Rows in two dimensions."""

    places: NDArray[np.intp]
    """Shape (n,), which rows: all, or as many as a picture takes, drawn by the seed."""
    points: NDArray[np.float64]
    """Shape (n, 2)."""
    method: Method
    seed: int
    explained: tuple[float, float] | None = None
    """Of PCA: the share of the variance along each axis."""
    perplexity: float | None = None
    """Of t-SNE."""


def directions(vectors: Vectors) -> NDArray[np.float64]:
    """Return vectors of length 1 from the mean of all, shape (N, D); one that is the mean stays zero. Two or fewer are not centred."""
    given = np.asarray(vectors, np.float64)
    return _unit(given - given.mean(axis=0) if len(given) >= LEAST_TO_CENTRE else given)


def neighbours(vectors: Vectors, top: int, *, of: Sequence[int] | None = None) -> list[tuple[Neighbour, ...]]:
    """Return the nearest other rows by cosine, nearest first.

    Parameters
    ----------
    vectors
        Shape (N, D).
    top
        How many of each row; ties go to the row that stands first.
    of
        Places of the rows that are asked for; all otherwise. Memory is that of 512 rows of cosines at a time.

    Raises
    ------
    InvalidValueError
        Fewer than two rows, or no neighbour asked for.
    """
    _check_rows(vectors, 2)
    if top < 1:
        raise InvalidValueError("the number of neighbours", top, "1 or more")
    wanted = np.arange(len(vectors)) if of is None else np.asarray(of, np.intp)
    centred, raw = directions(vectors), _unit(np.asarray(vectors, np.float64))
    found: list[tuple[Neighbour, ...]] = []
    with threadpool_limits(1):
        for block in np.array_split(wanted, max(1, -(-len(wanted) // _BLOCK))):
            cosines = centred[block] @ centred.T
            cosines[np.arange(len(block)), block] = -np.inf
            for place, row in zip(block.tolist(), cosines, strict=True):
                nearest = np.argsort(-row, kind="stable")[: min(top, len(vectors) - 1)].tolist()
                found.append(tuple(Neighbour(near, _cosine(row[near]), _cosine(raw[place] @ raw[near])) for near in nearest))
    return found


def cluster(vectors: Vectors, k: int | None = None, *, seed: int = 0) -> Clustering:
    """Group rows by k-means.

    Parameters
    ----------
    vectors
        Shape (N, D).
    k
        Number of clusters; otherwise that of 2 to 10 whose silhouette is best.

    Raises
    ------
    InvalidValueError
        Fewer different vectors than clusters, or fewer than three.
    """
    _check_rows(vectors, LEAST_TO_CENTRE)
    space = directions(vectors)
    different = len(np.unique(np.round(space, 12), axis=0))
    if different < LEAST_TO_CENTRE:
        raise InvalidValueError("embeddings", f"{different} different vectors", f"{LEAST_TO_CENTRE} or more to cluster")
    most = min(different, len(space) - 1)
    if k is not None and not 2 <= k <= most:
        raise InvalidValueError("the number of clusters", k, f"2 to {most} for these recordings")
    tried: dict[int, float] = {}
    best: tuple[float, KMeans] | None = None
    with threadpool_limits(1):  # how a sum is split over threads decides its last bits, and so who is nearer
        for n in [k] if k is not None else range(2, min(MOST_CLUSTERS, most) + 1):
            fitted = KMeans(n, n_init=STARTS, random_state=seed).fit(space)
            tried[n] = _silhouette(space, fitted.labels_, seed)
            if best is None or tried[n] > best[0]:
                best = tried[n], fitted
    if best is None:  # cannot be: at least two clusters were tried
        raise InvalidValueError("the number of clusters", k, f"2 to {most}")
    silhouette, fitted = best
    return Clustering(_by_size(fitted.labels_), int(fitted.n_clusters), float(fitted.inertia_), silhouette, tried)


def agreement(clusters: NDArray[np.intp], column: str, values: Sequence[object], *, apart_from: Sequence[object] | None = None) -> Agreement:
    """Compare clusters with the groups of a column.

    Parameters
    ----------
    clusters
        Shape (N,).
    column
        Its name.
    values
        Of each row; rows whose value is None are left out.
    apart_from
        The speakers: then only pairs of different ones count as together, so that a label that clings to its speakers gains nothing by it.

    Raises
    ------
    InvalidValueError
        Fewer than two rows with a value.
    """
    known = [i for i, value in enumerate(values) if value is not None]
    if len(known) < 2:
        raise InvalidValueError(f"the column {column!r}", f"{len(known)} rows with a value", "2 or more")
    of, groups = clusters[known], _codes([values[i] for i in known])
    pairs, both = _pairs(groups), _pairs(groups, of)
    if apart_from is not None:
        speakers = _codes([apart_from[i] for i in known])
        pairs, both = pairs - _pairs(groups, speakers), both - _pairs(groups, speakers, of)
    everyone = len(known) * (len(known) - 1) // 2
    together = both / pairs if pairs else None
    return Agreement(column, int(groups.max()) + 1, len(known), float(adjusted_rand_score(groups, of)), together, _pairs(of) / everyone)


def follows_speakers(speakers: Agreement, label: Agreement | None) -> bool:
    """Return whether clusters tell who speaks, more than the label: by either measure, where it is more than chance."""
    if label is None:
        return speakers.lift > NOTEWORTHY
    return (speakers.lift > NOTEWORTHY and speakers.lift > label.lift) or (speakers.ari > NOTEWORTHY and speakers.ari > label.ari)


def project(vectors: Vectors, method: Method, *, seed: int = 0, perplexity: float | None = None) -> Projection:
    """Bring rows into two dimensions.

    Parameters
    ----------
    vectors
        Shape (N, D).
    perplexity
        Of t-SNE: about how many neighbours a point has.

    Raises
    ------
    InvalidValueError
        Too few rows, all the same, or a perplexity that is not between 1 and their number.
    """
    least = LEAST_TO_CENTRE if method is Method.PCA else 5
    _check_rows(vectors, least)
    if perplexity is not None and method is not Method.TSNE:
        raise InvalidValueError("the perplexity", perplexity, "none: PCA has none")
    places = np.arange(len(vectors))
    if len(vectors) > MOST_PLACED:
        places = np.sort(np.random.default_rng(seed).choice(len(vectors), MOST_PLACED, replace=False))
    space = directions(vectors[places])
    if np.ptp(space, axis=0).max() < 1e-9:
        raise InvalidValueError("embeddings", "vectors that are all the same", "different ones")
    with threadpool_limits(1):
        if method is Method.PCA:
            fitted = PCA(2, svd_solver="full").fit(space)
            first, second = (float(share) for share in fitted.explained_variance_ratio_)
            return Projection(places, fitted.transform(space), method, seed, explained=(first, second))
        used = min(PERPLEXITY, (len(space) - 1) / 3) if perplexity is None else perplexity
        if not 1 <= used < len(space):
            raise InvalidValueError("the perplexity", used, f"a number from 1 to less than {len(space)}, which is how many recordings there are")
        points = TSNE(2, perplexity=used, init="pca", random_state=seed, n_jobs=1).fit_transform(space)
        return Projection(places, points.astype(np.float64), method, seed, perplexity=float(used))


def _check_rows(vectors: Vectors, least: int) -> None:
    if vectors.ndim != 2 or len(vectors) < least:
        raise InvalidValueError("embeddings", f"{len(vectors)} recordings", f"{least} or more of them")


def _unit(vectors: NDArray[np.float64]) -> NDArray[np.float64]:
    # What rounding leaves of a vector that is the mean of all has no direction.
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    real = lengths > 1e-9 * max(float(np.abs(vectors).max(initial=0.0)), 1e-300)
    return np.divide(vectors, lengths, out=np.zeros_like(vectors), where=real)


def _cosine(value: float) -> float:
    return float(min(max(value, -1.0), 1.0))


def _silhouette(space: NDArray[np.float64], clusters: NDArray[np.intp], seed: int) -> float:
    some = np.arange(len(space))
    if len(space) > SILHOUETTE_ROWS:
        some = np.sort(np.random.default_rng(seed).choice(len(space), SILHOUETTE_ROWS, replace=False))
    found = len(np.unique(clusters[some]))
    return float(silhouette_score(space[some], clusters[some])) if 2 <= found < len(some) else -1.0


def _by_size(clusters: NDArray[np.intp]) -> NDArray[np.intp]:
    """Return clusters numbered by size, and where that is equal by who stands first: the numbers of k-means are chance."""
    names, first, sizes = np.unique(clusters, return_index=True, return_counts=True)
    order = names[np.lexsort((first, -sizes))]
    new = np.empty(int(names.max()) + 1, np.intp)
    new[order] = np.arange(len(order))
    return new[clusters]


def _codes(values: Sequence[object]) -> NDArray[np.intp]:
    numbers: dict[object, int] = {}
    return np.array([numbers.setdefault(value, len(numbers)) for value in values], np.intp)


def _pairs(*groupings: NDArray[np.intp]) -> int:
    """Return how many pairs of rows share a group in all of these."""
    sizes = np.unique(np.stack(groupings), axis=1, return_counts=True)[1].astype(object)
    return int(sum(n * (n - 1) // 2 for n in sizes))
