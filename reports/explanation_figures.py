"""Pictures of one recording's explanation: families, features against the reference group, and the moments that counted.

The one idea: what is not sure looks unsure (hatched, hollow, named so), and what is drawn small stands in numbers in the finding and the table.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate, groupby, pairwise

import numpy as np
from numpy.typing import ArrayLike, NDArray

from clinical_ser.explain.explanation import Explanation, FamilyContribution, FeatureBand, FeatureContribution
from clinical_ser.explain.timeline import Moment, Timeline, Tracks, Window
from reports.document import Column, Picture, Table
from reports.drawing import ACCENT, FAINT, INK, PAPER, QUIET, SMALL, TEXT_SIZE, WASH, Drawing, Scale, shortened, text_width, tick, ticks
from reports.marks import (
    PLAIN_BAR,
    WIDTH,
    Sample,
    bar,
    bar_sample,
    chance,
    draw_key,
    key_height,
    kind_of,
    line_scale,
    time_step,
    two_lines,
    whisker,
    whisker_sample,
    window_bars,
)
from reports.numbers import UNITS, bracketed, clock, measured, percent, percentile, points, points_range, signed
from reports.wording import name, plain, several

UNSTABLE = "unstable"
MAIN_DRIVER = "main driver"


# --- Numbers in words ---------------------------------------------------------------------------------------------------------------------


def spoken(identifier: str) -> str:
    """Return a class as words."""
    return name(identifier.replace("_", " "))


# --- Keys ---------------------------------------------------------------------------------------------------------------------------------


# --- Families -----------------------------------------------------------------------------------------------------------------------------

_ROW, _LABELS, _PLOT, _POINTS, _DIRECTION, _TAG = 36.0, 170.0, (184.0, 470.0), 532.0, 546.0, 606.0


def families(explanation: Explanation) -> Picture:
    """Draw how families lead from the reference group's mean probability to the recording's, one bar each.

    Parameters
    ----------
    explanation
        Of one recording.

    Returns
    -------
    Picture
        Families whose interval crosses zero are hatched and called unstable.
    """
    return Picture(
        name="families",
        title=f"What moved the probability of {spoken(explanation.target)}, family by family",
        finding=_families_finding(explanation),
        drawing=_waterfall(explanation),
        table=_families_table(explanation),
        note="Each bar starts where the one above it ends; together they lead from the reference group to this recording. Points are points of "
        "percent, rounded each on its own. Thin lines: 95 % intervals over refits of the model on other people; one that ends in an arrowhead goes "
        f"on beyond 0 or 100 %. “{UNSTABLE}”: the interval crosses zero, so that other training people might have turned the direction round.",
    )


def _families_finding(explanation: Explanation) -> str:
    group = explanation.reference
    people = f" ({several(group.subjects, 'subject')})" if group.subjects else ""
    parts = [
        f"Mean probability in the reference group{people}: {percent(explanation.base_probability)}. "
        f"This recording: {percent(explanation.probability)}."
    ]
    return " ".join([*parts, *map(_family_words, explanation.families)])


def _family_words(family: FamilyContribution) -> str:
    effect = family.probability
    told = f"{_direction(effect.value)}, {points(effect.value)} points (95 % interval {points_range(effect.low, effect.high)})"
    return f"{name(family.label_en)}: {', '.join(filter(None, [told, _remark(family)]))}."


def _direction(effect: float) -> str:
    return "raises" if effect > 0 else "lowers" if effect < 0 else "none"


def _remark(family: FamilyContribution) -> str:
    """Return what has to be known of a family's effect; a main driver is always stable."""
    if family.main_driver:
        return MAIN_DRIVER
    return "" if family.stable else UNSTABLE


def _start(explanation: Explanation) -> str:
    """Return what the probability is counted from."""
    return "Reference group, mean" if explanation.reference.subjects else "Average recording"


