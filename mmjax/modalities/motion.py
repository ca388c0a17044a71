"""What moves: optical flow, and the frames of event cameras, as patches of numbers."""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path
from typing import ClassVar

import numpy as np

from mmjax.config import ranges
from mmjax.modalities import given, maps
from mmjax.modalities.image import Image
from mmjax.modalities.modality import Modality, Unreadable
from mmjax.typing import Piece, TokenSpec

__all__ = ["Events", "Flow"]

FLO = b"PIEH"  # 202021.25 as float32: the start of a .flo file (Baker et al. 2011)
UNKNOWN = 1e9  # numbers of a .flo file from which on a vector is unknown
REMEDY = "set missing=True if they stand for unknown vectors, or repair this example"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Flow(Modality):
    """Optical flow dx, dy in pixels a frame: one token a patch, of numbers by row, column, channel.

    `limit` pixels become 1, and what is faster is clipped to it, each coordinate by itself. Decoded
    vectors are exact to 1e-6 of `limit`. Maps of another size are cut and scaled as `Image` does
    it, by nearest pixels, and the vectors with them: all are in pixels of `size`.

    With `missing`, pixels with NaN or infinity are unknown: a third channel of the patch is 1 where
    a vector is known and -1 where not, and `decode` gives NaN there. Without, they are errors.

    Fields:
      size: (height, width) in pixels. patch: side of a patch; divides both.
      resize: "stretch" or "crop", as for `Image`.
      limit: pixels of `size` a frame. missing: whether vectors may be unknown.

    >>> import numpy as np
    >>> flow = Flow(size=(4, 4), patch=2, limit=8)
    >>> right_HWC = np.zeros((2, 2, 2))
    >>> right_HWC[:, :, 0] = 1.0
    >>> flow.decode(flow.encode(right_HWC))[0, 0].tolist()  # twice as many pixels, twice as fast
    [2.0, 0.0]
    """

    size: tuple[ranges.Count, ranges.Count] = (224, 224)
    patch: ranges.Count = 16
    resize: str = "stretch"
    limit: ranges.Positive = 32.0
    missing: bool = False

    def __post_init__(self):
        ranges.check(self)
        maps.as_image("Flow", self.size, self.patch, self.resize, 2)

    def spec(self, name: str) -> TokenSpec:
        """One continuous grid stream, of patch * patch * 2 numbers, or * 3 with `missing`."""
        return self._image.spec(name)

    def encode(self, value) -> Piece | None:
        """Patches float32 (rows * columns, patch * patch * channels); position (0, row, column).

        Args:
          value: floats (H, W, 2), or the bytes of a .flo or .npy file; None = absent.

        Raises ValueError for other shapes and types, and for NaN and infinity unless `missing`; its
        subclass Unreadable for bytes that are no flow.
        """
        if value is None:
            return None
        vectors_HWC = self._scaled(self._vectors(value))
        known_HW1 = np.isfinite(vectors_HWC).all(axis=2, keepdims=True)
        vectors_HWC = np.where(known_HW1, vectors_HWC, 0).clip(-self.limit, self.limit)
        shares_HWC = (vectors_HWC / self.limit + 1) / 2
        if self.missing:
            shares_HWC = np.concatenate([shares_HWC, known_HW1], axis=2)
        return self._image.encode(shares_HWC.astype(np.float32))

    def given(self, value) -> np.ndarray | None:
        """Vectors float32 (H, W, 2) in pixels of the value's size, NaN where unknown."""
        return None if value is None else self._vectors(value)

    def adapted(self, value) -> str:
        """The sizes before and after, and how many vectors are clipped."""
        vectors_HWC = self._vectors(value)
        fast = int((np.abs(self._scaled(vectors_HWC)) > self.limit).any(axis=2).sum())
        clipped = f"{fast} vectors are clipped to {self.limit:g} pixels a frame" if fast else ""
        return maps.changes(self._image, vectors_HWC.shape, clipped)

    def decode(self, piece: Piece) -> np.ndarray:
        """Vectors float32 (height, width, 2) in pixels of `size`, NaN where unknown."""
        shares_HWC = maps.shares("Flow", self._image, piece)
        vectors_HWC = (2 * shares_HWC[:, :, :2] - 1) * np.float32(self.limit)
        if self.missing:
            vectors_HWC[shares_HWC[:, :, 2] < 0.5] = np.nan
        return vectors_HWC

    def read(self, item: str) -> np.ndarray:
        """Vectors float32 (H, W, 2) of a .flo or .npy file. Raises ValueError."""
        return self._vectors(maps.read("Flow", item))

    def write(self, value, stem: str | Path) -> Path:
        """A .flo file (Middlebury), in which unknown vectors are 1e10."""
        vectors_HWC = self._vectors(value)
        rows, columns, _ = vectors_HWC.shape
        path = Path(f"{stem}.flo")
        sides = np.array([columns, rows], "<i4").tobytes()
        path.write_bytes(FLO + sides + np.nan_to_num(vectors_HWC, nan=1e10).astype("<f4").tobytes())
        return path

    def _scaled(self, vectors_HWC: np.ndarray) -> np.ndarray:
        """Vectors at the size of the modality, in its pixels."""
        if vectors_HWC.shape[:2] == self.size:
            return vectors_HWC
        down, right = maps.scale(self._image, self._image.box(*vectors_HWC.shape[:2]))
        return maps.nearest(vectors_HWC, self._image) * np.array([right, down], np.float32)

    def _vectors(self, value) -> np.ndarray:
        """Vectors float32 (H, W, 2), NaN where unknown. Raises ValueError."""
        if isinstance(value, bytes):
            is_flo = value.startswith(FLO)
            value = _flo(value) if is_flo else maps.stored_array("Flow", value, ".flo or .npy")
        vectors_HWC, kind = maps.floats("Flow", value, 2), np.asarray(value).dtype
        if kind.kind != "f":
            raise ValueError(f"Flow: vectors of type {kind}; give floats, in pixels a frame.")
        if self.missing:
            vectors_HWC[~np.isfinite(vectors_HWC).all(axis=2)] = np.nan
        else:
            maps.check_finite("Flow", vectors_HWC, REMEDY)
        return vectors_HWC

    @functools.cached_property
    def _image(self) -> Image:
        channels = 3 if self.missing else 2
        return maps.as_image("Flow", self.size, self.patch, self.resize, channels)


