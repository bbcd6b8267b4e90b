"""Embeddings on disk: a `.npy` or Parquet file of numbers, and beside it a JSON that says whose numbers they are, `NAME` + `.json`.

The one idea: the side-car is read first and the numbers have to be what it says, byte for byte (sha256, size, header). A header that a stranger
wrote is never interpreted, so nothing that it claims can be believed.

Every voice vector identifies a person (docs/benchmarks.md). So the side-car names no one and no file.
"""

import hashlib
import json
import math
import os
import stat
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path
from typing import Annotated, BinaryIO, Final, Literal, NoReturn, Self

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from pydantic import Field, StringConstraints, ValidationError, model_validator

from clinical_ser import audio
from clinical_ser.audio.loading import MAX_POSITION_S
from clinical_ser.audio.recording import SAMPLE_RATE_HZ, Recording
from clinical_ser.embeddings.encoder import Encoder, EncoderName, EncoderSpec, Sha256, Text, WindowedEncoder, column_names
from clinical_ser.embeddings.windows import NO_SPEECH, PART_S, check_length, encode_parts
from clinical_ser.errors import AudioTooLongError, EmbeddingError, InvalidValueError, TableError
from clinical_ser.strict import Strict

SCHEMA = "clinical-ser/embeddings/1"
SIDE_CAR = ".json"
HANDLING = "Every voice vector identifies a person. Keep this file as you keep the recordings."
MAX_SIDE_CAR_BYTES = 256 * 2**20
MAX_ROWS = 1_000_000
MAX_VALUES = 2**30
"""8 GiB in memory: what a Parquet file may unpack to. A `.npy` is as large as what it holds."""
VECTOR_TYPE: Final = "<f8"
FRAME_TYPE: Final = "<f4"
_HEADER_BYTES = 128
_BLOCK_BYTES = 1 << 22
_METADATA_KEY = b"clinical-ser"
_GRID = 0.01
"""Share of a frame's step by which the time between two frames may differ from it, so that rounding begins no new run."""

Seconds = Annotated[float, Field(ge=0)]


# --- What is stored -----------------------------------------------------------------------------------------------------------------------


class StoredRow(Strict):
    """One recording. `row` is its number in the manifest; 1 without one."""

    row: int = Field(ge=1)
    recording: Sha256 | None
    """Digest of the samples, as everywhere in this package; None for one that was read in parts, each with its own mean removed."""
    file_sha256: Sha256 | None = None
    """Then the digest of the file's bytes, so that it can be found."""
    parts: int = Field(default=1, ge=1)
    start_s: Seconds = 0.0
    """Where in the file it begins."""
    duration_s: Seconds
    speech_s: Seconds
    """What the vector is pooled over."""

    @model_validator(mode="after")
    def _identified(self) -> Self:
        if (self.recording is None) is (self.file_sha256 is None):
            raise ValueError("one digest names a recording")
        return self

    @property
    def digest(self) -> str:
        """The digest that names it."""
        return self.recording or self.file_sha256 or ""


class Run(Strict):
    """Frames without a gap: frame `frame` (from 0) has its centre at `time_s`, and each further one a step later. Silence is not encoded."""

    frame: int = Field(ge=0)
    time_s: Seconds


class DataFile(Strict):
    """The file of numbers that a side-car is about."""

    form: Literal["npy", "parquet"]
    dtype: Literal["<f8", "<f4"]
    shape: tuple[Annotated[int, Field(ge=0, le=2**40)], ...] = Field(min_length=1, max_length=2)
    bytes: int = Field(ge=0)
    sha256: Sha256


