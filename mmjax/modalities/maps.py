"""What maps of pixels share: how they are read, checked, cut, scaled and written.

A map is cut and scaled to the part of the picture that `Image` sees, but by nearest pixels: means
of two depths, of two classes, or of something and nothing lie on no object. Continuous maps become
shares in 0..1 and then patches of an `Image` of so many channels.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from mmjax.files import confined, npy
from mmjax.modalities.image import Box, Image
from mmjax.modalities.modality import Unreadable
from mmjax.typing import Piece, TokenSpec, positions

MAX_PIXELS = 1 << 25  # of a picture file, as of an `Image`
MAX_FILE = 1 << 30  # bytes of a file named on a command line
NPY = b"\x93NUMPY"


@contextlib.contextmanager
def said_by(who: str, of: str = "Image") -> Iterator[None]:
    """Lets errors that one modality raises for another name that other one."""
    try:
        yield
    except Unreadable as error:
        detail = error.detail.removeprefix(f"{of}: ")
        raise Unreadable(error.reason, f"{who}: {detail}") from error
    except ValueError as error:
        raise ValueError(f"{who}: {str(error).removeprefix(f'{of}: ')}") from error


def as_image(who: str, size: tuple[int, int], patch: int, resize: str, channels: int) -> Image:
    """The `Image` whose pixels are the shares of a continuous map. Raises ValueError."""
    with said_by(who):
        return Image(size=size, patch=patch, resize=resize, channels=channels)


def check_cells(who: str, size: tuple[int, int], cell: int, resize: str) -> None:
    """Raises ValueError unless cells of this side divide the size."""
    if size[0] % cell or size[1] % cell:
        raise ValueError(f"{who}: size={size} is not divisible by cell={cell}; use multiples.")
    as_image(who, size, 1, resize, 1)  # knows the rules of resizing


def shares(who: str, image: Image, piece: Piece) -> np.ndarray:
    """The shares in 0..1, float32 (H, W, channels), in a piece; NaN counts as the middle."""
    if piece.values_LP is not None:
        values = np.nan_to_num(np.asarray(piece.values_LP, np.float32), nan=0.0)
        piece = piece._replace(values_LP=values.clip(-1, 1))
    with said_by(who):
        return image.decode(piece)


def cell_spec(name: str, size: tuple[int, int], cell: int, vocab_size: int) -> TokenSpec:
    """One discrete grid stream: one id a cell of pixels."""
    rows, columns = size[0] // cell, size[1] // cell
    return TokenSpec(
        name=name,
        kind="grid",
        max_tokens=rows * columns,
        vocab_size=vocab_size,
        grid=(1, rows, columns),
    )


def cell_piece(ids: np.ndarray, size: tuple[int, int], cell: int, num_cut: int = 0) -> Piece:
    """The piece of one id a cell, by row and column."""
    grid = (1, size[0] // cell, size[1] // cell)
    return Piece(positions(grid), ids_L=ids.reshape(-1).astype(np.int32), num_cut=num_cut)


def cells(who: str, piece: Piece, size: tuple[int, int], cell: int, count: int) -> np.ndarray:
    """The ids of a piece, int32 (rows, columns); those of no meaning become the nearest that has.

    Raises ValueError for pieces of another size.
    """
    rows, columns = size[0] // cell, size[1] // cell
    if piece.ids_L is None or np.shape(piece.ids_L) != (rows * columns,):
        raise ValueError(
            f"{who}: decode needs {rows * columns} ids; this piece is not of size={size},"
            f" cell={cell}."
        )
    return np.asarray(piece.ids_L).clip(0, count - 1).astype(np.int32).reshape(rows, columns)


# ------------------------------------------------------------------------------- from outside


def stored(who: str, content: bytes, max_pixels: int) -> np.ndarray:
    """The array of an .npy file, or the pixels of a picture as they are stored.

    Numbers of a palette stay numbers and 16 bits stay 16 bits. Raises Unreadable.
    """
    if content.startswith(NPY):
        return stored_array(who, content)
    with opened(who, content, max_pixels) as picture:
        return np.asarray(picture)


@contextlib.contextmanager
def opened(who: str, content: bytes, max_pixels: int) -> Iterator[Any]:
    """A file as an upright Pillow image. Raises Unreadable, also for errors inside `with`."""
    any_size = Image(size=(1, 1), patch=1, max_pixels=max_pixels)
    try:
        with said_by(who), any_size.opened(content) as picture:
            yield picture
    except Unreadable as error:
        raise Unreadable(error.reason, f"{error.detail}; give a whole file.") from error


def stored_array(who: str, content: bytes, formats: str = ".npy") -> np.ndarray:
    """The array of an .npy file. Raises Unreadable, which names the formats that there are."""
    if not content.startswith(NPY):
        raise Unreadable("no_array", f"{who}: bytes of no known format; give a file of {formats}.")
    try:
        return npy.parsed(content)
    except Exception as error:  # a header may be anything
        raise Unreadable(
            "broken_array", f"{who}: {error}; give an .npy file of numbers."
        ) from error


def read(who: str, item: str) -> bytes:
    """The bytes of a file named on a command line. Raises ValueError."""
    try:
        return confined.read(item, MAX_FILE)
    except (OSError, confined.Refused) as error:
        raise ValueError(f"{who}: {item!r} cannot be read: {error}; give a file.") from error


def write_picture(pixels_HW: np.ndarray, stem: str | Path, in_colours: bool = True) -> Path:
    """A PNG file of one channel whose pixels are these numbers: of 8 bits, which a palette may show
    in colours, or, if need be, of 16."""
    import PIL.Image

    path = Path(f"{stem}.png")
    if pixels_HW.max() >= 1 << 8:
        PIL.Image.fromarray(pixels_HW.astype(np.uint16)).save(path)
        return path
    picture = PIL.Image.fromarray(pixels_HW.astype(np.uint8))
    if in_colours:
        picture.putpalette(_colours().tobytes())  # makes numbers of the palette of them
    picture.save(path)
    return path


def _colours() -> np.ndarray:
    """A colour for each number, uint8 (256, 3), far from those of its neighbours; 0 is grey."""
    hue = np.arange(256)[:, None] * 0.618 + np.array([0.0, 1 / 3, 2 / 3])  # golden section
    colours = 150 + 90 * np.cos(2 * np.pi * hue)
    colours[0] = 225
    return colours.astype(np.uint8)


def floats(who: str, value: Any, channels: int) -> np.ndarray:
    """A map as float32 (H, W, channels), in which NaN and infinity are left; a copy.

    Raises ValueError for other shapes and types.
    """
    array = _map(who, value, channels)
    with np.errstate(over="ignore"):  # infinity is looked for later
        return array.astype(np.float32)


def whole(who: str, value: Any) -> np.ndarray:
    """A map of whole numbers as int64 (H, W). Raises ValueError for others, NaN and infinity."""
    array = _map(who, value, 1)[:, :, 0]
    if array.dtype.kind == "f":
        check_finite(who, array)
        if (array != np.floor(array)).any() or np.abs(array).max() > 1 << 53:
            raise ValueError(f"{who}: pixels hold fractions; give whole numbers.")
    return array.astype(np.int64)


def numbers(who: str, value: Any, rule: str) -> np.ndarray:
    """An array of numbers of any shape. Raises ValueError, which ends with the rule."""
    try:
        array = np.asarray(value)
    except ValueError as error:  # rows of different lengths
        raise ValueError(f"{who}: a value that is no array; {rule}.") from error
    if array.dtype.kind not in "biuf":
        raise ValueError(f"{who}: numbers of type {array.dtype}; {rule}.")
    return array


def _map(who: str, value: Any, channels: int) -> np.ndarray:
    """An array (H, W, channels) of numbers; (H, W) counts as one channel."""
    rule = f"give (H, W, {channels})" if channels > 1 else "give (H, W)"
    array = numbers(who, value, rule)
    if array.ndim == 2 and channels == 1:
        array = array[:, :, None]
    if array.ndim != 3 or array.shape[2] != channels or 0 in array.shape:
        raise ValueError(f"{who}: an array of shape {array.shape} is no map; {rule}.")
    return array


def check_finite(who: str, array: np.ndarray, remedy: str = "repair this example") -> None:
    """Raises Unreadable for NaN and infinity."""
    if not np.isfinite(array).all():
        count = int((~np.isfinite(array)).sum())
        raise Unreadable("not_finite", f"{who}: {count} numbers are NaN or infinite; {remedy}.")


# -------------------------------------------------------------------------- cutting and scaling


def nearest(map_HWC: np.ndarray, image: Image) -> np.ndarray:
    """The part of a map (H, W) or (H, W, C) that `image` sees, at its size, by nearest pixels."""
    if map_HWC.shape[:2] == image.size:
        return map_HWC
    left, top, right, bottom = image.box(*map_HWC.shape[:2])
    rows = top + middles(bottom - top, image.size[0])
    columns = left + middles(right - left, image.size[1])
    return map_HWC[rows[:, None], columns]


def middles(length: int, parts: int) -> np.ndarray:
    """Which of `length` things lie in the middles of equal parts; all, if there are as many.

    >>> middles(6, 3).tolist(), middles(2, 4).tolist()
    ([1, 3, 5], [0, 0, 1, 1])
    """
    return (2 * np.arange(parts) + 1) * length // (2 * parts)


def scale(image: Image, box: Box) -> tuple[float, float]:
    """What rows and columns of a cut part are multiplied with to be those of `image`."""
    left, top, right, bottom = box
    return image.size[0] / (bottom - top), image.size[1] / (right - left)


def changes(image: Image, shape: tuple[int, ...], *clipped: str, how: str = "nearest") -> str:
    """How a map of this shape is changed, in words; empty = not at all."""
    said = image.adapted(np.broadcast_to(np.uint8(0), shape[:2]))
    return "; ".join(filter(None, [f"{said} ({how} pixels)" if said else "", *clipped]))
