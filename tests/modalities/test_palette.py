"""Palettes: the number first, cutting, broken sequences, and files."""

from __future__ import annotations

import numpy as np
import pytest

from mmjax.modalities.palette import Palette

PALETTE = Palette(max_colours=2, num_sentinels=0)
RED, GREEN, BLUE = [255, 0, 0], [0, 255, 0], [0, 0, 255]


def decoded(ids):
    return PALETTE.decode(PALETTE.encode([RED])._replace(ids_L=np.asarray(ids, np.int32)))


def test_the_number_of_colours_comes_first():
    np.testing.assert_array_equal(PALETTE.encode([RED]).ids_L, [1, 258, 3, 3, 0])
    assert PALETTE.encode([RED, BLUE]).ids_L[0] == 2
    assert PALETTE.spec("p").vocab_size == 1 + 2 + 256
    assert Palette().spec("p").max_tokens == 23  # 4M-21


def test_colours_beyond_the_room_are_cut_from_the_end():
    piece = PALETTE.encode([RED, GREEN, BLUE])
    assert piece.num_cut == 3
    np.testing.assert_array_equal(PALETTE.decode(piece), [RED, GREEN])


def test_whole_numbers_and_floats_are_not_taken_for_one_another():
    np.testing.assert_array_equal(PALETTE.decode(PALETTE.encode([[1, 1, 1]])), [[1, 1, 1]])
    np.testing.assert_array_equal(PALETTE.decode(PALETTE.encode([[1.0, 1, 1]])), [[255, 255, 255]])
    with pytest.raises(ValueError, match=r"Palette: a number is NaN or outside 0\.\.255"):
        PALETTE.encode([[0, 300, 0]])
    with pytest.raises(ValueError, match=r"Palette: a number is NaN or outside 0\.\.1;"):
        PALETTE.encode([[0, 1.5, 0]])


def test_broken_palettes_give_the_whole_colours_that_there_are():
    red = PALETTE.encode([RED]).ids_L[1:4].tolist()
    np.testing.assert_array_equal(decoded([2, *red]), [RED])  # a colour and the end are missing
    np.testing.assert_array_equal(decoded([1, *red, *red]), [RED])  # one too many
    np.testing.assert_array_equal(decoded([2, *red, 3, 3, 0]), [RED])
    np.testing.assert_array_equal(decoded(red), [RED])  # no number
    assert decoded([2, 0, *red]).shape == (0, 3)
    assert decoded([]).shape == (0, 3)


def test_files_are_json(tmp_path):
    path = PALETTE.write(np.array([RED], np.uint8), tmp_path / "a")
    assert path.read_text() == "[[255, 0, 0]]\n"
    assert PALETTE.read(str(path)) == [RED]
    assert PALETTE.read(str(PALETTE.write([[1.0, 0, 0]], tmp_path / "b"))) == [RED]
    with pytest.raises(ValueError, match=r"Palette: .* cannot be read"):
        PALETTE.read("absent.json")
