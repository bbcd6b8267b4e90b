"""The recording inside of a report: only for whoever asks for it, since a voice identifies its speaker.

The one idea: it has to be the recording that was screened, which its digest tells.
"""

import base64
import io

import soundfile

from clinical_ser.audio import Recording
from clinical_ser.audio.recording import SAMPLE_RATE_HZ
from clinical_ser.errors import InvalidValueError
from clinical_ser.screening.result import ScreeningResult
from reports.clinician_figures import MOMENTS_TRACK, when
from reports.locale import Locale
from reports.marks import WIDTH
from reports.numbers import points
from reports.sheet import Audio

MOST_SECONDS = 900
"""Of sound in one file: some 20 MB, which a browser still opens."""


def audio_of(recording: Recording, result: ScreeningResult, locale: Locale) -> Audio:
    """Pack a recording for the player that runs along the timeline.

    Parameters
    ----------
    recording
        The one that was screened, and as much of it.
    result
        Its result, with a timeline.
    locale
        The language of the player's words.

    Returns
    -------
    Audio
        FLAC, 16 kHz and 16 bit, as every present browser plays it.

    Raises
    ------
    InvalidValueError
        If it is another recording, or one that is too long; or if the report shows no timeline to play along.
    """
    if recording.sha256 != result.recording.sha256:
        raise InvalidValueError("audio", "another recording than the one that was screened", "that one, with the same start and end")
    if result.timeline is None or not result.status.has_number:
        raise InvalidValueError("audio", "asked for with a result without a timeline to play along", "an answer, of `screen --timeline`")
    if recording.duration_s > MOST_SECONDS:
        raise InvalidValueError("audio", f"{recording.duration_s:.0f} s of sound", f"at most {MOST_SECONDS} s")
    packed = io.BytesIO()
    soundfile.write(packed, recording.samples, SAMPLE_RATE_HZ, format="FLAC", subtype="PCM_16")
    timeline = result.timeline
    moments = tuple(
        (locale("audio.window", when=when(timeline, one.start_s, one.end_s), points=points(one.effect)), one.start_s) for one in timeline.standing_out
    )
    return Audio(
        media_type="audio/flac",
        content_base64=base64.b64encode(packed.getvalue()).decode(),
        title=locale("audio.play"),
        warning=locale("audio.warning"),
        moments=moments,
        length_s=max(window.end_s for window in timeline.windows),
        figure="moments",
        track=(MOMENTS_TRACK[0] / WIDTH, MOMENTS_TRACK[1] / WIDTH),
    )
