"""The drawing of a person's visits: each measure, and the probability, over time.

The one idea: a line alone tempts to see a trend in anything; the band says how far values go while nothing changes, or that nobody knows.
"""

from itertools import pairwise

from scipy.special import expit

from clinical_ser.monitoring.comparison import Change, Comparison
from reports import marks
from reports.clinician_figures import names_unit, unit_of
from reports.document import Column, Picture, Table
from reports.drawing import BOLD, FAINT, INK, PAPER, QUIET, SMALL, WASH, Drawing, Scale
from reports.locale import Locale
from reports.marks import WIDTH
from reports.numbers import brief, one_place, percent, points

_VISIT_ROW = 34.0
_ARITHMETIC = 9
"""Decimals beyond which a difference is what arithmetic leaves."""
_VISIT_NAMES = 178.0
_VISIT_TRACK, _VISIT_SAID = (186.0, 336.0), 560.0
_VISIT_OWN, _VISIT_NOW, _VISIT_CHANGE, _VISIT_INDEX = 396.0, 448.0, 504.0, 546.0


def visits(comparison: Comparison, label: str, locale: Locale) -> Picture:
    """Draw each measure over the visits, with the band in which it stays when nothing changes, as far as that is known.

    Parameters
    ----------
    comparison
        Of visits, the current one last.
    label
        What the class is called whose probability is the score; empty where the current recording has no number, and then none is drawn.
    locale
        The reader's language.
    """
    rows = [_Row(change, comparison, label, locale) for change in (*([comparison.score] if comparison.score and label else []), *comparison.measures)]
    drawing = Drawing(WIDTH, 24 + _VISIT_ROW * len(rows) + 22)
    for at, word in ((_VISIT_OWN, "own"), (_VISIT_NOW, "now"), (_VISIT_CHANGE, "change"), (_VISIT_INDEX, "index")):
        drawing.text(at, 12, locale(f"visits.{word}"), anchor="end", size=SMALL, fill=QUIET)
    drawing.text(_VISIT_SAID, 12, locale("visits.verdict"), size=SMALL, fill=QUIET)
    for i, row in enumerate(rows):
        row.draw(drawing, 24 + _VISIT_ROW * (i + 0.5))
    foot, n = 24 + _VISIT_ROW * len(rows) + 14, len(comparison.visits)
    first, last = comparison.visits[0].recorded_on, comparison.visits[-1].recorded_on
    drawing.text(_VISIT_TRACK[0], foot, first.isoformat() if first else locale("visits.first"), size=SMALL, fill=QUIET)
    drawing.text(_VISIT_TRACK[1], foot, last.isoformat() if last else locale("visits.last", n=n), anchor="end", size=SMALL, fill=QUIET)
    title = locale("visits.title", n=n)
    heads = ("measures.column", "visits.own", "visits.now", "visits.change", "visits.index", "visits.verdict")
    table = Table.of(title, [Column(locale(head)) for head in heads], [row.cells for row in rows])
    return Picture("visits", title, " ".join(row.words for row in rows), drawing, table)


