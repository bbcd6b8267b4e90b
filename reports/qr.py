"""A text as a QR code.

The one idea: it is drawn as runs of modules with our own shapes, so that it is a figure like any other, with a text alternative.
"""

from collections.abc import Iterable

import segno

from reports.document import Column, Picture, Table
from reports.drawing import PAPER, Drawing


def code(text: str, title: str) -> Picture:
    """Draw a text as a QR code (ISO/IEC 18004, error correction M), four quiet modules around it."""
    matrix = segno.make(text, error="m", micro=False).matrix
    size = 3.0
    drawing = Drawing((len(matrix) + 8) * size, (len(matrix) + 8) * size)
    drawing.box(0, 0, drawing.width, drawing.height, fill=PAPER)
    for row, line in enumerate(matrix):
        for start, length in _runs(line):
            drawing.box((start + 4) * size, (row + 4) * size, length * size, size, fill="#000000")
    return Picture("code", title, f"{title}: {text}", drawing, Table.of(title, [Column(title)], [[text]]))


def _runs(line: Iterable[int]) -> list[tuple[int, int]]:
    """Return where dark modules begin, and how many stand together."""
    runs: list[tuple[int, int]] = []
    for i, dark in enumerate(line):
        if not dark:
            continue
        if runs and sum(runs[-1]) == i:
            runs[-1] = (runs[-1][0], runs[-1][1] + 1)
        else:
            runs.append((i, 1))
    return runs
