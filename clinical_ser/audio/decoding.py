"""From the bytes of a file to blocks of samples, whatever the file is called and whoever sent it.

Two decoders behind one small protocol: libsndfile for the formats it knows by their first bytes (fast), FFmpeg for everything else.
Neither sees a name: the content alone decides, no playlist can make FFmpeg open a second file or an address, and no message can carry a path.
"""

import io
import os
import re
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, BinaryIO, Protocol

import av
import numpy as np
import soundfile
from numpy.typing import NDArray

from clinical_ser.errors import AudioDecodeError, AudioNotFoundError, InvalidValueError

AudioSource = str | os.PathLike[str] | bytes | BinaryIO
Block = NDArray[np.float32]
"""Shape (channels, frames), full scale = 1."""

BLOCK_FRAMES = 65_536
SAMPLE_RATES_HZ = (4_000, 768_000)
"""Below 4 kHz there is no speech to analyse; nothing records above 768 kHz. A header outside this range is wrong."""
MAX_CHANNELS = 64
"""Bounds a block at 16 MiB; the largest microphone arrays and ambisonic files have fewer."""

# libsndfile identifies these by their first bytes. MP3 and Opus go to FFmpeg although libsndfile reads them: its MP3 library writes warnings of
# its own to stderr, and FFmpeg is as fast (0.31 ms/s against 0.17 for MP3, equal for Opus) and knows the stream's bit rate.
_SNDFILE_MAGIC = (b"RIFF", b"RIFX", b"RF64", b"FORM", b"fLaC", b"caff", b".snd", b"riff")
_OGG_VORBIS_MAGIC = b"\x01vorbis"
_HEAD_BYTES = 64

# FFmpeg's containers that hold their own samples. Not in the list, on purpose: hls, dash, concat, image2, sdp and the rest that name other files.
_FFMPEG_FORMATS = "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,ogg,mp3,aac,flac,wav,w64,aiff,caf,au,amr,asf,avi,mpegts,mpeg,flv,wv,ape,tta,ac3,eac3"
_FFMPEG_OPTIONS = {"format_whitelist": _FFMPEG_FORMATS, "protocol_whitelist": ""}

_FORMATS_WITH_DURATION = frozenset({"mov,mp4,m4a,3gp,3g2,mj2", "matroska,webm", "ogg", "wav", "flac"})
_END_TOLERANCE_S = 0.1

_STATED_SIZE = re.compile(r"^ *(?:data|SSND|Data Size) *: (?P<stated>\d+) \(should be (?P<there>\d+)\)", re.MULTILINE)
_UNKNOWN_SIZE = 2**31 - 2**16
"""Programs that write to a pipe state a size of 2 or 4 GiB, less a header."""

_SNDFILE_CODECS: Mapping[str, str] = MappingProxyType(
    {
        "PCM_U8": "pcm_u8",
        "PCM_S8": "pcm_s8",
        "PCM_16": "pcm_s16",
        "PCM_24": "pcm_s24",
        "PCM_32": "pcm_s32",
        "FLOAT": "pcm_f32",
        "DOUBLE": "pcm_f64",
        "ULAW": "pcm_mulaw",
        "ALAW": "pcm_alaw",
    }
)


@dataclass(frozen=True)
class StreamInfo:
    """What the file says of itself; `frames` is None where only decoding can tell."""

    codec: str
    sample_rate_hz: int
    channels: int
    bit_rate_bps: int | None
    frames: int | None


class AudioStream(Protocol):
    """An opened recording."""

    @property
    def info(self) -> StreamInfo:
        """What the file says of itself."""

    @property
    def damaged(self) -> bool:
        """True once a part that could not be decoded was met, or the file ended before its header said."""

    def blocks(self, first_frame: int) -> Iterator[Block]:
        """Yield the samples from `first_frame` on, `BLOCK_FRAMES` at a time and fewer in the last block."""


@contextmanager
def open_stream(source: AudioSource) -> Iterator[AudioStream]:
    """Open a recording for decoding.

    Parameters
    ----------
    source : path, bytes or a seekable binary file
        A file handed over is read from its beginning and stays open.

    Raises
    ------
    AudioNotFoundError
        Missing, a directory, a device, or not readable.
    AudioDecodeError
        Not audio that a decoder here understands, or a header that cannot be true.
    """
    with _open_bytes(source) as file:
        file.seek(0)
        head = file.read(_HEAD_BYTES)
        if not head:
            raise AudioDecodeError("The file is empty (0 bytes).")
        file.seek(0)
        opened = _SndfileStream.open if _is_for_sndfile(head) else _FfmpegStream.open
        with opened(_Nameless(file), _size_bytes(file)) as stream:
            _check_header(stream.info)
            yield stream


