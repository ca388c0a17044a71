"""Parquet and ArrayRecord files of a few bytes that stand for gigabytes, and broken ones."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import own
import peak
import pyarrow
import pytest
from array_record.python import array_record_module
from pyarrow import parquet

from mmjax.data import chunks, pages
from mmjax.data.array_records import ArrayRecords
from mmjax.data.parquet import Parquet
from mmjax.data.source import BadRecord

BOMB = "a Parquet file of kilobytes that stands for gigabytes"


def repeated(count, value, kind):
    """A column of one value, made without the memory that it stands for."""
    codes = pyarrow.array(np.zeros(count, np.int32))
    return pyarrow.DictionaryArray.from_arrays(codes, pyarrow.array([value], kind))


def words(path):
    table = pyarrow.table({"text": repeated(1_000_000, "x" * 2000, pyarrow.string())})
    parquet.write_table(table, path, compression="zstd")


def numbers(path):
    column = pyarrow.ListArray.from_arrays(
        pyarrow.array([0, 100_000_000], pyarrow.int32()), pyarrow.array(np.zeros(100_000_000, "f4"))
    )
    parquet.write_table(pyarrow.table({"text": column}), path, compression="zstd")


def lists(path):
    """One row of many lists of many words."""
    inner = pyarrow.ListArray.from_arrays(
        np.arange(0, 20_000_001, 4, np.int32), repeated(20_000_000, "y" * 100, pyarrow.string())
    )
    column = pyarrow.ListArray.from_arrays(pyarrow.array([0, len(inner)], pyarrow.int32()), inner)
    parquet.write_table(pyarrow.table({"text": column}), path, compression="zstd")


def page(path):
    table = pyarrow.table({"text": pyarrow.array([bytes(300 << 20)], pyarrow.binary())})
    parquet.write_table(table, path, compression="brotli", use_dictionary=False)


def prefixes(path, count=3000):
    """Values that each repeat the one before."""
    column = pyarrow.array([b"z" * 300_000] * count, pyarrow.binary())
    table = pyarrow.table({"text": column})
    parquet.write_table(table, path, compression="zstd", use_dictionary=False,
                        column_encoding="DELTA_BYTE_ARRAY")  # fmt: skip


@pytest.mark.ci
@pytest.mark.fault(BOMB, "the record is bad (too_large), or is read in less than 400 MB")
@pytest.mark.parametrize("make", [words, numbers, lists, page, prefixes])
def test_bombs_in_parquet_are_refused(make, tmp_path):
    make(path := tmp_path / "x.parquet")
    assert path.stat().st_size < 300_000
    code = f"""
records = Parquet(files={{"train": {str(path)!r}}}, fields={{"text": "text"}}).open("train")
try:
    told = len(records[len(records) - 1]["text"])
except BadRecord as bad:
    told = bad.reason
assert told == {2000 if make is words else "too_large"!r}, told"""
    before = """
