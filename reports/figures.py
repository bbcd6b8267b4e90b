"""The curves that a reviewer looks for, drawn from evidence: ranking, calibration, distributions, net benefit, learning curve.

The one idea: each function returns the drawing together with what it shows, in words with numbers and as a table.
"""

import math
from collections.abc import Sequence

from clinical_ser.evaluation.evidence import Band, Decision, Evidence, Scores
from clinical_ser.evaluation.figure import Figure
from clinical_ser.evaluation.planning import LearningCurve
from reports import wording
from reports.document import Column, Picture, Plate, Table
from reports.drawing import ACCENT, DASH_DOT, DASHED, INK, QUIET, SMALL, WASH, Drawing, Look, Plot, Scale, shortened, text_width, tick, ticks
from reports.wording import count, level, name, number, said, several, share

POINTS_IN_TABLE = 11
UNIT_TICKS = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)
_STRIP = 66
_BINS_IN_TABLE = 10
_PANEL = 150
_SIDE = 350
"""Width of a drawing that stands beside another."""
_KEY_LINE, _KEY_ROOM = 20, 12
_STEPS = 40
"""Straight pieces that a fitted curve is drawn with."""
_NET_BENEFIT_BELOW = 0.35
"""How far below zero a decision curve is drawn, as a share of its height above: flagging everyone falls without end."""
_NEARLY_NOTHING = 0.01
"""Of the highest net benefit."""
_SHORTEST_AXIS = 0.2


def roc(evidence: Evidence) -> Picture | None:
    """Draw sensitivity over 1 - specificity, with its band and the frozen operating point; None where there is no such curve."""
    if evidence.binary is None or not _defined(evidence.binary.roc):
        return None
    band, figures = evidence.binary.roc, evidence.figures
    sensitivity, specificity = figures.get("sensitivity"), figures.get("specificity")
    plot = Plot((0, 1), (0, 1), width=_SIDE, height=366, top=_top(2))
    plot.band(band.x, band.low, band.high)
    plot.axes("1 − specificity", "Sensitivity", UNIT_TICKS, UNIT_TICKS)
    model = Look("model", ACCENT, 2, band=WASH)
    chance = Look("chance", QUIET, 1.25, DASHED)
    plot.curve((0, 1), (0, 1), chance)
    plot.curve(band.x, band.y, model)
    looks, found = [model, chance], []
    if "auroc" in figures:
        found.append(f"The area under the curve (AUROC) is {said(figures['auroc'], level(evidence))}; chance is 0.5.")
    if sensitivity and specificity and sensitivity.value is not None and specificity.value is not None:
        _cross(plot, sensitivity, specificity)
        plot.point(1 - specificity.value, sensitivity.value, "diamond", fill=INK)
        looks.append(Look("frozen threshold", INK, 0, mark="diamond"))
        at = "" if evidence.threshold is None else f" {number(evidence.threshold)}"
        found.append(f"At the frozen threshold{at}, sensitivity is {said(sensitivity, level(evidence))}.")
        found.append(f"Specificity there is {said(specificity, level(evidence))}.")
    plot.key(looks)
    own_fold = "The point can lie off the curve: out of fold, every recording was judged by the threshold of its own fold."
    apart = f" {own_fold}" if evidence.origin == "out_of_fold" else ""
    return Picture(
        name="roc",
        title="Receiver operating characteristic",
        finding=" ".join(found) or "The curve is in the table below.",
        drawing=plot,
        table=_band_table(evidence, band, "Sensitivity by 1 − specificity", "1 − specificity", "Sensitivity"),
        note=f"{_band_note(evidence)} Diamond: the frozen threshold, with its intervals as a cross.{apart}",
    )


