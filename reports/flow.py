"""What became of every recording, as boxes: the flow diagram that STARD asks for, with unusable recordings and indeterminate answers in it.

References
----------
Bossuyt PM et al. (2015), STARD 2015, BMJ 351:h5527, item 19.
"""

from collections.abc import Sequence

from clinical_ser.evaluation.evidence import Evidence, Flow
from clinical_ser.evaluation.figure import Figure
from reports import wording
from reports.document import Column, Picture, Table
from reports.drawing import ACCENT, PAPER, QUIET, SMALL, WASH, Drawing, shortened, text_width
from reports.wording import bounds, count, level, name, number, several

_WIDTH, _LEFT_WIDTH, _SIDE = 640.0, 240.0, 270.0
_LINE, _PAD, _GAP = 16.0, 8.0, 9.0
_REASONS, _CLASSES_SIDE_BY_SIDE, _CLASSES_LISTED = 4, 2, 12
_ANSWERS = (("flagged", "flagged"), ("not_flagged", "not flagged"), ("indeterminate", "indeterminate"))


def flow(evidence: Evidence) -> Picture:
    """Draw what became of the recordings."""
    of = evidence.flow
    return Picture(
        name="flow",
        title="Flow of recordings",
        finding=_finding(evidence),
        drawing=_drawn(evidence),
        table=Table.of("Recordings, from given to evaluated", [Column("What became of them"), Column("Recordings", "count")], _rows(of)),
        note=f"Shares of answers have {level(evidence)} intervals and are of "
        + ("the class in whose box they stand." if evidence.binary is not None else "all evaluated recordings."),
    )


def _exclusions(flow: Flow) -> list[tuple[str, int, list[str]]]:
    """Return what left the flow, how many recordings, and why."""
    reasons = sorted(flow.reasons.items(), key=lambda item: (-item[1], item[0]))
    shown = [f"{wording.plain(why).replace('_', ' ')}: {count(n)}" for why, n in reasons[:_REASONS]]
    shown += [f"{several(len(reasons) - _REASONS, 'more reason')}, see the table"] if len(reasons) > _REASONS else []
    refused = [f"every recording refused: {several(flow.subjects_refused, 'subject')}"] if flow.subjects_refused else []
    return [
        ("Could not be decoded or measured", flow.without_features, []),
        ("Not usable: refused by the gate", flow.not_usable, [*shown, *refused]),
        ("Kept aside as the subject's baseline", flow.baseline, []),
        ("Without a label", flow.without_label, []),
        ("Learned from, but in no test fold", flow.not_tested, []),
    ]


def _rows(flow: Flow) -> list[list[str]]:
    left = [[f"{what[0].lower()}{what[1:]}", count(n)] for what, n, _ in _exclusions(flow)]
    by_class = [[f"of these: {wording.plain(label)}", count(n)] for label, n in flow.by_class.items()]
    return [["given", count(flow.given)], *left, ["evaluated", count(flow.evaluated)], *by_class]


def _finding(evidence: Evidence) -> str:
    of = evidence.flow
    left = ", ".join(f"{count(n)} {what[0].lower()}{what[1:]}" for what, n, _ in _exclusions(of))
    by_class = "; ".join(f"{name(label)}: {_size_of(of, label)}" for label in of.by_class)
    answers = [f"{text} {number(figure.value)} ({bounds(figure)})" for text, figure in _overall_answers(evidence)]
    evaluated = f"{count(of.evaluated)} of {several(of.subjects, 'subject')} evaluated."
    parts = [f"Of {several(of.given, 'recording')} given: {left}; {evaluated}"]
    parts += [f"{by_class}."] if by_class else []
    parts += [f"Of all evaluated, {', '.join(answers)}."] if answers else []
    return " ".join(parts)


def _overall_answers(evidence: Evidence) -> list[tuple[str, Figure]]:
    return [(text, evidence.figures[key]) for key, text in (("answered", "answered"), ("deferred", "indeterminate")) if key in evidence.figures]


