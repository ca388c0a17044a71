"""Folder: files with a CSV or JSON-lines table, or grouped by their stems."""

from __future__ import annotations

import collections
import contextlib
import csv
import dataclasses
import hashlib
import itertools
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from mmjax import console
from mmjax import files as mmjax_files
from mmjax.data import shards, staging
from mmjax.data.fields import MAX_JSON
from mmjax.data.files import LIMIT, MADE, FileRecords, Files, Table, named
from mmjax.data.source import BadRecord
from mmjax.files import confined

__all__ = ["Folder"]

TABLES = ("metadata.csv", "metadata.jsonl")
SHOWN = 5  # files that a line names
MAX_LISTED = 1_000_000  # files of a folder that are compared with a table
MAX_CELL = 1 << 26  # characters
MAX_CELLS = 1 << 25  # of a table; tables are kept in memory
MAX_TABLE = 1 << 30  # bytes


_looked_at: set[str] = set()  # tables of which it was said which files are in no row


@dataclasses.dataclass(frozen=True, kw_only=True)
class Folder(Files):
    """Rows of a table whose columns may name files; without a table, files that share a stem.

    `path` is a `.csv` (with a header) or `.jsonl` file, or a folder with `metadata.csv` or
    `metadata.jsonl`. A folder without a table holds `a/1.jpg`, `a/1.txt`: record `a/1` with fields
    `jpg` and `txt`, as in a tar file. Empty cells and JSON nulls are absent values.

    Fields:
      file_columns: columns that name files; the value is the file's bytes.
      root: folder that file names are relative to; empty = that of the table. No file may lie
        outside it.
    """

    file_columns: tuple[str, ...] = ("file_name",)
    root: str = ""

    def open(self, split: str) -> FileRecords:
        """As `Files.open`; says which files beside a table are in none of its rows."""
        records = super().open(split)
        about = repr((self.path, self.files, self.root, self.file_columns))
        if shards.is_first_process() and about not in _looked_at:
            _looked_at.add(about)
            with contextlib.suppress(ValueError):  # another split is not there, or no table
                self._say_without_row(records)
        return records

    def _say_without_row(self, records: FileRecords) -> None:
        """One line for the files of the kinds that rows name, which no row of any split names."""
        known = {t.path: t for t in records.tables if isinstance(t, _Rows)}
        paths = {p for split in self.splits() for p in self._paths(split) if not p.is_dir()}
        tables = [known.get(p) or self._table(p) for p in paths]
        tables = [table for table in tables if isinstance(table, _Rows)]
        for root in {table.root for table in tables}:
            named = {name for table in tables if table.root == root for name in table.file_names()}
            kinds = {os.path.splitext(name)[1].lower() for name in named}
            count, first = 0, []
            for name in itertools.islice(_walk(root, kinds), MAX_LISTED):
                if name not in named:
                    count += 1
                    first += [name] if count <= SHOWN else []
            if count:
                more = ", ..." if count > SHOWN else ""
                console.say_once(
                    f"Folder: {count} files of {str(root)!r} are in no row:"
                    f" {', '.join(first)}{more}"
                )

    def _table(self, path: Path) -> Table:
        tables = _tables(path)
        if path.is_dir() and not tables:
            return _Stems(path, self.max_record_bytes)
        path = tables[0] if path.is_dir() else path
        if path.suffix not in (".csv", ".jsonl"):
            raise ValueError(
                f"Folder: {str(path)!r} is no .csv or .jsonl table and no folder; give one."
            )
        root = self._root() or path.parent
        return _Rows(path, root, self.file_columns, self.max_record_bytes)

    def _found(self, pattern: str) -> list[Path]:
        if not mmjax_files.is_remote(pattern):
            return super()._found(pattern)
        return staging.find(pattern, beside=True)  # a table names files beside it

    def _not_read(self, path: Path) -> str:
        return "" if path.is_dir() else super()._not_read(path)

    def _root(self) -> Path | None:
        if mmjax_files.is_remote(self.root):
            return staging.find(self.root)[0]
        return Path(self.root).expanduser() if self.root else None

    def _stamp(self, path: Path) -> str:
        if not path.is_dir():
            return super()._stamp(path)
        # Stamps of older runs are of READMEs too.
        stems, digest = _Stems(path, notes=True), hashlib.blake2b(digest_size=12)
        for i in range(len(stems)):
            sizes = [(name, _size(file)) for name, file in stems.files(i).items()]
            digest.update(f"{stems.key(i)} {sizes}".encode("utf-8", "surrogateescape"))
        return digest.hexdigest()

    def _paths(self, split: str) -> list[Path]:
        paths = []
        for path in super()._paths(split):
            tables = _tables(path)
            if len(tables) > 1:
                raise ValueError(f"Folder: {str(path)!r} has {TABLES}; keep one, or name it.")
            if path.is_dir() and not tables:
                _refuse_lone_table(path)
            paths.append(tables[0] if tables else path)
        return paths


def _tables(folder: Path) -> list[Path]:
    """The tables of a folder. Raises ValueError for one that is not a file, or links outside."""
    tables = [folder / name for name in TABLES if os.path.lexists(folder / name)]
    for path in tables:
        try:
            os.close(confined.descriptor(path, folder))
        except (OSError, confined.Refused) as error:
            raise ValueError(
                f"Folder: {error}; put a table there, or name the one that you mean in path."
            ) from error
    return tables


def _size(path: Path) -> int:
    """Size of a file in bytes; links are followed if their target exists."""
    try:
        return path.stat().st_size
    except OSError:
        return -1


