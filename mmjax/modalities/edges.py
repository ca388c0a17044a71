"""Maps of edges, as one token a cell of pixels."""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path
from typing import Annotated, Any, ClassVar

import numpy as np

from mmjax.config import ranges
from mmjax.modalities import maps
from mmjax.modalities.image import Image
from mmjax.modalities.modality import Modality
from mmjax.typing import Piece, TokenSpec

__all__ = ["Edges"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Edges(Modality):
    """A map of edges: one token a cell of pixels, whose bits say which of them are edges.

    Bit `row * cell + column` of the id is that pixel of the cell; the round trip is exact. In a
    smaller map a pixel is an edge if one of those that it stands for is, so that lines stay whole.

    Fields:
      size: (height, width) in pixels. cell: side of a cell, 1 to 4; divides both. There are
        2 ** (cell * cell) ids.
      resize: "stretch" or "crop", as for `Image`.
      threshold: the least strength of an edge, of 0..1.
      max_pixels: largest height times width of a picture file; a larger one counts as bad.

    >>> edges = Edges(size=(2, 4), cell=2)
    >>> piece = edges.encode([[1, 0, 0, 0], [0, 1, 1, 1]])
    >>> piece.ids_L, edges.decode(piece).astype(int).tolist()
    (array([ 9, 12], dtype=int32), [[1, 0, 0, 0], [0, 1, 1, 1]])
    """

    size: tuple[ranges.Count, ranges.Count] = (64, 64)
    cell: Annotated[int, ranges.Range(1, 4)] = 2
    resize: str = "stretch"
    threshold: Annotated[float, ranges.Range(0, 1, has_low=False)] = 0.5
    max_pixels: Annotated[int, ranges.Range(1, 2**50)] = dataclasses.field(
        default=maps.MAX_PIXELS, metadata={"identity": "none"}
    )
    is_finite: ClassVar[bool] = True

    def __post_init__(self):
        ranges.check(self)
        maps.check_cells("Edges", self.size, self.cell, self.resize)

    def spec(self, name: str) -> TokenSpec:
        """One discrete grid stream, whose ids are bits."""
        bits = self.cell * self.cell
        return dataclasses.replace(
            maps.cell_spec(name, self.size, self.cell, 1 << bits), levels=(2,) * bits
        )

    def encode(self, value: Any) -> Piece | None:
        """Ids int32 (rows * columns,); position (0, row, column).

        Args:
          value: (H, W) of bools, of floats in 0..1, of whole numbers 0 and 1, or of uint8 0 and
            255; or the bytes of a gray picture or of an .npy file; None = absent.

        Raises ValueError for other shapes and numbers, NaN and infinity; its subclass Unreadable
        for bytes that are no map.
        """
        if value is None:
            return None
        edges_HW, (rows, columns), c = self._scaled(self._checked(value)), self._grid, self.cell
        bits = edges_HW.reshape(rows, c, columns, c).transpose(0, 2, 1, 3).reshape(-1, c * c)
        return maps.cell_piece(bits @ (1 << np.arange(c * c)), self.size, c)

    def given(self, value: Any) -> np.ndarray | None:
        """Which pixels are edges, bool (H, W)."""
        return None if value is None else self._checked(value)

    def adapted(self, value: Any) -> str:
        """The sizes before and after."""
        return maps.changes(self._image, self._checked(value).shape, how="joined")

    def decode(self, piece: Piece) -> np.ndarray:
        """Which pixels are edges, bool (height, width)."""
        (rows, columns), c = self._grid, self.cell
        cells = maps.cells("Edges", piece, self.size, c, 1 << (c * c)).reshape(-1, 1)
        bits = (cells >> np.arange(c * c)) & 1
        return bits.reshape(rows, columns, c, c).swapaxes(1, 2).reshape(self.size).astype(bool)

    def read(self, item: str) -> np.ndarray:
        """Which pixels are edges, bool (H, W), of a gray picture or an .npy file."""
        return self._checked(maps.read("Edges", item))

    def write(self, value: Any, stem: str | Path) -> Path:
        """A PNG file: white edges on black."""
        return maps.write_picture(self._checked(value) * np.uint8(255), stem, in_colours=False)

    def _checked(self, value: Any) -> np.ndarray:
        """Which pixels are edges, bool (H, W). Raises ValueError."""
        if isinstance(value, bytes):
            value = maps.stored("Edges", value, self.max_pixels)
            if value.dtype == np.uint8:
                value = value / 255
        strength_HW = maps.floats("Edges", value, 1)[:, :, 0]
        maps.check_finite("Edges", strength_HW)
        kind = np.asarray(value).dtype
        if kind == np.uint8 and strength_HW.max() == 255:
            strength_HW /= 255
        is_right = (strength_HW >= 0) & (strength_HW <= 1)
        if kind.kind in "iu":
            is_right &= np.isin(strength_HW, (0, 1))
        if not is_right.all():
            raise ValueError(
                f"Edges: {kind} pixels lie in {strength_HW.min():g}..{strength_HW.max():g}; give"
                " bools, floats in 0..1, whole numbers 0 and 1, or uint8 0 and 255."
            )
        return strength_HW >= self.threshold

    def _scaled(self, edges_HW: np.ndarray) -> np.ndarray:
        if edges_HW.shape == self.size:
            return edges_HW
        left, top, right, bottom = self._image.box(*edges_HW.shape)
        edges_HW = edges_HW[top:bottom, left:right]
        for axis, new in enumerate(self.size):
            first = np.arange(new) * edges_HW.shape[axis] // new
            edges_HW = np.logical_or.reduceat(edges_HW, first, axis=axis)
        return edges_HW

    @property
    def _grid(self) -> tuple[int, int]:
        return self.size[0] // self.cell, self.size[1] // self.cell

    @functools.cached_property
    def _image(self) -> Image:
        return maps.as_image("Edges", self.size, 1, self.resize, 1)
