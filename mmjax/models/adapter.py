"""Bottleneck adapters: the module of `layers.Adapter`."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx

from mmjax.models import blocks, contracts, layers
from mmjax.models.block import Stack
from mmjax.models.module import BlockModule, param


class Bottleneck(nnx.Module):
    """x + up(gelu(down(norm(x)))), with up = 0 at first."""

    def __init__(self, inner: int, stack: Stack, rngs: nnx.Rngs):
        width = stack.width
        self.norm = blocks.Norm(width, stack.norm, stack.norm_eps)
        self.down = param(rngs, (width, inner), ("embed", "mlp"), width, (0,))
        self.up = nnx.Param(jnp.zeros((inner, width)), axes=("mlp", "embed"), reduce=(0,))

    def __call__(self, x):
        down, up = (w[...].astype(x.dtype) for w in (self.down, self.up))
        return x + jnp.matmul(jax.nn.gelu(jnp.matmul(self.norm(x), down)), up)


class AdapterModule(BlockModule):
    """A block, and what follows it."""

    def __init__(self, config: layers.Adapter, stack: Stack, rngs: nnx.Rngs):
        self.block = contracts.made(config.block, stack, rngs)
        self.adapter = Bottleneck(config.width, stack, rngs)

    def __call__(self, x_BLD, call):
        x, record = self.block(x_BLD, call)
        return self.adapter(x), record

    def init_cache(self, rows, length, dtype, memory):
        return self.block.init_cache(rows, length, dtype, memory)

    def decode_step(self, x_BQD, call, cache):
        x, new = self.block.decode_step(x_BQD, call, cache)
        return self.adapter(x), new