def _families_table(explanation: Explanation) -> Table:
    columns = [
        Column("Family"),
        Column("Points of percent [95 % interval]", "figure"),
        Column("Log-odds [95 % interval]", "figure"),
        Column("Same place in refits"),
        Column("Remark"),
    ]
    rows = [[_start(explanation), percent(explanation.base_probability), signed(explanation.base_log_odds), "", ""]]
    for family in explanation.families:
        numbers = [bracketed(family.probability, points), bracketed(family.log_odds, signed)]
        rows.append([family.label_en, *numbers, percent(family.rank_agreement), _remark(family)])
    rows.append(["This recording", percent(explanation.probability), signed(explanation.log_odds), "", ""])
    return Table.of("Families by size of their effect on the probability", columns, rows)


_FAMILY_KEY: tuple[Sample, ...] = (
    ("raises the probability", bar_sample("raises")),
    ("lowers it", bar_sample("lowers")),
    ("unstable", bar_sample("unstable")),
    ("95 % interval", whisker_sample),
)


def _waterfall(explanation: Explanation) -> Drawing:
    top = key_height(_FAMILY_KEY) + 26
    floor = top + _ROW * (len(explanation.families) + 2)
    drawing = Drawing(WIDTH, floor + 52)
    sums = list(accumulate((family.probability.value for family in explanation.families), initial=explanation.base_probability))
    x = _probability_scale(explanation, sums)
    draw_key(drawing, _FAMILY_KEY)
    drawing.text(_POINTS, top - 8, "points", anchor="end", size=SMALL, fill=QUIET)
    _probability_axis(drawing, x, top, floor, explanation.target)
    _end_row(drawing, x, top + _ROW / 2, _start(explanation), explanation.base_probability, final=False)
    for i, family in enumerate(explanation.families):
        middle = top + _ROW * (i + 1.5)
        drawing.line(x.clipped(sums[i]), middle - _ROW + 5, x.clipped(sums[i]), middle + 8, stroke=QUIET)
        _family_row(drawing, x, middle, family, sums[i])
    last = floor - _ROW / 2
    drawing.line(x.clipped(sums[-1]), last - _ROW + 5, x.clipped(sums[-1]), last, stroke=QUIET)
    _end_row(drawing, x, last, "This recording", explanation.probability, final=True)
    return drawing


def _probability_scale(explanation: Explanation, sums: Sequence[float]) -> Scale:
    """Return a scale that holds every bar (sums on the way may leave 0 and 1) and, within 0 and 1, every interval."""
    ends = [
        end
        for family, start in zip(explanation.families, sums, strict=False)
        for end in (start + family.probability.low, start + family.probability.high)
    ]
    low, high = min([*ends, *sums]), max([*ends, *sums])
    room = max(0.05 * (high - low), 0.005)
    return Scale(max(low - room, min(0.0, *sums)), min(high + room, max(1.0, *sums)), *_PLOT)


def _probability_axis(drawing: Drawing, x: Scale, top: float, floor: float, target: str) -> None:
    marked = [100 * value for value in ticks(x.low, x.high, 5)]
    for value in marked:
        at = x(value / 100)
        drawing.line(at, top, at, floor, stroke=FAINT)
        drawing.line(at, floor, at, floor + 5, stroke=QUIET)
        drawing.text(at, floor + 19, tick(value, marked), anchor="middle", size=SMALL, fill=QUIET)
    drawing.line(x.start, floor, x.end, floor, stroke=QUIET)
    middle, ending = (x.start + x.end) / 2, " (%)"
    room = 2 * min(middle, WIDTH - middle)
    words = shortened(f"Probability of {plain(target.replace('_', ' '))}", room - text_width(ending)) + ending
    drawing.text(middle, floor + 42, words, anchor="middle")


def _end_row(drawing: Drawing, x: Scale, y: float, label: str, probability: float, *, final: bool) -> None:
    drawing.text(0, y + 4, label, bold=final)
    drawing.mark("diamond", x.clipped(probability), y, fill=INK if final else PAPER, stroke=INK, size=6)
    drawing.text(_DIRECTION, y + 4, percent(probability), bold=final)


