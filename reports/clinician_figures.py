"""The drawings of the clinician's report: people of a hundred, classes, families, number lines, moments.

The one idea: each is read in seconds and says nothing that its text alternative does not say with every number, in the reader's language.
"""

from collections.abc import Iterable, Sequence
from functools import reduce

from clinical_ser.explain.explanation import Explanation, FamilyContribution
from clinical_ser.explain.timeline import Timeline
from clinical_ser.screening.measures import Measure
from clinical_ser.screening.result import ClassProbability, ScreeningResult
from reports import marks
from reports.document import Column, Picture, Table
from reports.drawing import ACCENT, FAINT, INK, PAPER, QUIET, SMALL, WASH, Drawing, Scale, shortened, text_width, tick, ticks
from reports.locale import Locale
from reports.marks import WIDTH, kind_of
from reports.numbers import brief, clock, percent, points

HALF = 330.0


# --- Numbers ------------------------------------------------------------------------------------------------------------------------------


def with_unit(value: float, unit: str, locale: Locale) -> str:
    """Write a measured value with its unit in the reader's language."""
    return f"{brief(value)} {unit_of(unit, locale)}".rstrip()


def unit_of(unit: str, locale: Locale, *, of: str = "") -> str:
    """Return a unit in the reader's language, where there is one the feature's own (`1/s` serves several); a pure number has none."""
    return locale.texts.get(f"units_of.{of}") or ("" if unit == "1" else locale.term("units", unit))


def names_unit(label: str, unit: str) -> bool:
    """Return whether a label ends with the unit already, as `Average pitch (Hz)` does."""
    return bool(unit) and label.endswith((f"({unit})", f"（{unit}）"))


def span(low: float, high: float, locale: Locale) -> str:
    """Write a range of measured values."""
    return locale("range", low=brief(low), high=brief(high))


def percents(low: float, high: float, locale: Locale) -> str:
    """Write an interval of a probability: `14 to 37 %`."""
    return locale("range", low=percent(low).removesuffix(" %"), high=percent(high))


def place(percentile: float, locale: Locale) -> str:
    """Say where a value stands in the reference group; its ends are not known beyond 5 and 95."""
    if percentile <= 25:
        return locale("place.lower", percent="95" if percentile <= 5 else f"{100 - percentile:.0f}")
    if percentile >= 75:
        return locale("place.higher", percent="95" if percentile >= 95 else f"{percentile:.0f}")
    return locale("place.usual")


def joined(texts: Iterable[str], how: str, locale: Locale) -> str:
    """Put texts together as the language does, by its key for two of them: `listed`, `clauses`, `sentences`; what is empty is left out."""
    there = [text for text in texts if text]
    return reduce(lambda first, second: locale(how, first=first, second=second), there) if there else ""


def of_hundred(share: float, locale: Locale) -> str:
    """Write a share as people of a hundred; neither nobody nor everybody while it is neither 0 nor 1."""
    n = round(100 * share)
    return locale("people.fewer") if share and not n else locale("people.more") if share < 1 and n == 100 else locale("people.count", n=n)


# --- People of a hundred ------------------------------------------------------------------------------------------------------------------

_PERSON, _ROWS = 13.0, 10