def _drawn(evidence: Evidence) -> Drawing:
    of = evidence.flow
    side = [([what, *why], n) for what, n, why in _exclusions(of)]
    classes = _class_boxes(evidence)
    middle = _LEFT_WIDTH / 2
    top = _height(1) + _GAP
    bottom = top + sum(_height(len(lines)) + _GAP for lines, _ in side)
    last = bottom + _height(2) + 2 * _GAP + 8
    drawing = Drawing(_WIDTH, last + max((_height(len(lines)) for lines in classes), default=0) + 4)
    drawing.line(middle, _height(1), middle, bottom - 8, stroke=QUIET, width=1.25)
    drawing.arrow(middle, bottom - 8, middle, bottom)
    _box(drawing, 1, 1, _LEFT_WIDTH, ["Recordings given"], of.given)
    at = top
    for lines, n in side:
        drawing.arrow(middle, at + _height(len(lines)) / 2, _SIDE, at + _height(len(lines)) / 2)
        _box(drawing, _SIDE, at, _WIDTH - _SIDE - 1, lines, n)
        at += _height(len(lines)) + _GAP
    _box(drawing, 1, bottom, _LEFT_WIDTH, ["Evaluated", f"of {several(of.subjects, 'subject')}"], of.evaluated, strong=True)
    _draw_classes(drawing, bottom + _height(2), last, classes)
    return drawing


def _class_boxes(evidence: Evidence) -> list[list[str]]:
    """Return a box of lines for each of two classes, or one box that lists several."""
    listed = list(evidence.flow.by_class)
    if len(listed) <= _CLASSES_SIDE_BY_SIDE:
        return [[wording.plain(label), _size_of(evidence.flow, label), *_answers_of(evidence, label)] for label in listed]
    lines = [f"{shortened(wording.plain(label), 300)}: {_size_of(evidence.flow, label)}" for label in listed[:_CLASSES_LISTED]]
    more = [f"and {len(listed) - _CLASSES_LISTED} more, see the table"] if len(listed) > _CLASSES_LISTED else []
    answers = [f"{text} {number(figure.value)} ({bounds(figure)}) of all" for text, figure in _overall_answers(evidence)]
    return [["By class", *lines, *more, *answers]]


def _size_of(flow: Flow, label: str) -> str:
    return f"{several(flow.by_class[label], 'recording')} of {several(flow.subjects_by_class.get(label, 0), 'subject')}"


def _answers_of(evidence: Evidence, label: str) -> list[str]:
    found = [(text, evidence.figures.get(f"{key}.{label}")) for key, text in _ANSWERS]
    return [f"{text} {number(figure.value)} ({bounds(figure)})" for text, figure in found if figure]


def _draw_classes(drawing: Drawing, top: float, at: float, boxes: Sequence[Sequence[str]]) -> None:
    """Draw the last row of boxes and how the trunk reaches them."""
    middle, turn = _LEFT_WIDTH / 2, top + (at - top) / 2
    width = _WIDTH - 2 if len(boxes) == 1 else (_WIDTH - 2 - _GAP) / 2
    for i, lines in enumerate(boxes):
        left = 1 + i * (width + _GAP)
        end = left + width / 2 if i else middle
        drawing.line(middle, top, middle, turn, stroke=QUIET, width=1.25)
        drawing.line(middle, turn, end, turn, stroke=QUIET, width=1.25)
        drawing.arrow(end, turn, end, at)
        _box(drawing, left, at, width, lines)


def _height(lines: int) -> float:
    return lines * _LINE + 2 * _PAD - 4


def _box(drawing: Drawing, x: float, y: float, width: float, lines: Sequence[str], n: int | None = None, *, strong: bool = False) -> None:
    """Draw a box of text; the first line names it, and n, which is never cut, stands to its right."""
    drawing.box(x, y, width, _height(len(lines)), fill=WASH if strong else PAPER, stroke=ACCENT if strong else QUIET, radius=4)
    number_of = "" if n is None else f"n = {count(n)}"
    room = width - 2 * _PAD
    first, *others = lines
    drawing.text(x + _PAD, y + _PAD + 10, shortened(first, room - text_width(number_of, bold=True) - _PAD, bold=True), bold=True)
    drawing.text(x + width - _PAD, y + _PAD + 10, number_of, anchor="end", bold=True)
    for i, line in enumerate(others, 1):
        drawing.text(x + _PAD, y + _PAD + 10 + i * _LINE, shortened(line, room, SMALL), size=SMALL)