def _family_row(drawing: Drawing, x: Scale, y: float, family: FamilyContribution, start: float) -> None:
    effect, kind = family.probability, kind_of(family, family.probability)
    left, right = sorted((x.clipped(start), x.clipped(start + effect.value)))
    bar(drawing, left, y - 9, max(right - left, 1), 12, kind)
    whisker(drawing, x, y + 9, start + effect.low, start + effect.high)
    fill = QUIET if kind == "unstable" else INK
    drawing.text(0, y + 4, shortened(plain(family.label_en), _LABELS), fill=fill)
    drawing.text(_POINTS, y + 4, points(effect.value), anchor="end", fill=fill)
    drawing.text(_DIRECTION, y + 4, _direction(effect.value), size=SMALL, fill=fill)
    drawing.text(_TAG, y + 4, _remark(family), size=SMALL, fill=fill, bold=family.main_driver)


# --- Features -----------------------------------------------------------------------------------------------------------------------------

_NAMES, _TRACK, _VALUE, _STANDS, _EFFECT = 222.0, (236.0, 446.0), 462.0, 566.0, 640.0
_FEATURE_ROW, _HEADING_ROW = 44.0, 30.0


def features(explanation: Explanation) -> Picture | None:
    """Draw where each shown feature lies against the middle half of the reference group; None where no feature can be compared.

    Parameters
    ----------
    explanation
        Of one recording.

    Returns
    -------
    Picture or None
        Features without a band are in its table only.
    """
    if not any(feature.band for family in explanation.families for feature in family.features):
        return None
    differences = " Values are differences from the person's own earlier recordings." if explanation.relative_to_baseline else ""
    return Picture(
        name="features",
        title="The features that counted most in each family, against the reference group",
        finding=_features_finding(explanation),
        drawing=_number_lines(explanation),
        table=features_table(explanation),
        note="Every line has its own scale, on which the middle half of the group takes the same place; the small numbers are its ends. Percentile: "
        "share of the group with a lower value, in percent; beyond 5 and 95 it is not known how far. The last column says what the feature did to "
        f"the score. An arrowhead: the value lies further out than the line.{differences}",
    )


def features_table(explanation: Explanation) -> Table:
    """Give every shown feature, whether or not it can be compared with a group."""
    columns = [
        Column("Feature", wide=True),
        Column("Value", "number"),
        Column("Unit"),
        Column("Middle half of the group", "number"),
        Column("Percentile", "count"),
        Column("Log-odds [95 % interval]"),
        Column("In refits", "count"),
        Column("Remark"),
    ]
    rows = [_feature_cells(feature) for family in explanation.families for feature in family.features]
    note = "In refits: share of refits of the model on other people in which the feature is among the three of its family that count most."
    return Table.of("Features: value, reference group, and effect on the log-odds", columns, rows, note)


def _feature_cells(feature: FeatureContribution) -> list[str]:
    return [
        feature.label_en,
        measured(feature.value),
        UNITS.get(feature.unit, feature.unit),
        _band_words(feature.band),
        percentile(feature.percentile),
        bracketed(feature.log_odds, signed),
        percent(feature.rank_agreement),
        "" if feature.stable else UNSTABLE,
    ]


def _band_words(band: FeatureBand | None) -> str:
    return "not known" if band is None else f"{measured(band.low)} to {measured(band.high)}"


def _features_finding(explanation: Explanation) -> str:
    told = [(family, feature) for family in explanation.families for feature in family.features if feature.band]
    out = [_feature_words(feature) for _, feature in told if feature.stands_out]
    rest = len(told) - len(out)
    parts = [f"{several(len(told), 'feature')} of this recording compared with the group."]
    parts += [f"Beyond the 10th or 90th percentile: {'; '.join(out)}."] if out else ["None lies beyond the 10th or 90th percentile."]
    return " ".join([*parts, *([f"Within: {rest}."] if out and rest else [])])


def _feature_words(feature: FeatureContribution) -> str:
    value = measured(feature.value, feature.unit)
    group = f"middle half of the group {_band_words(feature.band)}, percentile {percentile(feature.percentile)}"
    return f"{name(feature.label_en)} {value} ({group}; {_effect_words(feature)})"


def _effect_words(feature: FeatureContribution) -> str:
    return kind_of(feature, feature.log_odds)


_FEATURE_KEY: tuple[Sample, ...] = (
    ("middle half of the reference group", lambda drawing, x, y: _middle_half(drawing, x - 14, x + 14, y)),
    ("this recording", lambda drawing, x, y: drawing.mark("diamond", x, y, fill=INK, size=5.5)),
    ("this recording, effect unstable", lambda drawing, x, y: drawing.mark("circle", x, y, fill=PAPER, stroke=QUIET, size=5)),
)


