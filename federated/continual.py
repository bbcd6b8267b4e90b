"""A model that is there already learns on across sites: updates whose prior is what it knows.

The one idea: sites are asked the same questions as in training. What the old data said is public, since it is the model with its precision, and
whoever trains adds it to the totals, as it adds the ridge. So nobody is asked again who was asked before.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clinical_ser.continual.linear import coordinates_of
from clinical_ser.continual.memory import Memory
from clinical_ser.continual.updating import secret_draws
from clinical_ser.errors import TrainingError
from clinical_ser.models.background import Background, Backgrounds
from clinical_ser.models.binned import Binned
from clinical_ser.models.heads import with_margins
from clinical_ser.models.linear_head import LinearHead
from clinical_ser.models.rounding import rounded
from clinical_ser.models.trained import Refit, TrainedModel
from federated.asking import FROZEN, frozen_digest
from federated.at_site import EVERYBODY, Array
from federated.plan import Kind
from federated.protocols import calibration, evaluation, newton, reference
from federated.statistics import Arrays, Ask, Sums
from federated.training import Cohort, Learned, Moving, Run, Scaled, Settings, Trained

NO_PROGRESS: Callable[[int, str], None] = lambda _done, _what: None  # noqa: E731


def scales_of(model: TrainedModel, folds: int) -> Scaled:
    """Return a model's preprocessing as every question of a run about new people carries it, the same for each fold and for everybody."""
    found = model.preprocessor
    scales = {"mean": found.mean_, "scale": found.scale_}
    if not np.array_equal(found.median_, found.mean_):
        scales["median"] = found.median_
    return {name: np.tile(values, (folds + 1, 1)) for name, values in scales.items()}


def frozen_of(model: TrainedModel, folds: int, kind: Kind) -> str:
    """Return what a plan says does not move in a run of a kind that begins with a model; see `asking.FROZEN`."""
    arrays = {**scales_of(model, folds), "head": beta_of(model)}
    return frozen_digest({name: arrays[name] for name in FROZEN[kind] if name in arrays})


def update_across(
    sums: Sums,
    settings: Settings,
    parent: TrainedModel,
    memory: Memory,
    forgetting: float = 1.0,
    *,
    secret: bytes | None = None,
    progress: Callable[[int, str], None] = NO_PROGRESS,
) -> Trained:
    """Lead an update: what `clinical_ser.continual.updating.update` does with all new rows in one place.

    Scales, strength and reference groups stay the parent's. Bootstrap refits hear a sample of each site's new people and a prior as other old people
    would have made it, so that the spread of both is in the intervals.

    Parameters
    ----------
    sums
        Where totals over the new people come from; none of them may be in the memory.
    settings
        Task, features and extractors are the parent's, as are strength and coverage; the rest is free.
    parent, memory
        The champion, with a linear head, and what is kept of its data.
    forgetting
        Above 0 and up to 1: what a person of then is worth in people of now.
    secret
        As in `clinical_ser.continual.updating.UpdateOptions`: sites see the refits, and must not know the draws.
    progress
        As in `train_across`.

    Returns
    -------
    Trained
        Its figures are of the new people; `memory` is that of old and new.

    Raises
    ------
    FederationError
        A site refuses or is missing.
    TrainingError
        The head is not linear, the memory is another model's, too few new people, or totals that no rows can have.
    """
    return _UpdateRun(sums, settings, progress, parent, memory.discounted(forgetting), secret).train()


