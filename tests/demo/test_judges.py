"""Judges of the numbers: what they say of real data, of wrong answers, and of damaged ones."""

from __future__ import annotations

import sys

import numpy as np
import pytest

from mmjax import config
from mmjax.data.source import Source
from mmjax.demo import judges, numbers
from mmjax.demo.judges import DigitReader, SpeechReader, Words
from mmjax.demo.numbers import LANGUAGES, Numbers, words
from mmjax.evaluate import Generation
from mmjax.modalities.audio import Audio
from mmjax.modalities.image import Image
from mmjax.modalities.text import Text

SOURCE = Numbers()
AUDIO = Audio(seconds=0.88)


def examples(split, count=1000):
    records = SOURCE.open(split)
    return [records[i] for i in range(count)]


def test_the_digit_reader_reads_held_out_handwriting():
    score = DigitReader().ready(SOURCE, Image())
    test = examples("test")
    found = score([e["image"] for e in test], test)
    assert found.mean() > 0.95
    as_decoded = [e["image"][:, :, None] / np.float32(255) for e in test[:100]]
    np.testing.assert_array_equal(score(as_decoded, test[:100]), found[:100])
    assert score(as_decoded[1:], test[:99]).mean() < 0.05  # of the neighbours
    assert score([np.zeros((8, 16, 1))] * 100, test[:100]).mean() <= 0.01


@pytest.mark.slow
def test_the_speech_reader_hears_new_voices():
    score = SpeechReader().ready(SOURCE, AUDIO)
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
    score = Words().ready(SOURCE, Text())
    known = [{"number": n} for n in range(100)]
    said = [words(n, language) for n in range(100)]
    assert score(said, known).all()
    assert not score(said[1:], known[:-1]).any()
    assert not score([w + "x" for w in said], known).any()


def test_words_are_compared_composed_and_without_spaces_around():
    score = Words().ready(SOURCE, Text())
    said = ["fu\u0308nf", " f\u00fcnf ", "funf", "f\u00fcnf f\u00fcnf", ""]
    np.testing.assert_array_equal(score(said, [{"number": 5}] * 5), [1, 1, 0, 0, 0])


def test_a_run_that_was_begun_before_the_move_is_read():
    tree = {
        "class": "Generation",
        "judges": {"text": {"class": "Words"}, "image": {"class": "DigitReader", "neighbours": 3}},
        "splits": {"audio": "{split}_new_voice"},
    }
    found = config.from_json({"a": tree, "b": {"class": "Numbers"}}, config.seam_classes())
    assert found["a"] == Generation(
        judges={"text": Words(), "image": DigitReader(neighbours=3)}, splits=judges.NUMBERS_SPLITS
    )
    assert found["b"] == Numbers()


def test_every_judge_and_split_of_the_demo_fits_the_numbers():
    assert set(judges.NUMBERS_JUDGES) <= set(SOURCE.keys())
    for given, pattern in judges.NUMBERS_SPLITS.items():
        assert given in judges.NUMBERS_JUDGES
        assert {pattern.format(split=s) for s in ("val", "test")} <= set(SOURCE.splits())


@pytest.mark.parametrize("name", ["DigitReader", "SpeechReader", "Words"])
@pytest.mark.parametrize("old", ["mmjax.evaluate", "mmjax.evaluate.judges"])
def test_old_names_of_judges_say_where_they_are(old, name):
    scope: dict = {}
    with pytest.warns(DeprecationWarning, match=f"{old}.{name} is now mmjax.demo.judges.{name}"):
        exec(f"from {old} import {name}", scope)
    assert scope[name] is getattr(judges, name)


def test_the_old_module_of_the_numbers_says_where_they_are():
    from mmjax.data import toyworld

    with pytest.warns(
        DeprecationWarning, match=r"toyworld\.\w+ is now mmjax\.demo\.numbers"
    ) as said:
        assert issubclass(toyworld.Numbers, Source)
    assert [w.filename for w in said] == [__file__]
    with pytest.warns(
        DeprecationWarning, match=r"toyworld\.words is now mmjax\.demo\.numbers\.words"
    ):
        assert toyworld.words is numbers.words
    for module in ("mmjax.data.toyworld", "mmjax.evaluate", "mmjax.evaluate.judges"):
        with pytest.raises(AttributeError, match=f"module '{module}' has no attribute 'nonsense'"):
            _ = sys.modules[module].nonsense