def _walk(root: Path, kinds: set[str]) -> Iterator[str]:
    """Names of the files below a folder, relative to it, that end as one of `kinds`."""
    for folder, folders, files in os.walk(root):
        folders[:] = sorted(f for f in folders if not shards.is_note(f))
        for name in sorted(files):
            if name[0] != "." and os.path.splitext(name)[1].lower() in kinds:
                yield os.path.relpath(os.path.join(folder, name), root)


class _Rows:
    """A table in memory: the cells of a CSV file, the lines of a JSON-lines file."""

    numbered = True

    def __init__(self, path: Path, root: Path, file_columns: Sequence[str], limit: int = LIMIT):
        self.path, self.root = path, root
        self._files, self._limit = set(file_columns), limit
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
        """Cells by column, or an error message."""
        cells = self._rows[row]
        if isinstance(cells, bytes):
            return _json_object(cells)
        if isinstance(cells, str):
            return cells
        return {n: cell or None for n, cell in zip(self.names, cells, strict=True)}

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
        values, room = {name: cells.get(name) for name in names}, self._limit
        for name in sorted(self._files & values.keys()):
            if values[name] is not None:
                values[name] = content = read_file(self.root, values[name], room)
                room -= len(content)
        return values

    def file_names(self) -> Iterator[str]:
        """Names of files in the rows, relative to the root."""
        for cells in map(self._cells, range(len(self._rows))):
            if isinstance(cells, dict):
                values = (cells.get(name) for name in self._files)
                top = os.path.join(os.path.abspath(self.root), "")
                names = (v.removeprefix(top) for v in values if isinstance(v, str))
                yield from map(os.path.normpath, names)


def read_file(root: Path, name: Any, limit: int) -> bytes:
    """The bytes of a file that a record names.

    Raises BadRecord if it is absent, not a regular file, larger than `limit`, or outside of `root`,
    by name or through links.
    """
    if isinstance(name, str) and os.path.isabs(name):  # inside of the root it is as good
        tops = (os.path.join(os.path.abspath(root), ""), os.path.join(os.path.realpath(root), ""))
        name = next((name[len(top) :] for top in tops if name.startswith(top)), name)
    if not isinstance(name, str) or os.path.isabs(name) or ".." in Path(name).parts:
        raise BadRecord("outside", f"{name!r} is no name of a file inside {root}")
    try:
        return confined.read(root / name, limit, root)
    except confined.Refused as error:
        raise BadRecord(error.reason, error.detail) from error
    except OSError as error:
        raise BadRecord("no_file", f"{root / name}: {error}") from error


def _refuse_lone_table(folder: Path) -> None:
    """Raises ValueError for a table with another name, which would be read as a record."""
    names = [p.name for p in folder.iterdir() if not shards.is_note(p.name)]
    count = collections.Counter(name.partition(".")[0] for name in names)
    for name in sorted(n for n in names if Path(n).suffix in (".csv", ".jsonl")):
        if count[name.partition(".")[0]] == 1 < len(names):
            raise ValueError(
                f"Folder: {str(folder)!r} has no {' or '.join(TABLES)}, but {name}: give"
                f" path={str(folder / name)!r}, or rename the table."
            )


def _csv(path: Path) -> tuple[list[str], list[tuple[str, ...] | str]]:
    """Column names, and for each row its cells, or an error message if their number differs."""
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
                    wrong = f"it has {len(row)} cells of {len(head)}"
                    rows.append(tuple(row) if len(row) == len(head) else wrong)
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
    """The lines that are not blank; an error message in place of one that is too long."""
    lines: list[bytes | str] = []
    with os.fdopen(confined.descriptor(path), "rb") as file:
        while line := file.readline(MAX_JSON):
            if len(line) == MAX_JSON and line[-1:] != b"\n":
                while len(line) == MAX_JSON and line[-1:] != b"\n":
                    line = file.readline(MAX_JSON)
                lines.append(f"a line of more than {MAX_JSON} bytes")
            elif line.strip():
                lines.append(line.strip())
    return lines


def _json_object(line: bytes) -> dict[str, Any] | str:
    """The JSON object of a line, or an error message."""
    try:
        value = json.loads(line.decode("utf-8", "surrogateescape"))
    except (ValueError, RecursionError) as error:
        value = error
    return value if isinstance(value, dict) else f"no JSON object: {value}"[:200]


class _Stems:
    """A folder without a table: files that share a stem make a record; READMEs only by `notes`."""

    numbered = False

    def __init__(self, path: Path, limit: int = LIMIT, notes: bool = False):
        self._root, self._limit = path, limit
        records: dict[str, dict[str, Path]] = {}
        for folder, folders, files in os.walk(path):
            folders[:] = sorted(f for f in folders if not shards.is_note(f))
            for name in sorted(files):
                stem, dot, field = name.partition(".")
                if stem and dot and (notes or not shards.is_note(name)):
                    key = (Path(folder).relative_to(path) / stem).as_posix()
                    records.setdefault(key, {})[field.lower()] = Path(folder, name)
        if not records:
            raise ValueError(f"Folder: {str(path)!r} holds no file; give a folder with data.")
        self._keys, self._records = list(records), list(records.values())
        self.names = [*MADE, *dict.fromkeys(n for r in self._records for n in r)]

    def __len__(self) -> int:
        return len(self._keys)

    def key(self, row: int) -> str:
        return self._keys[row]

    def files(self, row: int) -> dict[str, Path]:
        """Files of a record by field."""
        return self._records[row]

    def read(self, row: int, names: Sequence[str]) -> dict[str, Any]:
        files, room = self._records[row], self._limit
        key = self._keys[row]
        values = named(key, self._root.absolute().name)
        for name in (n for n in names if n in files):
            values[name] = read_file(self._root, str(files[name].relative_to(self._root)), room)
            room -= len(values[name])
        return values
