"""Folder: files with a CSV or JSON-lines table, or with captions beside them."""

from __future__ import annotations

import collections
import csv
import dataclasses
import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from mmjax.data.files import LIMIT, MAX_JSON, Files, Table
from mmjax.data.source import BadRecord
from mmjax.files import confined

__all__ = ["Folder"]

TABLES = ("metadata.csv", "metadata.jsonl")
MAX_CELL = 1 << 26  # characters
MAX_CELLS = 1 << 25  # of a table, which is kept in memory
MAX_TABLE = 1 << 30  # bytes


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
        tables = _tables(path)
        if path.is_dir() and not tables:
            return _Stems(path, self.max_record_bytes)
        path = tables[0] if path.is_dir() else path
        if path.suffix not in (".csv", ".jsonl"):
            raise ValueError(
                f"Folder: {str(path)!r} is no .csv or .jsonl table and no folder; give one."
            )
        root = Path(self.root).expanduser() if self.root else path.parent
        return _Rows(path, root, self.file_columns, self.max_record_bytes)

    def _not_read(self, path: Path) -> str:
        return "" if path.is_dir() else super()._not_read(path)

    def _stamp(self, path: Path) -> str:
        if not path.is_dir():
            return super()._stamp(path)
        stems, digest = _Stems(path), hashlib.blake2b(digest_size=12)
        for i in range(len(stems)):
            sizes = [(name, _size(file)) for name, file in stems.files(i).items()]
            digest.update(f"{stems.key(i)} {sizes}".encode("utf-8", "surrogateescape"))
        return digest.hexdigest()

    def _paths(self, split: str) -> list[Path]:
        found = []
        for path in super()._paths(split):
            tables = _tables(path)
            if len(tables) > 1:
                raise ValueError(f"Folder: {str(path)!r} has {TABLES}; keep one, or name it.")
            if path.is_dir() and not tables:
                _refuse_lone_table(path)
            found.append(tables[0] if tables else path)
        return found


def _tables(folder: Path) -> list[Path]:
    """The tables of a folder. Raises ValueError for one that is no file, or a link out of it."""
    found = [folder / name for name in TABLES if os.path.lexists(folder / name)]
    for path in found:
        try:
            os.close(confined.descriptor(path, folder))
        except (OSError, confined.Refused) as error:
            raise ValueError(
                f"Folder: {error}; put a table there, or name the one that you mean in path."
            ) from error
    return found


def _size(path: Path) -> int:
    """Bytes of a file; of what a link leads to, where that is there."""
    try:
        return path.stat().st_size
    except OSError:
        return -1


class _Rows:
    """A table in memory: of a CSV file its cells, of a JSON-lines file its lines."""

    numbered = True

    def __init__(self, path: Path, root: Path, file_columns: Sequence[str], limit: int = LIMIT):
        self._root, self._files, self._limit = root, set(file_columns), limit
        size = path.stat().st_size
        if size > MAX_TABLE:
            raise ValueError(
                f"Folder: {str(path)!r} has {size} bytes, more than {MAX_TABLE}, and is kept in"
                " memory; divide it, or write it as Parquet."
            )
        self._rows: list[Any] = []
        if path.suffix == ".csv":
            self.names, self._rows = _csv(path)
        else:
            self._rows = _json_lines(path)
            values = map(self._cells, range(len(self._rows)))
            self.names = list(dict.fromkeys(n for v in values if isinstance(v, dict) for n in v))

    def __len__(self) -> int:
        return len(self._rows)

    def _cells(self, row: int) -> dict[str, Any] | str:
        """Cells by column; what is wrong, where there are none."""
        found = self._rows[row]
        if isinstance(found, bytes):
            return _json_object(found)
        if isinstance(found, str):
            return found
        return {n: cell or None for n, cell in zip(self.names, found, strict=True)}

    def key(self, row: int) -> str:
        return str(row)

    def label(self, row: int) -> str:
        cells = self._cells(row)
        files = [cells.get(n) for n in sorted(self._files)] if isinstance(cells, dict) else []
        return " ".join([str(row), *(f"({name})" for name in files if name)])

    def read(self, row: int, names: Sequence[str]) -> dict[str, Any]:
        cells = self._cells(row)
        if isinstance(cells, str):
            raise BadRecord("row", cells)
        found, room = {name: cells.get(name) for name in names}, self._limit
        for name in sorted(self._files & found.keys()):
            if found[name] is not None:
                found[name] = content = read_file(self._root, found[name], room)
                room -= len(content)
        return found


