"""Judges: what they say of real data, of wrong answers, and of damaged ones."""

from __future__ import annotations

import numpy as np
import pytest

from mmjax.demo.numbers import Numbers
from mmjax.evaluate import judges
from mmjax.modalities.image import Image
from mmjax.modalities.structured import Bins, Boxes, Metadata
from mmjax.modalities.text import Text

SOURCE = Numbers()


def test_boxes_are_matched_in_order():
    left, right = [0, 0, 0.5, 1], [0.5, 0, 1, 1]
    half, real = [0, 0, 0.5, 0.5], {"boxes": np.array([right, left])}
    score = judges.BoxIoU().ready(SOURCE, Boxes())
    answers = [[left, right], [half, right], [left], [], [left, right, [0.9, 0.9, 1, 1]], [right]]
    np.testing.assert_allclose(
        score([np.array(a) for a in answers], [real] * 6), [1, 0.75, 0.5, 0, 2 / 3, 0]
    )
    assert judges.box_iou(np.zeros((0, 4)), np.zeros((0, 4))) == 1


def test_masks_are_compared_by_intersection_over_union():
    mask = np.zeros((8, 16), bool)
    mask[:4] = True
    score = judges.MaskIoU().ready(SOURCE, Image(field="mask"))
    answers = [mask, mask[:, :, None] * 0.6, mask * 0.4, np.ones((8, 16, 1))]
    np.testing.assert_allclose(score(answers, [{"mask": mask}] * 4), [1, 1, 0, 0.5])
    assert judges.mask_iou(mask * 0, mask * 0) == 1


def test_metadata_is_right_in_its_bin():
    schema = {"value": Bins(num=100), "ink": Bins(num=4, low=0, high=8)}
    score = judges.SameMetadata().ready(SOURCE, Metadata(schema=schema))
    real = {"metadata": {"value": 7, "ink": 3}}
    answers = [{"value": 7, "ink": 2.5}, {"value": 7}, {"value": 8, "ink": 4.5}, {}]
    np.testing.assert_allclose(score(answers, [real] * 4), [1, 0.5, 0, 0])
    with pytest.raises(ValueError, match="SameMetadata: Text is no Metadata"):
        judges.SameMetadata().ready(SOURCE, Text())
