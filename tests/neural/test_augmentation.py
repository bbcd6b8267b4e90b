"""Augmentation keeps to its limits, draws from one seed only, and does what its names say."""

from dataclasses import replace

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from clinical_ser.errors import InvalidValueError  # noqa: E402
from clinical_ser.neural.augmentation import NONE, Augmentation, Augmenter  # noqa: E402
from clinical_ser.neural.networks import LogMelCnn, NetworkShape  # noqa: E402

SHAPE = NetworkShape(bands=32, window=512, hop=128, channels=(4, 4), width=8)
NETWORK = LogMelCnn(("a", "b"), SHAPE)
COUNT, FRAMES = 12, 60
LENGTHS = torch.tensor([60, 44, 31] * 4)
TARGETS = torch.eye(2)[[0, 1] * 6]


def spectra(level: float = 1.0) -> torch.Tensor:
    """Power that rises with time and with frequency, zero after each clip's end."""
    time, frequency = torch.arange(1.0, FRAMES + 1)[:, None], torch.arange(1.0, 258.0)
    power = (level * (time / FRAMES) * (frequency / 257)).repeat(COUNT, 1, 1)
    return power * (torch.arange(FRAMES) < LENGTHS[:, None])[:, :, None]


def changed(options: Augmentation, seed: int = 0, level: float = 1.0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    return Augmenter(SHAPE, options, np.random.default_rng(seed))(NETWORK, spectra(level), LENGTHS, TARGETS)


def own(heard: torch.Tensor, lengths: torch.Tensor, row: int) -> torch.Tensor:
    return heard[row, : lengths[row]]


def test_without_augmentation_a_clip_is_what_the_network_hears():
    heard, lengths, targets = changed(NONE)
    plain = NETWORK.log_mel(spectra())
    assert torch.equal(lengths, LENGTHS)
    assert torch.equal(targets, TARGETS)
    for row in range(COUNT):
        assert torch.allclose(own(heard, lengths, row), own(plain, lengths, row), atol=1e-5)


def test_one_seed_one_outcome():
    first, again, other = changed(Augmentation(), 3), changed(Augmentation(), 3), changed(Augmentation(), 4)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert first[0].shape != other[0].shape or not torch.equal(first[0], other[0])


@pytest.mark.parametrize("seed", range(5))
def test_speed_changes_the_length_by_no_more_than_it_may(seed):
    _, lengths, _ = changed(replace(NONE, speed=0.15), seed)
    ratio = lengths / LENGTHS
    assert ratio.min() >= 1 / 1.15 - 0.02
    assert ratio.max() <= 1 / 0.85 + 0.02
    assert ratio.max() > ratio.min()


def test_a_clip_played_at_another_speed_begins_and_ends_as_it_did():
    heard, lengths, _ = changed(replace(NONE, speed=0.15))
    plain = NETWORK.log_mel(spectra())
    for row in range(COUNT):
        rises = own(heard, lengths, row).mean(dim=1)
        whole = own(plain, LENGTHS, row).mean(dim=1)
        assert torch.all(rises.diff() >= -1e-5)  # time still runs forward
        assert rises[-1] - rises[0] == pytest.approx(float(whole[-1] - whole[0]), abs=0.15)


def test_gain_moves_every_band_alike_and_within_its_limit():
    heard, lengths, _ = changed(replace(NONE, gain_db=6.0), level=1e3)
    plain = NETWORK.log_mel(spectra(1e3))
    moves = []
    for row in range(COUNT):
        move = (own(heard, lengths, row) - own(plain, lengths, row)) * 10 / np.log(10)
        assert float(move.std()) < 1e-3
        moves.append(float(move.mean()))
    assert max(map(abs, moves)) <= 6.0
    assert np.std(moves) > 1.0


def test_warp_moves_a_tone_within_its_limit():
    bin_ = 64  # 2 kHz
    power = torch.full((COUNT, FRAMES, 257), 1e-9)
    power[:, :, bin_] = 1.0
    heard, lengths, _ = Augmenter(SHAPE, replace(NONE, warp=0.1), np.random.default_rng(0))(NETWORK, power, LENGTHS, TARGETS)
    edges = 700 * (10 ** (np.linspace(*(np.log10(1 + hz / 700) for hz in (SHAPE.low_hz, SHAPE.high_hz)), SHAPE.bands + 2)) - 1)
    centres = edges[1:-1][heard[:, 0].argmax(dim=1).numpy()]
    band = np.diff(edges)[np.abs(edges - 2000).argmin()]
    assert np.all(np.abs(centres - 2000) <= 200 + band)
    assert len(set(centres)) > 1
    assert torch.equal(lengths, LENGTHS)


@pytest.mark.parametrize("seed", range(5))
def test_masks_keep_to_their_budget(seed):
    options = replace(NONE, time_masks=2, time_mask=0.15, frequency_masks=1, frequency_mask=0.25)
    heard, lengths, _ = changed(options, seed, level=10.0)
    for row in range(COUNT):
        gone = own(heard, lengths, row) == 0
        assert gone.all(dim=1).sum() <= 2 * 0.15 * lengths[row]
        assert gone.all(dim=0).sum() <= 0.25 * SHAPE.bands
        frames, bands = gone.all(dim=1), gone.all(dim=0)
        assert torch.equal(gone, frames[:, None] | bands)  # whole frames and whole bands only


def test_mixup_mixes_targets_as_it_mixes_clips_and_the_clips_own_share_is_the_larger():
    heard, lengths, targets = changed(replace(NONE, mixup=0.3), level=10.0)
    assert torch.allclose(targets.sum(dim=1), torch.ones(COUNT))
    assert (targets * TARGETS).sum(dim=1).min() >= 0.5
    assert (targets < 1).all(dim=1).any()
    assert torch.all(lengths >= LENGTHS)
    assert bool(torch.isfinite(heard).all())


def test_what_mixup_adds_ends_where_the_other_clip_ends():
    options = replace(NONE, mixup=0.3)
    heard, lengths, _ = changed(options)
    plain = NETWORK.log_mel(spectra())
    for row in range(COUNT):
        after = heard[row, lengths[row] :]
        assert bool((after == 0).all())
    # A clip of silence brings log(FLOOR) while it lasts, and nothing after its end.
    assert float(plain[1, 50].mean()) != pytest.approx(0.0)


@pytest.mark.parametrize("changed_to", [{"speed": -0.1}, {"warp": 0.6}, {"gain_db": float("nan")}, {"mixup": float("inf")}, {"time_mask": 0.9}])
def test_a_limit_that_cannot_be_is_refused_by_name(changed_to):
    with pytest.raises(InvalidValueError, match=next(iter(changed_to))):
        Augmentation(**changed_to)
