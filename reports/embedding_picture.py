"""The picture of a cohort's embeddings in two dimensions, one sign a recording.

The one idea: a picture like this is believed too easily, so what it can and cannot show stands in it, and groups differ in shape and fill, so that
it says the same in black and white.
"""

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from clinical_ser.embeddings.relations import Method, Projection
from reports.document import Column, Picture, Table
from reports.drawing import ACCENT, INK, PAPER, QUIET, SMALL, WASH, Drawing, Mark, Plot, shortened, ticks
from reports.marks import PLAIN_BAR, WIDTH, Sample, draw_key, key_height
from reports.numbers import percent
from reports.wording import count, name, several

SUBJECT = "subject"
OTHERS = "others"
_SHAPES: tuple[Mark, ...] = ("circle", "square", "triangle", "diamond")
_FILLS = ((ACCENT, PAPER), (PAPER, INK), (PLAIN_BAR, INK), (INK, PAPER), (WASH, ACCENT), (PAPER, ACCENT))
"""Fill and outline."""
MOST_SIGNS = len(_SHAPES) * len(_FILLS) - 1
"""RAVDESS's 24 speakers less one: smaller groups beyond share a sign."""
_HEIGHT, _LEFT, _RIGHT, _TOP, _BOTTOM = 470.0, 64.0, 20.0, 8.0, 50.0
_LINE = 16.0
_NAME_ROOM = 200.0
_ROOM = 0.04
_SIZE, _SMALL_SIZE = 4.5, 2.0
_NO_GROUP = ""


def picture(projection: Projection, groups: Sequence[str | None], *, by: str | None, encoder: str) -> Picture:
    """Draw recordings in two dimensions.

    Parameters
    ----------
    projection
        Where they are.
    groups
        Of each of its points; None without one.
    by
        The column that groups come from. Those of `subject` are numbered by the first recording of each: a name is no one's business.
    encoder
        Whose vectors they are.
    """
    named = _named(groups, by)
    shown, counts = _shown(named, ordered=by == SUBJECT)
    samples = _samples(shown, counts, by)
    lines = _said(projection)
    drawing = _plot(projection, named, shown, key=key_height(samples) if samples else 0.0, foot=_LINE * len(lines) + 8)
    if samples:
        draw_key(drawing, samples)
    for i, line in enumerate(lines):
        drawing.text(_LEFT, drawing.height - _LINE * (len(lines) - i - 1) - 10, line, size=SMALL, fill=QUIET)
    method = "PCA" if projection.method is Method.PCA else "t-SNE"
    title = f"Recordings by {method} of their embeddings"
    rows = [[_called(group, by), count(counts[group])] for group in sorted(counts, key=lambda group: (group == _NO_GROUP, named.index(group)))]
    return Picture(
        name="embeddings",
        title=title,
        finding=_finding(projection, named, counts, by, name(encoder)),
        drawing=drawing,
        table=Table.of(title, [Column(name(by) if by else "Group"), Column("Recordings", "count")], rows),
        note=" ".join(lines),
    )


def _named(groups: Sequence[str | None], by: str | None) -> list[str]:
    if by != SUBJECT:
        return [_NO_GROUP if group is None else group for group in groups]
    numbers: dict[str, str] = {}
    return [_NO_GROUP if group is None else numbers.setdefault(group, f"{SUBJECT} {len(numbers) + 1}") for group in groups]


def _shown(named: Sequence[str], *, ordered: bool) -> tuple[list[str], dict[str, int]]:
    """Return the groups that get a sign of their own, in order, and the size of every group."""
    counts: dict[str, int] = {}
    for group in named:
        counts[group] = counts.get(group, 0) + 1
    real = [group for group in counts if group != _NO_GROUP]
    largest = set(sorted(real, key=lambda group: -counts[group])[: MOST_SIGNS if len(real) > MOST_SIGNS + 1 else len(real)])
    return [group for group in (real if ordered else sorted(real)) if group in largest], counts


def _called(group: str, by: str | None) -> str:
    return name(group) if group != _NO_GROUP else f"without a value of {name(by)}" if by else "recordings"


