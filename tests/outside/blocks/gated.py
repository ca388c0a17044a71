"""Gated cross-attention at zero (Flamingo), of parts that mmjax has."""

import dataclasses

import jax.numpy as jnp
from flax import nnx

from mmjax.models.block import BlockConfig
from mmjax.models.blocks import Attention, Norm
from mmjax.models.module import BlockModule, Cache


@dataclasses.dataclass(frozen=True, kw_only=True)
class Gated(BlockConfig):
    """x + tanh(g) attend(norm(x), memory)."""

    def make(self, stack, rngs):
        return GatedModule(stack, rngs)

    def flops_per_token(self, stack, length, read_length=0):
        return 8.0 * stack.width**2 + 4.0 * stack.width * read_length

    @property
    def is_causal(self):
        return True


class GatedModule(BlockModule):
    def __init__(self, stack, rngs):
        self.norm = Norm(stack.width, stack.norm, stack.norm_eps)
        self.attention = Attention(stack, rngs)
        self.gate = nnx.Param(jnp.zeros((1,)), axes=("unsharded",), reduce=())

    def _opened(self, x, y):
        return x + jnp.tanh(self.gate[...]).astype(x.dtype).reshape(1, 1, 1) * y

    def __call__(self, x_BLD, call):
        memory = call.memory
        y = self.attention(self.norm(x_BLD), memory.x_BLD, call.tokens, memory.tokens)
        return self._opened(x_BLD, y), {}

    def init_cache(self, rows, length, dtype, memory):
        return Cache(memory=(memory.x_BLD,))

    def decode_step(self, x_BQD, call, cache):
        y = self.attention(self.norm(x_BQD), cache.memory[0], call.tokens, call.memory)
        return self._opened(x_BQD, y), Cache()
