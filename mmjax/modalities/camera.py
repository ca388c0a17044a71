"""Cameras as sequences of ids: intrinsics of a pinhole, and the pose as quaternion and place."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import numpy as np

from mmjax.config import ranges
from mmjax.modalities import given, sequence
from mmjax.modalities.modality import Modality
from mmjax.typing import Piece, TokenSpec

__all__ = ["Camera"]

SIZES = {"focal": 2, "centre": 2, "rotation": 4, "translation": 3}  # numbers of each part
NUM_PLACES = sum(SIZES.values())
ROUNDING = 1e-6  # of a range: float32 may lie beyond its ends by so much
UNIT = 1e-3  # how far the length of a quaternion, and a matrix times its transpose, may be off


@dataclasses.dataclass(frozen=True, kw_only=True)
class Camera(Modality):
    """A token a number: focal lengths, principal point, rotation, translation, and an end token.

    A value is a dict of some of these parts, in fractions of the picture and in one's own unit of
    length: "focal" (fx / width, fy / height), "centre" (cx / width, cy / height), "rotation", a
    unit quaternion (w, x, y, z) or a matrix (3, 3), and "translation" (x, y, z); whether the pose
    is that of the camera or of the world is up to you. A part that is not there is left out; {} is
    the end alone. Of the two quaternions of a rotation that with w > 0 is taken, and with w = 0
    that whose first other number is positive.

    Each number has its own `bins` ids: round((x - low) / (high - low) * (bins - 1)) of its range,
    and comes back to within half of a step; quaternions are scaled to length 1 again.

    Fields:
      bins: ids per number; odd ones hold 0 exactly where ranges are symmetric.
      max_focal: largest focal length, as a fraction of the picture.
      max_translation: largest coordinate of a translation, in either direction.
      num_sentinels: ids for masked spans; must exceed the runs of a masked sequence.

    >>> camera = Camera(bins=201)
    >>> piece = camera.encode({"focal": (1.0, 1.5), "rotation": [[1, 0, 0], [0, 1, 0], [0, 0, 1]]})
    >>> {name: part.tolist() for name, part in camera.decode(piece).items()}
    {'focal': [1.0, 1.5], 'rotation': [1.0, 0.0, 0.0, 0.0]}
    """

    bins: Annotated[int, ranges.Range(3)] = 1001
    max_focal: ranges.Positive = 4.0
    max_translation: ranges.Positive = 10.0
    num_sentinels: ranges.Natural = 16

    def __post_init__(self):
        ranges.check(self)

    def spec(self, name: str) -> TokenSpec:
        """One sequence stream: ids for each of 11 numbers."""
        return sequence.spec(name, NUM_PLACES * self.bins, NUM_PLACES + 1, self.num_sentinels)

    def encode(self, value: Mapping[str, Any] | None) -> Piece | None:
        """Ids int32 (numbers + 1,), the end id last; position (p, p, p).

        Raises ValueError for other keys and shapes, NaN, numbers out of range, quaternions that are
        not of length 1, and matrices that are no rotation.
        """
        if value is None:
            return None
        if not isinstance(value, Mapping) or set(value) - set(SIZES):
            shown = repr(value)[:60].replace("\n", " ")
            raise ValueError(f"Camera: {shown} is no camera; give some of {', '.join(SIZES)}.")
        codes: list[int] = []
        for part, first in self._firsts.items():
            if value.get(part) is None:
                continue
            numbers = self._numbers(part, value[part])
            low, high = self._range(part)
            shares = (numbers - low) / (high - low)
            if not ((shares >= -ROUNDING) & (shares <= 1 + ROUNDING)).all():
                raise ValueError(
                    f"Camera: {part}={numbers.tolist()} is out of range; give {low:g}..{high:g}, or"
                    " say a larger max_focal or max_translation."
                )
            places = np.round(shares.clip(0, 1) * (self.bins - 1)).astype(int)
            codes += (places + self.bins * (first + np.arange(len(places)))).tolist()
        return sequence.piece(codes, self.num_sentinels)

    def decode(self, piece: Piece) -> dict[str, np.ndarray]:
        """{part: float32}, as given, rotations as unit quaternions with w >= 0.

        Parts of which a number is missing or misplaced are left out, and repeated ones.
        """
        found: dict[str, np.ndarray] = {}
        codes = sequence.codes(piece, "Camera", self.num_sentinels)
        numbers, places = np.divmod(codes, self.bins)
        for part, first in self._firsts.items():
            wanted = np.arange(first, first + SIZES[part])
            for at in np.flatnonzero(numbers == first).tolist():
                if np.array_equal(numbers[at : at + len(wanted)], wanted):
                    low, high = self._range(part)
                    shares = places[at : at + len(wanted)] / (self.bins - 1)
                    made = low + shares * (high - low)
                    made = _unit(made) if part == "rotation" else made
                    found[part] = made.astype(np.float32)
                    break
        return found

    def read(self, item: str) -> Any:
        """{part: numbers}, of a JSON file or JSON text. Raises ValueError when it is neither."""
        return sequence.read("Camera", item)

    def write(self, value: Mapping[str, Any], stem: str | Path) -> Path:
        """A JSON file: {part: numbers}."""
        return sequence.write({k: np.asarray(v).tolist() for k, v in value.items()}, stem)

    def _numbers(self, part: str, value: Any) -> np.ndarray:
        """Float64 numbers of a part. Raises ValueError unless they are such."""
        size = SIZES[part]
        rule = f"({size},)" + (" or (3, 3)" if part == "rotation" else "")
        numbers = given.array(f"Camera: {part}", value, rule)
        is_matrix = part == "rotation" and numbers.shape == (3, 3)
        if numbers.shape != (size,) and not is_matrix:
            raise ValueError(f"Camera: {part} of shape {numbers.shape}; give numbers {rule}.")
        numbers = given.finite(f"Camera: {part}", numbers).astype(np.float64)
        if part != "rotation":
            return numbers
        if is_matrix:
            off = np.abs(numbers @ numbers.T - np.eye(3)).max()
            if not off <= UNIT or np.linalg.det(numbers) < 0:
                raise ValueError(
                    "Camera: rotation is a matrix that also scales, shears or mirrors; give one"
                    " that only rotates."
                )
            return _unit(_quaternion(numbers))
        length = float(np.linalg.norm(numbers))
        if not abs(length - 1) <= UNIT:
            raise ValueError(
                f"Camera: rotation is a quaternion of length {length:.4g}; divide it by that."
            )
        return _unit(numbers)

    def _range(self, part: str) -> tuple[float, float]:
        """Lowest and highest number of a part."""
        if part == "rotation":
            return -1.0, 1.0
        if part == "translation":
            return -self.max_translation, self.max_translation
        return 0.0, self.max_focal if part == "focal" else 1.0

    @functools.cached_property
    def _firsts(self) -> dict[str, int]:
        """The number of the first number of each part."""
        sizes = list(SIZES.values())
        return {part: sum(sizes[:i]) for i, part in enumerate(SIZES)}


def _unit(quaternion: np.ndarray) -> np.ndarray:
    """The unit quaternion of a rotation whose first number that is not 0 is positive."""
    length = np.linalg.norm(quaternion)
    if not length:
        return np.array([1.0, 0, 0, 0])
    sign = np.sign(quaternion[np.flatnonzero(quaternion)[0]])
    return quaternion / (sign * length) + 0.0  # no -0


def _quaternion(matrix: np.ndarray) -> np.ndarray:
    """A quaternion of a rotation matrix, by the largest of four ways, so none divides by nearly 0.

    Shepperd, "Quaternion from rotation matrix" (1978).
    """
    trace = np.trace(matrix)
    squares = np.array([trace, *np.diag(matrix)])
    largest = int(squares.argmax())
    (_, b, c), (d, _, f), (g, h, _) = matrix
    table = np.array(
        [
            [1 + trace, h - f, c - g, d - b],
            [h - f, 1 + 2 * matrix[0, 0] - trace, d + b, c + g],
            [c - g, d + b, 1 + 2 * matrix[1, 1] - trace, h + f],
            [d - b, c + g, h + f, 1 + 2 * matrix[2, 2] - trace],
        ]
    )
    return table[largest] / np.linalg.norm(table[largest])
