"""Embeddings on disk: what is read is what was written, a long file becomes what it becomes in memory, and nothing that a file claims is believed."""

import hashlib
import io
import json
import os
import tracemalloc

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile
from hypothesis import given
from hypothesis import strategies as st

from clinical_ser import audio
from clinical_ser.embeddings import Embedding, storing, windows
from clinical_ser.embeddings.storing import (
    Encoded,
    FrameFile,
    encode_file,
    npy_header,
    read_embeddings,
    read_side_car,
    side_car_of,
    write_frames,
    write_matrix,
    write_vector,
)
from clinical_ser.errors import (
    AudioDecodeError,
    AudioNotFoundError,
    AudioTooLongError,
    EmbeddingError,
    InvalidValueError,
    TableError,
)
from tests.embeddings.made import Local, spec, speech

RATE = 16_000


@pytest.fixture(scope="module")
def spoken():
    return speech(23.0).samples


@pytest.fixture
def parts_of_5_s(monkeypatch):
    for module in (storing, windows):
        monkeypatch.setattr(module, "PART_S", 5.0)


@pytest.fixture
def wav(tmp_path, spoken):
    """Write so many seconds of speech to a file whose name must be in nothing."""

    def written(seconds, name="jane-doe.wav", silent=()):
        samples = spoken[: round(seconds * RATE)].copy()
        for start, end in silent:
            samples[round(start * RATE) : round(end * RATE)] = 0
        soundfile.write(tmp_path / name, samples, RATE, **({} if name.endswith(".mp3") else {"subtype": "FLOAT"}))
        return tmp_path / name

    return written


def stored(folder, *, rows=3, dim=2, table=False, **of):
    """A written matrix of random vectors, and its path."""
    encoder = Local(frame_dim=dim)
    rng = np.random.default_rng(0)
    encoded = [Encoded(rng.normal(size=dim), storing.StoredRow(row=i + 1, recording=f"{i:064x}", duration_s=3.0, speech_s=2.0)) for i in range(rows)]
    path = folder / ("e.parquet" if table else "e.npy")
    columns = pd.DataFrame({"subject": [f"s{i % 2}" for i in range(rows)], "label": ["a", None, "b"][:rows] + ["a"] * max(0, rows - 3)})
    about = write_matrix(encoded, encoder, path, side_car_of(path), columns=columns if table else None, **of)
    return path, np.stack([one.vector for one in encoded]), about


