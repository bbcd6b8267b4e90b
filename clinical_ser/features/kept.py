"""Which frames of a recording stay when others are left out, and what is speech among them.

The one idea: left out means that what was before and after become neighbours, so a pause may shorten, and a word may end.
"""

from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

from clinical_ser.audio.analysis import FRAME_STEP_S
from clinical_ser.audio.voice_activity import MIN_CORE_S, MIN_PAUSE_S, drop_short, fill_short_gaps
from clinical_ser.errors import InvalidValueError


@dataclass(frozen=True, eq=False)
class Kept:
    """The frames of the level grid that stay."""

    keep: NDArray[np.bool_]
    """Shape (frames,)."""
    removed_before: NDArray[np.int64]
    """Shape (frames + 1,); how many of the frames before each are removed, and last of all."""

    @classmethod
    def of(cls, keep: NDArray[np.bool_] | None, frames: int) -> Self:
        """Take a mask of shape (frames,), or None for every frame.

        Raises
        ------
        InvalidValueError
            A mask of another shape or type.
        """
        keep = np.ones(frames, np.bool_) if keep is None else keep
        if keep.shape != (frames,) or keep.dtype != np.bool_:
            raise InvalidValueError("keep", f"{keep.dtype} of shape {keep.shape}", f"bool of shape {(frames,)}")
        return cls(keep, np.concatenate(([0], np.cumsum(~keep))))

    def speech(self, speech: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """Decide again what is speech in the frames that stay, now that others are their neighbours.

        Parameters
        ----------
        speech
            Shape (frames,); `SpeechAnalysis.speech`.

        Returns
        -------
        Shape (kept frames,). As in the analysis, what is left of a pause is none below `MIN_PAUSE_S`, and what is left of a word is none
        below `MIN_CORE_S`.
        """
        if self.keep.all():
            return speech
        words = drop_short(speech[self.keep], round(MIN_CORE_S / FRAME_STEP_S))
        return fill_short_gaps(words, round(MIN_PAUSE_S / FRAME_STEP_S))

    @property
    def removed_s(self) -> float:
        """Time left out, in seconds."""
        return FRAME_STEP_S * float(self.removed_before[-1])