def precision_recall(evidence: Evidence) -> Picture | None:
    """Draw precision over recall, with its band and the prevalence, which is what chance reaches; None where there is no such curve."""
    if evidence.binary is None or not _defined(evidence.binary.precision_recall):
        return None
    band = evidence.binary.precision_recall
    plot = Plot((0, 1), (0, 1), width=_SIDE, height=366, top=_top(2))
    plot.band(band.x, band.low, band.high)
    plot.axes("Recall (sensitivity)", "Precision (PPV)", UNIT_TICKS, UNIT_TICKS)
    model = Look("model", ACCENT, 2, band=WASH)
    looks, found = [model], []
    if "auprc" in evidence.figures:
        found.append(f"Average precision (AUPRC) is {said(evidence.figures['auprc'], level(evidence))}.")
    prevalence = evidence.cohort_prevalence
    if prevalence is not None:
        chance = Look("prevalence, reached by chance", QUIET, 1.25, DASHED)
        plot.curve((0, 1), (prevalence, prevalence), chance)
        looks.append(chance)
        people = f" among {several(evidence.flow.subjects, 'subject')}"
        found.append(f"Chance reaches the prevalence of the cohort, {number(prevalence)}{people}.")
    plot.curve(band.x, band.y, model)
    plot.key(looks)
    return Picture(
        name="precision-recall",
        title="Precision and recall",
        finding=" ".join(found) or "The curve is in the table below.",
        drawing=plot,
        table=_band_table(evidence, band, "Precision by recall", "Recall", "Precision"),
        note=f"{_band_note(evidence)} Precision is that at the prevalence of the cohort; it would be another elsewhere.",
    )


def reliability(evidence: Evidence) -> Picture | None:
    """Draw observed share over stated probability, with band and diagonal, and the scores by class as bars under it; None without such a curve."""
    curves = evidence.binary or evidence.classes
    if curves is None or not _defined(curves.reliability):
        return None
    band, binary = curves.reliability, evidence.binary is not None
    plot = Plot((0, 1), (0, 1), width=_SIDE, height=340 + _STRIP, left=104, top=_top(2), bottom=56 + _STRIP)
    plot.band(band.x, band.low, band.high)
    y_label = "Observed share" if binary else "Share of right answers"
    x_label = "Stated probability" if binary else "Probability stated for the answer"
    plot.axes(x_label, y_label, UNIT_TICKS, UNIT_TICKS, strip=_STRIP)
    perfect, model = Look("perfect calibration", QUIET, 1.25, DASHED), Look("model, smoothed", ACCENT, 2, band=WASH)
    plot.curve((0, 1), (0, 1), perfect)
    plot.curve(band.x, band.y, model)
    plot.key([model, perfect])
    up, down = _up_and_down(evidence)
    _rug(plot, curves.scores, up, down)
    figures, of_level = evidence.figures, level(evidence)
    found = [
        f"{wording.title_of(key)} is {said(figures[key], of_level)}."
        for key in ("calibration_intercept", "calibration_slope", "observed_to_expected")
        if key in figures
    ]
    found.append(_largest_departure(band, of_level))
    return Picture(
        name="reliability",
        title="Stated probability and observed share",
        finding=" ".join(filter(None, found)),
        drawing=plot,
        table=_band_table(evidence, band, f"{y_label} by stated probability", "Stated", "Observed"),
        note=f"{_band_note(evidence)} Bars: recordings by stated probability, upwards {name(up)}, downwards {name(down)}; the table of the next "
        "figure counts them.",
    )


def distributions(evidence: Evidence) -> Picture | None:
    """Draw how stated probabilities are distributed by outcome, one panel each on one scale; None without a recording."""
    curves = evidence.binary or evidence.classes
    scores = curves.scores if curves else Scores(edges=(0.0, 1.0), counts={})
    shown = {label: numbers for label, numbers in scores.counts.items() if sum(numbers)}
    if not shown:
        return None
    x_label = "Stated probability" if evidence.binary else "Probability stated for the answer"
    top = max(max(numbers) / sum(numbers) for numbers in shown.values())
    height = 24 + _PANEL * len(shown) + 50
    drawing = Drawing(_SIDE, height)
    x = Scale(0, 1, 64, _SIDE - 20)
    for i, (label, numbers) in enumerate(shown.items()):
        _panel(drawing, x, 24 + i * _PANEL, scores.edges, numbers, label, top)
    floor = height - 50
    for value in UNIT_TICKS:
        drawing.line(x(value), floor, x(value), floor + 5, stroke=QUIET)
        drawing.text(x(value), floor + 19, tick(value, UNIT_TICKS), anchor="middle", size=SMALL, fill=QUIET)
    drawing.text((x.start + x.end) / 2, floor + 42, x_label, anchor="middle")
    drawing.text(18, (24 + floor) / 2, "Share of recordings", anchor="middle", turned=True)
    if evidence.threshold is not None:
        at = x(evidence.threshold)
        drawing.line(at, 16, at, floor, stroke=INK, width=1.25, dash=DASHED)
        right = evidence.threshold > 0.5
        words = f"frozen threshold {number(evidence.threshold)}"
        drawing.text(at - 5 if right else at + 5, 12, words, anchor="end" if right else "start", size=SMALL)
    return Picture(
        name="distributions",
        title="Stated probabilities by outcome",
        finding=" ".join(_spread(label, scores.edges, numbers) for label, numbers in shown.items()),
        drawing=drawing,
        table=_scores_table(scores),
        note="Each panel is of one outcome and adds up to 1.",
    )


