"""ArrayRecords: records of bytes and JSON values in ArrayRecord files, which grain reads too.

A record is, in this order: a header in JSON (UTF-8) on one line, `\\n`, and the bytes of its fields
one after another. The header is `{"values": {field: JSON value}, "bytes": [[field, length], ...]}`.
Records have no compression of their own.
"""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from mmjax import files
from mmjax.data import chunks
from mmjax.data.fields import MAX_JSON
from mmjax.data.files import LIMIT, Files, Table
from mmjax.data.source import BadRecord

__all__ = ["ArrayRecords", "decode_record", "encode_record", "write_array_records"]

MAX_OPEN = 64  # files; nearby records of an epoch lie in few files
SAMPLE = 100  # records of a file that are read to learn its fields


@dataclasses.dataclass(frozen=True, kw_only=True)
class ArrayRecords(Files):
    """ArrayRecord files that `write_array_records` wrote."""

    def _table(self, path: Path) -> Table:
        return _ArrayFile(path, self.max_record_bytes)


def encode_record(example: Mapping[str, Any]) -> bytes:
    """One record. Values are bytes, or what JSON can hold; None is left out."""
    there = {name: value for name, value in example.items() if value is not None}
    blobs = {name: value for name, value in there.items() if isinstance(value, bytes)}
    header = {
        "values": {name: value for name, value in there.items() if name not in blobs},
        "bytes": [[name, len(blob)] for name, blob in blobs.items()],
    }
    return json.dumps(header).encode() + b"\n" + b"".join(blobs.values())


def decode_record(content: bytes) -> dict[str, Any]:
    """The values of a record. Raises BadRecord for bytes that are not a record."""
    try:
        end = content.find(b"\n", 0, MAX_JSON)
        if end < 0:
            raise ValueError(f"it has no line of at most {MAX_JSON} bytes")
        line, rest = content[:end], content[end + 1 :]
        header = json.loads(line)
        values, start = dict(header["values"]), 0
        for name, length in header["bytes"]:
            if type(length) is not int or not 0 <= length <= len(rest) - start:
                raise ValueError(f"{name} has {length} bytes of {len(rest) - start}")
            values[name] = rest[start : start + length]
            start += length
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise BadRecord("array_record", f"{error}"[:200]) from error
    return values


def write_array_records(path: str | Path, examples: Iterable[Mapping[str, Any]]) -> int:
    """Writes a file for random access, atomically; returns the number of records."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with files.replacing(path) as partial:
        return write_records(Path(partial), map(encode_record, examples))


def write_records(path: Path, records: Iterable[bytes], group_size: int = 1) -> int:
    """Writes records to a file that is not there yet; returns their number.

    Args:
      group_size: records that are compressed, and unpacked, together.
    """
    from array_record.python import array_record_module  # type: ignore[attr-defined]

    writer, count = array_record_module.ArrayRecordWriter(str(path), f"group_size:{group_size}"), 0
    for record in records:
        writer.write(record)
        count += 1
    writer.close()
    return count


class ArrayFile:
    """Raw records of one ArrayRecord file; opened at first use.

    A chunk is unpacked beyond `limit` only if it is that large in the file too.
    """

    def __init__(self, path: Path, limit: int = LIMIT):
        self._limit = limit
        self.path = path
        try:
            self._chunks = chunks.Chunks(path)
            self._length = _data(self).num_records()
            if self._length != self._chunks.count:
                raise ValueError(f"{self._length} records, but a footer for {self._chunks.count}")
        except (OSError, ValueError, RuntimeError) as error:
            raise ValueError(f"ArrayRecord: {str(path)!r} cannot be read: {error}.") from error

    def __len__(self) -> int:
        return self._length

    def raw(self, row: int) -> bytes:
        """Bytes of a record. Raises BadRecord if the file is damaged."""
        try:
            chunk = self._chunks.find(row)
            if chunk.size > max(self._limit, 4 * chunk.stored):
                raise BadRecord("too_large", f"{chunk.size} bytes, more than {self._limit}")
            return _data(self).read([row])[0]
        except (OSError, ValueError, RuntimeError, IndexError) as error:
            raise BadRecord("array_record", str(error)[:200]) from error


@functools.lru_cache(maxsize=MAX_OPEN)  # a data set may have more files than a process may open
def _data(file: ArrayFile) -> Any:
    # Not the data source of the library: it logs an error for each file of larger groups.
    from array_record.python import array_record_module  # type: ignore[attr-defined]

    options, buffer = "readahead_buffer_size:0", 32768  # for random access
    path = str(file.path)
    return array_record_module.ArrayRecordReader(
        path, options=options, file_reader_buffer_size=buffer
    )


class _ArrayFile:
    """One file of records in mmjax's own encoding."""

    numbered = True

    def __init__(self, path: Path, limit: int = LIMIT):
        self._file = ArrayFile(path, limit)
        count = len(self._file)
        names: dict[str, None] = {}
        for row in range(0, count, max(1, count // SAMPLE)):
            try:
                names |= dict.fromkeys(self.read(row, ()))
            except BadRecord:
                continue
        self.names = list(names)
        self.num_sampled = min(count, SAMPLE) if count > SAMPLE else 0

    def __len__(self) -> int:
        return len(self._file)

    def key(self, row: int) -> str:
        return str(row)

    def read(self, row: int, names: Sequence[str]) -> dict[str, Any]:
        del names  # all fields are stored together
        return decode_record(self._file.raw(row))
