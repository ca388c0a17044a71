"""Memory needed to read a record of an ArrayRecord file, from its footer and chunk headers.

The reader unpacks a whole chunk for one record, and a few thousand bytes may unpack to gigabytes.
The layout is Riegeli's: blocks of 64 KiB, each with a header, hold chunks, each a header of 40
bytes and its data. A chunk in the last block gives the position of the footer, and the footer those
of the chunks of records.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from mmjax.files import confined

MAX_OPEN = 64  # files
BLOCK, BLOCK_HEADER, HEADER = 1 << 16, 24, 40
CODECS = {ord("z"): "zstd", ord("b"): "brotli", ord("s"): "snappy"}
REMEDY = "write it with ArrayRecordWriter(path, 'group_size:1')"


class Chunk(NamedTuple):
    """A chunk as described by its header: bytes in the file, bytes unpacked, records."""

    stored: int
    size: int
    records: int


class Chunks:
    """The chunks of records of one file; all but the last hold the same number.

    Raises ValueError for a file that is not an ArrayRecord, or has an unusual footer.
    """

    def __init__(self, path: Path):
        self.path = path
        end = path.stat().st_size
        if end < BLOCK or end % BLOCK:
            raise ValueError(f"it has {end} bytes, no whole blocks; it is cut, or no such file")
        about = _message(next(self._records(end - BLOCK, end), b""))
        entries = [_message(one) for one in self._records(about.get(1, -1), end)][1:]
        self._places = np.asarray([one.get(1, -1) for one in entries], np.int64)
        records = np.asarray([one.get(3, 0) for one in entries], np.int64)
        self._group, self.count = int(records[0]) if len(records) else 1, int(records.sum())
        if len(records) and not (
            0 < records[-1] <= self._group and (records[:-1] == self._group).all()
        ):
            raise ValueError(f"its groups are of several sizes; {REMEDY}")
        if self.count > end:
            raise ValueError(f"it claims {self.count} records in {end} bytes")

    def find(self, record: int) -> Chunk:
        """The chunk that holds a record. Raises ValueError if there is no such chunk."""
        return self._chunk(int(self._places[record // self._group]))[0]

    def _chunk(self, place: int) -> tuple[Chunk, int]:
        """A chunk, and the position of its data."""
        if place < 0:
            raise ValueError("its footer names no place")
        head, place = self._bytes(place, HEADER)
        stored, size = (int.from_bytes(head[i : i + 8], "little") for i in (8, 32))
        return Chunk(stored, size, int.from_bytes(head[25:32], "little")), place

    def _records(self, place: int, end: int) -> Iterator[bytes]:
        """The records of a chunk; here they are never longer than the file."""
        chunk, place = self._chunk(place)
        if max(chunk.stored, chunk.size) > end:
            raise ValueError("its footer claims more bytes than the file has")
        data, _ = self._bytes(place, chunk.stored)
        length, at = _number(data, 1)
        sizes, start = _unpacked(data[0], data[at : at + length], end), 0
        values, at = _unpacked(data[0], data[at + length :], end), 0
        while at < len(sizes):
            size, at = _number(sizes, at)
            yield values[start : start + size]
            start += size

    def _bytes(self, place: int, length: int) -> tuple[bytes, int]:
        """Bytes from a position on, without the block headers between them; and their end."""
        parts, number = [], _opened(self).number
        while length > 0:
            place += BLOCK_HEADER if place % BLOCK == 0 else 0
            part = os.pread(number, min(length, BLOCK - place % BLOCK), place)
            if not part:
                raise ValueError(f"it ends before byte {place}")
            parts.append(part)
            place, length = place + len(part), length - len(part)
        return b"".join(parts), place


@functools.lru_cache(maxsize=MAX_OPEN)
def _opened(chunks: Chunks) -> confined.Open:
    return confined.Open(chunks.path)


def _unpacked(kind: int, data: bytes, limit: int) -> bytes:
    """Unpacks a part of a chunk; its size is checked before memory is allocated."""
    if not kind:
        return data
    if kind not in CODECS:
        raise ValueError(f"its footer is not in a form that is read here; {REMEDY}")
    import pyarrow

    size, at = _number(data, 0)
    if size > limit:
        raise ValueError("its footer claims more bytes than the file has")
    try:
        return (
            pyarrow.Codec(CODECS[kind]).decompress(data[at:], size, asbytes=True) if size else b""
        )
    except (OSError, pyarrow.ArrowException) as error:
        raise ValueError(f"its footer cannot be unpacked: {error}") from error


def _message(record: bytes) -> dict[int, int]:
    """The numbers of a flat protocol buffer, by field; other fields are skipped."""
    fields, at = {}, 0
    while at < len(record):
        key, at = _number(record, at)
        value, at = _number(record, at) if key & 7 == 0 else (0, at + (8 if key & 7 == 1 else 4))
        if key & 7 == 2:
            length, at = _number(record, at - 4)
            at += length
        fields[key >> 3] = value
    return fields


def _number(data: bytes, at: int) -> tuple[int, int]:
    """A varint, and the position after it."""
    number = 0
    for shift in range(0, 70, 7):
        if at >= len(data):
            raise ValueError("its footer is cut")
        byte, at = data[at], at + 1
        number |= (byte & 127) << shift
        if byte < 128:
            return number, at
    raise ValueError("its footer has an endless number")
