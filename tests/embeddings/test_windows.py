"""Cutting, batching and pooling: what a recording becomes does not depend on windows, on its company, or on how long it is."""

import tracemalloc
from itertools import pairwise

import numpy as np
import pytest

from clinical_ser import audio
from clinical_ser.audio import from_samples
from clinical_ser.embeddings import Padding, Pooling
from clinical_ser.embeddings.pooling import LEAST_VARIANCE, Pool
from clinical_ser.embeddings.windows import PART_S, encode_parts, windows_of
from clinical_ser.errors import EmbeddingError, EncoderError, InvalidValueError
from tests.embeddings.made import Local, spec, speech


def test_windows_keep_every_moment_exactly_once_and_are_never_longer_than_the_network_hears():
    for samples in (160_000, 160_001, 161_000, 250_000, 1_000_000, 9_600_000):
        windows = windows_of(spec(), samples)
        edges = [window.keep_from for window in windows] + [windows[-1].keep_to]
        assert edges[0] == -np.inf
        assert edges[-1] == np.inf
        assert all(one.keep_to == two.keep_from for one, two in pairwise(windows))
        assert all(window.start % 160 == 0 and window.stop - window.start <= 160_000 for window in windows)
        assert windows[-1].stop == samples
        assert all(window.keep_from - window.start == 16_000 for window in windows[1:])


def test_windows_of_a_recording_have_one_length_so_that_they_share_a_batch():
    windows = windows_of(spec(padding=Padding.EQUAL), 1_234_567)
    lengths = [window.stop - window.start for window in windows]
    assert len(set(lengths[:-1])) == 1
    assert lengths[-1] > 100_000


def test_a_long_recording_gives_the_frames_it_would_give_in_one_window():
    recording = speech(47.0)
    whole = Local(window_s=60.0).encode([recording], frames=True)[0]
    cut = Local().encode([recording], frames=True)[0]
    # A window in which nothing is said is not run; where there are frames they are the same, whatever window they come from.
    _, ours, theirs = np.intersect1d(np.round(cut.times_s, 4), np.round(whole.times_s, 4), return_indices=True)
    assert len(ours) == len(cut.times_s) > 4000
    np.testing.assert_allclose(cut.frames[ours], whole.frames[theirs], atol=1e-7)
    np.testing.assert_allclose(cut.utterance, whole.utterance, rtol=1e-6)
    assert cut.speech_s == pytest.approx(whole.speech_s)


def test_frames_outside_of_speech_count_nothing():
    recording = speech(8.0)
    found = Local().encode([recording], frames=True)[0]
    mask = audio.analyse(recording).speech
    inside = mask[np.minimum((found.times_s / 0.01).astype(int), len(mask) - 1)]
    np.testing.assert_allclose(found.utterance, found.frames[inside].mean(axis=0), rtol=1e-5)
    assert found.speech_s == pytest.approx(inside.sum() * 0.01)


@pytest.mark.parametrize("padding", list(Padding))
def test_alone_and_in_company_a_recording_becomes_the_same(padding):
    recordings = [speech(seconds, seed=i) for i, seconds in enumerate((1.5, 3.0, 12.0, 3.0, 7.7))]
    encoder = Local(padding=padding)
    together = encoder.encode(recordings)
    for recording, found in zip(recordings, together, strict=True):
        np.testing.assert_allclose(Local(padding=padding).encode([recording])[0].utterance, found.utterance, atol=1e-7)
    lengths = [set(batch) for batch in encoder.batches]
    assert (max(map(len, lengths)) == 1) is (padding is Padding.EQUAL)


def test_no_batch_is_longer_than_its_budget_with_padding_counted():
    encoder = Local()
    encoder.encode([speech(seconds) for seconds in (2.0, 9.9, 3.0, 9.0, 5.0, 2.5, 30.0)])
    assert len(encoder.batches) > 1
    assert all(max(batch) * len(batch) <= encoder.batch_s * 16_000 for batch in encoder.batches)


def test_memory_does_not_grow_with_the_recording():
    def peak(seconds: float) -> int:
        recording = speech(seconds)
        mask = np.ones(round(seconds * 100), bool)
        tracemalloc.start()
        Local().encode([recording], speech=[mask])
        used = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return used

    assert peak(400.0) < 1.3 * peak(100.0)


def test_a_recording_read_in_parts_becomes_what_it_becomes_in_memory():
    recording = speech(PART_S + 30.0)
    length = round(PART_S * 16_000)
    parts = [audio.Recording(recording.samples[i : i + length], "", recording.source) for i in range(0, len(recording.samples), length)]
    in_parts = encode_parts(Local(), iter(parts), duration_s=recording.duration_s)
    np.testing.assert_array_equal(in_parts.utterance, Local().encode([recording])[0].utterance)


