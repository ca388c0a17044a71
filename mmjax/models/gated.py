"""Gated cross-attention: the module of `layers.GatedCrossAttention`."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx

from mmjax.models import attention, blocks, layers
from mmjax.models.block import Stack
from mmjax.models.module import BlockModule, Cache, Call, DecodeCall, Encoded
from mmjax.parallel import rules


class GatedModule(BlockModule):
    """x + tanh(a) attend(norm(x), norm(m)), then x + tanh(b) feed_forward(norm(x))."""

    def __init__(self, block: layers.GatedCrossAttention, stack: Stack, rngs: nnx.Rngs):
        norm = (stack.width, stack.norm, stack.norm_eps)
        self.norm1, self.memory_norm = blocks.Norm(*norm), blocks.Norm(*norm)
        self.cross = blocks.Attention(stack, rngs)
        self.gate1 = nnx.Param(jnp.zeros((1,)), axes=("unsharded",), reduce=())
        self.has_ffn = block.ffn_width > 0
        if self.has_ffn:
            self.norm2 = blocks.Norm(*norm)
            self.mlp = blocks.Mlp(stack.width, block.ffn_width, rngs, stack.gain)
            self.gate2 = nnx.Param(jnp.zeros((1,)), axes=("unsharded",), reduce=())

    def __call__(self, x_BLD, call: Call):
        assert call.memory is not None
        with jax.named_scope("cross_attention"):
            m = self.memory_norm(call.memory.x_BLD)
            y = self.cross(self.norm1(x_BLD), m, call.tokens, call.memory.tokens)
        return self._rest(x_BLD, y, call), {}

    def _rest(self, x, y, call: Call | DecodeCall):
        x = x + _open(self.gate1, x) * y
        if self.has_ffn:
            y, _ = self.mlp(self.norm2(x), call.tokens, call.group_rows, None)
            x = x + _open(self.gate2, x) * y
        return rules.constrain_batch(x)

    def init_cache(self, rows, length, dtype, memory: Encoded | None) -> Cache:
        assert memory is not None
        return Cache(memory=self.cross.slots(self.memory_norm(memory.x_BLD), memory.tokens))

    def decode_step(self, x_BQD, call: DecodeCall, cache: Cache):
        assert call.memory is not None
        query, key = attention.visibility(call.tokens), attention.visibility(call.memory)
        seen = attention.visible(query, key, causal=False, isolate=False)
        y = self.cross.read_slots(self.norm1(x_BQD), (cache.memory,), call.tokens, (seen,))
        return self._rest(x_BQD, y, call), Cache()


def _open(gate: nnx.Param, x):
    return jnp.tanh(gate[...]).astype(x.dtype).reshape(1, 1, 1)
