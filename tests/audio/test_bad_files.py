"""What is not a readable recording ends in a typed error that names no file; what is damaged gives what is left and says so."""

import os
import struct
import traceback
from pathlib import Path

import av
import numpy as np
import pytest

from clinical_ser.audio import load
from clinical_ser.errors import AudioDecodeError, AudioError, AudioNotFoundError
from tests import signals
from tests.audio.files import ffmpeg_bytes, silent_video_bytes, sndfile_bytes, wav_bytes, wav_header

SPEECH = signals.sentence(phrases=2).samples
SECRET = "patient-4711"


def written(tmp_path: Path, data: bytes, suffix: str = ".wav") -> Path:
    path = tmp_path / f"{SECRET}{suffix}"
    path.write_bytes(data)
    return path


def test_a_missing_file(tmp_path):
    with pytest.raises(AudioNotFoundError, match="no such file"):
        load(tmp_path / "missing.wav")


def test_a_directory(tmp_path):
    with pytest.raises(AudioNotFoundError, match="directory"):
        load(tmp_path)


def test_a_device():
    with pytest.raises(AudioNotFoundError, match="device"):
        load("/dev/zero")


@pytest.mark.parametrize("name", ["a\0b.wav", "x" * 5_000])
def test_a_name_that_no_file_can_have(name):
    with pytest.raises(AudioNotFoundError):
        load(name)


def test_an_unreadable_file(tmp_path):
    path = written(tmp_path, wav_bytes(SPEECH))
    path.chmod(0)
    privileged = os.geteuid() == 0
    if privileged:
        os.seteuid(65_534)
    try:
        with pytest.raises(AudioNotFoundError, match="permission"):
            load(path)
    finally:
        if privileged:
            os.seteuid(0)


def test_an_empty_file(tmp_path):
    with pytest.raises(AudioDecodeError, match="0 bytes"):
        load(written(tmp_path, b""))


@pytest.mark.parametrize(
    "data",
    [
        b"RIFF",
        b"Dear doctor, " * 1_000,
        np.random.default_rng(1).bytes(200_000),
        b"\x89PNG\r\n\x1a\n" + bytes(5_000),
        b"ID3\x04\x00\x00\x00\x00\x00\x00" + bytes(2_000),
        b"OggS" + bytes(500),
        b"fLaC" + bytes(500),
        wav_bytes(SPEECH)[:30],
        wav_header(0, 16_000),
        wav_bytes(np.zeros(0)),
        ffmpeg_bytes(SPEECH, 16_000, "ipod", "aac")[:5_000],
    ],
    ids=["RIFF", "text", "random", "png", "id3", "ogg", "flac", "half-header", "no-samples", "empty-wav", "m4a-without-index"],
)
def test_what_is_not_audio(tmp_path, data, capfd):
    with pytest.raises(AudioDecodeError) as caught:
        load(written(tmp_path, data))
    assert SECRET not in "".join(traceback.format_exception(caught.value, chain=True)).replace(str(Path(__file__)), "")
    assert capfd.readouterr() == ("", "")


def test_a_video_without_sound(tmp_path):
    with pytest.raises(AudioDecodeError, match="no sound track"):
        load(written(tmp_path, silent_video_bytes(), ".mp4"))


PLAYLISTS = {
    "m3u8": "#EXTM3U\n#EXT-X-TARGETDURATION:5\n#EXTINF:5,\nother.ts\n#EXT-X-ENDLIST\n",
    "ffconcat": "ffconcat version 1.0\nfile 'other.wav'\n",
    "mpd": '<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011" type="static" mediaPresentationDuration="PT3S"><Period>'
    '<AdaptationSet mimeType="audio/mp4"><Representation id="a" bandwidth="1"><BaseURL>other.wav</BaseURL>'
    "</Representation></AdaptationSet></Period></MPD>",
    "sdp": "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=audio 5004 RTP/AVP 0\n",
}


@pytest.mark.parametrize("kind", PLAYLISTS)
@pytest.mark.parametrize("suffix", ["own", "wav", "m4a"])
def test_a_playlist_cannot_make_us_open_another_file(tmp_path, monkeypatch, kind, suffix):
    monkeypatch.chdir(tmp_path)
    Path("other.wav").write_bytes(wav_bytes(SPEECH))
    Path("other.ts").write_bytes(ffmpeg_bytes(SPEECH, 16_000, "mpegts", "aac"))
    path = Path(f"playlist.{kind if suffix == 'own' else suffix}")
    path.write_text(PLAYLISTS[kind])
    for source in (path, path.read_bytes()):
        with pytest.raises(AudioDecodeError):
            load(source)