def test_recordings_under_a_second_and_without_speech_are_refused_with_the_reason():
    with pytest.raises(EmbeddingError, match=r"0\.90 s long; encoder 'tiny' needs 1 s"):
        Local().encode([speech(0.9)])
    with pytest.raises(EmbeddingError, match="no speech was found"):
        Local().encode([from_samples(np.zeros(32_000), 16_000)])


def test_numbers_that_are_not_finite_and_shapes_that_do_not_fit_never_leave_an_encoder():
    class Broken(Local):
        def run(self, samples, lengths):
            return [frames * np.nan for frames in super().run(samples, lengths)]

    with pytest.raises(EncoderError, match="not finite"):
        Broken().encode([speech(2.0)])
    with pytest.raises(EncoderError, match=r"shape \(201, 2\), expected \(frames, 5\)"):
        Local(frame_dim=5).encode([speech(2.0)])


def test_as_many_masks_as_recordings_are_needed():
    with pytest.raises(InvalidValueError, match="one a recording"):
        Local().encode([speech(2.0)], speech=[])


def test_level_is_raised_to_what_the_network_knows_and_never_lowered():
    quiet = speech(3.0)
    quieter = from_samples(quiet.samples * 0.05, 16_000)
    mask = [audio.analyse(quiet).speech]
    loud, raised = (Local(raise_to_dbfs=-10.0).encode([one], speech=mask)[0].utterance for one in (quiet, quieter))
    np.testing.assert_allclose(loud, raised, rtol=1e-4, atol=1e-7)
    as_it_is = Local(raise_to_dbfs=-80.0).encode([quiet], speech=mask)[0].utterance
    np.testing.assert_array_equal(as_it_is, Local().encode([quiet], speech=mask)[0].utterance)


def test_standardised_samples_have_mean_0_and_variance_1():
    seen = []

    class Listening(Local):
        def run(self, samples, lengths):
            seen.append(samples[0])
            return super().run(samples, lengths)

    Listening(standardise=True).encode([speech(3.0)])
    assert seen[0].mean() == pytest.approx(0, abs=1e-4)
    assert seen[0].std() == pytest.approx(1, abs=1e-3)


def test_the_standard_deviation_is_that_of_the_frames_in_speech():
    recording = speech(25.0)
    found = Local(pooling=Pooling.MEAN_SD).encode([recording], frames=True)[0]
    mask = audio.analyse(recording).speech
    inside = found.frames[mask[np.minimum((found.times_s / 0.01).astype(int), len(mask) - 1)]].astype(np.float64)
    np.testing.assert_allclose(found.utterance, np.concatenate([inside.mean(axis=0), inside.std(axis=0)]), rtol=1e-4, atol=1e-7)


def test_pooling_keeps_its_digits_far_from_zero_and_a_constant_has_no_spread():
    pool = Pool(with_sd=True, cells=None)
    rng = np.random.default_rng(0)
    values = (1e4 + rng.normal(size=(5000, 1))).astype(np.float32)
    for part in np.split(values, 50):
        pool.add(part, np.full(100, 0.01), np.zeros(100))
    mean, sd = pool.result()
    assert mean == pytest.approx(values.astype(float).mean(), rel=1e-9)
    assert sd == pytest.approx(values.astype(float).std(), rel=1e-5)
    same = Pool(with_sd=True, cells=None)
    same.add(np.full((10, 1), 3.0, np.float32), np.ones(10), np.zeros(10))
    assert same.result()[1] ** 2 <= LEAST_VARIANCE


def test_pooled_again_from_cells_with_a_stretch_left_out_it_is_what_the_other_frames_give():
    recording = speech(12.0)
    encoder = Local(pooling=Pooling.MEAN_SD)
    found = encoder.encode([recording], frames=True, cells=True)[0]
    np.testing.assert_allclose(found.cells.pooled(), found.utterance, rtol=1e-4, atol=1e-6)
    keep = np.ones(len(found.cells.weight))
    keep[30:60] = 0
    mask = audio.analyse(recording).speech
    inside = mask[np.minimum((found.times_s / 0.01).astype(int), len(mask) - 1)] & ~((found.times_s >= 3.0 - 1e-9) & (found.times_s < 6.0 - 1e-9))
    rest = found.frames[inside].astype(np.float64)
    np.testing.assert_allclose(found.cells.pooled(keep), np.concatenate([rest.mean(axis=0), rest.std(axis=0)]), rtol=2e-3, atol=1e-5)
    assert found.cells.pooled(np.zeros(len(keep))) is None
