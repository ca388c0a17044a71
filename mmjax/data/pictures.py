"""Pictures: random crops, flips, turns and colours."""

from __future__ import annotations

import dataclasses
import math
from typing import Annotated, Any

import numpy as np

from mmjax.config import ranges
from mmjax.data.augment import Augment, check_kind
from mmjax.modalities.image import LUMA, Image
from mmjax.modalities.structured import Boxes
from mmjax.typing import Piece

__all__ = ["Pictures"]

ZOOM = 2.0  # of the kept pixels over the size of the modality: smaller crops are scaled up
AROUND = 3  # of a long picture, parts as wide as the one in the middle, which evaluation sees
# Luma, and two axes of colour in which hue is an angle and saturation a length (NTSC).
YIQ = np.array([LUMA, [0.5959, -0.2746, -0.3213], [0.2115, -0.5227, 0.3112]])
TO_RGB = np.linalg.inv(YIQ)

Share = Annotated[float, ranges.Range(0, 1, has_low=False)]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pictures(Augment):
    """Varies images: what is seen of them, then how it is turned, then its colours.

    A crop lies anywhere in the picture and is stretched to the size of the modality (Szegedy et al.
    2015). Turns and shifts continue the edge. Colours change in one linear step: hue and saturation
    (of three channels), contrast around the mean luma, brightness; then they are clipped.

    Off by default is what would often lie: a flip turns text, scores and left and right around, hue
    and grey contradict captions that name colours. All ranges at rest (`area=(1, 1)`,
    `aspect=(1, 1)`, the others 0) give the picture as evaluation sees it.

    Fields:
      area: of a crop, as a share of what evaluation sees; it may lie beside that, where a long
        picture has more. aspect: of its width to its height, relative to the same.
      flip: probability of left and right being exchanged.
      shift: largest shift, as a share of height and width. rotation: largest angle, in degrees.
      brightness, contrast, saturation: largest change; 0.2 = factors of 0.8 to 1.2.
      hue: largest turn of the colour circle; 0.5 = all colours. grey: probability of no colour.

    >>> pixels_HWC = np.zeros((20, 30, 3), np.uint8)
    >>> image, rng = Image(size=(8, 12), patch=4), np.random.default_rng(0)
    >>> varied = Pictures()(Pictures().prepare(pixels_HWC, image), image, rng)
    >>> varied.values_LP.shape
    (6, 48)
    """

    area: tuple[Share, Share] = (0.5, 1.0)
    aspect: tuple[ranges.Positive, ranges.Positive] = (0.75, 1.3333)
    flip: ranges.Fraction = 0.0
    shift: Annotated[float, ranges.Range(0, 0.5)] = 0.0
    rotation: Annotated[float, ranges.Range(0, 180)] = 0.0
    brightness: ranges.BelowOne = 0.2
    contrast: ranges.BelowOne = 0.2
    saturation: ranges.Fraction = 0.2
    hue: Annotated[float, ranges.Range(0, 0.5)] = 0.0
    grey: ranges.Fraction = 0.0

    def __post_init__(self):
        super().__post_init__()
        for name, (low, high) in (("area", self.area), ("aspect", self.aspect)):
            if low > high:
                raise ValueError(
                    f"Pictures: {name}={(low, high)} ends before it starts; write the smaller one"
                    " first."
                )

    def check(self, name, task, modalities):
        check_kind(self, name, modalities[name], Image)
        boxes = [n for n in (*task.inputs, *task.targets) if isinstance(modalities[n], Boxes)]
        if boxes and self._moves:
            raise ValueError(
                f"augment[{name!r}]=Pictures moves what {boxes[0]!r} says the place of; change"
                " colours alone: area=(1.0, 1.0), aspect=(1.0, 1.0), flip=0.0, shift=0.0,"
                " rotation=0.0."
            )

    def prepare(self, value: Any, modality: Any) -> Any:
        if value is None or not (self._moves or self._colours):
            return value
        if not self._crops:
            return modality.reduced(value)
        return modality.reduced(value, min(ZOOM, self.area[0] ** -0.5), AROUND)

    def __call__(self, value: Any, modality: Any, rng: np.random.Generator) -> Piece:
        # All numbers are drawn whatever the ranges, so that one does not change another's.
        moves, colours = rng.random(9), rng.uniform(-1, 1, 4)
        if not (self._moves or self._colours):
            return modality.encode(value)
        planes = self._cut(_planes(value), modality, moves)
        if moves[4] < self.flip:
            planes = [plane.transpose(_pillow().Transpose.FLIP_LEFT_RIGHT) for plane in planes]
        if self.rotation or self.shift:
            angle, down, right = (2 * moves[5:8] - 1) * (self.rotation, self.shift, self.shift)
            planes = _turned(planes, angle, down, right)
        if self._colours:
            matrix = self._matrix(colours, moves[8] < self.grey, value.shape[2])
            factor = 1 + self.contrast * colours[0]
            planes = _coloured(planes, matrix, factor, 1 + self.brightness * colours[1])
        return modality.encode(_pixels(planes))

    @property
    def _moves(self) -> bool:
        return self._crops or bool(self.flip or self.shift or self.rotation)

    @property
    def _crops(self) -> bool:
        return (self.area, self.aspect) != ((1, 1), (1, 1))

    @property
    def _colours(self) -> bool:
        return any((self.brightness, self.contrast, self.saturation, self.hue, self.grey))

    def _cut(self, planes: list[Any], modality: Image, draws: np.ndarray) -> list[Any]:
        """A random crop, scaled to the size of the modality."""
        columns, rows = planes[0].size
        left, top, right, bottom = modality.box(rows, columns)
        if self._crops:
            area = self.area[0] + (self.area[1] - self.area[0]) * draws[0]
            aspect = self.aspect[0] * (self.aspect[1] / self.aspect[0]) ** draws[1]
            wide = min(columns, max(1.0, (right - left) * math.sqrt(area * aspect)))
            high = min(rows, max(1.0, (bottom - top) * math.sqrt(area / aspect)))
            left, top = draws[2] * (columns - wide), draws[3] * (rows - high)
            # Rounding may lead a float beyond the edge, which Pillow refuses.
            right, bottom = min(left + wide, columns), min(top + high, rows)
        size, how = modality.size[::-1], _pillow().Resampling.BICUBIC
        return [plane.resize(size, how, (left, top, right, bottom)) for plane in planes]

    def _matrix(self, draws: np.ndarray, is_grey: bool, channels: int) -> np.ndarray:
        """What saturation and hue make of a colour, as a product from the left."""
        if channels != 3:
            return np.eye(channels)
        angle = 2 * math.pi * self.hue * draws[2]
        length = 0.0 if is_grey else 1 + self.saturation * draws[3]
        cos, sin = length * math.cos(angle), length * math.sin(angle)
        return TO_RGB @ [[1, 0, 0], [0, cos, -sin], [0, sin, cos]] @ YIQ


