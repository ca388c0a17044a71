"""What was found out about data files once, kept beside them: arrays in `.npz` files."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
from collections.abc import Mapping, Sequence
from glob import glob
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from mmjax import atomic

EDGE = 1 << 16  # bytes at each end of a file that tell it from another of its size
MAX_PATHS = 1_000_000  # of the braces of one pattern


def find(pattern: str) -> list[Path]:
    """Files that a pattern of `*`, `?`, `[..]`, `**`, `{a,b}` and `{000..123}` names, in order.

    A path without wildcards is given back whether it exists or not; so are those of braces.
    """
    found: dict[str, None] = {}
    for name in braces(pattern):
        name = os.path.expanduser(name)
        wild = any(c in name for c in "*?[") and not os.path.exists(name)
        found |= dict.fromkeys(sorted(glob(name, recursive=True)) if wild else [name])
    return [Path(name) for name in found]


def braces(pattern: str) -> list[str]:
    """The patterns that `{a,b}` and `{000..123}` (as wide as its first number) stand for."""
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
    """Tells whether a file is the one that was looked at: name, size, hash of its two ends."""
    size = path.stat().st_size
    digest = hashlib.blake2b(f"{path.name} {size} ".encode(), digest_size=12)
    with path.open("rb") as file:
        digest.update(file.read(EDGE))
        file.seek(max(0, size - EDGE))
        digest.update(file.read(EDGE))
    return digest.hexdigest()


def folders(cache: str, data: Path) -> list[Path]:
    """Where an index may lie: in `cache`, or beside the data, or where only that is read-only."""
    if cache:
        return [Path(cache).expanduser()]
    own = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return [data.parent / ".mmjax", Path(own) / "mmjax"]


def load(name: str, places: Sequence[Path]) -> tuple[dict[str, Any], dict[str, np.ndarray]] | None:
    """(notes, arrays) that `save` wrote; None when there are none that can be read."""
    for place in places:
        try:
            with np.load(place / f"{name}.npz", allow_pickle=False) as file:
                arrays = {key: file[key] for key in file.files}
            return json.loads(arrays.pop("notes").tobytes()), arrays
        except Exception:  # absent or damaged: it is made again
            continue
    return None


def save(
    name: str,
    notes: Mapping[str, Any],
    arrays: Mapping[str, np.ndarray],
    places: Sequence[Path],
) -> Path | None:
    """Writes an index, whole or not at all; its path, or None where no place can be written."""
    content = np.frombuffer(json.dumps(notes).encode(), np.uint8)
    for place in places:
        target = place / f"{name}.npz"
        with contextlib.suppress(OSError):
            place.mkdir(parents=True, exist_ok=True)
            with atomic.replacing(target) as partial, partial.open("wb") as file:
                np.savez(file, notes=content, **arrays)  # type: ignore[arg-type]
            return target
    return None