def read_file(root: Path, name: Any, limit: int) -> bytes:
    """A file that a record names.

    Raises BadRecord when it is absent, no regular file, larger than `limit`, or outside of `root`,
    be it by its name or by links.
    """
    if not isinstance(name, str) or os.path.isabs(name) or ".." in Path(name).parts:
        raise BadRecord("outside", f"{name!r} is no name of a file inside {root}")
    try:
        return confined.read(root / name, limit, root)
    except confined.Refused as error:
        raise BadRecord(error.reason, error.detail) from error
    except OSError as error:
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


def _csv(path: Path) -> tuple[list[str], list[tuple[str, ...] | str]]:
    """Names of the columns, and cells of each row; what is wrong, where it has another number."""
    before = csv.field_size_limit(MAX_CELL)
    rows: list[tuple[str, ...] | str] = []
    room = MAX_CELLS
    try:
        with os.fdopen(
            confined.descriptor(path), encoding="utf-8-sig", errors="surrogateescape", newline=""
        ) as file:
            reader = csv.reader(_text_lines(file), strict=True)
            head = next(reader, [])
            for row in reader:
                room -= len(row)
                if room < 0:
                    raise csv.Error(f"it has more than {MAX_CELLS} cells; write it as Parquet")
                if row:
                    said = f"it has {len(row)} cells of {len(head)}"
                    rows.append(tuple(row) if len(row) == len(head) else said)
    except csv.Error as error:
        raise ValueError(f"Folder: {str(path)!r} is no CSV file: {error}.") from error
    finally:
        csv.field_size_limit(before)
    other = next((mark for mark in (";", "\t") if len(head) == 1 and mark in head[0]), "")
    if other:
        raise ValueError(
            f"Folder: {str(path)!r} has one column, {head[0]!r}: its cells seem to be separated by"
            f" {other!r}; save it with commas."
        )
    if not head or len(set(head)) < len(head):
        raise ValueError(f"Folder: {str(path)!r} needs a first line of different column names.")
    return head, rows


def _text_lines(file: Any) -> Iterator[str]:
    while line := file.readline(MAX_CELL):
        if len(line) == MAX_CELL:
            raise csv.Error(f"it has a line of more than {MAX_CELL} characters")
        yield line


def _json_lines(path: Path) -> list[bytes | str]:
    """The lines with something on them; what is wrong, where one is too long."""
    found: list[bytes | str] = []
    with os.fdopen(confined.descriptor(path), "rb") as file:
        while line := file.readline(MAX_JSON):
            if len(line) == MAX_JSON and line[-1:] != b"\n":
                while len(line) == MAX_JSON and line[-1:] != b"\n":
                    line = file.readline(MAX_JSON)
                found.append(f"a line of more than {MAX_JSON} bytes")
            elif line.strip():
                found.append(line.strip())
    return found


def _json_object(line: bytes) -> dict[str, Any] | str:
    """The object of a line; what is wrong, where there is none."""
    try:
        value = json.loads(line.decode("utf-8", "surrogateescape"))
    except (ValueError, RecursionError) as error:
        value = error
    return value if isinstance(value, dict) else f"no JSON object: {value}"[:200]


class _Stems:
    """A folder without a table: files of one stem make a record."""

    numbered = False

    def __init__(self, path: Path, limit: int = LIMIT):
        self._root, self._limit = path, limit
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
        files, room = self._records[row], self._limit
        found: dict[str, Any] = {"__key__": self._keys[row]}
        for name in (n for n in names if n in files):
            found[name] = read_file(self._root, str(files[name].relative_to(self._root)), room)
            room -= len(found[name])
        return found