def _number_lines(explanation: Explanation) -> Drawing:
    shown = [(family, [one for one in family.features if one.band]) for family in explanation.families]
    shown = [(family, members) for family, members in shown if members]
    top = key_height(_FEATURE_KEY) + 20
    drawing = Drawing(WIDTH, top + sum(_HEADING_ROW + _FEATURE_ROW * len(members) for _, members in shown) + 6)
    draw_key(drawing, _FEATURE_KEY)
    for x, words in ((_VALUE, "value"), (_STANDS, "percentile"), (_EFFECT, "effect")):
        drawing.text(x, top - 4, words, size=SMALL, fill=QUIET)
    y = top
    for family, members in shown:
        drawing.line(0, y + 3, WIDTH, y + 3, stroke=FAINT)
        drawing.text(0, y + 22, shortened(plain(family.label_en), _NAMES, bold=True), bold=True)
        y += _HEADING_ROW
        for feature in members:
            _feature_row(drawing, y + 14, feature)
            y += _FEATURE_ROW
    return drawing


def _middle_half(drawing: Drawing, left: float, right: float, y: float) -> None:
    drawing.box(left, y - 6, max(right - left, 2), 12, fill=WASH, stroke=ACCENT)


def _feature_row(drawing: Drawing, y: float, feature: FeatureContribution) -> None:
    assert feature.band is not None
    x = line_scale(feature.band, feature.value, _TRACK)
    drawing.line(*(x.start, y), *(x.end, y), stroke=QUIET)
    _middle_half(drawing, x(feature.band.low), x(feature.band.high), y)
    _band_ends(drawing, x, y + 20, feature.band)
    fill = INK if feature.stable else QUIET
    at = x.clipped(feature.value)
    if not x.holds(feature.value):
        way = 1 if feature.value > x.high else -1
        drawing.area([(at + 8 * way, y), (at + way, y - 5), (at + way, y + 5)], fill=fill)
        at -= 8 * way
    if feature.stable:
        drawing.mark("diamond", at, y, fill=INK, size=5.5)
    else:
        drawing.mark("circle", at, y, fill=PAPER, stroke=QUIET, size=5)
    for i, line in enumerate(two_lines(plain(feature.label_en), _NAMES)):
        drawing.text(0, y + 4 + 15 * i, line, size=SMALL, fill=fill)
    drawing.text(_VALUE, y + 4, shortened(measured(feature.value, feature.unit), _STANDS - _VALUE - 6, SMALL), size=SMALL, fill=fill)
    drawing.text(_STANDS, y + 4, percentile(feature.percentile), size=SMALL, fill=fill)
    drawing.text(_EFFECT, y + 4, _effect_words(feature), size=SMALL, fill=fill)


def _band_ends(drawing: Drawing, x: Scale, y: float, band: FeatureBand) -> None:
    low, high = measured(band.low), measured(band.high)
    if band.low == band.high:
        drawing.text(x(band.low), y, low, anchor="middle", size=11, fill=QUIET)
        return
    drawing.text(x(band.low) + 8, y, low, anchor="end", size=11, fill=QUIET)
    drawing.text(x(band.high) - 8, y, high, size=11, fill=QUIET)


# --- Timeline -----------------------------------------------------------------------------------------------------------------------------

_TIME = (74.0, 676.0)
_UPPER, _COURSE, _F0, _LEVEL, _GAP = 150.0, 84.0, 104.0, 84.0, 30.0
_COLUMNS = 300
"""Points that a track is drawn with: a ten-minute track has 60,000 frames, and a page about 600 pixels."""
_F0_TICKS = (50, 75, 100, 150, 200, 300, 400, 600)
_COURSE_NOTE = (
    " Probability: what the model says of {seconds:g} s around each moment alone, and its sampling error; it learned from whole recordings, so "
    "that of a stretch it is less sure than the wash says."
)
_NAMED = 5
"""Windows that a finding names."""
_QUIETEST_DB = 60.0
"""Levels further below the loudest are drawn at the foot: digital silence has none."""
_QUANTILES = (0.1, 0.5, 0.9)


