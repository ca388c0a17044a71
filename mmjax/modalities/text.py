"""Text as a sequence of learned pieces with an end token."""

from __future__ import annotations

import contextlib
import dataclasses
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from mmjax.config import ranges
from mmjax.modalities.modality import Modality, Unreadable
from mmjax.tokenizers.sentencepiece import SentencePiece
from mmjax.tokenizers.tokenizer import Tokenizer
from mmjax.typing import Piece, TokenSpec, positions

__all__ = ["Text"]

MAX_TEXT = 1 << 20  # characters
MAX_CHOICES = 1024  # texts of one example
VISIBLE = re.compile(r"[^\s\ufeff\u200b-\u200d\u2060]")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Text(Modality):
    """Pieces and an end token; longer text is cut before the end token, and tokens cut are counted.

    Only the first 2**20 characters of a text are tokenized, or 64 per token of `max_tokens` if that
    is more: a tokenizer takes a hundred times the memory of the text. The tokens of the rest are
    estimated.

    A byte order mark, the newlines at the end, and what carriage returns add to newlines are no
    text. Empty and blank text is absent. A list of texts is several captions of one example, of
    which training takes another one in each epoch, and retrieval takes all.

    Fields:
      tokenizer: trained on the corpus by `fit`.
      max_tokens: largest length, including the end token.

    >>> import tempfile
    >>> from mmjax.tokenizers.sentencepiece import SentencePiece
    >>> text = Text(tokenizer=SentencePiece(vocab_size=300, num_sentinels=4))
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     text = text.fit(lambda: ["a red square", "a blue circle"], folder)
    >>> piece = text.encode("a red square")
    >>> text.decode(piece), int(piece.ids_L[-1])  # the end id
    ('a red square', 2)
    """

    tokenizer: Tokenizer = SentencePiece()
    max_tokens: ranges.Count = 256
    is_finite: ClassVar[bool] = True

    def __post_init__(self):
        ranges.check(self)

    def spec(self, name: str) -> TokenSpec:
        """One sequence stream; before `fit` its fingerprint is empty."""
        return TokenSpec(
            name=name,
            kind="sequence",
            max_tokens=self.max_tokens,
            vocab_size=self.tokenizer.vocab_size,
            text=True,
            fingerprint=self.tokenizer.fingerprint,
            first_sentinel=self.tokenizer.first_sentinel,
            num_sentinels=self.tokenizer.num_sentinels,
            end_id=self.tokenizer.end_id,
        )

    def encode(self, value: str | bytes | None) -> Piece | None:
        """Ids int32 (length,), the end id last; position (p, p, p). None for None and blank text.

        Raises ValueError for anything but text or None, and its subclass Unreadable for bytes that
        are not UTF-8.
        """
        value = self.choices(value)[0]
        head, share = _head(value, max(MAX_TEXT, 64 * self.max_tokens))
        text = _meant(head)
        if text is None:
            return None
        pieces = self.tokenizer.encode(text)
        total = len(pieces) if share == 1 else round(len(pieces) / share)
        length = min(len(pieces) + 1, self.max_tokens)
        ids_L = np.empty(length, np.int32)
        ids_L[:-1] = pieces[: length - 1]
        ids_L[-1] = self.tokenizer.end_id
        return Piece(positions(length), ids_L=ids_L, num_cut=total + 1 - length)

    def given(self, value: Any) -> Any:
        """The text without byte order mark, carriage returns and last newlines; None if blank."""
        return _meant(self.choices(value)[0])

    def measure(self, value: Any) -> dict[str, float]:
        """Characters of the text, of several the mean."""
        texts = [t for one in self.choices(value) if isinstance(t := _meant(one), str)]
        return {"characters": sum(map(len, texts)) / len(texts)} if texts else {}

    def choices(self, value: Any) -> Sequence[Any]:
        """The texts of a list that are not blank, each once; `(None,)` if all are."""
        if not isinstance(value, (list, tuple)) and not (
            isinstance(value, np.ndarray) and value.dtype == object and value.ndim == 1
        ):
            return (value,)
        if len(value) > MAX_CHOICES:
            raise Unreadable("too_many_texts", f"Text: {len(value)} texts; give {MAX_CHOICES}.")
        for one in value:
            if one is not None and not isinstance(one, (str, bytes)):
                raise ValueError(f"Text: {str(one)[:80]!r} among the texts is no text; repair it.")
        return tuple(dict.fromkeys(t for one in value if (t := _meant(one)) is not None)) or (None,)

    def decode(self, piece: Piece) -> str:
        """The text before the end token."""
        if piece.ids_L is None:
            raise ValueError("Text: decode needs ids; this piece holds values of another modality.")
        return self.tokenizer.decode(piece.ids_L)

    def read(self, item: str) -> str:
        """The text itself."""
        return item

    def write(self, value: str | bytes, stem: str | Path) -> Path:
        """Writes a UTF-8 text file."""
        path = Path(f"{stem}.txt")
        text = value if isinstance(value, str) else self.given(value)
        path.write_text(_string(text or ""), encoding="utf-8")
        return path

    def fit(self, values: Callable[[], Iterable[Any]], folder: Path) -> Text:
        """Text with its tokenizer trained on `values()`, or loaded from `folder`.

        Values that are blank or not UTF-8 are skipped.
        """

        def readable():
            for value in values():
                with contextlib.suppress(Unreadable):
                    for one in self.choices(value):
                        if (text := _meant(one)) is not None:
                            yield text

        return dataclasses.replace(self, tokenizer=self.tokenizer.fit(readable, folder))


def _head(value: Any, room: int) -> tuple[Any, float]:
    """The first `room` characters of a text, and their share of it."""
    whole = len(value) if isinstance(value, (str, bytes)) else 0
    if isinstance(value, bytes) and whole > 4 * room:
        head = value[: 4 * room]
        while head[-1] & 0xC0 == 0x80 and len(head) > 4 * room - 4:  # inside a character
            head = head[:-1]
        head = head[:-1] if head[-1] >= 0xC0 else head
        return head, len(head) / whole
    if isinstance(value, str) and whole > room:
        return value[:room], room / whole
    return value, 1


def _meant(value: Any) -> Any:
    """A text as its writer meant it, None if it is blank; other values unchanged."""
    text = _string(value)
    if not isinstance(text, str):
        return text
    text = text.removeprefix("\ufeff").replace("\r\n", "\n").rstrip("\r\n")
    return text if VISIBLE.search(text) else None


def _string(value: Any) -> Any:
    """Bytes decoded to text, other values unchanged. Raises Unreadable for invalid Unicode."""
    try:
        if isinstance(value, bytes):
            return value.decode()
        if isinstance(value, str):
            value.encode()
    except UnicodeError as error:
        raise Unreadable("not_utf8", f"Text: no valid Unicode ({error}); repair it.") from error
    return value
