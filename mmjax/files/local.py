"""A local folder that stands for one in a bucket, for code that writes files by their names."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mmjax.files import bucket

__all__ = ["standing_for"]


@contextlib.contextmanager
def standing_for(folder: Any, last: str) -> Iterator[Path]:
    """Yields a local copy of a folder; what has changed in it is uploaded at the end.

    Args:
      last: the file that says that the others are complete; uploaded after them, and only a folder
        that has it is copied here.
    """
    there = bucket.listing(folder)
    with tempfile.TemporaryDirectory(prefix="mmjax_") as temporary:
        local = Path(temporary) / folder.name
        local.mkdir()
        before = {}
        for name in there if last in there else ():
            if ".." not in name.split("/"):
                (local / name).parent.mkdir(parents=True, exist_ok=True)
                bucket.download(folder / name, local / name)
                before[name] = _mark(local / name)
        try:
            yield local
        finally:
            _upload(local, folder, before, last)


def _upload(local: Path, folder: Any, before: dict[str, Any], last: str) -> None:
    now = {p.relative_to(local).as_posix(): p for p in sorted(local.rglob("*")) if p.is_file()}
    changed = [name for name, path in now.items() if before.get(name) != _mark(path)]
    for name in sorted(changed, key=lambda name: name == last):
        bucket.upload(now[name], folder / name)
    bucket.delete(folder / name for name in before.keys() - now.keys())


def _mark(path: Path) -> tuple[int, int, int]:
    stat = path.stat()
    return stat.st_ino, stat.st_size, stat.st_mtime_ns
