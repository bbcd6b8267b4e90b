"""Encoded files for the tests of decoding, made in memory."""

import io
import struct
from fractions import Fraction

import av
import numpy as np
import soundfile
from numpy.typing import NDArray


def pcm16(samples: NDArray[np.float64]) -> NDArray[np.int16]:
    """Round to 16 bits once, so that every lossless file made of it holds the same numbers."""
    return np.rint(samples * 32_767).astype(np.int16)


def sndfile_bytes(samples: NDArray, rate_hz: int, container: str, subtype: str) -> bytes:
    """Encode with libsndfile; in pieces, because its Vorbis encoder crashes on long blocks."""
    file = io.BytesIO()
    channels = 1 if samples.ndim == 1 else samples.shape[1]
    with soundfile.SoundFile(file, "w", rate_hz, channels, subtype=subtype, format=container) as out:
        for start in range(0, len(samples), 4_096):
            out.write(samples[start : start + 4_096])
    return file.getvalue()


def wav_bytes(samples: NDArray, rate_hz: int = 16_000, subtype: str = "PCM_16") -> bytes:
    return sndfile_bytes(samples, rate_hz, "WAV", subtype)


def ffmpeg_bytes(samples: NDArray[np.float64], rate_hz: int, container: str, codec: str, *, bit_rate_bps: int = 64_000) -> bytes:
    """Encode float samples, shape (frames,) or (frames, 2), with FFmpeg."""
    file = io.BytesIO()
    planes = np.ascontiguousarray(np.atleast_2d(samples.T), np.float32)
    layout = "mono" if len(planes) == 1 else "stereo"
    with av.open(file, "w", format=container) as out:
        stream = out.add_stream(codec, rate=rate_hz)
        stream.layout = layout
        stream.bit_rate = bit_rate_bps
        frame = av.AudioFrame.from_ndarray(planes, format="fltp", layout=layout)
        frame.sample_rate, frame.time_base, frame.pts = rate_hz, Fraction(1, rate_hz), 0
        for packet in [*stream.encode(frame), *stream.encode(None)]:
            out.mux(packet)
    return file.getvalue()


def silent_video_bytes() -> bytes:
    """Encode ten black frames and no sound."""
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as out:
        stream = out.add_stream("mpeg4", rate=10)
        stream.width = stream.height = 32
        for _ in range(10):
            for packet in stream.encode(av.VideoFrame.from_ndarray(np.zeros((32, 32, 3), np.uint8), format="rgb24")):
                out.mux(packet)
        for packet in stream.encode(None):
            out.mux(packet)
    return file.getvalue()


def wav_header(frames: int, rate_hz: int, *, channels: int = 1, bits: int = 8) -> bytes:
    """Return the 44 bytes before the samples of a PCM file."""
    width = channels * bits // 8
    form = struct.pack("<4sI4s4sIHHIIHH", b"RIFF", 36 + frames * width, b"WAVE", b"fmt ", 16, 1, channels, rate_hz, rate_hz * width, width, bits)
    return form + struct.pack("<4sI", b"data", frames * width)
