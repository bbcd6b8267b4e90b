"""What a coordinator may ask under a plan: as much as training takes, and nothing that only a few people answer.

The one idea: a question is public, so whether it is allowed follows from the plan alone. A head with a huge coefficient looks at the few people in
its slit, a scale that is nearly nothing cuts the cohort at a value, a hundred heads are a hundred questions: none of these is training.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from federated.at_site import EVERYBODY
from federated.plan import Kind, Plan
from federated.protocols.margins import TREES
from federated.refusals import RefusedError
from federated.statistics import Ask
from federated.wire import Message

MOST_NORM = 30.0
"""Of a head's coefficients and intercept together. Ridge heads of standardised features have a norm of some units; one of 30 changes its mind over a
seventh of a SD, in which there are dozens of people wherever sites are large enough to take part."""
MOST_OF_A_MAP = 50.0
"""Largest entry of a calibration."""
COEFFICIENTS = ("beta", "own", "refits", "head")
FROZEN: dict[Kind, tuple[str, ...]] = {"update": ("mean", "scale", "median"), "recalibrate": ("mean", "scale", "median", "head")}
"""What does not move in a run that begins with a model: arrays that every question about its rows carries, and whose digest is in the plan."""
MAPS, FOLD_MAPS = frozenset({"theta", "left_out", "draw"}), frozenset({"theta"})
JUDGED = frozenset({"theta", "threshold", "limits"})
BESIDE: dict[str, frozenset[str]] = {
    "newton": frozenset({"left_out", "draw"}),
    "calibration": MAPS | {"system"},
    "scores": FOLD_MAPS,
    "evaluation": JUDGED,
    "reference": frozenset(),
    "stacking": MAPS,
}
"""Arrays that questions about heads carry beside scales and the heads themselves."""
OTHERS: dict[str, frozenset[str]] = {
    "cohort": frozenset(),
    "moments": frozenset({"centre"}),
    "drift": frozenset(),
    "comparison": frozenset(),
    "private_moments": frozenset({"low", "high"}),
    "private_curvature": frozenset({"mean", "scale"}),
    "private_gradient": frozenset({"mean", "scale", "beta"}),
}
"""All arrays of questions that are about no head of this file's."""
OF_TREES = {"tree_start", "tree_sums", "tree_centres"}
ENSEMBLES = frozenset(TREES + name for name in ("left_out", "draw", "start", "feature", "edge", "value"))
ZEROS = frozenset(TREES + name for name in ("cover", "centre", "feature_centre"))
OF_STEPS = 4
"""Answers of a recalibration that are compared: as it was, with an intercept, and with a slope too; two of them may become the model. The fourth is
the map of nothing, which tells the mean margin."""
OFTENER = {"newton": 2, "calibration": 2, "moments": 2, "reference": 3}
"""How often one exchange may ask for a statistic; for every other once."""


def asks_of(message: Message) -> list[Ask]:
    """Read what a request asks for."""
    try:
        found = []
        entries: Any = message.header["asks"]
        for place, entry in enumerate(entries):
            prefix = f"{place}/"
            arrays = {name.removeprefix(prefix): values for name, values in message.arrays.items() if name.startswith(prefix)}
            found.append(Ask(str(entry["statistic"]), arrays, dict(entry["options"])))
    except (KeyError, TypeError, ValueError):
        raise RefusedError("not_a_request") from None
    return found


def check_asks(plan: Plan, asks: Sequence[Ask]) -> None:
    """Refuse what is not in the plan, or what no training under it would ask."""
    named = {ask.statistic for ask in asks}
    of_local_trees = any(_by_local_trees(ask) for ask in asks)
    if not named <= set(plan.statistics) or (of_local_trees and "stacking" not in plan.statistics):
        raise RefusedError("statistic_not_allowed")
    counted = Counter(ask.statistic for ask in asks)
    heads = most_heads(plan)
    fits = (
        all(times <= OFTENER.get(name, 1) for name, times in counted.items())
        and _entries(asks, "newton", "beta") <= heads
        and _entries(asks, "calibration", "theta") <= heads
        and all(_arrays_are_known(plan, ask) and _is_frozen(plan, ask) for ask in asks)
        and all(_options_fit(plan, ask) and _arrays_fit(plan, ask) for ask in asks)
    )
    if not fits:
        raise RefusedError("asks_beyond_the_plan")


def most_heads(plan: Plan) -> int:
    """Return how many heads, or maps, one exchange may ask about."""
    if plan.kind == "recalibrate":
        return OF_STEPS + 2 * (plan.folds + 1 + plan.refits)
    return (len(plan.strengths) if plan.kind == "train" else 1) * (plan.folds + 1) + plan.refits


def frozen_digest(arrays: Mapping[str, NDArray[Any]]) -> str:
    """Return the digest of arrays by their names, shapes and values, in hex: what a plan says that its questions have in common."""
    told = hashlib.sha256()
    for name in sorted(arrays):
        values = np.ascontiguousarray(arrays[name], dtype=np.float64)
        told.update(f"{name} {values.shape}\n".encode() + values.tobytes())
    return told.hexdigest()


