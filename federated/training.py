"""From totals over hospitals to a trained model: the run that a coordinator leads, exchange by exchange.

The one idea: an exchange costs seconds whatever it asks. So everything that can take its next step takes it in the same exchange: every fold,
every strength, every bootstrap sample, and the calibration of each while its head is still moving. Twelve exchanges train, calibrate and
evaluate; a check in the last ones shows that all of it came to rest, and there are further ones where it did not.
"""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from clinical_ser.cohorts.tasks import Task, TaskKind
from clinical_ser.continual.affine import calibrator_posterior
from clinical_ser.continual.linear import ridge_of
from clinical_ser.continual.memory import Memory, linear_parts
from clinical_ser.continual.posterior import Posterior
from clinical_ser.errors import InvalidValueError, TrainingError
from clinical_ser.evaluation.subgroups import MINIMUM_OF_A_CLASS
from clinical_ser.features import catalogue
from clinical_ser.models.background import Backgrounds
from clinical_ser.models.binned import Binned
from clinical_ser.models.heads import Head
from clinical_ser.models.linear_head import LinearHead
from clinical_ser.models.preprocessing import Preprocessor
from clinical_ser.models.reference import MINIMUM_SUBJECTS, ReferenceGroups
from clinical_ser.models.trained import Refit, TrainedModel
from clinical_ser.models.training import MINIMUM_SUBJECTS_PER_CLASS
from federated.at_site import EVERYBODY, Array, symmetric
from federated.boosting import BoostingSettings, grow
from federated.protocols import calibration, cohort, evaluation, newton, reference, scores, standardisation
from federated.protocols.margins import named_trees
from federated.statistics import Arrays, Ask, Scalar, Sums

STRENGTHS = (3_000.0, 1_000.0, 300.0, 100.0, 30.0, 10.0)
"""Candidate ridge strengths, strongest first; see `clinical_ser.models.linear_head`."""
LOSS_SETTLED = 1e-3
"""Nats a row by which the held-out loss of every candidate may still move when one of them is chosen."""
MOST_SEARCHES = 8
MOST_REFINEMENTS = 12
NEARLY = 1e-4
"""Decrement at which the next step ends at rounding: Newton's method squares it."""
AT_REST = 1e-6
SAMPLES_NEARLY = 1e-2
"""The same of bootstrap samples, before their last step: what it leaves is a hundredth of their spread squared."""
ROUNDING_OF_COUNTS = 0.1
MINIMUM_FOLDS = 2
Scaled = dict[str, Array]
"""`mean` and `scale`, shape (folds + 1, features), and of a model that puts what is missing elsewhere than at the mean its `median`."""


@dataclass(frozen=True)
class Settings:
    """What is trained, and how; everything that changes a number, and nothing that depends on where the rows are."""

    task: Task
    features: tuple[str, ...]
    extractors: Mapping[str, str]
    folds: int = 5
    strengths: tuple[float, ...] = STRENGTHS
    refits: int = 40
    coverage: float = 0.90
    seed: int = 0
    groups: Mapping[str, tuple[str, ...]] = field(default_factory=lambda: dict(cohort.GROUPS))
    checks: tuple[str, ...] = ()
    """Names of the gate's checks, for the account of what was refused."""
    head: Literal["linear", "boosted"] = "linear"
    """`boosted`: one tree a family in each round, on a public grid; see `federated.boosting`."""
    boosting: BoostingSettings = field(default_factory=BoostingSettings)

    def __post_init__(self) -> None:
        if self.task.kind is not TaskKind.BINARY:
            raise InvalidValueError("task", self.task.name, "a task of two classes; several are trained at one site, with `clinical-ser train`")
        if self.folds < MINIMUM_FOLDS:
            raise InvalidValueError("folds", self.folds, f"at least {MINIMUM_FOLDS}")
        if not self.strengths or not all(np.isfinite(value) and value > 0 for value in self.strengths):
            raise InvalidValueError("strengths", list(self.strengths), "positive numbers, one at least")
        if self.refits < 2:
            raise InvalidValueError("refits", self.refits, "at least 2, or no interval can be given")
        if self.head not in {"linear", "boosted"}:
            raise InvalidValueError("head", self.head, ["boosted", "linear"])

    @property
    def families(self) -> tuple[str, ...]:
        """The family of each feature."""
        return tuple(catalogue.get(name).family for name in self.features)


