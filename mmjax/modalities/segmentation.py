"""Maps of ids: classes and instances, as one token a cell of pixels."""

from __future__ import annotations

import dataclasses
import functools
import itertools
from pathlib import Path
from typing import Annotated, Any, ClassVar

import numpy as np

from mmjax.config import ranges
from mmjax.modalities import maps
from mmjax.modalities.image import Image
from mmjax.modalities.modality import Modality, Unreadable
from mmjax.typing import Piece, TokenSpec

__all__ = ["Instances", "Segmentation"]

LARGEST = 1 << 16  # ids: PNG files hold no larger ones
SHOWN = 5  # unknown classes that an error lists


@dataclasses.dataclass(frozen=True, kw_only=True)
class Segmentation(Modality):
    """The class of each pixel: one token a cell of pixels, whose id is the number of the class.

    A cell of several pixels has the class of most of them, of the lower number if there are as
    many of another; `cell=1` is exact. Pixels of the value `ignore` are of no class and have the
    last id, `len(names)`. Maps of another size are cut and scaled as `Image` does it, by nearest
    pixels.

    Fields:
      names: of the classes, in the order of their numbers.
      size: (height, width) in pixels. cell: side of a cell; divides both.
      resize: "stretch" or "crop", as for `Image`.
      ignore: value of pixels without a class; -1 = there are none.
      max_pixels: largest height times width of a picture file; a larger one counts as bad.

    >>> rooms = Segmentation(names=("wall", "floor", "door"), size=(2, 4), cell=2)
    >>> piece = rooms.encode([[0, 1, 2, 255], [0, 1, 2, 2]])
    >>> piece.ids_L, rooms.decode(piece).tolist()
    (array([0, 2], dtype=int32), [[0, 0, 2, 2], [0, 0, 2, 2]])
    """

    names: tuple[str, ...] = ()
    size: tuple[ranges.Count, ranges.Count] = (224, 224)
    cell: ranges.Count = 16
    resize: str = "stretch"
    ignore: Annotated[int, ranges.Range(0, LARGEST - 1, also=(-1,))] = 255
    max_pixels: Annotated[int, ranges.Range(1, 2**50)] = dataclasses.field(
        default=maps.MAX_PIXELS, metadata={"identity": "none"}
    )
    is_finite: ClassVar[bool] = True

    def __post_init__(self):
        ranges.check(self)
        maps.check_cells("Segmentation", self.size, self.cell, self.resize)
        if not self.names or len(self.names) >= LARGEST:
            raise ValueError(
                f"Segmentation: {len(self.names)} names; give those of the classes, at least one"
                f" and fewer than {LARGEST}."
            )
        if len(set(self.names)) < len(self.names):
            twice = next(name for i, name in enumerate(self.names) if name in self.names[:i])
            raise ValueError(f"Segmentation: names holds {twice!r} twice; give each its own.")
        if 0 <= self.ignore < len(self.names):
            raise ValueError(
                f"Segmentation: ignore={self.ignore} is the class {self.names[self.ignore]!r}; use"
                f" a number of no class, or -1."
            )

    def spec(self, name: str) -> TokenSpec:
        """One discrete grid stream: an id a class, and one for `ignore`."""
        return maps.cell_spec(name, self.size, self.cell, len(self.names) + (self.ignore >= 0))

    def encode(self, value: Any) -> Piece | None:
        """Ids int32 (rows * columns,); position (0, row, column).

        Args:
          value: numbers of classes (H, W), or the bytes of a picture whose pixels or numbers of a
            palette are those, or of an .npy file; None = absent.

        Raises ValueError for other shapes, numbers of no class, fractions, NaN and infinity; its
        subclass Unreadable for bytes that are no map.
        """
        if value is None:
            return None
        ids_HW = maps.nearest(self._checked(value), self._image)
        if self.ignore >= 0:
            ids_HW = np.where(ids_HW == self.ignore, len(self.names), ids_HW)
        return maps.cell_piece(_most(ids_HW, self.cell), self.size, self.cell)

    def given(self, value: Any) -> np.ndarray | None:
        """Numbers of classes int64 (H, W)."""
        return None if value is None else self._checked(value)

    def adapted(self, value: Any) -> str:
        """The sizes before and after."""
        return maps.changes(self._image, self._checked(value).shape)

    def decode(self, piece: Piece) -> np.ndarray:
        """Numbers of classes int32 (height, width), `ignore` where there is none."""
        size = self.spec("name").vocab_size
        ids_HW = _pixels(maps.cells("Segmentation", piece, self.size, self.cell, size), self.cell)
        return np.where(ids_HW == len(self.names), self.ignore, ids_HW).astype(np.int32)

    def read(self, item: str) -> np.ndarray:
        """Numbers of classes int64 (H, W) of a picture or an .npy file. Raises ValueError."""
        return self._checked(maps.read("Segmentation", item))

    def write(self, value: Any, stem: str | Path) -> Path:
        """A PNG file whose pixels are the numbers of classes."""
        return maps.write_picture(self._checked(value), stem)

    def _checked(self, value: Any) -> np.ndarray:
        if isinstance(value, bytes):
            value = maps.stored("Segmentation", value, self.max_pixels)
        found_HW = maps.whole("Segmentation", value)
        known_HW = (found_HW >= 0) & (found_HW < len(self.names))
        if self.ignore >= 0:
            known_HW |= found_HW == self.ignore
        if not known_HW.all():
            unknown = np.unique(found_HW[~known_HW])
            raise Unreadable(
                "no_class",
                f"Segmentation: {', '.join(map(str, unknown[:SHOWN]))} are no classes in"
                f" 0..{len(self.names) - 1} and not ignore={self.ignore}; give more names, or"
                " repair this example.",
            )
        return found_HW

    @functools.cached_property
    def _image(self) -> Image:
        return maps.as_image("Segmentation", self.size, 1, self.resize, 1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Instances(Modality):
    """Which pixels belong together: one token a cell of pixels, the number of its instance or 0.

    Numbers in the data are names without an order. Here the instances are numbered from 1 in the
    order of their first cells, by row and column. A cell of several pixels is of the instance of
    most of them; if there are as many of another, of none or of the one that begins first. Those
    beyond `max_instances` become background, and `num_cut` counts their cells. Maps of another size
    are cut and scaled as `Image` does it, by nearest pixels.

    Fields:
      size: (height, width) in pixels. cell: side of a cell; divides both.
      resize: "stretch" or "crop", as for `Image`.
      max_instances: largest number of instances.
      max_pixels: largest height times width of a picture file; a larger one counts as bad.

    >>> instances = Instances(size=(2, 3), cell=1, max_instances=2)
    >>> piece = instances.encode([[70, 0, 9], [70, 33, 9]])
    >>> instances.decode(piece).tolist(), piece.num_cut
    ([[1, 0, 2], [1, 0, 2]], 1)
    """

    size: tuple[ranges.Count, ranges.Count] = (224, 224)
    cell: ranges.Count = 16
    resize: str = "stretch"
    max_instances: Annotated[int, ranges.Range(1, LARGEST - 1)] = 64
    max_pixels: Annotated[int, ranges.Range(1, 2**50)] = dataclasses.field(
        default=maps.MAX_PIXELS, metadata={"identity": "none"}
    )
    is_finite: ClassVar[bool] = True

    def __post_init__(self):
        ranges.check(self)
        maps.check_cells("Instances", self.size, self.cell, self.resize)

    def spec(self, name: str) -> TokenSpec:
        """One discrete grid stream: the background and an id an instance."""
        return maps.cell_spec(name, self.size, self.cell, self.max_instances + 1)

    def encode(self, value: Any) -> Piece | None:
        """Ids int32 (rows * columns,); position (0, row, column). A map of zeros is no instance.

        Args:
          value: numbers (H, W), 0 = background; or the bytes of an .npy file, or of a picture
            whose pixels, or red + 256 green + 65536 blue (as in COCO), are those; None = absent.

        Raises ValueError for other shapes, numbers below 0, fractions, NaN and infinity; its
        subclass Unreadable for bytes that are no map.
        """
        if value is None:
            return None
        pixels_HW = _renumbered(maps.nearest(self._checked(value), self._image))
        cells = _renumbered(_most(pixels_HW, self.cell))
        is_cut = cells > self.max_instances
        return maps.cell_piece(np.where(is_cut, 0, cells), self.size, self.cell, int(is_cut.sum()))

    def given(self, value: Any) -> np.ndarray | None:
        """Numbers int64 (H, W) in the order of their first pixels."""
        return None if value is None else _renumbered(self._checked(value))

    def adapted(self, value: Any) -> str:
        """The sizes before and after, and how many instances become background."""
        found_HW = self._checked(value)
        cut = len(np.unique(found_HW[found_HW > 0])) - self.max_instances
        left_out = f"{cut} instances beyond {self.max_instances} are left out" if cut > 0 else ""
        return maps.changes(self._image, found_HW.shape, left_out)

    def decode(self, piece: Piece) -> np.ndarray:
        """Numbers int32 (height, width) as they are in the tokens, 0 = background."""
        cells = maps.cells("Instances", piece, self.size, self.cell, self.max_instances + 1)
        return _pixels(cells, self.cell)

    def read(self, item: str) -> np.ndarray:
        """Numbers int64 (H, W) of a picture or an .npy file. Raises ValueError."""
        return self._checked(maps.read("Instances", item))

    def write(self, value: Any, stem: str | Path) -> Path:
        """A PNG file whose pixels are the numbers, in the order of their first pixels."""
        return maps.write_picture(_renumbered(self._checked(value)), stem)

    def _checked(self, value: Any) -> np.ndarray:
        if isinstance(value, bytes):
            value = maps.stored("Instances", value, self.max_pixels)
            if value.ndim == 3 and value.dtype == np.uint8 and value.shape[2] == 3:
                value = value.astype(np.int64) @ (1, 1 << 8, 1 << 16)
        found_HW = maps.whole("Instances", value)
        if (found_HW < 0).any():
            raise ValueError(f"Instances: {found_HW.min()} is below 0; give 0 for background.")
        return found_HW

    @functools.cached_property
    def _image(self) -> Image:
        return maps.as_image("Instances", self.size, 1, self.resize, 1)


def _pixels(cells: np.ndarray, side: int) -> np.ndarray:
    return cells.repeat(side, axis=0).repeat(side, axis=1)


def _most(ids_HW: np.ndarray, cell: int) -> np.ndarray:
    """The most frequent id of each cell (rows, columns), the lower one of those as frequent."""
    if cell == 1:
        return ids_HW
    rows, columns = ids_HW.shape[0] // cell, ids_HW.shape[1] // cell
    ids = ids_HW.reshape(rows, cell, columns, cell).transpose(1, 3, 0, 2).reshape(-1, rows, columns)
    ids = np.sort(ids, axis=0)
    found, best = ids[0], np.ones((rows, columns), np.int64)
    run = best.copy()
    for last, this in itertools.pairwise(ids):
        run = np.where(this == last, run + 1, 1)
        found, best = np.where(run > best, this, found), np.maximum(run, best)
    return found


def _renumbered(ids_HW: np.ndarray) -> np.ndarray:
    """Ids from 1 in the order of their first pixels by row and column; 0 stays 0."""
    known, first, places = np.unique(ids_HW, return_index=True, return_inverse=True)
    numbers = np.empty(len(known), np.int64)
    first[known == 0] = -1
    numbers[np.argsort(first)] = np.arange(len(known)) + (0 not in known)
    return numbers[places].reshape(ids_HW.shape)
