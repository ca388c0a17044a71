"""Arrays in NumPy's file format, from bytes that are not trusted."""

from __future__ import annotations

import io
from typing import Any

import numpy as np


def header(file: Any) -> tuple[tuple[int, ...], bool, np.dtype]:
    """Shape, whether the order is Fortran's, and dtype; leaves `file` at the first element.

    Raises ValueError for other versions, and for object arrays, which are pickles.
    """
    version = np.lib.format.read_magic(file)
    if version not in ((1, 0), (2, 0)):
        raise ValueError(f"format {version} of npy is not known")
    read = np.lib.format.read_array_header_1_0
    if version == (2, 0):
        read = np.lib.format.read_array_header_2_0
    shape, fortran, dtype = read(file)
    if dtype.hasobject:
        raise ValueError("it holds pickled objects, which may run any code")
    return shape, fortran, dtype


def parsed(content: bytes) -> np.ndarray:
    """The array of an .npy file, as a view of its bytes: a false shape allocates nothing."""
    file = io.BytesIO(content)
    shape, fortran, dtype = header(file)
    flat = np.frombuffer(content, dtype, offset=file.tell())
    return flat.reshape(shape, order="F" if fortran else "C")
