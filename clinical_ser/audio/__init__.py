"""From a file to samples, one shared analysis of them, and a verdict on the recording."""

from clinical_ser.audio.analysis import PitchTrack, SpeechAnalysis, analyse, analyse_samples
from clinical_ser.audio.loading import MAX_DURATION_S, from_samples, load
from clinical_ser.audio.quality import GateLimits, QualityCheck, QualityMeasures, QualityReport, assess, judge, measure
from clinical_ser.audio.recording import SAMPLE_RATE_HZ, Recording, SourceInfo

__all__ = [
    "MAX_DURATION_S",
    "SAMPLE_RATE_HZ",
    "GateLimits",
    "PitchTrack",
    "QualityCheck",
    "QualityMeasures",
    "QualityReport",
    "Recording",
    "SourceInfo",
    "SpeechAnalysis",
    "analyse",
    "analyse_samples",
    "assess",
    "from_samples",
    "judge",
    "load",
    "measure",
]