class _Nameless:
    """A file without its name, so that nothing is guessed from an extension and nothing repeats it."""

    def __init__(self, file: BinaryIO) -> None:
        self.read = file.read
        self.seek = file.seek
        self.tell = file.tell


@contextmanager
def _open_bytes(source: AudioSource) -> Iterator[BinaryIO]:
    if isinstance(source, bytes):
        yield io.BytesIO(source)
    elif isinstance(source, str | os.PathLike):
        with _open_path(source) as file:
            yield file
    else:
        yield source


def _open_path(path: str | os.PathLike[str]) -> BinaryIO:
    """Open a regular file; the operating system's own messages name the path, so none of them is passed on."""
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):
            raise AudioNotFoundError("That is a directory or a device, not a recording.")
        return open(path, "rb")
    except FileNotFoundError:
        raise AudioNotFoundError("There is no such file.") from None
    except PermissionError:
        raise AudioNotFoundError("The file may not be read (no permission).") from None
    except (OSError, ValueError) as error:
        raise AudioNotFoundError(f"The file cannot be opened ({type(error).__name__}).") from None


def _size_bytes(file: BinaryIO) -> int:
    size = file.seek(0, os.SEEK_END)
    file.seek(0)
    return size


def _is_for_sndfile(head: bytes) -> bool:
    return head.startswith(_SNDFILE_MAGIC) or (head.startswith(b"OggS") and _OGG_VORBIS_MAGIC in head)


def _check_header(info: StreamInfo) -> None:
    low, high = SAMPLE_RATES_HZ
    if not low <= info.sample_rate_hz <= high:
        raise AudioDecodeError(f"The file says {info.sample_rate_hz} samples a second; {low} to {high} can be right.")
    if not 1 <= info.channels <= MAX_CHANNELS:
        raise AudioDecodeError(f"The file says {info.channels} channels; 1 to {MAX_CHANNELS} are read.")


class _SndfileStream:
    """libsndfile: PCM in WAV, AIFF, CAF, AU and W64; FLAC; Ogg Vorbis."""

    def __init__(self, file: soundfile.SoundFile, raw: _Nameless, size_bytes: int) -> None:
        self._file = file
        self._raw = raw
        self._size_bytes = size_bytes
        codec = _SNDFILE_CODECS.get(file.subtype, file.subtype.lower())
        self.info = StreamInfo(
            codec="flac" if file.format == "FLAC" else codec,
            sample_rate_hz=file.samplerate,
            channels=file.channels,
            bit_rate_bps=round(8 * size_bytes * file.samplerate / file.frames) if file.frames > 0 else None,
            frames=file.frames,
        )
        self.damaged = _is_cut_short(file.extra_info)

    @classmethod
    @contextmanager
    def open(cls, file: _Nameless, size_bytes: int) -> Iterator[AudioStream]:
        try:
            opened = soundfile.SoundFile(file)
        except soundfile.LibsndfileError:
            # RIFF and FORM hold more than libsndfile reads (ADPCM variants, MP3 in WAV, AVI).
            file.seek(0)
            with _FfmpegStream.open(file, size_bytes) as stream:
                yield stream
            return
        with opened:
            yield cls(opened, file, size_bytes)

    def blocks(self, first_frame: int) -> Iterator[Block]:
        if first_frame >= self._file.frames:
            return
        position = first_frame
        try:
            self._file.seek(first_frame)
            while len(block := self._file.read(BLOCK_FRAMES, dtype="float32", always_2d=True)):
                position += len(block)
                yield np.ascontiguousarray(block.T)
        except soundfile.LibsndfileError:
            # A damaged FLAC frame costs libsndfile the whole block; FFmpeg goes on behind it.
            self.damaged = True
            self._raw.seek(0)
            with _FfmpegStream.open(self._raw, self._size_bytes) as rest:
                yield from rest.blocks(position)


def _is_cut_short(log: str) -> bool:
    """Tell from libsndfile's log whether the header states more bytes of samples than there are (it silently reads what is there)."""
    found = _STATED_SIZE.search(log)
    return found is not None and int(found["there"]) < int(found["stated"]) < _UNKNOWN_SIZE


