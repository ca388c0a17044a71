"""Grouped products for GPU in Pallas, by way of Triton.

Rows lie in blocks of one expert each, so no tile is of two experts and none is masked; a block that
holds no rows is not computed, and its part of the output is left as it was.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu

from mmjax.typing import Array

INNER, OUTER = 64, 128  # of a tile
PARAMS = plgpu.CompilerParams(num_warps=8, num_stages=3)


def product(
    x_SI: Array, w_EIO: Array, expert_N: Array, used: Array, is_transposed: bool, interpret: bool
) -> Array:
    """Each row times the matrix of its block's expert, [S, O]; `is_transposed`: w is [E, O, I]."""
    rows, inputs = len(x_SI) // len(expert_N), x_SI.shape[1]
    outputs = w_EIO.shape[1 if is_transposed else 2]
    inner, outer_ = _tile(inputs, INNER), _tile(outputs, OUTER)

    def kernel(expert_ref, used_ref, x_ref, w_ref, out_ref):
        n, o = pl.program_id(0), pl.program_id(1)

        @pl.when(n < used_ref[0])
        def _():
            here, there = pl.ds(n * rows, rows), pl.ds(o * outer_, outer_)
            expert = expert_ref[n]

            def turn(i, sum_bo):
                along = pl.ds(i * inner, inner)
                w = w_ref[expert, there, along] if is_transposed else w_ref[expert, along, there]
                return sum_bo + plgpu.dot(x_ref[here, along], w, trans_b=is_transposed)

            zeros = jnp.zeros((rows, outer_), jnp.float32)
            total = jax.lax.fori_loop(0, inputs // inner, turn, zeros)
            out_ref[here, there] = total.astype(out_ref.dtype)

    return _call(kernel, "mmjax_grouped", (len(expert_N), outputs // outer_), interpret)(
        jax.ShapeDtypeStruct((len(x_SI), outputs), x_SI.dtype)
    )(expert_N, used.reshape(1), x_SI, w_EIO)


def outer(x_SI: Array, d_SO: Array, end_E: Array, rows: int, dtype, interpret: bool) -> Array:
    """Sum over the rows of each expert of x times d, [E, I, O]; zero for one without rows. Blocks
    of so many rows of an expert end before `end_E`."""
    inputs, outputs, step = x_SI.shape[1], d_SO.shape[1], _tile(rows, INNER)
    inner, outer_ = _tile(inputs, OUTER), _tile(outputs, OUTER)

    def kernel(start_ref, end_ref, x_ref, d_ref, out_ref):
        expert, i, o = (pl.program_id(axis) for axis in range(3))
        along, there = pl.ds(i * inner, inner), pl.ds(o * outer_, outer_)

        def turn(s, sum_io):
            here = pl.ds(s * step, step)
            return sum_io + plgpu.dot(x_ref[here, along], d_ref[here, there], trans_a=True)

        zeros, turns = jnp.zeros((inner, outer_), jnp.float32), rows // step
        total = jax.lax.fori_loop(start_ref[expert] * turns, end_ref[expert] * turns, turn, zeros)
        out_ref[expert, along, there] = total.astype(out_ref.dtype)

    grid = (len(end_E), inputs // inner, outputs // outer_)
    return _call(kernel, "mmjax_grouped_outer", grid, interpret)(
        jax.ShapeDtypeStruct((len(end_E), inputs, outputs), dtype)
    )(jnp.pad(end_E[:-1], (1, 0)), end_E, x_SI, d_SO)


def _call(kernel, name: str, grid: tuple[int, ...], interpret: bool):
    return functools.partial(
        pl.pallas_call, kernel, name=name, grid=grid, interpret=interpret, compiler_params=PARAMS
    )


def _tile(size: int, most: int) -> int:
    """The largest power of two that divides a dim."""
    return min(most, size & -size)
