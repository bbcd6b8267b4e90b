"""The section of a cohort report on what a model goes by: families by size, features as beeswarms, and how reliable explanations are.

The one idea: a beeswarm is drawn from counts in bins, one dot for as many recordings as its note says; it holds no row of a person.
"""

import math
from collections.abc import Iterable, Sequence
from itertools import pairwise

from clinical_ser.evaluation.explanations import RELIABILITY, CohortExplanation, FamilySummary, FeatureSummary, Third
from clinical_ser.evaluation.figure import Figure
from reports import wording
from reports.document import Block, Column, Notice, Paragraph, Picture, Section, Table
from reports.drawing import ACCENT, FAINT, INK, PAPER, QUIET, SMALL, Drawing, Scale, shortened, tick, ticks
from reports.explanation_figures import spoken
from reports.marks import WIDTH, Sample, draw_key, key_height, two_lines, whisker
from reports.numbers import percent
from reports.wording import bounds, count, name, number, plain, several, spaced

_MOST_FEATURES = 15
"""Rows of a beeswarm that fit a page; the others are in its table."""
_THIRDS: tuple[tuple[Third, str], ...] = (("low", "low third of the values"), ("middle", "middle third"), ("high", "high third"))
_MIDDLE_DOT = "#8d99a5"


def section(explanation: CohortExplanation) -> Section:
    """Return the section on what the model goes by.

    Parameters
    ----------
    explanation
        Of a cohort; without features (a stored summary may leave them out) there is no beeswarm.
    """
    return Section("What the model goes by", tuple(_blocks(explanation)))


def _blocks(explanation: CohortExplanation) -> Iterable[Block]:
    whose = "each recording's most probable class" if explanation.target is None else spoken(explanation.target)
    yield Paragraph(
        f"Every one of {several(explanation.recordings, 'recording')} of {several(explanation.subjects, 'subject')} was explained as a result "
        f"explains one: what each family of features adds to the probability of {whose}, against the reference group most like the speaker. "
        "It says what the model uses, and nothing about causes."
    )
    if explanation.inside:
        yield Notice(
            "warn",
            "The model learned from these recordings",
            ("Effects are what they are; how reliable explanations are for new people cannot be read off here.",),
        )
    yield families(explanation)
    if beeswarm := features(explanation):
        yield beeswarm
    yield _reliability(explanation)


# --- Families -----------------------------------------------------------------------------------------------------------------------------

_ROW, _LABELS, _PLOT, _POINTS, _FIRST = 32.0, 170.0, (184.0, 500.0), 560.0, 670.0


def families(explanation: CohortExplanation) -> Picture:
    """Draw the mean size of each family's effect on the probability, with its interval."""
    told = [
        f"{name(one.label_en)}: {_points(one.size.value)} points ({_points_range(one.size)}), first in {_percent(one.first)} of recordings."
        for one in explanation.families
    ]
    people = f"{several(explanation.recordings, 'recording')} of {several(explanation.subjects, 'subject')}"
    return Picture(
        name="family-sizes",
        title="How much each family moves the probability",
        finding=f"Mean size of the effect on the probability in points of percent, with 95 % intervals, over {people}. {' '.join(told)}",
        drawing=_sizes(explanation.families),
        table=_families_table(explanation),
        note="Bars: mean size of the effect, whichever way it goes; thin lines: 95 % intervals over subjects. “First”: share of recordings in which "
        "the family has the largest effect.",
    )


def _points(value: float | None) -> str:
    """Write the size of an effect in points of percent."""
    return wording.NOT_DEFINED if value is None else percent(value).removesuffix(" %")


def _points_range(figure: Figure) -> str:
    return wording.NO_INTERVAL if figure.low is None or figure.high is None else f"{_points(max(figure.low, 0.0))} to {_points(figure.high)}"


def _percent(figure: Figure) -> str:
    return wording.NOT_DEFINED if figure.value is None else percent(figure.value)


def _families_table(explanation: CohortExplanation) -> Table:
    columns = [
        Column("Family"),
        Column("Mean size, points of percent", "number"),
        Column("95 % interval", "number"),
        Column("Largest effect in, share", "number"),
        Column("95 % interval", "number"),
        Column("Subjects", "count"),
    ]
    rows = [
        [one.label_en, _points(one.size.value), _points_range(one.size), number(one.first.value), bounds(one.first), count(one.size.subjects)]
        for one in explanation.families
    ]
    return Table.of("Families by mean size of their effect on the probability", columns, rows)


