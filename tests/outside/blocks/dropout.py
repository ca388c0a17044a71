"""Any block with dropout on what it adds (Srivastava et al. 2014)."""

import dataclasses

import jax
import jax.numpy as jnp

from mmjax.models import Block
from mmjax.models.block import BlockConfig
from mmjax.models.module import BlockModule


@dataclasses.dataclass(frozen=True, kw_only=True)
class Dropout(BlockConfig):
    """x + dropout(block(x) - x) while it trains, block(x) otherwise."""

    rate: float = 0.1
    causal: bool = False
    isolate: bool = False

    def inner(self):
        fields = {"causal": self.causal, "isolate": self.isolate}
        return Block(lane=self.lane, reads=self.reads, **fields)

    def make(self, stack, rngs):
        return DropoutModule(self.rate, self.inner().make(stack, rngs))

    def flops_per_token(self, stack, length, read_length=0):
        return self.inner().flops_per_token(stack, length, read_length)

    @property
    def draws(self):
        return True

    @property
    def is_causal(self):
        return self.causal

    def canonical(self, path):
        return path.removeprefix("block/")


class DropoutModule(BlockModule):
    def __init__(self, rate, block):
        self.rate, self.block = rate, block

    def __call__(self, x_BLD, call):
        y, record = self.block(x_BLD, call)
        if call.key is not None:
            keep = jax.random.bernoulli(call.key, 1 - self.rate, x_BLD.shape)
            y = x_BLD + jnp.where(keep, (y - x_BLD) / (1 - self.rate), 0).astype(y.dtype)
        return y, record

    def init_cache(self, rows, length, dtype, memory):
        return self.block.init_cache(rows, length, dtype, memory)

    def decode_step(self, x_BQD, call, cache):
        return self.block.decode_step(x_BQD, call, cache)
