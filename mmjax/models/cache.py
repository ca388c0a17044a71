"""Decoding with a cache: each token is computed once, after what is kept of those before it.

    cache = init_cache(model, rows=8, length=128, memory=model.encode(tokens))
    x_BQD, cache = decode_step(model, next_tokens, cache)

The result is that of one `decode` over all tokens, provided that no token may see a later one
(tokens of one call see one another as their orders say). What a block keeps is its own affair
(`module.Cache`); positions, segments, streams and orders of all tokens lie beside it.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from mmjax.models import contracts, module
from mmjax.parallel import rules
from mmjax.typing import NUM_AXES, Array, General, Tokens

__all__ = ["LaneCache", "decode_step", "init_cache", "take_rows"]


class LaneCache(NamedTuple):
    """What has been computed of a lane; a pytree of static shapes.

    Fields:
      runs: caches by number of the run and place in its pattern, each leaf stacked over repeats.
      tokens: of the slots [B, L]; padding where nothing is yet. memory: of the lane that is read.
      filled: int32, slots in use.
    """

    runs: dict[int, dict[int, module.Cache]]
    tokens: Tokens
    memory: Tokens | None
    filled: Array


def init_cache(
    model, *, rows: int, length: int, memory: module.Encoded | None = None, lane: str = ""
) -> LaneCache:
    """An empty cache of `length` slots.

    Args:
      model: `mmjax.models.transformer.Model` with its parameters.
      memory: what the lane reads, from `model.encode`; None for a lane that reads none.

    Raises ValueError, with its class, for a block that cannot decode with a cache.
    """
    if memory is not None:
        lane, memory = model.read_by(lane, memory)
    shape, dtype = (rows, length), jnp.dtype(model.compute_dtype)
    none, position = jnp.zeros(shape, jnp.int32), jnp.zeros((*shape, NUM_AXES), jnp.float32)
    tokens = Tokens(none, none, none, none, position)
    runs: dict[int, dict[int, module.Cache]] = {}
    for r, places in _places(model, lane).items():
        for p in places:
            graph, state = nnx.split(model.runs[r].blocks[p])

            def one(state, graph=graph):
                return nnx.merge(graph, state).init_cache(rows, length, dtype, memory)

            runs.setdefault(r, {})[p] = jax.lax.map(one, nnx.as_pure(state))
    seen = None if memory is None else memory.tokens._replace(values={})
    return LaneCache(runs, tokens, seen, jnp.zeros((), jnp.int32))


def decode_step(model, tokens: Tokens, cache: LaneCache, lane: str = "") -> tuple[Array, LaneCache]:
    """Features [B, Q, D] of the next Q tokens of each row, and the cache with them."""
    if cache.memory is not None:
        lane = lane or next(iter(model.config.read_lanes()))
    lane = lane or model.config.lane_names()[0]
    x, filled = rules.constrain_batch(model.embed(tokens)), cache.filled
    tokens = model.placed(tokens)
    put = lambda old, new: jax.lax.dynamic_update_slice_in_dim(old, new, filled, axis=1)
    cached = jax.tree.map(put, cache.tokens, tokens._replace(values={}, rule=General()))
    group_rows, runs = model.group_rows or x.shape[0], {}
    call = module.DecodeCall(tokens, cached, filled, group_rows, cache.memory)
    for r, places in _places(model, lane).items():
        parts = [nnx.split(model.runs[r].blocks[p]) for p in places]
        blocks = [model.config.layer_plan()[r].pattern[p] for p in places]

        def body(x, layer, parts=parts, blocks=blocks):
            new = []
            for (graph, _), block, (state, kept) in zip(parts, blocks, layer, strict=True):
                y, own = nnx.merge(graph, state).decode_step(x, call, kept)
                contracts.check_output(block, x, y, {})
                x = y
                new.append((own.slots, own.state))
            return x, new

        states = [nnx.as_pure(state) for _, state in parts]
        layers = list(zip(states, cache.runs[r].values(), strict=True))
        x, new = jax.lax.scan(body, x, layers)
        runs[r] = {
            p: module.Cache(jax.tree.map(_put(filled), old.slots, slots), state, old.memory)
            for (p, old), (slots, state) in zip(cache.runs[r].items(), new, strict=True)
        }
    x = model.final_norms[model.config.lane_names().index(lane)](x)
    return x, LaneCache(runs, cached, cache.memory, filled + x.shape[1])


def take_rows(cache: LaneCache, row_B: Array) -> LaneCache:
    """The cache whose row i is row `row_B[i]` of this one; memories, which beams share, stay."""
    take = lambda tree: jax.tree.map(lambda x: x[:, row_B], tree)
    runs = {
        r: {p: c._replace(slots=take(c.slots), state=take(c.state)) for p, c in run.items()}
        for r, run in cache.runs.items()
    }
    return cache._replace(runs=runs)


def _put(filled: Array):
    """Writes new entries [N, B, ..., Q, G] into slots [N, B, ..., L, G]."""
    return lambda old, new: jax.lax.dynamic_update_slice_in_dim(
        old, new.astype(old.dtype), filled, axis=old.ndim - 2
    )


def _places(model, lane: str) -> dict[int, list[int]]:
    """Places of the blocks of a lane in the patterns, by run."""
    lane = lane or model.config.lane_names()[0]
    plan = enumerate(model.config.layer_plan())
    places = {r: [p for p, b in enumerate(run.pattern) if b.lane == lane] for r, run in plan}
    return {r: found for r, found in places.items() if found}
