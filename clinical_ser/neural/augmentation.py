"""Changes of a clip that leave its label true: faster or slower, louder or softer, another throat, parts unheard, a little of another clip.

The one idea: all of it is done on power spectra. To play a clip faster is to read its frames further apart through mel bands that lie
lower by the same factor, so that no clip has to be resampled in any epoch. All chance comes from the one generator handed in.
"""

from dataclasses import dataclass, fields

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from clinical_ser.errors import InvalidValueError
from clinical_ser.neural.networks import LogMelCnn, NetworkShape, warped_mel_filters

SCALE_STEP = 0.01
"""Frequency scales are rounded to steps of so much of their logarithm: mel filters are made once for each."""


@dataclass(frozen=True)
class Augmentation:
    """How far a clip may be changed.

    Attributes
    ----------
    speed : float
        Played at 1 ± this times its speed, time and frequency together (0.15: 0.85 to 1.15).
    warp : float
        Frequencies alone are scaled by 1 ± this besides, as a longer or shorter vocal tract does (Jaitly & Hinton 2013).
    gain_db : float
        Level changes by ± this.
    time_masks, frequency_masks : int
        Stretches of time and of bands that are set to the mean (Park et al. 2019, SpecAugment, without its time warp).
    time_mask, frequency_mask : float
        The longest one stretch may be, as a share of the clip's frames or of all bands.
    mixup : float
        A clip is mixed with another, and its label with the other's, by a share from Beta(mixup, mixup) (Zhang et al. 2018); 0 does not mix.
    """

    speed: float = 0.15
    warp: float = 0.1
    gain_db: float = 6.0
    time_masks: int = 2
    time_mask: float = 0.15
    frequency_masks: int = 2
    frequency_mask: float = 0.12
    mixup: float = 0.3

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if not 0 <= value < float("inf"):
                raise InvalidValueError(field.name, value, "0 or more, finite")
            if field.name in {"speed", "warp", "time_mask", "frequency_mask"} and value > 0.5:
                raise InvalidValueError(field.name, value, "at most 0.5")


NONE = Augmentation(speed=0, warp=0, gain_db=0, time_masks=0, frequency_masks=0, mixup=0)
"""Every clip as it is."""


class Augmenter:
    """Changes batches of power spectra, and brings them to the log-mel spectra that the network reads.

    Parameters
    ----------
    shape : NetworkShape
    options : Augmentation
    random : numpy.random.Generator
    """

    def __init__(self, shape: NetworkShape, options: Augmentation, random: np.random.Generator) -> None:
        self.shape, self.options, self.random = shape, options, random
        self._minimum = 2**shape.time_pools
        widest = np.log((1 + options.speed) * (1 + options.warp)) - np.log((1 - options.speed) * (1 - options.warp))
        self._steps = int(np.ceil(widest / SCALE_STEP))
        scales = np.exp(np.arange(-self._steps, self._steps + 1) * SCALE_STEP)
        self._filters = torch.from_numpy(warped_mel_filters(shape, scales))

    def __call__(self, network: LogMelCnn, power: Tensor, lengths: Tensor, targets: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return changed log-mel spectra (batch, time, bands), their lengths and their targets (batch, classes)."""
        count, own = len(power), self.options
        speed = 1 + self._uniform(-own.speed, own.speed, count)
        gain = 10 ** (self._uniform(-own.gain_db, own.gain_db, count) / 10)
        scale = speed * (1 + self._uniform(-own.warp, own.warp, count))
        chosen = torch.from_numpy(np.rint(np.log(scale) / SCALE_STEP).astype(int) + self._steps)
        heard = network.log_mel(power * _column(gain), self._filters[chosen])
        heard, lengths = self._played(heard, lengths, speed)
        heard = self._masked(heard, lengths)
        return self._mixed(heard, lengths, targets) if own.mixup else (heard, lengths, targets)

    def _played(self, heard: Tensor, lengths: Tensor, speed: NDArray[np.float64]) -> tuple[Tensor, Tensor]:
        """Read the frames `speed` apart, between two of them by their mean."""
        changed = (lengths / torch.from_numpy(speed)).round().long().clamp_min(self._minimum)
        at = torch.arange(int(changed.max())) * torch.from_numpy(speed).float()[:, None]
        at = torch.minimum(at, lengths[:, None] - 1.0)
        before = at.long()
        after = torch.minimum(before + 1, lengths[:, None] - 1)
        share = (at - before)[:, :, None]
        return torch.lerp(_rows(heard, before), _rows(heard, after), share), changed

    def _masked(self, heard: Tensor, lengths: Tensor) -> Tensor:
        """Set stretches of time and bands of frequency to zero, which is the mean."""
        kept = torch.ones_like(heard, dtype=torch.bool)
        for _ in range(self.options.time_masks):
            kept &= ~self._stretch(lengths, self.options.time_mask, heard.shape[1])[:, :, None]
        bands = torch.full_like(lengths, self.shape.bands)
        for _ in range(self.options.frequency_masks):
            kept &= ~self._stretch(bands, self.options.frequency_mask, self.shape.bands)[:, None]
        return heard * kept

    def _stretch(self, lengths: Tensor, longest: float, size: int) -> Tensor:
        """Draw a stretch a clip: true (batch, size) within it."""
        drawn = torch.from_numpy(self._uniform(0, longest, len(lengths))) * lengths
        width = drawn.floor().long()
        start = (torch.from_numpy(self._uniform(0, 1, len(lengths))) * (lengths - width + 1)).floor().long()
        place = torch.arange(size)
        return (place >= start[:, None]) & (place < (start + width)[:, None])

    def _mixed(self, heard: Tensor, lengths: Tensor, targets: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Mix each clip with one other; its own share is the larger one."""
        other = torch.from_numpy(self.random.permutation(len(heard)))
        drawn = self.random.beta(self.options.mixup, self.options.mixup, len(heard))
        share = torch.from_numpy(np.maximum(drawn, 1 - drawn)).float()
        own = (torch.arange(heard.shape[1]) < lengths[:, None])[:, :, None]
        heard = heard * own  # beyond a clip's end lies nothing, not what padding became
        mixed = torch.lerp(heard[other], heard, share[:, None, None])
        return mixed, torch.maximum(lengths, lengths[other]), torch.lerp(targets[other], targets, share[:, None])

    def _uniform(self, low: float, high: float, count: int) -> NDArray[np.float64]:
        return self.random.uniform(low, high, count)


def _column(values: NDArray[np.float64]) -> Tensor:
    return torch.from_numpy(values).float()[:, None, None]


def _rows(heard: Tensor, index: Tensor) -> Tensor:
    return heard.gather(1, index[:, :, None].expand(-1, -1, heard.shape[2]))
