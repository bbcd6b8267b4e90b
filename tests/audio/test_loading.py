"""Any file becomes the same thing: finite mono float32 at 16 kHz, and what conversion would hide is reported."""

import hashlib
import io
import math
import tracemalloc

import numpy as np
import pytest

from clinical_ser.audio import MAX_DURATION_S, SAMPLE_RATE_HZ, from_samples, load
from clinical_ser.audio.loading import PEAK
from clinical_ser.errors import AudioDecodeError, AudioTooLongError, InvalidValueError
from tests import signals
from tests.audio.files import ffmpeg_bytes, pcm16, sndfile_bytes, wav_bytes, wav_header

LOSSLESS = [("WAV", "PCM_16"), ("WAV", "PCM_24"), ("WAV", "FLOAT"), ("WAV", "PCM_U8"), ("FLAC", "PCM_16"), ("AIFF", "PCM_16"), ("W64", "PCM_32")]
LOSSY = [("mp3", "libmp3lame"), ("ipod", "aac"), ("webm", "libopus"), ("ogg", "libopus"), ("adts", "aac"), ("matroska", "ac3")]


def strongest_hz(samples):
    return np.fft.rfft(samples * np.hanning(len(samples))).__abs__().argmax() * SAMPLE_RATE_HZ / len(samples)


@pytest.mark.parametrize("rate_hz", [8_000, 16_000, 22_050, 44_100, 48_000, 96_000, 192_000])
@pytest.mark.parametrize("channels", [1, 2, 6])
def test_every_rate_and_channel_count_becomes_the_same_samples(rate_hz, channels):
    tone = signals.fade(signals.sine(440, 1.0, rate_hz=rate_hz), 0.1, rate_hz=rate_hz)
    recording = load(wav_bytes(np.tile(tone[:, None], channels), rate_hz, "PCM_24"))
    expected = signals.fade(signals.sine(440, 1.0), 0.1)
    assert recording.samples.dtype == np.float32
    assert recording.samples.shape == expected.shape
    np.testing.assert_allclose(recording.samples, expected, atol=6e-4)  # soxr's passband ripple is 0.01 dB
    assert (recording.source.sample_rate_hz, recording.source.channels) == (rate_hz, channels)


@pytest.mark.parametrize(("container", "subtype"), LOSSLESS)
def test_lossless_files_give_back_the_signal(container, subtype):
    tone = signals.sine(440, 0.5)
    step = 2.0**-7 if subtype == "PCM_U8" else 2.0**-15
    np.testing.assert_allclose(load(sndfile_bytes(tone, 16_000, container, subtype)).samples, tone, atol=1.01 * step)


@pytest.mark.parametrize(("container", "codec"), LOSSY)
def test_lossy_files_keep_pitch_level_and_length(container, codec):
    tone = signals.sine(440, 2.0, rate_hz=48_000)
    recording = load(ffmpeg_bytes(np.stack([tone, tone], axis=1), 48_000, container, codec, bit_rate_bps=128_000))
    assert recording.source.codec == {"libmp3lame": "mp3", "libopus": "opus"}.get(codec, codec)
    assert recording.duration_s == pytest.approx(2.0, abs=0.06)
    middle = recording.samples[8_000:24_000]
    assert strongest_hz(middle) == pytest.approx(440, abs=1)
    assert signals.level_dbfs(middle) == pytest.approx(signals.level_dbfs(tone), abs=0.5)  # LAME turns down by 0.45 dB


@pytest.mark.parametrize("name", ["speech.mp3", "speech.m4a", "speech", "speech.m3u8", "speech.raw"])
def test_the_content_decides_not_the_name(tmp_path, name):
    data = wav_bytes(signals.sine(440, 0.2))
    (tmp_path / name).write_bytes(data)
    assert load(tmp_path / name).sha256 == load(data).sha256


def test_a_mislabelled_m4a_is_read(tmp_path):
    (tmp_path / "speech.wav").write_bytes(ffmpeg_bytes(signals.sine(440, 1.0), 16_000, "ipod", "aac"))
    assert load(tmp_path / "speech.wav").source.codec == "aac"


