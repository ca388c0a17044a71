"""An index that came with the data: believed as far as it is checked, else made again."""

from __future__ import annotations

import io
import itertools
import json
import os
import zipfile
from pathlib import Path

import numpy as np
import own
import peak
import pytest

from mmjax.data import index, webdataset
from mmjax.data.webdataset import WebDataset

ROWS = own.records(count=12, size=4)


@pytest.fixture
def source(tmp_path):
    """Two tar files, read once, so that their indices and their splits are beside them."""
    (tmp_path / "data").mkdir()
    own.write_tar(tmp_path / "data" / "a.tar", ROWS[:6])
    own.write_tar(tmp_path / "data" / "b.tar", ROWS[6:])
    found = WebDataset(path=f"{tmp_path}/data/*.tar", fields={"text": "txt"}, key="__key__",
                       shares={"train": 0.5, "val": 0.5})  # fmt: skip
    found.open("train")
    return found


def texts(source):
    return {s: [r[i]["text"] for i in range(len(r))] for s in source.splits()
            for r in [source.open(s)]}  # fmt: skip


def stored(tmp_path, kind):
    (path,) = (tmp_path / "data" / ".mmjax").glob("a.tar-*" if kind == "tar" else "splits-*")
    return path


def npy(array) -> bytes:
    file = io.BytesIO()
    np.save(file, array, allow_pickle=True)
    return file.getvalue()


def rewrite(path, how, **members):
    """The same index with some members changed by functions of their arrays, or by bytes."""
    with zipfile.ZipFile(path) as file:
        content = {name: file.read(name) for name in file.namelist()}
    for name, change in members.items():
        before = np.load(io.BytesIO(content[f"{name}.npy"]))
        after = change(before) if callable(change) else change
        content[f"{name}.npy"] = after if isinstance(after, bytes) else npy(after)
    with zipfile.ZipFile(path, "w", how) as file:
        for name, data in content.items():
            file.writestr(name, data)


def huge(array) -> bytes:
    """The bytes of an array whose header claims 2**40 entries."""
    content = npy(array)
    start = content.index(b"(")
    end = content.index(b")") + 1
    claim = b"(1099511627776,)"
    return content[:start] + claim + content[end : 128 - len(claim) + end - start] + content[128:]


def notes(value) -> np.ndarray:
    return np.frombuffer(json.dumps(value).encode(), np.uint8)


def at(place, value):
    def change(array):
        array = array.copy()
        array[place] = value
        return array

    return change


WRONG = {
    "entries that are not there": {"offsets": huge},
    "objects": {"offsets": lambda a: a.astype(object)},
    "offsets outside of the file": {"offsets": at(3, 1 << 40)},
    "offsets below zero": {"offsets": at(3, -512)},
    "sizes whose sum overflows": {"sizes": at(3, (1 << 63) - 1)},
    "sizes below zero": {"sizes": at(3, -1)},
    "starts that go back": {"starts": at(2, 0)},
    "starts beyond the members": {"starts": at(-1, 1 << 20)},
    "names that go back": {"key_ends": at(1, 0)},
    "names beyond the letters": {"key_ends": at(-1, 1 << 20)},
    "fields without a name": {"fields": at(0, 9999)},
    "numbers of another type": {"offsets": lambda a: a.astype(np.float64)},
    "numbers of another order of bytes": {"offsets": lambda a: a.astype(">i8")},
    "a table for a column": {"offsets": lambda a: a[None]},
    "fewer sizes than offsets": {"sizes": lambda a: a[:-1]},
    "no record": {"starts": lambda a: a[:1], "key_ends": lambda a: a[:0]},
    "notes that are no object": {"notes": notes([1])},
    "notes of other types": {"notes": notes({"fields": [{}]})},
    "notes nested without end": {"notes": np.frombuffer(b"[" * 100_000, np.uint8)},
}


@pytest.mark.fault(
    "an index of a tar file that was planted or is damaged",
    "nothing is taken from it; it is made again, with one line that says so",
)
@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_index_of_a_tar_file_is_made_again(case, source, tmp_path, capfd):
    expected = texts(source)
    path = stored(tmp_path, "tar")
    good = path.read_bytes()
    rewrite(path, zipfile.ZIP_STORED, **WRONG[case])
    assert path.read_bytes() != good
    capfd.readouterr()
    assert texts(source) == expected
    lines = [line for line in capfd.readouterr().err.splitlines() if "no index" in line]
    assert len(lines) == 1, lines
    assert str(path) in lines[0]
    assert lines[0].endswith("it is made again")
    assert path.read_bytes() == good


