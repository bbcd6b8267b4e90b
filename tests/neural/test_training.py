"""Training learns, reproduces, and refuses what it cannot train on."""

from dataclasses import replace

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from clinical_ser.errors import InvalidValueError, TrainingError  # noqa: E402
from clinical_ser.neural import training  # noqa: E402
from clinical_ser.neural.networks import NetworkShape  # noqa: E402
from clinical_ser.neural.training import TrainingRecipe, log_probabilities, padded, prepared, train_network  # noqa: E402

RATE_HZ = 16_000
CLASSES = ("low", "high", "rising")
SMALL = NetworkShape(bands=32, window=512, hop=256, channels=(8, 8), width=16)
RECIPE = TrainingRecipe(shape=SMALL, epochs=12, batch=8, learning_rate=1e-2)
BRIEF = replace(RECIPE, epochs=2)


def clip(label: str, seed: int) -> np.ndarray:
    """A tone in noise, low, high, or going from one to the other, at a level and length of its own."""
    random = np.random.default_rng(seed)
    time = np.arange(int(random.uniform(0.35, 0.6) * RATE_HZ)) / RATE_HZ
    f0 = {"low": 400 + 0 * time, "high": 1600 + 0 * time, "rising": np.geomspace(400, 1600, len(time))}[label] * random.uniform(0.9, 1.1)
    tone = np.sin(2 * np.pi * np.cumsum(f0) / RATE_HZ)
    return (random.uniform(0.05, 0.2) * tone + random.normal(0, 0.01, len(time))).astype(np.float32)


def clips(count: int, seed: int) -> tuple[list[np.ndarray], list[str]]:
    labels = [CLASSES[index % 3] for index in range(count)]
    return [clip(label, seed + index) for index, label in enumerate(labels)], labels


@pytest.fixture(scope="module")
def trained():
    waves, labels = clips(48, 0)
    done: list[tuple[int, int]] = []
    return train_network(waves, labels, CLASSES, RECIPE, 0, lambda *told: done.append(told)), done


def test_what_was_learned_holds_for_clips_it_never_heard(trained):
    waves, labels = clips(30, 1_000)
    answers = log_probabilities(trained[0], waves)
    assert np.mean(np.array(CLASSES)[answers.argmax(axis=1)] == labels) >= 0.9
    np.testing.assert_allclose(np.exp(answers).sum(axis=1), 1.0, atol=1e-6)


def test_progress_is_told_every_epoch(trained):
    assert trained[1] == [(epoch, 12) for epoch in range(1, 13)]