def _sizes(families: Sequence[FamilySummary]) -> Drawing:
    top = 26.0
    floor = top + _ROW * len(families)
    drawing = Drawing(WIDTH, floor + 52)
    highest = max((value for one in families for value in (one.size.value, one.size.high) if value is not None), default=0.0) or 0.01
    x = Scale(0, 100 * highest * 1.04, *_PLOT)
    drawing.text(_POINTS, 14, "points", anchor="end", size=SMALL, fill=QUIET)
    drawing.text(_FIRST, 14, "first", anchor="end", size=SMALL, fill=QUIET)
    _axis(drawing, x, top, floor, "Mean size of the effect, points of percent", ticks(0, x.high))
    for i, family in enumerate(families):
        y = top + _ROW * (i + 0.5)
        drawing.text(0, y + 4, shortened(plain(family.label_en), _LABELS))
        drawing.text(_POINTS, y + 4, _points(family.size.value), anchor="end")
        drawing.text(_FIRST, y + 4, _percent(family.first), anchor="end")
        if family.size.value is not None:
            drawing.box(x.start, y - 9, x(100 * family.size.value) - x.start, 12, fill=ACCENT)
        if family.size.low is not None and family.size.high is not None:
            whisker(drawing, x, y + 9, max(100 * family.size.low, 0.0), 100 * family.size.high)
    return drawing


def _axis(drawing: Drawing, x: Scale, top: float, floor: float, label: str, marked: Sequence[float]) -> None:
    for value in marked:
        drawing.line(x(value), top, x(value), floor, stroke=FAINT)
        drawing.line(x(value), floor, x(value), floor + 5, stroke=QUIET)
        drawing.text(x(value), floor + 19, tick(value, marked), anchor="middle", size=SMALL, fill=QUIET)
    drawing.line(x.start, floor, x.end, floor, stroke=QUIET)
    drawing.text((x.start + x.end) / 2, floor + 42, label, anchor="middle")


# --- Features -----------------------------------------------------------------------------------------------------------------------------

_NAMES, _SWARM, _SWARM_ROW, _DOT = 208.0, (222.0, 680.0), 48.0, 2.1
_PITCH, _SIDE_BY_SIDE, _HIGH = 2 * _DOT + 0.6, 2, 9
"""Distance of two dots, and how many of them a bin has room for, side by side and above each other."""
_MOST_DOTS = 2500
"""Of a drawing: each takes 80 bytes."""
_STEPS = (1, 2, 3, 4, 5, 6, 8, *(digit * 10**power for power in range(1, 8) for digit in (1, 1.2, 1.5, 2, 2.5, 3, 4, 5, 6, 8)))
_STRIPE = "#f2f6f9"


def features(explanation: CohortExplanation) -> Picture | None:
    """Draw, for each feature, what it did to the log-odds in how many recordings, by whether its value was low or high; None without features.

    Parameters
    ----------
    explanation
        Of a cohort.

    Returns
    -------
    Picture or None
        A dot is as many recordings of one bin and one third as its note says, or the rest of them.
    """
    if not explanation.features or len(explanation.edges) < 2:
        return None
    shown = explanation.features[:_MOST_FEATURES]
    each = recordings_per_dot(shown)
    left = f" The {several(len(explanation.features) - len(shown), 'feature')} with the smallest effects stand in the table alone."
    a_dot = "one recording" if each == 1 else f"up to {count(each)} recordings"
    return Picture(
        name="feature-effects",
        title="Which values of a feature move the score, and which way",
        finding=_features_finding(explanation),
        drawing=_swarms(explanation, shown, each),
        table=_features_table(explanation),
        note=f"One dot: {a_dot} of one bin and one third; effects beyond the ends are in the outermost bins. Features by mean size of their effect."
        + (left if len(shown) < len(explanation.features) else ""),
    )


def recordings_per_dot(features: Sequence[FeatureSummary]) -> int:
    """Return for how many recordings a dot has to stand, so that every bin fits its row."""
    for each in map(round, _STEPS):
        dots = [_dots(feature, each, place) for feature in features for place in range(_bins(feature))]
        if max(dots, default=0) <= _SIDE_BY_SIDE * _HIGH and sum(dots) <= _MOST_DOTS:
            break
    return each


def _bins(feature: FeatureSummary) -> int:
    return max((len(counts) for counts in feature.counts.values()), default=0)


def _dots(feature: FeatureSummary, each: int, place: int) -> int:
    return sum(math.ceil(counts[place] / each) for counts in feature.counts.values())


def _features_finding(explanation: CohortExplanation) -> str:
    told = [f"{name(one.label_en)}, {_raising(explanation, one)}" for one in explanation.features[:5]]
    return f"The features with the largest effects, over {several(explanation.recordings, 'recording')}: {'; '.join(told)}."


def _raising(explanation: CohortExplanation, feature: FeatureSummary) -> str:
    low, high = (_share_raised(explanation.edges, feature.counts.get(third, ())) for third in ("low", "high"))
    return f"mean size {number(feature.size.value)} in log-odds, raises in {low} of the low third and in {high} of the high third"