@pytest.mark.parametrize("kind", ["m3u8", "ffconcat"])
def test_the_playlists_of_these_tests_do_work_where_nothing_guards(tmp_path, monkeypatch, kind):
    monkeypatch.chdir(tmp_path)
    Path("other.wav").write_bytes(wav_bytes(SPEECH))
    Path("other.ts").write_bytes(ffmpeg_bytes(SPEECH, 16_000, "mpegts", "aac"))
    Path(f"playlist.{kind}").write_text(PLAYLISTS[kind])
    with av.open(f"playlist.{kind}") as container:
        assert sum(frame.samples for frame in container.decode(audio=0)) > 40_000


@pytest.mark.parametrize(
    "data",
    [
        wav_bytes(SPEECH),
        sndfile_bytes(SPEECH, 16_000, "AIFF", "PCM_16"),
        sndfile_bytes(SPEECH, 16_000, "AU", "PCM_16"),
        sndfile_bytes(SPEECH, 16_000, "FLAC", "PCM_16"),
        ffmpeg_bytes(SPEECH, 16_000, "wav", "adpcm_ms"),
    ],
    ids=["wav", "aiff", "au", "flac", "adpcm"],
)
def test_a_truncated_file_gives_its_beginning_and_says_so(data):
    whole, half = load(data), load(data[: len(data) // 2])
    assert whole.source.complete
    assert not half.source.complete
    shared = len(half.samples)
    assert 0.3 * len(whole.samples) < shared < 0.7 * len(whole.samples)
    np.testing.assert_allclose(half.samples, whole.samples[:shared], atol=1e-3)


@pytest.mark.parametrize(("container", "codec"), [("mp3", "libmp3lame"), ("webm", "libopus"), ("ogg", "libopus"), ("adts", "aac")])
def test_a_truncated_stream_gives_its_beginning(container, codec, capfd):
    data = ffmpeg_bytes(signals.white_noise(10, rate_hz=48_000), 48_000, container, codec)
    half = load(data[: len(data) // 2])
    assert 0.2 < half.duration_s / load(data).duration_s < 0.8
    assert capfd.readouterr() == ("", "")


def test_damage_in_the_middle_costs_only_what_it_hit(capfd):
    flac = bytearray(sndfile_bytes(signals.white_noise(6.0), 16_000, "FLAC", "PCM_16"))
    whole = load(bytes(flac)).samples
    flac[90_000:90_100] = bytes(100)
    damaged = load(bytes(flac))
    assert not damaged.source.complete
    assert 5.5 < damaged.duration_s < 6
    for part in (slice(0, 16_000), slice(-16_000, None)):
        np.testing.assert_allclose(damaged.samples[part], whole[part], atol=1e-3)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(("container", "codec"), [("ipod", "aac"), ("webm", "libopus"), ("ogg", "libopus")])
def test_damage_in_a_compressed_file_is_noticed(container, codec):
    data = bytearray(ffmpeg_bytes(signals.white_noise(6.0, rate_hz=48_000), 48_000, container, codec))
    assert load(bytes(data)).source.complete
    data[len(data) // 2 : len(data) // 2 + 2_000] = bytes(range(250)) * 8
    recording = load(bytes(data))
    assert not recording.source.complete
    assert recording.duration_s > (5.5 if codec == "aac" else 3.5)  # a bad AAC packet costs itself; Opus loses the block that holds it


def test_a_size_that_a_pipe_could_not_know_is_no_damage():
    data = bytearray(wav_bytes(SPEECH))
    data[40:44] = struct.pack("<I", 0xFFFFFFFF)
    recording = load(bytes(data))
    assert recording.source.complete
    assert len(recording.samples) == len(SPEECH)


@pytest.mark.parametrize(("rate_hz", "channels"), [(100, 1), (2_000_000, 1), (16_000, 65), (16_000, 500)])
def test_a_header_that_cannot_be_true(rate_hz, channels):
    with pytest.raises(AudioDecodeError, match="The file says"):
        load(wav_header(1_000, rate_hz, channels=channels) + bytes(1_000 * channels))


@pytest.mark.parametrize("frames", [1, 2, 10, 100])
@pytest.mark.parametrize("rate_hz", [8_000, 16_000, 96_000])
def test_a_few_samples_are_a_recording_or_an_error(frames, rate_hz):
    try:
        recording = load(wav_header(frames, rate_hz) + bytes(range(frames)))
    except AudioDecodeError:
        assert frames / rate_hz < 1 / 16_000
    else:
        assert len(recording.samples) == round(frames * 16_000 / rate_hz)


def test_no_message_names_the_file(tmp_path):
    cases = [tmp_path / SECRET, written(tmp_path, b"no audio"), written(tmp_path, b"", ".mp3"), written(tmp_path, wav_bytes(SPEECH)[:30], ".flac")]
    for path in cases:
        with pytest.raises(AudioError) as caught:
            load(path)
        assert SECRET not in str(caught.value)
        assert caught.value.__suppress_context__ or caught.value.__context__ is None