class _FfmpegStream:
    """FFmpeg: MP3, AAC in MP4, Opus in WebM or Ogg, AMR, WMA, the sound of a video, and what else it knows."""

    def __init__(self, container: Any, size_bytes: int) -> None:
        self._container = container
        self._stream = container.streams.best("audio")
        if self._stream is None:
            raise AudioDecodeError("The file holds no sound track.")
        context = self._stream.codec_context
        self.info = StreamInfo(
            codec=context.codec.canonical_name.removesuffix("le").removesuffix("be"),
            sample_rate_hz=context.sample_rate or 0,
            channels=context.layout.nb_channels,
            bit_rate_bps=self._bit_rate(size_bytes),
            frames=None,
        )
        self.damaged = False

    @classmethod
    @contextmanager
    def open(cls, file: _Nameless, size_bytes: int) -> Iterator[AudioStream]:
        try:
            container = av.open(file, "r", container_options=_FFMPEG_OPTIONS, metadata_errors="ignore", io_open=_refuse_other_files)
        except av.FFmpegError:
            raise AudioDecodeError("The file is not audio that can be read here, or its beginning or index is missing.") from None
        with container:
            yield cls(container, size_bytes)

    def blocks(self, first_frame: int) -> Iterator[Block]:
        pending: list[Block] = []
        held = 0
        skip = first_frame
        for frame in self._frames():
            block = frame[:, skip:]
            skip -= frame.shape[1] - block.shape[1]
            if not block.shape[1]:
                continue  # an empty view would keep the whole frame in memory until the part begins
            pending.append(block)
            held += block.shape[1]
            if held >= BLOCK_FRAMES:
                whole = np.concatenate(pending, axis=1)
                full = held - held % BLOCK_FRAMES
                yield from np.split(whole[:, :full], full // BLOCK_FRAMES, axis=1)
                pending, held = [whole[:, full:]], held - full
        if held:
            yield np.concatenate(pending, axis=1)

    def _frames(self) -> Iterator[Block]:
        """Decode packet by packet: one that is damaged costs its 20 ms, not the rest of the file."""
        decoded = 0
        for packet in self._packets():
            try:
                frames = packet.decode()
            except av.FFmpegError:
                self.damaged = True
                continue
            for frame in frames:
                if (frame.sample_rate, frame.layout.nb_channels) != (self.info.sample_rate_hz, self.info.channels):
                    raise AudioDecodeError("The sample rate or the number of channels changes within the file.")
                decoded += frame.samples
                yield _to_float(frame.to_ndarray(), frame.format.is_planar, self.info.channels)
        self.damaged |= decoded / self.info.sample_rate_hz < self._stated_duration_s() - _END_TOLERANCE_S

    def _packets(self) -> Iterator[Any]:
        packets = self._container.demux(self._stream)
        while True:
            try:
                yield next(packets)
            except StopIteration:
                return
            except av.FFmpegError:
                self.damaged = True
                return

    def _stated_duration_s(self) -> float:
        """Return what the header (in Ogg, the last page) says; 0 where it says nothing, or where FFmpeg guesses from the size."""
        if self._container.format.name not in _FORMATS_WITH_DURATION:
            return 0.0
        if self._stream.duration is not None:
            return float(self._stream.duration * self._stream.time_base)
        # Matroska states one duration for all its tracks.
        alone = len(self._container.streams) == 1
        return float((self._container.duration or 0) / av.time_base) if alone else 0.0

    def _bit_rate(self, size_bytes: int) -> int | None:
        """Return the stream's own figure; else the file's, where the stream is all there is in it."""
        if self._stream.bit_rate:
            return int(self._stream.bit_rate)
        alone = len(self._container.streams) == 1 and self._container.duration
        return round(8 * size_bytes / (self._container.duration / av.time_base)) if alone else None


def _refuse_other_files(url: str, flags: int, options: dict[str, str]) -> BinaryIO:  # noqa: ARG001 - FFmpeg's signature
    raise AudioDecodeError("The file refers to other files.")


def _to_float(samples: NDArray[Any], planar: bool, channels: int) -> Block:
    return as_float(samples if planar else samples.reshape(-1, channels).T)


def as_float(samples: NDArray[Any]) -> Block:
    """Scale integers of any width to full scale 1 and return float32; floats keep their values."""
    if samples.dtype == np.uint8:
        return (samples.astype(np.float32) - np.float32(128)) / np.float32(128)
    if np.issubdtype(samples.dtype, np.signedinteger):
        return samples.astype(np.float32) * np.float32(1 / -float(np.iinfo(samples.dtype).min))
    if np.issubdtype(samples.dtype, np.floating):
        # A float64 beyond float32's range becomes infinite, and infinite samples are counted and set to zero.
        with np.errstate(over="ignore"):
            return np.asarray(samples, np.float32)
    raise InvalidValueError("sample type", samples.dtype.name, "a floating point type, a signed integer or uint8")
