"""The Modality seam: one kind of raw data, and its conversion to tokens and back."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from mmjax.typing import Piece, TokenSpec

Example = dict[str, Any]  # raw arrays, bytes, strings and numbers of one record


class Unreadable(ValueError):
    """A file or its bytes cannot be decoded. `reason` is a short word for counts."""

    def __init__(self, reason: str, detail: str):
        super().__init__(reason, detail)
        self.reason, self.detail = reason, detail

    def __str__(self) -> str:
        return self.detail


@dataclasses.dataclass(frozen=True, kw_only=True)
class Modality:
    """Base of all modalities. NumPy only; construction does no work.

    Fields:
      field: key of the raw value in an example; empty = the modality's own name.
    """

    field: str = ""
    # Whether ids are computed before training, by `encode_batch`, rather than by data workers.
    offline: ClassVar[bool] = False
    # Whether `encode` never returns NaN or infinity; otherwise each piece is checked.
    is_finite: ClassVar[bool] = False

    def spec(self, name: str) -> TokenSpec:
        """The stream of this modality, under its name in the config."""
        raise NotImplementedError(f"{type(self).__name__} must define spec(name).")

    def encode(self, value: Any) -> Piece | None:
        """Tokens of a raw value; None if absent, as blank text and a video without sound are."""
        raise NotImplementedError(f"{type(self).__name__} must define encode(value).")

    def given(self, value: Any) -> Any:
        """A raw value as people should see and compare it; None if `encode` takes it as absent."""
        return value

    def measure(self, value: Any) -> dict[str, float]:
        """Sizes of a raw value, by name: of files from their headers. Raises ValueError."""
        del value
        return {}

    def choices(self, value: Any) -> Sequence[Any]:
        """The values that a raw value stands for, such as several captions of one picture.

        Training takes one at each visit of the record, in turns over the epochs; retrieval takes
        each. One for most modalities.
        """
        return (value,)

    @property
    def is_augmented(self) -> bool:
        """Whether `augment` changes anything."""
        return False

    def augment(self, piece: Piece, rng: np.random.Generator) -> Piece:
        """A random variation of a piece, for training only; another at each visit."""
        del rng
        return piece

    def encode_batch(self, values: Sequence[Any]) -> np.ndarray:
        """Ids int32 [N, L] of values, none of which is absent; for offline modalities."""
        raise NotImplementedError(f"{type(self).__name__} must define encode_batch(values).")

    def adapted(self, value: Any) -> str:
        """How `encode` changes the value (cut, scaled), in words; empty = unchanged."""
        del value
        return ""

    def decode(self, piece: Piece) -> Any:
        """The raw value of tokens."""
        raise NotImplementedError(f"{type(self).__name__} must define decode(piece).")

    def read(self, item: str) -> Any:
        """A raw value given on the command line: a file's path, or the text itself.

        Raises:
          ValueError: the file cannot be read as this modality.
        """
        raise ValueError(f"{type(self).__name__}: {item!r} cannot be read from a file.")

    def write(self, value: Any, stem: str | Path) -> Path:
        """Writes a decoded value to a file `stem` plus the modality's suffix; returns its path.

        Raises:
          ValueError: this modality has no file format.
        """
        raise ValueError(f"{type(self).__name__}: cannot be written to {stem}; it has no format.")

    def fit(self, values: Callable[[], Iterable[Any]], folder: Path) -> Modality:
        """A ready modality: fits its tokenizer on `values`, or loads it from `folder`.

        Most have nothing to learn and return themselves.
        """
        del values, folder
        return self

    def given_fingerprint(self) -> str:
        """Fingerprint of the tokenizer that the config points to, which `fit` copies at first use.

        Empty if it points to none, or if that is not there any more.
        """
        return ""