def _share_raised(edges: Sequence[float], counts: Sequence[int]) -> str:
    """Write in how many recordings the effect lies in a bin above zero; a bin that zero cuts counts by half."""
    total = sum(counts)
    above = sum(n * (low + high > 1e-9) + 0.5 * n * (abs(low + high) <= 1e-9) for (low, high), n in zip(pairwise(edges), counts, strict=True))
    return percent(above / total) if total else wording.NOT_DEFINED


def _features_table(explanation: CohortExplanation) -> Table:
    columns = [
        Column("Feature", wide=True),
        Column("Mean size", "number"),
        Column("95 % interval", "number"),
        *(Column(f"Raises, {third}", "count") for third, _ in _THIRDS),
        Column("Recordings", "count"),
    ]
    rows = [
        [
            one.label_en,
            number(one.size.value),
            bounds(one.size),
            *(_share_raised(explanation.edges, one.counts.get(third, ())) for third, _ in _THIRDS),
            count(sum(map(sum, one.counts.values()))),
        ]
        for one in explanation.features
    ]
    note = "Raises: share of the recordings in which the feature raises the score, among those with low, middle and high values of it."
    return Table.of("Features by mean size of their effect on the log-odds", columns, rows, note)


def _dot(drawing: Drawing, x: float, y: float, third: Third, size: float = _DOT) -> None:
    """Draw a dot; thirds differ in lightness, and the low one is hollow."""
    fill = {"low": PAPER, "middle": _MIDDLE_DOT, "high": INK}[third]
    drawing.mark("circle", x, y, fill=fill, stroke={"low": INK, "middle": _MIDDLE_DOT, "high": INK}[third], size=size)


def _dot_sample(third: Third) -> Sample:
    words = dict(_THIRDS)[third]
    return words, lambda drawing, x, y: _dot(drawing, x, y, third, 4)


_KEY: tuple[Sample, ...] = tuple(_dot_sample(third) for third, _ in _THIRDS)


def _swarms(explanation: CohortExplanation, shown: Sequence[FeatureSummary], each: int) -> Drawing:
    top = key_height(_KEY) + 4
    floor = top + _SWARM_ROW * len(shown)
    drawing = Drawing(WIDTH, floor + 52)
    edges = explanation.edges
    x = Scale(edges[0], edges[-1], *_SWARM)
    draw_key(drawing, _KEY)
    for i in range(0, len(shown), 2):
        drawing.box(0, top + _SWARM_ROW * i, WIDTH, _SWARM_ROW, fill=_STRIPE)
    marked = ticks(x.low, x.high, 6)
    _axis(drawing, x, top, floor, "Effect on the score (log-odds): lowers it to the left, raises it to the right", marked)
    if x.holds(0):
        drawing.line(x(0), top, x(0), floor, stroke=INK)
    for i, feature in enumerate(shown):
        middle = top + _SWARM_ROW * (i + 0.5)
        lines = two_lines(plain(feature.label_en), _NAMES - 6)
        for k, line in enumerate(lines):
            drawing.text(4, middle + 4 + 15 * k - 7.5 * (len(lines) - 1), line, size=SMALL)
        for place, (low, high) in enumerate(pairwise(edges)):
            _stack(drawing, x((low + high) / 2), middle, [third for third, _ in _THIRDS for _ in range(_thirds_dots(feature, third, place, each))])
    return drawing


def _thirds_dots(feature: FeatureSummary, third: Third, place: int, each: int) -> int:
    counts = feature.counts.get(third, ())
    return math.ceil(counts[place] / each) if place < len(counts) else 0


def _stack(drawing: Drawing, x: float, middle: float, dots: Sequence[Third]) -> None:
    """Draw the dots of a bin, two in a row from the bottom up, around the middle of their feature's row."""
    rows = math.ceil(len(dots) / _SIDE_BY_SIDE)
    for i, third in enumerate(dots):
        up, across = divmod(i, _SIDE_BY_SIDE)
        beside = min(_SIDE_BY_SIDE, len(dots) - up * _SIDE_BY_SIDE)
        _dot(drawing, x + _PITCH * (across - (beside - 1) / 2), middle + _PITCH * ((rows - 1) / 2 - up), third)


# --- Reliability --------------------------------------------------------------------------------------------------------------------------


def _reliability(explanation: CohortExplanation) -> Table:
    columns = [
        Column("How reliable explanations are", wide=True),
        Column("Value", "number"),
        Column("95 % interval", "number"),
        Column("Subjects", "count"),
        Column("Recordings", "count"),
    ]
    rows = [
        [spaced(RELIABILITY.get(key, key)), number(figure.value), bounds(figure), count(figure.subjects), count(figure.recordings)]
        for key, figure in explanation.reliability.items()
    ]
    note = (
        "The model and its refits on other people are explained alike. A family may be called the main driver where it comes first, in at least "
        "80 % of refits, and its interval does not cross zero."
    )
    return Table.of("Reliability of explanations over refits of the model", columns, rows, note)