@dataclass(frozen=True, eq=False)
class Cohort:
    """Who took part, over all sites."""

    recordings: Array
    """Shape (folds, 2)."""
    weight: Array
    """Shape (folds, 2), subjects counting once."""
    people: int
    subjects: tuple[int, int]
    """Of each class."""
    flow: dict[str, int]
    refused: int
    refused_subjects: int
    gate_failures: dict[str, int]
    simulated: bool
    groups: dict[str, Array]
    """Column to (values, 3): recordings, subjects of each class."""
    totals: Arrays
    """All this as it came, to be told to others."""

    @classmethod
    def of(cls, totals: Arrays, settings: Settings) -> "Cohort":
        """Read the totals of `cohort.Cohort`; TrainingError if there are too few people of a class."""
        whole = {name: np.round(values) for name, values in totals.items() if name != "weight"}
        subjects = (int(whole["subjects"][0]), int(whole["subjects"][1]))
        few = {label: n for label, n in zip(settings.task.classes, subjects, strict=True) if n < MINIMUM_SUBJECTS_PER_CLASS}
        if few:
            raise TrainingError(
                f"Each class needs at least {MINIMUM_SUBJECTS_PER_CLASS} subjects at all sites together; these have fewer: {sorted(few)}."
            )
        if (whole["recordings"].sum(axis=0) - whole["recordings"] <= 0).any():
            raise TrainingError("Without one of the folds a class has nobody left; ask for fewer folds.")
        return cls(
            recordings=whole["recordings"],
            weight=totals["weight"],
            people=int(whole["people"].sum()),
            subjects=subjects,
            flow=dict(zip(cohort.FLOW, whole["flow"].astype(int).tolist(), strict=True)),
            refused=int(whole["refused"][0]),
            refused_subjects=int(whole["refused"][1]),
            gate_failures={check: int(n) for check, n in zip(settings.checks, whole["gate"], strict=True) if n},
            simulated=bool(whole["simulated"][0] > 0),
            groups={column: whole[f"group.{column}"] for column in settings.groups},
            totals=totals,
        )


@dataclass(frozen=True, eq=False)
class Trained:
    """A model trained across sites, and the totals that say how well it does."""

    model: TrainedModel
    settings: Settings
    cohort: Cohort
    standard_errors: Array
    """Shape (features + 1,), of the coefficients on standardised features, intercept last; empty of trees, which have none."""
    everybody: Array
    """Shape `evaluation.CELLS`: subjects out of fold, one recording each."""
    groups: dict[str, Array]
    """Column to (values, *CELLS), of the groups that are large enough."""
    shown: dict[str, tuple[str, ...]]
    """Column to these groups' values."""
    exchanges: int
    at_rest: float
    """Largest Newton decrement of heads (trees have none) and maps at the end, as checked after their last step."""
    judged: Mapping[str, NDArray[Any]] = field(default_factory=dict)
    """What the figures are of: `mean`, `scale` and the heads of the folds, as `protocols.margins.out_of_fold` reads them."""
    memory: Memory | None = None
    """What an update needs in place of the data; None of trees, which have none."""
    notes: tuple[str, ...] = ()
    """What has to be said of the model beside its figures."""


