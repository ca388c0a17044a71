"""Attention all at once, and calls of kernels, each imported with its first call.

Marks are int32 [B, 1 or 2, L]: a number that must be equal, and the order (see `attention`).
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp

from mmjax.typing import Array


def full(q_BQHG: Array, k_BLKG: Array, v_BLKG: Array, mask_BQL: Array) -> Array:
    """Softmax attention with one array of all scores."""
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


def pallas(*arrays, interpret: bool) -> Array:
    from mmjax.models import flash  # imports for TPU, half a second

    return flash.attention(*arrays, interpret=interpret)


def splash(q, k, v, q_marks, k_marks, **static: bool) -> Array:
    from mmjax.models import splash as module

    return module.attention(q, k, v, q_marks[:, 0], k_marks[:, 0], **static)


def cudnn(q, k, v, q_marks, k_marks, *, causal: bool) -> Array:
    used_BQ = q_marks[:, 0] > 0
    lengths = [jnp.sum(x[:, 0] > 0, axis=1, dtype=jnp.int32) for x in (q_marks, k_marks)]
    out = jax.nn.dot_product_attention(
        q, k, v, is_causal=causal, query_seq_lengths=jnp.maximum(lengths[0], 1),
        key_value_seq_lengths=jnp.maximum(lengths[1], 1), implementation="cudnn",
    )  # fmt: skip
    used_BQ &= (lengths[1] > 0)[:, None]
    return jnp.where(used_BQ[:, :, None, None], out, jnp.zeros((), out.dtype))


@functools.cache
def has_cudnn() -> bool:
    """Whether jax finds the library that it needs to trace a call of cuDNN."""
    x = jax.ShapeDtypeStruct((1, 8, 1, 8), jnp.bfloat16)
    attend = functools.partial(jax.nn.dot_product_attention, implementation="cudnn")
    try:
        jax.eval_shape(attend, x, x, x)
    except RuntimeError:
        return False
    return True
