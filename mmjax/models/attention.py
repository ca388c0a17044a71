"""Attention: positions, the one rule of visibility, and who computes it."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

from mmjax import console
from mmjax.models import choose, chunked, kernels
from mmjax.parallel import mesh as mesh_lib
from mmjax.typing import NUM_AXES, Array, General, InOrder, OneSegment, Tokens


class Visibility(NamedTuple):
    """The integers of a view from which every mask is made, each [B, L]."""

    segment_BL: Array
    stream_BL: Array
    order_BL: Array
    rule: General | OneSegment | InOrder = General()


def visibility(tokens: Tokens) -> Visibility:
    """Segments, streams and orders of a view."""
    return Visibility(tokens.segment_BL, tokens.stream_BL, tokens.order_BL, tokens.rule)


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
      implementation: by name; `auto` takes what suits the devices of the mesh, and a kernel that
        does not compute this falls back to `chunked` (see `choose`).
      query_block: of `chunked`, queries and keys whose scores are in memory at a time.
    """
    if implementation == "full":
        mask = visible(query, key, causal=causal, isolate=isolate)
        return kernels.full(q_BQHG, k_BLKG, v_BLKG, mask)
    platform = mesh_lib.platform()
    asked = _asked(q_BQHG, k_BLKG, query, key, causal=causal, isolate=isolate)
    name = choose.chosen(implementation, platform, asked)
    if implementation not in ("auto", name):
        why = choose.refusal(implementation, platform, asked)
        console.say_once(f"attention={implementation!r} is computed by {name!r} here: {why}")
    if name == "cudnn" and not kernels.has_cudnn():
        name = "chunked"  # so is traced what is planned without a GPU, where both keep the same
        if jax.default_backend() == "gpu":
            console.say_once("attention='chunked' stands in for 'cudnn': cuDNN is not installed")
    interpret = platform == "cpu"
    if name != "chunked" and interpret:
        console.say_once(f"attention={name!r} is interpreted on cpu, which is slow; 'auto' is not")
    q_marks = _marks(query, -1, causal=causal, isolate=isolate)
    k_marks = _marks(key, 0, causal=causal, isolate=isolate)
    compute = {
        "chunked": functools.partial(chunked.attention, block=query_block),
        "pallas": functools.partial(kernels.pallas, interpret=interpret),
        "splash": functools.partial(
            kernels.splash, causal=causal, is_self=_is_self(query, key), interpret=interpret
        ),
        "cudnn": functools.partial(kernels.cudnn, causal=causal),
    }[name]
    return _on_shards(compute, q_BQHG, k_BLKG, v_BLKG, q_marks, k_marks)


def _asked(q_BQHG, k_BLKG, query: Visibility, key: Visibility, *, causal, isolate) -> choose.Asked:
    (num_q, num_heads, width), (num_k, kv_heads) = q_BQHG.shape[1:], k_BLKG.shape[1:3]
    rules = (query.rule, key.rule)
    if causal and not _is_self(query, key):  # slots of two views do not compare
        rules = (General(), General())
    return choose.Asked(
        num_q, num_k, num_heads, kv_heads, width, q_BQHG.dtype.name, causal, isolate, *rules
    )


def _is_self(query: Visibility, key: Visibility) -> bool:
    return all(a is b for a, b in zip(query[:3], key[:3], strict=True))


def _marks(x: Visibility, padding: int, *, causal: bool, isolate: bool) -> Array:
    """What kernels compare, int32 [B, 1 or 2, L]: segment, with the stream in it if that isolates
    (both are far below 2^15), `padding` where there is no token; and the order."""
    number = x.segment_BL << 16 | x.stream_BL if isolate else x.segment_BL
    number = jnp.where(x.segment_BL != 0, number, padding)
    return jnp.stack([number, x.order_BL] if causal else [number], axis=1)


def _on_shards(compute: Callable[..., Array], q, k, v, q_marks, k_marks) -> Array:
    """`compute` over the rows and heads of each device: no partitioner divides a kernel."""
    mesh = jax.sharding.get_abstract_mesh()
    manual = jax.sharding.AxisType.Manual
    kinds = zip(mesh.axis_names, mesh.axis_types, strict=True)
    size = {name: mesh.shape[name] for name, kind in kinds if kind != manual}
    if math.prod(size.values()) == 1:
        return compute(q, k, v, q_marks, k_marks)
    rows: tuple[str, ...] | None = tuple(name for name in mesh_lib.BATCH_AXES if name in size)
    if q.shape[0] % math.prod(size[name] for name in rows):
        rows = None  # each device computes all of them
    heads = "tensor" if "tensor" in size else None
    if heads and any(x.shape[2] % size[heads] for x in (q, k)):
        heads = None
    tokens, marks = (jax.sharding.PartitionSpec(*x) for x in ((rows, None, heads, None), (rows,)))
    return jax.shard_map(
        compute, in_specs=(tokens, tokens, tokens, marks, marks), out_specs=tokens,
        axis_names=set(size), check_vma=False,
    )(q, k, v, q_marks, k_marks)  # fmt: skip


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
