"""Offline tokens: computed once, resumed, mapped by readers; bad and absent values keep a place."""

from __future__ import annotations

import dataclasses
import json
import pickle

import numpy as np
import pytest
import toy_codes

from mmjax.data import loader, tokens
from mmjax.data.source import BadRecord, Source
from mmjax.modalities.codes import Codes
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


def test_a_second_run_reads_the_file(codes, tmp_path):
    prepare(codes, tmp_path / "work")
    fingerprint = codes.spec("codes").fingerprint[:12]
    file = tmp_path / "work" / "tokens" / f"codes@{fingerprint}" / ("5" * 12) / "train.npy"
    assert [p.name for p in file.parent.iterdir()] == ["train.npy"]
    COUNTED.clear()
    table = prepare(codes, tmp_path / "work")
    check(table, codes)
    assert not COUNTED
    assert isinstance(table.ids_NL, np.memmap)


def test_an_interrupted_one_goes_on_where_it_stopped(codes, tmp_path, monkeypatch):
    whole = prepare(codes, tmp_path / "whole")
    check(whole, codes)
    monkeypatch.setattr(tokens, "BATCH", 2)
    monkeypatch.setattr(tokens, "NOTE_SECONDS", 0.0)
    rows = tokens._Filler._rows

    def stop(self, values, known, dtype):
        if len(COUNTED) >= 3:
            raise KeyboardInterrupt
        return rows(self, values, known, dtype)

    COUNTED.clear()
    monkeypatch.setattr(tokens._Filler, "_rows", stop)
    with pytest.raises(KeyboardInterrupt):
        prepare(codes, tmp_path / "work")
    (done,) = (tmp_path / "work" / "tokens").glob("*/*/train.json")
    assert json.loads(done.read_text()) == 6
    monkeypatch.setattr(tokens._Filler, "_rows", rows)
    COUNTED.clear()
    table = prepare(codes, tmp_path / "work")
    assert sum(COUNTED) == 4  # the last four pictures
    check(table, codes)
    np.testing.assert_array_equal(table.ids_NL, whole.ids_NL)


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
