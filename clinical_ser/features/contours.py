"""What features are summaries of, kept for one recording so that it can be summed up again with frames left out.

The one idea: openSMILE, Praat and the speech analysis run once; leaving a stretch out is then a matter of milliseconds, and it is really left out:
what was before and after it become neighbours.
"""

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray

from clinical_ser.audio.analysis import FRAME_STEP_S, SpeechAnalysis
from clinical_ser.audio.recording import Recording
from clinical_ser.embeddings import CELL_S, Cells, Embedding, Encoder, WindowedEncoder, column_names, find_encoder
from clinical_ser.errors import InvalidValueError
from clinical_ser.features import extraction, praat, timing
from clinical_ser.features.egemaps import EGEMAPS_NAMES
from clinical_ser.features.egemaps_contours import EgemapsContours
from clinical_ser.features.extraction import ENCODER
from clinical_ser.features.vector import FeatureVector

_NAMES: Mapping[str, tuple[str, ...]] = {"egemaps": EGEMAPS_NAMES, "praat": praat.NAMES, "timing": timing.NAMES}
SETS = tuple(_NAMES)
"""Feature sets that can be summed up again; so can the embeddings of every encoder that gives more than one vector a window."""
_FRAMES_A_CELL = round(CELL_S / FRAME_STEP_S)


def extract_with_contours(recording: Recording, analysis: SpeechAnalysis, *, sets: Sequence[str] = SETS) -> tuple[FeatureVector, "Contours"]:
    """Measure the features of one recording, and its contours, side by side.

    Parameters
    ----------
    recording, analysis
        The recording, and its shared analysis.
    sets
        Some of `SETS`, and sets of embeddings.

    Returns
    -------
    vector
        As `extraction.extract` gives it, bit for bit.
    contours
        What the vector sums up.

    Raises
    ------
    InvalidValueError
        A feature set that cannot be summed up without frames.
    """
    if unknown := [name for name in sets if not can_be_left_out(name)]:
        raise InvalidValueError("sets", unknown, SETS)
    embedded: dict[str, Embedding] = {}

    def embed(encoder: Encoder) -> Embedding:
        found = encoder.encode([recording], speech=[analysis.speech], cells=True)[0]
        return embedded.setdefault(encoder.spec.name, found)

    # openSMILE frees Python's lock: its two passes, and Praat, run beside each other. Praat's tracks serve the features and the contours.
    with ThreadPoolExecutor(2) as helpers:
        tracks = helpers.submit(praat.measure, analysis) if "praat" in sets else None
        descriptors = helpers.submit(EgemapsContours.of, recording) if "egemaps" in sets else None
        vector = extraction.extract(recording, sets=sets, analysis=analysis, tracks=tracks.result if tracks else None, embed=embed)
        encoders = [find_encoder(name.removeprefix(ENCODER)).spec for name in sets if name.startswith(ENCODER)]
        cells = {column_names(spec): embedded[spec.name].cells if spec.name in embedded else None for spec in encoders}
        return vector, Contours(analysis, sets, descriptors.result() if descriptors else None, tracks.result() if tracks else None, cells)


def can_be_left_out(feature_set: str) -> bool:
    """Tell whether a feature set can be summed up again with frames left out."""
    if not feature_set.startswith(ENCODER):
        return feature_set in SETS
    encoder = find_encoder(feature_set.removeprefix(ENCODER))
    # Another kind of encoder may give no cells.
    return isinstance(encoder, WindowedEncoder) and encoder.spec.frame_step_s is not None


class Contours:
    """The contours of one recording; made by `extract_with_contours`.

    Attributes
    ----------
    names : tuple of str
        Features, in the order of what is summed up.
    """

    def __init__(
        self,
        analysis: SpeechAnalysis,
        sets: Sequence[str],
        egemaps: EgemapsContours | None,
        tracks: praat.PraatTracks | None,
        cells: Mapping[tuple[str, ...], Cells | None],
    ):
        self._analysis, self._egemaps, self._praat, self._cells = analysis, egemaps, tracks, cells
        self._sets = [name for name in SETS if name in sets]
        self.names: tuple[str, ...] = tuple(name for part in (*(_NAMES[one] for one in self._sets), *cells) for name in part)

    def leaving_out(self, keep: NDArray[np.bool_] | None) -> NDArray[np.float64]:
        """Sum up the frames that stay.

        Parameters
        ----------
        keep
            Shape (frames,), on the grid of `SpeechAnalysis.level_dbfs`; None keeps all.

        Returns
        -------
        ndarray of shape (features,)
            In the order of `names`, NaN where missing. eGeMAPS is summed up by our own arithmetic from openSMILE's descriptors; compare what
            it gives with frames left out with what it gives without.
        """
        parts: list[NDArray[np.float64]] = []
        if self._egemaps is not None:
            parts.append(self._egemaps.summarise(keep))
        if self._praat is not None:
            parts.append(np.array(list(praat.summarise(self._praat, keep)[0].values())))
        if "timing" in self._sets:
            parts.append(np.array(list(timing.compute(self._analysis, keep)[0].values())))
        for names, cells in self._cells.items():
            pooled = None if cells is None else cells.pooled(None if keep is None else self._share_of_cells(keep, len(cells.weight)))
            parts.append(np.full(len(names), np.nan) if pooled is None else pooled)
        return np.concatenate(parts)

    def _share_of_cells(self, keep: NDArray[np.bool_], cells: int) -> NDArray[np.float64]:
        """Return how much of the speech in each cell is kept, shape (cells,)."""
        speech = np.zeros((2, cells * _FRAMES_A_CELL))
        length = min(len(keep), speech.shape[1])
        speech[:, :length] = self._analysis.speech[:length], (self._analysis.speech & keep)[:length]
        there, kept = speech.reshape(2, cells, _FRAMES_A_CELL).sum(axis=2)
        return np.asarray(kept / np.maximum(there, 1))
