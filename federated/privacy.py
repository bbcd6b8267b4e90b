"""Differential privacy of one hospital's people: what a release costs, noise that nobody can predict, and the ledger of all that was spent.

The one idea: the people are the hospital's, so the account is too. One ledger a data set, over all runs and coordinators, and it is paid before
anything leaves; a ledger that is lost is not an empty one.
"""

import contextlib
import fcntl
import hashlib
import hmac
import math
import os
from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, ClassVar, Literal

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms
from numpy.typing import NDArray
from pydantic import Field, ValidationError
from scipy.special import ndtri

from clinical_ser.atomic_folder import sync_folder, write_new_file
from clinical_ser.errors import FederationError, InvalidValueError, SiteRefusalError
from clinical_ser.models.strict_json import StrictJsonError, canonical_json, parse_canonical_object
from clinical_ser.strict import Strict
from federated.statistics import Arrays, Ask, SiteRows, Statistic, known_statistics

Array = NDArray[np.float64]
GRID_BITS = 20
"""Values are rounded to multiples of 2**-20 before noise is added, so that no low bit of a value survives beside the noise (`with_noise`)."""
MOST_PRECISION = 400.0
"""Sum of inverse squared noise multipliers beyond which epsilon is not computed: it is above 200 there."""
LEAST_SAMPLED_NOISE = 0.3
"""Noise multiplier of sampled releases below which epsilon is not computed."""
BUDGET_SPENT = "privacy_budget_spent"
"""What a coordinator hears when a site's ledger allows no more."""
_MODE = 0o600
_FIRST = "0" * 64


class Part(Strict):
    """Gaussian releases of one kind.

    Attributes
    ----------
    noise_multiplier
        SD of the noise over the L2 sensitivity to one subject.
    count
        Number of releases.
    sampling_probability
        Below 1: each release hears every subject with this probability, independently (Poisson sampling).
    """

    noise_multiplier: Annotated[float, Field(gt=0, le=1e6)]
    count: Annotated[int, Field(ge=1, le=10**6)] = 1
    sampling_probability: Annotated[float, Field(gt=0, le=1)] = 1.0


class Charge(Strict):
    """What releases cost, whatever the data: parts compose."""

    parts: Annotated[tuple[Part, ...], Field(min_length=1, max_length=100)]

    def __add__(self, other: "Charge") -> "Charge":
        return Charge(parts=self.parts + other.parts)


class PrivateStatistic(Statistic):
    """A statistic with noise, so that what leaves says little about any one subject; `charge` follows from the ask alone."""

    private: ClassVar[bool] = True

    @abstractmethod
    def charge(self, ask: Ask) -> Charge:
        """Return what one answer costs; InvalidValueError where the ask is not one."""


def charge_of(asks: Sequence[Ask]) -> Charge | None:
    """Return what answering all asks of an exchange costs; None where none of them is private."""
    known = known_statistics()
    charges = [statistic.charge(ask) for ask in asks if isinstance(statistic := known.get(ask.statistic), PrivateStatistic)]
    return Charge(parts=tuple(part for charge in charges for part in charge.parts)) if charges else None


def epsilon(charges: Sequence[Charge], delta: float) -> float:
    """Return the epsilon at `delta` of all charges together, for adding or removing one subject.

    Privacy loss distributions of dp-accounting (Doroshenko et al. 2022, "Connect the Dots"), which bound from above. Gaussian releases without
    sampling are merged beforehand: their composition is one Gaussian with the sum of the inverse squares (Dong, Roth and Su 2022, corollary 3.3).

    Parameters
    ----------
    charges
        In any order.
    delta
        Between 0 and 1; below one over the number of subjects to mean anything.

    Returns
    -------
    float
        Infinity where the noise is too little to mean anything; the accountant's tables would fill the memory there.
    """
    if not 0 < delta < 1:
        raise InvalidValueError("delta", delta, "a number between 0 and 1")
    parts = [part for charge in charges for part in charge.parts]
    if not parts:
        return 0.0
    if math.fsum(part.count * (part.sampling_probability / part.noise_multiplier) ** 2 for part in parts) > MOST_PRECISION:
        return math.inf
    if any(part.noise_multiplier < LEAST_SAMPLED_NOISE for part in parts if part.sampling_probability < 1):
        return math.inf
    from dp_accounting import GaussianDpEvent, PoissonSampledDpEvent, pld

    accountant = pld.PLDAccountant()
    if precision := math.fsum(part.count / part.noise_multiplier**2 for part in parts if part.sampling_probability == 1):
        accountant.compose(GaussianDpEvent(precision**-0.5))
    sampled: dict[tuple[float, float], int] = {}
    for part in parts:
        if part.sampling_probability < 1:
            key = (part.sampling_probability, part.noise_multiplier)
            sampled[key] = sampled.get(key, 0) + part.count
    for (probability, noise), count in sorted(sampled.items()):
        accountant.compose(PoissonSampledDpEvent(probability, GaussianDpEvent(noise)), count)
    return float(accountant.get_epsilon(delta))


