"""Measurements over time as patches (Nie et al., "A Time Series is Worth 64 Words")."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import numpy as np

from mmjax.config import ranges
from mmjax.modalities import given
from mmjax.modalities.modality import Modality
from mmjax.typing import Piece, TokenSpec, positions

__all__ = ["TimeSeries"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class TimeSeries(Modality):
    """One token per `patch` samples: (x - mean) / std by sample and channel.

    A longer series is cut at the end, and the tokens cut are counted; a shorter one has fewer
    tokens. The rest of its last patch repeats the last sample, or is missing where samples may be,
    so that `decode` gives whole patches.

    With `allow_missing` NaN is a sample that is missing: each number is followed by 1 if it is
    there, and by 0 if it is missing, and then it is 0 itself.

    Fields:
      channels: numbers of a sample. rate: samples a second. seconds: length, rounded up to whole
        patches.
      patch: samples of one token.
      mean, std: one number for all channels, or one per channel.
      allow_missing: whether samples may be NaN.

    >>> import numpy as np
    >>> series = TimeSeries(channels=2, rate=10.0, seconds=0.6, patch=3)
    >>> piece = series.encode(np.arange(12.0).reshape(6, 2))
    >>> series.spec("series").grid, piece.values_LP.shape, series.decode(piece).shape
    ((2, 1, 1), (2, 6), (6, 2))
    """

    channels: ranges.Count = 1
    rate: ranges.Positive = 100.0
    seconds: ranges.Positive = 10.0
    patch: ranges.Count = 16
    mean: tuple[ranges.Finite, ...] = (0.0,)
    std: tuple[ranges.Positive, ...] = (1.0,)
    allow_missing: bool = False

    def __post_init__(self):
        ranges.check(self)
        given.check_affine("TimeSeries", self.channels, mean=self.mean, std=self.std)

    def spec(self, name: str) -> TokenSpec:
        """One continuous grid stream over time."""
        return TokenSpec(
            name=name,
            kind="grid",
            max_tokens=self._num_tokens,
            width=self._width,
            grid=(self._num_tokens, 1, 1),
        )

    def encode(self, value: Any) -> Piece | None:
        """Values float32 (tokens, patch * channels), twice that with validity; position (t, 0, 0).

        Args:
          value: numbers (T, channels), or (T,) of one channel; None = absent.

        Raises ValueError for other shapes, no sample at all unless samples may be missing,
        infinity, and NaN unless samples may be missing.
        """
        if value is None:
            return None
        samples_TC = self._checked(value)
        total = max(1, -(-len(samples_TC) // self.patch))
        length = min(total, self._num_tokens)
        samples_TC = samples_TC[: length * self.patch]
        is_there = ~np.isnan(samples_TC)
        if not self.allow_missing and not is_there.all():
            raise ValueError(
                "TimeSeries: samples hold NaN; repair or leave out this example, or say"
                " allow_missing=True."
            )
        filled = np.where(is_there, samples_TC, np.asarray(self.mean, np.float32))
        made = given.centred("TimeSeries", filled, self.mean, self.std)
        if self.allow_missing:
            made = np.stack([made, is_there], axis=-1, dtype=np.float32)
        rest = length * self.patch - len(made)
        if rest:
            last = made[-1:] * (not self.allow_missing) if len(made) else 0
            made = np.concatenate([made, np.broadcast_to(last, (rest, *made.shape[1:]))])
        values_LP = made.reshape(length, -1).astype(np.float32, copy=False)
        return Piece(positions((length, 1, 1)), values_LP=values_LP, num_cut=total - length)

    def measure(self, value: Any) -> dict[str, float]:
        """Its length in seconds."""
        return {"seconds": len(self._checked(value)) / self.rate}

    def adapted(self, value: Any) -> str:
        """How many samples are cut."""
        count, room = len(self._checked(value)), self._num_tokens * self.patch
        return f"{count} samples are cut to {room}" if count > room else ""

    def decode(self, piece: Piece) -> np.ndarray:
        """Samples float32 (tokens * patch, channels), NaN where they are missing."""
        values = None if piece.values_LP is None else np.asarray(piece.values_LP, np.float32)
        if values is None or values.ndim != 2 or values.shape[1] != self._width:
            raise ValueError(
                f"TimeSeries: decode needs values (tokens, {self._width}); this piece is not of a"
                f" TimeSeries with channels={self.channels}, patch={self.patch},"
                f" allow_missing={self.allow_missing}."
            )
        if not self.allow_missing:
            return given.restored(values.reshape(-1, self.channels), self.mean, self.std)
        pairs = values.reshape(-1, self.channels, 2)
        samples = given.restored(pairs[:, :, 0], self.mean, self.std)
        return np.where(pairs[:, :, 1] >= 0.5, samples, np.float32(np.nan))

    def read(self, item: str) -> np.ndarray:
        """(T, channels) of an .npy file, or of a .csv file with a row a sample.

        Raises ValueError if it cannot be read.
        """
        return given.read_numbers("TimeSeries", item)

    def write(self, value: Any, stem: str | Path) -> Path:
        """An .npy file of float32 (T, channels)."""
        return given.write_array(value, stem)

    @property
    def _num_tokens(self) -> int:
        return max(1, math.ceil(round(self.seconds * self.rate) / self.patch))

    @property
    def _width(self) -> int:
        return self.patch * self.channels * (2 if self.allow_missing else 1)

    def _checked(self, value: Any) -> np.ndarray:
        """Float32 (T, channels), NaN where missing."""
        rule = "(T,), or (T, 1)" if self.channels == 1 else f"(T, {self.channels})"
        samples = given.array("TimeSeries", value, rule)
        if samples.ndim == 1 and self.channels == 1:
            samples = samples[:, None]
        if samples.shape == (0,):
            samples = samples.reshape(0, self.channels)
        if samples.ndim != 2 or samples.shape[1] != self.channels:
            raise ValueError(f"TimeSeries: an array of shape {samples.shape}; give numbers {rule}.")
        if not len(samples) and not self.allow_missing:
            raise ValueError(
                "TimeSeries: no sample; give one at least, or None, or say allow_missing=True."
            )
        with np.errstate(over="ignore"):
            samples = samples.astype(np.float32)
        if np.isinf(samples).any():
            raise ValueError("TimeSeries: samples hold infinity; repair this example.")
        return samples
