"""Judges: what they say of real data, of wrong answers, and of damaged ones."""

from __future__ import annotations

import numpy as np
import pytest

from mmjax.data.toyworld import LANGUAGES, Numbers, words
from mmjax.evaluate import judges
from mmjax.modalities.audio import Audio
from mmjax.modalities.image import Image
from mmjax.modalities.structured import Bins, Boxes, Metadata
from mmjax.modalities.text import Text

SOURCE = Numbers()
AUDIO = Audio(seconds=0.88)


def examples(split, count=1000):
    records = SOURCE.open(split)
    return [records[i] for i in range(count)]


def test_the_digit_reader_reads_held_out_handwriting():
    score = judges.DigitReader().ready(SOURCE, Image())
    test = examples("test")
    found = score([e["image"] for e in test], test)
    assert found.mean() > 0.95
    as_decoded = [e["image"][:, :, None] / np.float32(255) for e in test[:100]]
    np.testing.assert_array_equal(score(as_decoded, test[:100]), found[:100])
    assert score(as_decoded[1:], test[:99]).mean() < 0.05  # of the neighbours
    assert score([np.zeros((8, 16, 1))] * 100, test[:100]).mean() <= 0.01


def test_the_speech_reader_hears_new_voices():
    score = judges.SpeechReader().ready(SOURCE, AUDIO)
    test = examples("test_new_voice")
    assert score([e["audio"] for e in test], test).mean() > 0.95
    some = test[:100]
    heard = [AUDIO.decode(AUDIO.encode(e["audio"])) for e in some]
    late = [np.concatenate([np.full((7, 64), -50.0), h])[:88] for h in heard]
    assert score(late, some).mean() > 0.95  # wherever the clip stands in silence
    assert score(heard[1:], some[:99]).mean() < 0.05
    assert score([np.full((88, 64), -50.0)] * 100, some).mean() <= 0.01


@pytest.mark.parametrize("language", LANGUAGES)
def test_words_of_any_language_are_exact(language):
    score = judges.Words().ready(SOURCE, Text())
    known = [{"number": n} for n in range(100)]
    said = [words(n, language) for n in range(100)]
    assert score(said, known).all()
    assert not score(said[1:], known[:-1]).any()
    assert not score([w + "x" for w in said], known).any()


def test_words_are_compared_composed_and_without_spaces_around():
    score = judges.Words().ready(SOURCE, Text())
    said = ["fu\u0308nf", " f\u00fcnf ", "funf", "f\u00fcnf f\u00fcnf", ""]
    np.testing.assert_array_equal(score(said, [{"number": 5}] * 5), [1, 1, 0, 0, 0])


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
