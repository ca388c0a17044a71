"""Data files of a bucket on a local disk, where they are read at random as those of a disk are.

    ~/.cache/mmjax/staged/<hash of the folder>/{objects by their names, .staged.json}

A copy is used again if it has the size and the version (generation) that the bucket tells. What was
used least lately is deleted when a new copy needs its room, unless a process reads it.
"""

from __future__ import annotations

import fcntl
import functools
import hashlib
import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mmjax import console, files
from mmjax.config.error import ConfigError
from mmjax.data import index
from mmjax.files import bucket
from mmjax.processes import compile_cache

__all__ = ["ROOM", "VARIABLE", "address", "find", "one"]

ROOM = 1 << 37  # bytes of all copies; MMJAX_STAGING_BYTES says another number
VARIABLE = "MMJAX_STAGING_BYTES"
NOTE = ".staged.json"
_held: dict[Path, int] = {}  # folders that this process reads, and the locks that say so
_folders: dict[Path, str] = {}  # of which folders of buckets they are the copies


def find(pattern: str, beside: bool = False) -> list[Path]:
    """Local copies of the objects that a pattern of `index.find` means, in order.

    A folder stands for all that is below it. A path that is not there is given as it would be.

    Args:
      beside: whether everything in the folder of a single object is copied too.
    """
    paths: dict[Path, None] = {}
    for name in index.braces(pattern):
        name = name.rstrip("/")
        top = re.split(r"[*?\[]", name, maxsplit=1)[0]
        folder, _, last = top.rpartition("/")
        if top != name:
            there = bucket.listing(folder)
            inside = re.compile(_regular(name.removeprefix(f"{folder}/")))
            local = _copied(folder, {n: s for n, s in there.items() if inside.fullmatch(n)})
            paths |= dict.fromkeys(local.values())
            continue
        below = bucket.listing(name)
        if below:
            _copied(name, below)
            paths[_place(name)] = None
        else:
            _one(folder, last, beside)
            paths[_place(folder) / last] = None
    return list(paths)


def address(path: str) -> str:
    """The path in a bucket of a copy, or of a pattern of copies, that this process made or found;
    any other path as it is."""
    for place, folder in _folders.items():
        if f"{path}/".startswith(f"{place}/"):
            return folder + path[len(str(place)) :]
    return path


def one(path: Any) -> Path:
    """The local copy of an object. Raises FileNotFoundError."""
    folder, _, name = os.fspath(path).rpartition("/")
    return _copied(folder, {name: bucket.stat(path)})[name]


def _one(folder: str, name: str, beside: bool) -> None:
    there = bucket.listing(folder)
    if name in there:
        _copied(folder, there if beside else {name: there[name]})


def _regular(pattern: str) -> str:
    """The regular expression of a pattern whose `*` does not match a slash."""
    parts = re.split(r"(\*\*/|\*\*|\*|\?|\[[^\]]+\])", pattern)
    known = {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}
    return "".join(known.get(p, p if p.startswith("[") else re.escape(p)) for p in parts)


@functools.lru_cache(1024)
def _place(folder: str) -> Path:
    try:
        home = compile_cache.own_folder("staged")
    except compile_cache.Refused as error:
        raise ConfigError(
            f"Data in {folder!r} need a folder for their copies: {error}; set XDG_CACHE_HOME to a"
            " folder on a local disk that is yours."
        ) from error
    return home / hashlib.sha256(folder.encode()).hexdigest()[:20]


def _room() -> int:
    said = os.environ.get(VARIABLE, "")
    if said and not said.isdecimal():
        raise ConfigError(f"{VARIABLE}={said!r} is no number of bytes; write one such as {ROOM}.")
    return int(said or ROOM)


def _copied(folder: str, wanted: Mapping[str, bucket.Stat]) -> dict[str, Path]:
    """Copies of objects below a folder, by their relative names."""
    for name in wanted:
        if any(part in ("", ".", "..") for part in name.split("/")) or name == NOTE:
            raise ValueError(f"Data: {folder}/{name!r} is no name of a file; leave it out.")
    place = _place(folder)
    _folders[place] = folder
    place.mkdir(parents=True, exist_ok=True)
    if place not in _held:  # shared by all readers, and kept by this process until it ends
        _held[place] = os.open(f"{place}.reads", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        fcntl.flock(_held[place], fcntl.LOCK_SH)
    writes = os.open(f"{place}.writes", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(writes, fcntl.LOCK_EX)  # one process copies, the others then find the copies
        known = _known(place)
        missing = {n: s for n, s in wanted.items() if not _is_copy(place / n, s, known.get(n))}
        if missing:
            _make_room(place, folder, sum(stat.size for stat in wanted.values()))
            _copy(folder, place, missing, known)
        os.utime(place)
    finally:
        os.close(writes)
    return {name: place / name for name in wanted}


def _known(place: Path) -> dict[str, Any]:
    try:
        return files.read_json(place / NOTE)
    except files.DamagedFile:
        return {}


def _is_copy(path: Path, wanted: bucket.Stat, known: Any) -> bool:
    try:
        return known == [*wanted] and os.lstat(path).st_size == wanted.size
    except OSError:
        return False


def _copy(
    folder: str, place: Path, missing: Mapping[str, bucket.Stat], known: dict[str, Any]
) -> None:
    size = sum(stat.size for stat in missing.values())
    console.say(f"copying {len(missing)} objects ({size:,} bytes) of {folder} to {place}")
    bar = console.Progress(len(missing), 0, True, name="objects")
    for count, (name, stat) in enumerate(missing.items(), 1):
        path = place / name
        path.parent.mkdir(parents=True, exist_ok=True)
        with files.replacing(path) as partial:
            bucket.download(f"{folder}/{name}", partial)
            if os.lstat(partial).st_size != stat.size:
                raise ValueError(
                    f"Data: {folder}/{name} has changed while it was copied; try again."
                )
        known[name] = [*stat]
        bar.advance(count)
        if count == len(missing) or not count % 64:
            files.write_json(place / NOTE, known)
    bar.close()


def _make_room(place: Path, folder: str, size: int) -> None:
    """Deletes copies that nobody reads until `size` bytes more fit."""
    room = _room()
    if size > room:
        raise ConfigError(
            f"Data in {folder!r}: {size:,} bytes are more than the {room:,} that copies of buckets"
            f" may take on this disk; set {VARIABLE} to more, copy them to a disk, or mount the"
            " bucket (gcsfuse) and give that path."
        )
    others = [p for p in place.parent.iterdir() if p.is_dir() and p != place]
    others.sort(key=lambda p: p.stat().st_mtime)
    used = {p: sum(e.path.stat().st_size for e in files.entries(p)) for p in others}
    for other in others:
        if sum(used.values()) + size <= room:
            return
        reads = os.open(f"{other}.reads", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(reads, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(other, ignore_errors=True)
            del used[other]
        except BlockingIOError:
            continue
        finally:
            os.close(reads)
    if sum(used.values()) + size > room:
        raise ConfigError(
            f"Data in {folder!r}: {size:,} bytes do not fit beside {sum(used.values()):,} of copies"
            f" that other processes read, of {room:,} in all; set {VARIABLE} to more."
        )
