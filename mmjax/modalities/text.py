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


@dataclasses.dataclass(frozen=True, kw_only=True)
class Text(Modality):
    """Pieces and an end token; what is longer is cut before the end token, and counted.

    Fields:
      tokenizer: trained on the corpus by `fit`.
      max_tokens: largest length, end token included.
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

        Raises ValueError for what is neither text nor None; Unreadable, which is one, for bytes
        that are not UTF-8.
        """
        if value is None:
            return None
        pieces = self.tokenizer.encode(_string(value))
        length = min(len(pieces) + 1, self.max_tokens)
        ids_L = np.empty(length, np.int32)
        ids_L[:-1] = pieces[: length - 1]
        ids_L[-1] = self.tokenizer.end_id
        return Piece(positions(length), ids_L=ids_L, num_cut=len(pieces) + 1 - length)

    def decode(self, piece: Piece) -> str:
        """The text before the end token."""
        if piece.ids_L is None:
            raise ValueError("Text: decode needs ids; this piece holds values of another modality.")
        return self.tokenizer.decode(piece.ids_L)

    def read(self, item: str) -> str:
        """The text itself."""
        return item

    def write(self, value: str | bytes, stem: str | Path) -> Path:
        """A UTF-8 text file."""
        path = Path(f"{stem}.txt")
        path.write_text(_string(value), encoding="utf-8")
        return path

    def fit(self, values: Callable[[], Iterable[Any]], folder: Path) -> Text:
        """Text with its tokenizer trained on `values()`, or loaded from `folder`.

        What is not UTF-8 is left out.
        """

        def readable():
            for value in values():
                with contextlib.suppress(Unreadable):
                    yield _string(value)

        return dataclasses.replace(self, tokenizer=self.tokenizer.fit(readable, folder))


def _string(value: Any) -> Any:
    """Bytes as text, other values as they are. Raises Unreadable for what is no valid Unicode."""
    try:
        if isinstance(value, bytes):
            return value.decode()
        if isinstance(value, str):
            value.encode()
    except UnicodeError as error:
        raise Unreadable("not_utf8", f"Text: no valid Unicode ({error}); repair it.") from error
    return value
