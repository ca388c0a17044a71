"""Blocks of neighbours in an array as its channels, and back."""

from __future__ import annotations

from collections.abc import Sequence

from mmjax.typing import Array


def folded(x: Array, by: Sequence[int]) -> Array:
    """[B, ..., C] with sides divided by `by`, and as many times the channels."""
    sides, channels, num = x.shape[1:-1], x.shape[-1], len(by)
    split = [n for size, f in zip(sides, by, strict=True) for n in (size // f, f)]
    x = x.reshape(len(x), *split, channels)
    kept, inner = range(1, 2 * num, 2), range(2, 2 * num + 1, 2)
    x = x.transpose(0, *kept, *inner, 2 * num + 1)
    return x.reshape(*x.shape[: num + 1], -1)


def unfolded(x: Array, by: Sequence[int]) -> Array:
    """What `folded` was given."""
    sides, num = x.shape[1:-1], len(by)
    x = x.reshape(len(x), *sides, *by, -1)
    pairs = [axis for i in range(num) for axis in (1 + i, 1 + num + i)]
    x = x.transpose(0, *pairs, 2 * num + 1)
    return x.reshape(len(x), *(size * f for size, f in zip(sides, by, strict=True)), -1)
