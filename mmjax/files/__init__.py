"""Files: written whole or not at all, read within bounds, and never through a link.

Paths are `etils.epath` or `pathlib` ones. What concerns the disk alone (syncing, links) is left out
for paths in a bucket, where an object is whole once it is there.
"""

from __future__ import annotations

import contextlib
import datetime
import errno
import json
import logging
import math
import os
import shutil
import stat
import uuid
from collections.abc import Iterator
from typing import Any, NamedTuple

__all__ = [
    "DamagedFile",
    "Entry",
    "entries",
    "exists",
    "is_remote",
    "kind",
    "parse_json",
    "quarantine",
    "read_bytes",
    "read_json",
    "replacing",
    "sync",
    "write_json",
]

PARTIAL = ".partial"  # suffix of a file that is being written
MAX_JSON = 1 << 26  # bytes of a JSON file that is read
CHUNK = 1 << 20
_log = logging.getLogger("mmjax")


class DamagedFile(ValueError):
    """A file that mmjax wrote cannot be read as what it wrote; the text says what is wrong."""


@contextlib.contextmanager
def replacing(path: Any) -> Iterator[Any]:
    """A path to write to, beside `path`; at the end the file takes the place of `path`.

    Readers and a second writer see the old file or the whole new one, also after a power failure;
    an error leaves the old one.
    """
    partial = path.parent / f".{path.name}.{uuid.uuid4().hex}{PARTIAL}"
    try:
        yield partial
        sync(partial)
        partial.replace(path)  # rename refuses where the file exists
        sync(path.parent)
    finally:
        partial.unlink(missing_ok=True)


def sync(path: Any) -> None:
    """Until a file or a folder is on the disk; nothing for a bucket.

    Raises OSError when the disk fails, so that what is not there is never taken to be.
    """
    if is_remote(path):
        return
    descriptor = os.open(os.fspath(path), os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # file systems that sync no folders
            raise
    finally:
        os.close(descriptor)


def is_remote(path: Any) -> bool:
    """Whether a path is in a bucket and not on a disk."""
    return "://" in os.fspath(path)


# ------------------------------------------------------------------------------ JSON


def write_json(path: Any, value: Any) -> None:
    """Writes a JSON file, whole or not at all, over what is there; NaN and infinity as null, as
    JSON has no word for them."""
    text = json.dumps(_finite(value), indent=1, sort_keys=True, allow_nan=False)
    with replacing(path) as partial:
        partial.write_text(text)


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def read_json(path: Any) -> dict[str, Any]:
    """The object of a JSON file.

    Raises:
      DamagedFile: it cannot be read (see `read_bytes`), is no JSON, or no object; it repeats a key
        or holds a number that JSON has no word for.
    """
    try:
        return parse_json(read_bytes(path, MAX_JSON).decode())
    except UnicodeDecodeError:
        raise DamagedFile("it is no UTF-8 text") from None


def read_bytes(path: Any, limit: int) -> bytes:
    """The content of a file of at most `limit` bytes.

    Raises:
      DamagedFile: it is missing, too long, or a link, a pipe, a device or a folder.
    """
    try:
        if not is_remote(path) and kind(path) != "file":
            raise DamagedFile(f"it is a {kind(path)}, not a file")
        size = path.stat().length if is_remote(path) else os.lstat(path).st_size
        if size > limit:
            raise DamagedFile(f"it has {size} bytes, more than {limit}")
        return path.read_bytes()
    except FileNotFoundError:
        raise DamagedFile("it is missing") from None
    except OSError as error:
        raise DamagedFile(f"it cannot be read ({error.strerror or error})") from error


def parse_json(text: str) -> dict[str, Any]:
    """The object of a JSON text. Raises DamagedFile for anything else (see `read_json`)."""
    if not text.strip():
        raise DamagedFile("it is empty")
    try:
        value = json.loads(text, object_pairs_hook=_object, parse_constant=_constant)
    except DamagedFile:
        raise
    except (ValueError, RecursionError) as error:
        raise DamagedFile(f"it is no JSON ({error})") from None
    if not isinstance(value, dict):
        raise DamagedFile("it holds no JSON object")
    return value


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise DamagedFile("it repeats a key")
    return found


def _constant(word: str) -> Any:
    raise DamagedFile(f"it holds {word}, which is no number in JSON")


def quarantine(path: Any, workdir: Any, why: str) -> None:
    """Moves a file or folder of a workdir to its `quarantine/`, under a name with the time, and
    says so. Nothing there is ever deleted."""
    now = datetime.datetime.now(datetime.UTC).strftime("%Y%m%dT%H%M%S.%f")
    target = workdir / "quarantine" / f"{path.name}-{now}"
    target.parent.mkdir(parents=True, exist_ok=True)
    if is_remote(path):
        path.rename(target)
    else:
        shutil.move(path, target)  # which moves a link and not what it names
    _log.warning("%s: %s; moved to %s", path, why, target)


# ------------------------------------------------------------------------------ folders


class Entry(NamedTuple):
    """Something below a folder; `kind` is "file", or what else it is ("link", "pipe", ...)."""

    name: str  # relative, with slashes
    path: Any
    kind: str


def entries(folder: Any) -> Iterator[Entry]:
    """Everything below a folder but folders, in order. Links are named and never followed."""
    for path in sorted(folder.iterdir(), key=lambda p: p.name):
        what = kind(path)
        if what == "folder":
            yield from (e._replace(name=f"{path.name}/{e.name}") for e in entries(path))
        else:
            yield Entry(path.name, path, what)


def exists(path: Any) -> bool:
    """Whether there is something, be it a link that leads nowhere."""
    return path.exists() or (not is_remote(path) and os.path.islink(path))


def kind(path: Any) -> str:
    """What a path is by itself: "file", "folder", "link", "pipe", "socket" or "device".

    Raises:
      FileNotFoundError: it is not there.
    """
    if is_remote(path):
        return "folder" if path.is_dir() else "file"
    mode = os.lstat(path).st_mode
    kinds = {stat.S_ISREG: "file", stat.S_ISDIR: "folder", stat.S_ISLNK: "link"}
    kinds |= {stat.S_ISFIFO: "pipe", stat.S_ISSOCK: "socket"}
    return next((name for test, name in kinds.items() if test(mode)), "device")
