"""A small drawing layer that writes SVG: shapes on a page, and a plot with two scales.

The one idea: the same numbers give the same bytes (fixed formatting, no generated identifiers), and nothing rests on colour alone: lines differ in
dash, points in shape, and each carries its name.
"""

import itertools
import math
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal
from xml.sax.saxutils import escape, quoteattr

from reports.wording import plain

INK = "#1c2733"
QUIET = "#5b6875"
"""Contrast 5.7 to 1 on white: WCAG 2.2 asks for 4.5 (1.4.3)."""
FAINT = "#d5dbe1"
PAPER = "#ffffff"
ACCENT = "#0b5c8c"
"""Contrast 7.1 to 1 on white."""
WASH = "#dbe7ef"
"""The accent, thinned, under bands and bars."""
TEXT_SIZE = 13
SMALL = 12
DASHED, DOTTED, DASH_DOT = "7 4", "2 3", "9 3 2 3"

Anchor = Literal["start", "middle", "end"]
Mark = Literal["circle", "diamond", "square", "triangle"]
_WIDE, _NARROW, _MIDDLE = 1.05, 0.38, 0.61
BOLD = 1.14
"""Advance widths in em, on the generous side for the usual sans-serif fonts; text that must fit is measured with them."""


@dataclass(frozen=True)
class Scale:
    """A linear map from data to pixels."""

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        """Return the pixel of a value."""
        return self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start)

    def holds(self, value: float) -> bool:
        """Return whether a value lies on the scale."""
        return self.low <= value <= self.high

    def clipped(self, value: float) -> float:
        """Return the pixel of a value, or of the end of the scale that it lies beyond."""
        return self(min(max(value, self.low), self.high))


@dataclass(frozen=True)
class Look:
    """How a line is drawn and what it is called in the key."""

    label: str
    stroke: str = INK
    width: float = 1.5
    dash: str = ""
    mark: Mark | None = None
    band: str | None = None


def text_width(text: str, size: float = TEXT_SIZE, *, bold: bool = False) -> float:
    """Return how many pixels text takes at most, roughly: fonts differ, and none is embedded."""
    return size * (BOLD if bold else 1.0) * sum(_advance(c) for c in text)


def _advance(character: str) -> float:
    if unicodedata.combining(character):
        return 0.0
    if unicodedata.east_asian_width(character) in "WF":
        return _WIDE
    if character in "MWmw@%":
        return 0.9
    return _NARROW if character in " .,:;!|'()[]ilIjtfr" else _MIDDLE + 0.12 * character.isupper()


def shortened(text: str, room: float, size: float = TEXT_SIZE, *, bold: bool = False) -> str:
    """Return text that fits into `room` pixels, cut with an ellipsis where it has to be; the whole of it stands in the figure's table."""
    if text_width(text, size, bold=bold) <= room:
        return text
    kept = text
    while kept and text_width(kept + "…", size, bold=bold) > room:
        kept = kept[:-1]
    return kept.rstrip() + "…"


