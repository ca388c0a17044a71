"""Actions: bins, missing steps, what is clipped and cut, broken sequences, and files."""

from __future__ import annotations

import numpy as np
import pytest

from mmjax.modalities.actions import Actions

DIMS = {"x": (-1.0, 1.0), "grip": (0.0, 0.1)}
ACTIONS = Actions(dims=DIMS, bins=4, max_steps=2, num_sentinels=0)


def decoded(ids):
    piece = ACTIONS.encode([[0, 0]])._replace(ids_L=np.asarray(ids, np.int32))
    return ACTIONS.decode(piece)


def test_a_number_is_the_number_of_its_bin():
    xs = [[-1, 0], [-0.51, 0.024], [-0.5, 0.026], [0, 0.05], [1, 0.1]]
    found = [(ACTIONS.encode([x]).ids_L[:2] - [2, 7]).tolist() for x in xs]
    assert found == [[0, 0], [0, 0], [1, 1], [2, 2], [3, 3]]
    np.testing.assert_allclose(decoded([2, 10])["actions"], [[-0.75, 0.0875]])
    spec = Actions(dims=DIMS).spec("a")
    assert (spec.max_tokens, spec.vocab_size) == (33, 1 + 16 + 2 * 257)


def test_ends_of_ranges_in_single_precision_are_inside():
    piece = ACTIONS.encode(np.array([[-1, 0.1]], np.float32))  # float32(0.1) > 0.1
    np.testing.assert_array_equal(piece.ids_L, [2, 10, 0])


def test_a_missing_step_has_its_own_ids_whatever_its_numbers():
    piece = ACTIONS.encode({"actions": [[np.nan, 7], [0, 0]], "mask": [False, True]})
    np.testing.assert_array_equal(piece.ids_L, [1, 6, 4, 7, 0])
    back = ACTIONS.decode(piece)
    assert back["mask"].tolist() == [False, True]
    np.testing.assert_allclose(back["actions"], [[0, 0], [0.25, 0.0125]])
    np.testing.assert_array_equal(ACTIONS.encode(back).ids_L, piece.ids_L)


def test_values_beyond_a_range_are_named_or_clipped():
    with pytest.raises(ValueError, match=r"Actions: grip=0\.2 is out of range; give 0\.\.0\.1, or"):
        ACTIONS.encode([[0, 0.2]])
    clipped = Actions(dims=DIMS, bins=4, num_sentinels=0, clip=True)
    np.testing.assert_array_equal(clipped.encode([[-9, 0.2]]).ids_L, [2, 10, 0])
    assert clipped.adapted([[-9, 0.2], [0, 0]]) == "2 values are clipped to their ranges"
    with pytest.raises(ValueError, match="Actions: numbers hold NaN or infinity"):
        clipped.encode([[np.inf, 0]])


def test_steps_beyond_the_room_are_cut_and_counted():
    piece = ACTIONS.encode(np.zeros((5, 2)))
    assert (piece.length, piece.num_cut) == (5, 6)
    assert ACTIONS.adapted(np.zeros((5, 2))) == "5 steps are cut to 2"
    assert ACTIONS.adapted(np.zeros((2, 2))) == ""


def test_broken_steps_are_left_out():
    assert decoded([2, 3, 10])["actions"].shape == (1, 2)  # x twice
    assert decoded([10, 2, 0, 10])["actions"].shape == (0, 2)
    found = decoded([1, 10, 2, 6])
    assert found["mask"].tolist() == [False, False]  # half of each is missing
    assert not found["actions"].any()


def test_files_are_json_and_npy(tmp_path):
    piece = ACTIONS.encode({"actions": [[1, 0], [0, 0]], "mask": [False, True]})
    path = ACTIONS.write(ACTIONS.decode(piece), tmp_path / "a")
    np.testing.assert_array_equal(ACTIONS.encode(ACTIONS.read(str(path))).ids_L, piece.ids_L)
    np.save(tmp_path / "b.npy", np.zeros((2, 2)))
    np.testing.assert_array_equal(ACTIONS.read(str(tmp_path / "b.npy")), np.zeros((2, 2)))


def test_dims_have_ranges():
    for dims in ({}, {"x": (1.0, 1.0)}, {"x": (2.0, 1.0)}):
        with pytest.raises(ValueError, match="Actions: dims"):
            Actions(dims=dims)
