"""Parquet: tables with images and sounds inside, as Hugging Face `datasets` writes them."""

from __future__ import annotations

import collections
import dataclasses
import functools
import os
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mmjax.config import ranges
from mmjax.data import pages
from mmjax.data.files import LIMIT, Files, Table
from mmjax.data.folder import read_file
from mmjax.data.source import BadRecord
from mmjax.files import confined

__all__ = ["Parquet"]

ROWS_A_BYTE = 8  # of a file; a file that claims more is refused, as every row takes memory
MAX_OPEN = 64  # files; nearby records of an epoch lie in few files
OBJECT = 64  # bytes of overhead of a Python object


@dataclasses.dataclass(frozen=True, kw_only=True)
class Parquet(Files):
    """Rows of Parquet files.

    A column of bytes, or of structs with `bytes` and `path` (image and audio columns), holds the
    content of files; lists are arrays; null is absent. If `bytes` is null, `path` names a file
    beside the table. One row is read with its whole row group, so write small groups, such as
    `write_table(..., row_group_size=100)`. A group is refused, and its rows count as bad, if it
    would take more memory than `cache_bytes`, `max_record_bytes` and four times its bytes in the
    file: a few bytes may unpack to gigabytes.

    Fields:
      cache_bytes: memory for row groups, in each process.
    """

    cache_bytes: ranges.Bytes = 1 << 28

    def _tables(self, paths: Sequence[Path]) -> list[Table]:
        groups = _Groups(self.cache_bytes)
        return self._each(paths, lambda path: _Parquet(path, groups, self.max_record_bytes))


class _Groups:
    """The most recently read row groups, by file, number and columns."""

    def __init__(self, room: int):
        self.room, self.used = room, 0
        self.lock = threading.Lock()
        self.kept: collections.OrderedDict[Any, Any] = collections.OrderedDict()

    def get(self, table: _Parquet, group: int, names: tuple[str, ...]) -> Any:
        with self.lock:
            key = (table.path, group, names)
            if key not in self.kept:
                rows = table.read_group(group, names, self.room)
                self.kept[key], self.used = rows, self.used + rows.nbytes
                while self.used > self.room and len(self.kept) > 1:
                    self.used -= self.kept.popitem(last=False)[1].nbytes
            self.kept.move_to_end(key)
            return self.kept[key]


