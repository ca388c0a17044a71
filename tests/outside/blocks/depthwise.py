"""A causal depthwise convolution along a row (as in Conformer, Gulati et al. 2020)."""

import dataclasses

import jax.numpy as jnp

from mmjax.models.block import BlockConfig
from mmjax.models.module import BlockModule, Cache, param


@dataclasses.dataclass(frozen=True, kw_only=True)
class Depthwise(BlockConfig):
    """x + conv(x), each feature by itself."""

    taps: int = 3

    def make(self, stack, rngs):
        return DepthwiseModule(self.taps, stack.width, rngs)

    def flops_per_token(self, stack, length, read_length=0):
        return 2.0 * self.taps * stack.width

    @property
    def is_causal(self):
        return True


class DepthwiseModule(BlockModule):
    def __init__(self, taps, width, rngs):
        self.taps = taps
        self.kernel = param(rngs, (taps, width), ("unsharded", "embed"), taps)

    def _convolved(self, before_BTD, x_BLD):
        whole = jnp.concatenate([before_BTD, x_BLD], axis=1)
        kernel, length = self.kernel[...].astype(x_BLD.dtype), x_BLD.shape[1]
        y = sum(kernel[i][None, None] * whole[:, i : i + length] for i in range(self.taps))
        return x_BLD + y, whole[:, length:]

    def __call__(self, x_BLD, call):
        rows, _, width = x_BLD.shape
        return self._convolved(jnp.zeros((rows, self.taps - 1, width), x_BLD.dtype), x_BLD)[0], {}

    def init_cache(self, rows, length, dtype, memory):
        return Cache(state=jnp.zeros((rows, self.taps - 1, self.kernel.shape[-1]), dtype))

    def decode_step(self, x_BQD, call, cache):
        x, tail = self._convolved(cache.state, x_BQD)
        return x, Cache(state=tail)