def decisions(evidence: Evidence) -> Plate | None:
    """Draw the decision curves side by side, with one table for all; None where none is defined."""
    curves = [curve for curve in evidence.binary.decisions if _defined(curve.model)] if evidence.binary else []
    if not curves:
        return None
    return Plate(
        pictures=tuple(decision(evidence, curve) for curve in curves),
        table=_decision_table(evidence, curves),
        note=f"{_band_note(evidence)} A threshold probability of 0.1 counts nine needless flags as heavily as one missed person.",
    )


def decision(evidence: Evidence, curve: Decision) -> Picture:
    """Draw net benefit over threshold probabilities, of the model, of flagging everyone and of flagging no one."""
    end, top = _ends(curve)
    shown = [i for i, x in enumerate(curve.model.x) if x <= end]
    x = [curve.model.x[i] for i in shown]
    plot = Plot((0, end), (-_NET_BENEFIT_BELOW * top, top), width=_SIDE, height=372, left=72, top=_top(3))
    plot.band(x, [curve.model.low[i] for i in shown], [curve.model.high[i] for i in shown])
    plot.axes("Threshold probability", "Net benefit", ticks(0, end), ticks(plot.y.low, plot.y.high))
    model, everyone, none = (
        Look("model", ACCENT, 2, band=WASH),
        Look("flag everyone (“treat all”)", INK, 1.25, DASHED),
        Look("flag no one (“treat none”)", QUIET, 1.25, DASH_DOT),
    )
    plot.curve((0, plot.x.high), (0, 0), none)
    plot.curve(x, [curve.treat_all[i] for i in shown], everyone)
    plot.curve(x, [curve.model.y[i] for i in shown], model)
    plot.key([model, everyone, none])
    prevalence = _prevalence_of(evidence, curve)
    whose = f"the cohort's own prevalence of {prevalence}" if curve.own else f"a stated prevalence of {prevalence}"
    people = several(evidence.flow.subjects, "subject")
    return Picture(
        name=f"decision-{'own' if curve.own else 'stated'}-{round(curve.prevalence * 1e6)}",
        title=f"Decision curve at {whose}",
        finding=f"{_useful_range(curve, level(evidence))} ({people})",
        drawing=plot,
        table=None,
        note=f"Drawn up to {share(end)}; the model's net benefit beyond is nearly 0." if end < 1 else "",
    )


def _prevalence_of(evidence: Evidence, curve: Decision) -> str:
    return number(evidence.cohort_prevalence) if curve.own and evidence.cohort_prevalence is not None else share(curve.prevalence)