def noise_for(wanted: float, delta: float, plan: Callable[[float], Charge]) -> float:
    """Return the smallest noise multiplier, to one in a thousand and never below, with which `plan` costs at most `wanted` epsilon.

    Parameters
    ----------
    wanted
        Epsilon, above 0.
    delta
        As in `epsilon`.
    plan
        What a run costs with a noise multiplier.
    """
    low, high = 1e-2, 1e5
    if not wanted > 0 or epsilon([plan(high)], delta) > wanted:
        raise InvalidValueError("epsilon", wanted, "one that some noise can reach")
    while high / low > 1.001:
        middle = math.sqrt(low * high)
        low, high = (middle, high) if epsilon([plan(middle)], delta) > wanted else (low, middle)
    return high


class Noise:
    """Keys of the draws behind one answer: nobody else can compute them, and the same question about the same rows has the same again.

    A site that died after it paid computes its answer once more. With fresh noise the two could be averaged, at one price; and a table that changed
    must not meet the noise of before, or the difference of two answers is the change. So keys follow from the site's secret, the ask and the rows.

    Parameters
    ----------
    rows
        With the site's secret; an empty one (tables in memory) means fresh noise.
    ask
        What is answered.
    beside
        What the answer depends on beside these: layers that the site keeps.
    """

    def __init__(self, rows: SiteRows, ask: Ask, beside: Arrays | None = None):
        self._root, self._drawn = os.urandom(32), 0
        if rows.secret:
            told = hmac.new(rows.secret, b"noise\n", hashlib.sha256)
            told.update(canonical_json([ask.statistic, dict(ask.options)]))
            arrays = [(name, np.asarray(ask.arrays[name])) for name in sorted(ask.arrays)]
            arrays += [(f"beside {name}", np.asarray(value)) for name, value in sorted((beside or {}).items())]
            for name, array in [*arrays, ("rows", rows.X), ("target", rows.target), ("fold", rows.fold)]:
                told.update(canonical_json([name, array.dtype.str, list(array.shape)]) + array.tobytes())
            told.update(canonical_json(rows.subjects.tolist()))
            self._root = told.digest()

    def key(self) -> bytes:
        """Return the key of the next draw, 32 bytes; no two are the same."""
        self._drawn += 1
        return hmac.new(self._root, self._drawn.to_bytes(8, "big"), hashlib.sha256).digest()


def gaussian(shape: tuple[int, ...], key: bytes | None = None) -> Array:
    """Return standard normal draws from a ChaCha20 keystream, shape `shape`.

    numpy's generators are fast, not secret: whoever learns some of their output can compute the rest. Here every draw is a quantile of 53 bits of
    a cipher's output under a key that is used once.

    Parameters
    ----------
    shape
        Of the answer.
    key
        32 bytes, used once (`Noise.key`); None: of the system.
    """
    size = math.prod(shape)
    return np.asarray(ndtri(_uniform(size, key)), dtype=np.float64).reshape(shape)


def uniform(size: int, key: bytes | None = None) -> Array:
    """Return draws between 0 and 1 from the same kind of source, shape (size,); for Poisson sampling."""
    return _uniform(size, key)


def _uniform(size: int, key: bytes | None) -> Array:
    cipher = Cipher(algorithms.ChaCha20(os.urandom(32) if key is None else key, bytes(16)), mode=None).encryptor()
    words = np.frombuffer(cipher.update(bytes(8 * size)), dtype="<u8")
    return ((words >> np.uint64(11)).astype(np.float64) + 0.5) * 2.0**-53


