"""Grouped products by jax's Pallas kernels for TPU (megablox), with tiles that fit its memory."""

from __future__ import annotations

import jax
from jax.experimental.pallas.ops.tpu.megablox.gmm import gmm, tgmm

from mmjax.typing import Array

LANES = 128
# Of a tile in two bytes an element. With its sum in float32 and two buffers of everything else a
# product takes 13 of 16 MiB, and a sum over rows, whose inputs are half as long, 10.
ROWS, INNER, OUTER = 512, 1024, 1408


def product(x_SI: Array, w_EIO: Array, count_E: Array, is_transposed: bool, interpret: bool):
    """Each row times the matrix of its group, [S, O]; S is whole tiles."""
    outputs = w_EIO.shape[1 if is_transposed else 2]
    tile = _tile(x_SI.shape, outputs, x_SI.dtype.itemsize)
    how = {"tiling": tile, "transpose_rhs": is_transposed, "interpret": interpret}
    with jax.numpy_dtype_promotion("standard"):
        return gmm(x_SI, w_EIO, count_E, x_SI.dtype, **how)


def outer(x_SI: Array, d_SO: Array, count_E: Array, dtype, interpret: bool):
    """Sum over the rows of each group of x times d, [E, I, O]; zero for a group without rows."""
    rows, inner, outputs = _tile(x_SI.shape, d_SO.shape[1], x_SI.dtype.itemsize, INNER // 2)
    with jax.numpy_dtype_promotion("standard"):
        return tgmm(x_SI.T, d_SO, count_E, dtype, (rows, inner, outputs), interpret=interpret)


def _tile(
    shape: tuple[int, int], outputs: int, itemsize: int, inner: int = INNER
) -> tuple[int, int, int]:
    rows, inputs = shape
    shrink = max(1, itemsize // 2)
    row = next(n for n in (ROWS, LANES) if rows % n == 0)
    return row, _divisor(inputs, inner // shrink), _divisor(outputs, OUTER // shrink)


def _divisor(size: int, most: int) -> int:
    """The largest tile of whole lanes that divides a dim; all of a small dim."""
    if size <= most:
        return size
    return max(n for n in range(LANES, most + 1, LANES) if size % n == 0)
