"""Figures with one row a group or class: forest plots, recalls, and the confusion matrix.

The one idea: a group with too few people keeps its row, and says so in words instead of a mark.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from clinical_ser.evaluation.evidence import Evidence, Group
from clinical_ser.evaluation.figure import Figure
from clinical_ser.evaluation.naming import describe
from reports import wording
from reports.document import Column, Picture, Plate, Table
from reports.drawing import ACCENT, DASHED, FAINT, INK, PAPER, QUIET, SMALL, Drawing, Scale, shortened, text_width, tick, ticks
from reports.wording import bounds, count, level, name, number, said, several

TOO_FEW = "too few"
_WIDTH, _ROW, _HEAD = 350, 16, 30
_LABEL_END, _COUNT_END, _PLOT_START, _PLOT_END, _VALUES = 122, 158, 172, 300, 308
_MOST_ROWS = 32
"""A drawing of half a page's width holds as many; a column of groups has at most 30."""
_CELL, _MATRIX = (32, 60), 270
"""Least and greatest side of a cell of a matrix, and the side of a matrix whose cells lie between them, in pixels."""
_TICKS = (3, 4)
"""How many numbers a narrow axis has room for, fewer first."""
_MOST_COLUMNS = 10
"""Classes whose matrix fits a page as a table; beyond, the table lists its cells."""
_DARKEST = 0.6
"""How much of the accent the fullest cell takes; more would bring its number below a contrast of 4.5 to 1."""


@dataclass(frozen=True)
class Row:
    """One row: its name, whom it is about, and its figure, or words in place of it; neither for a heading."""

    label: str
    subjects: int | None = None
    figure: Figure | None = None
    words: str = ""
    overall: bool = False


def forests(evidence: Evidence, figures: Sequence[str]) -> Plate | None:
    """Draw figures by group, with intervals and numbers of subjects, and give all of them in one table; None where no group has any.

    A figure of many groups is drawn in as many parts as it needs.
    """
    chosen = [figure for figure in figures if figure in evidence.figures and any(figure in group.figures for group in evidence.groups)]
    if not chosen:
        return None
    return Plate(
        pictures=tuple(_forest(evidence, figure, part, i) for figure in chosen for i, part in enumerate(_parts(evidence.groups, figure), 1)),
        table=_group_table(evidence, chosen),
        note=f"Squares: groups, with {level(evidence)} intervals. Diamond and dashed line: all. “{TOO_FEW}”: too few people of a class for a figure.",
    )


def _parts(groups: Sequence[Group], figure: str) -> list[dict[str, list[Group]]]:
    """Return the groups of a figure by column, in parts that each fit a drawing."""
    by_column: dict[str, list[Group]] = {}
    for group in groups:
        if figure in group.figures or not group.enough:
            by_column.setdefault(group.column, []).append(group)
    parts: list[dict[str, list[Group]]] = []
    for column, of_column in by_column.items():
        if not parts or _length(parts[-1]) + 1 + len(of_column) > _MOST_ROWS:
            parts.append({})
        parts[-1][column] = of_column
    return parts


def _length(by_column: dict[str, list[Group]]) -> int:
    return 1 + sum(1 + len(groups) for groups in by_column.values())


def _forest(evidence: Evidence, figure: str, by_column: dict[str, list[Group]], part: int) -> Picture:
    overall = evidence.figures[figure]
    rows = [Row("All", overall.subjects, overall, overall=True)]
    for column, groups in by_column.items():
        rows += [Row(wording.column(column)), *(_row_of(group, figure) for group in groups)]
    title = wording.title_of(figure)
    return Picture(
        name=f"forest-{figure.replace('_', '-')}-{part}",
        title=f"{title} by group" + (f", part {part}" if part > 1 else ""),
        finding=_forest_finding(evidence, figure, [group for groups in by_column.values() for group in groups]),
        drawing=_interval_rows(rows, title, unit=describe(figure).kind in {"share", "bounded"}),
        table=None,
        note=f"{title}: {wording.meaning_of(figure)}.",
    )


def recalls(evidence: Evidence) -> Picture | None:
    """Draw the recall of each class with its interval; None for tasks of two classes."""
    if evidence.classes is None:
        return None
    found = evidence.classes.recalls
    rows = [Row(label, figure.subjects, figure) for label, figure in found.items()]
    of_level = level(evidence)
    columns = [Column("Class", wide=True), Column("Recall", "number"), Column(f"{of_level} interval", "number"), *_COUNTS]
    cells = [[label, number(one.value), bounds(one), count(one.subjects), count(one.recordings)] for label, one in found.items()]
    chance = 1 / max(len(found), 1)
    return Picture(
        name="recalls",
        title="Recall by class",
        finding=" ".join(f"{name(label)}: {said(one, of_level)}." for label, one in found.items()) + f" Guessing reaches {number(chance)}.",
        drawing=_interval_rows(rows, "Recall", unit=True, reference=chance),
        table=Table.of("Recall by class", columns, cells),
        note=f"Squares: share of a class for which it is the most probable class, with {of_level} intervals; dashed line: guessing.",
    )