class About(Strict):
    """The content of a side-car."""

    schema_id: Literal["clinical-ser/embeddings/1"] = Field(alias="schema")
    content: Literal["recording", "recordings", "frames"]
    """Of a `.npy`: shape (D,), (N, D), or (T, frame_dim); Parquet always holds recordings."""
    encoder: EncoderName
    fingerprint: Annotated[str, StringConstraints(min_length=1, max_length=1000)]
    licence: Text
    dim: int = Field(ge=1, le=32_768)
    """Length of a vector, here: of a frame's, where frames are stored."""
    frame_step_s: float | None = Field(gt=0, le=10)
    first_frame_s: Seconds
    identifies_speakers: Literal[True] = True
    handling: str = Field(default=HANDLING, max_length=1000)
    rows: tuple[StoredRow, ...] = Field(min_length=1, max_length=MAX_ROWS)
    problems: tuple[tuple[int, Annotated[str, StringConstraints(max_length=1000)]], ...] = Field(default=(), max_length=MAX_ROWS)
    """Rows of the manifest without a vector, and why."""
    runs: tuple[Run, ...] = Field(default=(), max_length=MAX_ROWS)
    """When frames were."""
    data: DataFile

    @model_validator(mode="after")
    def _coherent(self) -> Self:
        frames, shape = self.content == "frames", self.data.shape
        if shape[-1] != self.dim or len(shape) != (1 if self.content == "recording" else 2):
            raise ValueError("the shape is not that of the content")
        if len(self.rows) != (shape[0] if self.content == "recordings" else 1):
            raise ValueError("not as many rows as vectors")
        if self.data.dtype != (FRAME_TYPE if frames else VECTOR_TYPE) or (self.data.form == "parquet" and self.content != "recordings"):
            raise ValueError("the type is not that of the content")
        starts = [run.frame for run in self.runs]
        if frames is not bool(starts) or (frames and (starts[0] != 0 or starts[-1] >= shape[0])) or starts != sorted(set(starts)):
            raise ValueError("the runs are not those of the frames")
        return self


@dataclass(frozen=True, eq=False)
class Embeddings:
    """What `read_embeddings` found."""

    vectors: NDArray[np.float64] | NDArray[np.float32]
    """Shape (N, D); of frames (T, frame_dim), float32, and left on disk until it is looked at."""
    about: About
    columns: pd.DataFrame
    """Shape (N, columns): `row`, `recording` (the digest that names it) and, from Parquet, what the manifest said (`subject`, `label`, ...)."""

    def times_s(self) -> NDArray[np.float64]:
        """Return the centre of each frame; empty where no frames are stored."""
        runs = self.about.runs
        if not runs:
            return np.zeros(0)
        starts = np.array([run.frame for run in runs])
        lengths = np.diff([*starts, len(self.vectors)])
        since = np.arange(len(self.vectors)) - np.repeat(starts, lengths)
        return np.asarray(np.repeat([run.time_s for run in runs], lengths) + since * (self.about.frame_step_s or 0.0))


# --- From a file to a vector --------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Encoded:
    """A recording's vector, shape (D,), and what a side-car says of it."""

    vector: NDArray[np.float64]
    row: StoredRow


class FrameFile:
    """Takes the frames of one recording and writes them as they come; the header, which says how many they were, is written last.

    Parameters
    ----------
    file
        Open for writing, seekable, and empty.
    """

    def __init__(self, file: BinaryIO, spec: EncoderSpec) -> None:
        self._file, self._spec = file, spec
        self._file.write(bytes(_HEADER_BYTES))
        self._last_s = -math.inf
        self.count = 0
        self.runs: list[Run] = []

    def add(self, times_s: NDArray[np.float64], frames: NDArray[np.float32]) -> None:
        """Append frames of shape (n, frame_dim), in order of time."""
        if not len(frames):
            return
        step = self._spec.frame_step_s
        apart = np.diff(times_s, prepend=self._last_s)
        begins = np.ones(len(frames), bool) if step is None else np.abs(apart - step) > _GRID * step
        self.runs += [Run(frame=self.count + int(i), time_s=round(float(times_s[i]), 9)) for i in np.flatnonzero(begins)]
        self._file.write(np.ascontiguousarray(frames, FRAME_TYPE).tobytes())
        self._last_s = float(times_s[-1])
        self.count += len(frames)

    def finish(self) -> tuple[int, int]:
        """Write the header; return the shape."""
        shape = (self.count, self._spec.frame_dim)
        self._file.seek(0)
        self._file.write(npy_header(FRAME_TYPE, shape))
        return shape