@dataclass(frozen=True)
class _Span:
    """A column of pixels of a track: its middle in seconds, and what the middle four fifths of its frames hold."""

    at_s: float
    low: float
    middle: float
    high: float


def timeline(timeline: Timeline) -> Picture:
    """Draw what each window did to the probability, above the pitch and level of the same moments.

    Parameters
    ----------
    timeline
        Of one recording.

    Returns
    -------
    Picture
        Windows beyond the band of windows at random places are dark and numbered, largest first.
    """
    return Picture(
        name="timeline",
        title=f"When the probability of {spoken(timeline.target)} came about",
        finding=_timeline_finding(timeline),
        drawing=_timeline_drawing(timeline),
        table=_timeline_table(timeline),
        note="Bars: the recording's probability less that without the window, so that a bar upwards raised it. Band: where all windows together "
        f"stay in {100 * timeline.level:g} % of recordings without a special moment, learned from {timeline.draws} at random places. Pitch, and "
        "level in speech: line, median; wash, the middle four fifths. A window says when the score came about, not why."
        + (_COURSE_NOTE.format(seconds=timeline.course_window_s) if timeline.course.get(timeline.target) else ""),
    )


def outstanding(timeline: Timeline) -> str:
    """Say which windows stand out, largest first, or that none does."""
    out = timeline.standing_out
    if not out:
        return "No window stands out."
    named = "; ".join(f"{_when(timeline, window)}, {points(window.effect)} points" for window in out[:_NAMED])
    more = f"; and {len(out) - _NAMED} more" if len(out) > _NAMED else ""
    return f"{several(len(out), 'window')} {'stands' if len(out) == 1 else 'stand'} out, largest first: {named}{more}."


def _timeline_finding(timeline: Timeline) -> str:
    return (
        f"The recording's probability is {percent(timeline.probability)}; each of {several(len(timeline.windows), 'window')} of "
        f"{timeline.window_s:.3g} s was left out in turn. {outstanding(timeline)} Windows at random places stay within "
        f"{points_range(timeline.band_low, timeline.band_high)} points ({100 * timeline.level:g} %).{_course_finding(timeline)}"
    )


def _course_finding(timeline: Timeline) -> str:
    course = timeline.course.get(timeline.target)
    if not course:
        return ""
    lowest, highest = (
        f"{percent(one.probability)} ({percent(one.low)} to {percent(one.high)}) around {clock(timeline.offset_s + one.time_s)}"
        for one in (min(course, key=lambda one: one.probability), max(course, key=lambda one: one.probability))
    )
    return f" Of {timeline.course_window_s:g} s alone the model says between {lowest} and {highest}."


def _when(timeline: Timeline, window: Window) -> str:
    decimals = int(timeline.window_s < 10)
    start_s, end_s = (timeline.offset_s + at for at in (window.start_s, window.end_s))
    return f"{clock(start_s, decimals)} to {clock(end_s, decimals)}"


def _timeline_table(timeline: Timeline) -> Table:
    places = {window.start_s: str(place) for place, window in enumerate(timeline.standing_out, start=1)}
    columns = [Column("Window"), Column("Effect in points of percent", "number"), Column("Stands out, by size", "count")]
    rows = [[_when(timeline, window), points(window.effect), places.get(window.start_s, "")] for window in timeline.windows]
    return Table.of("Windows and their effect on the probability", columns, rows)


_TIMELINE_KEY: tuple[Sample, ...] = (
    ("stands out, numbered by size", lambda drawing, x, y: drawing.box(x - 5, y - 6, 10, 12, fill=ACCENT)),
    ("within what chance gives", lambda drawing, x, y: drawing.box(x - 5, y - 6, 10, 12, fill=PLAIN_BAR)),
    ("band of chance", lambda drawing, x, y: chance(drawing, x - 14, x + 14, y - 5, y + 5)),
    ("pause", lambda drawing, x, y: drawing.box(x - 12, y - 6, 24, 12, fill=FAINT)),
)


