"""Inertial sensors: acceleration and angular velocity as patches in time."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar

import numpy as np

from mmjax.config import ranges
from mmjax.modalities import given
from mmjax.modalities.modality import Modality
from mmjax.modalities.time_series import TimeSeries
from mmjax.typing import Piece, TokenSpec

__all__ = ["Imu"]

KEYS = {"acceleration", "angular_velocity", "rate"}
RULE = "(T, 6), or {'acceleration': (T, 3), 'angular_velocity': (T, 3), 'rate': Hz}"
Hertz = Annotated[float, ranges.Range(1e-3, 1e6)]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Imu(Modality):
    """One token per `patch` samples of ax, ay, az in m/s2 and gx, gy, gz in rad/s, each scaled.

    A recording of another rate is resampled: to a higher one linearly, to a lower one by the mean
    over each new sample, so that shaking does not turn up as slow movement. With `remove_gravity`
    the mean acceleration of the `gravity_seconds` around a sample is taken off it, and `decode`
    does not give it back. Longer and shorter recordings are as in `TimeSeries`.

    Fields:
      rate: samples a second of the tokens, and of recordings that state none.
      seconds: length, rounded up to whole patches. patch: samples of one token.
      acceleration_scale: m/s2 that become 1. angular_scale: rad/s that become 1.

    >>> import numpy as np
    >>> imu = Imu(rate=50.0, seconds=1.0, patch=10)
    >>> still = {"acceleration": np.full((100, 3), 9.80665), "angular_velocity": np.zeros((100, 3))}
    >>> piece = imu.encode({**still, "rate": 200.0})
    >>> piece.values_LP.shape, piece.values_LP[0, :6].tolist(), imu.decode(piece).shape
    ((3, 60), [1.0, 1.0, 1.0, 0.0, 0.0, 0.0], (30, 6))
    """

    rate: Hertz = 100.0
    seconds: ranges.Positive = 10.0
    patch: ranges.Count = 20
    acceleration_scale: ranges.Positive = 9.80665
    angular_scale: ranges.Positive = 1.0
    remove_gravity: bool = False
    gravity_seconds: ranges.Positive = 1.0
    is_finite: ClassVar[bool] = True

    def __post_init__(self):
        ranges.check(self)

    def spec(self, name: str) -> TokenSpec:
        """One continuous grid stream over time."""
        return self._series.spec(name)

    def encode(self, value: Any) -> Piece | None:
        """Values float32 (tokens, patch * 6); position (t, 0, 0).

        Args:
          value: numbers (T, 6) at `rate`, or {"acceleration": (T, 3), "angular_velocity": (T, 3)}
            and, if it is another one, "rate" in Hz; None = absent.

        Raises ValueError for other keys and shapes, no sample at all, rates outside 0.001..1e6, NaN
        and infinity.
        """
        if value is None:
            return None
        samples_TC, rate = self._checked(value)
        total = max(1, round(len(samples_TC) * self.rate / rate))
        length = min(total, self._series.spec("").max_tokens * self.patch)
        made = _resampled(samples_TC, rate / self.rate, length)
        if self.remove_gravity:
            made[:, :3] -= _moving_mean(made[:, :3], round(self.gravity_seconds * self.rate))
        piece = self._series.encode(made)
        assert piece is not None
        return piece._replace(num_cut=-(-total // self.patch) - piece.length)

    def measure(self, value: Any) -> dict[str, float]:
        """Its length in seconds."""
        samples_TC, rate = self._checked(value)
        return {"seconds": len(samples_TC) / rate}

    def adapted(self, value: Any) -> str:
        """Whether it is resampled, and what is cut."""
        samples_TC, rate = self._checked(value)
        room = self._series.spec("").max_tokens * self.patch / self.rate
        seconds = len(samples_TC) / rate
        parts = [f"{rate:g} Hz are resampled to {self.rate:g} Hz"] * (rate != self.rate)
        parts += [f"{seconds:.2f} s are cut to {room:.2f} s"] * (seconds > room)
        return "; ".join(parts)

    def decode(self, piece: Piece) -> np.ndarray:
        """Float32 (tokens * patch, 6) at `rate`, in m/s2 and rad/s."""
        return self._series.decode(piece)

    def read(self, item: str) -> np.ndarray:
        """(T, 6) of an .npy file, or of a .csv file with a row a sample.

        Raises ValueError if it cannot be read.
        """
        return given.read_numbers("Imu", item)

    def write(self, value: Any, stem: str | Path) -> Path:
        """An .npy file of float32 (T, 6)."""
        return given.write_array(value, stem)

    @functools.cached_property
    def _series(self) -> TimeSeries:
        scales = (self.acceleration_scale,) * 3 + (self.angular_scale,) * 3
        return TimeSeries(
            channels=6, rate=self.rate, seconds=self.seconds, patch=self.patch, std=scales
        )

    def _checked(self, value: Any) -> tuple[np.ndarray, float]:
        """Float64 (T, 6) and its rate in Hz."""
        rate: float | None = self.rate
        if isinstance(value, Mapping):
            if set(value) - KEYS or not KEYS - {"rate"} <= set(value):
                raise ValueError(f"Imu: a dict of {', '.join(map(str, value))}; give {RULE}.")
            rate = given.number(value.get("rate", self.rate))
            parts = [
                given.array("Imu", value[k], RULE) for k in ("acceleration", "angular_velocity")
            ]
            shapes = [part.shape for part in parts]
            if shapes[0] != shapes[1] or shapes[0][1:] != (3,):
                raise ValueError(f"Imu: arrays of shapes {shapes[0]} and {shapes[1]}; give {RULE}.")
            value = np.concatenate(parts, axis=1)
        samples = given.array("Imu", value, RULE)
        if samples.ndim != 2 or samples.shape[1] != 6:
            raise ValueError(f"Imu: an array of shape {samples.shape}; give {RULE}.")
        if not len(samples):
            raise ValueError("Imu: no sample; give one at least, or None.")
        if rate is None or not 1e-3 <= rate <= 1e6:
            raise ValueError(f"Imu: rate={rate}; give samples a second, 0.001..1e6.")
        given.centred("Imu", given.finite("Imu", samples), (0.0,), self._series.std)
        return samples.astype(np.float64), rate


def _resampled(samples_TC: np.ndarray, step: float, length: int) -> np.ndarray:
    """The first `length` samples that are `step` of the old ones apart; a copy."""
    if step == 1:
        return samples_TC[:length].copy()
    count = len(samples_TC)
    if step < 1:
        at = ((np.arange(length) + 0.5) * step - 0.5).clip(0, count - 1)
        return np.stack([np.interp(at, np.arange(count), x) for x in samples_TC.T], axis=1)
    return _means(samples_TC, np.minimum(np.arange(length + 1) * step, count))


def _means(samples_TC: np.ndarray, edges: np.ndarray) -> np.ndarray:
    """Means between ascending edges, 0..T, of which parts of samples count as parts."""
    sums = np.concatenate([np.zeros((1, samples_TC.shape[1])), np.cumsum(samples_TC, axis=0)])
    at = np.stack([np.interp(edges, np.arange(len(sums)), x) for x in sums.T], axis=1)
    return np.diff(at, axis=0) / np.diff(edges)[:, None]


def _moving_mean(samples_TC: np.ndarray, width: int) -> np.ndarray:
    """Means over `width` samples around each; over fewer at the ends."""
    count = len(samples_TC)
    sums = np.concatenate([np.zeros((1, samples_TC.shape[1])), np.cumsum(samples_TC, axis=0)])
    first = np.maximum(np.arange(count) - width // 2, 0)
    last = np.minimum(np.arange(count) + width // 2 + 1, count)
    return (sums[last] - sums[first]) / (last - first)[:, None]
