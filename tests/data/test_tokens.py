"""Offline tokens: computed once, resumed, mapped by readers; bad and absent values keep a place."""

from __future__ import annotations

import concurrent.futures
import dataclasses
import hashlib
import io
import itertools
import json
import os
import pickle
import threading

import numpy as np
import pytest
import toy_codes
from store import Shared, Store

from mmjax.data import loader, tokens
from mmjax.data.source import BadRecord, Source
from mmjax.modalities.codes import Codes
from mmjax.parallel import distributed
from mmjax.typing import Vocabulary

GOOD = np.random.default_rng(0).random((4, 8, 16)).astype(np.float32)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pictures(Source):
    """Ten pictures, four of them different; the third is absent, the sixth is no picture."""

    def open(self, split):
        found = [{"image": GOOD[i % 4]} for i in range(10)]
        found[2] = {}
        found[5] = {"image": np.full((8, 16), np.nan)}
        return found

    def fingerprint(self):
        return "5" * 64


class Counting(Codes):
    """Counts the values that it encodes in batches."""

    def encode_batch(self, values):
        COUNTED.append(len(values))
        return super().encode_batch(values)


COUNTED: list[int] = []


@pytest.fixture
def codes(tmp_path) -> Codes:
    COUNTED.clear()
    made = Counting(base=toy_codes.BASE, field="image", path=toy_codes.write(tmp_path / "run"))
    return made.fit(lambda: iter(()), tmp_path / "copy")


def prepare(codes, folder):
    vocabulary = Vocabulary((codes.spec("codes"),))
    modalities = {"codes": codes}
    return tokens.prepare(modalities, ("codes",), vocabulary, Pictures(), "train", folder)["codes"]


def check(table, codes) -> None:
    for i in (0, 1, 3, 4, 6, 9):
        piece, expected = table[i], codes.encode(GOOD[i % 4])
        for a, b in zip(piece, expected, strict=True):
            np.testing.assert_array_equal(a, b)
    assert table[2] is None
    with pytest.raises(LookupError, match="example 5"):
        table[5]


@pytest.mark.parametrize("on_disk", [True, False])
def test_tables_hold_what_encoding_gives(on_disk, codes, tmp_path):
    table = prepare(codes, tmp_path / "work" if on_disk else None)
    check(table, codes)
    check(pickle.loads(pickle.dumps(table)), codes)
    assert table.ids_NL.dtype == np.uint8
    # One batch with the bad one among them, then each different value by itself.
    assert COUNTED == [5, 1, 1, 1, 1, 1]


def test_a_value_that_only_the_base_knows_to_be_absent_is_absent(codes, tmp_path):
    """As a video without sound is: its file is there, and the reader finds that it has none."""

    class Mute(type(codes.base)):
        def encode(self, value):
            return None if np.array_equal(value, GOOD[1]) else super().encode(value)

    class Good(Pictures):
        def open(self, split):
            return super().open(split)[:5]  # a bad one would have each value encoded by itself

    object.__setattr__(codes, "base", Mute(size=(8, 16), patch=4, channels=1))
    vocabulary, of = Vocabulary((codes.spec("codes"),)), {"codes": codes}
    tables = tokens.prepare(of, ("codes",), vocabulary, Good(), "train", None)
    reader = loader.Reader(
        source=Good(), split="train", modalities=of, vocabulary=vocabulary, tokens=tables
    )
    assert reader.read(1, ("codes",)).pieces["codes"] is None
    assert reader.read(0, ("codes",)).pieces["codes"] is not None


def test_a_second_run_reads_the_file(codes, tmp_path):
    prepare(codes, tmp_path / "work")
    fingerprint = codes.spec("codes").fingerprint[:12]
    file = tmp_path / "work" / "tokens" / f"codes@{fingerprint}" / ("5" * 12) / "train.npy"
    assert sorted(p.name for p in file.parent.iterdir()) == ["train.json", "train.npy"]
    COUNTED.clear()
    table = prepare(codes, tmp_path / "work")
    check(table, codes)
    assert not COUNTED
    assert isinstance(table.ids_NL, np.memmap)


def stopped_half_way(codes, folder, monkeypatch) -> None:
    """Interrupts the encoding of ten pictures, two at a time, after six."""
    monkeypatch.setattr(tokens, "BATCH", 2)
    monkeypatch.setattr(tokens, "NOTE_SECONDS", 0.0)
    rows = tokens._Filler._rows

    def stop(self, values, known, dtype):
        if len(COUNTED) >= 3:
            raise KeyboardInterrupt
        return rows(self, values, known, dtype)

    COUNTED.clear()
    with monkeypatch.context() as only_here:
        only_here.setattr(tokens._Filler, "_rows", stop)
        with pytest.raises(KeyboardInterrupt):
            prepare(codes, folder)


