"""How often nominal 95 % intervals hold the truth, when several recordings come from one subject.

    python -m benchmarks.interval_coverage [--data-sets 800] [--replicates 600] [--json OUT]

Data sets are drawn from a world whose truth is known (from a million of its recordings). Bootstrap samples are drawn many at a time, as a matrix;
the interval rules are those of `clinical_ser.evaluation.intervals`, beside what others use. Needs no data.
"""

import argparse
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit, logit, ndtr, ndtri, stdtrit

from benchmarks.tables import markdown
from clinical_ser.evaluation.intervals import Bootstrap, delong, wilson

Array = NDArray[np.float64]
SUBJECTS = (30, 60, 120, 400)
LEVEL = 0.95
OF_TRUTH = 200_000
"""Subjects that the truth is read from."""
AT_ONCE = 400_000
"""Weights held at a time."""
FIGURES = (
    "AUROC", "average precision", "sensitivity", "specificity", "UAR", "PPV at 10 %", "NPV at 10 %", "Brier", "accuracy",
    "calibration slope", "calibration intercept", "O:E", "AUROC difference", "ECE, 10 bins",
)  # fmt: skip
FREE = {"calibration slope", "calibration intercept", "O:E", "AUROC difference"}


@dataclass(frozen=True)
class World:
    """People with a condition or without, of whom a model sees several recordings."""

    name: str
    prevalence: float
    distance: float
    """Between the classes' mean scores, in standard deviations of a recording's score."""
    within: float
    """Share of the score's variance that a subject's recordings have in common."""
    sizes: tuple[int, int]
    """Fewest and most recordings of a subject."""

    def draw(self, rng: np.random.Generator, subjects: int) -> "Rows":
        """Draw a data set, sorted by score; the model is somewhat too sure of itself."""
        ill = rng.random(subjects) < self.prevalence
        who = np.repeat(np.arange(subjects), rng.integers(self.sizes[0], self.sizes[1] + 1, subjects))
        own = np.sqrt(self.within) * rng.normal(size=subjects)
        score = self.distance * ill[who] + own[who] + np.sqrt(1 - self.within) * rng.normal(size=len(who))
        log_odds = 1.2 * (self.distance * (score - self.distance / 2) + logit(self.prevalence)) + 0.2
        order = np.argsort(log_odds)
        other = score[order] + 0.7 * rng.normal(size=len(who))
        return Rows(who[order], ill[who][order].astype(float), log_odds[order], np.argsort(other), self.prevalence)


WORLDS = (
    World("prevalence 0.3, five recordings each", 0.3, 1.5, 0.5, (5, 5)),
    World("prevalence 0.2, one to nine recordings", 0.2, 1.5, 0.5, (1, 9)),
    World("prevalence 0.5, weaker model, one to nine recordings more alike", 0.5, 1.0, 0.7, (1, 9)),
    World("prevalence 0.3, strong model, five recordings each", 0.3, 2.5, 0.5, (5, 5)),
)


@dataclass(frozen=True, eq=False)
class Rows:
    """A data set, sorted by score; no two scores are equal."""

    who: NDArray[np.intp]
    y: Array
    log_odds: Array
    other: NDArray[np.intp]
    """Order of the rows by another model's score."""
    prevalence: float

    def figures(self, weights: Array) -> Array:
        """Return all figures under row weights (samples, rows): shape (samples, figures); NaN where not defined."""
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.column_stack([*self._ranking(weights), *self._shares(weights), *self._calibration(weights)])[:, _ORDER]

    def _ranking(self, weights: Array) -> list[Array]:
        ill, well = weights * self.y, weights * (1 - self.y)
        area, below = _area(ill, well)
        true = np.cumsum(ill[:, ::-1], axis=1)[:, ::-1]
        flagged = true + well.sum(1)[:, None] - below + well
        precision = np.divide(true, flagged, out=np.zeros_like(true), where=flagged > 0)
        second, _ = _area(ill[:, self.other], well[:, self.other])
        return [area, np.einsum("sr,sr->s", ill, precision) / ill.sum(1), area - second]

    def _shares(self, weights: Array) -> list[Array]:
        p, ill = expit(self.log_odds), weights * self.y
        positives, total = ill.sum(1), weights.sum(1)
        flagged = (p >= self.prevalence).astype(float)
        caught = (ill @ flagged) / positives
        passed = (weights * (1 - self.y)) @ (1 - flagged) / (total - positives)
        right = (weights @ (flagged == self.y)) / total
        ppv = 0.1 * caught / (0.1 * caught + 0.9 * (1 - passed))
        npv = 0.9 * passed / (0.9 * passed + 0.1 * (1 - caught))
        bins = np.eye(10)[np.minimum((p * 10).astype(int), 9)]
        ece = np.abs(weights @ (bins * (p - self.y)[:, None])).sum(1) / total
        return [caught, passed, (caught + passed) / 2, ppv, npv, weights @ (p - self.y) ** 2 / total, right, positives / (weights @ p), ece]

    def _calibration(self, weights: Array) -> list[Array]:
        ones = np.ones((len(self.y), 1))
        intercept = _logistic(ones, self.y, weights, self.log_odds)[:, 0]
        slope = _logistic(np.column_stack([ones, self.log_odds]), self.y, weights, np.zeros_like(self.log_odds))[:, 1]
        return [intercept, slope]

    def of_class(self) -> tuple[int, int]:
        """Return how many subjects are ill, and how many are not."""
        ill = len(np.unique(self.who[self.y == 1]))
        return ill, len(np.unique(self.who)) - ill


