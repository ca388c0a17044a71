"""What attention kernels have in common, and those of short rows.

A short row is whole in fast memory: its backward pass needs nothing but the inputs and makes all
three derivatives at once.
"""

from __future__ import annotations

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from mmjax.models.chunked import FLOOR, HIDDEN, TINY


class Plan(NamedTuple):
    """How one call is cut: all of it static.

    Fields:
      width: G of a head. heads: key heads in a program. ratio: query heads of a key head.
      rows: in a program, of short rows. block_q, block_k. whole: one block of each.
      flops: of one product of queries and keys, without padding. interpret: runs on any device.
    """

    width: int
    heads: int
    ratio: int
    rows: int
    block_q: int
    block_k: int
    whole: bool
    flops: int
    interpret: bool


def dot(a, b, dim_a: int, dim_b: int):
    dims = (((dim_a,), (dim_b,)), ((), ()))
    return jax.lax.dot_general(a, b, dims, preferred_element_type=jnp.float32)


def scores(a, b, seen, width: int):
    """Products of rows of a with rows of b, in float32, hidden where not seen."""
    return jnp.where(seen, dot(a, b, 1, 1) * width**-0.5, HIDDEN)


def seen(q_marks, k_marks):
    """Mask [Q, L] of marks [N, Q] and [N, L]."""
    q = q_marks.T
    mask = q[:, :1] == k_marks[:1]
    return mask & (k_marks[1:2] <= q[:, 1:2]) if k_marks.shape[0] > 1 else mask


def seen_by(q_marks, k_marks):
    """The same mask, transposed [L, Q]."""
    k = k_marks.T
    mask = k[:, :1] == q_marks[:1]
    return mask & (k[:, 1:2] <= q_marks[1:2]) if k_marks.shape[0] > 1 else mask


def lanes(head: int, width: int) -> slice:
    return slice(head * width, (head + 1) * width)


def heads(plan: Plan):
    """(query head, its lanes, lanes of its key head) in a program."""
    for head in range(plan.heads * plan.ratio):
        yield head, lanes(head, plan.width), lanes(head // plan.ratio, plan.width)


def call(plan: Plan, name: str, kernel, products: int, operands, semantics, **kwargs):
    """`pallas_call` with the FLOPs of its products, so that readers of the program know them."""
    moved = sum(math.prod(x.shape) * x.dtype.itemsize for x in (*operands, *kwargs["out_shape"]))
    cost = pl.CostEstimate(
        flops=products * plan.flops,
        bytes_accessed=moved,
        transcendentals=plan.flops // (2 * plan.width),
    )
    return pl.pallas_call(
        functools.partial(kernel, plan=plan),
        name=f"mmjax_attention_{name}",
        cost_estimate=cost,
        interpret=plan.interpret,
        compiler_params=pltpu.CompilerParams(dimension_semantics=semantics),
        **kwargs,
    )(*operands)


def like(*arrays, dtype=None) -> list[jax.ShapeDtypeStruct]:
    return [jax.ShapeDtypeStruct(x.shape, dtype or x.dtype) for x in arrays]


# ---------------------------------------------------------------- short rows


def _specs(plan: Plan, q, k, q_marks, k_marks):
    """Grid, and specs of queries, keys and both marks."""
    key_lanes = plan.heads * plan.width
    grid = (q.shape[0] // plan.rows, k.shape[2] // key_lanes)

    def tokens(length, lanes):
        return pl.BlockSpec((plan.rows, length, lanes), lambda b, h: (b, 0, h))

    def marks(x):
        return pl.BlockSpec((plan.rows, *x.shape[1:]), lambda b, h: (b, 0, 0))

    q_spec = tokens(plan.block_q, key_lanes * plan.ratio)
    return grid, q_spec, tokens(plan.block_k, key_lanes), marks(q_marks), marks(k_marks)


def forward(plan: Plan, q, k, v, q_marks, k_marks):
    grid, q_spec, k_spec, *mark_specs = _specs(plan, q, k, q_marks, k_marks)
    return call(
        plan, "forward", _forward_kernel, 2, (q_marks, k_marks, q, k, v),
        ("parallel", "parallel"), grid=grid, in_specs=[*mark_specs, q_spec, k_spec, k_spec],
        out_specs=[q_spec], out_shape=like(q),
    )[0]  # fmt: skip


def _forward_kernel(q_marks, k_marks, q, k, v, out, *, plan: Plan):
    def row(r, carry):
        mask = seen(q_marks[r], k_marks[r])
        for _, own, keys in heads(plan):
            value = v[r, :, keys]
            score = scores(q[r, :, own], k[r, :, keys], mask, plan.width)
            weight = jnp.exp(score - jnp.maximum(jnp.max(score, axis=1, keepdims=True), FLOOR))
            total = jnp.maximum(jnp.sum(weight, axis=1, keepdims=True), TINY)
            mean = dot(weight.astype(value.dtype), value, 1, 0) / total
            out[r, :, own] = mean.astype(out.dtype)
        return carry

    jax.lax.fori_loop(0, plan.rows, row, 0)


def backward(plan: Plan, d_out, q, k, v, q_marks, k_marks):
    grid, q_spec, k_spec, *mark_specs = _specs(plan, q, k, q_marks, k_marks)
    return call(
        plan, "backward", _backward_kernel, 5, (q_marks, k_marks, q, k, v, d_out),
        ("parallel", "parallel"), grid=grid,
        in_specs=[*mark_specs, q_spec, k_spec, k_spec, q_spec],
        out_specs=[q_spec, k_spec, k_spec], out_shape=like(q, k, v),
    )  # fmt: skip


def _backward_kernel(q_marks, k_marks, q, k, v, d_out, d_q, d_k, d_v, *, plan: Plan):
    """Keys lie along the rows: sums over keys are sums of registers, and one product turns."""

    def row(r, carry):
        mask = seen_by(q_marks[r], k_marks[r])
        sums = (0.0, 0.0)
        for head, own, keys in heads(plan):
            query, key, value, d = q[r, :, own], k[r, :, keys], v[r, :, keys], d_out[r, :, own]
            score = scores(key, query, mask, plan.width)
            weight = jnp.exp(score - jnp.maximum(jnp.max(score, axis=0, keepdims=True), FLOOR))
            weight = weight / jnp.maximum(jnp.sum(weight, axis=0, keepdims=True), TINY)
            d_weight = dot(value, d, 1, 1)
            mean = jnp.sum(weight * d_weight, axis=0, keepdims=True)
            d_score = (weight * (d_weight - mean) * plan.width**-0.5).astype(query.dtype)
            d_q[r, :, own] = dot(d_score, key, 0, 0).astype(d_q.dtype)
            sums = (
                sums[0] + dot(d_score, query, 1, 0),
                sums[1] + dot(weight.astype(d.dtype), d, 1, 0),
            )
            if head % plan.ratio == plan.ratio - 1:
                d_k[r, :, keys] = sums[0].astype(d_k.dtype)
                d_v[r, :, keys] = sums[1].astype(d_v.dtype)
                sums = (0.0, 0.0)
        return carry

    jax.lax.fori_loop(0, plan.rows, row, 0)