def test_an_interrupted_one_goes_on_where_it_stopped(codes, tmp_path, monkeypatch):
    whole = prepare(codes, tmp_path / "whole")
    check(whole, codes)
    stopped_half_way(codes, tmp_path / "work", monkeypatch)
    (done,) = (tmp_path / "work" / "tokens").glob("*/*/train.json")
    assert json.loads(done.read_text())["rows"] == 6
    COUNTED.clear()
    table = prepare(codes, tmp_path / "work")
    assert sum(COUNTED) == 4  # the last four pictures
    check(table, codes)
    np.testing.assert_array_equal(table.ids_NL, whole.ids_NL)


@pytest.fixture
def as_processes(monkeypatch):
    """Calls a function in threads that stand for processes, which meet at a store in memory."""
    own = threading.local()

    def call(count: int, function) -> list:
        shared = Shared(count)

        def begin(process: int):
            own.process, own.store, own.names = process, Store(shared), itertools.count()
            return function(process)

        monkeypatch.setattr(distributed, "count", lambda: count)
        with concurrent.futures.ThreadPoolExecutor(count) as pool:
            jobs = [pool.submit(begin, i) for i in range(count)]
            return [job.result() for job in jobs]

    monkeypatch.setattr(distributed, "process", lambda: own.process)
    monkeypatch.setattr(distributed, "is_main", lambda: own.process == 0)
    monkeypatch.setattr(distributed, "store", lambda: own.store)
    monkeypatch.setattr(distributed, "fresh", lambda name: f"{next(own.names)}/{name}")
    return call


def test_all_processes_compute_a_part(codes, tmp_path, as_processes, monkeypatch):
    whole = prepare(codes, None)
    computed = {}
    run = tokens._Filler.run
    noting = lambda filler: computed.setdefault(distributed.process(), filler.rows) and run(filler)
    monkeypatch.setattr(tokens._Filler, "run", noting)
    for table in as_processes(3, lambda _: prepare(codes, tmp_path / "work")):
        check(table, codes)
        np.testing.assert_array_equal(table.ids_NL, whole.ids_NL)
        assert table.path
    assert computed == {0: range(0, 3), 1: range(3, 6), 2: range(6, 10)}
    (file,) = (tmp_path / "work" / "tokens").glob("*/*/train.npy")
    assert sorted(p.name for p in file.parent.iterdir()) == ["train.json", "train.npy"]
    computed.clear()
    as_processes(3, lambda _: prepare(codes, tmp_path / "work"))
    assert not computed


def test_processes_that_share_no_folder_compute_for_themselves(codes, tmp_path, as_processes):
    for _ in range(2):
        for table in as_processes(2, lambda i: prepare(codes, tmp_path / f"work{i}")):
            check(table, codes)


def test_readers_look_up_and_say_why_a_record_is_bad(codes, tmp_path):
    vocabulary = Vocabulary((codes.spec("codes"),))
    table = prepare(codes, tmp_path / "work")
    reader = loader.Reader(
        source=Pictures(), split="train", modalities={"codes": codes}, vocabulary=vocabulary,
        max_bad_fraction=1.0, tokens={"codes": table},
    )  # fmt: skip
    COUNTED.clear()
    for i in (0, 4, 9):
        np.testing.assert_array_equal(reader.read(i, ("codes",)).pieces["codes"].ids_L, table[i][1])
    assert reader.read(2, ("codes",)).pieces["codes"] is None
    with pytest.raises(BadRecord, match="NaN or infinity"):
        reader.read(5, ("codes",))
    assert not COUNTED


# ----------------------------------------------------------------- damaged and planted files


def table_file(tmp_path):
    (path,) = (tmp_path / "work" / "tokens").glob("*/*/train.npy")
    return path


def npy(array) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def flipped(path, folder):
    data = bytearray(path.read_bytes())
    data[-5] ^= 1
    path.write_bytes(data)


def of_shape(change):
    def spoil(path, folder):
        path.write_bytes(npy(change(np.load(path))))

    return spoil


def claimed(path, folder):
    data = path.read_bytes()
    head = data[:128].replace(b"(10, ", b"(1099511627776, ")
    assert len(head) > 128
    path.write_bytes(head[:127] + b"\n" + data[128:])


def noted(content):
    def spoil(path, folder):
        (path.parent / "train.json").write_text(content)

    return spoil


def linked(path, folder):
    path.rename(folder / "elsewhere.npy")
    path.symlink_to(folder / "elsewhere.npy")


def piped(path, folder):
    path.unlink()
    os.mkfifo(path)


