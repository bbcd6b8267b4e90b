"""Recalibration alone, across sites: coefficients stand still, and the smallest map of the log-odds that new people justify is found.

The one idea: to leave a map alone, to add an intercept, or a slope too, are one question to the sites, with more and less of it free. Which of its
numbers may move, and how far off the model may have been on the day of its release, is known to whoever leads.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clinical_ser.continual.affine import calibrator_posterior
from clinical_ser.continual.memory import Memory
from clinical_ser.continual.posterior import Posterior
from clinical_ser.continual.recalibration import LEVEL, Justified, LogOddsMap, Step, closed_test, doubt_of_map, prior_of_map, settled
from clinical_ser.errors import InvalidValueError, TrainingError
from clinical_ser.models.binned import Binned
from clinical_ser.models.calibration import MIN_SCALE, RIDGE
from clinical_ser.models.conformal import subjects_needed
from clinical_ser.models.trained import Refit, TrainedModel
from federated.at_site import EVERYBODY, Array
from federated.continual import NO_PROGRESS, beta_of, check_beginning, scales_of, theta_of
from federated.protocols import calibration, evaluation, scores
from federated.protocols.newton import check_priors
from federated.statistics import Arrays, Ask, Sums
from federated.training import MOST_REFINEMENTS, ROUNDING_OF_COUNTS, Cohort, Learned, Run, Scaled, Settings, Trained

TESTED: tuple[Step, ...] = ("none", "intercept", "slope")
ANSWERS: tuple[Step, ...] = ("intercept", "slope")
"""Those that a recalibration can end with."""
AT_REST = 1e-7
"""Newton decrement, in units of the objective's square root."""


@dataclass(frozen=True, eq=False)
class Freedom:
    """What an answer may move: a map (scale, offset) of margins is `base` + `moves` @ (as many numbers as it fits).

    Attributes
    ----------
    base
        Shape (2,), the map where nothing has changed.
    moves
        Shape (2, numbers).
    """

    base: Array
    moves: Array

    @property
    def size(self) -> int:
        """How many numbers it fits."""
        return int(self.moves.shape[1])


def freedom_of(step: Step, model: TrainedModel) -> Freedom:
    """Return what an answer may move of a model's map: `intercept` what is added to the log-odds, `slope` how far their scale lies from 1 too."""
    scale, offset = theta_of(model).tolist()
    moves = {"intercept": np.array([[0.0], [1.0]]), "slope": np.array([[scale, 0.0], [offset, 1.0]])}
    return Freedom(theta_of(model), moves[step])