def test_a_clips_answer_does_not_depend_on_the_others_or_on_silence_around_it(trained):
    waves, _ = clips(9, 2_000)
    together = log_probabilities(trained[0], waves)
    alone = np.concatenate([log_probabilities(trained[0], [wave]) for wave in waves])
    np.testing.assert_allclose(together, alone, atol=1e-5)
    np.testing.assert_allclose(log_probabilities(trained[0], waves, batch=2), together, atol=1e-5)
    less, more = ([np.pad(wave, silence) for wave in waves] for silence in ((RATE_HZ // 2, RATE_HZ // 2), (RATE_HZ, 2 * RATE_HZ)))
    np.testing.assert_allclose(log_probabilities(trained[0], less), log_probabilities(trained[0], more), atol=1e-5)


def test_the_same_seed_gives_the_same_network_whatever_chance_was_used_before():
    waves, labels = clips(12, 0)
    first = train_network(waves, labels, CLASSES, BRIEF, 5)
    torch.rand(7)
    np.random.default_rng().random(3)
    again, other = (train_network(waves, labels, CLASSES, BRIEF, seed) for seed in (5, 6))
    assert all(torch.equal(a, b) for a, b in zip(first.state_dict().values(), again.state_dict().values(), strict=True))
    assert not torch.equal(first.classifier.weight, other.classifier.weight)


def test_training_leaves_threads_and_torchs_chance_as_they_were():
    torch.manual_seed(1)
    threads, expected = torch.get_num_threads(), torch.rand(2)
    torch.manual_seed(1)
    waves, labels = clips(6, 0)
    train_network(waves, labels, CLASSES, replace(BRIEF, epochs=1), 0)
    assert torch.get_num_threads() == threads
    assert torch.equal(torch.rand(2), expected)


def test_the_order_of_classes_is_that_of_the_answers():
    waves, labels = clips(12, 0)
    network = train_network(waves, labels, CLASSES[::-1], BRIEF)
    assert network.classes == CLASSES[::-1]
    assert log_probabilities(network, waves).shape == (12, 3)


def test_every_clip_is_heard_once_an_epoch(monkeypatch):
    waves, labels = clips(20, 0)
    heard: list[int] = []

    def listening(batch: list[np.ndarray]) -> tuple[torch.Tensor, torch.Tensor]:
        heard.extend(len(wave) for wave in batch)
        return padded(batch)

    monkeypatch.setattr(training, "padded", listening)
    train_network(waves, labels, CLASSES, replace(BRIEF, epochs=3))
    assert sorted(heard) == sorted(3 * [len(prepared(wave, SMALL)) for wave in waves])


def test_a_long_clip_is_heard_in_stretches_and_a_short_one_gets_zeros():
    waves, labels = clips(6, 0)
    waves[0] = np.tile(waves[0], 6)
    waves[1] = waves[1][:300]
    network = train_network(waves, labels, CLASSES, replace(BRIEF, longest_s=0.3))
    assert np.isfinite(log_probabilities(network, waves)).all()


def test_one_clip_more_than_fits_a_batch_does_not_stand_alone():
    # Normalisation over one clip of one frame has no variance, and torch refuses it.
    waves, labels = clips(9, 0)
    train_network([wave[: SMALL.minimum_samples] for wave in waves], labels, CLASSES, replace(BRIEF, batch=8))


def test_silence_at_the_ends_is_left_out_with_a_tenth_of_a_second_kept():
    wave = np.zeros(3 * RATE_HZ, np.float32)
    wave[RATE_HZ : 2 * RATE_HZ] = 0.1
    assert len(prepared(wave, SMALL)) == RATE_HZ + 2 * RATE_HZ // 10
    assert len(prepared(wave[:1], SMALL)) == SMALL.minimum_samples
    assert len(prepared(np.zeros(RATE_HZ, np.float32), SMALL)) == RATE_HZ


@pytest.mark.parametrize(
    ("wave", "named"),
    [(np.zeros((2, 9)), "one channel"), (np.zeros(0), "not empty"), (np.array([0.0, np.nan]), "finite"), (np.array([np.inf]), "finite")],
)
def test_a_wave_that_is_none_is_refused(wave, named):
    with pytest.raises(InvalidValueError, match=named):
        train_network([wave, np.zeros(9)], ["a", "b"], ["a", "b"], BRIEF)


def test_labels_have_to_fit():
    waves = [np.zeros(9_000, np.float32)] * 2
    with pytest.raises(TrainingError, match="2 waves need as many labels, not 1"):
        train_network(waves, ["low"], CLASSES, BRIEF)
    with pytest.raises(TrainingError, match="none of the classes"):
        train_network(waves, ["low", "loud"], CLASSES, BRIEF)
    with pytest.raises(TrainingError, match=r"No clip is labelled \['rising'\]"):
        train_network(waves, ["low", "high"], CLASSES, BRIEF)
    with pytest.raises(InvalidValueError, match="seed"):
        train_network(waves, ["low", "high"], ["low", "high"], BRIEF, -1)


@pytest.mark.parametrize(
    "changed",
    [
        {"epochs": 0},
        {"batch": 1},
        {"learning_rate": 0.0},
        {"weight_decay": -1.0},
        {"label_smoothing": 1.0},
        {"longest_s": 0.01},
        {"longest_s": float("nan")},
        {"precision": "float16"},
    ],
)
def test_a_recipe_that_cannot_be_is_refused_by_name(changed):
    with pytest.raises(InvalidValueError, match=next(iter(changed))):
        TrainingRecipe(**changed)