class Drawing:
    """Shapes on a page of `width` by `height` pixels."""

    def __init__(self, width: float, height: float):
        self.width, self.height = width, height
        self._shapes: list[str] = []

    def line(self, x1: float, y1: float, x2: float, y2: float, *, stroke: str = INK, width: float = 1, dash: str = "") -> None:
        """Draw a straight line."""
        self._add("line", x1=x1, y1=y1, x2=x2, y2=y2, stroke=stroke, stroke_width=width, stroke_dasharray=dash)

    def path(self, points: Sequence[tuple[float, float]], *, stroke: str = INK, width: float = 1.5, dash: str = "") -> None:
        """Draw a line through points."""
        at = " ".join(f"{_digits(x)},{_digits(y)}" for x, y in points)
        self._add("polyline", points=at, fill="none", stroke=stroke, stroke_width=width, stroke_dasharray=dash, stroke_linejoin="round")

    def area(self, points: Sequence[tuple[float, float]], *, fill: str) -> None:
        """Fill the shape between points."""
        self._add("polygon", points=" ".join(f"{_digits(x)},{_digits(y)}" for x, y in points), fill=fill)

    def box(
        self, x: float, y: float, width: float, height: float, *, fill: str = "none", stroke: str = "", radius: float = 0, thick: float = 1
    ) -> None:
        """Draw a rectangle from its upper left corner."""
        self._add("rect", x=x, y=y, width=width, height=height, rx=radius, fill=fill, stroke=stroke, stroke_width=thick if stroke else "")

    def hatched(self, x: float, y: float, width: float, height: float, *, stroke: str = QUIET, step: float = 5) -> None:
        """Draw a rectangle that is outlined and crossed by slanting lines."""
        self.box(x, y, width, height, fill=PAPER, stroke=stroke)
        for i in range(1, math.ceil((width + height) / step)):
            along = i * step
            left, right = max(0.0, along - height), min(width, along)
            self.line(x + left, y + along - left, x + right, y + along - right, stroke=stroke)

    def place(self, other: "Drawing", x: float, y: float) -> None:
        """Put the shapes of another drawing here, its upper left corner at a point."""
        self._shapes += [f'<g transform="translate({_digits(x)} {_digits(y)})">', *other._shapes, "</g>"]

    def mark(self, kind: Mark, x: float, y: float, *, fill: str = INK, size: float = 5, stroke: str = PAPER) -> None:
        """Draw a point; kinds differ in shape."""
        if kind == "circle":
            self._add("circle", cx=x, cy=y, r=size, fill=fill, stroke=stroke, stroke_width=1)
            return
        corners = {
            "diamond": [(0, -1.25), (1.25, 0), (0, 1.25), (-1.25, 0)],
            "square": [(-0.9, -0.9), (0.9, -0.9), (0.9, 0.9), (-0.9, 0.9)],
            "triangle": [(0, -1.1), (1.1, 0.9), (-1.1, 0.9)],
        }[kind]
        at = " ".join(f"{_digits(x + size * dx)},{_digits(y + size * dy)}" for dx, dy in corners)
        self._add("polygon", points=at, fill=fill, stroke=stroke, stroke_width=1)

    def text(
        self,
        x: float,
        y: float,
        text: str,
        *,
        anchor: Anchor = "start",
        size: float = TEXT_SIZE,
        fill: str = INK,
        bold: bool = False,
        turned: bool = False,
    ) -> None:
        """Write text with its baseline at y; `turned` runs it upwards."""
        if not text:
            return
        turn = f"rotate(-90 {_digits(x)} {_digits(y)})" if turned else ""
        attributes = _attributes(x=x, y=y, text_anchor=anchor, font_size=size, fill=fill, font_weight="bold" if bold else "", transform=turn)
        self._shapes.append(f"<text{attributes}>{escape(plain(text))}</text>")

    def arrow(self, x1: float, y1: float, x2: float, y2: float) -> None:
        """Draw a line that ends in a small head; it runs straight down or to the right."""
        self.line(x1, y1, x2, y2, stroke=QUIET, width=1.25)
        head = [(x2 - 4, y2 - 7), (x2 + 4, y2 - 7), (x2, y2)] if x1 == x2 else [(x2 - 7, y2 - 4), (x2 - 7, y2 + 4), (x2, y2)]
        self.area(head, fill=QUIET)

    def svg(self, name: str, title: str, finding: str, font: str) -> str:
        """Return the SVG text; `name` makes the identifiers of its title and description."""
        w, h = _digits(self.width), _digits(self.height)
        opening = (
            f'<svg xmlns="http://www.w3.org/2000/svg" role="img" aria-labelledby="{name}-title {name}-finding" '
            f'width="{w}" height="{h}" viewBox="0 0 {w} {h}" font-family={quoteattr(font)}>'
        )
        words = f'<title id="{name}-title">{escape(title)}</title><desc id="{name}-finding">{escape(finding)}</desc>'
        return "\n".join([opening, words, *self._shapes, "</svg>"])

    def _add(self, tag: str, **attributes: object) -> None:
        self._shapes.append(f"<{tag}{_attributes(**attributes)}/>")