class _Parquet:
    """One file."""

    numbered = True

    def __init__(self, path: Path, groups: _Groups, limit: int = LIMIT):
        self.path, self._groups, self._limit = path, groups, limit
        with self._opened() as file:
            self.names, self._metadata = file.schema_arrow.names, file.metadata
        meta = self._metadata
        rows = [meta.row_group(i).num_rows for i in range(meta.num_row_groups)]
        self._ends = np.cumsum(rows, dtype=np.int64)
        size = path.stat().st_size
        if min(rows, default=0) < 0 or sum(rows) > ROWS_A_BYTE * size:
            raise ValueError(f"Parquet: {str(path)!r} claims {sum(rows)} rows in {size} bytes.")

    def _opened(self, as_codes: Sequence[str] = ()) -> Any:
        """The file; text columns in `as_codes` are read as codes and a dictionary."""
        import pyarrow
        from pyarrow import parquet

        try:
            return parquet.ParquetFile(
                self.path,
                metadata=getattr(self, "_metadata", None),
                memory_map=True,
                page_checksum_verification=True,
                read_dictionary=list(as_codes),
            )
        except (OSError, pyarrow.ArrowException) as error:
            raise ValueError(f"Parquet: {str(self.path)!r} cannot be read: {error}.") from error

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def key(self, row: int) -> str:
        return str(row)

    def read(self, row: int, names: Sequence[str]) -> dict[str, Any]:
        import pyarrow

        group = int(np.searchsorted(self._ends, row, "right"))
        first = int(self._ends[group - 1]) if group else 0
        names = tuple(name for name in names if name in self.names)
        try:
            table = self._groups.get(self, group, names)
            columns = {name: table.column(name).slice(row - first, 1) for name in names}
            return {
                name: cell_value(column, self.path, self._limit) for name, column in columns.items()
            }
        except (OSError, ValueError, IndexError, pyarrow.ArrowException) as error:
            raise BadRecord("parquet", str(error)[:200]) from error

    def read_group(self, group: int, names: tuple[str, ...], room: int) -> Any:
        """The columns of a row group, in pieces if the whole may exceed `room`.

        Raises BadRecord for a group that exceeds it.
        """
        import pyarrow

        needs = self._needs(group, names)
        room = max(room, self._limit, 4 * sum(need.stored for need in needs.values()))
        if sum(need.total for need in needs.values()) <= room:
            return _file(self).read_row_group(group, list(names), use_threads=False)
        if sum(need.as_codes for need in needs.values()) <= room:
            coded = [path for path, need in needs.items() if need.as_codes < need.total]
            return self._opened(coded).read_row_group(group, list(names), use_threads=False)
        row = sum(need.value + need.largest for need in needs.values())
        is_flat = not any(need.is_nested for need in needs.values())
        batches, used = [], 0
        if is_flat and row <= room:  # rows are no larger than values, which the pages bound
            some = max(1, room // (8 * row))
            pieces = _file(self).iter_batches(some, [group], list(names), use_threads=False)
            for batch in pieces:
                batches.append(batch)
                used += batch.nbytes
                if used > room:
                    break
        if not batches or used > room:
            raise BadRecord(
                "too_large",
                f"its row group may take more than {room} bytes; write smaller row groups, or raise"
                " cache_bytes",
            )
        return pyarrow.Table.from_batches(batches)

    def _needs(self, group: int, names: tuple[str, ...]) -> dict[str, pages.Need]:
        """The memory that each column of these fields takes, by its path."""
        meta, number = self._metadata, confined.descriptor(self.path)
        needs = {}
        try:
            for i in range(meta.num_columns):
                column, chunk = meta.schema.column(i), meta.row_group(group).column(i)
                if column.path.partition(".")[0] in names or column.path in names:
                    needs[column.path] = need = pages.need(number, chunk, column)
                    if need.values < meta.row_group(group).num_rows:
                        raise ValueError(f"column {column.path} has fewer values than rows")
        finally:
            os.close(number)
        return needs


def cell_value(column: Any, path: Path, limit: int) -> Any:
    """The value of an Arrow column of one row. Raises BadRecord for one that is too large.

    Args:
      path: of the file, beside which lie the files that it names.
    """
    from pyarrow import types

    cell = column[0]
    if not cell.is_valid:
        return None
    if types.is_dictionary(cell.type):
        cell = cell.value
    if types.is_list(cell.type) or types.is_large_list(cell.type):
        is_plain = types.is_primitive(cell.type.value_type)
        _check(cell.values.nbytes if is_plain else _weight(column.chunk(0)), limit)
        return cell.values.to_numpy(zero_copy_only=False)
    if types.is_string(cell.type) or types.is_large_string(cell.type):
        return cell.as_buffer().to_pybytes()  # as bytes, which need not be valid text
    if types.is_nested(cell.type):
        _check(_weight(column.chunk(0)), limit)
    value = cell.as_py()
    if isinstance(value, dict) and value.keys() == {"bytes", "path"}:
        if value["bytes"] is not None or value["path"] is None:
            return value["bytes"]
        return read_file(path.parent, value["path"], limit)
    return value


def _check(size: int, limit: int) -> None:
    if size > limit:
        raise BadRecord("too_large", f"{size} bytes, more than {limit}")


@functools.lru_cache(maxsize=MAX_OPEN)  # a data set may have more files than a process may open
def _file(table: _Parquet) -> Any:
    return table._opened()


def _weight(array: Any) -> int:
    """Approximate size in bytes of an Arrow array as Python objects."""
    from pyarrow import compute, types

    own = OBJECT * len(array)
    if types.is_dictionary(array.type):
        lengths = compute.binary_length(array.dictionary)  # type: ignore[attr-defined]
        return own + (compute.sum(lengths.take(array.indices)).as_py() or 0)  # type: ignore[attr-defined]
    if types.is_struct(array.type):
        return own + sum(map(_weight, array.flatten()))
    if types.is_nested(array.type):
        return own + _weight(array.flatten())
    return own + array.nbytes