_COMPUTED = (
    "AUROC", "average precision", "AUROC difference", "sensitivity", "specificity", "UAR", "PPV at 10 %", "NPV at 10 %", "Brier", "accuracy",
    "O:E", "ECE, 10 bins", "calibration intercept", "calibration slope",
)  # fmt: skip
_ORDER = [_COMPUTED.index(name) for name in FIGURES]


def _area(ill: Array, well: Array) -> tuple[Array, Array]:
    """AUROC of rows sorted by score, and the weight of the well at or below each row."""
    below = np.cumsum(well, axis=1)
    return np.einsum("sr,sr->s", ill, below) / (ill.sum(1) * below[:, -1]), below


def _logistic(design: Array, y: Array, weights: Array, offset: Array) -> Array:
    """Coefficients (samples, k) by Newton steps from the fit to all rows; NaN under separation."""
    samples, k = len(weights), design.shape[1]
    start = _logistic(design, y, np.ones((1, len(y))), offset) if samples > 1 else np.zeros((1, k))
    beta = np.repeat(np.nan_to_num(start), samples, axis=0)
    products = np.einsum("ri,rj->rij", design, design).reshape(len(y), -1)
    wanted = (weights * y) @ design
    live = np.ones(samples, bool)
    for _ in range(25):
        p = expit(beta[live] @ design.T + offset)
        part = weights[live] * p
        hessian = ((part * (1 - p)) @ products).reshape(-1, k, k)
        solvable = np.abs(np.linalg.det(hessian)) > 1e-9
        step = np.full((len(p), k), np.nan)
        step[solvable] = np.linalg.solve(hessian[solvable], (wanted[live] - part @ design)[solvable][..., None])[..., 0]
        beta[live] += step
        running = np.abs(step).sum(1) > 1e-4  # the next step would be its square; NaN is not running
        live[np.flatnonzero(live)[~running]] = False
        if not live.any():
            break
    beta[live | (np.abs(beta) > 50).any(1)] = np.nan
    return beta


def samples_of(rng: np.random.Generator, subjects: int, replicates: int) -> Array:
    """Draw how often each subject is in each sample, shape (replicates, subjects)."""
    return rng.multinomial(subjects, np.full(subjects, 1 / subjects), size=replicates).astype(float)


