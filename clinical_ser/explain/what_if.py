"""For engineers: which family, alone, would have to move how far for the answer to change, and whether anyone in the reference group is there.

Families are moved, never features: eGeMAPS values cannot be moved one by one. It describes the model and is no advice to anyone.
"""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray
from scipy.special import logit
from scipy.stats import norm

from clinical_ser.explain.effects import Effects, Explainer
from clinical_ser.explain.explanation import Move
from clinical_ser.models.trained import TrainedModel

Array = NDArray[np.float64]
WITHIN_PERCENT = (5.0, 95.0)
"""What the reference group shows: at least 5 % lie as far out."""
_BEYOND = 1e-6
"""Log-odds past a limit at which the status beyond it is read."""
_STEPS = 100
"""Of the way towards the group's mean, for several classes."""


def moves(explainer: Explainer, effects: Effects, logits: Array, group: int | None) -> tuple[Move, ...]:
    """Return, family by family, the smallest move that changes the status; families that cannot change it are left out.

    Parameters
    ----------
    explainer, effects, group
        The explained recording, and its reference group.
    logits
        Its calibrated log-odds as `TrainedModel.log_odds` states them, shape () or (classes,).
    """
    found = _binary(explainer, effects, float(logits), group) if explainer.model.binary else _classes(explainer.model, effects, logits)
    return tuple(found)


def _binary(explainer: Explainer, effects: Effects, log_odds: float, group: int | None) -> Iterator[Move]:
    """Of two classes the log-odds decides alone, so every family has to add the same; how unusual that is differs."""
    model = explainer.model
    nearest = min(_changes(model, log_odds), key=lambda change: abs(change[0]), default=None)
    if nearest is None:
        return
    needed, status = nearest
    now = explainer.percentiles(effects, group)
    sd = explainer.background(group).spread
    for i, family in enumerate(effects.families):
        then = None if now is None or not sd[i] else float(100 * norm.cdf((effects.log_odds[0, i] + needed) / sd[i]))
        yield Move(
            family=family,
            to_status=status,
            log_odds=needed,
            percentile_now=None if then is None or now is None else float(now[i]),
            percentile_then=then,
            within_reference=then is not None and WITHIN_PERCENT[0] <= then <= WITHIN_PERCENT[1],
        )


def _changes(model: TrainedModel, log_odds: float) -> Iterator[tuple[float, str]]:
    """Yield the moves of the log-odds after which another status is answered: the limits of the prediction sets and the threshold."""
    here = str(model.statuses(np.array([log_odds]))[0])
    for limit in _limits(model):
        for side in (-_BEYOND, _BEYOND):
            status = str(model.statuses(np.array([limit + side]))[0])
            if status != here:
                yield limit + side - log_odds, status


def _limits(model: TrainedModel) -> list[float]:
    sets = model.conformal.thresholds_
    shares = [1 - sets[1] if sets[1] is not None else None, sets[0]]
    found = [float(logit(share)) for share in shares if share is not None and 0 < share < 1]
    return [*found, *([model.operating_point.threshold] if model.operating_point else [])]


def _classes(model: TrainedModel, effects: Effects, logits: Array) -> Iterator[Move]:
    """Of several classes a family adds to each; it is moved on the straight way to what it adds in the group on average, and no further."""
    parts = np.arange(1, _STEPS + 1) / _STEPS
    here = model.statuses(logits[None])[0], logits.argmax()
    for i, family in enumerate(effects.families):
        moved = logits - parts[:, None] * effects.margins[i]
        statuses, classes = model.statuses(moved), moved.argmax(axis=1)
        changed = np.flatnonzero((statuses != here[0]) | (classes != here[1]))
        if len(changed):
            first = changed[0]
            yield Move(
                family=family,
                to_status=str(statuses[first]),
                to_class=model.task.classes[classes[first]],
                log_odds=float(-parts[first] * effects.log_odds[0, i]),
                percentile_now=None,
                percentile_then=None,
                within_reference=True,
            )
