"""A modality, a source and an evaluator."""

from __future__ import annotations

import dataclasses
import enum
from typing import Any

import jax
import numpy as np

from mmjax.data.source import Source
from mmjax.experiment import Evaluator
from mmjax.modalities.modality import Modality
from mmjax.typing import Piece, TokenSpec


class Strength(enum.Enum):
    """How strongly a number is said."""

    WEAK = 1
    STRONG = 2


@dataclasses.dataclass(frozen=True, kw_only=True)
class Text(Modality):
    """A number as two digits; mmjax has a class of that name too."""

    field: str = "number"
    strength: Strength = Strength.WEAK
    extra: Any = Strength.STRONG

    def spec(self, name):
        return TokenSpec(name=name, kind="set", max_tokens=2, vocab_size=10)

    def encode(self, value):
        ids = np.array(divmod(value, 10), np.int32)
        return Piece(np.zeros((2, 3), np.float32), ids_L=ids)

    def read(self, item):
        return int(item)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pairs(Source):
    """Numbers from 0 to 99."""

    size: int = 160

    def splits(self):
        return ("train", "val")

    def keys(self):
        return ("number", "identity")

    def open(self, split):
        return [{"number": i % 100, "identity": i % 100} for i in range(self.size)]

    def fingerprint(self):
        return f"{self.size:064x}"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Count(Evaluator):
    """How many parameters the model has."""

    def run(self, view):
        return {"parameters": float(sum(x.size for x in jax.tree.leaves(view.params)))}