def confusion(evidence: Evidence) -> Picture | None:
    """Draw true classes against answers, in recordings, shaded by share of the true class; None for tasks of two classes."""
    if evidence.classes is None:
        return None
    matrix, labels = evidence.classes.confusion, [wording.plain(label) for label in evidence.task.classes]
    return Picture(
        name="confusion",
        title="Confusion matrix",
        finding=_confusion_finding(evidence),
        drawing=_matrix(matrix, labels),
        table=_matrix_table(matrix, labels),
        note="Numbers are recordings; the shade is their share of the true class.",
    )


_COUNTS = (Column("Subjects", "count"), Column("Recordings", "count"))


def _row_of(group: Group, figure: str) -> Row:
    found = group.figures.get(figure)
    return Row(group.value, group.subjects if found is None else found.subjects, found, "" if found else TOO_FEW)


def _forest_finding(evidence: Evidence, figure: str, groups: Sequence[Group]) -> str:
    overall, of_level = evidence.figures[figure], level(evidence)
    title = wording.title_of(figure)
    parts = [f"{title} of all is {said(overall, of_level)}."]
    for gap in evidence.gaps:
        if gap.figure == figure and any(group.column == gap.column for group in groups):
            best, worst = (_said_of(evidence, gap.column, value, figure) for value in (gap.best, gap.worst))
            by = f"{wording.column(gap.column)}: best in {best}, worst in {worst}"
            parts.append(f"{by}; the difference is {said(gap.difference, of_level)}.")
    few = [
        f"{wording.column(group.column)} {name(group.value)} ({several(group.subjects, 'subject')})"
        for group in groups
        if figure not in group.figures
    ]
    if few:
        parts.append(f"Too few people for a figure: {', '.join(few)}.")
    return " ".join(parts)


def _said_of(evidence: Evidence, column: str, value: str, figure: str) -> str:
    group = evidence.group(column, value)
    found = group.figures.get(figure) if group else None
    return f"{name(value)}, {said(found, level(evidence))}" if found else name(value)


def _group_table(evidence: Evidence, figures: Sequence[str]) -> Table:
    """Give every figure of every group, whether it is drawn or there are too few people for it."""
    columns = [Column("Group"), Column("Subjects", "count"), *(Column(wording.title_of(figure), "figure") for figure in figures)]
    flow = evidence.flow
    rows = [["All", count(flow.subjects), *(_group_cell(evidence.figures[figure], flow.subjects, flow.evaluated) for figure in figures)]]
    for group in evidence.groups:
        cells = (_group_cell(group.figures.get(figure), group.subjects, group.recordings, group.enough) for figure in figures)
        rows.append([label_of(group), count(group.subjects), *cells])
    caption = f"Figures by group: value [{level(evidence)} interval], and n, subjects (recordings), where it is of a part of the group only"
    return Table.of(caption, columns, rows)


def label_of(group: Group) -> str:
    """Return what a group is called where its column is not said otherwise."""
    return f"{wording.column(group.column)}: {wording.plain(group.value)}"


def _group_cell(figure: Figure | None, subjects: int, recordings: int, enough: bool = True) -> str:
    if figure is None:
        return wording.NOT_DEFINED if enough else TOO_FEW
    cell = wording.bracketed(figure.value, figure.low, figure.high)
    if (figure.subjects, figure.recordings) == (subjects, recordings):
        return cell
    rest = "" if figure.recordings == figure.subjects else f" ({count(figure.recordings)})"
    return f"{cell} n = {count(figure.subjects)}{rest}"


def _interval_rows(rows: Sequence[Row], title: str, *, unit: bool, reference: float | None = None) -> Drawing:
    """Draw names, numbers of subjects, intervals on one scale, and values, row by row; the intervals' numbers stand in the table."""
    drawing = Drawing(_WIDTH, _HEAD + _ROW * len(rows) + 52)
    overall = next((row.figure.value for row in rows if row.overall and row.figure), reference)
    x = _scale([row.figure for row in rows if row.figure], unit, overall)
    floor = _HEAD + _ROW * len(rows) + 4
    marked = next((found for about in _TICKS if len(found := ticks(x.low, x.high, about)) > 2), ticks(x.low, x.high))
    for value in marked:
        drawing.line(x(value), _HEAD - 6, x(value), floor, stroke=FAINT)
        drawing.line(x(value), floor, x(value), floor + 5, stroke=QUIET)
        drawing.text(x(value), floor + 19, tick(value, marked), anchor="middle", size=SMALL, fill=QUIET)
    drawing.line(x.start, floor, x.end, floor, stroke=QUIET)
    drawing.text((x.start + x.end) / 2, floor + 40, title, anchor="middle")
    drawing.text(_COUNT_END, 16, "subjects", anchor="end", size=SMALL, fill=QUIET)
    drawing.text(_VALUES, 16, "value", size=SMALL, fill=QUIET)
    if overall is not None:
        drawing.line(x(overall), _HEAD - 6, x(overall), floor, stroke=QUIET, width=1.25, dash=DASHED)
    for i, row in enumerate(rows):
        _draw_row(drawing, x, _HEAD + _ROW * i + _ROW / 2, row)
    return drawing


