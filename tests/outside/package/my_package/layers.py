"""A block."""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp
from flax import nnx

from mmjax.models import BlockConfig
from mmjax.models.module import BlockModule


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunningMean(BlockConfig):
    """x plus a gate times the mean of the tokens up to this one."""

    scale: float = 1.0

    def make(self, stack, rngs):
        return RunningMeanModule(stack.width, self.scale)

    def flops_per_token(self, stack, length, read_length=0):
        return 3.0 * stack.width


class RunningMeanModule(BlockModule):
    def __init__(self, width, scale):
        self.scale = scale
        self.gate = nnx.Param(jnp.zeros((width,)), axes=("embed",), reduce=())

    def __call__(self, x_BLD, call):
        count_1L1 = jnp.arange(1, x_BLD.shape[1] + 1, dtype=x_BLD.dtype)[None, :, None]
        gate = (self.scale * self.gate[...]).astype(x_BLD.dtype)[None, None]
        return x_BLD + gate * jnp.cumsum(x_BLD, axis=1) / count_1L1, {}