def train_across(sums: Sums, settings: Settings, *, progress: Callable[[int, str], None] | None = None) -> Trained:
    """Lead a run.

    Parameters
    ----------
    sums
        Where totals come from: hospitals, or tables in memory.
    settings
        See `Settings`.
    progress
        Called with the exchanges done and what the next one is for.

    Returns
    -------
    Trained
        The same totals give the same model, bit for bit.

    Raises
    ------
    FederationError
        A site refuses or is missing.
    TrainingError
        Too few people, or totals that no rows can have.
    """
    return Run(sums, settings, progress or (lambda _done, _what: None)).train()


@dataclass(eq=False)
class Moving:
    """The heads of one strength, their maps, and the bootstrap samples that follow them."""

    of: int
    """The strength's place."""
    heads: newton.Heads
    maps: calibration.Maps
    refits: newton.Heads
    refit_maps: calibration.Maps
    steps: int = 0
    """How many the samples have taken."""

    @classmethod
    def behind(cls, grid: newton.Heads, maps: calibration.Maps, of: int, settings: Settings) -> "Moving":
        """Start bootstrap samples where the heads of strength `of` stand."""
        count, folds = settings.refits, settings.folds
        of_strength = np.arange(of * (folds + 1), (of + 1) * (folds + 1))
        heads, everybody, draws = grid.take(of_strength), np.full(count, EVERYBODY), np.arange(count)
        refits = newton.Heads(np.tile(heads.beta[folds], (count, 1)), everybody, draws, np.full(count, heads.strength[0]))
        refit_maps = calibration.Maps(np.tile(maps.theta[of_strength[-1]], (count, 1)), np.full(count, of), everybody, draws)
        return cls(of, heads, maps.take(of_strength), refits, refit_maps)

    def alone(self, grid: newton.Heads, maps: calibration.Maps) -> "Moving":
        """Return these without the other strengths, the heads as far as the grid has brought them."""
        of_strength = np.arange(self.of * len(self.heads.beta), (self.of + 1) * len(self.heads.beta))
        self.heads, self.maps = grid.take(of_strength), maps.take(of_strength)
        self.maps.system, self.refit_maps.system = np.zeros_like(self.maps.system), np.zeros_like(self.refit_maps.system)
        return self

    def asks(self, scales: Scaled) -> list[Ask]:
        """Return the questions for everybody's next step."""
        judged = {**scales, "beta": self.heads.beta[None, :-1].copy()}
        return [self.heads.ask(scales), self.maps.ask_about(judged), self.refits.ask(scales), self.refit_maps.ask_about(judged)]

    def follow(self, totals: Arrays, mapped: Arrays) -> None:
        """Let the samples take a step."""
        self.refits.step(totals)
        self.refit_maps.step(mapped)
        self.steps += 1

    @property
    def arrived(self) -> bool:
        """Whether everything is at rest, or its last step ended at rounding; bootstrap samples, whose spread alone is used, need not be as near."""
        furthest = max(self.heads.decrement.max(), self.maps.decrement.max())
        samples = max(self.refits.decrement.max(), self.refit_maps.decrement.max())
        return bool(furthest <= NEARLY and samples <= SAMPLES_NEARLY)


@dataclass(eq=False)
class Learned:
    """Heads that came to rest, of one kind or another, and their maps."""

    judged: Mapping[str, NDArray[Any]]
    """The folds' heads, as `margins.out_of_fold` reads them."""
    described: Mapping[str, NDArray[Any]]
    """All heads, as `reference.Reference` reads them."""
    maps: calibration.Maps
    refit_maps: calibration.Maps
    head: Head
    again: tuple[Head, ...]
    """Of the bootstrap samples."""
    coefficients: newton.Heads | None = None
    """What can be looked at once more, to see whether it is at rest; trees are never on their way."""


class Counted:
    """Totals as they are asked for, with the number of exchanges so far."""

    def __init__(self, sums: Sums, progress: Callable[[int, str], None] = lambda _done, _what: None):
        self._sums, self._progress, self.done = sums, progress, 0

    @property
    def sites(self) -> tuple[str, ...]:
        """Names of the sites."""
        return self._sums.sites

    def total(self, step: str, asks: Sequence[Ask]) -> list[Arrays]:
        """See `Sums.total`."""
        self._progress(self.done, step)
        found = self._sums.total(step, asks)
        self.done += 1
        return found