def _draw_row(drawing: Drawing, x: Scale, y: float, row: Row) -> None:
    heading = row.subjects is None
    bold = heading or row.overall
    indent = 0 if heading or row.overall else 10
    room = (_COUNT_END if heading else _LABEL_END) - indent
    drawing.text(indent, y + 4, shortened(wording.plain(row.label), room, SMALL, bold=bold), bold=bold, size=SMALL)
    if row.subjects is not None:
        drawing.text(_COUNT_END, y + 4, count(row.subjects), anchor="end", size=SMALL)
    figure = row.figure
    if figure is None or figure.value is None:
        drawing.text(_PLOT_START, y + 4, row.words if figure is None else wording.NOT_DEFINED, size=SMALL, fill=QUIET)
        return
    drawing.text(_VALUES, y + 4, number(figure.value), size=SMALL)
    if figure.low is not None and figure.high is not None:
        drawing.line(x.clipped(figure.low), y, x.clipped(figure.high), y, stroke=INK if row.overall else ACCENT, width=2)
    drawing.mark("diamond" if row.overall else "square", x.clipped(figure.value), y, fill=INK if row.overall else ACCENT, size=4.5)


def _scale(figures: Sequence[Figure], unit: bool, reference: float | None) -> Scale:
    """Return a scale that holds every value and interval; what lies between 0 and 1 has no more room."""
    values = [value for one in figures for value in (one.value, one.low, one.high) if value is not None]
    values += [] if reference is None else [reference]
    low, high = min(values, default=0.0), max(values, default=1.0)
    room = max(high - low, 0.1) * 0.08
    low, high = low - room, high + room
    return Scale(max(low, 0.0) if unit else low, min(high, 1.0) if unit else high, _PLOT_START, _PLOT_END)


def _matrix(matrix: Sequence[Sequence[int]], labels: Sequence[str]) -> Drawing:
    size = max(_CELL[0], min(_CELL[1], _MATRIX / len(labels)))
    turned = any(text_width(label, SMALL) > size - 6 for label in labels)
    head = 44 + (min(110.0, max(text_width(label, SMALL) for label in labels)) if turned else 16)
    left = 34 + min(150.0, max(text_width(label) for label in labels))
    drawing = Drawing(left + size * len(labels) + 12, head + size * len(labels) + 12)
    middle = size * len(labels) / 2
    drawing.text(left + middle, 16, "Most probable class", anchor="middle")
    drawing.text(16, head + middle, "True class", anchor="middle", turned=True)
    for k, label in enumerate(labels):
        at = left + size * (k + 0.5)
        if turned:
            drawing.text(at + 4, head - 8, shortened(label, 110, SMALL), size=SMALL, turned=True)
        else:
            drawing.text(at, head - 10, label, anchor="middle", size=SMALL)
        drawing.text(left - 8, head + size * (k + 0.5) + 4, shortened(label, 150), anchor="end")
    for i, row in enumerate(matrix):
        for k, n in enumerate(row):
            x, y, right = left + size * k, head + size * i, i == k
            drawing.box(x + 1, y + 1, size - 2, size - 2, fill=_shade(n / (sum(row) or 1)), stroke=INK if right else FAINT, thick=1.5 if right else 1)
            drawing.text(x + size / 2, y + size / 2 + 4, count(n), anchor="middle", size=SMALL, bold=right)
    return drawing


def _matrix_table(matrix: Sequence[Sequence[int]], labels: Sequence[str]) -> Table:
    if len(labels) > _MOST_COLUMNS:
        columns = [Column("True class"), Column("Most probable class"), Column("Recordings", "count")]
        cells = [[labels[i], labels[k], count(n)] for i, row in enumerate(matrix) for k, n in enumerate(row) if n]
        return Table.of("Recordings by true class and most probable class, where there are any", columns, cells)
    columns = [Column("True class"), *(Column(label, "count") for label in labels), Column("all", "count")]
    cells = [[label, *map(count, row), count(sum(row))] for label, row in zip(labels, matrix, strict=True)]
    return Table.of("Recordings by true class (rows) and most probable class (columns)", columns, cells)


def _shade(share: float) -> str:
    """Return the accent thinned with paper by a share."""
    parts = [(int(PAPER[i : i + 2], 16), int(ACCENT[i : i + 2], 16)) for i in (1, 3, 5)]
    return "#" + "".join(f"{round(paper + (accent - paper) * _DARKEST * share):02x}" for paper, accent in parts)


def _confusion_finding(evidence: Evidence) -> str:
    """Say for each class how many were right, and where most of the others went."""
    assert evidence.classes is not None
    classes, parts = evidence.task.classes, []
    for i, row in enumerate(evidence.classes.confusion):
        wrong = [(n, -k) for k, n in enumerate(row) if k != i]
        most, at = max(wrong, default=(0, 0))
        elsewhere = f"; most of the others were taken for {name(classes[-at])} ({count(most)})" if most else ""
        parts.append(f"Of {several(sum(row), 'recording')} of {name(classes[i])}, {count(row[i])} were right{elsewhere}.")
    return " ".join(parts)
