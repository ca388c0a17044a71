"""Keypoints: order, joints that are not visible, cutting, broken sequences, and files."""

from __future__ import annotations

import numpy as np
import pytest

from mmjax.modalities.keypoints import COCO, Keypoints

POINTS = Keypoints(joints=("head", "foot"), max_people=2, bins=11, num_sentinels=0)
NEAR = [[0.1, 0.2, 1], [0.1, 0.9, 1]]
FAR = [[0.5, 0.2, 1], [0.9, 0.9, 1]]
HALF = [[0, 0, 0], [0.6, 0.1, 1]]
NOBODY = [[0, 0, 0], [0, 0, 0]]


def decoded(ids):
    return POINTS.decode(POINTS.encode([NEAR])._replace(ids_L=np.asarray(ids, np.int32)))


def test_a_joint_is_two_ids_or_one_when_it_is_not_visible():
    np.testing.assert_array_equal(POINTS.encode([NEAR]).ids_L, [1, 4, 16, 4, 23, 0])
    np.testing.assert_array_equal(POINTS.encode([HALF]).ids_L, [1, 2, 9, 15, 0])
    spec = Keypoints().spec("pose")
    assert len(COCO) == 17
    assert (spec.max_tokens, spec.vocab_size) == (8 * 35 + 1, 1 + 16 + 2 + 2000)


def test_people_come_by_the_corner_of_what_is_visible_of_them():
    # The corner of FAR is (0.5, 0.2), of HALF (0.6, 0.1): its zeros say nothing.
    found = POINTS.decode(POINTS.encode([HALF, FAR]))
    np.testing.assert_allclose(found, np.array([FAR, HALF]), atol=1e-6)
    found = POINTS.decode(POINTS.encode([NOBODY, NEAR]))
    np.testing.assert_allclose(found, np.array([NEAR, NOBODY]), atol=1e-6)


def test_people_beyond_the_room_are_cut_whole_and_their_tokens_counted():
    piece = POINTS.encode([HALF, FAR, NEAR, NOBODY])
    assert piece.num_cut == 4 + 3
    np.testing.assert_allclose(POINTS.decode(piece), np.array([NEAR, FAR]), atol=1e-6)


def test_what_is_not_visible_may_be_anything():
    hidden = [[np.nan, 7, 0], [0.6, 0.1, 2]]  # 2 as in COCO
    np.testing.assert_array_equal(POINTS.encode([hidden]).ids_L, POINTS.encode([HALF]).ids_L)
    sure = Keypoints(joints=("head", "foot"), min_visibility=0.9)
    scores = [[0.1, 0.2, 0.8], [0.1, 0.2, 0.95]]
    np.testing.assert_array_equal(sure.decode(sure.encode([scores]))[0, :, 2], [0, 1])


def test_dicts_by_joint_and_arrays_without_visibility_are_the_same():
    by_name = [{"foot": (0.6, 0.1)}, {"head": (0.1, 0.2, 1), "foot": [0.1, 0.9]}]
    np.testing.assert_array_equal(POINTS.encode(by_name).ids_L, POINTS.encode([HALF, NEAR]).ids_L)
    flat = np.array([NEAR])[:, :, :2]
    np.testing.assert_array_equal(POINTS.encode(flat).ids_L, POINTS.encode([NEAR]).ids_L)
    with pytest.raises(ValueError, match="'tail' is no joint; give some of head, foot"):
        POINTS.encode([{"tail": (0, 0)}])


def test_broken_people_are_left_out():
    near, half = (
        POINTS.encode([NEAR]).ids_L[:-1].tolist(),
        POINTS.encode([HALF]).ids_L[:-1].tolist(),
    )
    whole = np.array([NEAR])
    np.testing.assert_allclose(decoded([*near, *half[:2]]), whole, atol=1e-6)  # no end, half a one
    np.testing.assert_allclose(decoded([5, *near, *half[:3]]), whole, atol=1e-6)
    np.testing.assert_allclose(decoded([*near, *near, 2]), whole, atol=1e-6)  # a joint too many
    assert decoded([1, 16, 4, 2]).shape == (0, 2, 3)  # y before x


def test_files_are_json_by_joint(tmp_path):
    path = POINTS.write(POINTS.decode(POINTS.encode([HALF])), tmp_path / "a")
    assert path.read_text() == '[{"head": [0.0, 0.0, 0.0], "foot": [0.6, 0.1, 1.0]}]\n'
    np.testing.assert_array_equal(
        POINTS.encode(POINTS.read(str(path))).ids_L, POINTS.encode([HALF]).ids_L
    )
    with pytest.raises(ValueError, match=r"Keypoints: .* cannot be read"):
        POINTS.read("absent.json")


def test_joints_have_names_of_their_own():
    for joints in ((), ("a", "a")):
        with pytest.raises(ValueError, match="Keypoints: joints="):
            Keypoints(joints=joints)
