"""Boxes as people write them, as the corners x0, y0, x1, y1."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

ORDERS = {
    "xyxy": ("x0", "y0", "x1", "y1"),
    "yxyx": ("y0", "x0", "y1", "x1"),
    "xywh": ("x0", "y0", "w", "h"),
    "cxcywh": ("cx", "cy", "w", "h"),
}
AXES = {"x": ("x0", "x1", "w", "cx"), "y": ("y0", "y1", "h", "cy")}  # first, last, size, middle
PICTURE = {"x": "width", "y": "height"}
ROUNDING = 1e-5  # that sums of rounded fractions may leave 0..1 by


def corners(value: Any, order: str) -> Any:
    """Boxes as an array (boxes, 4) of corners in 0..1, or the value itself if it is none of these.

    Args:
      value: an array (boxes, 4) or (4,) in this order, or a dict (see `Boxes`).

    Raises ValueError for a dict that does not say where the boxes are.
    """
    if not isinstance(value, Mapping):
        array = np.asarray(value)
        if array.dtype.kind not in "fiu" or array.shape[-1:] != (4,) or array.ndim > 2:
            return value  # the caller says what is wrong with it
        sides = dict(zip(ORDERS[order], np.atleast_2d(array).T, strict=True))
        return value if array.ndim == 2 and order == "xyxy" else _joined(sides)
    if "boxes" in value:
        array = _numbers("boxes", value["boxes"])
        if array.size == 0:
            return np.zeros((0, 4))
        if array.shape[-1] != 4:
            raise ValueError(f"Boxes: boxes of shape {array.shape}; give (boxes, 4).")
        sides = dict(zip(ORDERS[order], array.reshape(-1, 4).T, strict=True))
    else:
        known = {name for names in AXES.values() for name in names}
        sides = {k: np.atleast_1d(_numbers(k, v)) for k, v in value.items() if k in known}
    size = {axis: float(_numbers(n, value[n])) for axis, n in PICTURE.items() if n in value}
    if any(one <= 0 for one in size.values()) or len(size) == 1:
        raise ValueError(f"Boxes: a picture of {size}; give its width and height, in pixels.")
    return _joined(sides, size)


def _joined(sides: Mapping[str, np.ndarray], size: Mapping[str, float] | None = None) -> np.ndarray:
    lengths = {len(side) for side in sides.values()}
    if len(lengths) > 1:
        raise ValueError(f"Boxes: {', '.join(sides)} are of several lengths; give one per box.")
    ends = {axis: _ends(axis, sides) for axis in AXES}
    columns = [np.asarray(ends[axis][i], np.float64) for i in (0, 1) for axis in ("x", "y")]
    scale = [1 / (size or {}).get(axis, 1.0) for axis in ("x", "y")] * 2
    boxes = np.stack(columns, axis=-1) * scale
    near = (boxes > -ROUNDING) & (boxes < 1 + ROUNDING)
    return np.where(near, boxes.clip(0, 1), boxes)


def _ends(axis: str, sides: Mapping[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """First and last coordinate along an axis, from two of first, last, size and middle."""
    first, last, size, middle = (sides.get(name) for name in AXES[axis])
    if first is not None and last is not None:
        return first, last
    if size is not None and first is not None:
        return first, first + size
    if size is not None and last is not None:
        return last - size, last
    if size is not None and middle is not None:
        return middle - size / 2, middle + size / 2
    raise ValueError(
        f"Boxes: {', '.join(sides) or 'no side'} does not say where a box begins and ends along"
        f" {axis}; give two of {', '.join(AXES[axis])}."
    )


def _numbers(name: str, value: Any) -> np.ndarray:
    try:
        return np.asarray(value.decode() if isinstance(value, bytes) else value, np.float64)
    except (TypeError, ValueError) as error:
        text = f"Boxes: {name}={str(value)[:80]!r} is no number; give numbers."
        raise ValueError(text) from error
