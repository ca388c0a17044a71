"""The Tokenizer seam: raw values to ids of one stream and back, perhaps learned from data."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from mmjax.config import ranges

__all__ = ["Tokenizer"]

Self = TypeVar("Self", bound="Tokenizer")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Tokenizer:
    """Base of all tokenizers. Constructing one does no work; what is learned is no field.

    Fields:
      vocab_size: number of ids; a trained one may use fewer.
      num_sentinels: ids set aside for masked spans; they follow one another.
    """

    vocab_size: ranges.Count
    num_sentinels: ranges.Natural = 0

    def __post_init__(self):
        ranges.check(self)

    @property
    def fingerprint(self) -> str:
        """SHA-256 of everything that ids depend on; empty before `fit`."""
        return ""

    @property
    def first_sentinel(self) -> int:
        """Id of the first sentinel; -1 = there is none."""
        return -1

    @property
    def end_id(self) -> int:
        """Id that ends a sequence; -1 = there is none."""
        return -1

    def encode(self, value: Any) -> np.ndarray:
        """Raw value to int32 ids, without an end id."""
        raise NotImplementedError(f"{type(self).__name__} must define encode(value).")

    def decode(self, ids: np.ndarray) -> Any:
        """Ids, up to the first end id, to a raw value."""
        raise NotImplementedError(f"{type(self).__name__} must define decode(ids).")

    def fit(self: Self, values: Callable[[], Iterable[Any]], folder: Path) -> Self:
        """A ready tokenizer: loaded from `folder`, or trained on `values` and written there."""
        del values, folder
        return self
