"""Signs that several drawings share: keys, bars and their intervals, number lines, windows of time.

The one idea: one sign means one thing in every report; kinds differ in lightness, hatching and shape, never in colour alone.
"""

from collections.abc import Callable, Sequence
from typing import Literal

from clinical_ser.explain.explanation import Estimate, FamilyContribution, FeatureBand, FeatureContribution
from clinical_ser.explain.timeline import Timeline
from reports.drawing import ACCENT, DASHED, INK, SMALL, WASH, Drawing, Scale, shortened, text_width

WIDTH = 700.0
"""Of a drawing over the whole width of a page: its text is then as large as that beside it."""
PLAIN_BAR = "#b9c3cc"
_LINE = 20.0
_TIME_STEPS = (1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 1200)
_MOST_TIMES = 9
_BANDS_SEEN = 1.5
"""Widths of the middle half that a line shows on either side of its centre: two SD of a normal distribution."""

Kind = Literal["raises", "lowers", "unstable"]
Sample = tuple[str, Callable[[Drawing, float, float], None]]
"""An entry of a key: its words, and what draws its sample around a point."""


def kind_of(family: FamilyContribution | FeatureContribution, effect: Estimate) -> Kind:
    """Return how an effect is to be drawn and named."""
    if not family.stable or not effect.value:
        return "unstable"
    return "raises" if effect.value > 0 else "lowers"


def key_height(samples: Sequence[Sample], width: float = WIDTH) -> float:
    """Return the room that a key takes."""
    return _LINE * (1 + max(line for line, _ in _places(samples, width))) + 8


def draw_key(drawing: Drawing, samples: Sequence[Sample]) -> None:
    """Draw at the top of a drawing what each sign on it is called."""
    for (words, sample), (line, x) in zip(samples, _places(samples, drawing.width), strict=True):
        sample(drawing, x + 14, _LINE * line + 12)
        drawing.text(x + 34, _LINE * line + 16, words, size=SMALL)


def _places(samples: Sequence[Sample], width: float) -> list[tuple[int, float]]:
    """Return the line and the left end of each entry of a key."""
    places, line, x = [], 0, 0.0
    for words, _ in samples:
        room = 34 + text_width(words, SMALL)
        if x and x + room > width:
            line, x = line + 1, 0.0
        places.append((line, x))
        x += room + 18
    return places


def bar(drawing: Drawing, x: float, y: float, width: float, height: float, kind: Kind) -> None:
    """Draw a bar; kinds differ in lightness and hatching."""
    if kind == "unstable":
        drawing.hatched(x, y, width, height)
    else:
        drawing.box(x, y, width, height, fill=ACCENT if kind == "raises" else WASH, stroke=ACCENT)


def bar_sample(kind: Kind) -> Callable[[Drawing, float, float], None]:
    """Return what draws a bar of a kind in a key."""
    return lambda drawing, x, y: bar(drawing, x - 14, y - 5, 28, 10, kind)


def whisker(drawing: Drawing, x: Scale, y: float, low: float, high: float) -> None:
    """Draw an interval as a thin line with ends; where it leaves the scale, it ends in an arrowhead."""
    drawing.line(x.clipped(low), y, x.clipped(high), y, width=1.25)
    for value, way in ((low, -1), (high, 1)):
        at = x.clipped(value)
        if x.holds(value):
            drawing.line(at, y - 3, at, y + 3, width=1.25)
        else:
            drawing.area([(at, y), (at - 6 * way, y - 3.5), (at - 6 * way, y + 3.5)], fill=INK)


def whisker_sample(drawing: Drawing, x: float, y: float) -> None:
    """Draw an interval in a key."""
    whisker(drawing, Scale(0, 1, x - 13, x + 13), y, 0, 1)


def line_scale(band: FeatureBand, value: float, track: tuple[float, float]) -> Scale:
    """Return a scale on which the band takes the same place on every line; one without width is a point in the middle."""
    centre, width = (band.low + band.high) / 2, band.high - band.low
    half = _BANDS_SEEN * width or 1.5 * abs(value - centre) or 1.0
    return Scale(centre - half, centre + half, *track)


def two_lines(text: str, room: float) -> list[str]:
    """Break a name into at most two lines, the second cut where it has to be."""
    words, first = text.split(" "), ""
    while words and text_width(f"{first} {words[0]}".strip(), SMALL) <= room:
        first = f"{first} {words.pop(0)}".strip()
    rest = " ".join(words)
    return [line for line in (first, shortened(rest, room, SMALL)) if line]


def chance(drawing: Drawing, left: float, right: float, high: float, low: float) -> None:
    """Draw the band in which windows at random places stay."""
    drawing.box(left, high, right - left, low - high, fill=WASH)
    for y in (high, low):
        drawing.line(left, y, right, y, stroke=ACCENT, dash=DASHED)


def window_bars(drawing: Drawing, x: Scale, y: Scale, timeline: Timeline) -> None:
    """Draw a bar for each window, those that stand out dark and numbered by size."""
    places = {window.start_s: place for place, window in enumerate(timeline.standing_out, start=1)}
    for window in timeline.windows:
        left, right = x(window.start_s) + 0.75, x(window.end_s) - 0.75
        up, down = sorted((y(window.effect), y(0)))
        drawing.box(left, up, right - left, max(down - up, 0.5), fill=ACCENT if window.stands_out else PLAIN_BAR)
        if window.stands_out:
            at = up - 5 if window.effect > 0 else down + 14
            drawing.text((left + right) / 2, at, str(places[window.start_s]), anchor="middle", size=SMALL, bold=True)
    drawing.line(x.start, y(0), x.end, y(0), stroke=INK)


def time_step(length_s: float) -> int:
    """Return how many seconds lie between two marks of an axis of time."""
    return next((step for step in _TIME_STEPS if length_s / step <= _MOST_TIMES), _TIME_STEPS[-1])
