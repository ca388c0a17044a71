"""Reads only regular files, inside a given folder and up to a size, for untrusted names.

Data sets and run folders may come from anyone. A link out of the folder could put private files
into a model or a page; a pipe would block for ever; opening a device may trigger an action.
"""

from __future__ import annotations

import errno
import os
import stat
from typing import Any

from mmjax import files
from mmjax.files import bucket

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
    """The file may not be read. `reason`: outside, no_file or too_large, a word for counts."""

    def __init__(self, reason: str, detail: str):
        super().__init__(reason, detail)
        self.reason, self.detail = reason, detail

    def __str__(self) -> str:
        return self.detail


def kind(path: Any) -> str:
    """Describes a path that is not a regular file: "a pipe", "a folder"; else empty.

    Opens nothing. Raises OSError if the path does not exist.
    """
    return _kind(os.stat(path).st_mode)


def _kind(mode: int) -> str:
    return "" if stat.S_ISREG(mode) else KINDS.get(stat.S_IFMT(mode), "no regular file")


def descriptor(path: Any, root: Any = None) -> int:
    """Opens a regular file for reading; returns its descriptor, which the caller closes.

    Args:
      root: folder that the file must lie in after links are resolved; it may itself be a link.

    Raises Refused if it is not a regular file or lies outside; OSError if it does not exist.
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
    """Opens a path through an O_PATH handle, which Linux resolves without opening the file.

    Ten times faster than resolving links by name, and without races.
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
    # If a pipe has replaced the file, opening it does not block.
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
    """Owns a file descriptor, `number`, and closes it with the object. Raises as `descriptor`."""

    def __init__(self, path: Any):
        self.number = descriptor(path)

    def __del__(self):
        if hasattr(self, "number"):
            os.close(self.number)


def _refuse(path: Any, mode: int) -> None:
    if what := _kind(mode):
        raise Refused("no_file", f"{str(path)!r} is {what}, no file")


def read(path: Any, limit: int, root: Any = None) -> bytes:
    """The bytes of a regular file of at most `limit` bytes; a larger one is not read at all.

    In a bucket, which has no links or pipes, only the size is checked. Raises as `descriptor`.
    """
    if files.is_remote(path):
        content = bucket.read(path, limit + 1)
        if len(content) > limit:
            raise Refused("too_large", f"{str(path)!r} has more than {limit} bytes")
        return content
    number, parts, count = descriptor(path, root), [], 0
    try:
        size = os.fstat(number).st_size
        while max(size, count) <= limit:
            # A buffer of the file's size: one of `limit` would be allocated in full for each file.
            part = os.read(number, max(size - count + 1, 4096))
            if not part:
                return parts[0] if len(parts) == 1 else b"".join(parts)
            parts.append(part)
            count += len(part)
    finally:
        os.close(number)
    raise Refused("too_large", f"{str(path)!r} has {max(size, count)} bytes, more than {limit}")
