"""Features of other networks: maps, lists, vectors, and files."""

from __future__ import annotations

import numpy as np
import pytest

from mmjax.modalities.features import Features, Vector

MAP = Features(channels=2, grid=(2, 3), mean=(1.0, 0.0), std=(2.0, 10.0))
LIST = Features(channels=2, max_tokens=3)
NUMBERS = np.arange(12.0).reshape(2, 3, 2)
WILD = np.resize(np.array([np.nan, np.inf, -np.inf, 3e38, 0], np.float32), (6, 2))


def test_a_token_is_a_place_of_the_map():
    piece = MAP.encode(NUMBERS)
    np.testing.assert_allclose(piece.values_LP[1], [0.5, 0.3])
    np.testing.assert_array_equal(piece.position_LA[4], [0, 1, 1])
    np.testing.assert_array_equal(MAP.encode(NUMBERS.reshape(6, 2)).values_LP, piece.values_LP)
    assert MAP.spec("f").grid == (1, 2, 3)


def test_a_longer_list_is_cut_and_counted():
    piece = LIST.encode(np.arange(10).reshape(5, 2))
    np.testing.assert_array_equal(LIST.decode(piece), [[0, 1], [2, 3], [4, 5]])
    assert piece.num_cut == 2
    assert LIST.adapted(np.zeros((5, 2))) == "5 vectors are cut to 3"
    assert LIST.encode(np.zeros((1, 2))).length == 1


def test_any_numbers_decode():
    assert MAP.decode(MAP.encode(NUMBERS)._replace(values_LP=WILD)).shape == (2, 3, 2)
    for is_unit in (False, True):
        vector = Vector(channels=2, is_unit=is_unit)
        piece = vector.encode([1, 2])
        for wild in (*WILD, np.zeros(2)):
            assert vector.decode(piece._replace(values_LP=wild[None])).shape == (2,)


def test_pieces_of_others_are_told():
    piece = MAP.encode(NUMBERS)
    for values in (None, WILD[:, :1], WILD[:4]):
        with pytest.raises(ValueError, match="Features: "):
            MAP.decode(piece._replace(values_LP=values))
    with pytest.raises(ValueError, match="Vector: 6 tokens"):
        Vector(channels=2).decode(piece)


def test_unit_vectors_have_a_direction_alone():
    vector = Vector(channels=2, is_unit=True, mean=(0.5,), std=(0.1,))
    back = vector.decode(vector.encode([3e30, 4e30]))
    np.testing.assert_allclose(back, [0.6, 0.8], atol=1e-6)
    with pytest.raises(ValueError, match="Vector: zeros have no direction"):
        vector.encode([0, 0])
    np.testing.assert_array_equal(Vector(channels=2).encode([0, 0]).values_LP, [[0, 0]])


def test_affines_fit_the_channels():
    for cls in (Features, Vector):
        with pytest.raises(ValueError, match=rf"{cls.__name__}: std=.* for 2 channels"):
            cls(channels=2, std=(1.0, 1.0, 1.0))
        with pytest.raises(ValueError, match=f"{cls.__name__}: numbers are too large for std="):
            cls(channels=1, std=(1e-30,)).encode(np.full((1, 1), 1e20))


def test_files_are_npy(tmp_path):
    path = str(MAP.write(NUMBERS, tmp_path / "a"))
    np.testing.assert_array_equal(MAP.read(path), NUMBERS)
    path = str(LIST.write(np.asfortranarray(NUMBERS[0]), tmp_path / "b"))
    np.testing.assert_array_equal(LIST.read(path), NUMBERS[0])
    np.savez(tmp_path / "c.npz", a=NUMBERS)
    for cls in (Features, Vector):
        with pytest.raises(ValueError, match=rf"{cls.__name__}: .*c\.npz.* cannot be read"):
            cls().read(str(tmp_path / "c.npz"))