def forge(path, change=lambda about: None, *, content=None):
    """Change the side-car, after making it fit the file, as someone would who wants to be believed."""
    if content is not None:
        path.write_bytes(content)
    about = json.loads(side_car_of(path).read_text())
    about["data"] |= {"bytes": path.stat().st_size, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
    change(about)
    side_car_of(path).write_text(json.dumps(about))


# --- What is written is read --------------------------------------------------------------------------------------------------------------


def test_a_vector_is_read_as_it_was_written_and_by_numpy_too(tmp_path, wav):
    encoder, path = Local(), wav(4.0)
    out = tmp_path / "e.npy"
    about = write_vector(encode_file(encoder, path), encoder, out, side_car_of(out))
    recording = audio.load(path)
    expected = encoder.encode([recording])[0]
    plain = np.load(out, allow_pickle=False)
    assert (plain.shape, plain.dtype) == ((2,), np.float64)
    np.testing.assert_array_equal(plain, expected.utterance)
    found = read_embeddings(out)
    np.testing.assert_array_equal(found.vectors, expected.utterance[None])
    assert found.about == about
    (row,) = about.rows
    assert (row.recording, row.file_sha256, row.parts, row.duration_s) == (recording.sha256, None, 1, 4.0)
    assert row.speech_s == pytest.approx(expected.speech_s)
    assert about.identifies_speakers is True
    assert "identifies a person" in about.handling
    assert about.fingerprint == encoder.fingerprint


@pytest.mark.parametrize("table", [False, True])
def test_a_matrix_is_read_as_it_was_written_with_its_problems(tmp_path, table):
    path, vectors, _ = stored(tmp_path, table=table, problems=((4, "no speech"),))
    found = read_embeddings(path, fingerprint=Local().fingerprint)
    np.testing.assert_array_equal(found.vectors, vectors)
    assert found.about.problems == ((4, "no speech"),)
    assert found.columns["row"].tolist() == [1, 2, 3]
    assert found.columns["recording"].tolist() == [f"{i:064x}" for i in range(3)]
    if table:
        names = pq.read_table(path).column_names
        assert names == ["row", "recording", "subject", "label", "embedding.tiny.0", "embedding.tiny.1"]
        assert found.columns["subject"].tolist() == ["s0", "s1", "s0"]
    else:
        np.testing.assert_array_equal(np.load(path, allow_pickle=False), vectors)


@pytest.mark.parametrize("table", [False, True])
def test_the_same_embeddings_make_the_same_bytes(tmp_path, table):
    (tmp_path / "again").mkdir()
    first, again = (stored(folder, table=table)[0] for folder in (tmp_path, tmp_path / "again"))
    assert first.read_bytes() == again.read_bytes()
    assert side_car_of(first).read_bytes() == side_car_of(again).read_bytes()


def test_a_side_car_names_no_file_and_no_one(tmp_path, wav):
    out = tmp_path / "e.npy"
    write_frames(Local(), wav(4.0), out, side_car_of(out))
    said = side_car_of(out).read_text()
    assert "jane" not in said
    assert str(tmp_path) not in said
    assert "subject" not in said


@given(st.lists(st.integers(0, 2**40), min_size=1, max_size=2).map(tuple), st.sampled_from(["<f8", "<f4"]))
def test_headers_are_those_of_numpy_and_of_one_length(shape, dtype):
    header = npy_header(dtype, shape)
    assert len(header) == 128
    file = io.BytesIO(header)
    assert np.lib.format.read_magic(file) == (1, 0)
    assert np.lib.format.read_array_header_1_0(file) == (shape, False, np.dtype(dtype))
    assert not file.read()


def test_columns_that_parquet_cannot_hold_or_that_are_ours_are_refused_before_the_work(tmp_path):
    for columns in ({"recording": ["x"]}, {"embedding.tiny.1": [1.0]}):
        with pytest.raises(TableError, match="1 columns with names"):
            storing.checked_columns(pd.DataFrame(columns), spec())
    with pytest.raises(TableError, match="several types"):
        storing.checked_columns(pd.DataFrame({"x": ["jane", 1]}, dtype=object), spec())


# --- Files of any length ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["a.wav", "a.flac", "a.mp3"])
def test_a_file_read_in_parts_becomes_what_it_becomes_in_memory(parts_of_5_s, tmp_path, spoken, name):
    path = tmp_path / name
    soundfile.write(path, spoken[: 17 * RATE], RATE)
    recording = audio.load(path)
    found = encode_file(Local(), path)
    # The mean of each part is removed, not that of all: here there is next to none.
    np.testing.assert_allclose(found.vector, Local().encode([recording])[0].utterance, atol=1e-6)
    assert found.row.parts == 4
    assert found.row.duration_s == recording.duration_s
    assert found.row.recording is None, "a digest over parts would be another recording's"
    assert found.row.file_sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.mark.parametrize(("seconds", "parts"), [(4.999, 1), (5.0, 1), (5.0 + 1 / RATE, 2), (5.02, 2), (10.0, 2), (15.0, 3)])
def test_ends_at_and_beside_the_edge_of_a_part_are_found(parts_of_5_s, wav, seconds, parts):
    path = wav(seconds)
    row = encode_file(Local(), path).row
    assert row.parts == parts
    assert row.duration_s == round(seconds * RATE) / RATE
    assert (row.recording == audio.load(path).sha256) is (parts == 1)


def test_an_offset_that_all_parts_share_changes_nothing(parts_of_5_s, tmp_path, wav, spoken):
    soundfile.write(tmp_path / "off.wav", spoken[: 12 * RATE] + np.float32(0.05), RATE, subtype="FLOAT")
    np.testing.assert_allclose(encode_file(Local(), tmp_path / "off.wav").vector, encode_file(Local(), wav(12.0)).vector, atol=1e-6)


def test_a_segment_is_encoded_as_the_segment_that_is_loaded(parts_of_5_s, wav):
    path = wav(20.0)
    short = encode_file(Local(), path, row=7, start=3.0, end=6.5)
    recording = audio.load(path, start=3.0, end=6.5)
    np.testing.assert_array_equal(short.vector, Local().encode([recording])[0].utterance)
    assert (short.row.row, short.row.recording, short.row.start_s) == (7, recording.sha256, 3.0)
    long = encode_file(Local(), path, start=3.0, end=16.25).row
    assert (long.parts, long.duration_s) == (3, 13.25)
    assert encode_file(Local(), path, start=3.0).row.duration_s == 17.0
    for wrong in ({"start": 4.0, "end": 3.0}, {"start": 30.0}, {"start": -1.0}, {"end": float("nan")}):
        with pytest.raises(InvalidValueError):
            encode_file(Local(), path, **wrong)


def test_a_header_that_lies_about_the_length_is_not_believed(parts_of_5_s, tmp_path, wav):
    content = wav(12.0).read_bytes()
    (tmp_path / "cut.wav").write_bytes(content[: len(content) * 2 // 3])
    row = encode_file(Local(), tmp_path / "cut.wav").row
    assert row.duration_s == pytest.approx(8.0, abs=0.1)
    endless = bytearray(content)
    place = endless.index(b"data") + 4
    endless[place : place + 4] = b"\xff\xff\xff\xff"
    (tmp_path / "endless.wav").write_bytes(endless)
    assert encode_file(Local(), tmp_path / "endless.wav").row.duration_s == pytest.approx(12.0, abs=0.01)


def test_what_goes_on_beyond_the_latest_position_is_too_long(parts_of_5_s, monkeypatch, wav):
    monkeypatch.setattr(storing, "MAX_POSITION_S", 10.0)
    with pytest.raises(AudioTooLongError, match="give a part of it"):
        encode_file(Local(), wav(12.0))


def test_a_file_that_changes_while_it_is_read_is_refused(parts_of_5_s, wav):
    path = wav(12.0)

    class Meddler(Local):
        def run(self, samples, lengths):
            os.utime(path, ns=(1, 1))
            return super().run(samples, lengths)

    with pytest.raises(EmbeddingError, match="changed while it was read"):
        encode_file(Meddler(), path)


def test_what_is_no_recording_is_refused_with_the_reason_and_no_path(tmp_path, wav):
    (tmp_path / "empty.wav").touch()
    (tmp_path / "text.wav").write_text("jane doe")
    silent = wav(3.0, "silent.wav", silent=[(0, 3)])
    for path, kind, words in (
        (tmp_path / "missing.wav", AudioNotFoundError, "no such file"),
        (tmp_path, AudioNotFoundError, "directory"),
        (tmp_path / "empty.wav", AudioDecodeError, "empty"),
        (tmp_path / "text.wav", AudioDecodeError, "not audio"),
        (wav(0.9, "short.wav"), EmbeddingError, r"0\.90 s long; encoder 'tiny' needs 1 s"),
        (silent, EmbeddingError, "no speech was found"),
    ):
        for frames in (None, FrameFile(io.BytesIO(), spec())):
            with pytest.raises(kind, match=words) as refused:
                encode_file(Local(), path, frames=frames)
            assert str(tmp_path) not in str(refused.value)


def test_an_encoder_that_is_no_windowed_one_is_given_the_recording_whole(parts_of_5_s, wav):
    class Whole:
        spec = spec()
        fingerprint = "whole 1"

        def encode(self, recordings, *, speech=None, frames=False, cells=False):
            (recording,) = recordings
            rows = np.ones((3, 2), np.float32)
            return [Embedding(np.array([recording.duration_s, 1.0]), 2.5, np.arange(3) * 0.01, rows if frames else rows[:0])]

    found = encode_file(Whole(), wav(12.0))
    assert found.vector.tolist() == [12.0, 1.0]
    assert (found.row.parts, found.row.speech_s) == (1, 2.5)
    assert found.row.recording


# --- Frames -------------------------------------------------------------------------------------------------------------------------------


def test_frames_of_a_file_are_those_in_memory_with_their_times(tmp_path, wav):
    path, out = wav(23.0, silent=[(8, 21)]), tmp_path / "f.npy"
    about = write_frames(Local(window_s=3.0, context_s=0.5), path, out, side_car_of(out))
    expected = Local(window_s=3.0, context_s=0.5).encode([audio.load(path)], frames=True)[0]
    found = read_embeddings(out)
    np.testing.assert_array_equal(found.vectors, expected.frames)
    np.testing.assert_allclose(found.times_s(), expected.times_s, atol=1e-9)
    assert 1 < len(about.runs) < 10, "silence is not encoded, so that there are gaps, and few"
    assert np.load(out, allow_pickle=False).dtype == np.float32
    assert about.rows[0].speech_s == pytest.approx(expected.speech_s)


def test_frames_of_parts_follow_each_other(parts_of_5_s, tmp_path, wav):
    out = tmp_path / "f.npy"
    about = write_frames(Local(), wav(17.0, silent=[(5, 10)]), out, side_car_of(out))
    times = read_embeddings(out).times_s()
    assert (np.diff(times) > 0).all()
    assert not ((times > 5.1) & (times < 9.9)).any()
    assert about.rows[0].parts == 4


def test_an_encoder_with_one_vector_a_window_gives_a_time_for_each(tmp_path, wav):
    class Coarse(Local):
        def run(self, samples, lengths):
            return [frames[:1] for frames in super().run(samples, lengths)]

    out = tmp_path / "f.npy"
    path = wav(20.0)
    write_frames(Coarse(frame_step_s=None, window_s=5.0), path, out, side_car_of(out))
    expected = Coarse(frame_step_s=None, window_s=5.0).encode([audio.load(path)], frames=True)[0]
    np.testing.assert_allclose(read_embeddings(out).times_s(), expected.times_s, atol=1e-9)


def test_memory_does_not_grow_with_the_file(parts_of_5_s, tmp_path, spoken):
    def peak(seconds):
        path = tmp_path / "long.wav"
        soundfile.write(path, np.tile(spoken, -(-seconds // 23))[: seconds * RATE], RATE)
        tracemalloc.start()
        write_frames(Local(), path, tmp_path / "f.npy", tmp_path / "f.json")
        used = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return used

    assert peak(150) < 1.2 * peak(30)


# --- Nothing that a file claims is believed -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("table", [False, True])
@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda content: content[:-1], "cut short"),
        (lambda content: content[: len(content) // 2], "cut short"),
        (lambda content: b"", "cut short"),
        (lambda content: content + b"\0", "cut short"),
        (lambda content: content[:-1] + bytes([content[-1] ^ 1]), "sha256 differs"),
        (lambda content: bytes(len(content)), "sha256 differs"),
    ],
)
def test_a_file_that_was_changed_is_refused(tmp_path, table, change, words):
    path, _, _ = stored(tmp_path, table=table)
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(TableError, match=words) as refused:
        read_embeddings(path)
    assert str(tmp_path) not in str(refused.value)


def test_a_side_car_of_another_file_or_encoder_is_refused(tmp_path):
    path, _, _ = stored(tmp_path)
    with pytest.raises(TableError, match="another encoder's"):
        read_embeddings(path, fingerprint="another")
    (tmp_path / "other").mkdir()
    other, vectors, _ = stored(tmp_path / "other")
    other.write_bytes(npy_header("<f8", vectors.shape) + (vectors + 1).tobytes())
    forge(other)
    side_car_of(path).write_bytes(side_car_of(other).read_bytes())
    with pytest.raises(TableError, match="sha256 differs"):
        read_embeddings(path)


@pytest.mark.parametrize(
    "content",
    [
        npy_header("<f8", (10**12, 2)) + bytes(48),
        npy_header("<f8", (3, 2)) + bytes(40),
        npy_header("<f8", (2, 3)) + bytes(48),
        npy_header("<f4", (3, 2)) + bytes(24),
        npy_header("|O", (3, 2)) + bytes(48),
        npy_header("<f8", (3, 2)).replace(b"False", b"True ") + bytes(48),
        b"\x93NUMPY\x01\x00\xff\xff" + b"(" * 65_535,
        b"\x80\x04\x95jane",
        b"PAR1" + bytes(100) + b"PAR1",
    ],
)
def test_a_npy_whose_side_car_was_made_to_fit_is_still_what_the_side_car_says_or_refused(tmp_path, content):
    path, _, _ = stored(tmp_path)
    forge(path, content=content)
    with pytest.raises(TableError, match="not the shape or type"):
        read_embeddings(path)


def test_a_matrix_of_10_to_the_12_rows_is_no_matrix_even_when_both_files_say_so(tmp_path):
    path, _, _ = stored(tmp_path)
    content = npy_header("<f8", (10**12, 2)) + bytes(48)
    forge(path, lambda about: about["data"].update(shape=[10**12, 2]), content=content)
    with pytest.raises(TableError, match="side-car of the embeddings is damaged"):
        read_embeddings(path)
    out = tmp_path / "f.npy"
    with out.open("wb") as file:
        frames = FrameFile(file, spec())
        frames.add(np.arange(4) * 0.01, np.ones((4, 2), np.float32))
        frames.finish()
    side_car_of(out).write_text(side_car_of(path).read_text())

    def claim(about):
        about.update(content="frames", rows=about["rows"][:1], runs=[{"frame": 0, "time_s": 0.0}])
        about["data"].update(shape=[2**39, 2], dtype="<f4")

    forge(out, claim, content=npy_header("<f4", (2**39, 2)) + bytes(32))
    with pytest.raises(TableError, match="not the shape or type"):
        read_embeddings(out)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_numbers_that_are_not_finite_are_refused(tmp_path, value):
    path, vectors, _ = stored(tmp_path)
    vectors[1, 1] = value
    forge(path, content=npy_header("<f8", vectors.shape) + vectors.tobytes())
    with pytest.raises(TableError, match="not finite"):
        read_embeddings(path)


@pytest.mark.parametrize(
    "change",
    [
        lambda about: about.update(schema="clinical-ser/embeddings/9"),
        lambda about: about.update(identifies_speakers=False),
        lambda about: about.update(path="jane.wav"),
        lambda about: about.update(dim=3),
        lambda about: about.update(encoder="../up"),
        lambda about: about.update(rows=about["rows"][:2]),
        lambda about: about.update(rows=[]),
        lambda about: about["rows"][0].update(recording=None),
        lambda about: about["rows"][0].update(file_sha256="0" * 64),
        lambda about: about["rows"][0].update(speech_s=-1),
        lambda about: about["rows"][0].update(speech_s=float("nan")),
        lambda about: about.update(content="frames"),
        lambda about: about.update(runs=[{"frame": 0, "time_s": 0.0}]),
        lambda about: about["data"].update(form="pickle"),
        lambda about: about["data"].update(dtype="|O"),
        lambda about: about["data"].update(shape=[3, 2, 1]),
        lambda about: about["data"].update(shape=[-3, 2]),
        lambda about: about["data"].pop("sha256"),
    ],
)
def test_a_side_car_that_does_not_follow_its_schema_is_refused_without_being_quoted(tmp_path, change):
    path, _, _ = stored(tmp_path)
    forge(path, change)
    with pytest.raises(TableError, match="damaged, or of another version") as refused:
        read_embeddings(path)
    assert "jane" not in str(refused.value)


@pytest.mark.parametrize("content", [b"", b"{", b"[" * 100_000, b"null", b"\xff\xfe", b'{"schema": "clinical-ser/embeddings/1"}', b"1" * 5000])
def test_a_side_car_that_is_no_json_object_of_ours_is_refused(tmp_path, content):
    path, _, _ = stored(tmp_path)
    side_car_of(path).write_bytes(content)
    with pytest.raises(TableError, match="damaged, or of another version"):
        read_side_car(path)


def test_what_cannot_be_opened_or_is_no_plain_file_is_refused_and_not_waited_for(tmp_path, monkeypatch):
    path, _, _ = stored(tmp_path)
    monkeypatch.setattr(storing, "MAX_SIDE_CAR_BYTES", 10)
    with pytest.raises(TableError, match="larger than any"):
        read_embeddings(path)
    monkeypatch.undo()
    side_car_of(path).rename(tmp_path / "kept")
    with pytest.raises(TableError, match=r"side-car \(\.json\) of the embeddings cannot be read \(No such file"):
        read_embeddings(path)
    os.mkfifo(side_car_of(path))
    with pytest.raises(TableError, match="no plain file"):
        read_embeddings(path)
    side_car_of(path).unlink()
    (tmp_path / "kept").rename(side_car_of(path))
    path.unlink()
    with pytest.raises(TableError, match="file of embeddings cannot be read"):
        read_embeddings(path)
    path.mkdir()
    with pytest.raises(TableError, match="Is a directory"):
        read_embeddings(path)
    with pytest.raises(TableError, match="no path can have this form"):
        read_embeddings(tmp_path / "a\0b")


@pytest.mark.parametrize(
    "change",
    [
        lambda table: table.slice(1),
        lambda table: table.set_column(4, "embedding.tiny.0", pa.array(["x"] * 3)),
        lambda table: table.set_column(4, "embedding.tiny.0", pa.array([1, 2, 3])),
        lambda table: table.set_column(4, "embedding.tiny.0", pa.array([1.0, None, 2.0])),
        lambda table: table.drop_columns(["embedding.tiny.1"]),
        lambda table: table.drop_columns(["recording"]),
        lambda table: table.append_column("subject", pa.array(["x"] * 3)),
        lambda table: table.append_column("embedding.tiny.1", pa.array([1.0] * 3)),
        lambda table: table.set_column(0, "row", pa.array([1, 3, 2])),
        lambda table: table.set_column(0, "row", pa.array(["1", "2", "3"])),
        lambda table: table.set_column(1, "recording", pa.array(["f" * 64] * 3)),
        lambda table: table.replace_schema_metadata(None),
        lambda table: table.replace_schema_metadata({b"clinical-ser": b"[" * 100_000}),
        lambda table: table.replace_schema_metadata({b"clinical-ser": b"[]"}),
    ],
)
def test_a_parquet_whose_side_car_was_made_to_fit_is_still_what_the_side_car_says_or_refused(tmp_path, change):
    path, _, _ = stored(tmp_path, table=True)
    pq.write_table(change(pq.read_table(path)), path)
    forge(path)
    with pytest.raises(TableError, match="does not hold the embeddings"):
        read_embeddings(path)


def test_a_parquet_that_unpacks_to_more_than_there_may_be_is_not_unpacked(tmp_path, monkeypatch):
    path, _, _ = stored(tmp_path, table=True)
    monkeypatch.setattr(storing, "MAX_VALUES", 5)
    with pytest.raises(TableError, match="more than 5 numbers"):
        read_embeddings(path)
    monkeypatch.undo()
    rows = 200_000
    bomb = pa.table({"row": pa.array(np.ones(rows, np.int64)), "embedding.tiny.0": np.zeros(rows), "embedding.tiny.1": np.zeros(rows)})
    pq.write_table(bomb, path)
    forge(path)
    monkeypatch.setattr(pq.ParquetFile, "read", lambda *_, **__: pytest.fail("it was unpacked"))
    with pytest.raises(TableError, match="does not hold the embeddings"):
        read_embeddings(path)