class _UpdateRun(Run):
    """One update; what differs from a training is where steps begin, and what is added to totals."""

    def __init__(
        self, sums: Sums, settings: Settings, progress: Callable[[int, str], None], parent: TrainedModel, known: Memory, secret: bytes | None
    ):
        check_beginning(settings, parent, known)
        super().__init__(sums, settings, progress)
        self._parent, self._known, self._secret = parent, known, secret

    def _who(self) -> Cohort:
        (who,) = self._total("cohort", [self._ask_who()])
        self._people = Cohort.of(who, self._settings)
        return self._people

    def _scales(self) -> Scaled:
        return scales_of(self._parent, self._settings.folds)

    def _learn(self, people: Cohort) -> Learned:
        del people
        moving = self._set_out()
        self._refine(moving)
        return self._learned(moving)

    def _set_out(self) -> Moving:
        """Let all heads and maps start where the parent's stand, each with what the old data say of it."""
        settings, parent = self._settings, self._parent
        folds, draws = settings.folds, settings.refits
        (head,), strength = self._known.heads, _head(parent).strength_
        rng = secret_draws(self._secret)
        drawn = [(head.drawn(rng), self._known.calibrator.drawn(rng)) for _ in range(draws)]
        left_out, nobody = np.append(np.arange(folds), EVERYBODY), np.full(folds + 1, EVERYBODY)
        everybody, samples = np.full(draws, EVERYBODY), np.arange(draws)
        beta, theta = beta_of(parent), theta_of(parent)

        def heads(of: NDArray[np.int64], draw: NDArray[np.int64], priors: Sequence[Any]) -> newton.Heads:
            return newton.Heads(np.tile(beta, (len(of), 1)), of, draw, np.full(len(of), strength), priors)

        def maps(of: NDArray[np.int64], draw: NDArray[np.int64], priors: Sequence[Any]) -> calibration.Maps:
            return calibration.Maps(np.tile(theta, (len(of), 1)), np.zeros_like(of), of, draw, priors)

        return Moving(
            of=0,
            heads=heads(left_out, nobody, [head] * (folds + 1)),
            maps=maps(left_out, nobody, [self._known.calibrator] * (folds + 1)),
            refits=heads(everybody, samples, [one for one, _ in drawn]),
            refit_maps=maps(everybody, samples, [one for _, one in drawn]),
        )

    def _with_memory(self, binned: Binned, learned: Learned) -> Binned:
        # The same old margins, by the new map.
        (scale, offset), (old_scale, old_offset) = learned.maps.theta[self._settings.folds], theta_of(self._parent)
        return self._known.scores.moved(scale / old_scale, offset - scale / old_scale * old_offset) + binned

    def _describe(self, learned: Learned, thresholds: Array, limits: Array, shown: Mapping[str, tuple[str, ...]], people: Cohort) -> list[Arrays]:
        """Evaluate, and see how the new people's spread differs between the parent's head and the new ones."""
        del people
        judged = {**learned.judged, "theta": learned.maps.theta[: self._settings.folds], "threshold": thresholds, "limits": limits}
        groups = json.dumps({column: list(values) for column, values in shown.items()})
        before = {**learned.described, "own": beta_of(self._parent)}
        asks = [Ask(reference.Reference.name, dict(arrays), {"sex": ""}) for arrays in (learned.described, before)]
        return self._total("evaluate", [Ask(evaluation.Evaluation.name, judged, {"groups": groups}), *asks])

    def _model(self, learned: Learned, binned: Binned, described: Sequence[Arrays], people: Cohort) -> TrainedModel:
        settings, parent = self._settings, self._parent
        heard = self._known.people + people.weight.sum(axis=0)
        stated = tuple((heard / heard.sum()).tolist())
        refits = tuple(Refit(again, learned.refit_maps.platt(i), stated) for i, again in enumerate(learned.again))
        model = replace(
            parent,
            head=learned.head,
            calibrator=learned.maps.platt(settings.folds),
            conformal=binned.conformal(settings.coverage),
            operating_point=binned.operating_point(settings.task.target_sensitivity),
            refits=refits,
            class_shares=stated,
            backgrounds=_backgrounds(parent, learned, described),
            interpretable=None,
            reproduced=None,
        )
        model.check_fit()
        return model

    def _notes(self, people: Cohort) -> tuple[str, ...]:
        old = float(self._known.people.sum())
        return (
            f"Updated without its old data: what {old:.0f} people taught before, and {people.people} new ones; figures are of the new ones.",
            "Reference groups and the spread of what families add in them are those of the model before.",
        )

    def _remember(self, learned: Learned, model: TrainedModel, binned: Binned, people: Cohort) -> Memory:
        folds = self._settings.folds
        calibrator = self._known.calibrator
        assert learned.coefficients is not None
        whole = learned.maps.hessian[folds]
        return Memory(
            bundle=None,
            features=model.features,
            classes=tuple(model.task.classes),
            heads=(self._known.heads[0].after(learned.coefficients.beta[folds], self._curvature),),
            calibrator=calibrator.after(learned.maps.theta[folds] - calibration.IDENTITY, whole - calibrator.whole),
            class_totals=self._known.class_totals + people.recordings.sum(axis=0),
            people=self._known.people + people.weight.sum(axis=0),
            scores=binned,
        )