def with_noise(value: Array, deviation: float, key: bytes | None = None) -> Array:
    """Return a value on the grid of 2**-20, with Gaussian noise on the same grid.

    The low bits of a float sum tell which floats were added (Mironov 2012; for Gaussians Jin et al. 2022). The value is rounded before it meets
    the noise, and the noise is rounded too, so their sum is what rounding the exact Gaussian mechanism would give: post-processing.

    Parameters
    ----------
    value
        Any shape; what is released.
    deviation
        SD of the noise, in the value's unit; from `sensitivity` times the noise multiplier.
    key
        As in `gaussian`.
    """
    if not 2.0**-GRID_BITS * 16 <= deviation < math.inf:
        raise InvalidValueError("deviation", deviation, f"noise of at least 16 steps of 2**-{GRID_BITS}")
    steps = np.rint(np.ldexp(value, GRID_BITS)) + np.rint(np.ldexp(gaussian(value.shape, key) * deviation, GRID_BITS))
    return np.asarray(np.ldexp(steps, -GRID_BITS))


def sensitivity(exact: float, entries: int) -> float:
    """Return the L2 sensitivity after rounding to the grid: each of `entries` numbers moves by up to one step more."""
    return exact + math.sqrt(entries) * 2.0**-GRID_BITS


def noisy(values: Arrays, exact: float, noise_multiplier: float, key: bytes | None = None) -> Arrays:
    """Return arrays that are released together, with noise for their common L2 sensitivity `exact`."""
    names = sorted(values)
    flat = np.concatenate([values[name].ravel() for name in names])
    released = with_noise(flat, noise_multiplier * sensitivity(exact, len(flat)), key)
    ends = np.cumsum([values[name].size for name in names])
    return {name: part.reshape(values[name].shape) for name, part in zip(names, np.split(released, ends[:-1]), strict=True)}


class Entry(Strict):
    """One line of a ledger."""

    format: Literal[1] = 1
    number: Annotated[int, Field(ge=0)]
    time: Annotated[str, Field(max_length=40)]
    site: Annotated[str, Field(min_length=1, max_length=100)]
    dataset: Annotated[str, Field(min_length=1, max_length=200)]
    run: Annotated[str, Field(max_length=200)]
    step: Annotated[str, Field(max_length=200)]
    request: Annotated[str, Field(max_length=200)] = ""
    charge: Charge | None
    """None in the first line, which opens the account."""
    previous: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]

    def line(self) -> bytes:
        """Return the entry as it stands in the file."""
        return canonical_json(self.model_dump(mode="json"))


