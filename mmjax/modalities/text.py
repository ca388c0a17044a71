"""Text as a sequence of learned pieces with an end token."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterable
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


@dataclasses.dataclass(frozen=True, kw_only=True)
class Text(Modality):
    """Pieces and an end token; longer text is cut before the end token, and tokens cut are counted.

    Only the first 2**20 characters of a text are tokenized, or 64 per token of `max_tokens` if that
    is more: a tokenizer takes a hundred times the memory of the text. The tokens of the rest are
    estimated.

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
        """Ids int32 (length,), the end id last; position (p, p, p). Empty text is the end alone.

        Raises ValueError for anything but text or None, and its subclass Unreadable for bytes that
        are not UTF-8.
        """
        if value is None:
            return None
        head, share = _head(value, max(MAX_TEXT, 64 * self.max_tokens))
        pieces = self.tokenizer.encode(_string(head))
        total = len(pieces) if share == 1 else round(len(pieces) / share)
        length = min(len(pieces) + 1, self.max_tokens)
        ids_L = np.empty(length, np.int32)
        ids_L[:-1] = pieces[: length - 1]
        ids_L[-1] = self.tokenizer.end_id
        return Piece(positions(length), ids_L=ids_L, num_cut=total + 1 - length)

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
        path.write_text(_string(value), encoding="utf-8")
        return path

    def fit(self, values: Callable[[], Iterable[Any]], folder: Path) -> Text:
        """Text with its tokenizer trained on `values()`, or loaded from `folder`.

        Values that are not UTF-8 are skipped.
        """

        def readable():
            for value in values():
                with contextlib.suppress(Unreadable):
                    yield _string(value)

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