class _Row:
    """One measure, or the probability, over the visits."""

    def __init__(self, change: Change, comparison: Comparison, label: str, locale: Locale):
        self._change, self._visits, self._locale = change, comparison.visits, locale
        self._score = change is comparison.score
        self._name = locale("visits.score", label=label) if self._score else locale.label(change)

    @property
    def cells(self) -> list[str]:
        """Its name, baseline, value, change, index and verdict."""
        change, say = self._change, self._locale
        own, now = self._written(change.baseline, say("unknown")), self._written(change.values[-1], say("measures.missing"))
        index = say("unknown") if change.index is None else one_place(change.index)
        return [self._name, own, now, self._moved or say("unknown"), index, self._verdict]

    @property
    def words(self) -> str:
        """The same as a sentence."""
        label, own, now, moved, index, verdict = self.cells
        return self._locale("visits.one", label=label, own=own, now=now, change=moved, index=index, verdict=verdict)

    @property
    def _moved(self) -> str:
        """Return the difference with its own two digits, since a value and its baseline may look the same with two; empty where it is not known."""
        change = self._change
        if change.difference is None or change.baseline is None:
            return ""
        if not self._score:
            difference = round(change.difference, _ARITHMETIC)
            return f"{'+' if difference > 0 else ''}{brief(difference)}"
        return points(float(expit(change.baseline + change.difference) - expit(change.baseline)))

    @property
    def _verdict(self) -> str:
        change, say = self._change, self._locale
        if change.verdict == "changed":
            return say("visits.higher" if (change.difference or 0) > 0 else "visits.lower")
        return say("visits.within") if change.verdict == "within" else say(f"visits_unknown.{change.reason}")

    def _written(self, value: float | None, otherwise: str) -> str:
        if value is None:
            return otherwise
        return percent(float(expit(value))) if self._score else brief(value)

    def draw(self, drawing: Drawing, y: float) -> None:
        """Draw the row around a height."""
        drawing.line(0, y + _VISIT_ROW / 2, WIDTH, y + _VISIT_ROW / 2, stroke=FAINT)
        label, own, now, moved, index, verdict = self.cells
        unit = "" if self._score else unit_of(self._change.unit, self._locale, of=self._change.name)
        named = not unit or names_unit(label, unit)
        _lines(drawing, 0, y, _VISIT_NAMES, label if named else self._locale("with_unit", label=label, unit=unit))
        self._sparkline(drawing, y)
        change, changed = self._change, self._change.verdict == "changed"
        numbers = ((_VISIT_OWN, own, change.baseline), (_VISIT_NOW, now, change.values[-1]), (_VISIT_CHANGE, moved, change.difference))
        for at, words, known in (*numbers, (_VISIT_INDEX, index, change.index)):
            if known is not None:
                drawing.text(at, y + 4, words, anchor="end", size=11, bold=at == _VISIT_NOW)
        _lines(drawing, _VISIT_SAID, y, WIDTH - _VISIT_SAID, verdict, fill=INK if changed else QUIET, bold=changed)

    def _sparkline(self, drawing: Drawing, y: float) -> None:
        band = self._change.band
        known = [(i, value) for i, value in enumerate(self._change.values) if value is not None]
        if not known:
            return
        ends = [value for _, value in known] + ([band.low, band.high] if band else [])
        room = (max(ends) - min(ends)) * 0.08 or abs(max(ends)) * 0.1 or 1.0
        up = Scale(min(ends) - room, max(ends) + room, y + _VISIT_ROW / 2 - 4, y - _VISIT_ROW / 2 + 4)
        x = Scale(0, len(self._change.values) - 1, _VISIT_TRACK[0] + 6, _VISIT_TRACK[1] - 8)
        if band:
            drawing.box(_VISIT_TRACK[0], up(band.high), _VISIT_TRACK[1] - _VISIT_TRACK[0], up(band.low) - up(band.high), fill=WASH)
        for (before, low), (after, high) in pairwise(known):
            if after - before == 1:
                drawing.line(x(before), up(low), x(after), up(high), stroke=QUIET, width=1.25)
        for i, value in known[:-1] if known[-1][0] == len(self._change.values) - 1 else known:
            drawing.mark("circle", x(i), up(value), fill=PAPER if self._visits[i].left_out else QUIET, stroke=QUIET, size=2.5)
        if self._change.values[-1] is not None:
            drawing.mark("diamond", x(len(self._change.values) - 1), up(self._change.values[-1]), size=5)


def _lines(drawing: Drawing, x: float, y: float, room: float, words: str, *, fill: str = INK, bold: bool = False) -> None:
    """Write words around a height, in two lines where one has no room for them."""
    lines = marks.two_lines(words, room / BOLD if bold else room)
    for i, line in enumerate(lines):
        drawing.text(x, y + 4 + 14 * (i - (len(lines) - 1) / 2), line, size=11.5, fill=fill, bold=bold)
