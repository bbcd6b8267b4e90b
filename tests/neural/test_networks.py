"""The log-mel network: what comes out, and that a clip's answer is its own."""

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from clinical_ser.errors import InvalidValueError  # noqa: E402
from clinical_ser.neural.networks import LogMelCnn, NetworkShape, pooled, warped_mel_filters  # noqa: E402

RATE_HZ = 16_000
SMALL = NetworkShape(bands=16, window=256, hop=128, channels=(4, 6), width=8)
KINDS = {"convolution": SMALL, "recurrent": NetworkShape(bands=16, window=256, hop=128, channels=(4, 6), width=8, recurrent=True)}


def network_of(shape: NetworkShape, seed: int = 0) -> LogMelCnn:
    """A network whose normalisations are those of no batch in particular."""
    torch.manual_seed(seed)
    network = LogMelCnn(("a", "b", "c"), shape).train(mode=False)
    for name, values in network.named_buffers():
        if name.endswith("running_mean"):
            values.normal_()
        if name.endswith("running_var"):
            values.uniform_(0.5, 2.0)
    return network


def noise(*shape: int, seed: int = 1) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).normal(0, 0.1, shape).astype(np.float32))


@pytest.mark.parametrize("kind", KINDS)
def test_frames_come_every_hop_times_the_pools_and_logits_by_class(kind):
    network = network_of(KINDS[kind])
    frames = network.frames(noise(3, RATE_HZ))
    assert frames.shape == (3, ((RATE_HZ - 256) // 128 + 1) // 4, 8)
    assert network(noise(3, RATE_HZ)).shape == (3, 3)


@pytest.mark.parametrize("kind", KINDS)
def test_a_clip_gets_the_same_answer_alone_and_in_any_padded_batch(kind):
    network = network_of(KINDS[kind])
    clips = [noise(1, samples, seed=samples) for samples in (network.shape.minimum_samples, 5_000, 5_063, 9_999, RATE_HZ)]
    alone = torch.cat([network(clip) for clip in clips])
    lengths = torch.tensor([clip.shape[1] for clip in clips])
    for padding in (0.0, 0.3):
        batch = torch.full((len(clips), RATE_HZ), padding)
        for row, clip in zip(batch, clips, strict=True):
            row[: clip.shape[1]] = clip[0]
        assert (network(batch, lengths) - alone).abs().max() < 1e-5
    assert (alone[1] - alone[3]).abs().max() > 1e-3  # answers do differ


def test_answers_do_not_depend_on_the_rest_of_the_batch():
    network, clips = network_of(SMALL), noise(4, RATE_HZ)
    assert torch.allclose(network(clips)[:1], network(clips[:1]), atol=1e-6)


def test_the_fast_transform_is_the_convolution_that_is_exported():
    network, samples = network_of(SMALL), noise(2, 4_000)
    parts = torch.nn.functional.conv1d(samples[:, None], network.fourier, stride=SMALL.hop).square()
    power = (parts[:, :129] + parts[:, 129:]).transpose(1, 2)
    assert torch.allclose(network.power(samples)[0], power, atol=1e-5)


def test_white_noise_has_its_variance_in_every_bin():
    power = network_of(SMALL).power(noise(1, 10 * RATE_HZ))[0][0].mean(dim=0)
    assert power[1:-1].mean() == pytest.approx(0.01, rel=0.02)


@pytest.mark.parametrize("shape", [SMALL, NetworkShape(), NetworkShape(bands=128, window=256, hop=128)], ids=["small", "default", "narrow"])
def test_no_band_is_deaf_and_each_weighs_to_one(shape):
    filters = warped_mel_filters(shape, np.array([1.0]))[0]
    assert filters.shape == (shape.window // 2 + 1, shape.bands)
    np.testing.assert_allclose(filters.sum(axis=0), 1.0, rtol=1e-5)


@pytest.mark.parametrize("scale", [0.8, 1.0, 1.25])
def test_a_scaled_filter_hears_a_tone_where_it_would_be_if_played_faster(scale):
    shape = NetworkShape()
    at = np.zeros(shape.window // 2 + 1)
    at[64] = 1.0  # 2 kHz
    edges = np.linspace(*(np.log10(1 + hz / 700) for hz in (shape.low_hz, shape.high_hz)), shape.bands + 2)
    heard = int((at @ warped_mel_filters(shape, np.array([scale]))[0]).argmax())
    assert heard == np.abs(edges[1:-1] - np.log10(1 + scale * 2000 / 700)).argmin()


def test_pooling_counts_a_clips_own_frames_only():
    frames = torch.zeros(2, 5, 3)
    frames[0, :2] = torch.tensor([[1.0, 2.0, 3.0], [3.0, 2.0, 1.0]])
    frames[1] = torch.arange(15.0).reshape(5, 3)
    found = pooled(frames, torch.tensor([2, 5]))
    assert torch.allclose(found[0, :3], torch.tensor([2.0, 2.0, 2.0]))
    assert torch.allclose(found[0, 3:], torch.tensor([1.0, 0.0, 1.0]), atol=4e-3)
    assert torch.allclose(found[1:], pooled(frames[1:]))


def test_the_default_has_a_tenth_of_a_million_parameters():
    assert sum(values.numel() for values in LogMelCnn(("a", "b")).parameters()) == pytest.approx(1e5, rel=0.05)


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"bands": 20, "channels": (4, 4, 4)}, "bands"),
        ({"channels": ()}, "channels"),
        ({"hop": 0}, "hop"),
        ({"window": 100, "hop": 200}, "hop"),
        ({"high_hz": 9_000.0}, "high_hz"),
        ({"width": 7}, "width"),
        ({"time_pools": 9}, "time_pools"),
        ({"dropout": 1.0}, "dropout"),
    ],
)
def test_a_shape_that_cannot_be_is_refused_by_name(changed, named):
    with pytest.raises(InvalidValueError, match=named):
        NetworkShape(**changed)


@pytest.mark.parametrize("classes", [(), ("a",), ("a", "a")])
def test_classes_are_two_or_more_different_ones(classes):
    with pytest.raises(InvalidValueError, match="classes"):
        LogMelCnn(classes, SMALL)


def test_too_short_a_clip_is_refused():
    network = network_of(SMALL)
    with pytest.raises(InvalidValueError, match="640 samples"):
        network(noise(2, 639))
    with pytest.raises(InvalidValueError, match="640 samples"):
        network(noise(2, 2_000), torch.tensor([2_000, 639]))
    with pytest.raises(InvalidValueError, match="batch"):
        network(noise(2_000))
