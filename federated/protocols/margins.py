"""Margins of heads that never heard the row, whatever kind of head an ask carries: coefficients, trees, or both of a site's own.

The one idea: whoever calibrates, scores or evaluates asks for a margin and never for a head. What the head is stands in the ask's arrays.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clinical_ser.errors import InvalidValueError
from federated.at_site import Array, Scales, numbers
from federated.protocols import local_heads
from federated.protocols.boosting import Ensembles
from federated.statistics import Ask, SiteRows

TREES = "trees."
"""Before the names of the arrays that `Ensembles` reads, which other arrays of an ask are called too (`left_out`)."""


def named_trees(arrays: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    """Return the arrays of ensembles as an ask carries them beside others."""
    return {TREES + name: values for name, values in arrays.items()}


def has_trees(ask: Ask) -> bool:
    """Whether an ask is about boosted trees."""
    return TREES + "feature" in ask.arrays


def trees_of(ask: Ask) -> Ask:
    """Return an ask with the arrays of its trees under their own names, beside `mean` and `scale`."""
    scales = {name: values for name, values in ask.arrays.items() if name in {"mean", "scale"}}
    return Ask(ask.statistic, scales | {name.removeprefix(TREES): values for name, values in ask.arrays.items() if name.startswith(TREES)})


def out_of_fold(rows: SiteRows, ask: Ask) -> Array:
    """Return each row's margin by the heads that never heard its subject, shape (systems, rows).

    Arrays of the ask: `mean`, `scale` (folds + 1, features); either the trees of one system (`named_trees`), ensemble k without fold k, or `beta`,
    shape (folds, features + 1) for one system, (systems, folds, features + 1) for several.

    Raises
    ------
    InvalidValueError
        The heads are not one a fold.
    """
    if has_trees(ask):
        return Ensembles(rows, trees_of(ask)).out_of_fold()[None]
    scales = Scales(rows, ask)
    several = numbers(ask, "beta", ndim=3 if np.ndim(ask.arrays.get("beta", 0.0)) == 3 else 2)
    beta = several if several.ndim == 3 else several[None]
    if beta.shape[1:] != (scales.folds, rows.X.shape[1] + 1):
        raise InvalidValueError(f"{ask.statistic}.beta", f"shape {several.shape}", f"(systems, {scales.folds}, {rows.X.shape[1] + 1})")
    return np.array([scales.out_of_fold(heads) for heads in beta])


def calibrated(rows: SiteRows, ask: Ask) -> Array:
    """Return each row's log-odds by the head and the map that never heard its subject, shape (rows,).

    Arrays of the ask: as `out_of_fold` reads them for one system; `theta` (folds, 2), the map that leaves each fold out. With the option `families`
    a head of this site's own stands beside the shared one, and `theta` has the shape (folds, 3); see `local_heads.stacked`.
    """
    if "families" in ask.options:
        return local_heads.stacked(rows, ask)
    theta = numbers(ask, "theta", ndim=2)[rows.fold]
    return np.asarray(theta[:, 0] * out_of_fold(rows, ask)[0] + theta[:, 1])
