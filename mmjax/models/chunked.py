"""The reference: attention by blocks of queries and keys, with derivatives by hand.

An online softmax (Milakov & Gimelshein 2018) needs the scores of one block at a time; the backward
pass computes them again from queries, keys and the logarithm of each sum of weights (Dao et al.
2022). No array of queries x keys outlives its block. Softmax and sums are float32.

Marks are those of `flash`: int32 [B, 1 or 2, L], a number that must be equal and an order.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from mmjax.parallel import mesh as mesh_lib
from mmjax.typing import Array

HIDDEN, FLOOR, TINY = -1e30, -1e29, 1e-30  # exp(HIDDEN - FLOOR) is 0

KEPT = 2**16  # weights of a row and head that CPU keeps for the backward pass


class _Side(NamedTuple):
    """Queries or keys, by block: [blocks, B, ...]."""

    x: tuple[Array, ...]
    marks: Array


def attention(
    q_BQHG: Array,
    k_BLKG: Array,
    v_BLKG: Array,
    q_marks_BNQ: Array,
    k_marks_BNL: Array,
    block: int = 512,
) -> Array:
    """Softmax attention [B, Q, H, G]; a query that sees nothing gives zero."""
    q, k, v = (jnp.swapaxes(x, 1, 2) for x in (q_BQHG, k_BLKG, v_BLKG))
    arrays = (q, k, v, q_marks_BNQ, k_marks_BNL)
    if _keeps_weights(q.shape[2], k.shape[2]):
        return jnp.swapaxes(_short(*arrays), 1, 2)
    return jnp.swapaxes(_attention(block, *arrays), 1, 2)


def _keeps_weights(num_queries: int, length: int) -> bool:
    """On CPU, weights of short rows are cheaper to keep than to compute again."""
    return mesh_lib.platform() == "cpu" and num_queries * length <= KEPT


def _split(x: Array, axis: int, block: int, fill: int = 0) -> Array:
    """[..., L, ...] to [blocks, ..., block, ...]."""
    padding = -x.shape[axis] % block
    if padding:
        widths = [(0, padding if n == axis else 0) for n in range(x.ndim)]
        x = jnp.pad(x, widths, constant_values=fill)
    shape = (*x.shape[:axis], x.shape[axis] // block, block, *x.shape[axis + 1 :])
    return jnp.moveaxis(x.reshape(shape), axis, 0)


def _join(x: Array, axis: int, length: int) -> Array:
    x = jnp.moveaxis(x, 0, axis)
    x = x.reshape(*x.shape[:axis], -1, *x.shape[axis + 2 :])
    return jax.lax.slice_in_dim(x, 0, length, axis=axis)


def _seen(q_marks, k_marks) -> Array:
    """[B, 1, 1, Q, L]."""
    q, k = q_marks[:, :, None, None, :, None], k_marks[:, :, None, None, None, :]
    mask = q[:, 0] == k[:, 0]
    return mask & (k[:, 1] <= q[:, 1]) if k_marks.shape[1] > 1 else mask


def _product(spec: str, a, b) -> Array:
    return jnp.einsum(spec, a, b, preferred_element_type=jnp.float32)


def _scores(q, k, q_marks, k_marks) -> Array:
    """[B, K, H / K, Q, L]."""
    score = _product("bkrqg,bklg->bkrql", q, k) * q.shape[-1] ** -0.5
    return jnp.where(_seen(q_marks, k_marks), score, HIDDEN)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attention(block: int, q, k, v, q_marks, k_marks):
    return _forward(block, q, k, v, q_marks, k_marks)[0]


def _sides(block: int, q, k, v, q_marks, k_marks, *of_queries):
    """Blocks of the queries' side, with heads by key head, and of the keys'."""
    block_q, block_k = min(block, q.shape[2]), min(block, k.shape[2])
    heads = (k.shape[1], q.shape[1] // k.shape[1])
    grouped = (x.reshape(x.shape[0], *heads, *x.shape[2:]) for x in (q, *of_queries))
    queries = tuple(_split(x, 3, block_q) for x in grouped)
    keys = tuple(_split(x, 2, block_k) for x in (k, v))
    return (
        _Side(queries, _split(q_marks, 2, block_q, -1)),
        _Side(keys, _split(k_marks, 2, block_k)),
    )


def _forward(block: int, q, k, v, q_marks, k_marks):
    queries, keys = _sides(block, q, k, v, q_marks, k_marks)

    def one_query_block(side: _Side):
        (qs,), marks = side

        def step(carry, other: _Side):
            sums, top, total = carry
            ks, vs = other.x
            score = _scores(qs, ks, marks, other.marks)
            above = jnp.maximum(top, jnp.max(score, axis=-1, keepdims=True))
            weight, kept = jnp.exp(score - above), jnp.exp(top - above)
            total = total * kept + jnp.sum(weight, axis=-1, keepdims=True)
            sums = sums * kept + _product("bkrql,bklg->bkrqg", weight.astype(vs.dtype), vs)
            return (sums, above, total), None

        one = (*qs.shape[:-1], 1)
        first = (jnp.zeros(qs.shape, jnp.float32), jnp.full(one, FLOOR), jnp.zeros(one))
        sums, top, total = _scan(step, first, keys)[0]
        total = jnp.maximum(total, TINY)
        return (sums / total).astype(q.dtype), top + jnp.log(total)

    out, lse = _map(one_query_block, queries)
    out = _join(out, 3, q.shape[2]).reshape(q.shape)
    lse = _join(lse, 3, q.shape[2]).reshape(*q.shape[:3], 1)
    return out, (q, k, v, q_marks, k_marks, out, lse)


def _backward(block: int, kept, d_out):
    q, k, v, q_marks, k_marks, out, lse = kept
    mean = jnp.sum(d_out.astype(jnp.float32) * out.astype(jnp.float32), axis=-1, keepdims=True)
    queries, keys = _sides(block, q, k, v, q_marks, k_marks, d_out, lse, mean)

    def one_key_block(d_q, other: _Side):
        ks, vs = other.x

        def step(carry, both):
            (qs, d, lse, mean), marks = both[0]
            weight = jnp.exp(_scores(qs, ks, marks, other.marks) - lse)
            d_weight = _product("bkrqg,bklg->bkrql", d, vs)
            d_score = (weight * (d_weight - mean) * q.shape[-1] ** -0.5).astype(q.dtype)
            d_k = carry[0] + _product("bkrql,bkrqg->bklg", d_score, qs)
            d_v = carry[1] + _product("bkrql,bkrqg->bklg", weight.astype(d.dtype), d)
            return (d_k, d_v), both[1] + _product("bkrql,bklg->bkrqg", d_score, ks)

        first = (jnp.zeros(ks.shape, jnp.float32), jnp.zeros(vs.shape, jnp.float32))
        (d_k, d_v), d_q = _scan(step, first, (queries, d_q))
        return d_q, (d_k.astype(k.dtype), d_v.astype(v.dtype))

    d_q = jnp.zeros(queries.x[0].shape, jnp.float32)
    d_q, (d_k, d_v) = _scan(one_key_block, d_q, keys)
    d_q = _join(d_q, 3, q.shape[2]).reshape(q.shape).astype(q.dtype)
    return d_q, _join(d_k, 2, k.shape[2]), _join(d_v, 2, k.shape[2]), None, None


_attention.defvjp(_forward, _backward)


@jax.custom_vjp
def _short(q, k, v, q_marks, k_marks):
    """One block, whose weights the backward pass finds."""
    return _short_forward(q, k, v, q_marks, k_marks)[0]


def _short_forward(q, k, v, q_marks, k_marks):
    grouped = q.reshape(q.shape[0], k.shape[1], -1, *q.shape[2:])
    score = _scores(grouped, k, q_marks, k_marks)
    weight = jnp.exp(score - jnp.maximum(jnp.max(score, axis=-1, keepdims=True), FLOOR))
    weight = weight / jnp.maximum(jnp.sum(weight, axis=-1, keepdims=True), TINY)
    weight = weight.astype(v.dtype)
    out = _product("bkrql,bklg->bkrqg", weight, v).astype(q.dtype)
    return out.reshape(q.shape), (grouped, k, v, weight)


def _short_backward(kept, d_out):
    q, k, v, weight = kept
    d = d_out.reshape(q.shape)
    d_weight = _product("bkrqg,bklg->bkrql", d, v)
    exact = weight.astype(jnp.float32)
    mean = jnp.sum(exact * d_weight, axis=-1, keepdims=True)
    d_score = (exact * (d_weight - mean) * q.shape[-1] ** -0.5).astype(q.dtype)
    d_q = _product("bkrql,bklg->bkrqg", d_score, k).astype(q.dtype).reshape(d_out.shape)
    d_k = _product("bkrql,bkrqg->bklg", d_score, q).astype(k.dtype)
    return d_q, d_k, _product("bkrql,bkrqg->bklg", weight, d).astype(v.dtype), None, None


_short.defvjp(_short_forward, _short_backward)


def _scan(step, first, xs):
    """`jax.lax.scan`; a single step is no loop."""
    if jax.tree.leaves(xs)[0].shape[0] > 1:
        return jax.lax.scan(step, first, xs)
    last, out = step(first, jax.tree.map(lambda x: x[0], xs))
    return last, jax.tree.map(lambda x: x[None], out)


def _map(f, xs):
    return _scan(lambda _, x: (None, f(x)), None, xs)[1]
