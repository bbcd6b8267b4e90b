"""What moved a score, in numbers: family by family on the probability and on the log-odds, feature by feature on the log-odds.

The one idea: the model and its refits on other people are explained alike, against the same reference group. How far their explanations differ
is how much an explanation can be relied on.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import norm
from scipy.stats import t as student_t

from clinical_ser.explain.explanation import MAIN_DRIVER_AGREEMENT, MAIN_DRIVER_POINTS
from clinical_ser.explain.shapley import Others, centred, probability_values, shapley_matrix, sums_of_others
from clinical_ser.models.heads import with_margins
from clinical_ser.models.trained import Terms, TrainedModel

Array = NDArray[np.float64]
MOST_BACKGROUNDS = 16
"""Groups that are kept ready: 1 MB each for two classes, 6 for seven."""
REFIT_SAMPLES = 64
"""Background samples for refits: their spread is what is wanted, and it is the same with fewer."""


@dataclass(frozen=True, eq=False)
class Effects:
    """One recording's effects; entry 0 of every first axis is the model, the others are its refits.

    `base_log_odds + log_odds.sum(axis=1)` is the calibrated log-odds (of several classes, the target's less the mean over classes), and
    `base_probability + probability.sum(axis=1)` the calibrated probability, in every version.
    """

    families: tuple[str, ...]
    log_odds: Array
    """Shape (versions, families)."""
    base_log_odds: Array
    """Shape (versions,): of the average member of the reference group."""
    probability: Array
    """Shape (versions, families): Shapley values."""
    base_probability: Array
    """Shape (versions,): the mean probability in the reference group."""
    features: Array
    """Shape (versions, features), of the log-odds."""
    margins: Array
    """Shape (families, margins): what each family adds to every margin, against the group, in the model."""

    @property
    def stated_probability(self) -> float:
        """The model's probability."""
        return float(self.base_probability[0] + self.probability[0].sum())

    @property
    def stated_log_odds(self) -> float:
        """The model's log-odds."""
        return float(self.base_log_odds[0] + self.log_odds[0].sum())

    @property
    def rank_agreement(self) -> Array:
        """Shape (families,): the share of refits in which a family has its rank, by size of its effect on the probability, as in the model."""
        ranks = np.argsort(np.argsort(-np.abs(self.probability), axis=1, kind="stable"), axis=1)
        return np.asarray((ranks[1:] == ranks[0]).mean(axis=0))

    @property
    def stable(self) -> NDArray[np.bool_]:
        """Shape (families,): whether neither 95 % interval of the effect crosses zero, that on the probability and that on the log-odds."""
        scales = (self.probability, self.log_odds)
        return np.all([np.abs(effect[0]) > half_widths(effect) for effect in scales], axis=0)

    @property
    def main_driver(self) -> int | None:
        """The place of the family that may be called the main driver, or None."""
        first = int(np.abs(self.probability[0]).argmax())
        surely = self.stable[first] and abs(self.probability[0, first]) >= MAIN_DRIVER_POINTS
        return first if surely and self.rank_agreement[first] >= MAIN_DRIVER_AGREEMENT else None


def half_widths(versions: Array) -> Array:
    """Return half of a 95 % interval over refits, `versions[1:]`: their SD times what t has for so few of them (2.02 for 40)."""
    return np.asarray(_t_quantile(len(versions) - 2) * versions[1:].std(axis=0, ddof=1))


@lru_cache(maxsize=16)  # a quarter of a millisecond each, for one number
def _t_quantile(freedom: int) -> float:
    return float(student_t.ppf(0.975, freedom))


class Explainer:
    """A model, ready to be explained: what does not depend on a recording is computed once.

    Parameters
    ----------
    model
        Any trained model.
    """

    def __init__(self, model: TrainedModel):
        self.model = model
        self._backgrounds: dict[int | None, _Background] = {}

    def background(self, place: int | None) -> "_Background":
        """Return a reference group's background by its place in `model.reference`; None, the average training recording."""
        if place not in self._backgrounds:
            if len(self._backgrounds) == MOST_BACKGROUNDS:
                self._backgrounds.pop(next(iter(self._backgrounds)))
            self._backgrounds[place] = _Background.of(self.model, place)
        return self._backgrounds[place]

    def effects(self, x: ArrayLike, *, target: str, group: int | None, prevalence: float | None = None) -> Effects:
        """Explain one recording.

        Parameters
        ----------
        x
            Shape (features,), NaN where missing.
        target
            The class whose probability is explained; for two classes the positive one.
        group
            Place of the reference group in `model.reference`; None compares with the average training recording.
        prevalence
            As in `TrainedModel.answer`; moves the base.
        """
        return self._effects(self.model.terms(np.asarray(x, float)[None]), 0, self._number(target), self.background(group), prevalence)

    def table(
        self, X: ArrayLike, *, targets: Sequence[str], groups: Sequence[int | None], prevalence: float | None = None, refits: bool = False
    ) -> list[Effects]:
        """Explain many recordings, shape (rows, features), each with a target and a group; without `refits` by the model alone, much faster."""
        terms = self.model.terms(X, refits=refits)
        return [
            self._effects(terms, row, self._number(target), self.background(group), prevalence)
            for row, (target, group) in enumerate(zip(targets, groups, strict=True))
        ]

    def _number(self, target: str) -> int:
        return 0 if self.model.binary else self.model.task.classes.index(target)

    def _effects(self, terms: Terms, row: int, target: int, background: "_Background", prevalence: float | None) -> Effects:
        versions = len(terms.constant)
        constant = terms.constant + (self.model.prevalence_shift(prevalence) if self.model.binary else 0.0)
        own, usual = terms.families[:, row], background.families[:versions]
        values = np.concatenate(
            [
                probability_values(constant[:1], own[:1], background.others, target),
                probability_values(constant[1:], own[1:], background.others_of_refits[: versions - 1], target),
            ]
        )
        return Effects(
            families=self.model.head.families_,
            log_odds=centred(own - usual, target),
            base_log_odds=centred(constant + usual.sum(axis=1), target),
            probability=values @ shapley_matrix(own.shape[1]).T,
            base_probability=values[:, 0],
            features=centred(terms.features[:, row] - background.features[:versions], target),
            margins=own[0] - usual[0],
        )

    def percentiles(self, effects: Effects, group: int | None) -> Array | None:
        """Return where each family's part stands in the group, in percent, shape (families,); None without a group, or for several classes."""
        if group is None or not self.model.binary:
            return None
        sd = self.background(group).spread
        return np.asarray(100 * norm.cdf(np.divide(effects.log_odds[0], sd, out=np.zeros_like(sd), where=sd > 0)))


@dataclass(frozen=True, eq=False)
class _Background:
    """A group's background on the calibrated scale, by the model and by each refit."""

    families: Array
    """Shape (versions, families, margins): means."""
    spread: Array
    """Shape (families,): the model's SD, of the first margin."""
    others: Others
    """Of members drawn from the group, by the model."""
    others_of_refits: Others
    """Of fewer members, by each refit."""
    features: Array
    """Shape (versions, features, margins): means."""

    @classmethod
    def of(cls, model: TrainedModel, place: int | None) -> "_Background":
        moments = model.background(place)
        scale = model.scales[:, None, None]
        return cls(
            families=scale * moments.means,
            spread=np.asarray(model.scales[0] * moments.sds[0, :, 0]),
            others=sums_of_others(scale[:1, None] * moments.draw()[:1]),
            others_of_refits=sums_of_others(scale[1:, None] * moments.draw(REFIT_SAMPLES)[1:]),
            features=scale * _feature_means(model, np.array(moments.features), np.array(moments.z_mean), moments.means),
        )


def _feature_means(model: TrainedModel, own: Array, z_mean: Array, means: Array) -> Array:
    """Return what features add in the group, shape (versions, features, margins), so that those of a family add up to its mean.

    A bundle holds the model's own. A refit's is what it gives the group's mean recording, moved by what that misses in the model (nothing in a
    linear head).
    """
    heads = (model.head, *(refit.head for refit in model.refits))
    at_mean = np.array([with_margins(head.feature_margins(z_mean[None]))[0] for head in heads])
    found = own + (at_mean - at_mean[0])
    columns = model.family_columns
    for family in range(means.shape[1]):
        members = columns == family
        # Means are rounded, each on its own; what rounding left over is shared out.
        found[:, members] += ((means[:, family] - found[:, members].sum(axis=1)) / members.sum())[:, None]
    return found