def people(one: ClassProbability, label: str, locale: Locale) -> Picture:
    """Draw a hundred people of the group that a probability is stated for, and a hundred who get it; those with the label are filled in.

    Parameters
    ----------
    one
        The probability, its interval, and what it is stated for.
    label
        What the class is called in the reader's language.
    locale
        The reader's language.
    """
    groups = [(locale("people.everyone"), one.prevalence), (locale("people.alike"), one.value)]
    interval = percents(one.interval.low, one.interval.high, locale)
    drawing = Drawing(HALF, 34 + _ROWS * _PERSON + 40)
    for i, (title, share) in enumerate(groups):
        x = 8 + i * (HALF / 2)
        for row, line in enumerate(marks.two_lines(title, HALF / 2 - 14)):
            drawing.text(x, 12 + 14 * row, line, size=SMALL, fill=QUIET)
        for k in range(100):
            _person(drawing, x + 6 + (k % 10) * _PERSON, 40 + (k // 10) * _PERSON, filled=k < round(100 * share))
        drawing.text(x, 34 + _ROWS * _PERSON + 18, of_hundred(share, locale), bold=True)
    drawing.text(8 + HALF / 2, 34 + _ROWS * _PERSON + 34, f"({interval})", size=SMALL)
    everyone, alike = (of_hundred(share, locale) for _, share in groups)
    level = f"{100 * one.interval.level:g}"
    finding = locale("people.finding", label=label, everyone=everyone, alike=alike, interval=interval, level=level)
    title = locale("people.title", label=label)
    rows = [[groups[0][0], everyone], [groups[1][0], f"{alike} ({interval})"]]
    return Picture(
        "people", title, finding, drawing, Table.of(title, [Column(locale("people.column")), Column(locale("people.with", label=label))], rows)
    )


def _person(drawing: Drawing, x: float, y: float, *, filled: bool) -> None:
    fill, stroke = (INK, INK) if filled else (PAPER, QUIET)
    drawing.mark("circle", x, y, fill=fill, stroke=stroke, size=2.2)
    drawing.box(x - 3, y + 3, 6, 5.5, fill=fill, stroke=stroke, radius=2)


def classes(result: ScreeningResult, locale: Locale) -> Picture:
    """Draw the probability of each class with its interval, largest first."""
    ordered = sorted(result.classes, key=lambda one: -one.value)
    row, x = 19.0, Scale(0, 1, 90, 156)
    drawing = Drawing(HALF, 8 + row * len(ordered) + 26)
    floor = 4 + row * len(ordered)
    for value in (0.0, 0.5, 1.0):
        drawing.line(x(value), 4, x(value), floor + 4, stroke=FAINT)
        drawing.text(x(value), floor + 18, f"{100 * value:.0f}", anchor="middle", size=SMALL, fill=QUIET)
    for i, one in enumerate(ordered):
        y = 4 + row * (i + 0.5)
        first = one.label in result.prediction_set
        drawing.text(0, y + 4, shortened(locale.term("classes", one.label), 84, SMALL, bold=first), size=SMALL, bold=first)
        drawing.box(x.start, y - 6, max(x(one.value) - x.start, 1), 8, fill=ACCENT if first else WASH, stroke=ACCENT)
        marks.whisker(drawing, x, y + 5, one.interval.low, one.interval.high)
        drawing.text(x.end + 8, y + 4, f"{percent(one.value)} ({percents(one.interval.low, one.interval.high, locale)})", size=11)
    level = f"{100 * ordered[0].interval.level:g}"
    told = [(locale.term("classes", one.label), percent(one.value), percents(one.interval.low, one.interval.high, locale)) for one in ordered]
    said = joined((locale("classes_figure.one", label=label, value=value, interval=interval) for label, value, interval in told), "clauses", locale)
    title = locale("classes_figure.title")
    heads = (locale("classes_figure.column"), locale("classes_figure.probability"), locale("interval", level=level))
    table = Table.of(title, list(map(Column, heads)), told)
    return Picture("classes", title, locale("classes_figure.finding", said=said, level=level), drawing, table)


# --- Families -----------------------------------------------------------------------------------------------------------------------------

_FAMILY_ROW = 25.0
_LEVEL = "95"
"""Percent: of intervals over refits (`explain.explanation.Estimate`)."""
_FAMILY_BAR, _FAMILY_POINTS, _FAMILY_INTERVAL, _FAMILY_REMARK = (176.0, 430.0), 484.0, 494.0, 590.0


def families(explanation: Explanation, label: str, locale: Locale) -> Picture:
    """Draw what each family added to the probability, or took from it, with its interval over refits."""
    told = explanation.families
    x = _effect_scale([end for family in told for end in (family.probability.low, family.probability.high)])
    key = _family_key(locale)
    top = marks.key_height(key) + 4
    floor = top + _FAMILY_ROW * len(told)
    drawing = Drawing(WIDTH, floor + 24)
    marks.draw_key(drawing, key)
    marked = [100 * value for value in ticks(x.low, x.high, 6)]
    for value in marked:
        drawing.line(x(value / 100), top, x(value / 100), floor + 4, stroke=FAINT)
        drawing.text(x(value / 100), floor + 18, tick(value, marked), anchor="middle", size=SMALL, fill=QUIET)
    drawing.text(_FAMILY_INTERVAL, floor + 18, locale("families.axis"), size=SMALL, fill=QUIET)
    drawing.line(x(0), top, x(0), floor + 4, stroke=INK, width=1.25)
    for i, family in enumerate(told):
        _family(drawing, x, top + _FAMILY_ROW * (i + 0.5), family, locale)
    title = locale("families.title", label=label)
    finding = " ".join(_family_words(family, locale) for family in told)
    columns = [Column(locale("families.column")), Column(locale("families.points"), "figure"), Column(locale("families.remark"))]
    rows = [[locale.label(family), _interval_of(family, locale), _remark(family, locale)] for family in told]
    return Picture("families", title, finding, drawing, Table.of(title, columns, rows))


def _effect_scale(ends: Sequence[float]) -> Scale:
    """Return a scale that holds zero and every interval, as far as a probability can move."""
    low, high = max(min([0.0, *ends]), -1.0), min(max([0.0, *ends]), 1.0)
    room = max(0.06 * (high - low), 0.004)
    return Scale(low - room, high + room, *_FAMILY_BAR)


def _family(drawing: Drawing, x: Scale, y: float, family: FamilyContribution, locale: Locale) -> None:
    effect, kind = family.probability, kind_of(family, family.probability)
    left, right = sorted((x.clipped(0), x.clipped(effect.value)))
    marks.bar(drawing, left, y - 9, max(right - left, 1), 10, kind)
    marks.whisker(drawing, x, y + 6, effect.low, effect.high)
    fill = QUIET if kind == "unstable" else INK
    drawing.text(0, y + 4, shortened(locale.label(family), _FAMILY_BAR[0] - 10, bold=family.main_driver), fill=fill, bold=family.main_driver)
    drawing.text(_FAMILY_POINTS, y + 4, points(effect.value), anchor="end", fill=fill, bold=family.main_driver)
    drawing.text(_FAMILY_INTERVAL, y + 4, locale("range", low=points(effect.low), high=points(effect.high)), size=11, fill=QUIET)
    remark = shortened(_remark(family, locale), WIDTH - _FAMILY_REMARK, SMALL, bold=family.main_driver)
    drawing.text(_FAMILY_REMARK, y + 4, remark, size=SMALL, fill=fill, bold=family.main_driver)


def _remark(family: FamilyContribution, locale: Locale) -> str:
    if family.main_driver:
        return locale("families.main_driver")
    return locale(f"families.{kind_of(family, family.probability)}")


def _interval_of(family: FamilyContribution, locale: Locale) -> str:
    effect = family.probability
    return f"{points(effect.value)} ({locale('range', low=points(effect.low), high=points(effect.high))})"


def _family_words(family: FamilyContribution, locale: Locale) -> str:
    return locale("families.one", label=locale.label(family), points=_interval_of(family, locale), remark=_remark(family, locale))


def _family_key(locale: Locale) -> tuple[marks.Sample, ...]:
    kinds: tuple[marks.Kind, ...] = ("raises", "lowers", "unstable")
    bars = tuple((locale(f"families.{kind}"), marks.bar_sample(kind)) for kind in kinds)
    return (*bars, (locale("interval", level=_LEVEL), marks.whisker_sample))


# --- Number lines -------------------------------------------------------------------------------------------------------------------------

_LINE_ROW = 23.0
_LINE_NAMES, _LINE_TRACK, _LINE_VALUE, _LINE_USUAL, _LINE_PLACE = 200.0, (208.0, 346.0), 452.0, 462.0, 562.0


def measures(shown: Sequence[Measure], locale: Locale) -> Picture:
    """Draw each measure on a line, with the middle half of the reference group as a box; what was not measured says so."""
    drawing = Drawing(WIDTH, 22 + _LINE_ROW * len(shown) + 4)
    drawing.text(_LINE_VALUE, 12, locale("measures.value"), anchor="end", size=SMALL, fill=QUIET)
    drawing.text(_LINE_USUAL, 12, locale("measures.usual"), size=SMALL, fill=QUIET)
    drawing.text(_LINE_PLACE, 12, locale("measures.place"), size=SMALL, fill=QUIET)
    for i, one in enumerate(shown):
        _number_line(drawing, 22 + _LINE_ROW * (i + 0.5), one, locale)
    title = locale("measures.title")
    columns = [
        Column(locale("measures.column")),
        Column(locale("measures.value")),
        Column(locale("measures.usual")),
        Column(locale("measures.place")),
    ]
    rows = [[locale.label(one), *_measure_cells(one, locale)] for one in shown]
    return Picture("measures", title, " ".join(_measure_words(one, locale) for one in shown), drawing, Table.of(title, columns, rows))


def _measure_cells(one: Measure, locale: Locale) -> list[str]:
    unit = unit_of(one.unit, locale, of=one.name)
    shown = "" if names_unit(locale.label(one), unit) else unit
    value = locale("measures.missing") if one.value is None else f"{brief(one.value)} {shown}".rstrip()
    usual = span(one.band.low, one.band.high, locale) if one.band else locale("unknown")
    return [value, usual, locale("unknown") if one.percentile is None else place(one.percentile, locale)]


def _measure_words(one: Measure, locale: Locale) -> str:
    value, usual, where = _measure_cells(one, locale)
    return locale("measures.one", label=locale.label(one), value=value, usual=usual, place=where)


def _number_line(drawing: Drawing, y: float, one: Measure, locale: Locale) -> None:
    drawing.text(0, y + 4, shortened(locale.label(one), _LINE_NAMES, SMALL), size=SMALL)
    value, usual, where = _measure_cells(one, locale)
    if one.value is None:
        drawing.text(_LINE_TRACK[0], y + 4, value, size=SMALL, fill=QUIET)
        return
    if one.band is not None:
        x = marks.line_scale(one.band, one.value, _LINE_TRACK)
        drawing.line(x.start, y, x.end, y, stroke=QUIET)
        drawing.box(x(one.band.low), y - 5, max(x(one.band.high) - x(one.band.low), 2), 10, fill=WASH, stroke=ACCENT)
        _on_line(drawing, x, y, one.value)
        drawing.text(_LINE_USUAL, y + 4, shortened(usual, _LINE_PLACE - _LINE_USUAL - 6, 11), size=11, fill=QUIET)
    drawing.text(_LINE_VALUE, y + 4, value, anchor="end", size=SMALL, bold=True)
    if one.percentile is not None:
        drawing.text(_LINE_PLACE, y + 4, shortened(where, WIDTH - _LINE_PLACE, 11), size=11)


def _on_line(drawing: Drawing, x: Scale, y: float, value: float) -> None:
    """Draw a value, or, beyond the ends of its line, an arrowhead at the end."""
    if x.holds(value):
        drawing.mark("diamond", x(value), y, size=5.5)
        return
    at, way = x.clipped(value), 1 if value > x.high else -1
    drawing.area([(at + 8 * way, y), (at - 2 * way, y - 6), (at - 2 * way, y + 6)], fill=INK)


# --- Moments ------------------------------------------------------------------------------------------------------------------------------

MOMENTS_TRACK = (74.0, WIDTH - 16)
"""Where time begins and ends."""
_TOP, _MOMENTS, _MOMENTS_NAMED = 12.0, 62.0, 3


def moments(timeline: Timeline, label: str, locale: Locale) -> Picture:
    """Draw what each window did to the probability, over the stretches of speech."""
    x = Scale(0.0, max(window.end_s for window in timeline.windows), *MOMENTS_TRACK)
    ends = [0.0, timeline.band_low, timeline.band_high, *(window.effect for window in timeline.windows)]
    room = max(0.16 * (max(ends) - min(ends)), 0.001)
    y = Scale(min(ends) - room, max(ends) + room, _TOP + _MOMENTS, _TOP)
    drawing = Drawing(WIDTH, _TOP + _MOMENTS + 52)
    marks.chance(drawing, x.start, x.end, y(timeline.band_high), y(timeline.band_low))
    marked = ticks(100 * y.low, 100 * y.high, 4)
    for value in marked:
        drawing.text(x.start - 8, y(value / 100) + 4, tick(value, marked), anchor="end", size=SMALL, fill=QUIET)
    marks.window_bars(drawing, x, y, timeline)
    strip = _TOP + _MOMENTS + 8
    drawing.text(x.start - 8, strip + 8, locale("moments.speech"), anchor="end", size=SMALL, fill=QUIET)
    for start, stop in timeline.tracks.speech_s:
        if x.clipped(stop) - x.clipped(start) > 0.3:
            drawing.box(x.clipped(start), strip, x.clipped(stop) - x.clipped(start), 9, fill=QUIET)
    drawing.line(x.start, strip + 12, x.end, strip + 12, stroke=QUIET)
    step = marks.time_step(x.high)
    for i in range(int(x.high / step) + 1):
        words = clock(timeline.offset_s + i * step)
        if x(i * step) + text_width(words, SMALL) / 2 <= WIDTH:
            drawing.text(x(i * step), strip + 27, words, anchor="middle", size=SMALL, fill=QUIET)
    title = locale("moments.title", label=label)
    columns = [Column(locale("moments.column")), Column(locale("families.points"), "number"), Column(locale("moments.stands_out"))]
    out = set(timeline.standing_out)
    rows = [[when(timeline, one.start_s, one.end_s), points(one.effect), locale("yes") if one in out else ""] for one in timeline.windows]
    return Picture("moments", title, outstanding(timeline, locale), drawing, Table.of(title, columns, rows))


def when(timeline: Timeline, start_s: float, end_s: float) -> str:
    """Write a window's place in the file."""
    decimals = int(timeline.window_s < 10)
    return f"{clock(timeline.offset_s + start_s, decimals)}–{clock(timeline.offset_s + end_s, decimals)}"


def outstanding(timeline: Timeline, locale: Locale) -> str:
    """Say which moments stand out, largest first, or that none does."""
    out = timeline.standing_out
    band = locale("range", low=points(timeline.band_low), high=points(timeline.band_high))
    if not out:
        return locale("moments.none", n=len(timeline.windows), band=band)
    named = joined(
        (locale("moments.one", when=when(timeline, window.start_s, window.end_s), points=points(window.effect)) for window in out[:_MOMENTS_NAMED]),
        "clauses",
        locale,
    )
    more = locale("moments.more", n=len(out) - _MOMENTS_NAMED) if len(out) > _MOMENTS_NAMED else ""
    return locale("moments.out", n=len(out), of=len(timeline.windows), named=named + more, band=band)
