"""What reading a record of an ArrayRecord file takes, from its footer and the headers of chunks.

The reader unpacks a whole chunk for one record, and a few thousand bytes may be packed gigabytes.
The layout is Riegeli's: blocks of 64 KiB that begin with a header of their own, and in them chunks
of a header of 40 bytes and their data; the last block holds a chunk that says where the footer is,
and the footer where the chunks of records are.
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
    """A chunk by its header: bytes in the file and unpacked, and how many records."""

    stored: int
    size: int
    records: int


class Chunks:
    """The chunks of records of one file, each with equally many but the last.

    Raises ValueError for a file that is none, or whose footer is not in the usual form.
    """

    def __init__(self, path: Path):
        self.path = path
        end = path.stat().st_size
        if end < BLOCK or end % BLOCK:
            raise ValueError(f"it has {end} bytes, no whole blocks; it is cut, or no such file")
        about = _message(next(self._records(end - BLOCK, end), b""))
        found = [_message(one) for one in self._records(about.get(1, -1), end)][1:]
        self._places = np.asarray([one.get(1, -1) for one in found], np.int64)
        records = np.asarray([one.get(3, 0) for one in found], np.int64)
        self._group, self.count = int(records[0]) if len(records) else 1, int(records.sum())
        if len(records) and not (
            0 < records[-1] <= self._group and (records[:-1] == self._group).all()
        ):
            raise ValueError(f"its groups are of several sizes; {REMEDY}")
        if self.count > end:
            raise ValueError(f"it claims {self.count} records in {end} bytes")

    def find(self, record: int) -> Chunk:
        """The chunk that is unpacked to read a record. Raises ValueError where there is none."""
        return self._chunk(int(self._places[record // self._group]))[0]

    def _chunk(self, place: int) -> tuple[Chunk, int]:
        """A chunk, and where its data begin."""
        if place < 0:
            raise ValueError("its footer names no place")
        head, place = self._bytes(place, HEADER)
        stored, size = (int.from_bytes(head[i : i + 8], "little") for i in (8, 32))
        return Chunk(stored, size, int.from_bytes(head[25:32], "little")), place

    def _records(self, place: int, end: int) -> Iterator[bytes]:
        """The records of a chunk, which here are never longer than the file."""
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
        """Bytes from a place on, without the headers of blocks between them; where they end."""
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
    """What a part of a chunk holds; its size is checked before memory is taken."""
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
    """The numbers of a flat protocol buffer, by field; the rest is passed over."""
    found, at = {}, 0
    while at < len(record):
        key, at = _number(record, at)
        value, at = _number(record, at) if key & 7 == 0 else (0, at + (8 if key & 7 == 1 else 4))
        if key & 7 == 2:
            length, at = _number(record, at - 4)
            at += length
        found[key >> 3] = value
    return found


def _number(data: bytes, at: int) -> tuple[int, int]:
    """A varint, and the place behind it."""
    number = 0
    for shift in range(0, 70, 7):
        if at >= len(data):
            raise ValueError("its footer is cut")
        byte, at = data[at], at + 1
        number |= (byte & 127) << shift
        if byte < 128:
            return number, at
    raise ValueError("its footer has an endless number")