class Ledger:
    """What was spent of one data set's privacy; lines that name each other's digests, and a second file that knows the last one.

    The site trusts its own disk: the chain finds accidents, a half-restored backup, an edited line. Whoever may write both files may forge them;
    the digests that `spend` returns belong in the audit log, which has witnesses.

    Parameters
    ----------
    path
        The ledger's file; beside it lies `<name>.head`.

    Raises
    ------
    FederationError
        No ledger is there, or it is not whole: a ledger that is lost is not an empty one.
    """

    def __init__(self, path: Path):
        self._path = path
        with self._held():
            first = self._entries()[0]
        self.site, self.dataset = first.site, first.dataset

    @classmethod
    def create(cls, path: Path, *, site: str, dataset: str) -> "Ledger":
        """Open an account; FederationError where there is, or was, one."""
        if os.path.lexists(path) or os.path.lexists(_head_of(path)):
            raise FederationError(f"There is a privacy ledger at this place already ({path.name}); what was spent stays spent.")
        first = Entry(number=0, time=_now(), site=site, dataset=dataset, run="", step="", charge=None, previous=_FIRST)
        line = first.line()
        write_new_file(path, line, mode=_MODE)
        write_new_file(_head_of(path), _head(0, line), mode=_MODE)
        return cls(path)

    def spend(self, charge: Charge, *, run: str, step: str, limit: float, delta: float, request: str = "") -> str:
        """Pay for an answer before it is computed, and see it on the disk.

        Parameters
        ----------
        charge
            What the answer costs.
        run, step
            What it is for. The same step is paid for once: a request that comes again costs nothing, if the answer that is kept is given again.
        request
            Digest of what is asked and of the rows: one payment is for one answer, even where the site forgot that it gave it.
        limit, delta
            Epsilon that this data set may cost in all, at `delta`.

        Returns
        -------
        str
            SHA-256 of the ledger's line, for the audit log.

        Raises
        ------
        SiteRefusalError
            `privacy_budget_spent`: with this charge the limit would be passed. Nothing was written.
        FederationError
            The step was paid for already, for another request; or the ledger is not whole.
        """
        with self._held():
            entries = self._entries()
            for entry in entries:
                if (entry.run, entry.step) == (run, step) and entry.charge is not None:
                    if (entry.charge, entry.request) != (charge, request):
                        raise FederationError("This step of the run was paid for already, for another request.")
                    return _digest(entry.line())
            if not epsilon([*_charges(entries), charge], delta) <= limit:
                raise SiteRefusalError(self.site, BUDGET_SPENT)
            last = entries[-1]
            new = Entry(
                number=last.number + 1,
                time=_now(),
                site=self.site,
                dataset=self.dataset,
                run=run,
                step=step,
                request=request,
                charge=charge,
                previous=_digest(last.line()),
            )
            self._append(new)
        return _digest(new.line())

    def spent(self, delta: float) -> float:
        """Return the epsilon of all that was paid for, at `delta`."""
        with self._held():
            return epsilon(_charges(self._entries()), delta)

    def remaining(self, limit: float, delta: float) -> float:
        """Return what is left of `limit`, never below 0; epsilons do not add up, so this is no promise for a charge: `spend` decides."""
        return max(limit - self.spent(delta), 0.0)

    def holds(self, digest: str) -> bool:
        """Tell whether a line of this digest is here: what the audit log knows of must be, or an old ledger was put back."""
        return digest in {_digest(entry.line()) for entry in self.entries()}

    def entries(self) -> tuple[Entry, ...]:
        """Return all lines, the opening one first."""
        with self._held():
            return tuple(self._entries())

    @contextlib.contextmanager
    def _held(self) -> Iterator[None]:
        """Keep other processes out, by a lock on the ledger, which is appended to and never replaced."""
        try:
            descriptor = os.open(self._path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
        except OSError:
            raise FederationError(
                f"The privacy ledger {self._path.name} cannot be opened. It says what was spent already: restore it, it is not an empty one."
            ) from None
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)

    def _entries(self) -> list[Entry]:
        broken = FederationError(f"The privacy ledger {self._path.name} is not whole: a line is missing or was changed. Restore it.")
        try:
            lines = self._path.read_bytes().splitlines(keepends=True)
            head = _head_of(self._path).read_bytes()
            if lines and not lines[-1].endswith(b"\n"):
                lines = self._without_torn_line(lines, head)
            entries = [Entry.model_validate(parse_canonical_object(line)) for line in lines]
        except (OSError, StrictJsonError, ValidationError):
            raise broken from None
        for number, (entry, before) in enumerate(zip(entries, [_FIRST, *map(_digest, lines)], strict=False)):
            opening = number == 0
            if entry.number != number or entry.previous != before or (entry.charge is None) != opening:
                raise broken
        if not entries or len({(entry.site, entry.dataset) for entry in entries}) > 1:
            raise broken
        if head != _head(len(lines) - 1, lines[-1]):
            # Power failed between a line and its head: the line counts, nothing is lost.
            if len(lines) < 2 or head != _head(len(lines) - 2, lines[-2]):
                raise broken
            self._write_head(len(lines) - 1, lines[-1])
        return entries

    def _without_torn_line(self, lines: list[bytes], head: bytes) -> list[bytes]:
        """Cut off a line whose writing was interrupted: its answer was never computed. Only where the head knows the line before as the last."""
        whole = lines[:-1]
        if whole and head == _head(len(whole) - 1, whole[-1]):
            with self._path.open("rb+") as file:
                file.truncate(sum(map(len, whole)))
                file.flush()
                os.fsync(file.fileno())
            return whole
        return lines

    def _append(self, entry: Entry) -> None:
        line = entry.line()
        with self._path.open("ab") as file:
            file.write(line)
            file.flush()
            os.fsync(file.fileno())
        sync_folder(self._path.parent)
        self._write_head(entry.number, line)

    def _write_head(self, number: int, line: bytes) -> None:
        head = _head_of(self._path)
        draft = head.with_name(f"{head.name}.new")
        draft.unlink(missing_ok=True)
        write_new_file(draft, _head(number, line), mode=_MODE)
        draft.replace(head)
        sync_folder(head.parent)


def _charges(entries: Sequence[Entry]) -> list[Charge]:
    return [entry.charge for entry in entries if entry.charge is not None]


def _head_of(path: Path) -> Path:
    return path.with_name(f"{path.name}.head")


def _head(number: int, line: bytes) -> bytes:
    return canonical_json({"last": number, "sha256": _digest(line)})


def _digest(line: bytes) -> str:
    return hashlib.sha256(line).hexdigest()


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
