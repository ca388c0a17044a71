"""Clouds of points as groups of neighbours (Yu et al., "Point-BERT"), that come back as points."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from mmjax.config import ranges
from mmjax.modalities import given
from mmjax.modalities.modality import Modality
from mmjax.typing import Piece, TokenSpec

__all__ = ["Points"]

AXES = 3  # x, y, z
ROUNDING = 1e-6  # of the side: float32 may lie beyond the ends by so much


@dataclasses.dataclass(frozen=True, kw_only=True)
class Points(Modality):
    """A token per `group` neighbours: the middle of them, then of each its offset and channels.

    The cloud is halved across its longest side until a cell holds at most `group` points, so that
    each point is in one group and all groups but one are full. Tokens do not depend on the order of
    the points. Of more than `max_points` one is taken from each of as many cells of equal numbers
    of points, the middle one, and the tokens that are left out are counted.

    A token is x, y, z of the middle, then for each place of the group the offset from it, the
    channels as (x - mean) / std, and 1; or zeros where there is no point. Coordinates are scaled
    from low..high to -1..1. The position of a token is its middle, scaled to 0.. `places`. A cloud
    without points is one token of zeros.

    `decode` gives the points in the order of the groups, to within 1e-6 of high - low.

    Fields:
      channels: numbers of a point beside x, y, z, such as colours or a normal.
      max_points: largest number of points. group: points of one token.
      low, high: range of the coordinates.
      places: length of a side in positions.
      mean, std: one number for all channels, or one per channel.

    >>> import numpy as np
    >>> points = Points(max_points=8, group=4)
    >>> piece = points.encode(np.eye(3))
    >>> piece.values_LP.shape, np.sort(points.decode(piece), axis=0).round(3).tolist()
    ((1, 19), [[0.0, 0.0, 0.0], [0.0, 0.0, 0.0], [1.0, 1.0, 1.0]])
    """

    channels: ranges.Natural = 0
    max_points: ranges.Count = 1024
    group: ranges.Count = 32
    low: ranges.Finite = -1.0
    high: ranges.Finite = 1.0
    places: ranges.Positive = 16.0
    mean: tuple[ranges.Finite, ...] = (0.0,)
    std: tuple[ranges.Positive, ...] = (1.0,)
    is_finite: ClassVar[bool] = True

    def __post_init__(self):
        ranges.check(self)
        given.check_affine("Points", self.channels, mean=self.mean, std=self.std)
        if not self.low < self.high:
            raise ValueError(f"Points: low={self.low} must be below high={self.high}.")

    def spec(self, name: str) -> TokenSpec:
        """One continuous stream of a set."""
        num = -(-self.max_points // self.group)
        return TokenSpec(name=name, kind="set", max_tokens=num, width=self._width)

    def encode(self, value: Any) -> Piece | None:
        """Values float32 (groups, width); position (x, y, z) of the middle of each group.

        Args:
          value: numbers (points, 3 + channels); None = absent.

        Raises ValueError for other shapes, NaN, infinity, and coordinates outside low..high.
        """
        if value is None:
            return None
        points = self._checked(value)
        total = max(1, -(-len(points) // self.group))
        if len(points) > self.max_points:
            share = np.diff(np.arange(self.max_points + 1) * len(points) // self.max_points)
            cells = _cells(points[:, :AXES], share.tolist())
            points = points[[cell[len(cell) // 2] for cell in cells]]
        groups = max(1, -(-len(points) // self.group))
        sizes = [self.group] * (groups - 1) + [len(points) - self.group * (groups - 1)]
        middles = np.zeros((groups, AXES), np.float32)
        slots = np.zeros((groups, self.group, AXES + self.channels + 1), np.float32)
        for number, cell in enumerate(_cells(points[:, :AXES], sizes)):
            if not len(cell):
                continue
            near = points[cell]
            middles[number] = near[:, :AXES].mean(axis=0)
            near[:, :AXES] -= middles[number]
            slots[number, : len(cell), :-1] = near
            slots[number, : len(cell), -1] = 1
        values_LP = np.concatenate([middles, slots.reshape(groups, -1)], axis=1)
        position_LA = (middles + 1) * np.float32(self.places / 2)
        return Piece(position_LA, values_LP=values_LP, num_cut=total - groups)

    def measure(self, value: Any) -> dict[str, float]:
        """The number of points."""
        return {"points": float(len(self._checked(value)))}

    def adapted(self, value: Any) -> str:
        """How many points are left out."""
        count = len(self._checked(value))
        return f"{count} points become {self.max_points}" if count > self.max_points else ""

    def decode(self, piece: Piece) -> np.ndarray:
        """Float32 (points, 3 + channels), inside of low..high; points of NaN are left out."""
        values = None if piece.values_LP is None else np.asarray(piece.values_LP, np.float32)
        if values is None or values.ndim != 2 or values.shape[1] != self._width:
            raise ValueError(
                f"Points: decode needs values (groups, {self._width}); this piece is not of Points"
                f" with channels={self.channels}, group={self.group}."
            )
        slots = values[:, AXES:].reshape(len(values), self.group, AXES + self.channels + 1)
        with np.errstate(over="ignore", invalid="ignore"):
            xyz = (slots[:, :, :AXES] + values[:, None, :AXES]).clip(-1, 1)
            xyz = self._centre + xyz.astype(np.float64) * self._half
        others = slots[:, :, AXES:-1]
        if self.channels:
            others = given.restored(others, self.mean, self.std)
        points = np.concatenate([xyz, others], axis=2, dtype=np.float32)
        return points[(slots[:, :, -1] >= 0.5) & ~np.isnan(points).any(axis=2)]

    def read(self, item: str) -> np.ndarray:
        """(points, 3 + channels) of an .npy file, or of a .csv file with a row a point.

        Raises ValueError if it cannot be read.
        """
        return given.read_numbers("Points", item)

    def write(self, value: Any, stem: str | Path) -> Path:
        """An .npy file of float32 (points, 3 + channels)."""
        return given.write_array(value, stem)

    @property
    def _width(self) -> int:
        return AXES + self.group * (AXES + self.channels + 1)

    @property
    def _centre(self) -> float:
        return (self.low + self.high) / 2

    @property
    def _half(self) -> float:
        return (self.high - self.low) / 2

    def _checked(self, value: Any) -> np.ndarray:
        """Float32 (points, 3 + channels), scaled, in an order that depends on nothing else."""
        width = AXES + self.channels
        points = given.array("Points", value, f"(points, {width})")
        if points.shape == (0,):
            points = points.reshape(0, width)
        if points.ndim != 2 or points.shape[1] != width:
            raise ValueError(
                f"Points: an array of shape {points.shape}; give numbers (points, {width})."
            )
        numbers = given.finite("Points", points)
        xyz = (points[:, :AXES].astype(np.float64) - self._centre) / self._half
        if (np.abs(xyz) > 1 + ROUNDING).any():
            raise ValueError(
                f"Points: a coordinate is outside {self.low:g}..{self.high:g}; divide by the size"
                " of the cloud, or set low and high."
            )
        if self.channels:
            numbers[:, AXES:] = given.centred("Points", numbers[:, AXES:], self.mean, self.std)
        numbers[:, :AXES] = xyz.clip(-1, 1)
        return numbers[np.lexsort(numbers.T[::-1])]


def _cells(xyz_N3: np.ndarray, sizes: list[int]) -> list[np.ndarray]:
    """Indices of the points in cells of these sizes, cut across the longest side of each half."""
    cells: list[np.ndarray] = []
    starts = np.concatenate([[0], np.cumsum(sizes)])
    todo = [(np.arange(len(xyz_N3)), 0, len(sizes))]
    while todo:
        indices, first, last = todo.pop()
        if last - first == 1:
            cells.append(indices)
            continue
        part, middle = xyz_N3[indices], (first + last) // 2
        axis = int((part.max(axis=0) - part.min(axis=0)).argmax())
        order = indices[np.argsort(part[:, axis], kind="stable")]
        cut = starts[middle] - starts[first]
        todo += [(order[cut:], middle, last), (order[:cut], first, middle)]
    return cells