import pyarrow.parquet
from mmjax.data.parquet import Parquet
from mmjax.data.source import BadRecord"""
    megabytes, seconds = peak.of(before, code)
    assert megabytes < 400
    assert seconds < 20


def test_the_room_for_row_groups_can_be_raised(tmp_path):
    prefixes(tmp_path / "x.parquet", 200)
    files = {"train": f"{tmp_path}/x.parquet"}
    with pytest.raises(BadRecord, match=r"may take more than .*raise cache_bytes"):
        Parquet(files=files, cache_bytes=1 << 20, max_record_bytes=1 << 20).open("train")[0]
    records = Parquet(files=files, cache_bytes=1 << 27, max_record_bytes=1 << 20).open("train")
    assert len(records[199]["text"]) == 300_000


def test_large_groups_that_are_large_in_the_file_are_read(tmp_path):
    rng = np.random.default_rng(0)
    table = pyarrow.table({"text": [rng.bytes(50_000) for _ in range(100)]})
    parquet.write_table(table, tmp_path / "x.parquet")
    source = Parquet(files={"train": f"{tmp_path}/x.parquet"}, fields={"text": "text"},
                     cache_bytes=1000, max_record_bytes=100_000)  # fmt: skip
    records = source.open("train")
    assert [len(records[i]["text"]) for i in (0, 99)] == [50_000, 50_000]


@pytest.mark.parametrize("coded", [True, False])
def test_values_are_the_same_whether_read_as_codes_or_not(coded, tmp_path):
    rows = 3000
    table = pyarrow.table(
        {
            "text": ["ab" * 400, None, "\u00e9"] * (rows // 3),
            "tags": [["x" * 500, "y"], [], None] * (rows // 3),
            "image": [{"bytes": b"1" * 900, "path": "p"}, None, {"bytes": b"2", "path": None}]
            * (rows // 3),
            "deep": [{"a": [["u" * 400], None]}, {"a": []}, None] * (rows // 3),
        }
    )
    parquet.write_table(table, tmp_path / "x.parquet")
    room = 500_000 if coded else 1 << 28
    source = Parquet(files={"train": f"{tmp_path}/x.parquet"}, cache_bytes=room,
                     max_record_bytes=room)  # fmt: skip
    records = source.open("train")
    for first in (0, rows - 3):
        a, b, c = (records[first + i] for i in range(3))
        assert (a["text"], c["text"]) == (b"ab" * 400, "\u00e9".encode())
        assert list(a["tags"]) == ["x" * 500, "y"]
        assert list(b["tags"]) == []
        assert (a["image"], c["image"]) == (b"1" * 900, b"2")
        assert a["deep"] == {"a": [["u" * 400], None]}
        assert set(b) == {"tags", "deep"}
    (group,) = records.tables[0]._groups.kept.values()
    assert pyarrow.types.is_dictionary(group.column("text").type) == coded


def test_one_row_that_is_many_objects_is_refused(tmp_path):
    table = pyarrow.table({"text": [[["a"] * 50] * 200, [["b"]]]})
    parquet.write_table(table, tmp_path / "x.parquet")
    records = Parquet(files={"train": f"{tmp_path}/x.parquet"}, fields={"text": "text"},
                      max_record_bytes=100_000).open("train")  # fmt: skip
    with pytest.raises(BadRecord) as caught:
        records[0]
    assert caught.value.reason == "too_large"
    assert records[1]["text"][0] == ["b"]


@pytest.mark.fault(
    "a Parquet file that claims more rows than its bytes can hold", "refused at the start"
)
def test_rows_without_bytes_are_refused(tmp_path):
    column = repeated(2_000_000, "a", pyarrow.string())
    parquet.write_table(pyarrow.table({"text": column}), tmp_path / "x.parquet")
    with pytest.raises(ValueError, match=r"^Parquet: .* claims 2000000 rows in \d+ bytes"):
        Parquet(path=f"{tmp_path}/x.parquet").open("train")


def header(*, size=100, stored=50, values=10, kind=0) -> bytes:
    """The header of a page, in Thrift's compact protocol."""

    def number(n):
        n, out = n << 1 if n >= 0 else -2 * n - 1, b""
        while n > 127:
            n, out = n >> 7, out + bytes([n & 127 | 128])
        return out + bytes([n])

    fields = b"".join(b"\x15" + number(n) for n in (kind, size, stored))
    return fields + b"\x2c" + b"\x15" + number(values) + b"\x15\x00" + b"\x00" + b"\x00"


class Chunk:
    """The metadata of a column, as pyarrow gives it."""

    data_page_offset, has_dictionary_page, dictionary_page_offset = 4, False, None

    def __init__(self, num_values):
        self.num_values = num_values


class Column:
    """The schema of a column, as pyarrow gives it."""

    max_definition_level, max_repetition_level, length = 1, 0, 0

    def __init__(self, physical_type="INT64"):
        self.physical_type = physical_type


def need(content, tmp_path, values=10, **column):
    (tmp_path / "p").write_bytes(b"PAR1" + content)
    number = os.open(tmp_path / "p", os.O_RDONLY)
    try:
        return pages.need(number, Chunk(values), Column(**column))
    finally:
        os.close(number)


def test_pages_tell_more_than_the_footer(tmp_path):
    """The footer says ten values; the page of them says a thousand million."""
    found = need(header(values=10**9), tmp_path)
    assert found.values == 10**9
    assert found.total > 8 * 10**9
    two = header(values=4) + bytes(50) + header(values=6, size=1 << 30)
    found = need(two, tmp_path)
    assert (found.values, found.largest, found.stored) == (10, 1 << 30, 100)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x00",
        header(values=4),  # and then nothing
        header(size=-1),
        header(stored=-1),
        header(values=-1),
        b"\x15" + b"\xff" * 12,
        b"\x1c" * 100,  # structs in structs
        b"\x19\xf9" + b"\xff" * 8 + b"\x0f",  # a list of lists without end
        b"\x18\xff\xff\xff\xff\x0f",  # a text that ends far away
        b"\x1d\x00",
        b"\x15\x00\x15\x02\x15\x02\x25\x02\x00",  # a number where a struct should be
    ],
)
@pytest.mark.fault("pages of a Parquet file with impossible headers", "the record is bad (parquet)")
def test_impossible_pages_are_refused(content, tmp_path):
    with pytest.raises(ValueError, match=r"page|header"):
        need(content, tmp_path)


def test_endless_pages_of_nothing_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(pages, "MAX_PAGES", 50)
    with pytest.raises(ValueError, match="more than 50 pages"):
        need(header(values=0, stored=0) * 1000, tmp_path)


# ------------------------------------------------------------------------ ArrayRecord


def write(path, options, records) -> Path:
    writer = array_record_module.ArrayRecordWriter(str(path), options)
    for record in records:
        writer.write(record)
    writer.close()
    return path


