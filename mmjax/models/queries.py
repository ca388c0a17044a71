"""Learned queries: the module of `layers.Queries`, and the view of a lane of them."""

from __future__ import annotations

import jax.numpy as jnp
from flax import nnx

from mmjax.models import layers
from mmjax.models.block import Stack
from mmjax.models.module import BlockModule, Cache, param
from mmjax.typing import NUM_AXES, Tokens


class QueriesModule(BlockModule):
    """x + a vector by slot; slots after the last vector stay as they are."""

    def __init__(self, config: layers.Queries, stack: Stack, rngs: nnx.Rngs):
        self.query = param(rngs, (config.num, stack.width), ("unsharded", "embed"), stack.width)

    def __call__(self, x_BLD, call):
        del call
        return self._added(x_BLD, 0), {}

    def _added(self, x_BLD, first):
        query = self.query[...].astype(x_BLD.dtype)
        slot_L = first + jnp.arange(x_BLD.shape[1])
        return x_BLD + jnp.take(query, slot_L, axis=0, mode="fill", fill_value=0)[None]

    def init_cache(self, rows, length, dtype, memory):
        return Cache()

    def decode_step(self, x_BQD, call, cache):
        return self._added(x_BQD, call.filled), Cache()


def tokens(segment_B, stream: int, num: int) -> Tokens:
    """The view [B, num] of a lane of queries, one for each sample `segment_B` (0 = no sample).

    `stream` is the number of a stream, whose mask vector the queries begin with.
    """
    segment = jnp.broadcast_to(segment_B[:, None], (len(segment_B), num)).astype(jnp.int32)
    zero = jnp.zeros_like(segment)
    place = jnp.broadcast_to(
        jnp.arange(num, dtype=jnp.float32)[None, :, None], (*zero.shape, NUM_AXES)
    )
    return Tokens(zero, jnp.where(segment > 0, stream, 0), segment, zero, place)
