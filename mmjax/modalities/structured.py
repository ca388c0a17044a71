"""Boxes and metadata as sequences of ids, as in 4M-21 (Bachmann et al. 2024)."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np

from mmjax.config import ranges
from mmjax.modalities import boxes as boxes_lib
from mmjax.modalities import given, sequence
from mmjax.modalities.modality import Modality
from mmjax.typing import Piece, TokenSpec

__all__ = ["Bins", "Boxes", "Metadata"]

SIDES = 4  # x0, y0, x1, y1
MU = 255  # of the mu-law


@dataclasses.dataclass(frozen=True, kw_only=True)
class Boxes(Modality):
    """Boxes x0, y0, x1, y1 in 0..1, four tokens each, nearest to the origin first.

    Each of the four has its own `bins` ids: round(x * (bins - 1)). Order is by the distance of the
    corner (x0, y0) from (0, 0). Boxes beyond `max_boxes` are cut, and their tokens counted.

    A value is an array of boxes, or one box, whose four numbers `order` names; or a dict, which the
    map of a source gives (`fields={"boxes": "x0=left, y0=top, w=width_of_box, ..."}`): of each box
    two of x0, x1, w, cx and two of y0, y1, h, cy (or `boxes`, an array as above), and of the
    picture `width` and `height` where these are pixels.

    Fields:
      max_boxes: largest number of boxes. bins: ids per coordinate.
      order: of the four numbers of a box: corners (xyxy; yxyx as in TFDS), a corner and the size
        (xywh, as in COCO), or the middle and the size (cxcywh).
      num_sentinels: ids for masked spans; must exceed the runs of a masked sequence.

    >>> boxes = Boxes(bins=11, num_sentinels=0)
    >>> piece = boxes.encode([[0, 0, 0.5, 1]])
    >>> piece.ids_L, boxes.decode(piece).tolist()
    (array([ 1, 12, 28, 44,  0], dtype=int32), [[0.0, 0.0, 0.5, 1.0]])
    """

    max_boxes: ranges.Count = 20
    bins: Annotated[int, ranges.Range(2)] = 1000  # 1 cannot tell 0 from 1
    num_sentinels: ranges.Natural = 16
    order: Literal["xyxy", "yxyx", "xywh", "cxcywh"] = dataclasses.field(
        default="xyxy", metadata={"is_new": True}
    )

    def __post_init__(self):
        ranges.check(self)

    def spec(self, name: str) -> TokenSpec:
        """One sequence stream: four tokens per box and an end token."""
        return sequence.spec(
            name, SIDES * self.bins, SIDES * self.max_boxes + 1, self.num_sentinels
        )

    def encode(self, value: Any) -> Piece | None:
        """Ids int32 (4 boxes + 1,), the end id last; position (p, p, p). No box is the end alone.

        Args:
          value: numbers (boxes, 4) or (4,), or a dict as described above; None = absent.

        Raises ValueError for other shapes, NaN, and corners out of order or outside 0..1.
        """
        if value is None:
            return None
        boxes = _checked_boxes(boxes_lib.corners(value, self.order))
        distance = np.hypot(boxes[:, 0], boxes[:, 1])
        chosen = boxes[np.argsort(distance, kind="stable")[: self.max_boxes]]
        places = np.round(chosen * (self.bins - 1)).astype(np.int32)
        codes = places + self.bins * np.arange(SIDES, dtype=np.int32)
        num_cut = SIDES * (len(boxes) - len(chosen))
        return sequence.piece(codes.reshape(-1), self.num_sentinels, num_cut)

    def decode(self, piece: Piece) -> np.ndarray:
        """Float32 (boxes, 4); invalid boxes (sides missing or out of order) are left out."""
        boxes: list[list[int]] = []
        box: list[int] = []
        for code in sequence.codes(piece, "Boxes", self.num_sentinels):
            side, place = divmod(int(code), self.bins)
            if side != len(box):
                box = []
            if side == len(box):
                box.append(place)
            if len(box) == SIDES:
                if box[0] <= box[2] and box[1] <= box[3]:
                    boxes.append(box)
                box = []
        return np.array(boxes, np.float32).reshape(-1, SIDES) / np.float32(self.bins - 1)

    def read(self, item: str) -> Any:
        """A list of boxes, from a JSON file or from JSON text such as `[[0, 0, 0.5, 1]]`.

        Raises ValueError when it is neither.
        """
        return sequence.read("Boxes", item)

    def write(self, value: np.ndarray, stem: str | Path) -> Path:
        """A JSON file: a list of boxes."""
        return sequence.write([[round(float(x), 4) for x in box] for box in value], stem)


def _checked_boxes(value: Any) -> np.ndarray:
    """Float32 (boxes, 4) in 0..1. Raises ValueError if they are not boxes."""
    try:
        boxes = np.asarray(value, np.float32)
    except (TypeError, ValueError) as error:
        raise ValueError(f"Boxes: {value!r} is no array of numbers; give (boxes, 4).") from error
    if boxes.size == 0:
        return np.zeros((0, SIDES), np.float32)
    if boxes.ndim != 2 or boxes.shape[1] != SIDES:
        raise ValueError(f"Boxes: an array of shape {boxes.shape}; give (boxes, 4).")
    if not ((boxes >= 0) & (boxes <= 1)).all():  # also false for NaN
        raise ValueError(
            "Boxes: a coordinate is NaN or outside 0..1; divide by the width and the height, or"
            " repair this example."
        )
    if (boxes[:, :2] > boxes[:, 2:]).any():
        raise ValueError("Boxes: x1 < x0 or y1 < y0; give x0, y0, x1, y1 of each box.")
    return boxes


@dataclasses.dataclass(frozen=True, kw_only=True)
class Bins:
    """How a number becomes one of `num` ids.

    Fields:
      num: number of ids.
      low, high: range divided into equal bins, which decode to their middles; both None = an
        integer in 0..num - 1, which is its own id.
      scale: on which bins are equal: `linear`; `log`, of numbers above 0; or `mu_law` (ITU-T G.711,
        as for the samples of WaveNet, van den Oord et al. 2016), fine around 0, from -high to high:
        sign(x) log(1 + 255 |x| / high) / log(256).

    >>> Bins(num=4, low=0, high=1).bin(0.3), Bins(num=4, low=0, high=1).middle(1)
    (1, 0.375)
    >>> prices = Bins(num=3, low=1, high=1000, scale="log")
    >>> prices.bin(50), round(prices.middle(1), 1)
    (1, 31.6)
    """

    num: ranges.Count
    low: ranges.Finite | None = None
    high: ranges.Finite | None = None
    scale: Literal["linear", "log", "mu_law"] = "linear"

    def __post_init__(self):
        ranges.check(self)
        if (self.low is None) != (self.high is None):
            raise ValueError(f"Bins: low={self.low}, high={self.high}; give both or neither.")
        if self.low is not None and self.high is not None and not self.low < self.high:
            raise ValueError(f"Bins: low={self.low} must be below high={self.high}.")
        self._check_scale()

    def _check_scale(self) -> None:
        if self.scale not in ("linear", "log", "mu_law"):
            raise ValueError(
                f"Bins: scale={self.scale!r} is none; use 'linear', 'log' or 'mu_law'."
            )
        if self.scale == "log" and not (self.low is not None and self.low > 0):
            raise ValueError(f"Bins: scale='log' with low={self.low}; low must be above 0.")
        if self.scale == "mu_law" and not (self.low is not None and self.low == -(self.high or 0)):
            raise ValueError(
                f"Bins: scale='mu_law' with low={self.low}, high={self.high}; use low=-high."
            )

    def bin(self, value: Any) -> int | None:
        """The id of a number; None if it has no id."""
        number = given.number(value)
        if number is None:
            return None
        if self.low is None or self.high is None:
            return int(number) if number.is_integer() and 0 <= number < self.num else None
        if not self.low <= number <= self.high:
            return None
        return min(int(self._share(number, self.low, self.high) * self.num), self.num - 1)

    def middle(self, place: int) -> int | float:
        """The number that an id stands for."""
        if self.low is None or self.high is None:
            return place
        share, low, high = (place + 0.5) / self.num, self.low, self.high
        if self.scale == "log":
            return low * (high / low) ** share
        if self.scale == "mu_law":
            side = 2 * share - 1
            return math.copysign(math.expm1(abs(side) * math.log1p(MU)) / MU * high, side)
        return low + (place + 0.5) * (high - low) / self.num

    def _share(self, number: float, low: float, high: float) -> float:
        """Where a number lies on the scale, 0..1."""
        if self.scale == "log":
            return math.log(number / low) / math.log(high / low)
        if self.scale == "mu_law":
            loud = math.log1p(MU * abs(number) / high) / math.log1p(MU)
            return (1 + math.copysign(loud, number)) / 2
        return (number - low) / (high - low)

    @property
    def rule(self) -> str:
        """The numbers that have an id, in words."""
        if self.low is None:
            return f"a whole number in 0..{self.num - 1}"
        return f"a number in {self.low:g}..{self.high:g}"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Metadata(Modality):
    """Named numbers, two tokens each (the name, the value), in the order of the schema.

    An example may lack some of the names.

    Fields:
      schema: name -> how its number becomes an id.
      num_sentinels: ids for masked spans; must exceed the runs of a masked sequence.

    >>> loudness = Bins(num=4, low=0, high=1)
    >>> metadata = Metadata(schema={"digit": Bins(num=10), "loudness": loudness}, num_sentinels=0)
    >>> piece = metadata.encode({"digit": 7, "loudness": 0.3})
    >>> piece.ids_L, metadata.decode(piece)
    (array([ 1, 10,  2, 14,  0], dtype=int32), {'digit': 7, 'loudness': 0.375})
    """

    schema: dict[str, Bins] = dataclasses.field(default_factory=dict)
    num_sentinels: ranges.Natural = 16

    def __post_init__(self):
        ranges.check(self)
        if not self.schema:
            raise ValueError("Metadata: schema={} says nothing; name at least one number.")

    def spec(self, name: str) -> TokenSpec:
        """One sequence stream: ids for the names, then for the values of each name."""
        num_ids = len(self.schema) + sum(bins.num for bins in self.schema.values())
        return sequence.spec(name, num_ids, 2 * len(self.schema) + 1, self.num_sentinels)

    def encode(self, value: Mapping[str, Any] | None) -> Piece | None:
        """Ids int32 (2 names + 1,), the end id last; position (p, p, p). {} is the end alone.

        Raises ValueError for anything but a dict, for unknown names, and for numbers without an id.
        """
        if value is None:
            return None
        if not isinstance(value, Mapping):
            raise ValueError(f"Metadata: {value!r} is no dict; give {{name: number}}.")
        for key in value:
            if key not in self.schema:
                raise ValueError(
                    f"Metadata: {key!r} is not in the schema; give some of"
                    f" {', '.join(self.schema)}."
                )
        codes: list[int] = []
        for number, (key, start) in enumerate(self._starts.items()):
            if key not in value:
                continue
            place = self.schema[key].bin(value[key])
            if place is None:
                rule = self.schema[key].rule
                raise ValueError(f"Metadata: {key}={value[key]!r} is out of range; give {rule}.")
            codes += [number, start + place]
        return sequence.piece(codes, self.num_sentinels)

    def decode(self, piece: Piece) -> dict[str, int | float]:
        """{name: number}; names without a valid value, and repeated names, are left out."""
        numbers: dict[str, int | float] = {}
        keys, last = list(self.schema), -1
        for code in sequence.codes(piece, "Metadata", self.num_sentinels).tolist():
            if 0 <= last < len(keys):
                key = keys[last]
                place = code - self._starts[key]
                if 0 <= place < self.schema[key].num:
                    numbers.setdefault(key, self.schema[key].middle(place))
            last = code
        return numbers

    def read(self, item: str) -> Any:
        """{name: number}, from a JSON file or from JSON text such as `{"value": 63}`.

        Raises ValueError when it is neither.
        """
        return sequence.read("Metadata", item)

    def write(self, value: Mapping[str, Any], stem: str | Path) -> Path:
        """A JSON file: {name: number}."""
        return sequence.write(dict(value), stem)

    @functools.cached_property
    def _starts(self) -> dict[str, int]:
        """The first id of the values of each name, relative to the id of the first name."""
        starts, start = {}, len(self.schema)
        for key, bins in self.schema.items():
            starts[key] = start
            start += bins.num
        return starts