def learning(curve: LearningCurve) -> Picture:
    """Draw what more subjects would buy: points with intervals, the fitted curve, and its extrapolation with a band."""
    points, beyond = curve.points, curve.extrapolated
    title, most = wording.title_of(curve.metric), max([point.subjects for point in points] + [further.subjects for further in beyond])
    lows = [low for low in (*(point.low for point in points), *(further.low for further in beyond)) if low is not None]
    lows += [point.value for point in points]
    bottom = math.floor(min(lows, default=0.5) * 10 - 1e-9) / 10
    plot = Plot((0, most * 1.04), (max(bottom, 0.0), 1), width=560, height=420, top=40)
    plot.band([further.subjects for further in beyond], [further.low for further in beyond], [further.high for further in beyond])
    plot.axes("Subjects trained on", title, ticks(0, most), ticks(plot.y.low, 1))
    seen = max((point.subjects for point in points), default=0)
    fitted, guessed = Look("fitted curve", ACCENT, 2), Look("extrapolated, with its band", ACCENT, 2, DASHED, band=WASH)
    if curve.curve is not None and points:
        for start, end, look in ((points[0].subjects, seen, fitted), (seen, most, guessed)):
            x = [start + (end - start) * i / _STEPS for i in range(_STEPS + 1)]
            plot.curve(x, [curve.curve.at(n) for n in x], look)
    for point in points:
        if point.low is not None and point.high is not None:
            at = plot.x(point.subjects)
            plot.line(at, plot.y.clipped(point.low), at, plot.y.clipped(point.high), width=1.25)
        plot.point(point.subjects, point.value, "circle")
    looks = [Look("trained and tested", INK, 0, mark="circle")] + ([fitted, guessed] if curve.curve is not None else [])
    plot.key(looks)
    return Picture(
        name="learning-curve",
        title=f"Learning curve: {title} by number of subjects trained on",
        finding=_learning_finding(curve, title),
        drawing=plot,
        table=_learning_table(curve, title),
        note="Lines through points: 95 % intervals over subjects tested and repeats. They leave out that other people would have been trained on "
        "altogether, so they are rather short.",
    )


def _learning_finding(curve: LearningCurve, title: str) -> str:
    said_of = [f"{number(one.value)} ({_interval(one.low, one.high)}) with {several(one.subjects, 'subject')}" for one in curve.points]
    parts = [f"{title} (95 % interval) of models tested on others: {'; '.join(said_of)}." if said_of else "No size was trained on."]
    if curve.extrapolated:
        last = curve.extrapolated[-1]
        parts.append(f"Extrapolated to {several(last.subjects, 'subject')}: {number(last.value)} ({_interval(last.low, last.high)}).")
    return " ".join(parts)


def _learning_table(curve: LearningCurve, title: str) -> Table:
    columns = [Column("How"), Column("Subjects", "count"), Column(title, "number"), Column("95 % interval", "number")]
    rows = [["trained and tested", count(p.subjects), number(p.value), _interval(p.low, p.high)] for p in curve.points]
    rows += [["extrapolated", count(e.subjects), number(e.value), _interval(e.low, e.high)] for e in curve.extrapolated]
    tested = f"{several(curve.subjects, 'subject')}, {curve.folds} folds, {several(curve.repeats, 'repeat')}"
    return Table.of(f"{title} by number of subjects trained on ({tested})", columns, rows)


def _defined(band: Band) -> bool:
    return any(value is not None for value in band.y)


def _band_note(evidence: Evidence) -> str:
    return f"Band: pointwise {level(evidence)} interval over {several(evidence.flow.subjects, 'subject')}."


def _cross(plot: Plot, sensitivity: Figure, specificity: Figure) -> None:
    """Draw the intervals of sensitivity and specificity through the operating point."""
    if sensitivity.value is None or specificity.value is None:
        return
    x, y = plot.x(1 - specificity.value), plot.y(sensitivity.value)
    if specificity.low is not None and specificity.high is not None:
        plot.line(plot.x(1 - specificity.high), y, plot.x(1 - specificity.low), y, width=1.25)
    if sensitivity.low is not None and sensitivity.high is not None:
        plot.line(x, plot.y(sensitivity.low), x, plot.y(sensitivity.high), width=1.25)


def _sampled(length: int, wanted: int = POINTS_IN_TABLE) -> list[int]:
    """Positions of a few points of a curve, evenly spread, both ends among them."""
    return sorted({round(i * (length - 1) / (wanted - 1)) for i in range(wanted)}) if length else []


def _interval(low: float | None, high: float | None) -> str:
    return wording.NO_INTERVAL if low is None or high is None else f"{number(low)} to {number(high)}"


def _band_table(evidence: Evidence, band: Band, caption: str, x: str, y: str) -> Table:
    at = [i for i in _sampled(len(band.x)) if band.y[i] is not None]
    columns = [Column(x, "number"), Column(y, "number"), Column(f"{level(evidence)} interval", "number")]
    rows = [[f"{band.x[i]:.2f}", number(band.y[i]), _interval(band.low[i], band.high[i])] for i in at]
    people = several(evidence.flow.subjects, "subject")
    return Table.of(f"{caption} ({people}; {len(at)} points of the curve)", columns, rows)


