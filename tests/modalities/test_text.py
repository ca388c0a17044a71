"""Text: the end token, cutting, specials."""

from __future__ import annotations

import numpy as np
import pytest

from mmjax.modalities.audio import Audio
from mmjax.modalities.modality import Unreadable
from mmjax.modalities.text import Text
from mmjax.tokenizers.sentencepiece import END, SentencePiece

CORPUS = ("one two three", "four five six", "seven eight nine")


@pytest.fixture
def text(tmp_path) -> Text:
    modality = Text(tokenizer=SentencePiece(vocab_size=300, num_sentinels=8), max_tokens=6)
    return modality.fit(lambda: CORPUS, tmp_path)


BLANK = ["", " ", "\n", "\r\n\r\n", " \t\n", "\ufeff", "\ufeff\r\n", "\u200b", "\u00a0\u3000"]


@pytest.mark.fault("an empty or blank caption, or one of a byte order mark alone", "it is absent")
@pytest.mark.parametrize("blank", BLANK)
def test_blank_text_is_absent(blank, text):
    for value in (blank, blank.encode()):
        assert text.encode(value) is None
        assert text.given(value) is None


@pytest.mark.fault(
    "captions with Windows line ends, a byte order mark, a newline at the end",
    "these are no part of the text",
)
@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("one\n", "one"),
        ("one\r\n", "one"),
        ("one\n\n\r\n", "one"),
        ("\ufeffone", "one"),
        ("\ufeffone\r\ntwo\r\n", "one\ntwo"),
        ("one\ntwo", "one\ntwo"),
        (" one ", " one "),
        ("one\ufefftwo", "one\ufefftwo"),
        ("one\rtwo", "one\rtwo"),
    ],
)
def test_text_is_what_its_writer_meant(written, meant, text):
    for value in (written, written.encode()):
        assert text.given(value) == meant
        ids = [*text.tokenizer.encode(meant)[: text.max_tokens - 1], END]
        np.testing.assert_array_equal(text.encode(value).ids_L, ids)


def test_a_tokenizer_learns_from_what_was_meant(tmp_path, text):
    windows = [f"\ufeff{line}\r\n".encode() for line in CORPUS]
    other = Text(tokenizer=SentencePiece(vocab_size=300, num_sentinels=8), max_tokens=6)
    other = other.fit(lambda: [*windows, b"", " \n", None, b"\r\n"], tmp_path / "other")
    assert other.tokenizer.fingerprint == text.tokenizer.fingerprint


def test_a_hundred_thousand_blanks_are_absent_and_such_a_caption_is_cut(text):
    assert text.encode(b" \r\n" * 30_000) is None
    long = text.encode("one two\r\n" * 10_000)
    assert long.length == text.max_tokens
    assert long.num_cut > 10_000


def test_other_values_are_what_they_are(text):
    assert text.given(None) is None
    assert text.given(7) == 7
    with pytest.raises(Unreadable):
        text.given(b"\xff\xfeo\0n\0e\0")  # UTF-16


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
