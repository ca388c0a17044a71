"""Texts: words left out at random."""

from __future__ import annotations

import dataclasses
import re
from typing import Any

import numpy as np

from mmjax.config import ranges
from mmjax.data.augment import Augment, check_kind
from mmjax.modalities.text import Text
from mmjax.typing import Piece

__all__ = ["Texts"]

WORD = re.compile(r"\s*\S+")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Texts(Augment):
    """Leaves out words of a text at random (Iyyer et al. 2015); at least one stays.

    Words are what white space separates, so text without it stays whole.

    Fields:
      drop: probability that a word is left out.

    >>> import tempfile
    >>> from mmjax.modalities.text import Text
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     text = Text().fit(lambda: ["one red square"], folder)
    >>> piece = Texts(drop=0.4)("one red square", text, np.random.default_rng(0))
    >>> text.decode(piece)
    'one'
    """

    drop: ranges.BelowOne = 0.1

    def check(self, name, task, modalities):
        check_kind(self, name, modalities[name], Text)
        if name in task.targets:
            raise ValueError(
                f"augment[{name!r}]=Texts, but {name!r} is among the targets, so the model would"
                " learn to leave out words; leave it out of augment here, as `Masked(drop=...)` and"
                " masking vary what is predicted from."
            )

    def prepare(self, value: Any, modality: Any) -> Any:
        return modality.given(value)

    def __call__(self, value: str, modality: Any, rng: np.random.Generator) -> Piece | None:
        # Words beyond those that the modality reads need no choice: a text may have millions.
        room = 64 * modality.max_tokens
        words = WORD.findall(value[:room])
        kept = rng.random(len(words)) >= self.drop
        if not self.drop or kept.all():
            return modality.encode(value)
        if not kept.any():
            kept[rng.integers(len(words))] = True
        varied = "".join(w for w, stays in zip(words, kept, strict=True) if stays) + value[room:]
        piece = modality.encode(varied.lstrip())
        return modality.encode(value) if piece is None else piece
