"""openSMILE's ComParE set as an encoder: 6,373 functionals of a window, for where no network may be installed.

As features they are explained by family (`extract --features compare`); as an embedding they are one family, and nothing is said of one alone.
"""

from collections.abc import Sequence

import numpy as np
import opensmile
from numpy.typing import NDArray

from clinical_ser.audio.recording import SAMPLE_RATE_HZ
from clinical_ser.embeddings import EncoderSpec, Padding, WindowedEncoder
from clinical_ser.errors import InvalidValueError
from clinical_ser.features.egemaps import COMPARE_FINGERPRINT, COMPARE_NAMES, smile_of

SPEC = EncoderSpec(
    name="compare",
    title="ComParE 2016 functionals (openSMILE)",
    frame_dim=len(COMPARE_NAMES),
    frame_step_s=None,
    context_s=0.0,
    padding=Padding.EQUAL,
    licence="audEERING research licence: no commercial use",
    source="openSMILE, Schuller et al. 2016, Interspeech:2001-2005",
)


class CompareEncoder(WindowedEncoder):
    """One vector a window; a recording's is their mean, weighted by the speech in each. Zeros stay where openSMILE found no voice."""

    spec = SPEC

    def __init__(self, argument: str = "") -> None:
        if argument:
            raise InvalidValueError("the argument of encoder 'compare'", argument, "none")
        self.fingerprint = self.spec.fingerprint_of(COMPARE_FINGERPRINT)

    def run(self, samples: NDArray[np.float32], lengths: NDArray[np.int64]) -> Sequence[NDArray[np.float32]]:
        """Run openSMILE on each window; see `WindowedEncoder.run`."""
        smile = smile_of(opensmile.FeatureSet.ComParE_2016, opensmile.FeatureLevel.Functionals)
        return [smile(row[:length], SAMPLE_RATE_HZ)[0].T.astype(np.float32) for row, length in zip(samples, lengths.tolist(), strict=True)]
