"""Bytes: what is cut, what is no bytes, and files."""

from __future__ import annotations

import numpy as np
import pytest

from mmjax.modalities.raw import Bytes

RAW = Bytes(max_tokens=5, num_sentinels=2)


def test_a_byte_is_its_number_behind_the_end_and_the_sentinels():
    np.testing.assert_array_equal(RAW.encode(b"\x00\x01\xff").ids_L, [3, 4, 258, 0])
    spec = RAW.spec("raw")
    assert (spec.vocab_size, spec.end_id, spec.first_sentinel, spec.num_sentinels) == (259, 0, 1, 2)


def test_bytes_beyond_the_room_are_cut_before_the_end_and_counted():
    piece = RAW.encode(b"abcdef")
    assert (piece.length, piece.ids_L[-1], piece.num_cut) == (5, 0, 2)
    assert RAW.decode(piece) == b"abcd"
    assert RAW.adapted(b"abcdef") == "6 bytes are cut to 4"
    assert RAW.adapted(b"abcd") == ""
    assert RAW.measure("\u00f6") == {"bytes": 2.0}


def test_what_is_no_byte_is_left_out():
    piece = RAW.encode(b"abcd")
    assert RAW.decode(piece._replace(ids_L=np.array([1, 3, 2, 4]))) == b"\x00\x01"
    assert RAW.decode(piece._replace(ids_L=np.array([3, 0, 4]))) == b"\x00"
    with pytest.raises(ValueError, match="Bytes: decode needs ids"):
        RAW.decode(piece._replace(ids_L=None, values_LP=np.zeros((1, 1))))


def test_files_are_bytes(tmp_path):
    assert RAW.read(str(RAW.write(b"\x00\r\n", tmp_path / "a"))) == b"\x00\r\n"
    with pytest.raises(ValueError, match=r"Bytes: .*absent.* cannot be read"):
        RAW.read(str(tmp_path / "absent"))
    with pytest.raises(ValueError, match=r"Bytes: .* a folder"):
        RAW.read(str(tmp_path))


def test_room_for_one_byte_at_least():
    with pytest.raises(ValueError, match="Bytes: max_tokens=1 must be"):
        Bytes(max_tokens=1)
