"""A convolutional network on log-mel spectra, from waveform to classes in one module, small enough to train on one core.

The one idea: what lies beyond a clip's end is set to zero after every layer, which is what a convolution sees beyond the end of a clip
alone; so a clip gets the same answer in any batch. Nothing depends on the batch at inference (batch normalisation uses what it kept).
"""

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from clinical_ser.audio.recording import SAMPLE_RATE_HZ
from clinical_ser.embeddings.mel import dft_kernels
from clinical_ser.errors import InvalidValueError

FLOOR = 1e-6
"""Added to the mean power of a band's bins before the logarithm: that of white noise at -60 dBFS, so that a quiet room is no matter."""
_STD_FLOOR = 1e-5


@dataclass(frozen=True)
class NetworkShape:
    """What a `LogMelCnn` looks like; the defaults have 0.1 million parameters.

    Attributes
    ----------
    bands : int
        Mel bands; a multiple of 2 to the number of blocks.
    window, hop : int
        Samples of a spectrum (Hann) and from one to the next.
    low_hz, high_hz : float
        Edges of the mel scale.
    channels : tuple of int
        Output channels of each block (3 × 3 convolution, normalisation, ReLU, pooling by 2 in frequency).
    time_pools : int
        The first so many blocks also pool by 2 in time.
    width : int
        Size of a frame's vector.
    recurrent : bool
        Follow the convolutions by a bidirectional GRU (then `width` is that of both directions together) instead of a convolution in time.
    dropout : float
        Of the pooled vector, in training.
    """

    bands: int = 64
    window: int = 512
    hop: int = 256
    low_hz: float = 60.0
    high_hz: float = 7800.0
    channels: tuple[int, ...] = (16, 32, 48, 64)
    time_pools: int = 2
    width: int = 96
    recurrent: bool = False
    dropout: float = 0.2

    def __post_init__(self) -> None:
        if not self.channels or min(self.channels) < 1:
            raise InvalidValueError("channels", self.channels, "at least one block of at least one channel")
        if self.bands < 1 or self.bands % 2 ** len(self.channels):
            raise InvalidValueError("bands", self.bands, f"a multiple of {2 ** len(self.channels)}, as each block halves them")
        if not 0 <= self.time_pools <= len(self.channels):
            raise InvalidValueError("time_pools", self.time_pools, f"0 to {len(self.channels)}")
        if not 0 < self.hop <= self.window:
            raise InvalidValueError("hop", self.hop, f"1 to the window's {self.window} samples")
        if not 0 <= self.low_hz < self.high_hz <= SAMPLE_RATE_HZ / 2:
            raise InvalidValueError("low_hz, high_hz", (self.low_hz, self.high_hz), f"rising, within 0 to {SAMPLE_RATE_HZ / 2:g} Hz")
        if self.width < 2 or self.width % 2:
            raise InvalidValueError("width", self.width, "an even number, at least 2")
        if not 0 <= self.dropout < 1:
            raise InvalidValueError("dropout", self.dropout, "0 or more, below 1")

    @property
    def minimum_samples(self) -> int:
        """The shortest input that yields a frame."""
        return self.window + (2**self.time_pools - 1) * self.hop


