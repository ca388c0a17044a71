"""Attention kernels for TPU in Pallas, whose visibility is numbers known at run time.

Queries, keys and values stay as products write them, [B, L, heads * G], so that nothing is
transposed and a head of 64 is not padded to the 128 lanes of a tile. A program takes some rows and
as few heads as fill whole tiles: of short rows all tokens at once (`flash_kernels`), of long ones a
block of queries and one of keys at a time (`flash_blocks`).

Marks are int32 [B, 1 or 2, L]: a number that must be equal, and (causal) the order. What a query
may not match, it must not have: padding is -1 among queries and 0 among keys.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp

from mmjax.models import flash_blocks, flash_kernels
from mmjax.models.flash_kernels import Plan
from mmjax.typing import Array

LANES = 128  # of a tile
WHOLE = 512  # tokens up to which a row is one block
BLOCKS = (512, 384, 256)
SUBLANES = 16  # rows of a tile of bfloat16
MAX_LANES = 1024  # of the queries in one program


def attention(
    q_BQHG: Array,
    k_BLKG: Array,
    v_BLKG: Array,
    q_marks_BNQ: Array,
    k_marks_BNL: Array,
    *,
    interpret: bool = False,
) -> Array:
    """Softmax attention [B, Q, H, G]; a query that sees nothing gives zero."""
    (rows, num_q, num_heads, width), (length, kv_heads) = q_BQHG.shape, k_BLKG.shape[1:3]
    flops = 2 * rows * num_heads * num_q * length * width
    while num_heads // kv_heads * width > MAX_LANES and num_heads > kv_heads:
        factor = next(n for n in range(2, num_heads) if num_heads // kv_heads % n == 0)
        k_BLKG, v_BLKG = (jnp.repeat(x, factor, axis=2) for x in (k_BLKG, v_BLKG))
        kv_heads *= factor
    block_q, pad_q = _block(num_q)
    block_k, pad_k = _block(length)
    whole = block_q == num_q + pad_q and block_k == length + pad_k
    heads = _heads_in_a_program(kv_heads, num_heads // kv_heads, width)
    lanes = -(-heads * (num_heads // kv_heads) * width // LANES) * LANES
    room = max(1, 1024 * LANES // (max(block_q, block_k) * lanes))
    plan = Plan(
        width, heads, num_heads // kv_heads,
        max(n for n in range(1, min(room, rows) + 1) if rows % n == 0) if whole else 1,
        block_q, block_k, whole, flops, interpret,
    )  # fmt: skip
    q = _padded(q_BQHG.reshape(rows, num_q, -1), pad_q)
    k, v = (_padded(x.reshape(rows, length, -1), pad_k) for x in (k_BLKG, v_BLKG))
    q_marks = jnp.pad(q_marks_BNQ, ((0, 0), (0, 0), (0, pad_q)), constant_values=-1)
    k_marks = jnp.pad(k_marks_BNL, ((0, 0), (0, 0), (0, pad_k)))
    out: Array = _attention(plan, q, k, v, q_marks, k_marks)
    return out[:, :num_q].reshape(q_BQHG.shape)


def _block(length: int) -> tuple[int, int]:
    """Tokens of a block and padding of a row."""
    if length <= WHOLE:
        return length + -length % SUBLANES, -length % SUBLANES
    block = min(BLOCKS, key=lambda b: (-length % b, -b))
    return block, -length % block


def _heads_in_a_program(kv_heads: int, ratio: int, width: int) -> int:
    """The fewest key heads whose lanes, and those of their queries, are whole tiles; or all."""
    fits = [n for n in range(1, kv_heads) if kv_heads % n == 0 and n * width % LANES == 0]
    del ratio  # whole tiles of keys are whole tiles of queries
    return fits[0] if fits else kv_heads


def _padded(x: Array, padding: int) -> Array:
    return jnp.pad(x, ((0, 0), (0, padding), (0, 0))) if padding else x


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attention(plan: Plan, q, k, v, q_marks, k_marks):
    return _forward(plan, q, k, v, q_marks, k_marks)[0]


def _forward(plan: Plan, q, k, v, q_marks, k_marks):
    if plan.whole:
        return flash_kernels.forward(plan, q, k, v, q_marks, k_marks), (q, k, v, q_marks, k_marks)
    out, lse = flash_blocks.forward(plan, q, k, v, q_marks, k_marks)
    return out, (q, k, v, q_marks, k_marks, out, lse)


def _backward(plan: Plan, kept, d_out):
    form = flash_kernels if plan.whole else flash_blocks
    return *form.backward(plan, d_out, *kept), None, None


_attention.defvjp(_forward, _backward)