def encode_file(
    encoder: Encoder, path: Path, *, row: int = 1, start: float | None = None, end: float | None = None, frames: FrameFile | None = None
) -> Encoded:
    """Encode a file, or the part of it between `start` and `end` (seconds); memory does not grow with its length.

    A recording of more than `windows.PART_S` is read and heard in parts of that length. Its vector is that of `encoder.encode` but for the mean of
    the samples, which is removed from each part instead of from all: a difference for microphones whose offset wanders, and else below 1e-6.
    An encoder that is no `WindowedEncoder` is given the recording whole, which is then no longer than `audio.MAX_DURATION_S`.

    Parameters
    ----------
    row
        The number under which it is described.
    frames
        Takes the frames, if they are wanted.

    Raises
    ------
    AudioError
        Not there, not audio, or too long.
    EmbeddingError
        Shorter than the encoder needs, without speech, or changed while it was read.
    InvalidValueError
        A segment that cannot be.
    """
    if not isinstance(encoder, WindowedEncoder):
        recording = audio.load(path, start=start, end=end)
        found = encoder.encode([recording], frames=frames is not None)[0]
        if frames is not None:
            frames.add(found.times_s, found.frames)
        about = StoredRow(
            row=row, recording=recording.sha256, start_s=start or 0.0, duration_s=recording.duration_s, speech_s=round(found.speech_s, 6)
        )
        return Encoded(found.utterance, about)
    parts = _Parts(path, start or 0.0, end, encoder.spec)
    if frames is None:
        found = encode_parts(encoder, parts, duration_s=PART_S)
        return Encoded(found.utterance, parts.described(row, found.speech_s))
    return Encoded(np.zeros(0), parts.described(row, _add_frames(encoder, parts, frames)))


def _add_frames(encoder: WindowedEncoder, parts: Iterable[Recording], frames: FrameFile) -> float:
    """Write the frames part by part; return the seconds of speech."""
    speech_s = 0.0
    for place, part in enumerate(parts):
        try:
            found = encode_parts(encoder, [part], duration_s=PART_S, frames=True)
        except EmbeddingError:
            continue  # nobody speaks in it
        frames.add(found.times_s + place * PART_S, found.frames)
        speech_s += found.speech_s
    if not speech_s:
        raise EmbeddingError(f"Nothing to encode: {NO_SPEECH}.")
    return speech_s


class _Parts:
    """A file, read part by part; how long it is turns out when a part is not full, because headers lie and many formats have none.

    So the first part alone is held against the shortest length that the encoder takes; a last part may be as short as it is.
    """

    def __init__(self, path: Path, start_s: float, end_s: float | None, spec: EncoderSpec) -> None:
        self._path, self._start_s, self._end_s, self._spec = path, start_s, end_s, spec
        self._stamp = _stamp(path)
        self._count = self._samples = 0
        self._digest = ""

    def __iter__(self) -> Iterator[Recording]:
        full, until_s = round(PART_S * SAMPLE_RATE_HZ), math.inf if self._end_s is None else self._end_s
        at_s = self._start_s
        while at_s < until_s:
            if self._count and at_s >= MAX_POSITION_S:
                raise AudioTooLongError(f"The recording goes on beyond {MAX_POSITION_S / 3600:g} h; give a part of it.")
            stop_s = min(at_s + PART_S, until_s, max(at_s, MAX_POSITION_S))
            try:
                part = audio.load(self._path, start=at_s, end=stop_s, max_duration_s=PART_S + 1)
            except InvalidValueError:
                if not self._count:
                    raise
                return  # the part before was the last, and full
            if not self._count:
                check_length(self._spec, part.duration_s)
            self._count += 1
            self._samples += len(part.samples)
            self._digest = part.sha256
            last = len(part.samples) < full
            yield part
            if last:
                return
            del part
            at_s = self._start_s + self._count * PART_S
        if not self._count:
            audio.load(self._path, start=self._start_s, end=self._end_s)  # says what is wrong with the segment

    def described(self, row: int, speech_s: float) -> StoredRow:
        whole = self._count == 1
        if not whole and _stamp(self._path) != self._stamp:
            raise EmbeddingError("The file changed while it was read.")
        return StoredRow(
            row=row,
            recording=self._digest if whole else None,
            file_sha256=None if whole else _file_digest(self._path),
            parts=self._count,
            start_s=self._start_s,
            duration_s=self._samples / SAMPLE_RATE_HZ,
            speech_s=round(speech_s, 6),
        )