def _up_and_down(evidence: Evidence) -> tuple[str, str]:
    """Which outcome's bars go up, and which down."""
    if evidence.binary is not None:
        negative, positive = evidence.task.classes
        return positive, negative
    return "right", "wrong"


def _rug(plot: Plot, scores: Scores, up: str, down: str) -> None:
    """Bars of counts in the strip between the plot and its ticks."""
    middle = plot.y.start + 6 + (_STRIP - 6) / 2
    tallest = max((n for label in (up, down) for n in scores.counts.get(label, ())), default=0) or 1
    room = (_STRIP - 16) / 2
    for label, way in ((up, -1), (down, 1)):
        for low, high, n in zip(scores.edges, scores.edges[1:], scores.counts.get(label, ()), strict=False):
            size = room * n / tallest
            if n:
                x = plot.x(low) + 0.5
                plot.box(x, min(middle, middle + way * size), plot.x(high) - plot.x(low) - 1, size, fill=ACCENT if way < 0 else QUIET)
    plot.line(plot.x.start, middle, plot.x.end, middle, stroke=QUIET)
    for label, y in ((up, middle - 12), (down, middle + 20)):
        plot.text(plot.x.start - 8, y, shortened(wording.plain(label), plot.x.start - 10, SMALL), anchor="end", size=SMALL, fill=QUIET)


def _largest_departure(band: Band, of_level: str) -> str:
    """Where the curve certainly leaves the diagonal, in words."""
    below = [x for x, high in zip(band.x, band.high, strict=True) if high is not None and high < x]
    above = [x for x, low in zip(band.x, band.low, strict=True) if low is not None and low > x]
    if not below and not above:
        return f"The {of_level} band holds the diagonal everywhere."
    parts = []
    if above:
        parts.append(f"more is observed than stated at some stated probabilities from {share(min(above))} to {share(max(above))}")
    if below:
        parts.append(f"less is observed than stated at some stated probabilities from {share(min(below))} to {share(max(below))}")
    return f"Where the {of_level} band leaves the diagonal, {', and '.join(parts)}."


def _panel(drawing: Drawing, x: Scale, top: float, edges: Sequence[float], numbers: Sequence[int], label: str, highest: float) -> None:
    y = Scale(0, highest, top + _PANEL - 14, top + 28)
    total = sum(numbers)
    for value in ticks(0, highest, 3):
        drawing.line(x.start, y(value), x.end, y(value), stroke="#e7ebee")
        drawing.text(x.start - 8, y(value) + 4, tick(value, ticks(0, highest, 3)), anchor="end", size=SMALL, fill=QUIET)
    for low, high, n in zip(edges, edges[1:], numbers, strict=False):
        if n:
            drawing.box(x(low) + 0.5, y(n / total), x(high) - x(low) - 1, y(0) - y(n / total), fill=ACCENT)
    drawing.line(x.start, y(0), x.end, y(0), stroke=QUIET)
    number_of = f": {several(total, 'recording')}"
    words = shortened(wording.plain(label), x.end - x.start - text_width(number_of, bold=True), bold=True) + number_of
    drawing.text(x.end, top + 14, words, anchor="end", bold=True)


def _spread(label: str, edges: Sequence[float], numbers: Sequence[int]) -> str:
    """Between which stated probabilities the middle half of the recordings lies, to the width of a bin."""
    quarter, three_quarters = (_bin_of(numbers, part) for part in (0.25, 0.75))
    total = several(sum(numbers), "recording")
    return f"{name(label)}, {total}: the middle half has a stated probability from {edges[quarter]:.2f} to {edges[three_quarters + 1]:.2f}."


def _bin_of(numbers: Sequence[int], part: float) -> int:
    """Return the bin in which a share of all recordings is reached."""
    reached, wanted = 0, part * sum(numbers)
    for i, n in enumerate(numbers):
        reached += n
        if reached >= wanted:
            return i
    return len(numbers) - 1


