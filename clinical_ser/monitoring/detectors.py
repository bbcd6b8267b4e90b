r"""Sequential tests that nothing has changed, from counts, with a false-alarm rate that holds at any time one looks.

The one idea: under "nothing has changed" the next recording is as likely as any before to be the largest, so that its rank is uniform whatever the
distribution. Whoever bets against that with fair odds gains only if something has changed, and the gain is the evidence.

A channel (a feature, the score, a check that fails) is a row of ordered cells. Its next recording has the conformal p-value

    p = (recordings in lower cells + U * recordings in its own) / all, itself included, U uniform,

among the reference and everything since. If all of them are exchangeable, these are independent and uniform (Vovk, Gammerman & Shafer 2022,
Algorithmic Learning in a Random World, 2nd ed., prop. 2.4 and ch. 8; Vovk et al. 2021, COPA, PMLR 152:191-210). Counts of a day have no order;
they are put into one by a generator whose seed follows from them and from all before, which exchangeability allows.

A bet is a density on (0, 1): here those of normal scores that have moved, or spread. Its gains make the Shiryaev-Roberts detector R = e (1 +
R_before), and a channel's evidence is their mean over bets. R - n is a martingale, so that a channel crosses a limit L within n recordings with
probability at most n / L (Doob), and its average run length to a false alarm is at least L (Shin, Ramdas & Rinaldo 2023, E-detectors, New England
J Stat Data Sci 2:229-260).

Channels depend on each other in unknown ways, and their evidence must not be averaged: each is a martingale of its own past, not of everybody's.
They share the rate instead. With limits L_k = 2 c / w_k, and weights w_k that add up to 1, any of them crosses within n recordings with
probability at most n / (2 c), whatever the dependence, and the run length to the first false alarm of all is at least c on average.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator
from scipy.special import ndtri

from clinical_ser.errors import MonitoringError
from clinical_ser.strict import Strict

Array = NDArray[np.float64]
Counted = NDArray[np.int64]

_SHIFTS = (-2.0, -1.0, -0.5, -0.25, 0.25, 0.5, 1.0, 2.0)
_SPREADS = (0.5, 0.71, 1.41, 2.0)
BETS: tuple[str, ...] = (*("down" if shift < 0 else "up" for shift in _SHIFTS), *("narrower" if spread < 1 else "wider" for spread in _SPREADS))
"""What each bet is on. Of a channel with two cells (a name, a check) the last two say little."""
_SMALLEST_P = 1e-12
_MOST_EVIDENCE = 1e250
"""Beyond any limit; without it a large batch of changed recordings is infinity."""

_Evidence = Annotated[float, Field(ge=0, le=_MOST_EVIDENCE)]
_Whole = Annotated[int, Field(strict=True, ge=0, le=2**53)]


def conformal_p(bag: Counted, cell: Counted, uniform: Array) -> Array:
    """Return the p-value of the last recording of each bag, shape (channels,), low where it lies low.

    Parameters
    ----------
    bag
        Shape (channels, cells): recordings so far, the last included.
    cell
        Shape (channels,): where the last one lies.
    uniform
        Shape (channels,): breaks ties.
    """
    below = np.where(np.arange(bag.shape[1]) < cell[:, None], bag, 0).sum(axis=1)
    own = bag[np.arange(len(bag)), cell]
    return np.asarray((below + uniform * own) / bag.sum(axis=1))


def gains(p: Array) -> Array:
    """Return what each bet gains, shape (channels, bets), on p-values of shape (channels,): densities, of mean 1 if p is uniform.

    The normal score q of p has moved by a shift (of 1 SD), or spread by a factor: N(shift, 1) or N(0, spread²) against N(0, 1).
    """
    q = ndtri(np.clip(p, _SMALLEST_P, 1 - _SMALLEST_P))[:, None]
    shift, spread = np.array(_SHIFTS), np.array(_SPREADS)
    return np.concatenate([np.exp(shift * q - shift**2 / 2), np.exp(-0.5 * q**2 * (spread**-2 - 1)) / spread], axis=1)


@dataclass(eq=False)
class Evidence:
    """Detectors side by side: for each channel and bet, how much there is against "nothing has changed", and since when.

    Attributes
    ----------
    roberts
        Shape (channels, bets): Shiryaev-Roberts, 0 at the start.
    cusum
        Shape (channels, bets): the gain since the best time to have begun, at least 1.
    begun
        Shape (channels, bets): that time, as the number of the batch.
    """

    roberts: Array
    cusum: Array
    begun: Counted

    @classmethod
    def none(cls, channels: int, bets: int, batch: int = 0) -> Self:
        """Return detectors that have seen nothing."""
        return cls(np.zeros((channels, bets)), np.ones((channels, bets)), np.full((channels, bets), batch, np.int64))

    @property
    def value(self) -> Array:
        """Shape (channels,): mean of the bets, which is what the limit is for."""
        return np.asarray(self.roberts.mean(axis=1))

    def take(self, gained: Array, which: Counted, batch: int) -> None:
        """Take one recording's gains, shape (len(which), bets), for the channels that have one, in this batch."""
        self.roberts[which] = np.minimum(gained * (1.0 + self.roberts[which]), _MOST_EVIDENCE)
        before = self.cusum[which]
        # No longer a reason to have begun earlier: the best time is now.
        self.begun[which] = np.where(before <= 1.0, batch, self.begun[which])
        self.cusum[which] = np.minimum(gained * np.maximum(before, 1.0), _MOST_EVIDENCE)

    def restart(self, which: Counted, batch: int) -> None:
        """Forget what these channels have gained."""
        self.roberts[which], self.cusum[which], self.begun[which] = 0.0, 1.0, batch

    def leading(self, which: Counted) -> Counted:
        """Return the likeliest bet of these channels: with the time that it has begun, the maximum of the likelihood over both."""
        return np.asarray(self.cusum[which].argmax(axis=1))


