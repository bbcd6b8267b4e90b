"""From a file to samples, one shared analysis and a verdict on the recording."""

from clinical_ser.audio.analysis import PitchTrack, SpeechAnalysis
from clinical_ser.audio.quality import GateLimits
from clinical_ser.audio.recording import SAMPLE_RATE_HZ, Recording

__all__ = ["SAMPLE_RATE_HZ", "GateLimits", "PitchTrack", "Recording", "SpeechAnalysis"]