def _scores_table(scores: Scores) -> Table:
    """Count in about ten wider bins."""
    step = max(1, -(-(len(scores.edges) - 1) // _BINS_IN_TABLE))
    labels = list(scores.counts)
    rows = []
    for i in range(0, len(scores.edges) - 1, step):
        last = min(i + step, len(scores.edges) - 1)
        rows.append([f"{scores.edges[i]:.2f} to {scores.edges[last]:.2f}", *(count(sum(scores.counts[label][i:last])) for label in labels)])
    rows.append(["all", *(count(sum(scores.counts[label])) for label in labels)])
    columns = [Column("Stated probability"), *(Column(wording.plain(label), "count") for label in labels)]
    return Table.of("Recordings by stated probability and outcome", columns, rows)


def _ends(curve: Decision) -> tuple[float, float]:
    """Return the last threshold probability and the highest net benefit that are drawn."""
    highest = [value for value in (*curve.model.high, *curve.model.y, *curve.treat_all) if value is not None]
    top = max(max(highest, default=0.0), 0.01) * 1.08
    return _last_of_interest(curve, top), top


def _last_of_interest(curve: Decision, top: float) -> float:
    """Return the threshold probability, rounded up, from which on the model does next to nothing: there it flags hardly anyone."""
    acting = [x for x, y in zip(curve.model.x, curve.model.y, strict=True) if y is not None and abs(y) > _NEARLY_NOTHING * top]
    return min(max(math.ceil(max(acting, default=0) * 10 - 1e-9) / 10, _SHORTEST_AXIS), 1.0)


def _useful_range(curve: Decision, of_level: str) -> str:
    """At which thresholds the model is surely better than flagging everyone and flagging no one."""
    better = [x for x, low in zip(curve.over_default.x, curve.over_default.low, strict=True) if low is not None and low > 0]
    worse = [x for x, high in zip(curve.over_default.x, curve.over_default.high, strict=True) if high is not None and high < 0]
    parts = []
    if better:
        gaps = " (not at all between)" if _broken(curve.over_default.x, better) else ""
        parts.append(
            f"The {of_level} interval of the model's gain over the better of flagging everyone and flagging no one lies above 0 at threshold "
            f"probabilities from {share(min(better))} to {share(max(better))}{gaps}."
        )
    else:
        parts.append(f"At no threshold probability does the {of_level} interval of the model's gain over the better default lie above 0.")
    if worse:
        parts.append(f"It lies below 0, so that the model is worse than the better default, at some from {share(min(worse))} to {share(max(worse))}.")
    return " ".join(parts)


def _broken(grid: Sequence[float], chosen: Sequence[float]) -> bool:
    return sum(min(chosen) <= x <= max(chosen) for x in grid) > len(chosen)


def _decision_table(evidence: Evidence, curves: Sequence[Decision]) -> Table:
    """Give some points of every curve, up to where the longest of them is drawn; a curve on another grid has empty cells between its own points."""
    last = max(_ends(curve)[0] for curve in curves)
    grid = sorted({x for curve in curves for x in curve.model.x if x <= last})
    columns, filled = [Column("Threshold", "number")], []
    for curve in curves:
        at = f"prevalence {_prevalence_of(evidence, curve)}"
        columns += [Column(f"Model, {at}", "figure"), Column(f"Flag everyone, {at}", "number"), Column(f"Gain over better default, {at}", "figure")]
        filled.append({x: _decision_cells(curve, i) for i, x in enumerate(curve.model.x)})
    rows = [[f"{x:.2f}", *(cell for cells in filled for cell in cells.get(x, ("", "", "")))] for x in (grid[i] for i in _sampled(len(grid)))]
    people = several(evidence.flow.subjects, "subject")
    return Table.of(f"Net benefit by threshold probability, with {level(evidence)} intervals ({people})", columns, rows)


def _decision_cells(curve: Decision, i: int) -> tuple[str, str, str]:
    model, over = curve.model, curve.over_default
    written = (wording.bracketed(band.y[i], band.low[i], band.high[i]) for band in (model, over))
    return next(written), number(curve.treat_all[i]), next(written)


def _top(lines: int) -> int:
    """Return the room above a plot that a key of so many lines takes."""
    return _KEY_ROOM + _KEY_LINE * lines
