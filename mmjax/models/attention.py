"""Attention: positions, the one rule of visibility, and masked attention by query block."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

from mmjax.typing import NUM_AXES, Array, Tokens


class Visibility(NamedTuple):
    """The integers of a view from which every mask is made, each [B, L]."""

    segment_BL: Array
    stream_BL: Array
    order_BL: Array


def visibility(tokens: Tokens) -> Visibility:
    """Segments, streams and orders of a view."""
    return Visibility(tokens.segment_BL, tokens.stream_BL, tokens.order_BL)


def visible(query: Visibility, key: Visibility, *, causal: bool, isolate: bool) -> Array:
    """Mask [B, Q, L]: same segment, no padding; isolated: same stream; causal: no later order."""
    q_segment, k_segment = query.segment_BL[:, :, None], key.segment_BL[:, None, :]
    mask_BQL = (q_segment == k_segment) & (k_segment != 0)
    if isolate:
        mask_BQL &= query.stream_BL[:, :, None] == key.stream_BL[:, None, :]
    if causal:
        mask_BQL &= key.order_BL[:, None, :] <= query.order_BL[:, :, None]
    return mask_BQL


def frequencies(width: int, max_wavelength: float) -> tuple[Array, Array]:
    """Angular frequency of each pair of channels and the position axis it belongs to."""
    pairs = width // 2
    exponent = jnp.arange(pairs, dtype=jnp.float32) / max(pairs, 1)
    return max_wavelength**-exponent, jnp.arange(pairs) % NUM_AXES


def angles(position_BLA: Array, width: int, max_wavelength: float) -> Array:
    """Angles [B, L, width / 2]; text has one number on all axes, so it is ordinary 1-D."""
    frequency, axis = frequencies(width, max_wavelength)
    return position_BLA[:, :, axis] * frequency[None, None, :]


def sincos(position_BLA: Array, width: int, max_wavelength: float) -> Array:
    """Fixed position vectors [B, L, D]."""
    angle = angles(position_BLA, width, max_wavelength)
    out = jnp.concatenate([jnp.sin(angle), jnp.cos(angle)], axis=-1)
    return jnp.pad(out, ((0, 0), (0, 0), (0, width - out.shape[-1])))


def rotate(x_BLHG: Array, angle_BLG: Array) -> Array:
    """Rotary positions (Su et al. 2021): turns the two halves of each head by the angles."""
    cos = jnp.cos(angle_BLG)[:, :, None, :].astype(x_BLHG.dtype)
    sin = jnp.sin(angle_BLG)[:, :, None, :].astype(x_BLHG.dtype)
    first, second = jnp.split(x_BLHG, 2, axis=-1)
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)


def attend(
    q_BQHG: Array,
    k_BLKG: Array,
    v_BLKG: Array,
    query: Visibility,
    key: Visibility,
    *,
    causal: bool,
    isolate: bool,
    implementation: str = "auto",
    query_block: int = 512,
) -> Array:
    """Softmax attention; a query that sees nothing gives zero. Returns [B, Q, H, G].

    Args:
      implementation: `chunked` makes the mask from integers for `query_block` queries at a time, so
        memory grows with Q * block and not with Q * L; `full` makes it once. `auto` is `chunked`.
    """
    num_queries = q_BQHG.shape[1]
    if implementation == "full" or num_queries <= query_block:
        mask = visible(query, key, causal=causal, isolate=isolate)
        return _attend_block(q_BQHG, k_BLKG, v_BLKG, mask)
    padding = -num_queries % query_block
    blocks = (num_queries + padding) // query_block

    def split(x):
        x = jnp.pad(x, ((0, 0), (0, padding)) + ((0, 0),) * (x.ndim - 2))
        return jnp.moveaxis(x.reshape(x.shape[0], blocks, query_block, *x.shape[2:]), 1, 0)

    @jax.checkpoint
    def one(block):
        q, where = block
        mask = visible(where, key, causal=causal, isolate=isolate)
        return _attend_block(q, k_BLKG, v_BLKG, mask)

    out = jax.lax.map(one, (split(q_BQHG), jax.tree.map(split, query)))
    out = jnp.moveaxis(out, 0, 1).reshape(q_BQHG.shape[0], -1, *q_BQHG.shape[2:])
    return out[:, :num_queries]


def attend_parts(
    q_BQHG: Array,
    parts: Sequence[tuple[Array, Array]],
    masks: Sequence[Array],
) -> Array:
    """`attend` over keys and values that lie in several parts, each (k, v) [B, K, L, G] with a mask
    [B, Q, L]: what is cached need not be copied to stand beside what is new. [B, Q, H, G]."""
    batch, num_queries, num_heads, width = q_BQHG.shape
    kv_heads = parts[0][0].shape[1]
    q = q_BQHG.reshape(batch, num_queries, kv_heads, num_heads // kv_heads, width)
    logits = [
        jnp.einsum("BQKHG,BKLG->BKHQL", q, k, preferred_element_type=jnp.float32) for k, _ in parts
    ]
    mask = jnp.concatenate(masks, axis=-1)[:, None, None]
    logit = jnp.where(mask, jnp.concatenate(logits, axis=-1) * width**-0.5, -1e30)
    prob = jnp.where(mask, jnp.exp(logit - jnp.max(logit, axis=-1, keepdims=True)), 0.0)
    prob = prob / jnp.maximum(jnp.sum(prob, axis=-1, keepdims=True), 1e-30)
    ends = itertools.accumulate(x.shape[-1] for x in logits)
    outs = [
        jnp.einsum("BKHQL,BKLG->BQKHG", prob[..., end - v.shape[2] : end].astype(v.dtype), v)
        for (_, v), end in zip(parts, ends, strict=True)
    ]
    return sum(outs[1:], outs[0]).reshape(batch, num_queries, num_heads, width)


def _attend_block(q_BQHG: Array, k_BLKG: Array, v_BLKG: Array, mask_BQL: Array) -> Array:
    batch, num_queries, num_heads, width = q_BQHG.shape
    kv_heads = k_BLKG.shape[2]
    q = q_BQHG.reshape(batch, num_queries, kv_heads, num_heads // kv_heads, width)
    logits = jnp.einsum("BQKHG,BLKG->BKHQL", q, k_BLKG, preferred_element_type=jnp.float32)
    mask = mask_BQL[:, None, None, :, :]
    logits = jnp.where(mask, logits * width**-0.5, -1e30)
    prob = jnp.exp(logits - jax.lax.stop_gradient(jnp.max(logits, axis=-1, keepdims=True)))
    prob = jnp.where(mask, prob, 0.0)
    prob = prob / jnp.maximum(jnp.sum(prob, axis=-1, keepdims=True), 1e-30)
    out = jnp.einsum("BKHQL,BLKG->BQKHG", prob.astype(v_BLKG.dtype), v_BLKG)
    return out.reshape(batch, num_queries, num_heads, width)
