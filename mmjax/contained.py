"""Files of folders that others may have made: plain ones, inside the folder, of a sane size."""

from __future__ import annotations

import os
import stat
from typing import Any

__all__ = ["read_bytes"]


def read_bytes(folder: Any, name: str, most: int) -> bytes:
    """The content of a file of a folder, which may lie in a bucket.

    Raises ValueError for a link that leads out of the folder, for what is no plain file, and for
    more than `most` bytes; OSError where it cannot be read.
    """
    path = folder / name
    if "://" in os.fspath(path):
        size = path.stat().length
    else:
        root, real = os.path.realpath(folder), os.path.realpath(path)
        if not real.startswith(os.path.join(root, "")):
            raise ValueError(f"{name} is a link that leads out of the folder, to {real}")
        found = os.stat(real)
        if not stat.S_ISREG(found.st_mode):
            raise ValueError(f"{name} is no plain file")
        size = found.st_size
    if size > most:
        raise ValueError(f"{name} has {size:,} bytes; more than {most:,} are not read")
    return path.read_bytes()