def test_path_text_bytes_and_open_files_are_all_sources(tmp_path):
    data = wav_bytes(signals.sine(440, 0.2))
    path = tmp_path / "a.wav"
    path.write_bytes(data)
    expected = load(data).sha256
    with path.open("rb") as file:
        file.seek(100)
        digests = {load(source).sha256 for source in (path, str(path), io.BytesIO(data), file)}
        assert not file.closed
    assert digests == {expected}


def test_the_same_audio_in_any_lossless_container_has_one_digest():
    samples = pcm16(signals.sentence().samples[:40_000])
    exact = [pair for pair in LOSSLESS if pair[1] not in {"PCM_U8", "FLOAT"}]
    digests = {load(sndfile_bytes(samples, 16_000, container, subtype)).sha256 for container, subtype in exact}
    digests.add(load(wav_bytes(samples / 32_768, subtype="FLOAT")).sha256)
    assert digests == {load(wav_bytes(samples)).sha256, from_samples(samples, 16_000).sha256}
    assert len(digests) == 1


def test_the_digest_is_that_of_the_samples_as_16_bit_pcm():
    recording = from_samples(signals.sine(440, 0.1), 16_000)
    pcm = np.rint(recording.samples.astype(np.float64) * 32_768).astype("<i2")
    assert recording.sha256 == hashlib.sha256(pcm.tobytes()).hexdigest()


def test_samples_cannot_be_changed():
    with pytest.raises(ValueError, match="read-only"):
        from_samples(signals.sine(440, 0.1), 16_000).samples[0] = 1


@pytest.mark.parametrize("rate_hz", [8_000, 11_025, 16_000, 44_100, 48_000])
@pytest.mark.parametrize(("start", "end"), [(0.0, 0.5), (0.7003, 2.9), (2.1, None), (None, 1.3)])
def test_a_segment_equals_the_slice_of_the_whole_but_for_its_mean(rate_hz, start, end):
    data = wav_bytes(signals.sentence(phrases=2, rate_hz=rate_hz).samples, rate_hz)
    whole, segment = load(data), load(data, start=start, end=end)
    first = round((start or 0) * SAMPLE_RATE_HZ)
    sliced = whole.samples[first : None if end is None else round(end * SAMPLE_RATE_HZ)]
    assert len(segment.samples) == len(sliced)
    np.testing.assert_allclose(segment.samples, sliced - sliced.mean(dtype=np.float64), atol=1e-6)


@pytest.mark.parametrize(("container", "codec"), LOSSY)
def test_a_segment_of_a_lossy_file_equals_the_slice(container, codec):
    data = ffmpeg_bytes(signals.sentence(phrases=2, rate_hz=48_000).samples, 48_000, container, codec)
    sliced = load(data).samples[round(1.1 * SAMPLE_RATE_HZ) : 2 * SAMPLE_RATE_HZ]
    np.testing.assert_allclose(load(data, start=1.1, end=2.0).samples, sliced - sliced.mean(dtype=np.float64), atol=1e-6)


def test_measurements_of_a_segment_are_those_of_the_segment():
    quiet, loud = signals.sine(440, 1.0, amplitude=0.1), np.clip(signals.sine(440, 1.0, amplitude=2.0), -1, 1)
    data = wav_bytes(np.r_[quiet, loud])
    assert load(data, end=1.0).source.peak == pytest.approx(0.1, abs=1e-3)
    assert load(data, end=1.0).source.clipped_fraction == 0
    assert load(data, start=1.0).source.clipped_fraction > 0.5


@pytest.mark.parametrize(
    ("start", "end"), [(-1.0, None), (math.nan, None), (None, math.inf), (2.0, 1.0), (1.0, 1.0), (None, -0.5), (1e9, None), (None, 0.0)]
)
def test_an_absurd_segment_is_refused(start, end):
    with pytest.raises(InvalidValueError, match=r"seconds|after the start"):
        load(wav_bytes(signals.sine(440, 3.0)), start=start, end=end)


def test_a_segment_beyond_the_end_is_refused_by_name():
    for data in (wav_bytes(signals.sine(440, 1.0)), ffmpeg_bytes(signals.sine(440, 1.0), 16_000, "ipod", "aac")):
        with pytest.raises(InvalidValueError, match=r"Bad value 5\.0 for start.*before the end"):
            load(data, start=5.0, end=6.0)


