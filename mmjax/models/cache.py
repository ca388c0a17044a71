"""Decoding with a cache: each token is computed once, behind the keys of those before it.

    cache = init_cache(model, rows=8, length=128, memory=model.encode(tokens))
    x_BQD, cache = decode_step(model, next_tokens, cache)

Keys are kept before rotation, with positions, segments, streams and orders beside them; keys of a
memory are computed once. The result is that of one `decode` over all tokens, provided that no
token may see a later one (tokens of one call see one another as their orders say).
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from mmjax.models import blocks
from mmjax.parallel import rules
from mmjax.typing import NUM_AXES, Array, Tokens

__all__ = ["Cache", "decode_step", "init_cache"]


class Cache(NamedTuple):
    """What has been computed of a lane; a pytree of static shapes."""

    runs: dict[int, tuple[blocks.KVCache, ...]]  # by number of the run and place in its pattern
    tokens: Tokens  # of the slots [B, L]; padding where nothing is yet
    memory: Tokens | None  # of the lane that is read
    filled: Array  # int32: slots in use


def init_cache(
    model, *, rows: int, length: int, memory: blocks.Encoded | None = None, lane: str = ""
) -> Cache:
    """An empty cache of `length` slots.

    Args:
      model: `mmjax.models.transformer.Model` with its parameters.
      memory: what the lane reads, from `model.encode`; None for a lane that reads none.
    """
    if memory is not None:
        lane, memory = model.read_by(lane, memory)
    shape = (rows, length)
    none, position = jnp.zeros(shape, jnp.int32), jnp.zeros((*shape, NUM_AXES), jnp.float32)
    tokens = Tokens(none, none, none, none, position)
    kept = {}
    for r, run in _runs(model, lane):
        size = (run.repeats, *shape, model.config.kv_heads, model.config.head_width)
        empty = jnp.zeros(size, model.compute_dtype)
        crosses = [_memory_keys(b, memory) for b in model.runs[r].blocks]
        kept[r] = tuple(blocks.KVCache((empty, empty), cross) for cross in crosses)
    seen = None if memory is None else memory.tokens._replace(values={})
    return Cache(kept, tokens, seen, jnp.zeros((), jnp.int32))


def decode_step(model, tokens: Tokens, cache: Cache, lane: str = "") -> tuple[Array, Cache]:
    """Features [B, Q, D] of the next Q tokens of each row, and the cache with them."""
    if cache.memory is not None:
        lane = lane or next(iter(model.config.read_lanes()))
    lane = lane or model.config.lane_names()[0]
    x, at = rules.constrain_batch(model.embed(tokens)), cache.filled
    put = lambda old, new: jax.lax.dynamic_update_slice_in_dim(old, new, at, axis=1)
    cached = jax.tree.map(put, cache.tokens, tokens._replace(values={}))
    group_rows, kept = model.group_rows or x.shape[0], {}
    for r, _ in _runs(model, lane):
        parts = [nnx.split(b) for b in model.runs[r].blocks]

        def body(x, layer, parts=parts):
            new = []
            for (graph, _), (state, kept) in zip(parts, layer, strict=True):
                block = nnx.merge(graph, state)
                x, keys = block.decode_step(x, tokens, kept, cached, at, cache.memory, group_rows)
                new.append(keys)
            return x, new

        states = [nnx.as_pure(state) for _, state in parts]
        x, new = jax.lax.scan(body, x, list(zip(states, cache.runs[r], strict=True)))
        kept[r] = tuple(
            old._replace(own=tuple(_put(o, n, at) for o, n in zip(old.own, keys, strict=True)))
            for old, keys in zip(cache.runs[r], new, strict=True)
        )
    x = model.final_norms[model.config.lane_names().index(lane)](x)
    return x, Cache(kept, cached, cache.memory, at + x.shape[1])


def _put(old_NBLKG: Array, new_NBQKG: Array, at: Array) -> Array:
    return jax.lax.dynamic_update_slice_in_dim(old_NBLKG, new_NBQKG, at, axis=2)


def _runs(model, lane: str):
    lane = lane or model.config.lane_names()[0]
    plan = model.config.layer_plan()
    return [(r, run) for r, run in enumerate(plan) if run.pattern[0].lane == lane]


def _memory_keys(stacked, memory: blocks.Encoded | None):
    """Keys and values [N, B, L, K, G] of a memory for blocks stacked over N repeats."""
    if memory is None:
        return None
    graph, state = nnx.split(stacked)
    one = lambda state: nnx.merge(graph, state).memory_keys(memory.x_BLD)
    return jax.lax.map(one, nnx.as_pure(state))
