"""How numbers and names are written in a report: three significant digits at most, an interval beside a value, and names that cannot act.

The one idea: text that came from a cohort is made plain once, here, before it enters any document; escaping is then the template's work.
"""

import re
import unicodedata
from collections.abc import Sequence

from clinical_ser.evaluation.evidence import Evidence
from clinical_ser.evaluation.figure import Figure
from clinical_ser.evaluation.naming import describe
from clinical_ser.evaluation.subgroups import DEFAULT_COLUMNS

NOT_DEFINED = "not defined"
NO_INTERVAL = "no interval"
_DECIMALS = 3
_FIGURE_SPACE, _POINT_SPACE = "\u2007", "\u2008"
"""As wide as a digit, and as a point: they line numbers up without a second column."""
_MINUS = "\u2212"
_ISOLATE, _END_ISOLATE = "\u2068", "\u2069"
_UNBROKEN = "\u00a0"
_NUMBER = re.compile(r"[0-9](?:\.([0-9]+))?$")


def plain(text: object) -> str:
    r"""Return text as one line that prints: what does not print (controls, half characters, marks that turn the direction) is written out.

    Examples
    --------
    >>> plain("a\n b\x00")
    'a b\\x00'
    """
    line = " ".join(str(text).split())
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in line)


def name(text: object) -> str:
    """Return a name for use within a sentence: plain, and set apart if it runs from right to left, so that it does not move the numbers beside it."""
    shown = plain(text)
    runs_left = any(unicodedata.bidirectional(c) in {"R", "AL"} for c in shown)
    return f"{_ISOLATE}{shown}{_END_ISOLATE}" if runs_left else shown


def column(text: str) -> str:
    """Return what a column that forms groups is called: ours in words, a cohort's own as it is.

    Examples
    --------
    >>> column("age_band"), column("clinic_type")
    ('Age band', 'clinic_type')
    """
    return spaced(text) if text in DEFAULT_COLUMNS else name(text)


def spaced(identifier: str) -> str:
    """Return an identifier as words, with a capital in front."""
    words = plain(identifier).replace("_", " ")
    return f"{words[:1].upper()}{words[1:]}"


def number(value: float | None) -> str:
    """Write a measured number: at most three significant digits and three decimals, and no false certainty at 0 and 1.

    Examples
    --------
    >>> [number(v) for v in (0.81249, 1.0346, 0.9997, 1.0, 0.0002, -0.0213, 1234.5)]
    ['0.812', '1.03', '> 0.999', '1', '< 0.001', '−0.021', '1,230']
    """
    if value is None:
        return NOT_DEFINED
    value = round(value, 9)  # What arithmetic leaves beside 0 and 1 is no certainty withheld.
    size, least = abs(value), 10.0**-_DECIMALS
    if 0 < size < least / 2:
        return f"< {least}" if value > 0 else f"> {_MINUS}{least}"
    if 1 - least / 2 <= size < 1:
        return f"> {1 - least:.3f}" if value > 0 else f"< {_MINUS}{1 - least:.3f}"
    sign = _MINUS if value < 0 else ""
    if size in {0.0, 1.0}:
        return f"{sign}{size:.0f}"
    rounded = float(f"{size:.{_DECIMALS}g}")
    decimals = max(0, min(_DECIMALS, _DECIMALS - len(str(int(rounded))) + (rounded < 1)))
    return f"{sign}{rounded:,.{decimals}f}"


def share(value: float) -> str:
    """Write a share between 0 and 1 in two decimals, for thresholds and prevalences, which are chosen and not measured."""
    return f"{value:.2f}" if round(value, 2) == round(value, 4) else number(value)


def count(n: int) -> str:
    """Write a number of people or recordings."""
    return f"{n:,}"


def several(n: int, what: str) -> str:
    """Write a number of things: `1 subject`, `2 subjects`."""
    return f"{n:,} {what}" if n == 1 else f"{n:,} {what}s"


def level(evidence: Evidence) -> str:
    """Write how much of the time an interval should cover: `95 %`."""
    return f"{100 * evidence.level:g} %"


def bounds(figure: Figure) -> str:
    """Write an interval: `0.756 to 0.863`."""
    return NO_INTERVAL if figure.low is None or figure.high is None else f"{number(figure.low)} to {number(figure.high)}"


def bracketed(value: float | None, low: float | None, high: float | None) -> str:
    """Write a value with its interval in the least room: `0.812 [0.756, 0.863]`."""
    if value is None:
        return NOT_DEFINED
    return f"{number(value)} [{NO_INTERVAL}]" if low is None or high is None else f"{number(value)} [{number(low)}, {number(high)}]"


def said(figure: Figure, of_level: str) -> str:
    """Write a figure for a sentence, with its interval and whom it is about."""
    people = several(figure.subjects, "subject")
    if figure.value is None:
        return f"{NOT_DEFINED} ({people})"
    interval = NO_INTERVAL if figure.low is None or figure.high is None else f"{of_level} interval {bounds(figure)}"
    return f"{number(figure.value)} ({interval}; {people})"


def title_of(figure: str) -> str:
    """Return what a figure is called, with the cohort's own words in it made plain."""
    return plain(describe(figure).title)


def meaning_of(figure: str) -> str:
    """Return what a figure means; words that programs write are set in quotes."""
    return re.sub(r"`([^`]*)`", r"“\1”", plain(describe(figure).meaning))


def lined_up(cells: Sequence[str]) -> tuple[str, ...]:
    r"""Pad the numbers of a column so that, set to the right, their decimal points stand below each other; words stay as they are.

    Of an interval, the upper bound counts.

    Examples
    --------
    >>> [cell.replace("\u2007", "_") for cell in lined_up(["0.812", "0.1 to 1.25", "not defined"])]
    ['0.812', '0.1 to 1.25_', 'not defined']
    """
    ends = [_NUMBER.search(cell) for cell in cells]
    longest = max((len(end[1] or "") for end in ends if end), default=0)
    return tuple(cell + _filling(longest, len(end[1] or "")) if end else cell for cell, end in zip(cells, ends, strict=True))


def unbroken(cell: str) -> str:
    r"""Let a figure, its interval and its n each stay on one line, and break only between them.

    Examples
    --------
    >>> unbroken("0.812 [0.756, 0.863] n = 109").replace("\u00a0", "_")
    '0.812 [0.756,_0.863] n_=_109'
    """
    return re.sub(r" (?!\[|n = )", _UNBROKEN, cell)


def _filling(longest: int, decimals: int) -> str:
    """Return what takes the room of the decimals, and of the point, that a number lacks."""
    return (_POINT_SPACE if longest and not decimals else "") + _FIGURE_SPACE * (longest - decimals)