def _flo(content: bytes) -> np.ndarray:
    """The vectors of a .flo file, infinite where unknown. Raises Unreadable."""
    sides = np.frombuffer(content[4:12].ljust(8, b"\0"), "<i4").astype(np.int64)
    columns, rows = sides.tolist()
    if min(sides) < 1 or len(content) != 12 + 8 * rows * columns:
        raise Unreadable(
            "broken_flow",
            f"Flow: a .flo file of {columns} x {rows} vectors in {len(content)} bytes; give a whole"
            " one.",
        )
    vectors_HWC = np.frombuffer(content, "<f4", offset=12).reshape(rows, columns, 2)
    return np.where(np.abs(vectors_HWC) >= UNKNOWN, np.inf, vectors_HWC)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Events(Modality):
    """A frame of an event camera: one token a patch, of counts by row, column, polarity.

    A frame counts the events of each pixel over some time: negative ones first, then positive ones.
    Counts become log(1 + count) / log(1 + most), from -1 for none to 1 for `most`, to which larger
    ones are clipped. Decoded counts are exact.

    In frames of another size events move to the pixel that their own falls on, where they add up;
    with `resize="crop"` those beside the part that `Image` sees are left out.

    Fields:
      size: (height, width) in pixels. patch: side of a patch; divides both.
      resize: "stretch" or "crop", as for `Image`.
      most: largest count of a pixel and polarity.
      sensor: (height, width) of the camera, for lists of events; (0, 0) = `size`.

    >>> events = Events(size=(2, 2), patch=2)
    >>> list_N4 = [[1, 0, 0.1, 1], [1, 0, 0.2, 1], [0, 1, 0.3, -1]]  # x, y, t, polarity
    >>> events.decode(events.encode(list_N4)).tolist()
    [[[0, 0], [0, 2]], [[1, 0], [0, 0]]]
    """

    size: tuple[ranges.Count, ranges.Count] = (224, 224)
    patch: ranges.Count = 16
    resize: str = "stretch"
    most: ranges.Count = 31
    sensor: tuple[ranges.Natural, ranges.Natural] = (0, 0)
    is_finite: ClassVar[bool] = True

    def __post_init__(self):
        ranges.check(self)
        maps.as_image("Events", self.size, self.patch, self.resize, 2)
        if bool(self.sensor[0]) != bool(self.sensor[1]):
            raise ValueError(f"Events: sensor={self.sensor} must be (height, width), or (0, 0).")

    def spec(self, name: str) -> TokenSpec:
        """One continuous grid stream, of patch * patch * 2 numbers."""
        return self._image.spec(name)

    def encode(self, value) -> Piece | None:
        """Patches float32 (rows * columns, patch * patch * 2); position (0, row, column).

        Args:
          value: counts (H, W, 2) of negative and positive events; or events (N, 4) of any number,
            each x, y in pixels of `sensor`, time (not used), polarity (1, or 0 or -1); or the
            bytes of an .npy file of either; None = absent.

        Raises ValueError for other shapes and types, NaN, infinity, negative counts, fractions of
        events, and events outside of the sensor; its subclass Unreadable for bytes of no array.
        """
        if value is None:
            return None
        counts_HWC = self._scaled(self._counts(value)).clip(0, self.most)
        share_HWC = np.log1p(counts_HWC) / np.log1p(self.most)
        return self._image.encode(share_HWC.astype(np.float32))

    def given(self, value) -> np.ndarray | None:
        """Counts int64 (H, W, 2), of the value's size or that of the sensor."""
        return None if value is None else self._counts(value)

    def adapted(self, value) -> str:
        """The sizes before and after, and how many counts are clipped."""
        counts_HWC = self._counts(value)
        many = int((self._scaled(counts_HWC) > self.most).sum())
        clipped = f"{many} counts are clipped to {self.most}" if many else ""
        return maps.changes(self._image, counts_HWC.shape, clipped, how="added")

    def decode(self, piece: Piece) -> np.ndarray:
        """Counts int32 (height, width, 2) in 0..most."""
        share_HWC = maps.shares("Events", self._image, piece).astype(np.float64)
        return np.round(np.expm1(share_HWC * np.log1p(self.most))).astype(np.int32)

    def read(self, item: str) -> np.ndarray:
        """Counts int64 (H, W, 2) of an .npy file, which may hold a list of events."""
        return self._counts(maps.read("Events", item))

    def write(self, value, stem: str | Path) -> Path:
        """An .npy file of counts int64 (H, W, 2)."""
        return given.write_array(self._counts(value), stem, np.int64)

    def _counts(self, value) -> np.ndarray:
        """Counts int64 (H, W, 2), not clipped. Raises ValueError."""
        if isinstance(value, bytes):
            value = maps.stored_array("Events", value, ".npy")
        array = maps.numbers("Events", value, "give (H, W, 2) or (N, 4)")
        if array.ndim == 2 and array.shape[1] == 4:
            return self._frame(array.astype(np.float64))
        counts_HWC = maps.floats("Events", array, 2)
        maps.check_finite("Events", counts_HWC)
        if (counts_HWC < 0).any() or (counts_HWC != np.floor(counts_HWC)).any():
            raise ValueError("Events: counts below 0 or with fractions; give whole numbers.")
        return counts_HWC.astype(np.int64)

    def _frame(self, list_N4: np.ndarray) -> np.ndarray:
        """Counts of the events of a list. Raises ValueError."""
        maps.check_finite("Events", list_N4)
        rows, columns = self.sensor if self.sensor[0] else self.size
        x, y, polarity = list_N4[:, 0], list_N4[:, 1], list_N4[:, 3]
        outside = (x < 0) | (x >= columns) | (y < 0) | (y >= rows)
        if outside.any():
            raise ValueError(
                f"Events: {int(outside.sum())} events lie outside of {columns} x {rows} pixels;"
                " give the sensor=(height, width) of the camera, or repair this example."
            )
        if not np.isin(polarity, (-1, 0, 1)).all():
            raise ValueError(
                "Events: a polarity that is not 1, 0 or -1; give 1 and 0, or 1 and -1."
            )
        counts_HWC = np.zeros((rows, columns, 2), np.int64)
        np.add.at(counts_HWC, (y.astype(int), x.astype(int), (polarity > 0).astype(int)), 1)
        return counts_HWC

    def _scaled(self, counts_HWC: np.ndarray) -> np.ndarray:
        """Counts at the size of the modality."""
        if counts_HWC.shape[:2] == self.size:
            return counts_HWC
        left, top, right, bottom = self._image.box(*counts_HWC.shape[:2])
        # A pixel goes where its middle lies, which is the other way round than `nearest`.
        rows, columns = (
            (2 * np.arange(old) + 1) * new // (2 * old)
            for old, new in zip((bottom - top, right - left), self.size, strict=True)
        )
        added = np.zeros((*self.size, 2), np.int64)
        np.add.at(added, (rows[:, None], columns), counts_HWC[top:bottom, left:right])
        return added

    @functools.cached_property
    def _image(self) -> Image:
        return maps.as_image("Events", self.size, self.patch, self.resize, 2)
