"""Files that data names, or that lie beside it: regular ones, inside a folder, up to a size.

What is read here may have been written by a stranger. A link that leads out of the folder would
give a model, or a page, what is not data; a pipe would wait for ever; a device may act when it is
opened.
"""

from __future__ import annotations

import errno
import os
import stat
from typing import Any

from mmjax import files

__all__ = ["Open", "Refused", "descriptor", "kind", "read"]

READ = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC
HANDLE, HANDLES = getattr(os, "O_PATH", 0) | os.O_CLOEXEC, "/proc/self/fd"
HAS_HANDLES = hasattr(os, "O_PATH") and os.path.isdir(HANDLES)
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
        return _by_handle(path, root) if HAS_HANDLES else _by_name(path, root)
    except Refused:
        raise
    except ValueError as error:  # a NUL in the name
        raise Refused("no_file", f"{str(path)!r} is no name of a file: {error}") from error
    except OSError as error:
        if error.errno != errno.ELOOP:
            raise
        raise Refused("no_file", f"{str(path)!r} is a link to itself") from error


def _by_handle(path: Any, root: Any) -> int:
    """By a handle that opens nothing, of which Linux tells what it is of and where that lies.

    Ten times as quick as to follow links by their names, and nothing can change in between.
    """
    handle = os.open(path, HANDLE)
    try:
        _refuse(path, os.fstat(handle).st_mode)
        if root is not None:
            top = os.open(root, HANDLE)
            try:
                _confine(
                    path, os.readlink(f"{HANDLES}/{handle}"), root, os.readlink(f"{HANDLES}/{top}")
                )
            finally:
                os.close(top)
        return os.open(f"{HANDLES}/{handle}", READ)
    finally:
        os.close(handle)


def _by_name(path: Any, root: Any) -> int:
    real = os.path.realpath(path)
    if root is not None:
        _confine(path, real, root, os.path.realpath(root))
    _refuse(path, os.lstat(real).st_mode)
    # Should a pipe have taken the place of the file, opening it does not wait.
    number = os.open(real, READ | os.O_NOFOLLOW)
    try:
        _refuse(path, os.fstat(number).st_mode)
    except Refused:
        os.close(number)
        raise
    return number


def _confine(path: Any, real: str, root: Any, real_root: str) -> None:
    if not real.startswith(os.path.join(real_root, "")):
        raise Refused("outside", f"{str(path)!r} is a link that leads out of {str(root)!r}")


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

    A bucket has neither links nor pipes, so there the size alone counts. Raises as `descriptor`.
    """
    if files.is_remote(path):
        size = path.stat().length
        if size > limit:
            raise Refused("too_large", f"{str(path)!r} has {size} bytes, more than {limit}")
        return path.read_bytes()
    number, parts, count = descriptor(path, root), [], 0
    try:
        size = os.fstat(number).st_size
        while max(size, count) <= limit:
            # A buffer of what is there: one of the limit would be taken whole for each file.
            part = os.read(number, max(size - count + 1, 4096))
            if not part:
                return parts[0] if len(parts) == 1 else b"".join(parts)
            parts.append(part)
            count += len(part)
    finally:
        os.close(number)
    raise Refused("too_large", f"{str(path)!r} has {max(size, count)} bytes, more than {limit}")