@dataclass(eq=False)
class Answers:
    """Answers on their way to their minima; each has a freedom, and a prior of the numbers that it fits.

    Attributes
    ----------
    freedom, prior
        One an answer.
    left_out, draw
        Shape (answers,), as in `newton.Newton`.
    away
        One an answer, shape (numbers,): how far it lies from no change.
    loss
        Shape (answers,), of the data alone, where the last totals were asked.
    centre
        The people's mean margin, 0 before the first totals.
    decrement
        Shape (answers,); infinite before the first totals.
    """

    freedom: Sequence[Freedom]
    prior: Sequence[Posterior]
    left_out: NDArray[np.int64]
    draw: NDArray[np.int64]

    def __post_init__(self) -> None:
        for freedom, prior in zip(self.freedom, self.prior, strict=True):
            check_priors([prior], np.zeros((1, freedom.size)))
        self.away = [np.zeros(freedom.size) for freedom in self.freedom]
        self.loss, self.centre = np.zeros(len(self.freedom)), 0.0
        self.hessian = [prior.whole for prior in self.prior]
        self.decrement = np.full(len(self.freedom), np.inf)
        self._objective = np.full(len(self.freedom), np.inf)
        self._from, self._step = [away.copy() for away in self.away], [np.zeros_like(away) for away in self.away]

    @property
    def theta(self) -> Array:
        """Shape (answers, 2): scale and offset of each map."""
        return np.array([freedom.base + freedom.moves @ away for freedom, away in zip(self.freedom, self.away, strict=True)])

    def ask(self, judged: Mapping[str, NDArray[Any]]) -> Ask:
        """Return the question for the next step; `judged` as `margins.out_of_fold` reads it."""
        # A last map of nothing: where all are as likely as not, curvatures are people, and their sums the mean margin.
        theta = np.vstack([self.theta, np.zeros(2)])
        left_out, draw = np.append(self.left_out, EVERYBODY), np.append(self.draw, EVERYBODY)
        arrays = {**judged, "theta": theta, "system": np.zeros_like(draw), "left_out": left_out, "draw": draw}
        return Ask(calibration.Calibration.name, arrays)

    def step(self, totals: Arrays) -> None:
        """Take the Newton step that the totals allow; a step that made an answer worse is halved instead."""
        self.loss = totals["sums"][:-1, 0].copy()
        self.centre = float(totals["sums"][-1, 4] / totals["sums"][-1, 5])
        for i, (freedom, prior) in enumerate(zip(self.freedom, self.prior, strict=True)):
            value, pull = prior.penalty(self.away[i])
            _, g_a, g_b, h_aa, h_ab, h_bb = totals["sums"][i]
            objective = float(self.loss[i] + value)
            if objective > self._objective[i] + 1e-7 * abs(objective):
                self._step[i] = self._step[i] / 2
                self.away[i] = self._from[i] - self._step[i]
                continue
            gradient = freedom.moves.T @ np.array([g_a, g_b]) + pull
            self.hessian[i] = freedom.moves.T @ np.array([[h_aa, h_ab], [h_ab, h_bb]]) @ freedom.moves + prior.whole
            step = np.linalg.solve(self.hessian[i], gradient)
            squared = float(gradient @ step)
            if not -1e-9 <= squared < np.inf:
                raise TrainingError("The total of the sites' curvatures is not that of a log-loss; a site's contribution has to be looked at.")
            self.decrement[i], self._objective[i] = np.sqrt(max(squared, 0.0)), objective
            self._from[i], self._step[i] = self.away[i].copy(), step
            self.away[i] = self.away[i] - step

    @property
    def settled(self) -> bool:
        """Whether the last totals found every answer where it is least."""
        return bool((self.decrement <= AT_REST).all())


@dataclass(frozen=True, eq=False)
class Recalibrated:
    """What a recalibration over sites came to."""

    justified: Justified
    """Which step the new people justify."""
    trained: Trained | None
    """The model with its calibration anew; None where nothing is to be done."""
    exchanges: int


def recalibrate_across(
    sums: Sums,
    settings: Settings,
    parent: TrainedModel,
    memory: Memory | None = None,
    *,
    step: Step | None = None,
    forgetting: float = 1.0,
    level: float = LEVEL,
    progress: Callable[[int, str], None] = NO_PROGRESS,
) -> Recalibrated:
    """Lead a recalibration: what `clinical_ser.continual.recalibration` does with all new rows in one place, its test of maps included.

    Parameters
    ----------
    sums
        Where totals over people come from whom the parent never heard.
    settings
        Task, features, extractors and refits are the parent's.
    parent, memory
        The champion, with a linear head, and its memory. Without one, prediction sets and threshold are made of the new people alone.
    step
        `intercept` or `slope`; None: the one that is justified, and no model where that is none of the two.
    forgetting
        What the parent's old scores count when prediction sets and threshold are made.
    level
        Of the test.
    progress
        As in `train_across`.

    Raises
    ------
    FederationError
        A site refuses or is missing.
    TrainingError
        The head is not linear, the memory is another model's, too few people, or totals that no rows can have.
    """
    if step not in {None, "intercept", "slope"}:
        raise InvalidValueError("step", step, "'intercept' or 'slope'; 'none' changes nothing, and 'full' is an update")
    run = _RecalibrationRun(sums, settings, progress, parent, memory, forgetting)
    found = run.justify(level)
    run.step = step or found.step
    trained = run.train() if run.step in {"intercept", "slope"} else None
    return Recalibrated(found, trained, run.exchanges)


