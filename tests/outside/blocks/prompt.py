"""Prompt tokens that every token attends to, behind a gate at zero (LLaMA-Adapter, Zhang 2023)."""

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx

from mmjax.models.block import BlockConfig
from mmjax.models.module import BlockModule, Cache, param


@dataclasses.dataclass(frozen=True, kw_only=True)
class Prompt(BlockConfig):
    """x + tanh(g) softmax(x p^T) p over `num` learned vectors p."""

    num: int = 4

    def make(self, stack, rngs):
        return PromptModule(self.num, stack.width, rngs)

    def flops_per_token(self, stack, length, read_length=0):
        return 4.0 * self.num * stack.width

    @property
    def is_causal(self):
        return True


class PromptModule(BlockModule):
    def __init__(self, num, width, rngs):
        self.prompt = param(rngs, (num, width), ("unsharded", "embed"), width)
        self.gate = nnx.Param(jnp.zeros((1,)), axes=("unsharded",), reduce=())

    def _added(self, x):
        prompt = self.prompt[...].astype(x.dtype)
        share = jax.nn.softmax(jnp.einsum("BLD,ND->BLN", x, prompt).astype(jnp.float32), axis=-1)
        y = jnp.einsum("BLN,ND->BLD", share.astype(x.dtype), prompt)
        return x + jnp.tanh(self.gate[...]).astype(x.dtype).reshape(1, 1, 1) * y

    def __call__(self, x_BLD, call):
        return self._added(x_BLD), {}

    def init_cache(self, rows, length, dtype, memory):
        return Cache()

    def decode_step(self, x_BQD, call, cache):
        return self._added(x_BQD), Cache()
