"""One class of several, by its number or its name."""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from mmjax.config import ranges
from mmjax.config.error import nearest
from mmjax.modalities.modality import Modality, Unreadable
from mmjax.typing import Piece, TokenSpec, positions

__all__ = ["Label"]

SHOWN = 8  # names that an error lists


@dataclasses.dataclass(frozen=True, kw_only=True)
class Label(Modality):
    """A class as one token, whose id is the number of the class.

    A value is the number, or one of the names: what `cls` members of tar files, `ClassLabel` of
    TFDS and Hugging Face, cells of tables and the names of folders hold. As a target it is
    predicted by the head of its stream; `ZeroShot(classes=...)` classifies by its names.

    Fields:
      names: of the classes, in the order of their numbers.
      num_classes: their number, where they have no names.

    >>> label = Label(names=("cat", "dog"))
    >>> label.encode("dog").ids_L, label.decode(label.encode(0))
    (array([1], dtype=int32), 'cat')
    """

    names: tuple[str, ...] = ()
    num_classes: ranges.Natural = 0
    is_finite: ClassVar[bool] = True

    def __post_init__(self):
        ranges.check(self)
        if bool(self.names) == bool(self.num_classes):
            raise ValueError(
                f"Label: names={self.names[:SHOWN]}, num_classes={self.num_classes}; give one of"
                " the two: the names of the classes, or how many there are."
            )
        known = _stripped(self.names)
        if len(set(known)) < len(known):
            twice = next(name for i, name in enumerate(known) if name in known[:i])
            raise ValueError(f"Label: names holds {twice!r} twice; give each class another name.")

    @property
    def size(self) -> int:
        """The number of classes."""
        return len(self.names) or self.num_classes

    def spec(self, name: str) -> TokenSpec:
        """One discrete token, predicted in parallel."""
        return TokenSpec(name=name, kind="grid", max_tokens=1, vocab_size=self.size, grid=(1, 1, 1))

    def encode(self, value: Any) -> Piece | None:
        """The number of the class, int32 (1,).

        Args:
          value: a whole number, a name, or the bytes of either; None and blank text = absent.

        Raises ValueError for numbers and names of no class.
        """
        number = self.number(value)
        if number is None:
            return None
        return Piece(positions((1, 1, 1)), ids_L=np.full(1, number, np.int32))

    def number(self, value: Any) -> int | None:
        """The number of a class; None if absent."""
        if value is None:
            return None
        if isinstance(value, bytes):
            try:
                value = value.decode("utf-8-sig")
            except UnicodeError as error:
                raise Unreadable(
                    "not_utf8", f"Label: {value[:40]!r} is no text; repair it."
                ) from error
        if isinstance(value, str):
            text = value.strip()
            if not text:
                return None
            if text in self._numbers:
                return self._numbers[text]
            if not (text.isascii() and text.isdigit() and len(text) < 10):
                raise Unreadable("no_class", f"Label: {_wrong(text, self.names)}")
            value = int(text)
        if isinstance(value, np.ndarray) and value.size == 1:
            value = value.reshape(()).item()
        if isinstance(value, (float, np.floating)) and float(value).is_integer():
            value = int(value)
        if isinstance(value, (bool, np.bool_)) or not isinstance(value, (int, np.integer)):
            raise ValueError(f"Label: {str(value)[:80]!r} is no class; give a number or a name.")
        if not 0 <= value < self.size:
            raise Unreadable(
                "no_class", f"Label: class {value} is not in 0..{self.size - 1}; give one that is."
            )
        return int(value)

    def given(self, value: Any) -> Any:
        """The name of the class, or its number where classes have no names."""
        number = self.number(value)
        return number if number is None or not self.names else self.names[number]

    def decode(self, piece: Piece) -> str | int:
        """The name of the class, or its number where classes have no names."""
        if piece.ids_L is None:
            raise ValueError("Label: decode needs an id; this piece holds values.")
        number = int(np.asarray(piece.ids_L)[0])
        return self.names[number] if self.names else number

    def read(self, item: str) -> str:
        """The name or the number itself."""
        return item

    def write(self, value: Any, stem: str | Path) -> Path:
        """A text file."""
        path = Path(f"{stem}.txt")
        path.write_text(f"{self.given(value)}\n", encoding="utf-8")
        return path

    @functools.cached_property
    def _numbers(self) -> dict[str, int]:
        return {name: number for number, name in enumerate(_stripped(self.names))}


def _stripped(names: tuple[str, ...]) -> list[str]:
    return [name.strip() for name in names]


def _wrong(text: str, names: tuple[str, ...]) -> str:
    if not names:
        return f"{text[:80]!r} is a name, but the classes have none; give names."
    return f"{text[:80]!r} is no class{nearest(text, names[:1000])}; give one of the names."