def _sign(place: int | None) -> Callable[[Drawing, float, float], None]:
    if place is None:
        return lambda drawing, x, y: drawing.mark("circle", x, y, fill=QUIET, size=_SMALL_SIZE, stroke=QUIET)
    # Neighbours in the key differ in both; after twelve, shapes meet the fills that they have not met.
    shape = _SHAPES[place % len(_SHAPES)]
    fill, stroke = _FILLS[(place + place // 12) % len(_FILLS)]
    return lambda drawing, x, y: drawing.mark(shape, x, y, fill=fill, size=_SIZE, stroke=stroke)


def _samples(shown: Sequence[str], counts: dict[str, int], by: str | None) -> list[Sample]:
    """Return the key; none where there is nothing to tell apart."""
    if not shown:
        return []
    samples: list[Sample] = [
        (shortened(f"{_called(group, by)} ({counts[group]})", _NAME_ROOM, SMALL), _sign(place)) for place, group in enumerate(shown)
    ]
    others = [group for group in counts if group not in set(shown) and group != _NO_GROUP]
    if others:
        samples.append((f"{OTHERS}: {len(others)} groups ({sum(counts[group] for group in others)})", _sign(None)))
    if _NO_GROUP in counts:
        samples.append((shortened(f"{_called(_NO_GROUP, by)} ({counts[_NO_GROUP]})", _NAME_ROOM, SMALL), _sign(None)))
    return samples


def _plot(projection: Projection, named: Sequence[str], shown: Sequence[str], *, key: float, foot: float) -> Plot:
    """Draw the signs and their axes, with room above for a key and below for words."""
    x, y = _ranges(projection.points)
    plot = Plot(x, y, width=WIDTH, height=key + _HEIGHT + foot, left=_LEFT, right=_RIGHT, top=key + _TOP, bottom=_BOTTOM + foot)
    if projection.explained:
        words = [f"{which} axis: {percent(share)} of the variance" for which, share in zip(("First", "Second"), projection.explained, strict=True)]
        plot.axes(words[0], words[1], ticks(*x), ticks(*y))
    else:
        plot.axes("t-SNE, first dimension (no unit)", "t-SNE, second dimension (no unit)", [], [])
    signs = {group: place for place, group in enumerate(shown)}
    for last in (False, True):  # small dots first: they hide nothing
        for (at_x, at_y), group in zip(projection.points.tolist(), named, strict=True):
            if (group in signs) is last:
                _sign(signs.get(group, 0 if not signs else None))(plot, plot.x(at_x), plot.y(at_y))
    return plot


def _ranges(points: NDArray[np.float64]) -> tuple[tuple[float, float], tuple[float, float]]:
    """Return the ends of both axes with one unit for both, so that distances are as long across as they are up."""
    low, high = points.min(axis=0), points.max(axis=0)
    pixels = np.array([WIDTH - _LEFT - _RIGHT, _HEIGHT - _TOP - _BOTTOM])
    unit = max(float(((high - low) / pixels).max()), 1e-12) * (1 + 2 * _ROOM)
    start, end = (low + high) / 2 - unit * pixels / 2, (low + high) / 2 + unit * pixels / 2
    return (float(start[0]), float(end[0])), (float(start[1]), float(end[1]))


def _said(projection: Projection) -> list[str]:
    """Return what has to be known to look at it."""
    if projection.explained:
        held = percent(sum(projection.explained))
        lines = [
            f"PCA of the vectors' directions from their mean. Both axes together hold {held} of the variance:",
            "what lies apart here is apart; what lies close together may be apart in the rest.",
        ]
    else:
        lines = [
            f"t-SNE, perplexity {projection.perplexity:.3g}, seed {projection.seed}. Who lies close together is alike; distances between groups, and",
            "how large or dense they are, mean nothing, and groups can appear where there are none.",
        ]
    return [*lines, "Each sign is a recording: the picture is personal data, as the embeddings are."]


def _finding(projection: Projection, named: Sequence[str], counts: dict[str, int], by: str | None, encoder: str) -> str:
    said = [f"{several(len(named), 'recording')} in two dimensions, by the vectors of {encoder}."]
    real = [i for i, group in enumerate(named) if group != _NO_GROUP]
    kinds = {named[i] for i in real}
    if by and len(kinds) > 1:
        nearest = cKDTree(projection.points[real]).query(projection.points[real], k=2)[1]
        other = np.where(nearest[:, 0] == np.arange(len(real)), nearest[:, 1], nearest[:, 0])
        same = float(np.mean([named[real[i]] == named[real[j]] for i, j in enumerate(other)]))
        pairs = sum(counts[group] * (counts[group] - 1) for group in kinds) / (len(real) * (len(real) - 1))
        said.append(
            f"Of {len(kinds)} groups by {name(by)}: the nearest sign is of the same group for {percent(same)}, by chance for {percent(pairs)}."
        )
    return " ".join([*said, *_said(projection)[:-1]])
