"""What features are summaries of, kept for one recording so that it can be summed up again with frames left out.

The one idea: openSMILE, Praat and the speech analysis run once; leaving a stretch out is then a matter of milliseconds, and it is really left out:
what was before and after it become neighbours.
"""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray

from clinical_ser.audio.analysis import SpeechAnalysis
from clinical_ser.audio.recording import Recording
from clinical_ser.errors import InvalidValueError
from clinical_ser.features import praat, timing
from clinical_ser.features.egemaps import EGEMAPS_NAMES
from clinical_ser.features.egemaps_contours import EgemapsContours

SETS = ("egemaps", "praat", "timing")
"""Feature sets that can be summed up again."""


class Contours:
    """The contours of one recording.

    Parameters
    ----------
    recording, analysis
        The recording, and its shared analysis.
    sets
        Some of `SETS`.

    Raises
    ------
    InvalidValueError
        A feature set that cannot be summed up without frames.
    """

    def __init__(self, recording: Recording, analysis: SpeechAnalysis, *, sets: Sequence[str] = SETS):
        if unknown := sorted(set(sets) - set(SETS)):
            raise InvalidValueError("sets", unknown, SETS)
        self._sets = [name for name in SETS if name in sets]
        self._analysis = analysis
        known = {"egemaps": EGEMAPS_NAMES, "praat": praat.NAMES, "timing": timing.NAMES}
        self.names: tuple[str, ...] = tuple(name for one in self._sets for name in known[one])
        # openSMILE frees Python's lock, so that Praat can work beside it; it stays in this thread, where its objects are warm.
        with ThreadPoolExecutor(1) as helper:
            tracks = helper.submit(praat.measure, analysis) if "praat" in self._sets else None
            self._egemaps = EgemapsContours.of(recording) if "egemaps" in self._sets else None
            self._praat = tracks.result() if tracks else None

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
