"""Numbers as whole numbers modulo 2⁶⁴, in which adding and subtracting masks is exact.

The one idea: a total is right if it fits, and whether it fits follows from what each statistic may contribute. Narrow: 2⁻³² and totals below 2³¹.
Wide, for sums in units that differ by orders of magnitude: two words a number, coarse 2⁻¹⁰ and fine 2⁻⁵⁰.
"""

import numpy as np
from numpy.typing import NDArray

from clinical_ser.errors import FederationError

Words = NDArray[np.uint64]
NARROW_BITS = 32
COARSE_BITS = 10
FINE_BITS = 40
"""Below the coarse ones: a number is coarse · 2⁻¹⁰ + fine · 2⁻⁵⁰, fine at most 2³⁹ in size."""
NARROW_TOTAL = 2.0**31
WIDE_TOTAL = 2.0**52
MOST_SITES = 1000
"""Fine words of so many sites add up to less than 2⁶³."""


def is_wide(bound: float, sites: int) -> bool:
    """Tell whether a statistic whose sites contribute at most `bound` each needs two words a number.

    Raises
    ------
    FederationError
        Not even two words hold the total.
    """
    if not 0 < bound * sites < WIDE_TOTAL or sites > MOST_SITES:
        raise FederationError("So many sites may contribute so much that the total would not fit.")
    return bound * sites >= NARROW_TOTAL


def encode(values: NDArray[np.float64], *, wide: bool) -> Words:
    """Return words of shape (n,), or (2n,) if wide: coarse ones first; `values` has shape (n,), finite and in range."""
    if not wide:
        return _as_words(np.rint(values * 2.0**NARROW_BITS))
    coarse = np.rint(values * 2.0**COARSE_BITS)
    # Exact: the difference of a float and one of its multiples of 2**-10 nearby is a float.
    fine = np.rint((values - coarse / 2.0**COARSE_BITS) * 2.0 ** (COARSE_BITS + FINE_BITS))
    return np.concatenate([_as_words(coarse), _as_words(fine)])


def decode(words: Words, *, wide: bool) -> NDArray[np.float64]:
    """Inverse of `encode`, of a total."""
    signed = words.view(np.int64).astype(np.float64)
    if not wide:
        return signed / 2.0**NARROW_BITS
    coarse, fine = np.split(signed, 2)
    return coarse / 2.0**COARSE_BITS + fine / 2.0 ** (COARSE_BITS + FINE_BITS)


def _as_words(whole: NDArray[np.float64]) -> Words:
    return whole.astype(np.int64).view(np.uint64)
