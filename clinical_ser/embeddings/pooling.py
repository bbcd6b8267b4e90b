"""From vectors of frames to one vector: sums and counts in float64, so that a recording of hours needs the memory of one window.

Sums over short cells, kept on request, make leaving a stretch out a matter of adding up the others.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

CELL_S = 0.1
LEAST_WEIGHT_S = 1e-6
LEAST_VARIANCE = 1e-12
"""Below this the difference of two sums is rounding."""


@dataclass(frozen=True, eq=False)
class Cells:
    """Weighted sums of the frames in each cell of `CELL_S`, in float32: 80 MB for two hours of 256 dimensions."""

    weight: NDArray[np.float64]
    """Shape (cells,)."""
    sums: NDArray[np.float32]
    """Shape (cells, frame_dim)."""
    squares: NDArray[np.float32] | None
    """Of the deviations from `centre`; None where the encoder pools by the mean alone."""
    centre: NDArray[np.float64]
    """Shape (frame_dim,), subtracted before summing, so that float32 is enough."""

    def pooled(self, keep: NDArray[np.float64] | None = None) -> NDArray[np.float64] | None:
        """Pool again, each cell counted by `keep` (0 to 1), shape (cells,); None where nothing is left."""
        if keep is None:
            return self._statistics(*self._totals)
        # A stretch left out is most of the recording, a stretch alone is little of it: only the few cells are added up.
        out = np.flatnonzero(keep < 1)
        if 2 * len(out) < len(keep):
            return self._statistics(*(total - part for total, part in zip(self._totals, self._sums(out, 1 - keep[out]), strict=True)))
        inside = np.flatnonzero(keep > 0)
        return self._statistics(*self._sums(inside, keep[inside]))

    @cached_property
    def _totals(self) -> tuple[NDArray[np.float64], ...]:
        everything = np.arange(len(self.weight))
        return self._sums(everything, np.ones(len(everything)))

    def _sums(self, cells: NDArray[np.intp], share: NDArray[np.float64]) -> tuple[NDArray[np.float64], ...]:
        kept = [np.asarray(share @ self.weight[cells]), share @ self.sums[cells]]
        return (*kept, share @ self.squares[cells]) if self.squares is not None else tuple(kept)

    def _statistics(self, total: NDArray[np.float64], sums: NDArray[np.float64], *squares: NDArray[np.float64]) -> NDArray[np.float64] | None:
        # Of what was taken away from the whole, rounding may be left.
        return statistics(float(total), sums, squares[0] if squares else None, self.centre) if total > LEAST_WEIGHT_S else None


def grid_place(times_s: NDArray[np.float64], step_s: float) -> NDArray[np.intp]:
    """Return in which step of a grid each time lies; one on an edge, but for rounding, in the step that begins there."""
    return np.asarray(np.floor(times_s / step_s + 1e-6), np.intp)


def statistics(total: float, sums: NDArray[np.float64], squares: NDArray[np.float64] | None, centre: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the mean, and after it the standard deviation where there are squares, of what was summed less `centre`."""
    mean = sums / total
    if squares is None:
        return np.asarray(centre + mean)
    variance = squares / total - mean**2
    return np.concatenate([centre + mean, np.sqrt(np.where(variance > LEAST_VARIANCE, variance, 0.0))])


class Pool:
    """Adds up the frames of one recording, window by window.

    Parameters
    ----------
    with_sd
        Whether the standard deviation is wanted too.
    cells
        Number of cells to keep; None keeps none.
    """

    def __init__(self, *, with_sd: bool, cells: int | None) -> None:
        self._with_sd, self._n_cells = with_sd, cells
        self._centre: NDArray[np.float64] | None = None
        self.weight = 0.0

    def add(self, frames: NDArray[np.float32], weight: NDArray[np.float64], times_s: NDArray[np.float64]) -> None:
        """Add frames of shape (frames, frame_dim) with a weight and a time each."""
        if not weight.any():
            return
        if self._centre is None:
            # The first window's mean is near every other's: sums of deviations from it keep their digits over hours.
            self._centre = weight @ frames / weight.sum()
            self._sums = np.zeros(frames.shape[1])
            self._squares = np.zeros(frames.shape[1])
            if self._n_cells is not None:
                self._cells = np.zeros((self._n_cells, frames.shape[1]), np.float32)
                self._cell_squares = np.zeros_like(self._cells) if self._with_sd else None
                self._cell_weight = np.zeros(self._n_cells)
        away = frames - self._centre
        weighted = away * weight[:, None]
        self.weight += float(weight.sum())
        self._sums += weighted.sum(axis=0)
        if self._with_sd:
            self._squares += (weighted * away).sum(axis=0)
        if self._n_cells is not None:
            place = np.minimum(grid_place(times_s, CELL_S), self._n_cells - 1)
            np.add.at(self._cell_weight, place, weight)
            np.add.at(self._cells, place, weighted.astype(np.float32))
            if self._cell_squares is not None:
                np.add.at(self._cell_squares, place, (weighted * away).astype(np.float32))

    def result(self) -> NDArray[np.float64] | None:
        """Return the pooled vector, or None if no frame had any weight."""
        if self._centre is None:
            return None
        return statistics(self.weight, self._sums, self._squares if self._with_sd else None, self._centre)

    def cells(self) -> Cells | None:
        """Return the cells that were kept."""
        if self._n_cells is None or self._centre is None:
            return None
        return Cells(self._cell_weight, self._cells, self._cell_squares, self._centre)
