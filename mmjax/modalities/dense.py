"""Depth and surface normals, as patches of numbers."""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import numpy as np

from mmjax.config import ranges
from mmjax.modalities import given, maps
from mmjax.modalities.image import Image
from mmjax.modalities.modality import Modality
from mmjax.typing import Piece, TokenSpec

__all__ = ["Depth", "Normals"]

REMEDY = "set missing=True if they stand for no measurement, or repair this example"
NO_VECTOR = 0.5  # decoded vectors that are shorter have no direction


@dataclasses.dataclass(frozen=True, kw_only=True)
class Depth(Modality):
    """Distances in metres: one token a patch, of numbers in -1..1 by row, column, channel.

    `low` becomes -1 and `high` 1; between them the number grows evenly with the distance
    (`linear`), its logarithm (`log`), or minus its inverse (`inverse`, which is disparity). What
    lies beyond is clipped to them. Decoded distances are exact to 1e-6 of `high - low`, of the
    distance, or (`inverse`) of the distance times the distance over `low`.

    With `missing`, pixels that are 0, NaN or infinite were not measured: a second channel of the
    patch is 1 where a pixel was measured and -1 where not, and `decode` gives NaN there. Without,
    NaN and infinity are errors, and so are zeros where `low` is above 0.

    Maps of another size are cut and scaled as `Image` does it, by nearest pixels.

    Fields:
      size: (height, width) in pixels. patch: side of a patch; divides both.
      resize: "stretch" or "crop", as for `Image`.
      mapping, low, high: see above; metres. `low` is above 0 for "log" and "inverse".
      missing: whether pixels may lack a measurement.
      unit: metres of a step of uint16 pixels, in PNG files and arrays.
      max_pixels: largest height times width of a picture file; a larger one counts as bad.

    >>> import numpy as np
    >>> depth = Depth(size=(4, 4), patch=2, mapping="linear", low=0, high=4, missing=True)
    >>> piece = depth.encode(np.array([[1.0, np.nan], [3.0, 0.0]]))
    >>> piece.values_LP.shape, depth.decode(piece)[::2, ::2].tolist()
    ((4, 8), [[1.0, nan], [3.0, nan]])
    """

    size: tuple[ranges.Count, ranges.Count] = (224, 224)
    patch: ranges.Count = 16
    resize: str = "stretch"
    mapping: Literal["linear", "log", "inverse"] = "log"
    low: ranges.NonNegative = 0.1
    high: ranges.Positive = 100.0
    missing: bool = False
    unit: ranges.Positive = 0.001
    max_pixels: Annotated[int, ranges.Range(1, 2**50)] = dataclasses.field(
        default=maps.MAX_PIXELS, metadata={"identity": "none"}
    )

    def __post_init__(self):
        ranges.check(self)
        maps.as_image("Depth", self.size, self.patch, self.resize, 1)
        if self.mapping not in ("linear", "log", "inverse"):
            raise ValueError(
                f"Depth: mapping={self.mapping!r} is no rule; use 'linear', 'log' or 'inverse'."
            )
        if not self.low < self.high or (self.low == 0 and self.mapping != "linear"):
            raise ValueError(
                f"Depth: low={self.low}, high={self.high}, mapping={self.mapping!r}; low must be"
                " below high, and above 0 unless the mapping is 'linear'."
            )

    def spec(self, name: str) -> TokenSpec:
        """One continuous grid stream, of patch * patch numbers, or twice as many with `missing`."""
        return self._image.spec(name)

    def encode(self, value: Any) -> Piece | None:
        """Patches float32 (rows * columns, patch * patch * channels); position (0, row, column).

        Args:
          value: (H, W) or (H, W, 1): floats in metres, or uint16 in steps of `unit`; or the bytes
            of a PNG file of 16 bits or of an .npy file; None = absent.

        Raises ValueError for other shapes and types, distances below 0, and pixels without a
        measurement unless `missing`; its subclass Unreadable for bytes that are no map.
        """
        if value is None:
            return None
        metres_HW = maps.nearest(self._metres(value), self._image)
        there_HW = np.isfinite(metres_HW)
        share_HW = self._share(np.where(there_HW, metres_HW, self.high))
        channels = [share_HW]
        if self.missing:
            channels = [np.where(there_HW, share_HW, 0.5), there_HW]
        return self._image.encode(np.stack(channels, 2).astype(np.float32))

    def given(self, value: Any) -> np.ndarray | None:
        """Metres float32 (H, W), NaN where there is no measurement."""
        return None if value is None else self._metres(value)

    def adapted(self, value: Any) -> str:
        """The sizes before and after, and how many pixels are clipped."""
        metres_HW = self._metres(value)
        beyond = int(((metres_HW < self.low) | (metres_HW > self.high)).sum())
        clipped = f"{beyond} pixels are clipped to {self.low:g}..{self.high:g} m" if beyond else ""
        return maps.changes(self._image, metres_HW.shape, clipped)

    def decode(self, piece: Piece) -> np.ndarray:
        """Metres float32 (height, width) in low..high, NaN where there is no measurement."""
        shares_HWC = maps.shares("Depth", self._image, piece)
        share_HW = shares_HWC[:, :, 0].astype(np.float64)
        low, high = self.low, self.high
        if self.mapping == "linear":
            metres_HW = low + share_HW * (high - low)
        elif self.mapping == "log":
            metres_HW = low * (high / low) ** share_HW
        else:
            metres_HW = 1 / (1 / low + share_HW * (1 / high - 1 / low))
        metres_HW = metres_HW.clip(low, high).astype(np.float32)
        if self.missing:
            metres_HW[shares_HWC[:, :, 1] < 0.5] = np.nan
        return metres_HW

    def read(self, item: str) -> np.ndarray:
        """Metres float32 (H, W) of a PNG file of 16 bits or an .npy file. Raises ValueError."""
        return self._metres(maps.read("Depth", item))

    def write(self, value: Any, stem: str | Path) -> Path:
        """An .npy file of metres float32 (H, W)."""
        return given.write_array(self._metres(value), stem)

    def _share(self, metres_HW: np.ndarray) -> np.ndarray:
        """Where distances lie between `low` and `high`, 0..1."""
        low, high = self.low, self.high
        metres_HW = metres_HW.astype(np.float64).clip(low, high)
        if self.mapping == "linear":
            return (metres_HW - low) / (high - low)
        if self.mapping == "log":
            return np.log(metres_HW / low) / np.log(high / low)
        return (1 / low - 1 / metres_HW) / (1 / low - 1 / high)

    def _metres(self, value: Any) -> np.ndarray:
        """Metres float32 (H, W), NaN where there is no measurement. Raises ValueError."""
        if isinstance(value, bytes):
            value = maps.stored("Depth", value, self.max_pixels)
        metres_HW = maps.floats("Depth", value, 1)[:, :, 0]
        kind = np.asarray(value).dtype
        if kind == np.uint16:
            metres_HW *= self.unit
        elif kind.kind != "f":
            raise ValueError(
                f"Depth: pixels of type {kind}; give floats in metres, or uint16 in steps of"
                f" unit={self.unit:g} m."
            )
        if (metres_HW < 0).any():  # minus infinity too
            raise ValueError(
                f"Depth: distances down to {np.nanmin(metres_HW):g} m; give 0 or more."
            )
        if self.missing:
            metres_HW[(metres_HW == 0) | ~np.isfinite(metres_HW)] = np.nan
            return metres_HW
        maps.check_finite("Depth", metres_HW, REMEDY)
        if self.low > 0 and (metres_HW == 0).any():
            raise ValueError(f"Depth: {int((metres_HW == 0).sum())} distances are 0; {REMEDY}.")
        return metres_HW

    @functools.cached_property
    def _image(self) -> Image:
        channels = 2 if self.missing else 1
        return maps.as_image("Depth", self.size, self.patch, self.resize, channels)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Normals(Modality):
    """Directions of surfaces: one token a patch, of x, y, z in -1..1 by row, column, channel.

    Vectors have length 1, or 0 where there is no surface. Encoding makes the length exact, decoding
    does so again: vectors shorter than 0.5 become 0 0 0. Pixels of 8 bits, as in files, are
    128 + 127.5 times a coordinate; black and middle grey (127 or 128) are no surface.

    Maps of another size are cut and scaled as `Image` does it, by nearest pixels; vectors stay.

    Fields:
      size: (height, width) in pixels. patch: side of a patch; divides both.
      resize: "stretch" or "crop", as for `Image`.
      tolerance: by how much a length may differ from 1; that of 8 bits differs by up to 0.007.
      max_pixels: largest height times width of a picture file; a larger one counts as bad.

    >>> import numpy as np
    >>> normals = Normals(size=(2, 2), patch=2)
    >>> up_HWC = np.zeros((2, 2, 3))
    >>> up_HWC[0] = 0, 0, 1
    >>> normals.decode(normals.encode(up_HWC))[:, 0].tolist()
    [[0.0, 0.0, 1.0], [0.0, 0.0, 0.0]]
    """

    size: tuple[ranges.Count, ranges.Count] = (224, 224)
    patch: ranges.Count = 16
    resize: str = "stretch"
    tolerance: Annotated[float, ranges.Range(0, 0.5)] = 0.02
    max_pixels: Annotated[int, ranges.Range(1, 2**50)] = dataclasses.field(
        default=maps.MAX_PIXELS, metadata={"identity": "none"}
    )
    is_finite: ClassVar[bool] = True

    def __post_init__(self):
        ranges.check(self)
        maps.as_image("Normals", self.size, self.patch, self.resize, 3)

    def spec(self, name: str) -> TokenSpec:
        """One continuous grid stream, of patch * patch * 3 numbers."""
        return self._image.spec(name)

    def encode(self, value: Any) -> Piece | None:
        """Patches float32 (rows * columns, patch * patch * 3); position (0, row, column).

        Args:
          value: (H, W, 3), floats or uint8; or the bytes of a picture or of an .npy file; None =
            absent.

        Raises ValueError for other shapes and types, NaN, infinity, and lengths that are neither 0
        nor 1; its subclass Unreadable for bytes that are no map.
        """
        if value is None:
            return None
        unit_HWC = maps.nearest(self._unit(value), self._image)
        return self._image.encode((unit_HWC + 1) / 2)

    def given(self, value: Any) -> np.ndarray | None:
        """Vectors float32 (H, W, 3) of length 1 or 0."""
        return None if value is None else self._unit(value)

    def adapted(self, value: Any) -> str:
        """The sizes before and after."""
        return maps.changes(self._image, self._unit(value).shape)

    def decode(self, piece: Piece) -> np.ndarray:
        """Vectors float32 (height, width, 3) of length 1 or 0."""
        vectors_HWC = 2 * maps.shares("Normals", self._image, piece) - 1
        length_HW1 = np.linalg.norm(vectors_HWC, axis=2, keepdims=True)
        return np.where(length_HW1 < NO_VECTOR, 0, vectors_HWC / np.maximum(length_HW1, NO_VECTOR))

    def read(self, item: str) -> np.ndarray:
        """Vectors float32 (H, W, 3) of a picture or an .npy file. Raises ValueError."""
        return self._unit(maps.read("Normals", item))

    def write(self, value: Any, stem: str | Path) -> Path:
        """An .npy file of vectors float32 (H, W, 3)."""
        return given.write_array(self._unit(value), stem)

    def _unit(self, value: Any) -> np.ndarray:
        """Vectors float32 (H, W, 3) of length 1 or 0. Raises ValueError."""
        if isinstance(value, bytes):
            value = maps.stored("Normals", value, self.max_pixels)
        vectors_HWC, kind = maps.floats("Normals", value, 3), np.asarray(value).dtype
        if kind == np.uint8:
            is_grey = ((vectors_HWC == 127) | (vectors_HWC == 128)).all(axis=2)
            is_none = is_grey | (vectors_HWC == 0).all(axis=2)
            vectors_HWC = np.where(is_none[:, :, None], 0, vectors_HWC / 127.5 - 1)
        elif kind.kind != "f":
            raise ValueError(f"Normals: pixels of type {kind}; give floats in -1..1, or uint8.")
        maps.check_finite("Normals", vectors_HWC)
        length_HW1 = np.linalg.norm(vectors_HWC, axis=2, keepdims=True)
        is_wrong = (length_HW1 > 0) & (np.abs(length_HW1 - 1) > self.tolerance)
        if is_wrong.any():
            wrong = length_HW1[is_wrong]
            raise ValueError(
                f"Normals: {len(wrong)} vectors are {wrong.min():.3g}..{wrong.max():.3g} long, not"
                f" 1 within tolerance={self.tolerance:g}; divide them by their lengths, and give"
                " 0 0 0 where there is no surface."
            )
        return (vectors_HWC / np.where(length_HW1 > 0, length_HW1, 1)).astype(np.float32)

    @functools.cached_property
    def _image(self) -> Image:
        return maps.as_image("Normals", self.size, self.patch, self.resize, 3)