class _RecalibrationRun(Run):
    """One recalibration: coefficients stand still, and a map of the log-odds is found and tested."""

    step: Step = "none"

    def __init__(
        self,
        sums: Sums,
        settings: Settings,
        progress: Callable[[int, str], None],
        parent: TrainedModel,
        memory: Memory | None,
        forgetting: float,
    ):
        check_beginning(settings, parent, memory)
        if settings.refits != len(parent.refits):
            raise InvalidValueError("refits", settings.refits, f"{len(parent.refits)}, as many as the model has whose heads stay")
        super().__init__(sums, settings, progress)
        self._parent, self._memory = parent, memory
        self._known = None if memory is None else memory.discounted(forgetting)
        self._frozen: Scaled = {**scales_of(parent, settings.folds), "head": beta_of(parent)}
        self._heads = {"beta": np.tile(beta_of(parent), (settings.folds, 1))}

    @property
    def exchanges(self) -> int:
        """How many there were."""
        return self._sums.done

    def justify(self, level: float) -> Justified:
        """Ask who takes part, bring all answers to rest, and test which one is justified."""
        (who,) = self._total("cohort", [self._ask_who()])
        self._people = Cohort.of(who, self._settings)
        if self._memory is None and min(self._people.subjects) < (needed := subjects_needed(self._settings.coverage)):
            raise TrainingError(
                f"Without the model's memory prediction sets are made of new people alone: {needed} of each class are needed, "
                f"there are {min(self._people.subjects)}."
            )
        parent, folds, draws = self._parent, self._settings.folds, self._settings.refits
        free: dict[Step, Freedom] = {step: freedom_of(step, parent) for step in ANSWERS}
        doubt = doubt_of_map(parent.calibrator)
        # A step that leaves the map alone leaves it to what the model itself was not sure of, so every test fits both numbers.
        tested = [(free["slope"], prior_of_map(doubt, step), EVERYBODY, EVERYBODY) for step in TESTED]
        held = {step: Posterior.nothing(np.full(free[step].size, RIDGE)) for step in ANSWERS}
        left_out = [*range(folds), *[EVERYBODY] * (1 + draws)]
        draw = [*[EVERYBODY] * (folds + 1), *range(draws)]
        fitted = [(free[step], held[step], of, drawn) for step in ANSWERS for of, drawn in zip(left_out, draw, strict=True)]
        freedom, prior, of, drawn = zip(*tested, *fitted, strict=True)
        self._answers = Answers(freedom, prior, np.array(of), np.array(drawn))
        for _ in range(MOST_REFINEMENTS):
            self._answers.step(self._total("recalibrate", [self._answers.ask({**self._frozen, **self._heads})])[0])
            if self._answers.settled:
                break
        else:
            raise TrainingError(f"Recalibration did not settle in {MOST_REFINEMENTS} exchanges; do the log-odds separate the new people?")
        log_likelihoods = {
            step: -float(self._answers.loss[i]) - float(away @ prior[i].precision @ away) / 2
            for i, (step, away) in enumerate(zip(TESTED, self._answers.away, strict=False))
        }
        found, tests = closed_test(log_likelihoods, {"none": 0, "intercept": 1, "slope": 2}, level=level)
        people = dict(zip(self._settings.task.classes, self._people.subjects, strict=True))
        # What an update would gain is for an update and the gate to show.
        return Justified(step=found, level=level, people=people, tried=tests, gain=None)

    def _who(self) -> Cohort:
        return self._people

    def _scales(self) -> Scaled:
        return self._frozen

    def _learn(self, people: Cohort) -> Learned:
        del people
        folds = self._settings.folds
        start = len(TESTED) + ANSWERS.index(self.step) * (folds + 1 + self._settings.refits)
        fitted = range(start, start + folds + 1 + self._settings.refits)
        self._maps = [self._map(i) for i in fitted]
        a, b = theta_of(self._parent)
        theta = np.array([[one.scale * a, one.scale * b + float(one.offset)] for one in self._maps[: folds + 1]])
        maps = calibration.Maps(theta, np.zeros(folds + 1, np.int64), np.append(np.arange(folds), EVERYBODY), np.full(folds + 1, EVERYBODY))
        return Learned({**self._frozen, **self._heads}, {}, maps, maps, self._parent.head, ())

    def _map(self, i: int) -> LogOddsMap:
        away, inverse = self._answers.away[i], np.linalg.inv(self._answers.hessian[i])
        scale, offset = (1.0, away[0]) if self.step == "intercept" else (1.0 + away[0], away[1])
        covariance = np.zeros((2, 2))
        covariance[2 - len(away) :, 2 - len(away) :] = inverse
        return LogOddsMap(max(float(scale), MIN_SCALE), np.asarray(offset), covariance)

    def _scores(self, learned: Learned) -> tuple[Arrays, float]:
        judged = {**learned.judged, "theta": learned.maps.theta[: self._settings.folds]}
        (binned,) = self._total("scores", [Ask(scores.Scores.name, judged)])
        if np.abs(binned["mass"].sum(axis=(0, 2)) - self._people.subjects).max() > ROUNDING_OF_COUNTS:
            raise TrainingError("Not everybody was scored who was counted at the beginning; a site answered about other rows than before.")
        return binned, float(self._answers.decrement.max())

    def _with_memory(self, binned: Binned, learned: Learned) -> Binned:
        del learned
        found = self._maps[self._settings.folds]
        return binned if self._known is None else self._known.scores.moved(found.scale, float(found.offset)) + binned

    def _describe(self, learned: Learned, thresholds: Array, limits: Array, shown: Mapping[str, tuple[str, ...]], people: Cohort) -> list[Arrays]:
        del people
        judged = {**learned.judged, "theta": learned.maps.theta[: self._settings.folds], "threshold": thresholds, "limits": limits}
        groups = json.dumps({column: list(values) for column, values in shown.items()})
        return self._total("evaluate", [Ask(evaluation.Evaluation.name, judged, {"groups": groups})])

    def _model(self, learned: Learned, binned: Binned, described: Sequence[Arrays], people: Cohort) -> TrainedModel:
        del learned, described
        settings, parent = self._settings, self._parent
        shares = people.weight.sum(axis=0)
        # The map has brought log-odds to the new people's prevalence.
        stated = tuple((shares / shares.sum()).tolist())
        found, *again = self._maps[settings.folds :]
        centre = self._answers.centre
        return replace(
            parent,
            calibrator=found.after(parent.calibrator, centre),
            conformal=binned.conformal(settings.coverage),
            operating_point=binned.operating_point(settings.task.target_sensitivity),
            refits=tuple(Refit(refit.head, one.after(refit.calibrator, centre), stated) for refit, one in zip(parent.refits, again, strict=True)),
            class_shares=stated,
        )

    def _remember(self, learned: Learned, model: TrainedModel, binned: Binned, people: Cohort) -> Memory | None:
        del learned
        if self._memory is None:
            return None
        # Coefficients have learned nothing, and so have forgotten nothing.
        calibrator = settled(calibrator_posterior(model.calibrator))
        return replace(self._memory, bundle=None, calibrator=calibrator, people=people.weight.sum(axis=0), scores=binned)

    def _notes(self, people: Cohort) -> tuple[str, ...]:
        what = "intercept" if self.step == "intercept" else "intercept and slope"
        said = (
            f"Recalibrated ({what}) on {people.people} new people; the coefficients are those of the model before, and figures are of the new people."
        )
        return (said,)
