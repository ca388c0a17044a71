"""Index of data files, kept beside them so that they are scanned once: arrays in `.npz` files."""

from __future__ import annotations

import contextlib
import glob
import hashlib
import io
import json
import os
import re
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from mmjax import console, files
from mmjax.files import confined, npy
from mmjax.processes import compile_cache

Index = tuple[dict[str, Any], dict[str, np.ndarray]]
EDGE = 1 << 16  # bytes hashed at each end of a file, to tell files of equal size apart
BESIDE = ".mmjax"  # folder of indices, beside the data
MAX_PATHS = 1_000_000  # of the braces of one pattern


def find(pattern: str) -> list[Path]:
    """Files that match a pattern of `*`, `?`, `[..]`, `**`, `{a,b}` and `{000..123}`, in order.

    A path without wildcards is returned whether it exists or not, and so is every expansion of
    braces. `**` does not follow links to folders, which may form cycles.
    """
    names: dict[str, None] = {}
    for name in braces(pattern):
        name = os.path.expanduser(name)
        wild = any(c in name for c in "*?[") and not os.path.exists(name)
        names |= dict.fromkeys(sorted(_glob(name)) if wild else [name])
    return [Path(name) for name in names]


def _glob(pattern: str) -> Iterator[str]:
    """Like the module `glob`, but `**` does not follow links to folders."""
    parts = re.match(r"(?P<top>(?:.*?/)?)\*\*(?:/(?P<rest>.*))?$", pattern)
    if not parts:
        yield from glob.iglob(pattern)
        return
    rest = parts["rest"]
    for top in glob.iglob(parts["top"]) if parts["top"] else [""]:
        for folder, folders, names in os.walk(top or "."):
            folders[:] = sorted(f for f in folders if f[0] != ".")
            here = folder if top else folder[2:]
            if rest is None:
                yield from (os.path.join(here, name) for name in names if name[0] != ".")
            else:
                yield from _glob(os.path.join(glob.escape(here), rest))


def braces(pattern: str) -> list[str]:
    """The patterns that `{a,b}` and `{000..123}` (as wide as its first number) stand for.

    Not by the package `braceexpand`, which makes all numbers of a range before the first pattern,
    so that `{0..99999999999}` takes the memory.
    """
    parts = re.split(r"\{([^{}]*)\}", pattern)
    choices: list[Sequence[str]] = []
    total = 1
    for i, part in enumerate(parts):
        span = re.fullmatch(r"(\d+)\.\.(\d+)", part) if i % 2 else None
        if span:
            first, last = int(span[1]), int(span[2])
            total *= max(last - first + 1, 1)
            if total > MAX_PATHS:
                raise ValueError(f"Pattern {pattern!r}: more than {MAX_PATHS} files; check {part}.")
            choices.append([f"{n:0{len(span[1])}}" for n in range(first, last + 1)])
        else:
            choices.append(part.split(",") if i % 2 else [part])
    return ["".join(chosen) for chosen in product(*choices)]


def stamp(path: Path) -> str:
    """A stamp that changes when a file does: name, size, hash of its two ends."""
    size = path.stat().st_size
    digest = hashlib.blake2b(f"{path.name} {size} ".encode(), digest_size=12)
    with os.fdopen(confined.descriptor(path), "rb") as file:
        digest.update(file.read(EDGE))
        file.seek(max(0, size - EDGE))
        digest.update(file.read(EDGE))
    return digest.hexdigest()


def folders(cache: str, data: Path) -> list[Path]:
    """Folders to try for an index: `cache`, or beside the data, then in the user's cache."""
    if cache:
        return [Path(cache).expanduser()]
    beside = data.parent / BESIDE
    with contextlib.suppress(compile_cache.Refused):  # a user without a home folder
        return [beside, compile_cache.base() / "mmjax"]
    return [beside]


def load(
    name: str,
    places: Sequence[Path],
    limit: int,
    check: Callable[[dict[str, Any], dict[str, np.ndarray]], None],
) -> Index | None:
    """(notes, arrays) that `save` wrote; None if there is no usable index.

    An index may come with downloaded data, so it is not trusted: one that fails a check is ignored
    with a message.

    Args:
      limit: largest size of the file, in bytes.
      check: raises ValueError for notes and arrays that cannot belong to these data.
    """
    wrong = ""
    for place in places:
        path = place / f"{name}.npz"
        try:
            notes, arrays = _unpacked(confined.read(path, limit, _root(place)))
            check(notes, arrays)
            return notes, arrays
        except OSError:  # absent
            continue
        except Exception as error:  # broken bytes may raise anything
            wrong = wrong or f"{path} is no index of these data ({error}); it is made again"
    if wrong:
        console.say(wrong)
    return None


def _unpacked(content: bytes) -> Index:
    """Notes and arrays of an uncompressed .npz file that `save` wrote."""
    with zipfile.ZipFile(io.BytesIO(content)) as file:
        members = file.infolist()
        if sum(m.file_size for m in members) > len(content):
            raise ValueError("it claims more bytes than it has")
        if any(m.compress_type != zipfile.ZIP_STORED for m in members):
            raise ValueError("it is compressed")
        arrays = {m.filename.removesuffix(".npy"): npy.parsed(file.read(m)) for m in members}
    notes = json.loads(arrays.pop("notes").tobytes())
    if not isinstance(notes, dict):
        raise ValueError("its notes are no object")
    return notes, arrays


def _root(place: Path) -> Path | None:
    """The folder that an index must lie in: that of the data. None for the user's own cache."""
    return place.parent if place.name == BESIDE else None


def check_column(arrays: Mapping[str, np.ndarray], name: str, dtype: Any) -> np.ndarray:
    """A column of an index. Raises ValueError if it is missing or of another type."""
    column = arrays.get(name)
    if column is None or column.dtype != np.dtype(dtype) or column.ndim != 1:
        raise ValueError(f"it has no column {name} of {np.dtype(dtype)}")
    return column


def check_rows(
    notes: dict[str, Any],
    arrays: dict[str, np.ndarray],
    stamps: list[str],
    shares: Mapping[str, float],
    total: int,
) -> None:
    """Raises ValueError for an invalid index of splits, or rows outside of these files.

    Of an index of other files or shares only its description is checked.
    """
    if not isinstance(notes.get("files"), list) or not isinstance(notes.get("shares"), dict):
        raise ValueError("it does not say which files and shares it is of")
    if notes["files"] != stamps or notes["shares"] != shares:
        return
    merged = np.concatenate([check_column(arrays, n, np.int64) for n in shares or ["all"]])
    seen = np.zeros(total, bool)
    if len(merged) == total and total and merged.min() >= 0 and merged.max() < total:
        seen[merged] = True
    if len(merged) != total or not seen.all():
        raise ValueError(f"its splits do not hold each of {total} records once")


def save(
    name: str,
    notes: Mapping[str, Any],
    arrays: Mapping[str, np.ndarray],
    places: Sequence[Path],
) -> Path | None:
    """Writes an index atomically; returns its path, or None if no folder is writable."""
    content = np.frombuffer(json.dumps(notes).encode(), np.uint8)
    for place in places:
        target = place / f"{name}.npz"
        if place.resolve() != place.parent.resolve() / place.name and _root(place):
            continue  # a link could make us write anywhere
        with contextlib.suppress(OSError):
            place.mkdir(parents=True, exist_ok=True)
            with files.replacing(target) as partial, partial.open("wb") as file:
                np.savez(file, notes=content, **arrays)  # type: ignore[arg-type]
            return target
    return None
