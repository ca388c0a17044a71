"""Features of other networks as continuous tokens: of patches or words, and of the whole.

In 4M-21 (Bachmann et al. 2024) such are maps of CLIP, DINOv2 and ImageBind, their global vectors,
and encodings of T5, there mostly as learned ids: `Codes(base=Features(...))` are those.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from mmjax.config import ranges
from mmjax.modalities import given
from mmjax.modalities.modality import Modality
from mmjax.typing import Piece, TokenSpec, positions

__all__ = ["Features", "Vector"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Features(Modality):
    """A token per vector of a map or a list of features: (x - mean) / std by channel.

    A map has one size, that of `grid`. A list may be shorter than `max_tokens`; of a longer one the
    end is cut, and counted.

    Fields:
      channels: numbers of a vector.
      grid: (rows, columns) of a map; None = a list.
      max_tokens: largest length of a list.
      mean, std: one number for all channels, or one per channel.

    >>> import numpy as np
    >>> features = Features(channels=8, grid=(2, 3))
    >>> piece = features.encode(np.ones((2, 3, 8)))
    >>> piece.values_LP.shape, features.decode(piece).shape
    ((6, 8), (2, 3, 8))
    """

    channels: ranges.Count = 768
    grid: tuple[ranges.Count, ranges.Count] | None = None
    max_tokens: ranges.Count = 256
    mean: tuple[ranges.Finite, ...] = (0.0,)
    std: tuple[ranges.Positive, ...] = (1.0,)
    is_finite: ClassVar[bool] = True

    def __post_init__(self):
        ranges.check(self)
        given.check_affine("Features", self.channels, mean=self.mean, std=self.std)

    def spec(self, name: str) -> TokenSpec:
        """One continuous grid stream; that of a list is one column."""
        grid = self._grid
        num = int(np.prod(grid))
        return TokenSpec(name=name, kind="grid", max_tokens=num, width=self.channels, grid=grid)

    def encode(self, value: Any) -> Piece | None:
        """Values float32 (tokens, channels); position (0, row, column), or (t, 0, 0) in a list.

        Args:
          value: numbers (rows, columns, channels) or (tokens, channels); None = absent.

        Raises ValueError for other shapes, no vector at all, NaN and infinity.
        """
        if value is None:
            return None
        features = self._checked(value)
        kept = features[: int(np.prod(self._grid))]
        shape = self._grid if self.grid else (len(kept), 1, 1)
        values_LP = given.centred("Features", kept, self.mean, self.std)
        return Piece(positions(shape), values_LP=values_LP, num_cut=len(features) - len(kept))

    def adapted(self, value: Any) -> str:
        """How many vectors are cut."""
        count, room = len(self._checked(value)), int(np.prod(self._grid))
        return f"{count} vectors are cut to {room}" if count > room else ""

    def decode(self, piece: Piece) -> np.ndarray:
        """Float32 (rows, columns, channels), or (tokens, channels) of a list."""
        values = _values("Features", piece, self.channels)
        if self.grid and len(values) != int(np.prod(self.grid)):
            raise ValueError(
                f"Features: {len(values)} tokens are no map of grid={self.grid}; give one of them"
                " for each place."
            )
        shape = (*self.grid, self.channels) if self.grid else values.shape
        return given.restored(values, self.mean, self.std).reshape(shape)

    def read(self, item: str) -> np.ndarray:
        """The array of an .npy file. Raises ValueError if it cannot be read."""
        return given.read_array("Features", item)

    def write(self, value: Any, stem: str | Path) -> Path:
        """An .npy file of float32."""
        return given.write_array(value, stem)

    @property
    def _grid(self) -> tuple[int, int, int]:
        return (1, *self.grid) if self.grid else (self.max_tokens, 1, 1)

    def _checked(self, value: Any) -> np.ndarray:
        """Float32 (tokens, channels)."""
        shape = (*self.grid, self.channels) if self.grid else ("tokens", self.channels)
        rule = "(" + ", ".join(map(str, shape)) + ")"
        features = given.array("Features", value, rule)
        if self.grid and features.shape in (shape, (int(np.prod(self.grid)), self.channels)):
            features = features.reshape(-1, self.channels)
        elif self.grid or features.ndim != 2 or features.shape[1] != self.channels:
            raise ValueError(f"Features: an array of shape {features.shape}; give numbers {rule}.")
        if not len(features):
            raise ValueError("Features: no vector; give one at least, or None.")
        return given.finite("Features", features)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Vector(Modality):
    """One token: a vector that describes the whole, as (x - mean) / std by channel.

    Fields:
      channels: numbers of the vector.
      mean, std: one number for all channels, or one per channel.
      is_unit: whether vectors are scaled to length 1 first, for those that are compared by their
        cosine; zeros are refused then. `decode` gives length 1.

    >>> vector = Vector(channels=2, is_unit=True)
    >>> vector.encode([3.0, 4.0]).values_LP.tolist(), vector.spec("v").kind
    ([[0.6000000238418579, 0.800000011920929]], 'vector')
    """

    channels: ranges.Count = 768
    mean: tuple[ranges.Finite, ...] = (0.0,)
    std: tuple[ranges.Positive, ...] = (1.0,)
    is_unit: bool = False
    is_finite: ClassVar[bool] = True

    def __post_init__(self):
        ranges.check(self)
        given.check_affine("Vector", self.channels, mean=self.mean, std=self.std)

    def spec(self, name: str) -> TokenSpec:
        """One continuous token of a vector stream."""
        return TokenSpec(name=name, kind="vector", max_tokens=1, width=self.channels)

    def encode(self, value: Any) -> Piece | None:
        """Values float32 (1, channels); position (0, 0, 0).

        Args:
          value: numbers (channels,) or (1, channels); None = absent.

        Raises ValueError for other shapes, NaN and infinity, and zeros that have no direction.
        """
        if value is None:
            return None
        rule = f"({self.channels},)"
        vector = given.array("Vector", value, rule)
        if vector.shape not in ((self.channels,), (1, self.channels)):
            raise ValueError(f"Vector: an array of shape {vector.shape}; give numbers {rule}.")
        vector = given.finite("Vector", vector).reshape(1, -1)
        if self.is_unit:
            if not vector.any():
                raise ValueError("Vector: zeros have no direction; give another, or None.")
            vector = _unit(vector)
        return Piece(positions(1), values_LP=given.centred("Vector", vector, self.mean, self.std))

    def decode(self, piece: Piece) -> np.ndarray:
        """Float32 (channels,)."""
        values = _values("Vector", piece, self.channels)
        if len(values) != 1:
            raise ValueError(f"Vector: {len(values)} tokens are no vector; give one.")
        vector = given.restored(values, self.mean, self.std)
        return (_unit(vector) if self.is_unit else vector)[0]

    def read(self, item: str) -> np.ndarray:
        """The array of an .npy file. Raises ValueError if it cannot be read."""
        return given.read_array("Vector", item)

    def write(self, value: Any, stem: str | Path) -> Path:
        """An .npy file of float32."""
        return given.write_array(value, stem)


def _values(who: str, piece: Piece, channels: int) -> np.ndarray:
    """Values (tokens, channels). Raises ValueError for a piece of another modality."""
    values = None if piece.values_LP is None else np.asarray(piece.values_LP)
    if values is None or values.ndim != 2 or values.shape[1] != channels:
        raise ValueError(
            f"{who}: decode needs values (tokens, {channels}); this piece is not of a {who} with"
            f" channels={channels}."
        )
    return values


def _unit(vector: np.ndarray) -> np.ndarray:
    """The vector with length 1, float32; zeros and what is not finite stay as they are."""
    with np.errstate(invalid="ignore"):
        length = np.linalg.norm(vector.astype(np.float64))  # float32 would overflow
        is_one = np.isfinite(length) and length > 0
        return (vector / length).astype(np.float32) if is_one else vector
