"""Palettes as sequences of ids, as in 4M-21 (Bachmann et al. 2024)."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated, Any, ClassVar

import numpy as np

from mmjax.config import ranges
from mmjax.modalities import given, sequence
from mmjax.modalities.modality import Modality
from mmjax.typing import Piece, TokenSpec

__all__ = ["Palette"]

CHANNELS = 3  # red, green, blue
RULE = "(colours, 3): whole ones in 0..255, or floats in 0..1"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Palette(Modality):
    """Colours of a picture: how many there are, then red, green and blue of each.

    The three channels share `bins` ids: round(x * (bins - 1)) of x in 0..1. Colours come in the
    order given, which extractors of palettes take from their shares of the picture; those beyond
    `max_colours` are cut, and their tokens counted. No colour is the end alone.

    Whole numbers are in 0..255, floats in 0..1. With 256 bins whole numbers come back exactly.

    Fields:
      max_colours: largest number of colours. bins: ids of a channel.
      num_sentinels: ids for masked spans; must exceed the runs of a masked sequence.

    >>> palette = Palette(num_sentinels=0)
    >>> piece = palette.encode([[255, 0, 16]])
    >>> piece.ids_L, palette.decode(piece).tolist()
    (array([  1, 263,   8,  24,   0], dtype=int32), [[255, 0, 16]])
    """

    max_colours: ranges.Count = 7
    bins: Annotated[int, ranges.Range(2)] = 256  # 1 cannot tell black from white
    num_sentinels: ranges.Natural = 16
    is_finite: ClassVar[bool] = True

    def __post_init__(self):
        ranges.check(self)

    def spec(self, name: str) -> TokenSpec:
        """One sequence stream: ids of the counts 1.. `max_colours`, then those of a channel."""
        max_tokens = 1 + CHANNELS * self.max_colours + 1
        return sequence.spec(name, self.max_colours + self.bins, max_tokens, self.num_sentinels)

    def encode(self, value: Any) -> Piece | None:
        """Ids int32 (3 colours + 2,), the end id last; position (p, p, p).

        Args:
          value: numbers (colours, 3), whole in 0..255 or floats in 0..1; None = absent.

        Raises ValueError for other shapes and ranges, and NaN.
        """
        if value is None:
            return None
        colours = _checked(value)
        chosen = colours[: self.max_colours]
        num_cut = CHANNELS * (len(colours) - len(chosen))
        if not len(chosen):
            return sequence.piece((), self.num_sentinels)
        codes = np.empty(1 + chosen.size, np.int32)
        codes[0] = len(chosen) - 1
        codes[1:] = np.round(chosen * (self.bins - 1)).reshape(-1) + self.max_colours
        return sequence.piece(codes, self.num_sentinels, num_cut)

    def decode(self, piece: Piece) -> np.ndarray:
        """Uint8 (colours, 3): as many whole colours as follow, and at most the number that is said.

        Without a number all are taken.
        """
        codes = sequence.codes(piece, "Palette", self.num_sentinels)
        counts = codes[(codes >= 0) & (codes < self.max_colours)]
        places = codes[codes >= self.max_colours] - self.max_colours
        most = int(counts[0]) + 1 if len(counts) else self.max_colours
        num = min(most, len(places) // CHANNELS)
        colours = places[: CHANNELS * num].reshape(num, CHANNELS) / (self.bins - 1)
        return np.round(colours.clip(0, 1) * 255).astype(np.uint8)

    def read(self, item: str) -> Any:
        """A list of colours, from a JSON file or from JSON text such as `[[255, 0, 16]]`.

        Raises ValueError when it is neither.
        """
        return sequence.read("Palette", item)

    def write(self, value: Any, stem: str | Path) -> Path:
        """A JSON file: a list of colours, whole numbers in 0..255."""
        return sequence.write(np.round(_checked(value) * 255).astype(int).tolist(), stem)


def _checked(value: Any) -> np.ndarray:
    """Float64 (colours, 3) in 0..1. Raises ValueError if they are not colours."""
    colours = given.array("Palette", value, RULE)
    if colours.shape == (0,) or colours.shape == (0, CHANNELS):
        return np.zeros((0, CHANNELS))
    if colours.ndim != 2 or colours.shape[1] != CHANNELS:
        raise ValueError(f"Palette: an array of shape {colours.shape}; give numbers {RULE}.")
    high = 1 if colours.dtype.kind == "f" else 255
    if not ((colours >= 0) & (colours <= high)).all():  # also false for NaN
        raise ValueError(f"Palette: a number is NaN or outside 0..{high}; give numbers {RULE}.")
    return colours / high
