"""Clouds of points: groups, what is left out, and files."""

from __future__ import annotations

import numpy as np
import pytest

from mmjax.modalities.points import Points

RANDOM = np.random.default_rng(0)
CLOUD = RANDOM.uniform(-1, 1, (30, 3))
POINTS = Points(max_points=32, group=4)


def rows(points):
    return np.array(sorted(np.asarray(points, np.float64).tolist()))


def test_each_point_is_in_one_group_and_all_but_one_are_full():
    piece = POINTS.encode(CLOUD)
    np.testing.assert_allclose(rows(POINTS.decode(piece)), rows(CLOUD), atol=1e-6)
    slots = piece.values_LP[:, 3:].reshape(8, 4, 4)
    assert sorted(slots[:, :, -1].sum(axis=1).tolist()) == [2, 4, 4, 4, 4, 4, 4, 4]
    assert POINTS.spec("p").kind == "set"


def test_groups_are_of_neighbours():
    corners = np.array([[-0.9, -0.9, 0], [0.9, -0.9, 0], [-0.9, 0.9, 0], [0.9, 0.9, 0]])
    cloud = (corners[:, None] + RANDOM.uniform(-0.05, 0.05, (4, 4, 3))).reshape(-1, 3)
    piece = POINTS.encode(RANDOM.permutation(cloud))
    middles = rows(piece.values_LP[:, :3].round(1) + 0.0)
    np.testing.assert_allclose(middles, rows(corners), atol=0.1 + 1e-6)
    np.testing.assert_allclose(piece.position_LA, (piece.values_LP[:, :3] + 1) * 8)


def test_the_order_of_the_points_does_not_matter():
    piece, other = POINTS.encode(CLOUD), POINTS.encode(CLOUD[::-1])
    np.testing.assert_array_equal(piece.values_LP, other.values_LP)


@pytest.mark.parametrize("count", [33, 64, 1000])
def test_of_too_many_points_some_of_all_parts_are_kept_and_the_rest_is_counted(count):
    cloud = RANDOM.uniform(-1, 1, (count, 3))
    piece = POINTS.encode(cloud)
    back = rows(POINTS.decode(piece))
    assert len(np.unique(back, axis=0)) == 32
    distance = np.abs(back[:, None] - cloud[None]).max(axis=2).min(axis=1)
    assert distance.max() < 1e-6  # they are points of the cloud
    assert piece.num_cut == -(-count // 4) - 8
    assert all(((back > 0) == side).all(axis=1).any() for side in ([1, 1, 1], [0, 0, 0], [1, 0, 1]))
    assert POINTS.adapted(cloud) == f"{count} points become 32"
    np.testing.assert_array_equal(piece.values_LP, POINTS.encode(cloud[::-1]).values_LP)


def test_a_cloud_without_points_is_a_value():
    for value in ([], np.zeros((0, 3))):
        piece = POINTS.encode(value)
        assert (piece.length, piece.num_cut) == (1, 0)
        assert not piece.values_LP.any()
        assert POINTS.decode(piece).shape == (0, 3)
    assert POINTS.measure([]) == {"points": 0.0}


def test_channels_go_with_their_points():
    points = Points(channels=1, group=4, low=0.0, high=8.0, mean=(100.0,), std=(50.0,))
    cloud = np.arange(24.0).reshape(6, 4) / 3
    np.testing.assert_allclose(rows(points.decode(points.encode(cloud))), cloud, atol=1e-4)


def test_equal_points_stay_apart():
    np.testing.assert_array_equal(POINTS.decode(POINTS.encode(np.zeros((7, 3)))), np.zeros((7, 3)))


def test_coordinates_outside_are_told_and_rounding_is_not():
    with pytest.raises(ValueError, match=r"Points: a coordinate is outside -1\.\.1; divide"):
        POINTS.encode([[0, 0, 1.01]])
    thirds = Points(low=0.0, high=0.1)
    value = np.full((1, 3), 0.1, np.float32)  # float32(0.1) > 0.1
    back = thirds.decode(thirds.encode(value))
    np.testing.assert_allclose(back, value)
    np.testing.assert_allclose(thirds.decode(thirds.encode(back)), value)
    with pytest.raises(ValueError, match=r"Points: low=1\.0 must be below high=1\.0"):
        Points(low=1.0)


def test_any_numbers_decode_to_points_inside():
    piece = POINTS.encode(CLOUD)
    wild = np.array([1, np.nan, np.inf, 3e38, 1, -np.inf, 0.7], np.float32)
    back = POINTS.decode(piece._replace(values_LP=np.resize(wild, (5, POINTS.spec("p").width))))
    assert len(back)
    assert (np.abs(back) <= 1).all()  # also false for NaN
    with pytest.raises(ValueError, match="Points: decode needs values"):
        POINTS.decode(piece._replace(values_LP=wild[None]))


def test_files_are_npy_and_csv(tmp_path):
    path = str(POINTS.write(CLOUD.astype(np.float32), tmp_path / "a"))
    np.testing.assert_array_equal(POINTS.read(path), CLOUD.astype(np.float32))
    (tmp_path / "b.csv").write_text("x,y,z\n0,0.5,1\n")
    np.testing.assert_array_equal(POINTS.read(str(tmp_path / "b.csv")), [[0, 0.5, 1]])
