"""Arrays of numbers as people give them, checked, and .npy files of them."""

from __future__ import annotations

import csv
import io
import math
from pathlib import Path
from typing import Any

import numpy as np

from mmjax.files import confined, npy

__all__ = [
    "array",
    "centred",
    "check_affine",
    "finite",
    "number",
    "read_array",
    "read_numbers",
    "restored",
    "write_array",
]

MAX_FILE = 1 << 30  # bytes of a file named on a command line
MAX_TABLE = 1 << 28  # bytes of one of text
KINDS = "iuf"  # of dtype: whole and real numbers, no bools


def array(who: str, value: Any, rule: str) -> np.ndarray:
    """The value as an array of whole or real numbers; NaN may be among them.

    Args:
      who: start of a message. rule: what to give instead, such as "(points, 3)".

    Raises ValueError for text, ragged lists, bools, objects and complex numbers.
    """
    try:
        numbers = np.asarray(value)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{who}: {error}; give numbers {rule}.") from error
    if numbers.dtype.kind not in KINDS:
        shown = repr(value)[:60].replace("\n", " ")
        raise ValueError(f"{who}: {shown} is no array of numbers; give numbers {rule}.")
    return numbers


def number(value: Any) -> float | None:
    """The value as a finite float; None if it is none, as text and bytes are not."""
    if isinstance(value, (str, bytes)) or not np.isscalar(value):
        return None
    try:
        made = float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError, OverflowError):
        return None
    return made if math.isfinite(made) else None


def finite(who: str, numbers: np.ndarray) -> np.ndarray:
    """The numbers as float32. Raises ValueError for NaN, and what is infinite in float32."""
    with np.errstate(over="ignore"):
        numbers = numbers.astype(np.float32)
    if not np.isfinite(numbers).all():
        raise ValueError(f"{who}: numbers hold NaN or infinity; repair or leave out this example.")
    return numbers


def check_affine(who: str, channels: int, **fields: tuple[float, ...]) -> None:
    """Raises ValueError unless each field has one number, or one a channel."""
    for name, value in fields.items():
        if len(value) not in (1, channels):
            raise ValueError(
                f"{who}: {name}={value} has {len(value)} numbers for {channels} channels; give one,"
                " or one a channel."
            )


def centred(
    who: str, numbers: np.ndarray, mean: tuple[float, ...], std: tuple[float, ...]
) -> np.ndarray:
    """(numbers - mean) / std of the last axis. Raises ValueError where float32 cannot hold it."""
    with np.errstate(over="ignore"):
        made = (numbers - np.asarray(mean, np.float32)) / np.asarray(std, np.float32)
    if not np.isfinite(made).all():
        raise ValueError(f"{who}: numbers are too large for std={std}; repair them, or give std.")
    return made


def restored(values: np.ndarray, mean: tuple[float, ...], std: tuple[float, ...]) -> np.ndarray:
    """values * std + mean of the last axis, float32; any number is taken."""
    with np.errstate(over="ignore", invalid="ignore"):
        scale, shift = np.asarray(std, np.float32), np.asarray(mean, np.float32)
        return np.asarray(values, np.float32) * scale + shift


def read_array(who: str, item: str) -> np.ndarray:
    """The array of an .npy file. Raises ValueError for other files, and for pickled objects."""
    try:
        return npy.parsed(confined.read(item, MAX_FILE))
    except (OSError, ValueError) as error:
        raise ValueError(f"{who}: {item!r} cannot be read: {error}; give an .npy file.") from error


def read_numbers(who: str, item: str) -> np.ndarray:
    """The numbers of an .npy file, or of a .csv file with commas; an empty cell is NaN.

    A first row that holds no number is taken for the names of the columns.

    Raises ValueError if it cannot be read.
    """
    if not item.lower().endswith(".csv"):
        return read_array(who, item)
    try:
        text = confined.read(item, MAX_TABLE).decode("utf-8-sig")
        rows = [row for row in csv.reader(io.StringIO(text)) if row]
        if rows and not any(_is_number(cell) for cell in rows[0]):
            rows = rows[1:]
        return np.array([[float(cell) if cell.strip() else math.nan for cell in r] for r in rows])
    except (OSError, ValueError, csv.Error) as error:
        raise ValueError(
            f"{who}: {item!r} cannot be read: {error}; give an .npy file, or a .csv of numbers."
        ) from error


def _is_number(cell: str) -> bool:
    try:
        return math.isfinite(float(cell))
    except ValueError:
        return False


def write_array(value: Any, stem: str | Path, dtype: Any = np.float32) -> Path:
    """An .npy file."""
    path = Path(f"{stem}.npy")
    np.save(path, np.asarray(value, dtype), allow_pickle=False)
    return path
