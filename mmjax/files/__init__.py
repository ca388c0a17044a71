"""File access: atomic writes, size-limited reads, and links never followed.

Paths are `etils.epath` or `pathlib` ones, of a disk or of a bucket. An object of a bucket is
complete once it is visible, and has no links; what fails there is told as StorageError or
ConfigError.
"""

from __future__ import annotations

import contextlib
import datetime
import errno
import fnmatch
import json
import logging
import math
import os
import shutil
import stat
import tempfile
import uuid
from collections.abc import Iterator
from typing import Any, NamedTuple

from mmjax.files import bucket

__all__ = [
    "SCHEMES",
    "DamagedFile",
    "Entry",
    "children",
    "delete_tree",
    "entries",
    "exists",
    "given",
    "is_remote",
    "kind",
    "make_folder",
    "move",
    "parse_json",
    "quarantine",
    "read_bytes",
    "read_json",
    "replacing",
    "sync",
    "write_bytes",
    "write_json",
]

SCHEMES = ("gs", "s3", "az", "hf")  # of epath
PARTIAL = ".partial"  # suffix of a file that is being written
MAX_JSON = 1 << 26  # bytes of a JSON file that is read
CHUNK = 1 << 20
_log = logging.getLogger("mmjax")


class DamagedFile(ValueError):
    """A file that mmjax wrote is damaged; the message says how."""


def given(path: Any) -> Any:
    """The path that a user named, local or in a bucket, with `~` for the home folder.

    All else stands for itself: use `children`, not `glob`, which takes brackets for a pattern.
    """
    from etils import epath

    from mmjax.config.error import ConfigError

    text = os.fspath(path)
    scheme = text.partition("://")[0] if "://" in text else ""
    if scheme and scheme not in SCHEMES:
        raise ConfigError(
            f"Path {text!r}: {scheme}:// is no place that can be written here; use a local path, or"
            f" one of {', '.join(f'{name}://' for name in SCHEMES)}."
        )
    return epath.Path(os.path.expanduser(text) if text.startswith("~") else text)


@contextlib.contextmanager
def replacing(path: Any) -> Iterator[Any]:
    """Yields a temporary path to write to, which becomes `path` at the end.

    Readers and other writers see either the old file or the complete new one, also after a power
    failure; an error leaves the old file. The temporary file is beside `path`; for an object it is
    on a local disk, and uploaded at the end.
    """
    if is_remote(path):
        from etils import epath

        with tempfile.TemporaryDirectory(prefix="mmjax_") as folder:
            local = epath.Path(folder) / path.name
            yield local
            bucket.upload(local, path)
        return
    partial = path.parent / f".{path.name}.{uuid.uuid4().hex}{PARTIAL}"
    try:
        yield partial
        sync(partial)
        partial.replace(path)  # rename fails if the file exists
        sync(path.parent)
    finally:
        partial.unlink(missing_ok=True)