def _stamp(path: Path) -> tuple[int, ...]:
    try:
        state = path.stat()
    except (OSError, ValueError):
        return ()  # what is wrong with it, the loader says
    return state.st_ino, state.st_size, state.st_mtime_ns


def _file_digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


# --- Writing ------------------------------------------------------------------------------------------------------------------------------


def side_car_of(path: Path) -> Path:
    """Return where the side-car of a file of embeddings is."""
    return path.with_name(path.name + SIDE_CAR)


def npy_header(dtype: str, shape: tuple[int, ...]) -> bytes:
    """Return the header of a `.npy` file (NumPy's format 1.0), always of 128 bytes: one text for one shape, so that it can be compared as bytes."""
    text = f"{{'descr': '{dtype}', 'fortran_order': False, 'shape': {shape!r}, }}"
    return b"\x93NUMPY\x01\x00" + (_HEADER_BYTES - 10).to_bytes(2, "little") + text.ljust(_HEADER_BYTES - 11).encode() + b"\n"


def write_vector(encoded: Encoded, encoder: Encoder, data: Path, side_car: Path) -> About:
    """Write the vector of one recording as `.npy`, shape (D,)."""
    _write_npy(encoded.vector, data)
    return _write_side_car(encoder, "recording", (encoded.row,), (), (), _data_file("npy", VECTOR_TYPE, encoded.vector.shape, data), side_car)


def write_frames(encoder: Encoder, path: Path, data: Path, side_car: Path) -> About:
    """Encode a file and write its frames as `.npy`, shape (T, frame_dim), as they come; errors are those of `encode_file`."""
    with data.open("wb") as file:
        frames = FrameFile(file, encoder.spec)
        encoded = encode_file(encoder, path, frames=frames)
        shape = frames.finish()
    return _write_side_car(encoder, "frames", (encoded.row,), (), tuple(frames.runs), _data_file("npy", FRAME_TYPE, shape, data), side_car)


def write_matrix(
    encoded: list[Encoded],
    encoder: Encoder,
    data: Path,
    side_car: Path,
    *,
    problems: tuple[tuple[int, str], ...] = (),
    columns: pd.DataFrame | None = None,
) -> About:
    """Write the vectors of several recordings, as `.npy` of shape (N, D) or, with `columns` of as many rows, as Parquet.

    The files are written where the caller says, who puts both in place when all is written.

    Raises
    ------
    TableError
        A column mixes types that Parquet cannot hold together, or has a name of ours.
    """
    vectors = np.stack([one.vector for one in encoded])
    rows = tuple(one.row for one in encoded)
    if columns is None:
        _write_npy(vectors, data)
    else:
        _write_parquet(vectors, rows, encoder, columns, data)
    file = _data_file("npy" if columns is None else "parquet", VECTOR_TYPE, vectors.shape, data)
    return _write_side_car(encoder, "recordings", rows, problems, (), file, side_car)


def _write_npy(vectors: NDArray[np.float64], path: Path) -> None:
    with path.open("wb") as file:
        file.write(npy_header(VECTOR_TYPE, vectors.shape))
        file.write(np.ascontiguousarray(vectors, VECTOR_TYPE).tobytes())


