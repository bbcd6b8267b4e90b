"""What sites are asked for: named statistics that add up over people, and so over hospitals.

The one idea: whoever trains asks for totals and never for rows. The same question is answered by one table in memory (`PooledSums`), by sites
in one process, or by hospitals under Flower with secure sums; training code cannot tell which.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Protocol

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from clinical_ser.cohorts.table import FeatureTable
from clinical_ser.control.parts import ChangePlan
from clinical_ser.models.bundle import VerifiedBundle

Arrays = dict[str, NDArray[np.float64]]
Scalar = bool | int | float | str


@dataclass(frozen=True, eq=False)
class SiteRows:
    """The usable rows of one site, as `clinical_ser.models.rows.select_rows` leaves them, and what a statistic may use beside them."""

    X: NDArray[np.float64]
    """Shape (rows, features), NaN where missing, columns in the plan's order."""
    target: NDArray[np.int64]
    """Shape (rows,), 1 for the positive class."""
    subjects: NDArray[np.str_]
    """Shape (rows,)."""
    fold: NDArray[np.int64]
    """Shape (rows,), the number of the fold in which the row's subject is tested."""
    frame: pd.DataFrame
    """Covariates and quality, one row a recording, in the same order; never leaves the site."""
    names: tuple[str, ...]
    refused: pd.DataFrame = field(default_factory=pd.DataFrame)
    """Labelled recordings that the gate refused, with their covariates."""
    counts: Mapping[str, int] = field(default_factory=dict)
    """What became of every row of the site's table."""
    gate_failures: Mapping[str, int] = field(default_factory=dict)
    secret: bytes = b""
    """The site's own, for draws that nobody else may predict (bootstrap samples, noise)."""
    workspace: Path | None = None
    """Folder for what is learned here and stays here (local heads, normalisation layers); None: nothing may be kept."""
    table: FeatureTable | None = None
    """The site's whole table, of runs that look at recordings without a label too."""
    bundles: Mapping[str, VerifiedBundle] = field(default_factory=dict)
    """Digest to bundle: the models of the plan, as this site has them."""
    change_plan: ChangePlan | None = None
    """The site's copy of the change-control plan that a gate is held to."""
    site: str = ""
    """The site's name, of runs whose answers are told apart by site."""
    least: int = 1
    """People of whom a count by name may leave; fewer are counted without their name."""
    least_of_a_class: int = 1
    """People of each class of whom outcomes may leave; of fewer, none do."""

    def __len__(self) -> int:
        return len(self.target)


@dataclass(frozen=True, eq=False)
class Ask:
    """One statistic, with what it depends on: numbers that everybody may see."""

    statistic: str
    arrays: Mapping[str, NDArray[Any]] = field(default_factory=dict)
    options: Mapping[str, Scalar] = field(default_factory=dict)


class Statistic(ABC):
    """A sum over people.

    Every site returns arrays of the same names and shapes, which follow from the plan and the ask alone. A value that depends on few people, and
    everything that is not additive, is no statistic.
    """

    name: ClassVar[str]
    """What `node.toml` allows, or not."""
    bound: ClassVar[float]
    """Largest absolute value of an entry that one site may contribute; a site refuses beyond. With it the fixed-point range is chosen."""
    counts: ClassVar[frozenset[str]] = frozenset()
    """Arrays whose entries are numbers of people, or weights of them: no total of these is negative."""
    private: ClassVar[bool] = False
    """Whether what is returned carries differentially private noise (and `charge` says how much is spent)."""

    @abstractmethod
    def at_site(self, rows: SiteRows, ask: Ask) -> Arrays:
        """Return this site's contribution; float64, finite."""


class Sums(Protocol):
    """Where totals come from."""

    @property
    def sites(self) -> tuple[str, ...]:
        """Names of the sites, in the plan's order."""
        ...

    def total(self, step: str, asks: Sequence[Ask]) -> list[Arrays]:
        """Ask all sites in one exchange and return the totals, one an ask.

        Parameters
        ----------
        step
            What the exchange is for, in a word or two (`newton`); shown and logged.
        asks
            Answered together: an exchange costs seconds however much it asks.

        Raises
        ------
        FederationError
            A site refused, is missing, or sent what cannot be right; nothing was added up.
        """
        ...


_KNOWN: dict[str, Statistic] = {}


def register(statistic: type[Statistic]) -> type[Statistic]:
    """Make a statistic known by its name; use as a class decorator."""
    assert statistic.name not in _KNOWN, statistic.name
    _KNOWN[statistic.name] = statistic()
    return statistic


def known_statistics() -> Mapping[str, Statistic]:
    """Return every statistic that this version can compute, by name."""
    # Importing a protocol registers its statistics.
    from federated import protocols

    protocols.load_all()
    return dict(_KNOWN)


def contribution(rows: SiteRows, ask: Ask) -> Arrays:
    """Compute one site's contribution, and make sure that it is finite float64 within the statistic's bound."""
    from clinical_ser.errors import FederationError, InvalidValueError

    known = known_statistics()
    if ask.statistic not in known:
        raise InvalidValueError("statistic", ask.statistic, sorted(known))
    statistic = known[ask.statistic]
    found = {name: np.asarray(values, dtype=np.float64) for name, values in statistic.at_site(rows, ask).items()}
    for name, values in found.items():
        if not np.isfinite(values).all() or (values.size and np.abs(values).max() > statistic.bound):
            raise FederationError(f"{ask.statistic}.{name} is not finite or out of range at this site; its table has to be looked at.")
    return found


class PooledSums:
    """Totals over tables in memory: what the same training would be with all rows in one place."""

    def __init__(self, tables: Mapping[str, SiteRows]):
        self._tables = dict(tables)
        self.exchanges: list[str] = []

    @property
    def sites(self) -> tuple[str, ...]:
        """Names of the sites."""
        return tuple(self._tables)

    def total(self, step: str, asks: Sequence[Ask]) -> list[Arrays]:
        """See `Sums.total`."""
        self.exchanges.append(step)
        totals = []
        for ask in asks:
            parts = [contribution(rows, ask) for rows in self._tables.values()]
            totals.append({name: np.sum([part[name] for part in parts], axis=0) for name in parts[0]})
        return totals
