"""Bytes of arrays as the chips hold them: TPUs in tiles, GPUs as they are."""

from __future__ import annotations

import math

LANES, SUBLANES = 128, 8
LINE = 1024  # elements of the largest tile of a vector


def size(shape: tuple[int, ...], itemsize: int, platform: str) -> int:
    """Bytes of an array.

    On TPU the two innermost dims lie in tiles of 8 x 128 words, and what is left of a tile is lost;
    which dims these are is the compiler's choice: here, those that lose least. A dim of up to four
    has a tile of its own size.

    >>> size((768, 12, 64), 4, "tpu"), size((4, 768), 4, "tpu"), size((), 4, "tpu")
    (2359296, 12288, 512)
    >>> size((768, 12, 64), 4, "gpu")
    2359296
    """
    count = math.prod(shape) * itemsize
    if platform != "tpu":
        return count
    if len(shape) < 2:
        return _up(max(math.prod(shape), 1), _tile(math.prod(shape))) * itemsize
    rows = SUBLANES * max(1, 4 // itemsize)  # narrow types are packed: 16 or 32 rows a tile
    best = math.inf
    for minor in range(len(shape)):
        for second in range(len(shape)):
            if minor != second and shape[minor] and shape[second]:
                share = _up(shape[minor], LANES) / shape[minor]
                tile = min(rows, 1 << (shape[second] - 1).bit_length())
                share *= _up(shape[second], max(tile, rows // SUBLANES)) / shape[second]
                best = min(best, share)
    return round(count * best) if count else 0


def _tile(length: int) -> int:
    """Elements of a vector's tile: a power of two of 128 to 1,024."""
    return min(LINE, max(LANES, 1 << max(length - 1, 0).bit_length()))


def _up(number: int, multiple: int) -> int:
    return -(-number // multiple) * multiple
