"""How numbers are written for a reader of one result: two significant digits for what is judged by, three for what is measured.

The one idea: a number that is written more exactly than it is known says something false.
"""

import math
from collections.abc import Callable

from clinical_ser.explain.explanation import Estimate
from reports.wording import plain

_MINUS = "\u2212"
_LEAST, _LEAST_POINTS = 0.1, 0.01
"""Percent, and points of percent, below which a number is not written out."""
UNITS = {"1": "", "us": "µs"}
"""Units as they are written beside a value; the others as they are."""


def percent(share: float) -> str:
    """Write a probability in percent, with at most two significant digits, and no false certainty.

    Examples
    --------
    >>> [percent(p) for p in (0.234, 0.0432, 0.9967, 0.0002, 1.0)]
    ['23 %', '4.3 %', '> 99 %', '< 0.1 %', '100 %']
    """
    value = 100 * share
    if 0 < value < _LEAST:
        return f"< {_LEAST} %"
    return "> 99 %" if 99 < value < 100 else f"{_two_digits(value)} %"


def points(effect: float) -> str:
    """Write a change of a probability in points of percent, with its sign and at most two significant digits.

    Examples
    --------
    >>> [points(e) for e in (0.0312, -0.127, 0.0004, 0.00002, 0.0)]
    ['+3.1', '−13', '+0.04', '< +0.01', '0']
    """
    value = 100 * effect
    if not value:
        return "0"
    sign = "+" if value > 0 else _MINUS
    if abs(value) < _LEAST_POINTS:
        return f"{'<' if value > 0 else '>'} {sign}{_LEAST_POINTS}"
    return f"{sign}{abs(value):.2f}" if abs(value) < _LEAST else f"{sign}{_two_digits(abs(value))}"


def points_range(low: float, high: float) -> str:
    """Write an interval of changes: `−0.4 to +6.6`."""
    return f"{points(low)} to {points(high)}"


def signed(value: float) -> str:
    """Write a log-odds with its sign and two decimals, which is as much as is worth reading."""
    rounded = round(value, 2)
    return f"{'+' if rounded > 0 else _MINUS if rounded < 0 else ''}{abs(rounded):.2f}"


def bracketed(estimate: Estimate, write: Callable[[float], str]) -> str:
    """Write an estimate with its interval in the least room."""
    return f"{write(estimate.value)} [{write(estimate.low)}, {write(estimate.high)}]"


def measured(value: float, unit: str = "1") -> str:
    """Write a feature's value with three significant digits and its unit.

    Examples
    --------
    >>> [measured(112.38, "Hz"), measured(-0.31234), measured(0.000412, "s")]
    ['112 Hz', '−0.312', '0.000412 s']
    """
    rounded = float(f"{value:.3g}")
    decimals = max(0, 2 - math.floor(math.log10(abs(rounded)))) if rounded else 0
    text = f"{abs(rounded):,.{decimals}f}"
    return f"{_MINUS if rounded < 0 else ''}{text} {UNITS.get(unit, plain(unit))}".rstrip()


def percentile(value: float | None) -> str:
    """Write where a value stands in the reference group, in percent; beyond 5 and 95 it is not known how far."""
    if value is None:
        return "not known"
    return "≤ 5" if value <= 5 else "≥ 95" if value >= 95 else f"{value:.0f}"


def clock(seconds: float, decimals: int = 0) -> str:
    """Write a time within a recording: `1:05`.

    Examples
    --------
    >>> clock(65), clock(2.5, 1), clock(119.99, 1)
    ('1:05', '0:02.5', '2:00.0')
    """
    minutes, rest = divmod(round(seconds, decimals), 60)
    return f"{minutes:.0f}:{rest:0{3 + decimals if decimals else 2}.{decimals}f}"


def _two_digits(value: float) -> str:
    return f"{value:.0f}" if value >= 9.95 or not value else f"{value:.1f}"


def brief(value: float) -> str:
    """Write a measured value with two significant digits.

    Examples
    --------
    >>> [brief(v) for v in (212.4, 3.912, 0.0312, -1.27, 41.0, 0.0)]
    ['210', '3.9', '0.031', '−1.3', '41', '0']
    """
    rounded = float(f"{value:.2g}")
    size = abs(rounded)
    decimals = 0 if not size else max(0, 1 - math.floor(math.log10(size)))
    return f"{_MINUS if rounded < 0 else ''}{size:.{decimals}f}"


def one_place(value: float) -> str:
    """Write an index with its sign: one decimal, none from 10 on.

    Examples
    --------
    >>> [one_place(v) for v in (1.96, -0.02, 12.4, -3.25)]
    ['+2.0', '0.0', '+12', '−3.2']
    """
    rounded = round(value, 1) + 0.0
    text = f"{abs(rounded):.0f}" if abs(rounded) >= 10 else f"{abs(rounded):.1f}"
    return f"{'+' if rounded > 0 else _MINUS if rounded < 0 else ''}{text}"
