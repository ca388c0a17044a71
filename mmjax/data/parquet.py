"""Parquet: tables with pictures and sounds inside, as `datasets` of Hugging Face writes them."""

from __future__ import annotations

import collections
import dataclasses
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mmjax.config import ranges
from mmjax.data.files import Files, Table
from mmjax.data.folder import read_file
from mmjax.data.source import BadRecord

__all__ = ["Parquet"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Parquet(Files):
    """Rows of Parquet files.

    A column of bytes, or of structs with `bytes` and `path` (image and audio columns), is a file's
    content; lists are arrays; null is absent. Where `bytes` is null, `path` names a file beside
    the table. A whole row group is read for one row of it: write small ones, such as
    `write_table(..., row_group_size=100)`.

    Fields:
      cache_bytes: memory for row groups, in each process.
    """

    cache_bytes: ranges.Bytes = 1 << 28

    def _tables(self, paths: Sequence[Path]) -> list[Table]:
        groups = _Groups(self.cache_bytes)
        return [_Parquet(path, groups) for path in paths]


class _Groups:
    """The row groups that were read last, by file, number and columns."""

    def __init__(self, room: int):
        self.room, self.used = room, 0
        self.lock = threading.Lock()
        self.kept: collections.OrderedDict[Any, Any] = collections.OrderedDict()

    def get(self, table: _Parquet, group: int, names: tuple[str, ...]) -> Any:
        with self.lock:
            key = (table.path, group, names)
            if key not in self.kept:
                found = table.file.read_row_group(group, list(names), use_threads=False)
                self.kept[key], self.used = found, self.used + found.nbytes
                while self.used > self.room and len(self.kept) > 1:
                    self.used -= self.kept.popitem(last=False)[1].nbytes
            self.kept.move_to_end(key)
            return self.kept[key]


class _Parquet:
    """One file."""

    numbered = True

    def __init__(self, path: Path, groups: _Groups):
        import pyarrow
        from pyarrow import parquet

        self.path, self._groups = path, groups
        try:
            self.file = parquet.ParquetFile(path, memory_map=True, page_checksum_verification=True)
        except (OSError, pyarrow.ArrowException) as error:
            raise ValueError(f"Parquet: {str(path)!r} cannot be read: {error}.") from error
        self.names = self.file.schema_arrow.names
        meta = self.file.metadata
        rows = [meta.row_group(i).num_rows for i in range(meta.num_row_groups)]
        self._ends = np.cumsum(rows, dtype=np.int64)

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
            cells = {name: table.column(name)[row - first] for name in names}
            return {name: self._value(cell) for name, cell in cells.items()}
        except (OSError, ValueError, pyarrow.ArrowException) as error:
            raise BadRecord("parquet", str(error)[:200]) from error

    def _value(self, cell: Any) -> Any:
        import pyarrow

        if not cell.is_valid:
            return None
        if pyarrow.types.is_list(cell.type) or pyarrow.types.is_large_list(cell.type):
            return cell.values.to_numpy(zero_copy_only=False)
        if pyarrow.types.is_string(cell.type) or pyarrow.types.is_large_string(cell.type):
            return cell.as_buffer().to_pybytes()  # its bytes, which need not be text
        value = cell.as_py()
        if isinstance(value, dict) and value.keys() == {"bytes", "path"}:
            if value["bytes"] is not None or value["path"] is None:
                return value["bytes"]
            return read_file(self.path.parent, value["path"])
        return value
