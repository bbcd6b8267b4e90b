"""What features are summaries of, kept for one recording so that it can be summed up again with frames left out.

The one idea: openSMILE, Praat and the speech analysis run once; leaving a stretch out is then a matter of milliseconds, and it is really left out:
what was before and after it become neighbours.
"""

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray

from clinical_ser.audio.analysis import SpeechAnalysis
from clinical_ser.audio.recording import Recording
from clinical_ser.errors import InvalidValueError
from clinical_ser.features import extraction, praat, timing
from clinical_ser.features.egemaps import EGEMAPS_NAMES
from clinical_ser.features.egemaps_contours import EgemapsContours
from clinical_ser.features.vector import FeatureVector

_NAMES: Mapping[str, tuple[str, ...]] = {"egemaps": EGEMAPS_NAMES, "praat": praat.NAMES, "timing": timing.NAMES}
SETS = tuple(_NAMES)
"""Feature sets that can be summed up again."""


def extract_with_contours(recording: Recording, analysis: SpeechAnalysis, *, sets: Sequence[str] = SETS) -> tuple[FeatureVector, "Contours"]:
    """Measure the features of one recording, and its contours, side by side.

    Parameters
    ----------
    recording, analysis
        The recording, and its shared analysis.
    sets
        Some of `SETS`.

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
    if unknown := sorted(set(sets) - set(SETS)):
        raise InvalidValueError("sets", unknown, SETS)
    # openSMILE frees Python's lock: its two passes, and Praat, run beside each other. Praat's tracks serve the features and the contours.
    with ThreadPoolExecutor(2) as helpers:
        tracks = helpers.submit(praat.measure, analysis) if "praat" in sets else None
        descriptors = helpers.submit(EgemapsContours.of, recording) if "egemaps" in sets else None
        vector = extraction.extract(recording, sets=sets, analysis=analysis, tracks=tracks.result if tracks else None)
        return vector, Contours(analysis, sets, descriptors.result() if descriptors else None, tracks.result() if tracks else None)


class Contours:
    """The contours of one recording; made by `extract_with_contours`.

    Attributes
    ----------
    names : tuple of str
        Features, in the order of what is summed up.
    """

    def __init__(self, analysis: SpeechAnalysis, sets: Sequence[str], egemaps: EgemapsContours | None, tracks: praat.PraatTracks | None):
        self._analysis, self._egemaps, self._praat = analysis, egemaps, tracks
        self._sets = [name for name in SETS if name in sets]
        self.names: tuple[str, ...] = tuple(name for one in self._sets for name in _NAMES[one])

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
        return np.concatenate(parts)
