"""Whole files of a data set: those that cannot be read, and those that are no data."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from mmjax import console

NAMED = 8  # files that a line names
NOTES = ("readme", "license", "licence", "copying", "notice", "changelog", "citation", "authors")
NOTE_SUFFIXES = ("", "md", "txt", "rst", "cff")
FOREIGN = ("__MACOSX",)  # what other systems put into archives
PACKED = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstd"}


class Skipped:
    """The table of a file that cannot be read: no records."""

    numbered = False

    def __init__(self, why: str):
        self.why = why
        self.names: list[str] = []

    def __len__(self) -> int:
        return 0


def tables(who: str, paths: Sequence[Path], open_one: Callable[[Path], Any], skip: bool) -> list:
    """The table of each file; one that raises ValueError is refused, or skipped and named.

    Raises ValueError also if no file can be read.
    """
    found: list[Any] = []
    for path in paths:
        try:
            found.append(open_one(path))
        except ValueError as error:
            if len(paths) == 1:
                raise
            if not skip:
                raise ValueError(
                    f"{error} Or leave such files out: guards.on_bad_shard='skip'."
                ) from error
            found.append(Skipped(str(error)))
    bad = [table.why for table in found if isinstance(table, Skipped)]
    if bad and len(bad) == len(found):
        raise ValueError(
            f"{who}: none of {len(bad)} files can be read, the first because: {bad[0]}"
        )
    if bad and is_first_process():
        more = f" (and {len(bad) - NAMED} more)" if len(bad) > NAMED else ""
        console.say_once(
            f"{who}: {len(bad)} of {len(found)} files are skipped: {' '.join(bad[:NAMED])}{more}"
        )
    return found


def is_first_process() -> bool:
    """Whether this is no worker, so that what is said is said once."""
    return multiprocessing.parent_process() is None


def is_note(name: str) -> bool:
    """Whether a file is a README or the like, hidden, or in a hidden folder: no data."""
    *folders, base = name.split("/")
    if any(part in FOREIGN or (part.startswith(".") and part != ".") for part in (*folders, base)):
        return True
    stem, _, suffix = base.partition(".")
    return stem.lower() in NOTES and suffix.lower() in NOTE_SUFFIXES


def packing(content: bytes) -> str:
    """How a file is compressed, by its first bytes; empty if it is not."""
    return next((name for magic, name in PACKED.items() if content.startswith(magic)), "")
