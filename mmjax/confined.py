"""Files that data names, or that lie beside it: regular ones, inside a folder, up to a size.

What is read here may have been written by a stranger. A link that leads out of the folder would
give a model, or a page, what is not data; a pipe would wait for ever; a device may act when it is
opened.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Any

__all__ = ["Open", "Refused", "descriptor", "kind", "read"]

KINDS = {
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFDIR: "a folder",
    stat.S_IFLNK: "a link to itself",
}


class Refused(ValueError):
    """A file that is not read. `reason`: outside, no_file or too_large, a word for counts."""

    def __init__(self, reason: str, detail: str):
        super().__init__(reason, detail)
        self.reason, self.detail = reason, detail

    def __str__(self) -> str:
        return self.detail


def kind(path: Any) -> str:
    """What a path leads to, where that is no regular file: "a pipe", "a folder"; else empty.

    Nothing is opened. Raises OSError when there is nothing.
    """
    return _kind(os.stat(path).st_mode)


def _kind(mode: int) -> str:
    return "" if stat.S_ISREG(mode) else KINDS.get(stat.S_IFMT(mode), "no regular file")


def descriptor(path: Any, root: Any = None) -> int:
    """An open descriptor of a regular file, for reading; the caller closes it.

    Args:
      root: folder that the file must lie in, links followed; the folder itself may be a link.

    Raises Refused for what is no regular file or lies outside; OSError when there is none.
    """
    try:
        real = os.path.realpath(path)
        if root is not None and not Path(real).is_relative_to(os.path.realpath(root)):
            raise Refused("outside", f"{str(path)!r} is a link that leads out of {str(root)!r}")
        _refuse(path, os.lstat(real).st_mode)
        # Should a pipe have taken the place of the file, opening it does not wait.
        number = os.open(real, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC)
    except ValueError as error:  # a NUL in the name
        if isinstance(error, Refused):
            raise
        raise Refused("no_file", f"{str(path)!r} is no name of a file: {error}") from error
    try:
        _refuse(path, os.fstat(number).st_mode)
    except Refused:
        os.close(number)
        raise
    return number


class Open:
    """The descriptor of a file, `number`, closed with this object. Raises as `descriptor`."""

    def __init__(self, path: Any):
        self.number = descriptor(path)

    def __del__(self):
        if hasattr(self, "number"):
            os.close(self.number)


def _refuse(path: Any, mode: int) -> None:
    if what := _kind(mode):
        raise Refused("no_file", f"{str(path)!r} is {what}, no file")


def read(path: Any, limit: int, root: Any = None) -> bytes:
    """The bytes of a regular file of at most `limit`; nothing is read of a larger one.

    Raises as `descriptor`.
    """
    with os.fdopen(descriptor(path, root), "rb") as file:
        size = os.fstat(file.fileno()).st_size
        content = file.read(limit + 1) if size <= limit else b""
    if max(size, len(content)) > limit:
        raise Refused("too_large", f"{str(path)!r} has {size} bytes, more than {limit}")
    return content