def warped_mel_filters(shape: NetworkShape, scales: NDArray[np.float64]) -> NDArray[np.float32]:
    """Return triangles of sum 1 on the mel scale 2595 log10(1 + f / 700) (O'Shaughnessy 1987), as voices of other heights would be heard by them.

    Parameters
    ----------
    shape : NetworkShape
    scales : (n,)
        Factors by which every frequency is raised before the filters, as if the clip had been played that much faster.

    Returns
    -------
    (n, bins, bands)
    """
    low, high = (2595 * np.log10(1 + hz / 700) for hz in (shape.low_hz, shape.high_hz))
    edges = 700 * (10 ** (np.linspace(low, high, shape.bands + 2) / 2595) - 1)
    step_hz = SAMPLE_RATE_HZ / shape.window * scales[:, None, None]
    heard_hz = np.arange(shape.window // 2 + 1)[:, None] * step_hz
    # A triangle narrower than the step between bins would miss them all.
    below, above = np.maximum(edges[1:-1] - edges[:-2], step_hz), np.maximum(edges[2:] - edges[1:-1], step_hz)
    away = heard_hz - edges[1:-1]
    filters = np.maximum(0.0, 1 - np.maximum(-away / below, away / above))
    return np.asarray(filters / np.maximum(filters.sum(axis=1, keepdims=True), 1e-9), np.float32)


class LogMelCnn(nn.Module):
    """Log-mel spectra, convolutions, mean and deviation over time, a linear classifier.

    Parameters
    ----------
    classes : tuple of str
    shape : NetworkShape

    Notes
    -----
    `forward` takes waveforms (batch, samples), float32 at 16 kHz, and the number of samples of each clip where they differ. Clips may be
    padded with any finite numbers. Training goes in through `power` and `classify`, between which `augmentation` changes the spectra.

    Examples
    --------
    >>> import torch
    >>> network = LogMelCnn(("calm", "angry"))
    >>> network(torch.zeros(3, 16000)).shape
    torch.Size([3, 2])
    """

    window: Tensor
    fourier: Tensor
    """(2 × bins, 1, window): the transform as a convolution, for the graph that is exported; here the fast one is quicker."""
    filters: Tensor
    mean: Tensor
    scale: Tensor

    def __init__(self, classes: tuple[str, ...], shape: NetworkShape | None = None) -> None:
        super().__init__()
        if len(classes) < 2 or len(set(classes)) < len(classes):
            raise InvalidValueError("classes", classes, "at least two different names")
        self.classes, self.shape = tuple(classes), shape or NetworkShape()
        own = self.shape
        kernels = torch.from_numpy(dft_kernels(own.window))
        kernels /= kernels[0].square().sum().sqrt()  # the first row, of 0 Hz, is the window itself
        self.register_buffer("window", kernels[0].clone())
        self.register_buffer("fourier", kernels[:, None])
        self.register_buffer("filters", torch.from_numpy(warped_mel_filters(own, np.ones(1)))[0])
        self.register_buffer("mean", torch.zeros(own.bands))
        self.register_buffer("scale", torch.ones(own.bands))
        self.blocks = nn.ModuleList(
            # Pooled before it is normalised: a fifth less time, and no difference beyond chance on training actors held out.
            nn.Sequential(
                nn.Conv2d(before, after, 3, padding=1, bias=False),
                nn.MaxPool2d((2, 2 if index < own.time_pools else 1)),
                nn.BatchNorm2d(after),
                nn.ReLU(),
            )
            for index, (before, after) in enumerate(pairwise((1, *own.channels)))
        )
        stacked = own.channels[-1] * (own.bands // 2 ** len(own.channels))
        self.project = nn.Sequential(nn.Conv1d(stacked, own.width, 1, bias=False), nn.BatchNorm1d(own.width), nn.ReLU())
        self.context: nn.Module
        if own.recurrent:
            self.context = nn.GRU(own.width, own.width // 2, batch_first=True, bidirectional=True)
        else:
            self.context = nn.Sequential(nn.Conv1d(own.width, own.width, 3, padding=1, bias=False), nn.BatchNorm1d(own.width), nn.ReLU())
        self.dropout = nn.Dropout(own.dropout)
        self.classifier = nn.Linear(2 * own.width, len(classes))

    def forward(self, samples: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Return logits (batch, classes) of waveforms (batch, samples); `lengths` counts each clip's own samples.

        Raises
        ------
        InvalidValueError
            Not a batch of waveforms, or a clip of fewer than `shape.minimum_samples`.
        """
        shortest = samples.shape[-1] if lengths is None else int(lengths.min())
        if samples.ndim != 2 or not self.shape.minimum_samples <= shortest:
            given = f"a tensor of shape {tuple(samples.shape)}, shortest clip {shortest}"
            raise InvalidValueError("samples", given, f"(batch, samples) of clips of at least {self.shape.minimum_samples} samples")
        power, spectra = self.power(samples, lengths)
        return self.classify(self.log_mel(power), spectra)

    def frames(self, samples: Tensor) -> Tensor:
        """Return the vectors (batch, frames, width) of clips of equal length, one every `hop` × 2 ** `time_pools` samples."""
        return self.encode(self.log_mel(self.power(samples)[0]))[0]

    def power(self, samples: Tensor, lengths: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """Return power spectra (batch, time, bins), and how many of them are each clip's own."""
        framed = samples.unfold(1, self.shape.window, self.shape.hop) * self.window
        found = torch.fft.rfft(framed)
        power = found.real.square() + found.imag.square()
        return power, None if lengths is None else (lengths - self.shape.window) // self.shape.hop + 1

    def log_mel(self, power: Tensor, filters: Tensor | None = None) -> Tensor:
        """Return normalised logarithms (batch, time, bands) of the power in mel bands."""
        return (torch.log(power @ (self.filters if filters is None else filters) + FLOOR) - self.mean) / self.scale

    def encode(self, log_mel: Tensor, lengths: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """Return frames (batch, time, width) and how many of them are each clip's own; what is beyond is zero."""
        x = _cut(log_mel.transpose(1, 2)[:, None], lengths)
        for index, block in enumerate(self.blocks):
            if lengths is not None and index < self.shape.time_pools:
                lengths = lengths // 2
            x = _cut(block(x), lengths)
        x = _cut(self.project(x.flatten(1, 2)), lengths)
        if not self.shape.recurrent:
            return _cut(self.context(x), lengths).transpose(1, 2), lengths
        return self._recur(x.transpose(1, 2), lengths), lengths

    def classify(self, log_mel: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Return logits (batch, classes) of log-mel spectra (batch, time, bands)."""
        frames, lengths = self.encode(log_mel, lengths)
        return self.classifier(self.dropout(pooled(frames, lengths)))

    def normalise(self, mean: Tensor, scale: Tensor) -> None:
        """Set what `log_mel` subtracts and divides by, a value a band, learned on training clips."""
        self.mean.copy_(mean)
        self.scale.copy_(scale.clamp_min(1e-3))

    def _recur(self, x: Tensor, lengths: Tensor | None) -> Tensor:
        if lengths is None:
            return self.context(x)[0]
        packed = nn.utils.rnn.pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
        return nn.utils.rnn.pad_packed_sequence(self.context(packed)[0], batch_first=True, total_length=x.shape[1])[0]


def pooled(frames: Tensor, lengths: Tensor | None = None) -> Tensor:
    """Return mean and standard deviation over each clip's own frames, (batch, 2 × width); frames beyond must be zero."""
    if lengths is None:
        mean = frames.mean(dim=1)
        spread = (frames - mean[:, None]).square().mean(dim=1)
    else:
        count = lengths[:, None]
        mean = frames.sum(dim=1) / count
        spread = _cut((frames - mean[:, None]).transpose(1, 2), lengths).square().sum(dim=2) / count
    return torch.cat([mean, (spread + _STD_FLOOR).sqrt()], dim=1)


def _cut(x: Tensor, lengths: Tensor | None) -> Tensor:
    """Set everything past each clip's end to zero along the last axis."""
    if lengths is None:
        return x
    own = torch.arange(x.shape[-1]) < lengths[:, None]
    return x * own.view(len(own), *(1,) * (x.ndim - 2), -1)