class Run:
    """One run; the order of its methods is the order of its exchanges."""

    def __init__(self, sums: Sums, settings: Settings, progress: Callable[[int, str], None]):
        self._sums, self._settings = Counted(sums, progress), settings
        self._total = self._sums.total

    def train(self) -> Trained:
        """Ask, step by step, and put the model together."""
        settings = self._settings
        people = self._who()
        self._scaled = self._scales()
        learned = self._learn(people)
        binned, verified = self._scores(learned)
        without = [self._with_memory(scores.binned(binned, without=fold), learned) for fold in range(settings.folds)]
        sets = [each.conformal(settings.coverage) for each in without]
        points = [each.operating_point(settings.task.target_sensitivity) for each in without]
        shown = groups_shown(people, settings)
        thresholds = np.array([point.threshold for point in points])
        limits = np.array([evaluation.thresholds_of(one) for one in sets])
        evaluated, *described = self._describe(learned, thresholds, limits, shown, people)
        if abs(evaluated["everybody"].sum() - people.people) > ROUNDING_OF_COUNTS:
            raise TrainingError("Not everybody was judged who was counted at the beginning; a site answered about other rows than before.")
        whole = self._with_memory(scores.binned(binned), learned)
        model = self._model(learned, whole, described, people)
        everybody_s = None if learned.coefficients is None else learned.coefficients.take(np.array([settings.folds]))
        return Trained(
            model=model,
            settings=settings,
            cohort=people,
            standard_errors=np.empty(0) if everybody_s is None else everybody_s.standard_errors()[0],
            everybody=evaluated["everybody"],
            groups={column: evaluated[f"group.{column}"] for column in shown},
            shown=shown,
            exchanges=self._sums.done,
            at_rest=verified,
            judged=learned.judged,
            memory=self._remember(learned, model, whole, people),
            notes=self._notes(people),
        )

    def _notes(self, people: Cohort) -> tuple[str, ...]:
        del people
        return ()

    def _remember(self, learned: Learned, model: TrainedModel, binned: Binned, people: Cohort) -> Memory | None:
        """Return what is kept of the people who were asked."""
        if learned.coefficients is None:
            return None
        return Memory(
            bundle=None,
            features=model.features,
            classes=tuple(model.task.classes),
            heads=(Posterior.at(learned.coefficients.beta[-1], self._curvature, ridge_of(linear_parts(model.head)[0])),),
            calibrator=calibrator_posterior(model.calibrator),
            class_totals=people.recordings.sum(axis=0),
            people=people.weight.sum(axis=0),
            scores=binned,
        )

    def _learn(self, people: Cohort) -> Learned:
        return self._boosted() if self._settings.head == "boosted" else self._linear(people)

    def _with_memory(self, binned: Binned, learned: Learned) -> Binned:
        """Add scores that are remembered of people who are not asked any more; here of nobody."""
        del learned
        return binned

    def _ask_who(self) -> Ask:
        settings = self._settings
        options: dict[str, Scalar] = {
            "folds": settings.folds,
            "groups": json.dumps({k: list(v) for k, v in settings.groups.items()}),
            "checks": json.dumps(settings.checks),
        }
        return Ask(cohort.Cohort.name, {}, options)

    def _who(self) -> Cohort:
        settings = self._settings
        origin = np.zeros(len(settings.features))
        first = Ask(standardisation.Moments.name, {"centre": origin}, {"folds": settings.folds})
        who, self._first = self._total("cohort", [self._ask_who(), first])
        self._people = Cohort.of(who, settings)
        return self._people

    def _scales(self) -> Scaled:
        known = self._first["known"].sum(axis=0)
        centre = np.divide(self._first["sum"].sum(axis=0), known, out=np.zeros_like(known), where=known > 0)
        ask = Ask(standardisation.Moments.name, {"centre": centre}, {"folds": self._settings.folds, "squares": True})
        (moments,) = self._total("standardise", [ask])
        standardisation.check_resolved(moments, self._settings.features, len(self._sums.sites))
        mean, scale = standardisation.scales(moments, centre, self._people.recordings.sum(axis=1))
        return {"mean": mean, "scale": scale}

    def _boosted(self) -> Learned:
        """Grow trees, and calibrate what they say of rows that they never heard."""
        settings = self._settings
        scales = self._scaled
        grown = grow(self._sums, scales["mean"], scales["scale"], settings.families, settings.boosting, draws=range(settings.refits))
        judged = scales | named_trees(grown.take(range(settings.folds)).arrays())
        maps, started = calibration.Maps.of_one(settings.folds, settings.refits), self._sums.done
        while not (maps.decrement <= NEARLY).all():
            if self._sums.done - started >= MOST_REFINEMENTS:
                raise TrainingError(f"Calibration did not settle in {MOST_REFINEMENTS} exchanges; do the features separate the classes?")
            maps.step(self._total("calibrate", [maps.ask_about(judged)])[0])
        of_folds, of_draws = np.split(np.arange(len(maps.theta)), [settings.folds + 1])
        everybody_s, *again = grown.take(range(settings.folds, len(grown.start))).heads(settings.task.classes, seed=settings.seed)
        described = scales | named_trees(grown.arrays() | grown.zeros.arrays())
        return Learned(judged, described, maps.take(of_folds), maps.take(of_draws), everybody_s, tuple(again))

    def _linear(self, people: Cohort) -> Learned:
        """Bring coefficients and their calibration to rest together."""
        moving = self._search(people)
        self._refine(moving)
        return self._learned(moving)

    def _learned(self, moving: Moving) -> Learned:
        settings, heads = self._settings, moving.heads
        folds, strength = settings.folds, float(heads.strength[settings.folds])
        judged = self._scaled | {"beta": heads.beta[:folds].copy()}
        own, *again = (linear_head(settings, beta, strength) for beta in (heads.beta[folds], *moving.refits.beta))
        described = judged | {"own": heads.beta[folds].copy(), "refits": moving.refits.beta}
        return Learned(judged, described, moving.maps, moving.refit_maps, own, tuple(again), heads)

    def _search(self, people: Cohort) -> "Moving":
        """Let every strength come near its minimum, and keep the one with the least held-out loss.

        Bootstrap samples set out from whichever strength leads, and set out again when another takes the lead. Out-of-fold figures are those of heads
        whose one strength was chosen on the same folds; with a handful of candidates that flatters them by less than their intervals can show.
        """
        settings = self._settings
        folds, strengths = settings.folds, settings.strengths
        everybody = people.recordings.sum(axis=0)
        heard = np.concatenate([everybody - people.recordings, everybody[None]])
        start = np.zeros((folds + 1, len(settings.features) + 1))
        start[:, -1] = np.log(heard[:, 1] / heard[:, 0])
        left_out, all_drawn = np.append(np.arange(folds), EVERYBODY), np.full(folds + 1, EVERYBODY)
        grid = newton.Heads(
            beta=np.tile(start, (len(strengths), 1)),
            left_out=np.tile(left_out, len(strengths)),
            draw=np.tile(all_drawn, len(strengths)),
            strength=np.repeat(strengths, folds + 1),
        )
        maps = calibration.Maps.of_systems(len(strengths), folds)
        # All strengths start at the same place: one question serves them.
        (totals,) = self._total("newton", [newton.Heads(start, left_out, all_drawn, np.ones(folds + 1)).ask(self._scaled)])
        repeated = {name: np.tile(values, (len(strengths), *[1] * (values.ndim - 1))) for name, values in totals.items()}
        losses = self._held_out(grid.step(repeated))
        moving = Moving.behind(grid, maps, 0, settings)
        for searched in range(MOST_SEARCHES):
            judged = self._scaled | {"beta": grid.beta.reshape(len(strengths), folds + 1, -1)[:, :folds].copy()}
            asks = [grid.ask(self._scaled), maps.ask_about(judged)]
            asks += [moving.refits.ask(self._scaled), moving.refit_maps.ask_about(judged)] if searched else []
            totals, mapped, *again = self._total("newton", asks)
            before, losses = losses, self._held_out(grid.step(totals))
            maps.step(mapped)
            if again and int(np.argmin(losses)) == moving.of:
                moving.follow(*again)
            else:
                moving = Moving.behind(grid, maps, int(np.argmin(losses)), settings)
            if _decided(losses, np.abs(losses - before), LOSS_SETTLED * everybody.sum()):
                break
        return moving.alone(grid, maps)

    def _held_out(self, losses: Array) -> Array:
        return np.asarray(losses.reshape(len(self._settings.strengths), -1).sum(axis=1))

    def _refine(self, moving: "Moving") -> None:
        """Bring the chosen heads to rest, and the bootstrap samples and all maps with them."""
        for _ in range(MOST_REFINEMENTS):
            if moving.arrived:
                return
            totals, mapped, *again = self._total("refine", moving.asks(self._scaled))
            moving.heads.step(totals)
            moving.maps.step(mapped)
            moving.follow(*again)
        raise TrainingError(f"Heads and calibration did not settle in {MOST_REFINEMENTS} exchanges; do the features separate the classes?")

    def _scores(self, learned: Learned) -> tuple[Arrays, float]:
        """Bin the scores, and look once more whether heads and maps are at rest where they stand."""
        heads, maps = learned.coefficients, learned.maps
        theta = maps.theta.copy()
        *checked, mapped, binned = self._total(
            "scores",
            [
                *([] if heads is None else [heads.ask(self._scaled)]),
                maps.ask_about(learned.judged),
                Ask(scores.Scores.name, {**learned.judged, "theta": theta[: self._settings.folds]}),
            ],
        )
        maps.step(mapped)
        rest = float(maps.decrement.max())
        # The model is the one that was scored; what the last totals would still add is only looked at.
        maps.theta = theta
        if heads is not None:
            rest = max(rest, heads.distance(checked[0]))
            self._curvature = symmetric(checked[0]["hessian"][-1], heads.beta.shape[1])
        scored, people = binned["mass"].sum(axis=(0, 2)), self._people.subjects
        if rest > AT_REST or np.abs(scored - people).max() > ROUNDING_OF_COUNTS:
            raise TrainingError("Heads and calibration were taken to be at rest, and are not; a site answered about other rows than before.")
        return binned, rest

    def _describe(self, learned: Learned, thresholds: Array, limits: Array, shown: Mapping[str, tuple[str, ...]], people: Cohort) -> list[Arrays]:
        """Evaluate, and describe the reference groups."""
        judged = {**learned.judged, "theta": learned.maps.theta[: self._settings.folds], "threshold": thresholds, "limits": limits}
        asks = [Ask(evaluation.Evaluation.name, judged, {"groups": json.dumps({column: list(values) for column, values in shown.items()})})]
        asks += [Ask(reference.Reference.name, learned.described, {"sex": sex}) for sex in ("", *_sexes(people, self._settings))]
        return self._total("evaluate", asks)

    def _model(self, learned: Learned, binned: Binned, described: Sequence[Arrays], people: Cohort) -> TrainedModel:
        settings = self._settings
        shares = people.weight.sum(axis=0)
        stated = tuple((shares / shares.sum()).tolist())
        title = settings.task.classes[0].replace("_", " ")
        mean, scale = self._scaled["mean"][-1], self._scaled["scale"][-1]
        sexes = ("", *_sexes(people, settings))
        groups = [reference.ReferenceTotals(t, settings.features, sex, title, mean, scale) for t, sex in zip(described, sexes, strict=True)]
        published = [group for group in groups if group.published]
        model = TrainedModel(
            task=settings.task,
            features=settings.features,
            extractors=dict(settings.extractors),
            preprocessor=_preprocessor(settings.features, mean, scale),
            head=learned.head,
            calibrator=learned.maps.platt(settings.folds),
            conformal=binned.conformal(settings.coverage),
            operating_point=binned.operating_point(settings.task.target_sensitivity),
            refits=tuple(Refit(again, learned.refit_maps.platt(i), stated) for i, again in enumerate(learned.again)),
            reference=ReferenceGroups(groups=tuple(group.group() for group in published)),
            class_shares=stated,
            uses_baseline=False,
            backgrounds=Backgrounds(groups=tuple(group.background(len(set(settings.families))) for group in published)),
        )
        model.check_fit()
        return model


