"""The splash attention kernel that ships with jax, for TPU, where it computes exactly our rule.

It knows equal numbers and, by slots, causal order. Lengths are padded to its tiles, and what
padding and queries that see nothing get is replaced by zero.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.tpu import splash_attention as kernels

from mmjax.typing import Array

LANES = 128
BLOCK = 512  # at most; splash takes multiples of 128


def attention(
    q_BQHG: Array,
    k_BLKG: Array,
    v_BLKG: Array,
    q_number_BQ: Array,
    k_number_BL: Array,
    *,
    causal: bool,
    is_self: bool,
    interpret: bool = False,
) -> Array:
    """Softmax attention [B, Q, H, G] between equal numbers above 0; causal: by slots.

    `is_self`: queries and keys are the same tokens, so each of them sees at least itself.
    """
    (_, num_q, num_heads, width), length = q_BQHG.shape, k_BLKG.shape[1]
    # Scaled in float32 and rounded once.
    q = (q_BQHG.astype(jnp.float32) * width**-0.5).astype(q_BQHG.dtype)
    q, k, v = (_heads_first(x) for x in (q, k_BLKG, v_BLKG))
    shape = (q.shape[2], k.shape[2])
    one = (kernels.CausalMask if causal else kernels.FullMask)(shape)
    kernel = kernels.make_splash_mha_single_device(
        kernels.MultiHeadMask([one] * num_heads), block_sizes=_blocks(*shape), interpret=interpret
    )
    numbers = [
        jnp.pad(x, ((0, 0), (0, size - x.shape[1])))
        for x, size in zip((q_number_BQ, k_number_BL), shape, strict=True)
    ]
    out: Array = jax.vmap(kernel)(q, k, v, kernels.SegmentIds(*numbers))
    seen_BQ = q_number_BQ > 0
    if not is_self:
        equal_BQL = q_number_BQ[:, :, None] == k_number_BL[:, None, :]
        if causal:
            equal_BQL &= jnp.arange(length)[None, None, :] <= jnp.arange(num_q)[None, :, None]
        seen_BQ &= jnp.any(equal_BQL, axis=2)
    out = jnp.swapaxes(out, 1, 2)[:, :num_q]
    return jnp.where(seen_BQ[:, :, None, None], out, jnp.zeros((), out.dtype))


def _heads_first(x_BLHG: Array) -> Array:
    padding = -x_BLHG.shape[1] % LANES
    return jnp.pad(jnp.swapaxes(x_BLHG, 1, 2), ((0, 0), (0, 0), (0, padding), (0, 0)))


def _blocks(num_q: int, length: int) -> kernels.BlockSizes:
    q, k = (_largest(n) for n in (num_q, length))
    return kernels.BlockSizes(
        block_q=q, block_kv=k, block_kv_compute=k, block_q_dkv=q, block_kv_dkv=k,
        block_kv_dkv_compute=k, block_q_dq=q, block_kv_dq=k,
    )  # fmt: skip


def _largest(length: int) -> int:
    """The largest block that divides a length."""
    return max(n for n in range(LANES, BLOCK + 1, LANES) if length % n == 0)