@dataclass(frozen=True)
class Crossing:
    """A channel whose evidence has reached its limit."""

    channel: int
    value: float
    """The largest evidence in the batch."""
    bet: int
    """The bet that led then."""
    begun: int
    """The batch in which it is likeliest to have begun."""


def watch(
    bag: Counted, evidence: Evidence, counts: Counted, limits: Array, *, batch: int, rng: np.random.Generator, restart: bool = True
) -> list[Crossing]:
    """Let detectors see one batch; `bag` and `evidence` are changed.

    Parameters
    ----------
    bag
        Shape (channels, cells): reference and everything since.
    counts
        Shape (channels, cells): the batch; channels may have seen different numbers of recordings.
    limits
        Shape (channels,).
    batch
        Its number.
    rng
        Puts the batch into an order and breaks ties; see `generator`.
    restart
        Whether a channel that crossed starts again, at the end of the batch.

    Returns
    -------
    list of Crossing
        By channel. A limit may be crossed in the middle of a batch: the guarantee is for every recording, not for ends of days.
    """
    order, sizes = _in_order(counts, rng)
    highest, lead, begun = np.zeros(len(bag)), np.zeros(len(bag), np.int64), np.zeros(len(bag), np.int64)
    for place in range(order.shape[1]):
        which = np.flatnonzero(place < sizes)
        cell = order[which, place]
        bag[which, cell] += 1
        evidence.take(gains(conformal_p(bag[which], cell, rng.random(len(which)))), which, batch)
        value = evidence.roberts[which].mean(axis=1)
        risen = value > highest[which]
        at = which[risen]
        highest[at] = value[risen]
        lead[at] = evidence.leading(at)
        begun[at] = evidence.begun[at, lead[at]]
    crossed = np.flatnonzero(highest >= limits)
    if restart:
        evidence.restart(crossed, batch + 1)
    return [Crossing(int(k), float(highest[k]), int(lead[k]), int(begun[k])) for k in crossed]


def _in_order(counts: Counted, rng: np.random.Generator) -> tuple[Counted, Counted]:
    """Return the cells of a batch's recordings in a random order, shape (channels, most recordings), and how many each channel has."""
    sizes = counts.sum(axis=1)
    most = int(sizes.max(initial=0))
    upto = counts.cumsum(axis=1)
    sequence = np.empty((len(counts), most), np.int64)
    for place in range(most):
        sequence[:, place] = np.minimum((upto <= place).sum(axis=1), counts.shape[1] - 1)
    keys = rng.random(sequence.shape)
    keys[np.arange(most) >= sizes[:, None]] = 2.0  # behind those that are there
    return np.take_along_axis(sequence, keys.argsort(axis=1), axis=1), sizes


def generator(chain: str, content: bytes) -> tuple[np.random.Generator, str]:
    """Return the generator for a batch, and the chain for the next: nobody chooses a seed, and the same journal gives the same alarms.

    Parameters
    ----------
    chain
        In hexadecimal: the digest of all batches before.
    content
        The batch, in its one spelling.
    """
    digest = hashlib.sha256(bytes.fromhex(chain) + hashlib.sha256(content).digest()).hexdigest()
    return np.random.default_rng(int(digest, 16)), digest


def limits_of(weights: Array, run_length: float) -> Array:
    """Return the limit of each channel.

    Parameters
    ----------
    weights
        Shape (channels,), adding up to at most 1: which part of the rate of false alarms each may use.
    run_length
        Recordings to the first false alarm of all of them, on average at least.
    """
    return np.asarray(2.0 * run_length / weights)


class ChannelState(Strict):
    """A detector between two runs."""

    bag: tuple[_Whole, ...] = ()
    """Recordings by cell, the reference's included; empty for outcomes, which have their own probabilities."""
    roberts: tuple[_Evidence, ...]
    cusum: tuple[_Evidence, ...]
    begun: tuple[_Whole, ...]

    @model_validator(mode="after")
    def _aligned(self) -> Self:
        if not len(self.roberts) == len(self.cusum) == len(self.begun):
            raise ValueError("a detector needs three numbers a bet")
        return self


def states_of(names: Sequence[str], evidence: Evidence, bag: Counted | None = None, widths: Sequence[int] = ()) -> dict[str, ChannelState]:
    """Return detectors as they are kept."""
    return {
        name: ChannelState(
            bag=() if bag is None else tuple(bag[k, : widths[k]].tolist()),
            roberts=tuple(evidence.roberts[k].tolist()),
            cusum=tuple(evidence.cusum[k].tolist()),
            begun=tuple(evidence.begun[k].tolist()),
        )
        for k, name in enumerate(names)
    }


def restored(names: Sequence[str], states: Mapping[str, ChannelState], bets: int) -> Evidence:
    """Inverse of `states_of`; MonitoringError where they are not the detectors of these channels."""
    if set(states) != set(names) or any(len(state.roberts) != bets for state in states.values()):
        raise MonitoringError("The state is of other channels or bets than the reference gives; start again without it.")
    kept = [states[name] for name in names]
    if not kept:
        return Evidence.none(0, bets)
    return Evidence(
        np.array([state.roberts for state in kept]), np.array([state.cusum for state in kept]), np.array([state.begun for state in kept], np.int64)
    )