def _decided(losses: Array, moved: Array, slack: float) -> bool:
    """Tell whether the best strength's loss has settled, and nobody that still moves could overtake it by moving as far again."""
    best = losses.argmin()
    return bool(((moved <= slack) | ((losses - moved > losses[best]) & (np.arange(len(losses)) != best))).all())


def _preprocessor(names: tuple[str, ...], mean: Array, scale: Array) -> Preprocessor:
    found = Preprocessor()
    # What is missing is put at the mean: a median over sites is one more exchange, and its value may be a person's.
    found.feature_names_, found.median_, found.mean_, found.scale_ = names, mean, mean, scale
    return found


def linear_head(settings: Settings, beta: Array, strength: float) -> LinearHead:
    """Return coefficients, shape (features + 1,) with the intercept last, as the head that a bundle holds."""
    head = LinearHead(settings.families, settings.task.classes, strength=strength, seed=settings.seed)
    head.classes_, head.strength_ = settings.task.classes, strength
    head.coef_, head.intercept_ = np.ascontiguousarray(beta[:-1]), np.asarray(beta[-1])
    return head


def _sexes(people: Cohort, settings: Settings) -> tuple[str, ...]:
    """Return the sexes that are a reference group of their own: both large enough, and nobody's value comes out when they are subtracted."""
    if "sex" not in settings.groups:
        return ()
    negatives = {value: int(people.groups["sex"][i, 1]) for i, value in enumerate(settings.groups["sex"]) if value in reference.SEXES}
    rest = people.subjects[0] - sum(negatives.values())
    enough = all(n >= MINIMUM_SUBJECTS for n in negatives.values()) and len(negatives) == len(reference.SEXES)
    return reference.SEXES if enough and (rest == 0 or rest >= MINIMUM_SUBJECTS) else ()


def groups_shown(people: Cohort, settings: Settings) -> dict[str, tuple[str, ...]]:
    """Return the groups with people enough for figures; nobody asks about the others."""
    least = MINIMUM_OF_A_CLASS
    chosen = {
        column: tuple(value for value, (_, *subjects) in zip(values, people.groups[column], strict=True) if min(subjects) >= least)
        for column, values in settings.groups.items()
    }
    for column, values in chosen.items():
        size = {value: float(people.groups[column][settings.groups[column].index(value), 1:].sum()) for value in values}
        rest = sum(people.subjects) - sum(size.values())
        # Everybody less those who are shown is a group too.
        while size and 0 < rest < least:
            rest += size.pop(min(size, key=size.__getitem__))
        chosen[column] = tuple(value for value in values if value in size)
    return {column: values for column, values in chosen.items() if values}


def commitment(parts: Sequence[str]) -> str:
    """Return the digest that stands for the cohorts of all sites, from what each site committed itself to."""
    return hashlib.sha256("\n".join(sorted(parts)).encode()).hexdigest()