def _write_parquet(vectors: NDArray[np.float64], rows: tuple[StoredRow, ...], encoder: Encoder, columns: pd.DataFrame, path: Path) -> None:
    names, further = column_names(encoder.spec), checked_columns(columns, encoder.spec)
    table = pa.table(
        {
            "row": pa.array([one.row for one in rows], pa.int64()),
            "recording": pa.array([one.digest for one in rows], pa.string()),
            **{name: further[name] for name in further.column_names},
            **dict(zip(names, vectors.T, strict=True)),
        }
    )
    # pandas' own metadata left out: versions of libraries would change the bytes.
    about = {"schema": SCHEMA, "fingerprint": encoder.fingerprint, "licence": encoder.spec.licence, "handling": HANDLING}
    table = table.replace_schema_metadata({_METADATA_KEY: json.dumps(about, sort_keys=True).encode()})
    pq.write_table(table, path, compression="zstd", row_group_size=65_536)


def checked_columns(columns: pd.DataFrame, spec: EncoderSpec) -> pa.Table:
    """Return columns as Parquet holds them; TableError if it cannot, or if one has a name of ours. Ask before the work."""
    if taken := {"row", "recording", *column_names(spec)} & set(columns.columns):
        raise TableError(f"The manifest has {len(taken)} columns with names that a table of embeddings uses itself; rename them.")
    try:
        return pa.Table.from_pandas(columns.reset_index(drop=True), preserve_index=False)
    except pa.ArrowException as error:
        raise TableError(f"A column holds values of several types ({type(error).__name__}); give every column of the manifest one type.") from None


def _data_file(form: Literal["npy", "parquet"], dtype: Literal["<f8", "<f4"], shape: tuple[int, ...], path: Path) -> DataFile:
    return DataFile(form=form, dtype=dtype, shape=shape, bytes=path.stat().st_size, sha256=_file_digest(path))


def _write_side_car(
    encoder: Encoder,
    content: Literal["recording", "recordings", "frames"],
    rows: tuple[StoredRow, ...],
    problems: tuple[tuple[int, str], ...],
    runs: tuple[Run, ...],
    data: DataFile,
    path: Path,
) -> About:
    spec = encoder.spec
    about = About(
        schema=SCHEMA,
        content=content,
        encoder=spec.name,
        fingerprint=encoder.fingerprint,
        licence=spec.licence,
        dim=spec.frame_dim if content == "frames" else spec.dim,
        frame_step_s=spec.frame_step_s,
        first_frame_s=spec.first_frame_s,
        rows=rows,
        problems=problems,
        runs=runs,
        data=data,
    )
    path.write_bytes(about.model_dump_json(indent=2, by_alias=True).encode() + b"\n")
    return about


# --- Reading ------------------------------------------------------------------------------------------------------------------------------


def read_embeddings(path: Path, *, fingerprint: str | None = None) -> Embeddings:
    """Read what `clinical-ser embed` wrote, and make sure that it is that.

    Parameters
    ----------
    path
        The `.npy` or Parquet file; its side-car lies beside it.
    fingerprint
        Of the encoder that the caller insists on: vectors of two encoders cannot be compared.

    Raises
    ------
    TableError
        Not there, without its side-car or with another file's, cut short, changed, too large, or of another encoder.
    """
    about = read_side_car(path)
    if fingerprint is not None and about.fingerprint != fingerprint:
        raise TableError("The embeddings are another encoder's, or another version's; embed the recordings again.")
    with _opened(path, "file of embeddings") as file:
        _check_digest(file, about.data)
        vectors, columns = (_read_npy if about.data.form == "npy" else _read_parquet)(file, about)
    blocks = np.array_split(vectors, 1 + vectors.nbytes // _BLOCK_BYTES)  # frames of hours are not brought into memory for it
    if not all(np.isfinite(block).all() for block in blocks):
        raise TableError("The embeddings hold a number that is not finite; embed the recordings again.")
    return Embeddings(vectors, about, columns)


def read_side_car(path: Path) -> About:
    """Read what is said beside a file of embeddings; TableError if it is not there, or does not follow the schema."""
    with _opened(side_car_of(path), "side-car (.json) of the embeddings") as file:
        raw = file.read(MAX_SIDE_CAR_BYTES + 1)
    if len(raw) > MAX_SIDE_CAR_BYTES:
        raise TableError("The side-car of the embeddings is larger than any that is written.")
    try:
        return About.model_validate_json(raw)
    except ValidationError as error:
        where = ".".join(str(part) for part in error.errors()[0]["loc"][:3])
        raise TableError(f"The side-car of the embeddings is damaged, or of another version ({where or 'as a whole'}).") from None


@contextmanager
def _opened(path: Path, what: str) -> Iterator[BufferedReader]:
    """Open a plain file; its path is in no message."""
    try:
        # Without waiting, as for the other end of a pipe.
        file = open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK))  # noqa: SIM115 - below
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "no path can have this form"
        raise TableError(f"The {what} cannot be read ({reason}); `clinical-ser embed` writes one.") from None
    with file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise TableError(f"The {what} is no plain file.")
        yield file


