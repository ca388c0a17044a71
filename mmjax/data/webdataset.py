"""WebDataset: tar files in which adjacent members `0001.jpg`, `0001.txt` make one record."""

from __future__ import annotations

import dataclasses
import functools
import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from mmjax import console
from mmjax.data import index, shards
from mmjax.data.files import LIMIT, MADE, Files, Table, named
from mmjax.data.source import BadRecord
from mmjax.files import confined

__all__ = ["WebDataset"]

BLOCK = 512
VERSION = 2  # of an index; the first had READMEs as records
MAX_OPEN = 64  # files; nearby records of an epoch lie in few files
SPARE = 1 << 20  # bytes that an index may exceed its tar file by
MAX_NAME = 1 << 16  # bytes of an extended header
KINDS = {b"1": "a link", b"2": "a link", b"3": "a device", b"4": "a device", b"6": "a pipe"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class WebDataset(Files):
    """Uncompressed tar shards, read at random without extraction.

    A member's field is everything after the first dot of its file name, in lower case:
    `a/1.left.JPG` is field `left.jpg` of record `a/1`. Members of one record must be adjacent. A
    record may lack fields. The field `__folder__` is the name of the folder that a record lies in,
    such as its class. `key="__key__"` uses the names of the members as keys, if they are
    unique over all shards.
    """

    def _tables(self, paths: Sequence[Path]) -> list[Table]:
        began, new, bar = time.monotonic(), 0, None

        def table(path: Path) -> Table:
            nonlocal new, bar
            places = index.folders(self.cache, path)
            name = f"{path.name}-{index.stamp(path)}-{VERSION}"
            check = functools.partial(_check, size=path.stat().st_size)
            known = index.load(name, places, path.stat().st_size + SPARE, check)
            if known is None:
                bar = bar or console.Progress(len(paths), 0, True, name="index of tar files")
                known = _index(path)
                index.save(name, *known, places)
                new += 1
                bar.advance(paths.index(path) + 1)
            return _Tar(path, *known, limit=self.max_record_bytes)

        tables = self._each(paths, table)
        if bar:
            bar.close()
        if new:
            count, seconds = sum(map(len, tables)), time.monotonic() - began
            console.say(f"WebDataset: {new} new of {len(paths)} files, {count} records, in all"
                        f" {seconds:.1f} s")  # fmt: skip
        return tables


class _Tar:
    """One tar file with its index."""

    numbered = False

    def __init__(
        self,
        path: Path,
        notes: dict[str, Any],
        arrays: dict[str, np.ndarray],
        limit: int = LIMIT,
    ):
        self.path, self.names, self._limit = path, [*notes["fields"], *MADE], limit
        self._starts, self._fields = arrays["starts"], arrays["fields"]
        self._offsets, self._sizes = arrays["offsets"], arrays["sizes"]
        self._keys, self._key_ends = arrays["keys"], arrays["key_ends"]

    def __len__(self) -> int:
        return len(self._starts) - 1

    def key(self, row: int) -> str:
        first = self._key_ends[row - 1] if row else 0
        return self._keys[first : self._key_ends[row]].tobytes().decode("utf-8", "backslashreplace")

    def read(self, row: int, names: Sequence[str]) -> dict[str, Any]:
        values: dict[str, Any] = named(self.key(row)) if set(MADE) & set(names) else {}
        here = slice(*self._starts[row : row + 2].tolist())
        columns = (column[here].tolist() for column in (self._fields, self._offsets, self._sizes))
        wanted = [place for place in zip(*columns, strict=True) if self.names[place[0]] in names]
        total = sum(size for _, _, size in wanted)
        if total > self._limit:
            raise BadRecord("too_large", f"{total} bytes, more than {self._limit}")
        file = _opened(self)
        for number, offset, size in wanted:
            name = self.names[number]
            values[name] = os.pread(file.number, size, offset)
            if len(values[name]) < size:
                raise BadRecord("cut", f"{self.path} ends inside field {name}")
        return values


@functools.lru_cache(maxsize=MAX_OPEN)
def _opened(tar: _Tar) -> confined.Open:
    return confined.Open(tar.path)


class Member(NamedTuple):
    """One file in a tar file."""

    name: str
    offset: int
    size: int


def _index(path: Path) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Fields and positions of all records."""
    fields: dict[str, int] = {}
    keys: list[bytes] = []
    rows, starts, seen, last = [], [], set(), None
    for member in members(path):
        folder, slash, base = member.name.rpartition("/")
        stem, dot, field = base.partition(".")
        if not stem or not dot or shards.is_note(member.name):
            continue
        key, field = f"{folder}{slash}{stem}", field.lower()
        if key != last:
            if key in seen:
                raise ValueError(
                    f"WebDataset: {str(path)!r} has the key {key!r} in two places; its members must"
                    " be neighbours, sort them before packing."
                )
            seen.add(key)
            keys.append(key.encode("utf-8", "surrogateescape"))
            starts.append(len(rows))
            here, last = set(), key
        if field in here:
            raise ValueError(f"WebDataset: {str(path)!r} has {member.name!r} twice; rename one.")
        here.add(field)
        rows.append((fields.setdefault(field, len(fields)), member.offset, member.size))
    if not rows:
        raise ValueError(f"WebDataset: {str(path)!r} holds no record; it is empty, remove it.")
    table = np.asarray(rows, np.int64)
    arrays = {
        "starts": np.asarray([*starts, len(rows)], np.int64),
        "fields": table[:, 0].astype(np.uint16),
        "offsets": table[:, 1],
        "sizes": table[:, 2],
        "keys": np.frombuffer(b"".join(keys), np.uint8),
        "key_ends": np.cumsum([len(key) for key in keys], dtype=np.int64),
    }
    return {"fields": list(fields)}, arrays


def _check(notes: dict[str, Any], arrays: dict[str, np.ndarray], size: int) -> None:
    """Raises ValueError for an index with positions outside of a tar file of `size` bytes."""
    fields = notes.get("fields")
    if not isinstance(fields, list) or not all(isinstance(name, str) for name in fields):
        raise ValueError("it does not name the fields")
    starts, offsets, sizes, key_ends = (
        index.check_column(arrays, name, np.int64)
        for name in ("starts", "offsets", "sizes", "key_ends")
    )
    numbers, keys = (
        index.check_column(arrays, "fields", np.uint16),
        index.check_column(arrays, "keys", np.uint8),
    )
    count = len(numbers)
    is_whole = (
        len(offsets) == len(sizes) == count > 0
        and len(starts) == len(key_ends) + 1 > 1
        and (starts[0], starts[-1]) == (0, count)
        and (np.diff(starts) > 0).all()
        and key_ends[0] >= 0
        and key_ends[-1] == len(keys)
        and (np.diff(key_ends) >= 0).all()
        and numbers.max() < len(fields)
    )
    # In this form the comparison cannot overflow.
    if not is_whole or sizes.min() < 0 or offsets.min() < 0 or (offsets > size - sizes).any():
        raise ValueError("it has places outside of the file")


def members(path: Path) -> Iterator[Member]:
    """The files in a tar file (ustar, GNU or pax).

    Raises ValueError for a file that is not a tar file, or is truncated or compressed, and for
    links, devices and names that lead out of their folder. Reads only headers, and never more than
    MAX_NAME bytes at once.
    """
    size = path.stat().st_size
    if size == 0:
        raise ValueError(f"WebDataset: {str(path)!r} is empty (0 bytes); remove it.")
    with os.fdopen(confined.descriptor(path), "rb", buffering=BLOCK * 64) as file:
        place, extended = 0, {}
        while True:
            file.seek(place)
            block = file.read(BLOCK)
            # Programs that stream or join files may leave out the two empty blocks at the end.
            if not block.strip(b"\0") and place <= size:
                return
            if place == 0 and (packing := shards.packing(block)):
                raise ValueError(
                    f"WebDataset: {str(path)!r} is compressed by {packing}, which leaves no random"
                    " access; unpack it."
                )
            if len(block) < BLOCK:
                raise ValueError(f"WebDataset: {str(path)!r} is cut after {size} bytes.")
            name, length, kind = _header(block, path, place)
            end = place + BLOCK + length
            if end > size:
                raise ValueError(
                    f"WebDataset: {str(path)!r} is cut: {name!r} should end at byte {end}, the file"
                    f" has {size}."
                )
            if kind in (b"x", b"L", b"g", b"K"):
                content = file.read(length) if length <= MAX_NAME else None
                if content is None:
                    raise _wrong(path, place, f"has a header of {length} bytes")
                extended |= _extended(kind, content)
            else:
                name = str(extended.get("path", name))
                if "size" in extended:
                    raise _wrong(path, place, f"{name!r} has its size in an extended header")
                extended = {}
                if kind in (b"0", b"\0"):
                    yield Member(_safe(name, path), place + BLOCK, length)
                elif kind != b"5":
                    what = KINDS.get(kind, f"of kind {kind!r}")
                    raise ValueError(
                        f"WebDataset: {str(path)!r}: {name!r} is {what}; only files are read."
                    )
            place = place + BLOCK + -(-length // BLOCK) * BLOCK


def _header(block: bytes, path: Path, place: int) -> tuple[str, int, bytes]:
    """Name, size and kind."""
    try:
        total = int(block[148:156].rstrip(b" \0") or b"x", 8)
        length = block[124:136]
        if length[0] & 0x80:  # base 256, for files over 8 GiB
            count = int.from_bytes(length[1:])
        else:
            count = int(length.strip(b" \0") or b"0", 8)
    except ValueError:
        raise _wrong(path, place, "has no header of a member") from None
    if sum(block) - sum(block[148:156]) + 8 * 32 != total or count < 0:
        raise _wrong(path, place, "has a header with a wrong checksum")
    name = block[:100].partition(b"\0")[0]
    if block[257:263] == b"ustar\0":
        prefix = block[345:500].partition(b"\0")[0]
        name = prefix + b"/" + name if prefix else name
    return name.decode("utf-8", "surrogateescape"), count, block[156:157]


def _extended(kind: bytes, content: bytes) -> dict[str, Any]:
    """The next member's name and size, if an extended header states them."""
    if kind == b"L":
        return {"path": content.partition(b"\0")[0].decode("utf-8", "surrogateescape")}
    fields = {}
    while kind == b"x" and content:
        digits, space, _ = content.partition(b" ")
        length = int(digits) if space and digits.isdigit() and len(digits) < 8 else 0
        if not len(digits) + 1 < length <= len(content):
            break
        name, _, value = content[len(digits) + 1 : length - 1].partition(b"=")
        if name in (b"path", b"size"):
            fields[name.decode()] = value.decode("utf-8", "surrogateescape")
        content = content[length:]
    return fields


def _safe(name: str, path: Path) -> str:
    if name.startswith("/") or ".." in name.split("/"):
        raise ValueError(
            f"WebDataset: {str(path)!r} has a member {name!r}, which leads out of its folder; pack"
            " it with relative names."
        )
    return name.removeprefix("./")


def _wrong(path: Path, place: int, what: str) -> ValueError:
    return ValueError(
        f"WebDataset: {str(path)!r} {what} at byte {place}; it is damaged, compressed or no tar"
        " file."
    )
