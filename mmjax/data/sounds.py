"""Sounds: speed, place, loudness, noise and masks of clips at random."""

from __future__ import annotations

import dataclasses
import math
from typing import Annotated, Any, ClassVar

import numpy as np

from mmjax.config import ranges
from mmjax.data.augment import Augment, check_kind
from mmjax.modalities.audio import Audio
from mmjax.typing import Piece

__all__ = ["Sounds"]

Decibels = Annotated[float, ranges.Range(-100, 100)]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sounds(Augment):
    """Varies clips as the spectrograms that the model reads, so that none is decoded twice.

    In this order: speed (Ko et al. 2015), shift in time, a drift of loudness, noise, masks (Park et
    al. 2019, SpecAugment). Lengths are those of the clip, without the silence that pads it. A
    constant gain is not among them, as `Audio` compares with the clip's loudest band.

    Speed changes the pitch too: leave it out where texts name keys, notes or tempo.

    Fields:
      speed: largest share by which clips are slowed down or sped up; pitch follows.
      shift: largest shift, in seconds, and at most half the clip; what leaves the seconds of the
        modality is lost.
      gain: largest decibels by which loudness rises or falls from start to end.
      noise: probability of noise; from white to pink. snr: decibels of the clip over it.
      time_masks, band_masks: number of silent stretches and of silent ranges of bands.
      time_mask, band_mask: largest width of one, as a share of the clip and of the bands.

    >>> audio, rng = Audio(seconds=0.1, num_mels=8), np.random.default_rng(0)
    >>> piece = audio.encode(np.sin(np.arange(1600, dtype=np.float32)))
    >>> Sounds()(piece, audio, rng).values_LP.shape
    (3, 32)
    """

    speed: ranges.BelowOne = 0.1
    shift: ranges.NonNegative = 0.1
    gain: Annotated[float, ranges.Range(0, 100)] = 3.0
    noise: ranges.Fraction = 0.3
    snr: tuple[Decibels, Decibels] = (10.0, 40.0)
    time_masks: Annotated[int, ranges.Range(0, 100)] = 2
    time_mask: ranges.BelowOne = 0.08
    band_masks: Annotated[int, ranges.Range(0, 100)] = 2
    band_mask: ranges.BelowOne = 0.12
    of_pieces: ClassVar[bool] = True

    def __post_init__(self):
        super().__post_init__()
        if self.snr[0] > self.snr[1]:
            raise ValueError(
                f"Sounds: snr={self.snr} ends before it starts; write the smaller one first."
            )

    def check(self, name, task, modalities):
        check_kind(self, name, modalities[name], Audio)
        if name in task.targets and (self.noise or self._masks):
            raise ValueError(
                f"augment[{name!r}]=Sounds, but {name!r} is among the targets, so the model would"
                " learn to make noise and gaps; set noise=0.0, time_masks=0 and band_masks=0 here."
            )

    def prepare(self, value: Any, modality: Any) -> Any:
        return modality.encode(value)

    def __call__(self, value: Piece, modality: Any, rng: np.random.Generator) -> Piece:
        speed, shift, first_gain, last_gain = rng.uniform(-1, 1, 4)
        has_noise, snr, slope = rng.random(3)
        masks_MI = rng.random((self.time_masks + self.band_masks, 2))
        values = np.asarray(value.values_LP)
        level = values.reshape(-1, modality.num_mels)
        if self.speed:
            level = modality.at_speed(level, (1 + self.speed) ** speed)
        first, end = _clip(level)
        if self.shift:
            frames = min(self.shift * modality.sample_rate / modality.hop, (end - first) // 2)
            level = _shifted(level, round(shift * frames))
            first, end = _clip(level)
        if first == end:  # silence has neither loudness nor gaps
            return value._replace(values_LP=level.reshape(values.shape))
        level = level.copy()
        clip = level[first:end]
        if self.gain:
            ends = self.gain * first_gain, self.gain * last_gain
            drift = np.linspace(*ends, len(clip), dtype=np.float32)
            _louder(clip, drift[:, None] * np.float32(4 / modality.dynamic_range))
        if has_noise < self.noise:
            decibels = self.snr[0] + (self.snr[1] - self.snr[0]) * snr
            clip[:] = _noisy(clip, modality, decibels, slope, rng)
        for i, (width, place) in enumerate(masks_MI):
            part = clip if i < self.time_masks else level.T
            most = self.time_mask if i < self.time_masks else self.band_mask
            count = int(width * (int(most * len(part)) + 1))  # 0 to the largest, each as often
            start = int(place * (len(part) - count + 1))
            part[start : start + count] = -2
        return value._replace(values_LP=level.reshape(values.shape))

    @property
    def _masks(self) -> bool:
        return bool(self.time_masks * self.time_mask or self.band_masks * self.band_mask)


def _clip(level: np.ndarray) -> tuple[int, int]:
    """First frame that is not silent, and the one behind the last."""
    there = np.flatnonzero((level > -2).any(axis=1))
    return (int(there[0]), int(there[-1]) + 1) if len(there) else (0, 0)


def _shifted(level: np.ndarray, frames: int) -> np.ndarray:
    """Frames later (or earlier, if negative), silence before (or behind) them."""
    out = np.full_like(level, -2)
    count = max(0, len(level) - abs(frames))
    late, early = max(0, frames), max(0, -frames)
    out[late : late + count] = level[early : early + count]
    return out


def _louder(clip: np.ndarray, change: np.ndarray) -> None:
    """Changes levels in place, then puts the loudest band back to 2; silence stays."""
    is_silent, top = clip <= -2, clip.max()
    clip += change
    clip += top - clip.max()
    np.maximum(clip, -2, out=clip)
    clip[is_silent] = -2


def _noisy(
    clip: np.ndarray, audio: Audio, decibels: float, slope: float, rng: np.random.Generator
) -> np.ndarray:
    """Levels with noise, whose power falls with frequency ** slope: 0 = white, 1 = pink."""
    unit = np.float32(audio.dynamic_range / 40 * math.log(10))  # of a level, as a logarithm
    power = np.exp((clip - 2) * unit)
    low, high = audio.edges[:-2], audio.edges[2:]
    width = ((high - low) / 2).astype(np.float32)
    noise = (((low + high) / 2) ** -slope).astype(np.float32)
    wanted = (power * width).sum(axis=1).mean() * 10 ** (-decibels / 10)
    noise *= np.float32(wanted / (noise * width).sum())
    # The power of a band of noise is gamma-distributed, as the mean of its independent bins; its
    # cube root is nearly normal (Wilson and Hilferty 1931), and quicker to draw.
    spread = 1 / (3 * np.sqrt(np.maximum(1, width * audio.window / audio.sample_rate)))
    root = 1 - spread**2 + spread * rng.standard_normal(clip.shape, np.float32)
    power += noise * np.maximum(root, 0) ** 3
    level = np.log(np.maximum(power, np.float32(1e-30))) / unit + 2
    level += clip.max() - level.max()
    return np.maximum(level, np.float32(-2))
