"""What a sensor measured in one band or several: temperatures, reflectances, polarisation."""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path
from typing import Annotated, Any

import numpy as np

from mmjax.config import ranges
from mmjax.modalities import given, maps
from mmjax.modalities.image import Image
from mmjax.modalities.modality import Modality
from mmjax.typing import Piece, TokenSpec

__all__ = ["Bands"]

REMEDY = "set missing=True if they stand for no measurement, or repair this example"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Bands(Modality):
    """Bands of a sensor: one token a patch, of numbers in -1..1 by row, column, band.

    In each band `low` becomes -1 and `high` 1, and what lies beyond is clipped to them: degrees of
    a thermal camera, reflectances of the bands of a satellite. Pictures in 0..1 are an `Image`.

    With `missing`, pixels that are NaN or infinite in any band were not measured: a further channel
    of the patch is 1 where a pixel was measured and -1 where not, and `decode` gives NaN there.
    Without, they are errors.

    Maps of another size are cut and scaled as `Image` does it, by nearest pixels.

    Fields:
      size: (height, width) in pixels. patch: side of a patch; divides both.
      bands: how many. low, high: one number for all bands, or one a band; in the unit of the value.
      resize: "stretch" or "crop", as for `Image`.
      missing: whether pixels may lack a measurement.
      max_pixels: largest height times width of a picture file; a larger one counts as bad.

    >>> import numpy as np
    >>> thermal = Bands(size=(4, 4), patch=2, low=(-20.0,), high=(60.0,))
    >>> piece = thermal.encode(np.full((4, 4), 20.0))
    >>> piece.values_LP.shape, float(piece.values_LP[0, 0]), float(thermal.decode(piece)[0, 0, 0])
    ((4, 4), 0.0, 20.0)
    """

    size: tuple[ranges.Count, ranges.Count] = (224, 224)
    patch: ranges.Count = 16
    bands: ranges.Count = 1
    low: tuple[ranges.Finite, ...] = (0.0,)
    high: tuple[ranges.Finite, ...] = (1.0,)
    resize: str = "stretch"
    missing: bool = False
    max_pixels: Annotated[int, ranges.Range(1, 2**50)] = dataclasses.field(
        default=maps.MAX_PIXELS, metadata={"identity": "none"}
    )

    def __post_init__(self):
        ranges.check(self)
        maps.as_image("Bands", self.size, self.patch, self.resize, self.bands)
        given.check_affine("Bands", self.bands, low=self.low, high=self.high)
        low, high = (np.broadcast_to(x, self.bands) for x in (self.low, self.high))
        if not (low < high).all():
            raise ValueError(
                f"Bands: low={self.low}, high={self.high}; low must be below high in each band."
            )

    def spec(self, name: str) -> TokenSpec:
        """One continuous grid stream, of patch * patch numbers a band, and with `missing` as many
        more."""
        return self._image.spec(name)

    def encode(self, value: Any) -> Piece | None:
        """Patches float32 (rows * columns, patch * patch * channels); position (0, row, column).

        Args:
          value: (H, W, bands), or (H, W) of one band, of any numbers; or the bytes of an .npy file,
            or of a picture of one band of 8 or 16 bits or floats; None = absent.

        Raises ValueError for other shapes and types, and for pixels without a measurement unless
        `missing`; its subclass Unreadable for bytes that are no map.
        """
        if value is None:
            return None
        bands_HWC = maps.nearest(self._bands(value), self._image).astype(np.float64)
        low, high = (np.asarray(x, np.float64) for x in (self.low, self.high))
        there_HW1 = np.isfinite(bands_HWC).all(axis=2, keepdims=True)
        share_HWC = np.where(there_HW1, (bands_HWC - low) / (high - low), 0.5).clip(0, 1)
        if self.missing:
            share_HWC = np.concatenate([share_HWC, there_HW1], axis=2)
        return self._image.encode(share_HWC.astype(np.float32))

    def given(self, value: Any) -> np.ndarray | None:
        """Numbers float32 (H, W, bands), NaN where there is no measurement."""
        return None if value is None else self._bands(value)

    def adapted(self, value: Any) -> str:
        """The sizes before and after, and how many numbers are clipped."""
        bands_HWC = self._bands(value)
        low, high = (np.asarray(x, np.float32) for x in (self.low, self.high))
        beyond = int(((bands_HWC < low) | (bands_HWC > high)).sum())
        clipped = f"{beyond} numbers are clipped to their range" if beyond else ""
        return maps.changes(self._image, bands_HWC.shape, clipped)

    def decode(self, piece: Piece) -> np.ndarray:
        """Numbers float32 (height, width, bands) in low..high, NaN where there is none."""
        shares_HWC = maps.shares("Bands", self._image, piece)
        low, high = (np.asarray(x, np.float64) for x in (self.low, self.high))
        bands_HWC = low + shares_HWC[:, :, : self.bands].astype(np.float64) * (high - low)
        bands_HWC = bands_HWC.astype(np.float32)
        if self.missing:
            bands_HWC[shares_HWC[:, :, -1] < 0.5] = np.nan
        return bands_HWC

    def read(self, item: str) -> np.ndarray:
        """Numbers float32 (H, W, bands) of an .npy file or a picture. Raises ValueError."""
        return self._bands(maps.read("Bands", item))

    def write(self, value: Any, stem: str | Path) -> Path:
        """An .npy file of numbers float32 (H, W, bands)."""
        return given.write_array(self._bands(value), stem)

    def _bands(self, value: Any) -> np.ndarray:
        """Numbers float32 (H, W, bands), NaN where there is no measurement. Raises ValueError."""
        if isinstance(value, bytes):
            value = maps.stored("Bands", value, self.max_pixels)
        bands_HWC = maps.floats("Bands", value, self.bands)
        if not self.missing:
            maps.check_finite("Bands", bands_HWC, REMEDY)
        bands_HWC[~np.isfinite(bands_HWC).all(axis=2)] = np.nan
        return bands_HWC

    @functools.cached_property
    def _image(self) -> Image:
        channels = self.bands + self.missing
        return maps.as_image("Bands", self.size, self.patch, self.resize, channels)