def spoilt(path, how):
    content = path.read_bytes()
    if how == "compressed":
        rewrite(path, zipfile.ZIP_DEFLATED)
    elif how == "too large":
        path.write_bytes(content + bytes(1 << 24))
    elif how == "a bomb":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
            file.writestr("notes.npy", bytes(1 << 26))
    elif how == "one member many times":
        rewrite(path, zipfile.ZIP_STORED)
        data = path.read_bytes()
        start, end = data.index(b"PK\x01\x02"), data.index(b"PK\x05\x06")
        entry = data[start : start + 46 + int.from_bytes(data[start + 28 : start + 30], "little")]
        count = 3000
        sizes = count.to_bytes(2, "little") * 2 + (len(entry) * count).to_bytes(4, "little")
        tail = data[end : end + 8] + sizes + data[end + 16 :]
        path.write_bytes(data[:start] + entry * count + tail)
    elif how == "cut":
        path.write_bytes(content[: len(content) // 2])
    else:
        path.write_bytes(b"")


@pytest.mark.parametrize(
    "how", ["compressed", "too large", "a bomb", "one member many times", "cut", "empty"]
)
@pytest.mark.parametrize("kind", ["tar", "splits"])
def test_a_file_that_is_no_index_is_made_again(kind, how, source, tmp_path, capfd, monkeypatch):
    expected = texts(source)
    spoilt(stored(tmp_path, kind), how)
    capfd.readouterr()
    if kind == "splits" and how == "too large":
        monkeypatch.setattr("mmjax.data.files.MAX_ROWS_BYTES", 1 << 20)
    assert texts(source) == expected
    assert capfd.readouterr().err.count("it is made again") == 1


def test_members_that_lie_over_one_another_are_not_read(source, tmp_path):
    """A thousand entries of one member would take a thousand times as long to read."""
    path = stored(tmp_path, "tar")
    spoilt(path, "one member many times")
    with pytest.raises(ValueError, match="claims more bytes than it has"):
        index._unpacked(path.read_bytes())


ROWS_WRONG = {
    "rows beyond the records": {"train": at(0, 12)},
    "rows below zero": {"train": at(0, -1)},
    "a row twice": {"train": lambda a: np.concatenate([a, a[:1]])},
    "a row of val in train": {"train": lambda a: np.concatenate([a, np.arange(12)])},
    "rows that are missing": {"val": lambda a: a[:0]},
    "rows of another type": {"train": lambda a: a.astype(np.float32)},
    "notes of other types": {"notes": notes({"files": 3, "shares": []})},
}


@pytest.mark.fault(
    "an index of splits that holds wrong rows, or a row in two splits",
    "it is made again from the keys, with one line that says so",
)
@pytest.mark.parametrize("case", ROWS_WRONG)
def test_a_wrong_index_of_splits_is_made_again(case, source, tmp_path, capfd):
    expected = texts(source)
    path = stored(tmp_path, "splits")
    rewrite(path, zipfile.ZIP_STORED, **ROWS_WRONG[case])
    capfd.readouterr()
    assert texts(source) == expected
    assert capfd.readouterr().err.count("it is made again") == 1
    train, val = (set(v) for v in expected.values())
    assert not train & val
    assert len(train | val) == 12


@pytest.mark.ci
def test_a_huge_claim_of_an_index_takes_no_memory(source, tmp_path):
    rewrite(stored(tmp_path, "tar"), zipfile.ZIP_STORED, offsets=huge)
    code = f"""
source = WebDataset(path={source.path!r}, fields={{"text": "txt"}}, key="__key__",
                    shares={{"train": 0.5, "val": 0.5}})
assert len(source.open("train")) + len(source.open("val")) == 12"""
    megabytes, seconds = peak.of("from mmjax.data.webdataset import WebDataset", code)
    assert megabytes < 30
    assert seconds < 5


@pytest.mark.fault(
    "a link as the folder of indices, or as an index, that leads out of the data",
    "nothing is read from there or written there",
)
@pytest.mark.parametrize("what", ["folder", "file"])
def test_links_out_of_the_data_as_indices_are_refused(what, source, tmp_path, capfd, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    expected = texts(source)
    beside, outside = tmp_path / "data" / ".mmjax", tmp_path / "outside"
    if what == "folder":
        beside.rename(outside)
        beside.symlink_to(outside)
    else:
        outside.mkdir()
        for path in list(beside.iterdir()):
            path.rename(outside / path.name)
            path.symlink_to(outside / path.name)
    before = {p.name: p.stat().st_mtime_ns for p in outside.iterdir()}
    assert len(before) == 3
    capfd.readouterr()
    assert texts(source) == expected
    assert "leads out of" in capfd.readouterr().err
    assert before == {p.name: p.stat().st_mtime_ns for p in outside.iterdir()}
    if what == "folder":  # it is kept where the user's own files are
        assert len(list((tmp_path / "cache" / "mmjax").iterdir())) == 3
    capfd.readouterr()
    assert texts(source) == expected
    assert "it is made again" not in capfd.readouterr().err


@pytest.mark.timeout(30)
def test_a_pipe_as_an_index_is_not_waited_for(source, tmp_path, capfd):
    expected = texts(source)
    path = stored(tmp_path, "tar")
    path.unlink()
    os.mkfifo(path)
    assert texts(source) == expected
    assert "is a pipe" in capfd.readouterr().err
    assert path.is_file()


def test_bytes_changed_at_random_never_give_other_places(source, tmp_path):
    path = stored(tmp_path, "tar")
    size = (tmp_path / "data" / "a.tar").stat().st_size
    good, rng, told = path.read_bytes(), np.random.default_rng(0), []
    for _ in range(300):
        data = bytearray(good)
        for _ in range(rng.integers(1, 4)):
            data[rng.integers(len(data))] = rng.integers(256)
        path.write_bytes(data)
        found = index.load(path.stem, [path.parent], 1 << 20,
                           lambda n, a: webdataset._check(n, a, size))  # fmt: skip
        if found is not None:
            told.append(found)
            for start, length in itertools.zip_longest(found[1]["offsets"], found[1]["sizes"]):
                assert 0 <= start <= start + length <= size
    assert len(told) < 300


@pytest.mark.parametrize("variable", ["XDG_CACHE_HOME", "HOME"])
def test_an_index_needs_no_home_folder_and_takes_none_by_a_relative_name(monkeypatch, variable):
    for name in ("XDG_CACHE_HOME", "HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv(variable, "relative")
    monkeypatch.setattr("pwd.getpwuid", lambda number: {}[number])  # as in containers
    found = index.folders("", Path("/data/a.tar"))
    assert found == [Path("/data/.mmjax")]