def _timeline_drawing(timeline: Timeline) -> Drawing:
    top = key_height(_TIMELINE_KEY) + 6
    course = timeline.course.get(timeline.target, ())
    course_top = top + _UPPER + _GAP
    f0_top = course_top + (_COURSE + _GAP if course else 0)
    level_top = f0_top + _F0 + _GAP
    floor = level_top + _LEVEL
    drawing = Drawing(WIDTH, floor + 52)
    x = Scale(0.0, max(timeline.tracks.step_s, *(window.end_s for window in timeline.windows)), *_TIME)
    draw_key(drawing, _TIMELINE_KEY)
    _windows(drawing, x, top, timeline)
    if course:
        _course(drawing, x, course_top, course)
    _pauses(drawing, x, timeline.tracks, (f0_top, f0_top + _F0), (level_top, floor))
    _pitch(drawing, x, f0_top, timeline.tracks)
    _level(drawing, x, level_top, timeline.tracks)
    _time_axis(drawing, x, floor, timeline.offset_s)
    return drawing


def _windows(drawing: Drawing, x: Scale, top: float, timeline: Timeline) -> None:
    """Draw the upper panel: the band, a bar each, and a number at those that stand out."""
    y = _effect_scale(timeline, top)
    chance(drawing, x.start, x.end, y(timeline.band_high), y(timeline.band_low))
    marked = ticks(100 * y.low, 100 * y.high, 4)
    _panel(drawing, x, y, [(value / 100, tick(value, marked)) for value in marked], "Points of percent")
    for end, words in ((y.end, "raises"), (y.start, "lowers")):
        if abs(end - y(0)) > text_width(words, SMALL):
            drawing.text(30, (end + y(0)) / 2, words, anchor="middle", size=SMALL, fill=QUIET, turned=True)
    window_bars(drawing, x, y, timeline)


def _effect_scale(timeline: Timeline, top: float) -> Scale:
    """Return a scale with room for numbers beyond the bars."""
    ends = [0.0, timeline.band_low, timeline.band_high, *(window.effect for window in timeline.windows)]
    low, high = min(ends), max(ends)
    room = max(0.14 * (high - low), 0.001)
    return Scale(low - room, high + room, top + _UPPER, top)


def _panel(drawing: Drawing, x: Scale, y: Scale, marked: Iterable[tuple[float, str]], label: str) -> None:
    """Draw the frame of a panel: ticks, faint lines across, and a name."""
    for value, words in marked:
        drawing.line(x.start - 4, y(value), x.end, y(value), stroke=FAINT)
        drawing.text(x.start - 8, y(value) + 4, words, anchor="end", size=SMALL, fill=QUIET)
    drawing.line(x.start, y.start, x.start, y.end, stroke=QUIET)
    drawing.text(12, (y.start + y.end) / 2, label, anchor="middle", size=SMALL, turned=True)


def _pauses(drawing: Drawing, x: Scale, tracks: Tracks, *panels: tuple[float, float]) -> None:
    """Shade what lies between stretches of speech, in each panel; what is narrower than half a pixel is left out."""
    ends = [0.0, *(moment for stretch in tracks.speech_s for moment in stretch), len(tracks.level_dbfs) * tracks.step_s]
    for start, stop in zip(ends[::2], ends[1::2], strict=True):
        left, right = x.clipped(start), x.clipped(stop)
        if right - left > 0.5:
            for top, bottom in panels:
                drawing.box(left, top, right - left, bottom - top, fill=FAINT)


def _course(drawing: Drawing, x: Scale, top: float, course: Sequence[Moment]) -> None:
    """Draw the probability of stretches, with its interval, on a scale from 0 to 100 %."""
    y = Scale(0.0, 1.0, top + _COURSE, top)
    _panel(drawing, x, y, [(share, f"{100 * share:.0f}%") for share in (0.0, 0.5, 1.0)], "Probability")
    step = min((later.time_s - before.time_s for before, later in pairwise(course)), default=0.0)
    spans: list[_Span | None] = []
    for moment in course:
        if spans and spans[-1] and moment.time_s - spans[-1].at_s > 1.5 * step:
            spans.append(None)  # too little speech in between
        spans.append(_Span(moment.time_s, moment.low, moment.probability, moment.high))
    _track(drawing, x, y, spans)