def check_beginning(settings: Settings, parent: TrainedModel, memory: Memory | None) -> None:
    """Raise TrainingError unless settings, parent and memory fit each other, and the parent can go on learning across sites."""
    if memory is not None:
        memory.check(parent)
    if not isinstance(parent.head, LinearHead) or parent.uses_baseline or parent.interpretable is not None:
        raise TrainingError("Across sites a model with a linear head is updated, without embeddings and baselines; others are trained again.")
    if settings.head != "linear" or settings.features != parent.features or settings.task.classes != parent.task.classes:
        raise TrainingError("The plan's features, task or head are not those of the model that it begins with.")
    if any(settings.extractors.get(name) != measured for name, measured in parent.extractors.items()):
        raise TrainingError("The plan's features are measured by other code than those of the model that it begins with.")


def _head(model: TrainedModel) -> LinearHead:
    assert isinstance(model.head, LinearHead)
    return model.head


def beta_of(model: TrainedModel) -> Array:
    """Return a model's coefficients, shape (features + 1,), intercept last."""
    return coordinates_of(_head(model), np.zeros(()))


def theta_of(model: TrainedModel) -> Array:
    """Return a model's map, scale and offset, shape (2,)."""
    return np.array([model.calibrator.scale_, float(model.calibrator.offset_)])


def _backgrounds(parent: TrainedModel, learned: Learned, described: Sequence[Arrays]) -> Backgrounds:
    """Return what families add in the parent's reference groups once coefficients are others; see `clinical_ser.continual.updating.backgrounds_of`.

    Means follow from the groups' mean features, which the bundle has; spreads change as they do among new people of the negative class.
    """
    now, before = described
    weight = float(now["weight"][0])
    old = _spread(weight, before["own"])
    spreads = [_spread(weight, now["own"]), *(_spread(one[0], one[1:]) if one[0] > 0 else old for one in now["refits"])]
    ratios = [one / np.maximum(old, 1e-12) for one in spreads]
    groups = []
    for group in parent.backgrounds.groups:
        centre = np.array(group.z_mean)[None]
        was, own, *again = (with_margins(head.family_margins(centre))[0] for head in (parent.head, learned.head, *learned.again))
        features = with_margins(learned.head.feature_margins(centre))[0] - with_margins(parent.head.feature_margins(centre))[0]
        mean, sd = np.array(group.mean) + own - was, np.array(group.sd)
        groups.append(
            Background(
                mean=_rows(mean),
                sd=_rows(sd * ratios[0]),
                correlation=group.correlation,
                refit_mean=tuple(_rows(mean + one - own) for one in again),
                refit_sd=tuple(_rows(sd * ratio) for ratio in ratios[1:]),
                features=_rows(np.array(group.features) + features),
                z_mean=group.z_mean,
            )
        )
    return Backgrounds(groups=tuple(groups))


def _spread(weight: float, sums: Array) -> Array:
    first, second = np.split(sums / weight, 2)
    return np.asarray(np.sqrt(np.maximum(second - first**2, 0.0)))[:, None]


def _rows(values: Array) -> tuple[tuple[float, ...], ...]:
    return tuple(tuple(row) for row in rounded(values).tolist())