def sync(path: Any) -> None:
    """Syncs a file or a folder to disk; does nothing for a bucket.

    Raises OSError if the disk fails, so that lost data is never taken to be saved.
    """
    if is_remote(path):
        return
    descriptor = os.open(os.fspath(path), os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # some file systems cannot
            raise
    finally:
        os.close(descriptor)


def is_remote(path: Any) -> bool:
    """Whether a path is in a bucket rather than on a disk."""
    return "://" in os.fspath(path)


# ------------------------------------------------------------------------------ JSON


def write_json(path: Any, value: Any) -> None:
    """Writes or replaces a JSON file atomically; NaN and infinity become null."""
    text = as_json(value)
    if is_remote(path):
        bucket.write(path, text.encode())
        return
    with replacing(path) as partial:
        partial.write_text(text)


def as_json(value: Any) -> str:
    """The text of a JSON file; NaN and infinity become null."""
    return json.dumps(_finite(value), indent=1, sort_keys=True, allow_nan=False)


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def read_json(path: Any) -> dict[str, Any]:
    """The object of a JSON file.

    Raises:
      DamagedFile: it cannot be read (see `read_bytes`), is not a JSON object, repeats a key, or
        holds NaN or infinity.
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
        if is_remote(path):
            content = bucket.read(path, limit + 1)
            if len(content) > limit:
                raise DamagedFile(f"it has more than {limit} bytes")
            return content
        if kind(path) != "file":
            raise DamagedFile(f"it is a {kind(path)}, not a file")
        size = os.lstat(path).st_size
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
    mapping = dict(pairs)
    if len(mapping) < len(pairs):
        raise DamagedFile("it repeats a key")
    return mapping


def _constant(word: str) -> Any:
    raise DamagedFile(f"it holds {word}, which is no number in JSON")


def quarantine(path: Any, workdir: Any, why: str) -> None:
    """Moves a file or folder of a workdir to its `quarantine/`, which is never emptied; prints
    why. In a bucket it is copied, and deleted once the copy is complete."""
    now = datetime.datetime.now(datetime.UTC).strftime("%Y%m%dT%H%M%S.%f")
    target = workdir / "quarantine" / f"{path.name}-{now}"
    make_folder(target.parent)
    if is_remote(path):
        move(path, target)
    else:
        shutil.move(path, target)  # moves a link itself, not its target
    _log.warning("%s: %s; moved to %s", path, why, target)


# ------------------------------------------------------------------------------ folders


class Entry(NamedTuple):
    """An entry below a folder; `kind` is "file", "link", "pipe", ..."""

    name: str  # relative, with slashes
    path: Any
    kind: str


def make_folder(folder: Any) -> None:
    """Makes a folder and those above it; in a bucket there is nothing to make."""
    if not is_remote(folder):
        folder.mkdir(parents=True, exist_ok=True)


def write_bytes(path: Any, content: bytes) -> None:
    """Writes a file that nobody reads yet; `replacing` is for others."""
    if is_remote(path):
        bucket.write(path, content)
    else:
        path.write_bytes(content)


def move(path: Any, target: Any) -> None:
    """Renames a file or folder. In a bucket it is copied, then deleted: a kill leaves both."""
    if is_remote(path):
        bucket.copy(path, target)
        delete_tree(path)
    else:
        path.rename(target)


def delete_tree(path: Any) -> None:
    """Deletes a folder and all below it, or a file."""
    if is_remote(path):
        below = bucket.listing(path)
        bucket.delete([path / name for name in below] or [path])
    else:
        path.rmtree()


def children(folder: Any, pattern: str) -> list[Any]:
    """Paths in a folder whose names match a pattern, sorted; [] where that is no folder."""
    if is_remote(folder):
        there = [folder / name for name in bucket.names(folder)]
    else:
        there = folder.iterdir() if folder.is_dir() else ()
    return sorted(path for path in there if fnmatch.fnmatch(path.name, pattern))


def entries(folder: Any) -> Iterator[Entry]:
    """All entries below a folder, sorted, without folders. Links are listed, never followed."""
    if is_remote(folder):
        yield from (Entry(name, folder / name, "file") for name in bucket.listing(folder))
        return
    for path in sorted(folder.iterdir(), key=lambda p: p.name):
        what = kind(path)
        if what == "folder":
            yield from (e._replace(name=f"{path.name}/{e.name}") for e in entries(path))
        else:
            yield Entry(path.name, path, what)


def exists(path: Any) -> bool:
    """Whether a path exists, even as a broken link.

    A bucket that does not answer is an error: a run must not take it for an empty one.
    """
    if not is_remote(path):
        return path.exists() or os.path.islink(path)
    try:
        return bool(bucket.kind(path))
    except FileNotFoundError:
        return False


def kind(path: Any) -> str:
    """The kind of a path, links not followed: file, folder, link, pipe, socket or device.

    Raises:
      FileNotFoundError: it does not exist.
    """
    if is_remote(path):
        return bucket.kind(path)
    mode = os.lstat(path).st_mode
    kinds = {stat.S_ISREG: "file", stat.S_ISDIR: "folder", stat.S_ISLNK: "link"}
    kinds |= {stat.S_ISFIFO: "pipe", stat.S_ISSOCK: "socket"}
    return next((name for test, name in kinds.items() if test(mode)), "device")
