"""Memory needed to read the pages of a Parquet file, from the pages' own headers.

The footer states the sizes of columns, but readers rely on page headers, and a few bytes there can
stand for many: a run length of a billion, a dictionary whose one long word is repeated again and
again. The headers are in Thrift's compact protocol.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any, NamedTuple

DATA, DICTIONARY, DATA_V2 = 0, 2, 3  # types of pages
HEADERS = {DATA: 5, DICTIONARY: 7, DATA_V2: 8}  # field of the header that describes each type
DICTIONARY_CODES, DELTA_STRINGS = (2, 8), 7  # encodings
WIDTHS = {"BOOLEAN": 1, "INT32": 4, "FLOAT": 4, "INT64": 8, "DOUBLE": 8, "INT96": 8}
WINDOW, LARGE_WINDOW = 1 << 14, 1 << 24  # bytes in which a header ends
DEPTH, MAX_PAGES = 16, 1 << 17


class Need(NamedTuple):
    """The most memory that one column of a row group takes.

    Fields:
      total: bytes, unpacked. largest: bytes of one page. stored: bytes in the file.
      value: bytes of one value, at most. values: their number, empty ones included.
      is_nested: whether a row may have many values.
      as_codes: bytes as codes and a dictionary; `total` if it has no dictionary.
    """

    total: int
    largest: int
    stored: int
    value: int
    values: int
    is_nested: bool
    as_codes: int


def need(number: int, chunk: Any, column: Any) -> Need:
    """The memory that a column takes.

    Args:
      number: file descriptor. chunk, column: pyarrow's metadata and schema of the column.

    Raises ValueError for impossible pages.
    """
    pages = list(_pages(number, chunk))
    data = [page for page in pages if page.kind != DICTIONARY]
    largest = max((page.size for page in pages), default=0)
    values = sum(page.values for page in data)
    codes = {page.encoding for page in data}
    words = max((page.size for page in pages if page.kind == DICTIONARY), default=0)
    has_dictionary, width = False, WIDTHS.get(column.physical_type, 0)
    is_text = column.physical_type == "BYTE_ARRAY"
    if column.physical_type == "FIXED_LEN_BYTE_ARRAY":
        width = max(column.length, 16)  # decimals are 16
    elif is_text:
        has_dictionary = bool(codes.intersection(DICTIONARY_CODES))
        width = max(words if has_dictionary else 0, largest if DELTA_STRINGS in codes else 0)
        has_dictionary = has_dictionary and DELTA_STRINGS not in codes
    levels = 1 + 2 * (column.max_definition_level > 0) + 6 * column.max_repetition_level
    levels += 4 if is_text else 0
    held = sum(page.size for page in pages)
    total = values * (width + levels) + held
    return Need(
        total=total,
        largest=largest,
        stored=sum(page.stored for page in pages),
        value=width + levels,
        values=values,
        is_nested=column.max_repetition_level > 0,
        as_codes=values * levels + held if has_dictionary else total,
    )


class _Page(NamedTuple):
    kind: int
    size: int  # unpacked
    stored: int
    values: int
    encoding: int


def _pages(number: int, chunk: Any) -> Iterator[_Page]:
    place, seen = chunk.data_page_offset, 0
    if chunk.has_dictionary_page and 0 < chunk.dictionary_page_offset < place:
        place = chunk.dictionary_page_offset
    for _ in range(MAX_PAGES):
        if seen >= chunk.num_values:
            return
        header, length = _header(number, place)
        kind, size, stored = (_number(header, i) for i in (1, 2, 3))
        more = header.get(HEADERS.get(kind, 0), {})
        values, encoding = 0, -1
        if kind in HEADERS:
            if not isinstance(more, dict):
                raise ValueError(f"a page at byte {place} says nothing of itself")
            values, encoding = _number(more, 1), _number(more, 4 if kind == DATA_V2 else 2)
        if min(size, stored, values) < 0:
            raise ValueError(f"a page at byte {place} has {size} bytes, {values} values")
        seen += 0 if kind == DICTIONARY else values
        place += length + stored
        if kind in HEADERS:
            yield _Page(kind, size, stored, values, encoding)
    raise ValueError(f"a column of more than {MAX_PAGES} pages")


def _number(fields: dict[int, Any], name: int) -> int:
    number = fields.get(name)
    if type(number) is not int:
        raise ValueError("a page whose header lacks a number")
    return number


def _header(number: int, place: int) -> tuple[dict[int, Any], int]:
    """Fields of the header of a page by number, and its length."""
    for room in (WINDOW, LARGE_WINDOW):
        reader = _Compact(os.pread(number, room, place))
        try:
            return reader.struct(), reader.at
        except IndexError:  # it ends beyond the window
            continue
    raise ValueError(f"a page at byte {place} has no header")


class _Compact:
    """Thrift's compact protocol: numbers and structs; other values are skipped.

    Raises IndexError at the end of the bytes, ValueError for invalid ones.
    """

    def __init__(self, content: bytes):
        self.content, self.at = content, 0

    def struct(self, depth: int = 0) -> dict[int, Any]:
        fields: dict[int, Any] = {}
        last = 0
        while head := self._byte():
            kind, step = head & 15, head >> 4
            last = last + step if step else self._signed()
            fields[last] = kind == 1 if kind in (1, 2) else self._value(kind, depth + 1)
        return fields

    def _value(self, kind: int, depth: int) -> Any:
        if depth > DEPTH:
            raise ValueError("a header of structs in structs")
        if kind in (1, 2, 3):  # a bool in a list takes a byte
            return self._byte()
        if kind in (4, 5, 6):
            return self._signed()
        if kind in (7, 8):
            return self._skip(8 if kind == 7 else self._unsigned())
        if kind in (9, 10):
            head = self._byte()
            for _ in range(head >> 4 if head >> 4 < 15 else self._unsigned()):
                self._value(head & 15, depth + 1)
        elif kind == 11:
            if count := self._unsigned():
                kinds = self._byte()
                for _ in range(count):
                    self._value(kinds >> 4, depth + 1)
                    self._value(kinds & 15, depth + 1)
        elif kind == 12:
            return self.struct(depth + 1)
        else:
            raise ValueError(f"a header with a field of kind {kind}")
        return None

    def _byte(self) -> int:
        self.at += 1
        return self.content[self.at - 1]

    def _skip(self, count: int) -> None:
        self.at += count
        if self.at > len(self.content):
            raise IndexError

    def _unsigned(self) -> int:
        number = shift = 0
        while True:
            byte = self._byte()
            number |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                return number
            if shift > 63:
                raise ValueError("a header with an endless number")

    def _signed(self) -> int:
        number = self._unsigned()
        return (number >> 1) ^ -(number & 1)