def _pitch(drawing: Drawing, x: Scale, top: float, tracks: Tracks) -> None:
    """Draw F0 on a logarithmic scale, which is how pitch is heard."""
    f0 = np.array(tracks.f0_hz)
    spans = _spans(np.log2(np.where(f0 > 0, f0, np.nan)), tracks.step_s)
    heard = [span for span in spans if span]
    low, high = min((span.low for span in heard), default=math.log2(75)), max((span.high for span in heard), default=math.log2(300))
    missing = max(0.0, 1 - (high - low))
    y = Scale(low - missing / 2 - 0.08, high + missing / 2 + 0.08, top + _F0, top)
    marked = [(math.log2(hz), str(hz)) for hz in _F0_TICKS if y.holds(math.log2(hz))]
    _panel(drawing, x, y, marked, "Pitch (Hz)")
    if not heard:
        drawing.text((x.start + x.end) / 2, top + _F0 / 2, "no voice was found", anchor="middle", size=SMALL, fill=QUIET)
    _track(drawing, x, y, spans)


def _level(drawing: Drawing, x: Scale, top: float, tracks: Tracks) -> None:
    level = np.array(tracks.level_dbfs)
    high = float(level.max(initial=-_QUIETEST_DB))
    level = np.where(_in_speech(tracks), np.maximum(level, high - _QUIETEST_DB), np.nan)
    spans = _spans(level, tracks.step_s)
    low = min((span.low for span in spans if span), default=high - _QUIETEST_DB)
    y = Scale(min(low, high - 10) - 2, high + 2, top + _LEVEL, top)
    marked = ticks(y.low, y.high, 3)
    _panel(drawing, x, y, [(value, tick(value, marked)) for value in marked], "Level (dBFS)")
    _track(drawing, x, y, spans)


def _in_speech(tracks: Tracks) -> NDArray[np.bool_]:
    """Return which frames lie in speech: the level of pauses is that of the room."""
    speech = np.zeros(len(tracks.level_dbfs), bool)
    for start, stop in tracks.speech_s:
        speech[round(start / tracks.step_s) : round(stop / tracks.step_s)] = True
    return speech


def _spans(values: ArrayLike, step_s: float) -> list[_Span | None]:
    """Sum up a track, column by column; None where a column holds nothing."""
    track = np.asarray(values, float)
    edges = np.linspace(0, len(track), min(len(track), _COLUMNS) + 1).round().astype(int).tolist()
    spans: list[_Span | None] = []
    for start, stop in pairwise(edges):
        there = track[start:stop][~np.isnan(track[start:stop])]
        spans.append(_Span((start + stop) / 2 * step_s, *np.quantile(there, _QUANTILES).tolist()) if len(there) else None)
    return spans


def _track(drawing: Drawing, x: Scale, y: Scale, spans: Sequence[_Span | None]) -> None:
    for there, run in groupby(spans, key=lambda span: span is not None):
        if not there:
            continue
        part = [span for span in run if span]
        if len(part) == 1:
            at = x.clipped(part[0].at_s)
            drawing.path([(at - 0.75, y(part[0].middle)), (at + 0.75, y(part[0].middle))], width=1.25)
            continue
        upper = [(x.clipped(span.at_s), y(span.high)) for span in part]
        lower = [(x.clipped(span.at_s), y(span.low)) for span in reversed(part)]
        if any(up[1] + 1 < down[1] for up, down in zip(upper, reversed(lower), strict=True)):
            drawing.area(upper + lower, fill=PLAIN_BAR)
        drawing.path([(x.clipped(span.at_s), y(span.middle)) for span in part], width=1.25)


def _time_axis(drawing: Drawing, x: Scale, floor: float, offset_s: float) -> None:
    step = time_step(x.high)
    for i in range(math.floor(x.high / step) + 1):
        at = x(i * step)
        drawing.line(at, floor, at, floor + 5, stroke=QUIET)
        drawing.text(at, floor + 19, clock(offset_s + i * step), anchor="middle", size=SMALL, fill=QUIET)
    drawing.line(x.start, floor, x.end, floor, stroke=QUIET)
    drawing.text((x.start + x.end) / 2, floor + 42, "Time (minutes:seconds)", anchor="middle", size=TEXT_SIZE)
