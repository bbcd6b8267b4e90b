"""A head at each site under the shared margin: trees of the site's own rows that never leave it, and weights that all sites learn together.

The one idea: what a site's trees add is weighed out of fold by everybody's people. Only ten sums a map cross the border, whatever the
trees hold; a site's trees may use its patients' values as thresholds because nobody else ever sees them.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from clinical_ser.errors import InvalidValueError, TrainingError
from clinical_ser.models.boosted_head import BoostedHead
from clinical_ser.models.calibration import MIN_SCALE, RIDGE, MarginPlatt
from clinical_ser.models.linear_head import LinearHead
from clinical_ser.models.stacked_head import StackedHead
from clinical_ser.models.training import MINIMUM_SUBJECTS_PER_CLASS
from federated.at_site import EVERYBODY, Array, Scales, logistic, numbers, places, symmetric, times_drawn, triangle, weights
from federated.statistics import Arrays, Ask, SiteRows, Statistic, Sums, register

Whole = NDArray[np.int64]

IDENTITY = np.array([1.0, 0.0, 0.0])
"""The shared margin as it is: where the ridge pulls to, so that a local head counts only as far as people show that it should."""
LEAST = np.array([MIN_SCALE, 0.0, -np.inf])
"""Order is kept, as in `MarginPlatt`; trees that rank the wrong way round out of fold count nothing."""
AT_REST = 1e-5
"""Newton decrement of the last step; what is left to go after it is about its square."""
MOST_STEPS = 30
CLASSES = (0, 1)
FOLDER = "local_heads"


class LocalHeads:
    """A site's own boosted heads: one a fold, from the rows that are not in it, and one from all.

    Standardised as the shared head is. Where a class has fewer than `MINIMUM_SUBJECTS_PER_CLASS` people in what remains, there is no head and
    the margin is 0.

    Parameters
    ----------
    rows
        The site's. Heads are kept in its workspace, named after everything that they depend on, or made again each time where there is none.
    scales
        Preprocessors of the run.
    families
        One a column.
    seed
        Of the heads' inner folds and trees.
    """

    def __init__(self, rows: SiteRows, scales: Scales, families: Sequence[str], seed: int):
        if len(families) != rows.X.shape[1]:
            raise InvalidValueError("families", f"{len(families)} names", f"one for each of the {rows.X.shape[1]} columns")
        self._rows, self._scales, self._families, self._seed = rows, scales, tuple(families), seed
        self._known: dict[tuple[int, int], BoostedHead | None] = {}

    def head(self, fold: int, draw: int = EVERYBODY) -> BoostedHead | None:
        """Return the head that leaves `fold` out, of a bootstrap sample `draw`; None where there are too few people."""
        if (fold, draw) not in self._known:
            self._known[fold, draw] = self._read_or_learn(fold, draw)
        return self._known[fold, draw]

    def out_of_fold(self) -> Array:
        """Return each row's margin by the site's head that never heard its subject, shape (rows,)."""
        margins = np.zeros(len(self._rows))
        for fold in np.unique(self._rows.fold).tolist():
            here = self._rows.fold == fold
            head = self.head(fold)
            if head is not None:
                margins[here] = head.margins(self._scales.design(fold)[here, :-1])
        return margins

    def _heard(self, fold: int, draw: int) -> NDArray[np.intp]:
        """Return the rows to learn from; a row that was drawn twice is there twice."""
        times = times_drawn(self._rows, draw).astype(np.int64) * (self._rows.fold != fold)
        return np.repeat(np.arange(len(times)), times)

    def _read_or_learn(self, fold: int, draw: int) -> BoostedHead | None:
        heard = self._heard(fold, draw)
        people = [len(np.unique(self._rows.subjects[heard[self._rows.target[heard] == k]])) for k in CLASSES]
        if min(people) < MINIMUM_SUBJECTS_PER_CLASS:
            return None
        Z = np.ascontiguousarray(self._scales.design(fold)[heard, :-1])
        file = self._file(Z, heard)
        if file is not None and file.exists():
            return BoostedHead.from_bytes(file.read_bytes())
        # A bootstrap sample keeps the number of rounds of the whole, as refits do (`clinical_ser.models.training`).
        whole = None if draw == EVERYBODY else self.head(fold)
        new = BoostedHead(self._families, CLASSES, rounds=None if whole is None else whole.rounds_, seed=self._seed)
        learned = new.fit(Z, self._rows.target[heard], groups=self._rows.subjects[heard])
        if file is not None:
            _write(file, learned.to_bytes())
        return learned

    def _file(self, Z: Array, heard: NDArray[np.intp]) -> Path | None:
        if self._rows.workspace is None:
            return None
        told = hashlib.sha256(f"{self._seed}\n{self._families}\n{Z.shape}\n".encode())
        for part in (np.ascontiguousarray(Z), self._rows.target[heard], np.ascontiguousarray(self._rows.subjects[heard])):
            told.update(part.tobytes())
        return self._rows.workspace / FOLDER / f"{told.hexdigest()}.ubj"


def _write(file: Path, raw: bytes) -> None:
    file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    unfinished = file.with_suffix(".unfinished")
    unfinished.write_bytes(raw)
    unfinished.replace(file)


def _local_heads(rows: SiteRows, ask: Ask, scales: Scales) -> LocalHeads:
    return LocalHeads(rows, scales, str(ask.options["families"]).split(","), int(ask.options["seed"]))


def margins(rows: SiteRows, ask: Ask) -> Array:
    """Return the shared and the local margin out of fold, with a last column of ones, shape (rows, 3).

    Arrays of the ask: `mean`, `scale` (folds + 1, features); `beta` (folds, features + 1), the shared heads. Options: `families`, joined by
    commas; `seed`.
    """
    scales = Scales(rows, ask)
    beta = numbers(ask, "beta", ndim=2)
    if len(beta) != scales.folds:
        raise InvalidValueError(f"{ask.statistic}.beta", f"{len(beta)} heads", f"{scales.folds}, one a fold")
    return np.column_stack([scales.out_of_fold(beta), _local_heads(rows, ask, scales).out_of_fold(), np.ones(len(rows))])


def stacked(rows: SiteRows, ask: Ask) -> Array:
    """Return calibrated log-odds out of fold, shape (rows,): each row by heads and weights that never heard its subject.

    Arrays of the ask as `margins` reads them, and `theta` (folds, 3), the weights that leave each fold out.
    """
    return np.asarray((margins(rows, ask) * numbers(ask, "theta", ndim=2)[rows.fold]).sum(axis=1))


@register
class Stacking(Statistic):
    """Derivatives of the log-loss of a·shared + c·local + b, every subject with weight 1.

    Arrays as `margins` reads them, and `theta` (maps, 3), in the order a, c, b; `left_out` and `draw` (maps,).
    """

    name = "stacking"
    bound = 1e9

    def at_site(self, rows: SiteRows, ask: Ask) -> Arrays:
        """Return `loss` (maps,), `gradient` (maps, 3) and `hessian` (maps, 6)."""
        design, own = margins(rows, ask), weights(rows)
        theta, left_out, draws = numbers(ask, "theta", ndim=2), places(ask, "left_out", len(ask.arrays["beta"])), places(ask, "draw", 2**31)
        losses, gradients, hessians = [], [], []
        for one, fold, draw in zip(theta, left_out, draws.tolist(), strict=True):
            weight = own * times_drawn(rows, draw) * (rows.fold != fold)
            p, loss = logistic(design @ one, rows.target)
            losses.append(weight @ loss)
            gradients.append(design.T @ (weight * (p - rows.target)))
            hessians.append(triangle((design.T * (weight * p * (1 - p))) @ design))
        return {"loss": np.array(losses), "gradient": np.array(gradients), "hessian": np.array(hessians)}


@dataclass(eq=False)
class Stacks:
    """Weights on their way to their minima.

    Attributes
    ----------
    theta
        Shape (maps, 3): a of the shared margin, c of the local one, b.
    left_out, draw
        Shape (maps,), as in `newton.Newton`.
    decrement
        Shape (maps,), how far the last step went, in units of the objective's square root.
    """

    theta: Array
    left_out: Whole
    draw: Whole

    def __post_init__(self) -> None:
        self.decrement = np.full(len(self.theta), np.inf)
        self.hessian = np.tile(np.eye(3), (len(self.theta), 1, 1))

    @classmethod
    def of(cls, folds: int, draws: Sequence[int] = ()) -> "Stacks":
        """Return the map without each fold, that of everybody, and one a bootstrap sample, at the identity."""
        left_out = np.append(np.arange(folds), np.full(1 + len(draws), EVERYBODY))
        draw = np.append(np.full(folds + 1, EVERYBODY), np.array(draws, dtype=np.int64))
        return cls(np.tile(IDENTITY, (len(draw), 1)), left_out, draw)

    @property
    def settled(self) -> bool:
        """Whether every map is at its minimum."""
        return bool((self.decrement <= AT_REST).all())

    def ask(self, mean: Array, scale: Array, beta: Array, families: Sequence[str], *, seed: int = 0) -> Ask:
        """Return the question for the next step; `beta` has shape (folds, features + 1)."""
        arrays = {"mean": mean, "scale": scale, "beta": beta, "theta": self.theta, "left_out": self.left_out, "draw": self.draw}
        return Ask(Stacking.name, arrays, {"families": ",".join(families), "seed": seed})

    def step(self, totals: Arrays) -> None:
        """Take the Newton step that the totals at `theta` allow, held within `LEAST`."""
        for i, theta in enumerate(self.theta):
            gradient = totals["gradient"][i] + RIDGE * (theta - IDENTITY)
            self.hessian[i] = symmetric(totals["hessian"][i], 3) + RIDGE * np.eye(3)
            step = _bounded_step(theta, gradient, self.hessian[i])
            # Far steps may overshoot; shortened like this they never do (Sun & Tran-Dinh 2019, Mathematical Programming 178:145-213).
            furthest = float(np.abs(step).max())
            self.theta[i] = np.maximum(theta + step * (np.log1p(furthest) / furthest if furthest > 1 else 1.0), LEAST)
            self.decrement[i] = float(np.sqrt(step @ self.hessian[i] @ step))

    def weights(self, i: int) -> tuple[float, float]:
        """Return the shares of the shared and of the local margin in map `i`; they sum to 1."""
        a, c, _ = self.theta[i].tolist()
        return a / (a + c), c / (a + c)

    def platt(self, i: int) -> MarginPlatt:
        """Return what map `i` does with the margin that `weights` make, as a calibrator: scale a + c, offset b."""
        platt = MarginPlatt()
        platt.scale_, platt.offset_ = float(self.theta[i, 0] + self.theta[i, 1]), float(self.theta[i, 2])
        onto = np.array([[1.0, 1.0, 0.0], [0.0, 0.0, 1.0]])
        covariance = onto @ np.linalg.inv(self.hessian[i]) @ onto.T
        platt.covariance_ = (covariance + covariance.T) / 2
        return platt


def _bounded_step(theta: Array, gradient: Array, hessian: Array) -> Array:
    """Return the step to the minimum of the quadratic model over `LEAST`: the best of those with each of the bounds held, or not."""
    best, least = np.zeros(3), np.inf
    for held in ((), (0,), (1,), (0, 1)):
        step, free = np.zeros(3), [i for i in range(3) if i not in held]
        step[list(held)] = LEAST[list(held)] - theta[list(held)]
        step[free] = np.linalg.solve(hessian[np.ix_(free, free)], -(gradient + hessian @ step)[free])
        value = float(gradient @ step + step @ hessian @ step / 2)
        if (theta + step >= LEAST - 1e-12).all() and value < least:
            best, least = step, value
    return best


def stack(sums: Sums, mean: Array, scale: Array, beta: Array, families: Sequence[str], *, seed: int = 0, draws: Sequence[int] = ()) -> Stacks:
    """Learn the weights of shared and local margins on all sites' people together, one exchange a Newton step.

    Parameters
    ----------
    sums
        Where totals come from.
    mean, scale
        Shape (folds + 1, features).
    beta
        Shape (folds, features + 1), the shared heads that leave each fold out, intercept last.
    families
        The family of each column.
    seed
        Of the local heads.
    draws
        Numbers of bootstrap samples.

    Raises
    ------
    TrainingError
        The steps do not come to rest.
    FederationError
        See `Sums.total`.
    """
    maps = Stacks.of(len(beta), draws)
    for _ in range(MOST_STEPS):
        (totals,) = sums.total("stacking", [maps.ask(mean, scale, beta, families, seed=seed)])
        maps.step(totals)
        if maps.settled:
            return maps
    raise TrainingError("The weights of shared and local heads do not come to rest; a site's contribution has to be looked at.")


def site_head(rows: SiteRows, ask: Ask, shared: LinearHead, maps: Stacks, map_number: int) -> StackedHead:
    """Return the head that one site serves, at the site; the calibrator that goes with it is `Stacks.platt`.

    Parameters
    ----------
    rows
        The site's.
    ask
        As `Stacks.ask` makes it: names the preprocessors, families and seed.
    shared
        Learned across sites: of everybody, or of the bootstrap sample that map `map_number` belongs to.
    maps, map_number
        The weights.
    """
    return stacked_head(local_heads_of(rows, ask), shared, maps, map_number)


def local_heads_of(rows: SiteRows, ask: Ask) -> LocalHeads:
    """Return a site's own heads, by the preprocessors, families and seed that an ask names."""
    return _local_heads(rows, ask, Scales(rows, ask))


def stacked_head(heads: LocalHeads, shared: LinearHead, maps: Stacks, map_number: int) -> StackedHead:
    """As `site_head`, of heads that were read before; of a map that leaves a fold out, the trees that never heard it."""
    local = heads.head(int(maps.left_out[map_number]), int(maps.draw[map_number]))
    if local is None:
        return StackedHead(shared, None, maps.weights(map_number))
    relabelled = BoostedHead.from_bytes(local.to_bytes())
    relabelled.classes = relabelled.classes_ = shared.classes_
    return StackedHead(shared, relabelled, maps.weights(map_number))