def _check_digest(file: BufferedReader, data: DataFile) -> None:
    if os.fstat(file.fileno()).st_size != data.bytes:
        raise TableError("The file of embeddings is not as long as its side-car says: it was cut short, or the side-car is another file's.")
    if hashlib.file_digest(file, "sha256").hexdigest() != data.sha256:
        raise TableError("The file of embeddings is not the one that its side-car is about (sha256 differs).")
    file.seek(0)


def _read_npy(file: BufferedReader, about: About) -> tuple[NDArray[np.float64] | NDArray[np.float32], pd.DataFrame]:
    data = about.data
    size = math.prod(data.shape) * np.dtype(data.dtype).itemsize
    if file.read(_HEADER_BYTES) != npy_header(data.dtype, data.shape) or data.bytes != _HEADER_BYTES + size:
        raise TableError("The file of embeddings has not the shape or type that its side-car says.")
    shape = data.shape if len(data.shape) == 2 else (1, *data.shape)
    mapped = np.memmap(file, data.dtype, "r", _HEADER_BYTES, shape)
    return mapped if about.content == "frames" else np.array(mapped), _named(about)


def _named(about: About) -> pd.DataFrame:
    return pd.DataFrame({"row": [one.row for one in about.rows], "recording": [one.digest for one in about.rows]})


def _read_parquet(file: BufferedReader, about: About) -> tuple[NDArray[np.float64], pd.DataFrame]:
    rows, dim = about.data.shape
    if rows * dim > MAX_VALUES:
        raise TableError(f"The table of embeddings holds more than {MAX_VALUES} numbers.")
    names = [f"embedding.{about.encoder}.{i}" for i in range(dim)]
    try:
        parquet = pq.ParquetFile(file)
        if parquet.metadata.num_rows != rows or sum(parquet.metadata.row_group(i).num_rows for i in range(parquet.num_row_groups)) != rows:
            _refuse_table()
        table = parquet.read()
        table.validate(full=True)
        said = json.loads((table.schema.metadata or {}).get(_METADATA_KEY, b"{}"))
        further = [name for name in table.column_names if name not in set(names)]
        frame = table.replace_schema_metadata(None).select(further).to_pandas()
        columns = [table[name] for name in names]
    except (pa.ArrowException, OSError, ValueError, KeyError, RecursionError, MemoryError):
        _refuse_table()
    if not isinstance(said, dict) or said.get("fingerprint") != about.fingerprint or len(table) != rows:
        _refuse_table()
    if any(column.type != pa.float64() or column.null_count for column in columns) or len(set(table.column_names)) < len(table.column_names):
        _refuse_table()
    if frame.get(["row", "recording"], pd.DataFrame()).to_dict("list") != _named(about).to_dict("list"):
        _refuse_table()
    return np.column_stack([column.to_numpy() for column in columns]).astype(np.float64, copy=False), frame


def _refuse_table() -> NoReturn:
    raise TableError("The Parquet file does not hold the embeddings that its side-car says.")
