"""Text: the end token, cutting, specials."""

from __future__ import annotations

import numpy as np
import pytest

from mmjax.modalities.audio import Audio
from mmjax.modalities.text import Text
from mmjax.tokenizers.sentencepiece import END, SentencePiece

CORPUS = ("one two three", "four five six", "seven eight nine")


@pytest.fixture
def text(tmp_path) -> Text:
    modality = Text(tokenizer=SentencePiece(vocab_size=300, num_sentinels=8), max_tokens=6)
    return modality.fit(lambda: CORPUS, tmp_path)


def test_empty_text_is_its_end_token(text):
    np.testing.assert_array_equal(text.encode("").ids_L, [END])


def test_what_is_too_long_is_cut_before_the_end_token_and_counted(text):
    whole = text.tokenizer.encode("one two three four five")
    piece = text.encode("one two three four five")
    np.testing.assert_array_equal(piece.ids_L, [*whole[:5], END])
    assert piece.num_cut == len(whole) - 5 > 0


def test_text_that_fits_exactly_is_not_cut(text):
    length = len(text.tokenizer.encode("one"))
    exact = Text(tokenizer=text.tokenizer, max_tokens=length + 1)
    assert exact.encode("one").num_cut == 0
    assert exact.decode(exact.encode("one")) == "one"


def test_bytes_are_utf8(text):
    np.testing.assert_array_equal(
        text.encode("f\u00fcnf".encode()).ids_L, text.encode("f\u00fcnf").ids_L
    )


def test_spec_before_fit_has_sizes_and_no_fingerprint(text):
    before = Text(tokenizer=SentencePiece(vocab_size=300, num_sentinels=8), max_tokens=6)
    spec, fitted = before.spec("text"), text.spec("text")
    assert (spec.fingerprint, len(fitted.fingerprint)) == ("", 64)
    assert (spec.vocab_size, spec.first_sentinel, spec.num_sentinels, spec.end_id) == (300, 3, 8, 2)
    assert spec.text
    with pytest.raises(ValueError, match="not trained yet"):
        before.encode("one")


def test_piece_of_another_modality_is_refused(text):
    with pytest.raises(ValueError, match="Text: decode needs ids"):
        text.decode(Audio(seconds=0.1).encode(np.zeros(100)))


def test_text_is_written_as_utf8(tmp_path):
    path = Text().write("f\u00fcnf", tmp_path / "a")
    assert (path.name, path.read_bytes()) == ("a.txt", "f\u00fcnf".encode())