def drawn_from(rows: Rows, subjects: int, replicates: int, rng: np.random.Generator) -> Bootstrap:
    """Bootstrap a data set by subject."""
    times = samples_of(rng, subjects, replicates)
    step = max(1, AT_ONCE // len(rows.y))
    found = [rows.figures(times[i : i + step][:, rows.who]) for i in range(0, replicates, step)]
    return Bootstrap(rows.figures(np.ones((1, len(rows.y))))[0], np.concatenate(found), LEVEL)


def subjects_behind(name: str, ill: int, well: int) -> int:
    """Return on how many people a figure rests, as `Bootstrap.interval` asks for it."""
    if name in {"sensitivity", "NPV at 10 %"}:
        return ill
    if name in {"specificity", "PPV at 10 %"}:
        return well
    smaller = min(ill, well)
    if name in {"AUROC", "average precision", "UAR", "AUROC difference"}:
        return smaller
    return min(ill + well, 2 * smaller) if name in {"Brier", "accuracy"} else ill + well


Rule = Callable[[Bootstrap, int, Rows], tuple[float, float]]


def ours(drawn: Bootstrap, i: int, rows: Rows) -> tuple[float, float]:
    """Make the interval that the package gives."""
    people = subjects_behind(FIGURES[i], *rows.of_class())
    if FIGURES[i].startswith("ECE"):
        return drawn.of_distance(i, subjects=people)
    return drawn.interval(i, subjects=people, share=FIGURES[i] not in FREE)


def percentile(drawn: Bootstrap, i: int, _: Rows) -> tuple[float, float]:
    """Make the percentile interval."""
    return _between(drawn, i, ndtri((1 - LEVEL) / 2), 0.0)


def corrected(drawn: Bootstrap, i: int, rows: Rows) -> tuple[float, float]:
    """Make the bias-corrected percentile interval with levels of Student's t (Efron 1981; Hesterberg 2015)."""
    people = max(subjects_behind(FIGURES[i], *rows.of_class()), 2)
    at = np.sqrt(people / (people - 1)) * stdtrit(people - 1, (1 - LEVEL) / 2)
    replicates, value = drawn.replicates[:, i], drawn.values[i]
    found = np.isfinite(replicates).sum()
    below = (np.sum(replicates < value) + np.sum(replicates == value) / 2) / max(found, 1)
    return _between(drawn, i, at, 2 * ndtri(np.clip(below, 0.5 / max(found, 1), 1 - 0.5 / max(found, 1))))


def naive(drawn: Bootstrap, i: int, rows: Rows) -> tuple[float, float]:
    """Make Wilson's interval as if rows were people, for shares of rows."""
    counts = {"sensitivity": rows.y.sum(), "specificity": (1 - rows.y).sum(), "accuracy": float(len(rows.y))}
    return wilson(drawn.values[i], int(counts[FIGURES[i]])) if FIGURES[i] in counts else (np.nan, np.nan)


def _between(drawn: Bootstrap, i: int, at: float, shift: float) -> tuple[float, float]:
    replicates = drawn.replicates[np.isfinite(drawn.replicates[:, i]), i]
    if len(replicates) < len(drawn.replicates) / 2:
        return np.nan, np.nan
    low, high = np.quantile(replicates, ndtr([shift + at, shift - at]))
    return float(low), float(high)


RULES: Mapping[str, Rule] = {"rows as people": naive, "percentile": percentile, "BC, t": corrected, "ours": ours}


def coverage(world: World, subjects: int, data_sets: int, replicates: int, seed: int) -> dict[str, Array]:
    """Share of intervals that hold the truth, by rule: shape (figures,); NaN where a rule gives none."""
    rng = np.random.default_rng((seed, subjects))
    everyone = world.draw(rng, OF_TRUTH)
    truth = everyone.figures(np.ones((1, len(everyone.y))))[0]
    bounds = {name: np.empty((data_sets, len(FIGURES), 2)) for name in RULES}
    for number in range(data_sets):
        rows = world.draw(rng, subjects)
        drawn = drawn_from(rows, subjects, replicates, rng)
        for name, rule in RULES.items():
            bounds[name][number] = [rule(drawn, i, rows) for i in range(len(FIGURES))]
    return {name: _held(found, truth) for name, found in bounds.items()}


def _held(bounds: Array, truth: Array) -> Array:
    given = np.isfinite(bounds).all(axis=2)
    held = (bounds[..., 0] <= truth) & (truth <= bounds[..., 1]) & given
    return np.where(given.sum(0) > 0, held.sum(0) / np.maximum(given.sum(0), 1), np.nan)


def table_of(world: World, data_sets: int, replicates: int, seed: int) -> list[dict[str, object]]:
    """Coverage in percent, one row a figure; a cell lists the numbers of subjects in order."""
    found = {subjects: coverage(world, subjects, data_sets, replicates, seed) for subjects in SUBJECTS}
    return [
        {"figure": figure} | {rule: " ".join(_percent(found[subjects][rule][i]) for subjects in SUBJECTS) for rule in RULES}
        for i, figure in enumerate(FIGURES)
    ]


def emotion_table(data_sets: int, replicates: int, seed: int) -> list[dict[str, object]]:
    """UAR, accuracy and macro F1 of four classes, of which every speaker has some recordings each."""
    rng = np.random.default_rng((seed, 4))
    cells = []
    for speakers in (12, 24, 60):
        truth = _emotion_figures(_confusions(rng, OF_TRUTH).sum(0)[None])[0]
        ours_, plain = np.empty((data_sets, 3, 2)), np.empty((data_sets, 3, 2))
        for number in range(data_sets):
            counts = _confusions(rng, speakers)
            times = samples_of(rng, speakers, replicates)
            replicated = _emotion_figures(np.tensordot(times, counts, 1))
            drawn = Bootstrap(_emotion_figures(counts.sum(0)[None])[0], replicated, LEVEL)
            ours_[number] = [drawn.interval(i, subjects=speakers, share=True) for i in range(3)]
            plain[number] = np.quantile(replicated, [0.025, 0.975], axis=0).T
        cells.append((_held(plain, truth), _held(ours_, truth)))
    return [
        {"figure": name} | {rule: " ".join(_percent(cell[k][i]) for cell in cells) for k, rule in enumerate(("percentile", "ours"))}
        for i, name in enumerate(("UAR", "accuracy", "macro F1"))
    ]


def _confusions(rng: np.random.Generator, speakers: int) -> Array:
    """Confusion matrix of each speaker, (speakers, 4, 4); how well one is understood differs between speakers and classes."""
    skill = logit(np.array([0.85, 0.7, 0.6, 0.5])) + 0.8 * rng.normal(size=(speakers, 1)) + 0.8 * rng.normal(size=(speakers, 4))
    right = expit(skill)[..., None]
    share = np.eye(4) * right + (1 - np.eye(4)) * (1 - right) / 3
    return rng.multinomial([8, 8, 4, 4], share).astype(float)


def _emotion_figures(matrix: Array) -> Array:
    right, of_class, answered = np.diagonal(matrix, axis1=1, axis2=2), matrix.sum(2), matrix.sum(1)
    f1 = 2 * right / (of_class + answered)
    return np.column_stack([(right / of_class).mean(1), right.sum(1) / matrix.sum((1, 2)), f1.mean(1)])


def gap_table(data_sets: int, replicates: int, seed: int) -> list[dict[str, object]]:
    """Gap between the best and the worst of several groups' shares, with five recordings a subject."""
    rng = np.random.default_rng((seed, 5))
    return [_gap_row(rng, groups, each, gap, data_sets, replicates) for groups in (2, 4, 8) for each in (30, 100) for gap in (0.0, 0.05, 0.2)]


def _gap_row(rng: np.random.Generator, groups: int, each: int, gap: float, data_sets: int, replicates: int) -> dict[str, object]:
    rates = np.full(groups, 0.75)
    rates[0] -= gap
    bounds, plain, seen = np.empty((data_sets, 1, 2)), np.empty((data_sets, 1, 2)), np.empty(data_sets)
    for number in range(data_sets):
        group = rng.integers(groups, size=groups * each)
        share = rng.binomial(5, rng.beta(1.5 * rates[group], 1.5 * (1 - rates[group]))) / 5
        member = np.eye(groups)[group]
        times = samples_of(rng, len(group), replicates)
        drawn = Bootstrap(share @ member / member.sum(0), times @ (member * share[:, None]) / (times @ member), LEVEL)
        bounds[number, 0] = drawn.gap(range(groups), subjects=member.sum(0).astype(int).tolist())
        plain[number, 0] = np.quantile(np.ptp(drawn.replicates, axis=1), [0.025, 0.975])
        seen[number] = np.ptp(drawn.values)
    truth = np.array([gap])
    return {
        "groups": groups,
        "subjects in each": each,
        "true gap": gap,
        "mean gap seen": f"{seen.mean():.3f}",
        "percentile": _percent(_held(plain, truth)[0]),
        "ours": _percent(_held(bounds, truth)[0]),
    }


def one_row_table(data_sets: int, seed: int) -> list[dict[str, object]]:
    """DeLong's interval with one recording a subject, a third of them ill, for three AUROCs."""
    rng = np.random.default_rng((seed, 6))
    rows = []
    for area in (0.75, 0.9, 0.98):
        cells = []
        for subjects in SUBJECTS:
            y = np.repeat([1, 0], [subjects // 3, subjects - subjects // 3])
            moved = np.sqrt(2) * ndtri(area) * y
            bounds = np.array([[delong(y, moved + rng.normal(size=subjects), level=LEVEL)] for _ in range(data_sets)])
            cells.append(_percent(_held(bounds, np.array([area]))[0]))
        rows.append({"true AUROC": area, "DeLong, logit": " ".join(cells)})
    return rows


def _percent(share: float) -> str:
    return "–" if np.isnan(share) else f"{100 * share:.1f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-sets", type=int, default=800)
    parser.add_argument("--replicates", type=int, default=600)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, default=None)
    given = parser.parse_args()
    shared = {"data_sets": given.data_sets, "replicates": given.replicates, "seed": given.seed}
    tables: dict[str, list[dict[str, object]]] = {}

    def show(name: str, rows: list[dict[str, object]]) -> None:
        tables[name] = rows
        print(f"\n### {name}\n\n{markdown(rows)}", flush=True)

    show("One recording a subject, a third ill", one_row_table(given.data_sets, given.seed))
    show("Four emotions; 12, 24 and 60 speakers of 24 recordings", emotion_table(**shared))
    show("Gap between groups", gap_table(**shared))
    for world in WORLDS:
        show(f"{world.name}; {', '.join(map(str, SUBJECTS))} subjects", table_of(world, **shared))
    if given.json:
        given.json.write_text(json.dumps(shared | {"coverage_percent": tables}, indent=2))


if __name__ == "__main__":
    main()
