"""Folder: files with a CSV or JSON-lines table, or with captions beside them."""

from __future__ import annotations

import collections
import csv
import dataclasses
import hashlib
import io
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mmjax.data.files import Files, Table
from mmjax.data.source import BadRecord

__all__ = ["Folder"]

TABLES = ("metadata.csv", "metadata.jsonl")
MAX_CELL = 1 << 26  # characters


@dataclasses.dataclass(frozen=True, kw_only=True)
class Folder(Files):
    """Rows of a table, some columns of which name files; or files of one stem, without a table.

    `path` is a `.csv` (with a head line) or `.jsonl` file, or a folder with `metadata.csv` or
    `metadata.jsonl`. A folder without a table holds `a/1.jpg`, `a/1.txt`: record `a/1` with fields
    `jpg` and `txt`, as in a tar file. Empty cells and JSON nulls are absent values.

    Fields:
      file_columns: columns that name files; their bytes are the value.
      root: folder that they are relative to; empty = that of the table. None may lead out of it.
    """

    file_columns: tuple[str, ...] = ("file_name",)
    root: str = ""

    def _table(self, path: Path) -> Table:
        tables = [path / name for name in TABLES if (path / name).exists()]
        if path.is_dir() and not tables:
            return _Stems(path)
        path = tables[0] if path.is_dir() else path
        if path.suffix not in (".csv", ".jsonl"):
            raise ValueError(
                f"Folder: {str(path)!r} is no .csv or .jsonl table and no folder; give one."
            )
        root = Path(self.root).expanduser() if self.root else path.parent
        return _Rows(path, root, self.file_columns)

    def _stamp(self, path: Path) -> str:
        if not path.is_dir():
            return super()._stamp(path)
        stems, digest = _Stems(path), hashlib.blake2b(digest_size=12)
        for i in range(len(stems)):
            sizes = [(name, file.stat().st_size) for name, file in stems.files(i).items()]
            digest.update(f"{stems.key(i)} {sizes}".encode("utf-8", "surrogateescape"))
        return digest.hexdigest()

    def _paths(self, split: str) -> list[Path]:
        found = []
        for path in super()._paths(split):
            tables = [path / name for name in TABLES if (path / name).exists()]
            if len(tables) > 1:
                raise ValueError(f"Folder: {str(path)!r} has {TABLES}; keep one, or name it.")
            if path.is_dir() and not tables:
                _refuse_lone_table(path)
            found.append(tables[0] if tables else path)
        return found


class _Rows:
    """A table in memory."""

    numbered = True

    def __init__(self, path: Path, root: Path, file_columns: Sequence[str]):
        self._root, self._files = root, set(file_columns)
        self._rows = _csv(path) if path.suffix == ".csv" else _json_lines(path)
        self.names = list(dict.fromkeys(n for r in self._rows if isinstance(r, dict) for n in r))

    def __len__(self) -> int:
        return len(self._rows)

    def key(self, row: int) -> str:
        return str(row)

    def label(self, row: int) -> str:
        cells = self._rows[row]
        files = [cells.get(n) for n in sorted(self._files)] if isinstance(cells, dict) else []
        return " ".join([str(row), *(f"({name})" for name in files if name)])

    def read(self, row: int, names: Sequence[str]) -> dict[str, Any]:
        cells = self._rows[row]
        if isinstance(cells, str):
            raise BadRecord("row", cells)
        found = {name: cells.get(name) for name in names}
        for name in self._files & found.keys():
            if found[name] is not None:
                found[name] = read_file(self._root, found[name])
        return found


def read_file(root: Path, name: Any) -> bytes:
    """A file that a record names. Raises BadRecord when it is absent or outside of `root`."""
    if not isinstance(name, str) or os.path.isabs(name) or ".." in Path(name).parts:
        raise BadRecord("outside", f"{name!r} is no name of a file inside {root}")
    try:
        return (root / name).read_bytes()
    except (OSError, ValueError) as error:
        raise BadRecord("no_file", f"{root / name}: {error}") from error


def _refuse_lone_table(folder: Path) -> None:
    """Raises ValueError for a table of another name, which would else be a record by itself."""
    names = [p.name for p in folder.iterdir() if p.name[0] != "."]
    count = collections.Counter(name.partition(".")[0] for name in names)
    for name in sorted(n for n in names if Path(n).suffix in (".csv", ".jsonl")):
        if count[name.partition(".")[0]] == 1 < len(names):
            raise ValueError(
                f"Folder: {str(folder)!r} has no {' or '.join(TABLES)}, but {name}: give"
                f" path={str(folder / name)!r}, or rename the table."
            )


def _csv(path: Path) -> list[dict[str, Any] | str]:
    """Cells by column; what is wrong, where a row has another number of them."""
    text = path.read_bytes().decode("utf-8-sig", "surrogateescape")
    before = csv.field_size_limit(MAX_CELL)
    try:
        lines = list(csv.reader(io.StringIO(text, newline=""), strict=True))
    except csv.Error as error:
        raise ValueError(f"Folder: {str(path)!r} is no CSV file: {error}.") from error
    finally:
        csv.field_size_limit(before)
    head, *rows = lines or [[]]
    other = next((mark for mark in (";", "\t") if len(head) == 1 and mark in head[0]), "")
    if other:
        raise ValueError(
            f"Folder: {str(path)!r} has one column, {head[0]!r}: its cells seem to be separated by"
            f" {other!r}; save it with commas."
        )
    if not head or len(set(head)) < len(head):
        raise ValueError(f"Folder: {str(path)!r} needs a first line of different column names.")
    return [
        {n: cell or None for n, cell in zip(head, row, strict=True)}
        if len(row) == len(head)
        else f"it has {len(row)} cells of {len(head)}"
        for row in rows
        if row
    ]


def _json_lines(path: Path) -> list[dict[str, Any] | str]:
    """An object a line; what is wrong, where there is none."""
    found: list[dict[str, Any] | str] = []
    for line in path.read_bytes().splitlines():
        if not line.strip():
            continue
        try:
            value = json.loads(line.decode("utf-8", "surrogateescape"))
        except (ValueError, RecursionError) as error:
            value = error
        found.append(value if isinstance(value, dict) else f"no JSON object: {value}"[:200])
    return found


class _Stems:
    """A folder without a table: files of one stem make a record."""

    numbered = False

    def __init__(self, path: Path):
        records: dict[str, dict[str, Path]] = {}
        for folder, folders, files in os.walk(path):
            folders[:] = sorted(f for f in folders if f[0] != ".")
            for name in sorted(files):
                stem, dot, field = name.partition(".")
                if stem and dot:
                    key = (Path(folder).relative_to(path) / stem).as_posix()
                    records.setdefault(key, {})[field.lower()] = Path(folder, name)
        if not records:
            raise ValueError(f"Folder: {str(path)!r} holds no file; give a folder with data.")
        self._keys, self._records = list(records), list(records.values())
        self.names = ["__key__", *dict.fromkeys(n for r in self._records for n in r)]

    def __len__(self) -> int:
        return len(self._keys)

    def key(self, row: int) -> str:
        return self._keys[row]

    def files(self, row: int) -> dict[str, Path]:
        """Files of a record by field."""
        return self._records[row]

    def read(self, row: int, names: Sequence[str]) -> dict[str, Any]:
        files = self._records[row]
        found = {n: read_file(files[n].parent, files[n].name) for n in names if n in files}
        return {"__key__": self._keys[row], **found}