# Planes are images of Pillow: one of 8-bit colours, or one a channel.


def _planes(pixels_HWC: np.ndarray) -> list[Any]:
    if pixels_HWC.dtype == np.uint8 and pixels_HWC.shape[2] == 3:
        return [_pillow().fromarray(pixels_HWC)]
    channels = range(pixels_HWC.shape[2])
    return [_pillow().fromarray(np.ascontiguousarray(pixels_HWC[:, :, c])) for c in channels]


def _pixels(planes: list[Any]) -> np.ndarray:
    """The pixels (H, W, channels) of planes: uint8, or float32 clipped to 0..1."""
    if planes[0].mode == "RGB":
        return np.asarray(planes[0])
    pixels_HWC = np.stack([np.asarray(plane) for plane in planes], axis=2)
    return pixels_HWC if pixels_HWC.dtype == np.uint8 else pixels_HWC.clip(0, 1)


def _turned(planes: list[Any], angle: float, down: float, right: float) -> list[Any]:
    """Planes turned by degrees around the middle, then shifted by shares of height and width."""
    columns, rows = planes[0].size
    turn = math.radians(angle)
    cos, sin = math.cos(turn), math.sin(turn)
    down, right = down * rows, right * columns
    beyond = math.hypot(rows, columns) / 2 - min(rows, columns) / 2 if angle else 0
    margin = math.ceil(beyond) + math.ceil(max(abs(down), abs(right))) + 1
    around = ((margin, margin), (margin, margin), (0, 0))
    padded = _planes(np.pad(_pixels(planes), around, "edge"))
    middle = columns / 2, rows / 2
    # Where each pixel of the result comes from.
    from_x, from_y = middle[0] + right, middle[1] + down
    x = middle[0] + margin - cos * from_x - sin * from_y
    y = middle[1] + margin + sin * from_x - cos * from_y
    kind, how = _pillow().Transform.AFFINE, _pillow().Resampling.BILINEAR
    affine = (cos, sin, x, -sin, cos, y)
    return [plane.transform((columns, rows), kind, affine, resample=how) for plane in padded]


def _coloured(
    planes: list[Any], matrix: np.ndarray, contrast: float, brightness: float
) -> list[Any]:
    """Colours times a matrix, then further from the mean luma, then brighter."""
    means = [plane.resize((1, 1), _pillow().Resampling.BOX) for plane in planes]
    mean_C = _pixels(means)[0, 0].astype(np.float64)
    if len(mean_C) == 3:
        mean_C = np.repeat(mean_C @ LUMA, 3)
    matrix = brightness * contrast * matrix
    shift_C = brightness * (1 - contrast) * mean_C
    if planes[0].mode == "RGB":
        rows = np.concatenate([matrix, shift_C[:, None]], axis=1).ravel().tolist()
        return [planes[0].convert("RGB", rows)]
    pixels_HWC = _pixels(planes)
    varied = pixels_HWC @ matrix.T.astype(np.float32) + shift_C.astype(np.float32)
    if pixels_HWC.dtype == np.uint8:
        return _planes((varied + 0.5).clip(0, 255).astype(np.uint8))
    return _planes(varied.clip(0, 1))


def _pillow() -> Any:
    import PIL.Image

    return PIL.Image
