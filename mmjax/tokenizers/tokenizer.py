"""The Tokenizer seam: raw values to ids of one stream and back, optionally learned from data."""

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
    """Base of all tokenizers. Construction does no work; learned state is not a field.

    Fields:
      vocab_size: number of ids; after training it may be smaller.
      num_sentinels: consecutive ids reserved for masked spans.
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
        """Id of the first sentinel; -1 = no sentinels."""
        return -1

    @property
    def end_id(self) -> int:
        """Id that ends a sequence; -1 = no end id."""
        return -1

    def encode(self, value: Any) -> np.ndarray:
        """The int32 ids of a raw value, without an end id."""
        raise NotImplementedError(f"{type(self).__name__} must define encode(value).")

    def decode(self, ids: np.ndarray) -> Any:
        """The raw value of the ids up to the first end id."""
        raise NotImplementedError(f"{type(self).__name__} must define decode(ids).")

    def fit(self: Self, values: Callable[[], Iterable[Any]], folder: Path) -> Self:
        """A ready tokenizer: loaded from `folder`, or trained on `values` and written there."""
        del values, folder
        return self