def _is_frozen(plan: Plan, ask: Ask) -> bool:
    """Tell whether what may not move is what the plan says; who took part has nothing to do with it."""
    names = FROZEN.get(plan.kind)
    if plan.kind in {"monitor", "gate"}:
        # Sites have the models: a question says which, and can bring no other.
        told = {"model": plan.parent, "challenger": plan.challenger, "sites": json.dumps(list(plan.site_names))}
        return not ask.arrays and all(ask.options.get(name, wanted) == wanted for name, wanted in told.items())
    if names is None or ask.statistic == "cohort":
        return True
    if "head" in names and not np.array_equal(ask.arrays["beta"], np.tile(ask.arrays["head"], (plan.folds, 1))):
        return False
    return frozen_digest({name: ask.arrays[name] for name in names if name in ask.arrays}) == plan.frozen


def _arrays_are_known(plan: Plan, ask: Ask) -> bool:
    """Tell whether an ask carries the arrays of its statistic under the plan's head, all of them and no other.

    An array that nobody looks at here may be the one that a statistic computes with: trees in place of coefficients are another head.
    """
    given = frozenset(ask.arrays)
    if ask.statistic in OTHERS:
        return given == OTHERS[ask.statistic]
    if ask.statistic not in BESIDE:
        # Trees that grow, and adapters, read their arrays by name; none of them reads a head's trees.
        return (plan.head == "boosted" or ask.statistic not in OF_TREES) and not any(name.startswith(TREES) for name in given)
    needed = BESIDE[ask.statistic] | {"mean", "scale"}
    if plan.head == "boosted" and ask.statistic != "newton":
        return given == needed | ENSEMBLES | (ZEROS if ask.statistic == "reference" else frozenset())
    needed |= {"beta", "own", "refits"} if ask.statistic == "reference" else {"beta"}
    needed |= {"head"} if plan.kind == "recalibrate" else set()
    return needed <= given <= (needed if plan.kind == "train" else needed | {"median"})


def scales_of(asks: Sequence[Ask]) -> list[tuple[NDArray[Any], NDArray[Any]]]:
    """Return the means and scales by which an exchange standardises, fold by fold."""
    return [(ask.arrays["mean"], ask.arrays["scale"]) for ask in asks if {"mean", "scale"} <= set(ask.arrays) and np.ndim(ask.arrays["mean"]) == 2]


def _by_local_trees(ask: Ask) -> bool:
    """Tell whether an ask is about scores with the site's own trees: they are named by families, and stand under coefficients."""
    return ask.statistic in {"calibration", "scores", "evaluation"} and "families" in ask.options and "beta" in ask.arrays


def _entries(asks: Sequence[Ask], statistic: str, name: str) -> int:
    return sum(len(np.atleast_1d(ask.arrays[name])) for ask in asks if ask.statistic == statistic and name in ask.arrays)


def _options_fit(plan: Plan, ask: Ask) -> bool:
    options = ask.options
    try:
        groups = json.loads(str(options.get("groups", "{}")))
        checks = json.loads(str(options.get("checks", "[]")))
        known = all(column in plan.groups and set(values) <= set(plan.groups[column]) for column, values in groups.items())
    except (ValueError, AttributeError, TypeError):
        return False
    return (
        known
        and isinstance(checks, list)
        and set(map(str, checks)) <= set(plan.checks)
        and options.get("folds", plan.folds) == plan.folds
        and options.get("sex", "") in {"", *plan.groups.get("sex", ())}
    )


def _arrays_fit(plan: Plan, ask: Ask) -> bool:
    arrays = ask.arrays
    steep = [np.asarray(arrays[name]) for name in COEFFICIENTS if name in arrays]
    ends = [("draw", plan.refits), ("left_out", plan.folds)]
    return (
        ("median" not in arrays or plan.kind != "train")
        and all(values.ndim > 0 and _longest(values) <= MOST_NORM for values in steep)
        and ("theta" not in arrays or float(np.abs(arrays["theta"]).max(initial=0.0)) <= MOST_OF_A_MAP)
        and all(len(values) == plan.folds + 1 for pair in scales_of([ask]) for values in pair)
        and all(_within(arrays[name], end) for name, end in ends if name in arrays)
        and len(np.atleast_1d(arrays.get("refits", ()))) <= plan.refits
        and (np.ndim(arrays.get("beta", ())) != 3 or len(arrays["beta"]) <= len(plan.strengths))
    )


def _longest(values: NDArray[Any]) -> float:
    lengths = np.sqrt((values.astype(np.float64) ** 2).sum(axis=-1))
    # NaN is no length; written so that it is not taken for a short one.
    return float(lengths.max(initial=0.0)) if np.isfinite(lengths).all() else np.inf


def _within(places: NDArray[Any], end: int) -> bool:
    return bool(((np.asarray(places) >= EVERYBODY) & (np.asarray(places) < end)).all())
