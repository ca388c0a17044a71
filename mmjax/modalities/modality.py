"""The Modality seam: one kind of data a person has, and its way to tokens and back."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from mmjax.typing import Piece, TokenSpec

Example = dict[str, Any]  # raw arrays, bytes, strings and numbers of one record


class Unreadable(ValueError):
    """A file, or the bytes of one, that cannot be decoded. `reason` is a short word for counts."""

    def __init__(self, reason: str, detail: str):
        super().__init__(reason, detail)
        self.reason, self.detail = reason, detail

    def __str__(self) -> str:
        return self.detail


@dataclasses.dataclass(frozen=True, kw_only=True)
class Modality:
    """Base of all modalities. NumPy only; constructing one does no work.

    Fields:
      field: key of the raw value in an example; empty = the modality's own name.
    """

    field: str = ""
    # Whether ids are computed before training, by `encode_batch`, and not by data workers.
    offline: ClassVar[bool] = False
    # Whether `encode` refuses what would give NaN or infinity; else each piece is looked through.
    is_finite: ClassVar[bool] = False

    def spec(self, name: str) -> TokenSpec:
        """The stream that this modality owns under the name it has in the config."""
        raise NotImplementedError(f"{type(self).__name__} must define spec(name).")

    def encode(self, value: Any) -> Piece | None:
        """Raw value to tokens; None when absent. Empty text is a Piece with only its end token."""
        raise NotImplementedError(f"{type(self).__name__} must define encode(value).")

    @property
    def is_augmented(self) -> bool:
        """Whether `augment` changes anything."""
        return False

    def augment(self, piece: Piece, rng: np.random.Generator) -> Piece:
        """Another look at what `encode` gave. Training alone reads such, at each visit another."""
        del rng
        return piece

    def encode_batch(self, values: Sequence[Any]) -> np.ndarray:
        """Ids int32 [N, L] of values, none of them absent; for offline modalities."""
        raise NotImplementedError(f"{type(self).__name__} must define encode_batch(values).")

    def adapted(self, value: Any) -> str:
        """What `encode` will not take as it is, in words for the user; empty = nothing."""
        del value
        return ""

    def decode(self, piece: Piece) -> Any:
        """Tokens back to a raw value."""
        raise NotImplementedError(f"{type(self).__name__} must define decode(piece).")

    def read(self, item: str) -> Any:
        """A raw value from the command line: a file's path, or the text itself.

        Raises:
          ValueError: the file cannot be read as this modality.
        """
        raise ValueError(f"{type(self).__name__}: {item!r} cannot be read from a file.")

    def write(self, value: Any, stem: str | Path) -> Path:
        """Writes a decoded value to a file named `stem` with a suffix of its own; its path.

        Raises:
          ValueError: this modality has no file format.
        """
        raise ValueError(f"{type(self).__name__}: cannot be written to {stem}; it has no format.")

    def fit(self, values: Callable[[], Iterable[Any]], folder: Path) -> Modality:
        """A ready modality: learns what it must from `values` or loads it from `folder`.

        Most have nothing to learn and return themselves.
        """
        del values, folder
        return self
