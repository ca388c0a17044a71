"""Cameras: parts, rotations in both forms, broken sequences, and files."""

from __future__ import annotations

import numpy as np
import pytest

from mmjax.modalities.camera import Camera

CAMERA = Camera(bins=201, num_sentinels=0)


def turned(quaternion):
    """The matrix of a rotation."""
    w, x, y, z = quaternion
    return np.array([
        [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
        [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
        [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
    ])  # fmt: skip


def back(value):
    return CAMERA.decode(CAMERA.encode(value))


def test_each_number_has_its_own_ids():
    np.testing.assert_array_equal(CAMERA.encode({"focal": (0, 4)}).ids_L, [1, 1 + 201 + 200, 0])
    ids = CAMERA.encode({"translation": (0, 0, 0), "centre": (0, 0)}).ids_L  # in one order
    np.testing.assert_array_equal(
        ids, [1 + 402, 1 + 603, *(1 + 201 * i + 100 for i in (8, 9, 10)), 0]
    )
    spec = Camera().spec("camera")
    assert (spec.max_tokens, spec.vocab_size) == (12, 1 + 16 + 11 * 1001)


def test_both_quaternions_and_the_matrix_are_one_rotation():
    random = np.random.default_rng(0)
    axes = np.concatenate([np.eye(4), -np.eye(4), [[0, 0.6, -0.8, 0], [0, -0.6, 0.8, 0]]])
    for quaternion in (*axes, *random.normal(size=(20, 4))):
        quaternion = quaternion / np.linalg.norm(quaternion)
        forms = [quaternion, -quaternion, turned(quaternion), turned(quaternion).astype(np.float32)]
        found = [back({"rotation": form})["rotation"] for form in forms]
        for one in found:
            np.testing.assert_allclose(one, found[0], atol=1e-2)
            assert one[0] >= 0
            assert np.linalg.norm(one) == pytest.approx(1, abs=1e-6)
            np.testing.assert_allclose(turned(one), turned(quaternion), atol=0.03)


def test_the_identity_is_exact():
    np.testing.assert_array_equal(back({"rotation": np.eye(3)})["rotation"], [1, 0, 0, 0])
    np.testing.assert_array_equal(back({"translation": (0, 0, 0)})["translation"], [0, 0, 0])


def test_what_is_no_rotation_is_told():
    for matrix in (2 * np.eye(3), np.diag([1.0, 1, -1]), np.ones((3, 3))):
        with pytest.raises(ValueError, match="Camera: rotation is a matrix that also scales"):
            CAMERA.encode({"rotation": matrix})
    with pytest.raises(
        ValueError, match=r"Camera: rotation is a quaternion of length 1\.414; divide"
    ):
        CAMERA.encode({"rotation": (1, 0, 0, 1)})
    with pytest.raises(ValueError, match=r"Camera: focal=\[1.0, 9.0\] is out of range; give 0..4"):
        CAMERA.encode({"focal": (1, 9)})


def test_parts_may_be_absent():
    assert back({}) == {}
    assert back({"focal": None, "centre": (0.5, 0.5)}).keys() == {"centre"}


def test_broken_parts_are_left_out():
    piece = CAMERA.encode({"focal": (1, 2), "centre": (0.5, 0.5)})
    f1, f2, c1, c2 = piece.ids_L[:-1].tolist()
    decoded = lambda *ids: CAMERA.decode(piece._replace(ids_L=np.array(ids, np.int32)))
    assert decoded(f1, c1, c2).keys() == {"centre"}
    assert decoded(f1, f1, f2).keys() == {"focal"}
    assert decoded(f2, f1).keys() == set()
    np.testing.assert_array_equal(decoded(f1, f2, f1 + 1, f2)["focal"], [1, 2])  # the first counts
    low = 1 + 201 * 4 + 100  # all four numbers 0: no direction
    zeros = decoded(*(low + 201 * i for i in range(4)))
    np.testing.assert_array_equal(zeros["rotation"], [1, 0, 0, 0])


def test_files_are_json(tmp_path):
    piece = CAMERA.encode({"focal": (1, 2), "rotation": np.eye(3)})
    path = CAMERA.write(CAMERA.decode(piece), tmp_path / "a")
    np.testing.assert_array_equal(CAMERA.encode(CAMERA.read(str(path))).ids_L, piece.ids_L)
    with pytest.raises(ValueError, match=r"Camera: .* cannot be read"):
        CAMERA.read("absent.json")