OPTIONS = (
    "group_size:1", "group_size:7", "group_size:65536", "group_size:1,uncompressed",
    "group_size:3,brotli:3", "group_size:1,snappy", "group_size:1,pad_to_block_boundary:true",
    "group_size:100,transpose:true",
)  # fmt: skip


@pytest.mark.parametrize("options", OPTIONS)
def test_chunks_are_those_that_were_written(options, tmp_path):
    rng = np.random.default_rng(0)
    sizes = [int(n) for n in rng.integers(1, 200_000, 30)]
    path = write(tmp_path / "x", options, [rng.bytes(n // 2) + bytes(n - n // 2) for n in sizes])
    found = chunks.Chunks(path)
    assert found.count == 30
    group = min(int(options.partition(":")[2].partition(",")[0]), 30)
    for i in range(30):
        first = i // group * group
        chunk = found.find(i)
        assert chunk.size == sum(sizes[first : first + group])
        assert chunk.records == len(sizes[first : first + group])
    assert chunks.Chunks(write(tmp_path / "y", options, [])).count == 0


@pytest.mark.ci
@pytest.mark.fault(
    "an ArrayRecord file of 128 kB that stands for a gigabyte", "the record is bad (too_large)"
)
def test_bombs_in_array_records_are_refused(tmp_path):
    head = b'{"values": {}, "bytes": [["text", 300000000]]}\n'
    good = b'{"values": {"text": "a"}, "bytes": []}\n'
    path = write(tmp_path / "x", "group_size:1", [good, head + bytes(300_000_000)])
    assert path.stat().st_size < 200_000
    code = f"""
records = ArrayRecords(files={{"train": {str(path)!r}}}, fields={{"text": "text"}}).open("train")
assert records[0] == {{"text": "a"}}
try:
    records[1]
except BadRecord as bad:
    assert bad.reason == "too_large"
else:
    raise AssertionError"""
    before = """
import pyarrow
from array_record.python import array_record_data_source
from mmjax.data.array_records import ArrayRecords
from mmjax.data.source import BadRecord"""
    megabytes, _ = peak.of(before, code)
    assert megabytes < 60


@pytest.mark.parametrize("kind", list("zbs"))
def test_footers_that_unpack_to_more_than_the_file_are_refused(kind, tmp_path):
    path = write(tmp_path / "x", "group_size:1", [b"a", b"b"])
    content, end = bytearray(path.read_bytes()), path.stat().st_size
    made = chunks.Chunks(path)
    place = chunks._message(next(made._records(end - chunks.BLOCK, end)))[1]
    content[place + 32 : place + 40] = (1 << 40).to_bytes(8, "little")
    path.write_bytes(content)
    with pytest.raises(ValueError, match="claims more bytes than the file has"):
        chunks.Chunks(path)
    with pytest.raises(ValueError, match="claims more bytes than the file has"):
        chunks._unpacked(ord(kind), b"\x80\x80\x80\x80\x80\x40" + bytes(20), end)


def test_footers_changed_at_random_are_refused_or_harmless(tmp_path):
    path = write(tmp_path / "x", "group_size:1,uncompressed", [bytes([i]) * 50 for i in range(20)])
    good, rng = path.read_bytes(), np.random.default_rng(0)
    end = len(good) - good[::-1].index(b"\x01\x18") if b"\x18\x01" in good else len(good)
    refused = 0
    for _ in range(500):
        data = bytearray(good)
        for _ in range(rng.integers(1, 5)):
            at = (
                rng.integers(max(0, end - 1200), end)
                if rng.random() < 0.7
                else -rng.integers(65536)
            )
            data[at] = rng.integers(256)
        path.write_bytes(data)
        try:
            found = chunks.Chunks(path)
            for i in range(min(found.count, 40)):
                found.find(i)
        except (ValueError, IndexError):
            refused += 1
    assert 0 < refused < 500


@pytest.mark.parametrize("size", [0, 100, 65536, 100_000, 131072])
def test_files_that_are_no_array_records_are_refused(size, tmp_path):
    (tmp_path / "x").write_bytes(os.urandom(size))
    with pytest.raises(ValueError, match=r"^ArrayRecord: .*x' cannot be read"):
        ArrayRecords(path=f"{tmp_path}/x").open("train")


def test_a_header_of_a_record_that_is_too_long_is_refused(tmp_path):
    values = "[" + "[]," * 3_000_000 + "[]]"
    path = write(tmp_path / "x", "group_size:1",
                 [own.json.dumps({"values": {"a": 1}, "bytes": []}).encode() + b"\n",
                  f'{{"values": {{"a": {values}}}, "bytes": []}}\n'.encode()])  # fmt: skip
    records = ArrayRecords(files={"train": str(path)}, fields={"a": "a"}).open("train")
    assert records[0] == {"a": 1}
    with pytest.raises(BadRecord, match="it has no line of at most"):
        records[1]