SPOILT = {
    "a bit flipped": flipped,
    "cut": lambda path, folder: os.truncate(path, path.stat().st_size - 8),
    "empty": lambda path, folder: os.truncate(path, 0),
    "no array": lambda path, folder: path.write_bytes(b"<html>" * 100),
    "fewer rows": of_shape(lambda a: a[:-1]),
    "longer rows": of_shape(lambda a: np.concatenate([a, a], 1)),
    "one axis": of_shape(lambda a: a.reshape(-1)),
    "another type": of_shape(lambda a: a.astype(np.uint16)),
    "signed": of_shape(lambda a: a.astype(np.int8)),
    "another order": of_shape(np.asfortranarray),
    "a huge claim": claimed,
    "a pickle": lambda path, folder: np.save(path, np.array([{}] * 10), allow_pickle=True),
    "no note": lambda path, folder: (path.parent / "train.json").unlink(),
    "a note of another": noted('{"rows": 10, "sha256": "00"}'),
    "a note of fewer rows": noted(f'{{"rows": 0, "sha256": "{hashlib.sha256().hexdigest()}"}}'),
    "a note of rows below zero": noted('{"rows": -3, "sha256": ""}'),
    "a note of other types": noted('{"rows": "10", "sha256": []}'),
    "a note that is no object": noted("7"),
    "a note without end": noted("[" * 50_000),
    "a huge note": noted(" " * (1 << 20)),
    "a link": linked,
    "a pipe": piped,
}


@pytest.mark.fault(
    "a table of offline tokens that is damaged, planted, or of other data",
    "it is never used; the tokens are computed anew, with a line that says so",
)
@pytest.mark.timeout(60)
@pytest.mark.parametrize("case", SPOILT)
def test_a_spoilt_table_is_computed_anew(case, codes, tmp_path, capfd):
    whole = np.array(prepare(codes, tmp_path / "work").__getstate__()["ids_NL"] or ())
    path = table_file(tmp_path)
    good = path.read_bytes()
    SPOILT[case](path, tmp_path)
    COUNTED.clear()
    capfd.readouterr()
    table = prepare(codes, tmp_path / "work")
    check(table, codes)
    said = [line for line in capfd.readouterr().err.splitlines() if "no table of these" in line]
    assert COUNTED
    assert path.read_bytes() == good
    assert not path.is_symlink()
    assert len(said) == 1, said
    COUNTED.clear()
    check(prepare(codes, tmp_path / "work"), codes)
    assert not COUNTED
    assert whole.size == 0  # on disk, not in a pickle


@pytest.mark.fault(
    "ids beyond the vocabulary in a table of offline tokens whose hash is right",
    "they do not reach the model: the value is encoded instead",
)
def test_ids_out_of_range_in_a_table_are_not_used(codes, tmp_path):
    table = prepare(codes, tmp_path / "work")
    path, spec = table_file(tmp_path), codes.spec("codes")
    ids_NL = np.load(path)
    expected = ids_NL[0].copy()
    ids_NL[0, -1], ids_NL[1, 3] = spec.vocab_size, 255
    path.write_bytes(npy(ids_NL))
    note = {"rows": 10, "sha256": hashlib.sha256(ids_NL.tobytes()).hexdigest()}
    (path.parent / "train.json").write_text(json.dumps(note))
    table = prepare(codes, tmp_path / "work")
    for i in (0, 1):
        with pytest.raises(LookupError):
            table[i]
    vocabulary = Vocabulary((spec,))
    reader = loader.Reader(
        source=Pictures(), split="train", modalities={"codes": codes}, vocabulary=vocabulary,
        max_bad_fraction=0.0, tokens={"codes": table},
    )  # fmt: skip
    np.testing.assert_array_equal(reader.read(0, ("codes",)).pieces["codes"].ids_L, expected)


def test_a_table_that_changes_under_a_worker_is_an_error(codes, tmp_path):
    table = pickle.loads(pickle.dumps(prepare(codes, tmp_path / "work")))
    table_file(tmp_path).write_bytes(npy(np.zeros((10, 3), np.uint8)))
    with pytest.raises(ValueError, match="rows of"):
        table[0]


@pytest.mark.parametrize("case", ["cut", "flipped", "note"])
def test_a_spoilt_part_of_a_table_is_computed_anew(case, codes, tmp_path, monkeypatch):
    stopped_half_way(codes, tmp_path / "work", monkeypatch)
    (partial,) = (tmp_path / "work" / "tokens").glob("*/*/train.npy.partial")
    data = bytearray(partial.read_bytes())
    data[-40 if case == "flipped" else -1] ^= case == "flipped"
    if case == "flipped":
        data[128] ^= 1  # of the first row
    partial.write_bytes(data[: len(data) - 9 * (case == "cut")])
    if case == "note":
        (partial.parent / "train.json").write_text("{")
    COUNTED.clear()
    check(prepare(codes, tmp_path / "work"), codes)
    assert sum(COUNTED) > 4  # not the last four alone