def test_a_segment_that_the_file_cuts_short_is_marked():
    data = wav_bytes(signals.sine(440, 2.0))
    assert not load(data, start=1.0, end=3.0).source.complete
    assert load(data, start=1.0, end=2.05).source.complete


def test_channels_are_averaged():
    left, right = signals.sine(440, 0.5, amplitude=0.4), signals.sine(1_000, 0.5, amplitude=0.2)
    np.testing.assert_allclose(from_samples(np.stack([left, right], axis=1), 16_000).samples, (left + right) / 2, atol=1e-6)


def test_one_silent_channel_still_averages():
    tone = signals.sine(440, 0.5)
    np.testing.assert_allclose(from_samples(np.stack([tone, 0 * tone], axis=1), 16_000).samples, tone / 2, atol=1e-6)


def test_channels_in_antiphase_do_not_cancel():
    tone = signals.sine(440, 0.5)
    stereo = np.stack([0.9 * tone, -tone], axis=1)
    for recording in (from_samples(stereo, 16_000), load(wav_bytes(stereo, subtype="FLOAT"))):
        np.testing.assert_allclose(recording.samples, -tone, atol=1e-6)


def test_the_offset_is_removed_and_reported():
    recording = from_samples(signals.sine(440, 1.0, amplitude=0.2) + 0.3, 16_000)
    assert recording.source.dc_offset == pytest.approx(0.3, abs=1e-6)
    assert abs(recording.samples.mean(dtype=np.float64)) < 1e-7


def test_samples_that_are_no_numbers_become_zero_and_are_counted():
    samples = signals.sine(440, 1.0).astype(np.float32)
    samples[[10, 20, 30, 40]] = [np.nan, np.inf, -np.inf, np.nan]
    recording = load(wav_bytes(samples, subtype="FLOAT"))
    assert recording.source.nonfinite_fraction == pytest.approx(4 / 16_000)
    assert np.isfinite(recording.samples).all()
    assert abs(recording.samples[[10, 20, 30, 40]]).max() < 1e-3
    assert recording.source.peak == pytest.approx(0.5, abs=1e-3)


def test_full_scale_never_reaches_what_wraps_in_16_bit():
    recording = from_samples(signals.sine(440, 1.0, amplitude=1.7), 16_000)
    assert recording.samples.max() <= PEAK
    assert recording.samples.min() >= -PEAK
    assert recording.source.peak == pytest.approx(1.7, abs=0.01)


@pytest.mark.parametrize("amplitude", [1.2, 2.0, 5.0])
@pytest.mark.parametrize("gain", [1.0, 0.3])
@pytest.mark.parametrize("offset", [0.0, -0.02])
def test_clipping_is_measured_also_after_it_was_turned_down(amplitude, gain, offset):
    tone = signals.sine(440, 2.0, amplitude=amplitude, rate_hz=44_100)
    clipped = np.clip(tone, -1, 1)
    true = (np.abs(tone) >= 1).mean()
    file = wav_bytes(gain * clipped + (offset if gain < 1 else 0), 44_100)
    assert load(file).source.clipped_fraction == pytest.approx(true, rel=0.02)


def test_clipping_is_that_of_the_worst_channel():
    stereo = np.stack([signals.sine(440, 1.0), np.clip(signals.sine(440, 1.0, amplitude=2.0), -1, 1)], axis=1)
    assert load(wav_bytes(stereo)).source.clipped_fraction == pytest.approx(2 / 3, abs=0.02)


@pytest.mark.parametrize("amplitude", [0.001, 0.02, 0.1, 0.9])
@pytest.mark.parametrize("frequency_hz", [50, 440])
def test_a_quiet_or_slow_sine_is_not_clipped(amplitude, frequency_hz):
    assert load(wav_bytes(signals.sine(frequency_hz, 1.0, amplitude=amplitude, rate_hz=48_000), 48_000)).source.clipped_fraction == 0


def test_speech_is_not_clipped():
    assert load(wav_bytes(signals.sentence().samples)).source.clipped_fraction == 0