class Plot(Drawing):
    """A page with one pair of axes.

    Parameters
    ----------
    x, y
        (lowest, highest) value of each axis.
    width, height
        Of the whole page, in pixels.
    left, right, top, bottom
        Room around the axes.
    """

    def __init__(
        self,
        x: tuple[float, float],
        y: tuple[float, float],
        *,
        width: float = 480,
        height: float = 480,
        left: float = 64,
        right: float = 20,
        top: float = 20,
        bottom: float = 56,
    ):
        super().__init__(width, height)
        self.x = Scale(*x, left, width - right)
        self.y = Scale(*y, height - bottom, top)

    def axes(self, x_label: str, y_label: str, x_ticks: Sequence[float], y_ticks: Sequence[float], *, strip: float = 0) -> None:
        """Draw ticks, faint lines across, and the names of the axes; `strip` pixels are left free between the plot and the ticks of x."""
        left, right, bottom, top = self.x.start, self.x.end, self.y.start, self.y.end
        for value in y_ticks:
            self.line(left, self.y(value), right, self.y(value), stroke=FAINT)
            self.text(left - 8, self.y(value) + 4, tick(value, y_ticks), anchor="end", size=SMALL, fill=QUIET)
        for value in x_ticks:
            at = self.x(value)
            self.line(at, bottom + strip, at, bottom + strip + 5, stroke=QUIET)
            self.text(at, bottom + strip + 19, tick(value, x_ticks), anchor="middle", size=SMALL, fill=QUIET)
        self.line(left, bottom, right, bottom, stroke=QUIET)
        self.line(left, bottom, left, top, stroke=QUIET)
        self.text((left + right) / 2, bottom + strip + 42, x_label, anchor="middle")
        self.text(left - 48, (bottom + top) / 2, y_label, anchor="middle", turned=True)

    def band(self, x: Sequence[float], low: Sequence[float | None], high: Sequence[float | None], *, fill: str = WASH) -> None:
        """Fill between two curves, where both are there."""
        for part in _runs(x, low, high):
            upper = [(self.x(at), self.y.clipped(up)) for at, _, up in part]
            self.area(upper + [(self.x(at), self.y.clipped(down)) for at, down, _ in reversed(part)], fill=fill)

    def curve(self, x: Sequence[float], y: Sequence[float | None], look: Look) -> None:
        """Draw a line through points, with gaps where there is none, cut off where it leaves the plot."""
        for part in _runs(x, y):
            for inside in _within(part, self.y.low, self.y.high):
                self.path([(self.x(at), self.y(value)) for at, value in inside], stroke=look.stroke, width=look.width, dash=look.dash)

    def point(self, x: float, y: float, mark: Mark, *, fill: str = INK, size: float = 5) -> None:
        """Draw a point at data coordinates."""
        self.mark(mark, self.x(x), self.y(y), fill=fill, size=size)

    def key(self, looks: Sequence[Look]) -> None:
        """Draw above the plot, where no curve can be, what each line, band and mark is called; `top` has to leave 20 pixels a line."""
        x, base = self.x.start, 18.0
        for look in looks:
            room = 38 + text_width(look.label, SMALL)
            if x > self.x.start and x + room > self.width:
                x, base = self.x.start, base + 20
            self._sample(look, x, base)
            x += room + 16

    def _sample(self, look: Look, x: float, base: float) -> None:
        if look.band:
            self.box(x, base - 11, 30, 14, fill=look.band)
        if look.width:
            self.line(x, base - 4, x + 30, base - 4, stroke=look.stroke, width=look.width, dash=look.dash)
        if look.mark:
            self.mark(look.mark, x + 15, base - 4, fill=look.stroke)
        self.text(x + 38, base, look.label, size=SMALL)


def tick(value: float, among: Sequence[float]) -> str:
    """Write a tick with as many decimals as its axis needs."""
    decimals = next(d for d in range(5) if d == 4 or all(abs(round(v, d) - v) < 1e-9 for v in among))
    return f"{value + 0.0:.{decimals}f}".replace("-", "\u2212")


def ticks(low: float, high: float, about: int = 5) -> list[float]:
    """Return round values between two ends, roughly `about` many.

    Examples
    --------
    >>> ticks(-0.03, 0.21)
    [0.0, 0.05, 0.1, 0.15, 0.2]
    """
    raw = (high - low) / about
    scale = 10.0 ** math.floor(math.log10(raw))
    step = scale * next(s for s in (1, 2, 5, 10) if s * scale >= raw * 0.999)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [round(step * i, 10) + 0.0 for i in range(first, last + 1)]


def _runs(*columns: Sequence[float | None]) -> list[list[tuple[float, ...]]]:
    """Return the stretches of points, column by column, in which nothing is missing."""
    runs: list[list[tuple[float, ...]]] = [[]]
    for point in zip(*columns, strict=True):
        there = tuple(value for value in point if value is not None)
        if len(there) == len(point):
            runs[-1].append(there)
        elif runs[-1]:
            runs.append([])
    return [run for run in runs if len(run) > 1]


def _within(points: Sequence[tuple[float, ...]], low: float, high: float) -> list[list[tuple[float, float]]]:
    """Return the stretches of a line between two heights, ending where it crosses them."""
    parts: list[list[tuple[float, float]]] = [[]]
    for (x1, y1), (x2, y2) in itertools.pairwise(points):
        crossings = sorted((limit - y1) / (y2 - y1) for limit in (low, high) if min(y1, y2) < limit < max(y1, y2))
        for a, b in itertools.pairwise([0.0, *crossings, 1.0]):
            ends = [(x1 + at * (x2 - x1), y1 + at * (y2 - y1)) for at in (a, b)]
            if not low <= (ends[0][1] + ends[1][1]) / 2 <= high:
                continue
            if parts[-1] and parts[-1][-1] != ends[0]:
                parts.append([])
            parts[-1] += ends[bool(parts[-1]) :]
    return [part for part in parts if part]


def _attributes(**values: object) -> str:
    """Write attributes; those that are empty are left out."""
    return "".join(f" {key.replace('_', '-')}={_quoted(value)}" for key, value in values.items() if not isinstance(value, str) or value)


def _quoted(value: object) -> str:
    # Digits need no escaping, and are most of a drawing.
    return f'"{_digits(value)}"' if isinstance(value, int | float) else quoteattr(str(value))


def _digits(value: float) -> str:
    """Write a coordinate with at most two decimals, so that the last bits of a float do not change the file."""
    text = f"{value:.2f}".rstrip("0").rstrip(".")
    return "0" if text == "-0" else text
