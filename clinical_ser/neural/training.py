"""Training of a small network on waveforms, and its answers.

The one idea: everything that decides the outcome stands in a recipe and a seed; there is no early stopping, so that no clip but those
trained on has a say, and what a network answers about people it never heard is worth as much as the split that kept them apart.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from clinical_ser.audio.recording import SAMPLE_RATE_HZ
from clinical_ser.errors import InvalidValueError, TrainingError
from clinical_ser.neural.augmentation import Augmentation, Augmenter
from clinical_ser.neural.networks import FLOOR, LogMelCnn, NetworkShape

Progress = Callable[[int, int], None]
Wave = NDArray[np.float32]

TRIM_DB = 40.0
"""What lies before the first and after the last moment less than this below the loudest one is silence (half of an acted clip)."""
_TRIM_FRAME, _TRIM_MARGIN = SAMPLE_RATE_HZ // 50, SAMPLE_RATE_HZ // 10
_SORTED_TOGETHER = 8
"""So many batches are drawn at once and sorted by length within, so that little of a batch is padding."""


@dataclass(frozen=True)
class TrainingRecipe:
    """How to train; the same waves, labels, recipe and seed give the same network on the same machine.

    Attributes
    ----------
    shape : NetworkShape
    augmentation : Augmentation
    epochs, batch : int
        Passes over the clips, and clips a step.
    learning_rate : float
        The highest of one cycle (Smith 2018): up over the first quarter, down to nothing by the end.
    weight_decay : float
        AdamW's (Loshchilov & Hutter 2019).
    label_smoothing : float
        Share of each target that is spread over all classes (Szegedy et al. 2016).
    longest_s : float
        Of a longer clip, each epoch hears another stretch of this length.
    precision : str
        `bfloat16` halves the time on processors that multiply in it, weights stay float32; `float32` runs alike anywhere.
    """

    shape: NetworkShape = field(default_factory=NetworkShape)
    augmentation: Augmentation = field(default_factory=Augmentation)
    epochs: int = 70
    batch: int = 32
    learning_rate: float = 4e-3
    weight_decay: float = 0.02
    label_smoothing: float = 0.08
    longest_s: float = 5.0
    precision: Literal["float32", "bfloat16"] = "float32"

    def __post_init__(self) -> None:
        for name, least in (("epochs", 1), ("batch", 2)):
            if getattr(self, name) < least:
                raise InvalidValueError(name, getattr(self, name), f"at least {least}")
        if not 0 < self.learning_rate < 1:
            raise InvalidValueError("learning_rate", self.learning_rate, "strictly between 0 and 1")
        if not 0 <= self.weight_decay < 1:
            raise InvalidValueError("weight_decay", self.weight_decay, "0 or more, below 1")
        if not 0 <= self.label_smoothing < 1:
            raise InvalidValueError("label_smoothing", self.label_smoothing, "0 or more, below 1")
        if not self.longest_s * SAMPLE_RATE_HZ >= self.shape.minimum_samples:
            raise InvalidValueError("longest_s", self.longest_s, f"at least {self.shape.minimum_samples / SAMPLE_RATE_HZ:g} s, which make one frame")
        if self.precision not in {"float32", "bfloat16"}:
            raise InvalidValueError("precision", self.precision, ["float32", "bfloat16"])


def train_network(
    waves: Sequence[Wave],
    labels: Sequence[str],
    classes: Sequence[str],
    recipe: TrainingRecipe | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> LogMelCnn:
    """Train a network on clips of the people it may hear.

    Parameters
    ----------
    waves : sequence of (samples,)
        Finite float32 at 16 kHz.
    labels : sequence of str
        A class a clip.
    classes : sequence of str
        In the order of the answers.
    recipe : TrainingRecipe, optional
    seed : int
    progress : callable, optional
        Told (epochs done, epochs in all).

    Returns
    -------
    LogMelCnn
        Ready to answer. Classes weigh alike however many clips they have.

    Raises
    ------
    TrainingError
        Labels that do not fit the waves, or a class without a clip.
    InvalidValueError
        A wave or a class that cannot be used.
    """
    recipe = recipe or TrainingRecipe()
    if len(waves) != len(labels):
        raise TrainingError(f"{len(waves)} waves need as many labels, not {len(labels)}.")
    if strange := sorted(set(labels) - set(classes)):
        raise TrainingError(f"Labels {strange} are none of the classes {list(classes)}.")
    if missing := [name for name in classes if name not in set(labels)]:
        raise TrainingError(f"No clip is labelled {missing}; every class needs some.")
    if not 0 <= seed < 2**32:
        raise InvalidValueError("seed", seed, "a whole number from 0 to 2**32 - 1")
    with _alone(seed):
        network = LogMelCnn(tuple(classes), recipe.shape)
        clips = [prepared(wave, network.shape) for wave in waves]
        target = torch.tensor([list(classes).index(label) for label in labels])
        _Run(network, clips, target, recipe, np.random.default_rng(seed)).go(progress)
    return network.train(mode=False)


def log_probabilities(network: LogMelCnn, waves: Sequence[Wave], *, batch: int = 32) -> NDArray[np.float64]:
    """Return what a trained network answers, (clips, classes); a clip's answer does not depend on the others.

    Raises
    ------
    InvalidValueError
        A wave that cannot be used.
    """
    clips = [prepared(wave, network.shape) for wave in waves]
    found = np.empty((len(clips), len(network.classes)))
    order = np.argsort([len(clip) for clip in clips], kind="stable")
    with _alone(0), torch.inference_mode():
        network.train(mode=False)
        for start in range(0, len(order), batch):
            rows = order[start : start + batch]
            found[rows] = network(*padded([clips[row] for row in rows])).double().log_softmax(dim=1).numpy()
    return found


def prepared(wave: Wave, shape: NetworkShape) -> Wave:
    """Return the clip without silence at its ends, with zeros after it where it is too short for a frame.

    Raises
    ------
    InvalidValueError
        Not one channel of finite samples.
    """
    wave = np.ascontiguousarray(wave, dtype=np.float32)
    if wave.ndim != 1 or not wave.size:
        raise InvalidValueError("wave", f"an array of shape {wave.shape}", "one channel, (samples,), not empty")
    if not np.isfinite(wave).all():
        raise InvalidValueError("wave", "NaN or infinite samples", "finite samples in ±1")
    whole = wave[: len(wave) // _TRIM_FRAME * _TRIM_FRAME].reshape(-1, _TRIM_FRAME)
    if len(whole):
        energy = np.square(whole).mean(axis=1)
        heard = np.flatnonzero(energy >= energy.max() * 10 ** (-TRIM_DB / 10)) * _TRIM_FRAME
        wave = wave[max(heard[0] - _TRIM_MARGIN, 0) : heard[-1] + _TRIM_FRAME + _TRIM_MARGIN]
    return np.pad(wave, (0, max(shape.minimum_samples - len(wave), 0)))


def padded(clips: Sequence[Wave]) -> tuple[Tensor, Tensor]:
    """Return clips as one tensor (batch, samples) with zeros after the shorter ones, and the samples of each."""
    lengths = torch.tensor([len(clip) for clip in clips])
    samples = torch.zeros(len(clips), int(lengths.max()))
    for row, clip in enumerate(clips):
        samples[row, : len(clip)] = torch.from_numpy(clip)
    return samples, lengths


@dataclass
class _Run:
    network: LogMelCnn
    clips: list[Wave]
    target: Tensor
    recipe: TrainingRecipe
    random: np.random.Generator

    @property
    def steps(self) -> int:
        """How many batches an epoch has."""
        return -(-len(self.clips) // self.recipe.batch)

    def go(self, progress: Progress | None) -> None:
        recipe, network = self.recipe, self.network.train()
        nn.utils.convert_conv2d_weight_memory_format(network, torch.channels_last)  # half the time of the usual order on a CPU
        self._normalise()
        optimiser = torch.optim.AdamW(network.parameters(), lr=recipe.learning_rate, weight_decay=recipe.weight_decay)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, recipe.learning_rate, total_steps=self.steps * recipe.epochs + 1, pct_start=0.25)
        augment = Augmenter(network.shape, recipe.augmentation, self.random)
        targets, weights = self._targets()
        for epoch in range(recipe.epochs):
            for rows in self._batches():
                power, lengths = network.power(*padded([self._stretch(self.clips[row]) for row in rows]))
                assert lengths is not None
                heard, lengths, wanted = augment(network, power, lengths, targets[rows])
                with torch.autocast("cpu", torch.bfloat16, enabled=recipe.precision == "bfloat16"):
                    logits = network.classify(heard, lengths)
                loss = -(wanted * weights * logits.float().log_softmax(dim=1)).sum(dim=1).mean()
                optimiser.zero_grad()
                torch.autograd.backward(loss)
                nn.utils.clip_grad_norm_(network.parameters(), 5.0)
                optimiser.step()
                schedule.step()
            if progress:
                progress(epoch + 1, recipe.epochs)

    def _normalise(self) -> None:
        """Learn each band's mean and deviation over all frames of all clips."""
        with torch.no_grad():
            heard = [torch.log(self.network.power(torch.from_numpy(clip)[None])[0][0] @ self.network.filters + FLOOR) for clip in self.clips]
            every = torch.cat(heard)
            self.network.normalise(every.mean(dim=0), every.std(dim=0))

    def _targets(self) -> tuple[Tensor, Tensor]:
        """Return smoothed targets (clips, classes) and what each class weighs, one on average over clips."""
        count = len(self.network.classes)
        hard = nn.functional.one_hot(self.target, count).float()
        weights = len(hard) / (count * hard.sum(dim=0))
        return hard * (1 - self.recipe.label_smoothing) + self.recipe.label_smoothing / count, weights

    def _batches(self) -> Iterator[NDArray[np.int64]]:
        """Yield the rows of each batch, of nearly equal size: normalisation cannot learn from a batch of one."""
        size = np.array([len(clip) for clip in self.clips])
        parts = np.array_split(self.random.permutation(len(size)), self.steps)
        drawn: list[NDArray[np.int64]] = []
        for start in range(0, len(parts), _SORTED_TOGETHER):
            pool = np.concatenate(parts[start : start + _SORTED_TOGETHER])
            drawn += np.array_split(pool[np.argsort(size[pool], kind="stable")], len(parts[start : start + _SORTED_TOGETHER]))
        for index in self.random.permutation(len(drawn)):
            yield drawn[index]

    def _stretch(self, clip: Wave) -> Wave:
        longest = int(self.recipe.longest_s * SAMPLE_RATE_HZ)
        start = int(self.random.integers(max(len(clip) - longest, 0) + 1))
        return clip[start : start + longest]


@contextmanager
def _alone(seed: int) -> Iterator[None]:
    """One thread and a seed of torch's own chance (weights at first, dropout), and everything as it was afterwards."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            yield
    finally:
        torch.set_num_threads(threads)