@pytest.mark.parametrize(("dtype", "scale"), [(np.int16, 32_768), (np.int32, 2**31), (np.int8, 128), (np.float64, 1), (np.float32, 1)])
def test_samples_in_memory_are_scaled_by_their_type(dtype, scale):
    tone = signals.sine(440, 0.2)
    recording = from_samples((tone * scale).astype(dtype), 16_000)
    np.testing.assert_allclose(recording.samples, tone, atol=1 / 64 if dtype is np.int8 else 1e-4)
    assert recording.source.codec == "array"


def test_unsigned_8_bit_samples_are_centred():
    assert abs(from_samples(np.full(16_000, 128, np.uint8), 16_000).samples).max() == 0


@pytest.mark.parametrize(
    ("samples", "rate_hz"),
    [
        (np.zeros((2, 2, 2)), 16_000),
        (np.zeros((2, 1_000)), 16_000),
        (np.zeros(10, complex), 16_000),
        (np.array(["a"]), 16_000),
        (np.zeros(10), 0),
        (np.zeros(10), 1_000_000),
        (np.zeros(10), 16_000.5),
        (np.zeros(10), math.nan),
    ],
)
def test_arrays_that_are_no_recording_are_refused(samples, rate_hz):
    with pytest.raises(InvalidValueError):
        from_samples(samples, rate_hz)


@pytest.mark.parametrize("samples", [[], np.zeros((0, 2)), np.zeros(1)])
def test_no_samples_is_an_error_and_one_is_a_recording(samples):
    if len(samples):
        assert len(from_samples(samples, 16_000).samples) == 1
    else:
        with pytest.raises(AudioDecodeError, match="no samples"):
            from_samples(samples, 16_000)


def test_ten_minutes_of_stereo_need_the_memory_of_the_result_and_a_block(tmp_path):
    path = tmp_path / "long.wav"
    frames = 600 * 48_000
    with path.open("wb") as file:
        file.write(wav_header(frames, 48_000, channels=2, bits=16))
        file.truncate(44 + frames * 4)
    tracemalloc.start()
    try:
        recording = load(path)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert recording.duration_s == 600
    assert peak < 1.3 * recording.samples.nbytes + 8e6  # the decoded file alone is 230 MB as float32


def test_a_three_hour_file_is_refused_and_its_segments_are_read(tmp_path):
    path = tmp_path / "three-hours.wav"
    frames = 3 * 3_600 * 8_000
    with path.open("wb") as file:
        file.write(wav_header(frames, 8_000))
        file.truncate(44 + frames)
    with pytest.raises(AudioTooLongError, match=rf"longer than {MAX_DURATION_S:g} s.*start and end"):
        load(path)
    assert load(path, start=2 * 3_600.0, end=2 * 3_600.0 + 5).duration_s == 5


class CountingFile(io.BytesIO):
    """Remembers how far it was read."""

    furthest = 0

    def read(self, size=-1):
        data = super().read(size)
        self.furthest = max(self.furthest, self.tell())
        return data


def test_a_decompression_bomb_is_stopped_while_it_unpacks():
    bomb = ffmpeg_bytes(signals.white_noise(120), 16_000, "mp3", "libmp3lame", bit_rate_bps=32_000)
    file = CountingFile(bomb)
    with pytest.raises(AudioTooLongError, match="longer than 10 s"):
        load(file, max_duration_s=10)
    assert file.furthest < len(bomb) / 3


def test_a_header_that_admits_to_be_too_long_is_refused_at_once():
    file = CountingFile(sndfile_bytes(pcm16(signals.white_noise(120)), 16_000, "FLAC", "PCM_16"))
    with pytest.raises(AudioTooLongError):
        load(file, max_duration_s=10)
    assert file.furthest < len(file.getvalue()) / 3


def test_a_long_segment_is_too_long_too():
    with pytest.raises(AudioTooLongError):
        load(wav_bytes(signals.sine(440, 3.0)), start=0.5, end=2.5, max_duration_s=1.0)
    assert load(wav_bytes(signals.sine(440, 3.0)), start=0.5, end=1.5, max_duration_s=1.0).duration_s == 1.0


@pytest.mark.parametrize("limit", [0.0, -1.0, math.nan])
def test_a_cap_that_is_none_is_refused(limit):
    with pytest.raises(InvalidValueError, match="max_duration_s"):
        load(wav_bytes(signals.sine(440, 0.1)), max_duration_s=limit)
