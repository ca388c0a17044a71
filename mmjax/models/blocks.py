"""Blocks: norm, attention, feed-forward, experts; how they follow each other: transformer.py."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from mmjax.models import attention, fused, moe, plan
from mmjax.parallel import rules
from mmjax.typing import Array, Tokens


class ModelState(nnx.Variable):
    """State of a router or a codebook, carried across steps without gradient."""


class Encoded(NamedTuple):
    """Output of a lane: features, the tokens they belong to, and what must not get lost."""

    x_BLD: Array
    tokens: Tokens
    record: dict
    captured: dict


class KVCache(NamedTuple):
    """Keys and values of one block: of the tokens so far, and of the lane that it reads."""

    own: tuple[Array, Array]  # [B, L, K, G], keys before rotation
    memory: tuple[Array, Array] | None = None


def param(rngs: nnx.Rngs, shape, axes, fan_in: int, reduce=(), gain: float = 1.0) -> nnx.Param:
    """A normal matrix of scale gain / sqrt(fan_in); `reduce` = input dims, for the optimizer."""
    value = jax.random.normal(rngs.params(), shape) * (gain * fan_in**-0.5)
    return nnx.Param(value, axes=axes, reduce=reduce)


class Norm(nnx.Module):
    """RMS (Zhang & Sennrich 2019) or layer norm with a weight, in float32."""

    def __init__(self, width: int, kind: str, eps: float, axis: str = "embed"):
        self.kind, self.eps = kind, eps
        self.scale = nnx.Param(jnp.ones((width,)), axes=(axis,), reduce=())

    def __call__(self, x):
        if self.kind == "layer":
            y = x.astype(jnp.float32)
            y = y - jnp.mean(y, axis=-1, keepdims=True)
            return fused.rms_norm(y, self.scale[...], self.eps).astype(x.dtype)
        return fused.rms_norm(x, self.scale[...], self.eps)


class Attention(nnx.Module):
    """Self- or cross-attention with QK-norm and rotary positions where asked for."""

    def __init__(self, config: plan.Transformer, rngs: nnx.Rngs, gain: float):
        width, heads, kv, g = config.width, config.num_heads, config.kv_heads, config.head_width
        self.rotary = config.position == "rotary"
        self.max_wavelength, self.query_block = config.max_wavelength, config.query_block
        self.query = param(rngs, (width, heads, g), ("embed", "heads", "head_dim"), width, (0,))
        self.key = param(rngs, (width, kv, g), ("embed", "kv", "head_dim"), width, (0,))
        self.value = param(rngs, (width, kv, g), ("embed", "kv", "head_dim"), width, (0,))
        self.out = param(
            rngs, (heads, g, width), ("heads", "head_dim", "embed"), heads * g, (0, 1), gain
        )
        self.qk_norm = config.qk_norm
        if config.qk_norm:
            self.query_norm = Norm(g, "rms", config.norm_eps, "head_dim")
            self.key_norm = Norm(g, "rms", config.norm_eps, "head_dim")

    def keys(self, memory_BLD: Array) -> tuple[Array, Array]:
        """Keys, before rotation, and values [B, L, K, G] of what is looked at."""
        dtype = memory_BLD.dtype
        k = fused.project(memory_BLD, self.key[...].astype(dtype))
        v = fused.project(memory_BLD, self.value[...].astype(dtype))
        return (self.key_norm(k) if self.qk_norm else k), v

    def read(self, x_BQD, k, v, query: Tokens, key: Tokens, *, causal, isolate):
        """What queries make of keys and values, [B, Q, D]."""
        dtype = x_BQD.dtype
        q = fused.project(x_BQD, self.query[...].astype(dtype))
        if self.qk_norm:
            q = self.query_norm(q)
        if self.rotary:
            g = q.shape[-1]
            q = attention.rotate(q, attention.angles(query.position_BLA, g, self.max_wavelength))
            k = attention.rotate(k, attention.angles(key.position_BLA, g, self.max_wavelength))
        out = attention.attend(
            q, k, v, attention.visibility(query), attention.visibility(key),
            causal=causal, isolate=isolate, query_block=self.query_block,
        )  # fmt: skip
        return fused.project(out, self.out[...].astype(dtype), inputs=2)

    def __call__(self, x_BQD, memory_BLD, query: Tokens, key: Tokens, *, causal, isolate):
        k, v = self.keys(memory_BLD)
        return self.read(x_BQD, k, v, query, key, causal=causal, isolate=isolate)


class Mlp(nnx.Module):
    """SwiGLU (Shazeer 2020) without biases."""

    def __init__(self, width: int, inner: int, rngs: nnx.Rngs, gain: float):
        self.up = param(rngs, (width, inner), ("embed", "mlp"), width, (0,))
        self.gate = param(rngs, (width, inner), ("embed", "mlp"), width, (0,))
        self.down = param(rngs, (inner, width), ("mlp", "embed"), inner, (0,), gain)

    def __call__(self, x, tokens, group_rows):
        del tokens, group_rows
        up, gate, down = (w[...].astype(x.dtype) for w in (self.up, self.gate, self.down))
        out = fused.swiglu(x.reshape(-1, x.shape[-1]), up, gate, down)
        return out.reshape(x.shape), {}


class Experts(nnx.Module):
    """SwiGLU experts behind a router; logits, routing and statistics are float32."""

    def __init__(self, config: plan.MoE, width, inner, streams: int, rngs: nnx.Rngs, gain: float):
        self.config, self.streams = config, streams
        num = config.num_experts
        self.router = param(rngs, (width, num), ("embed", "unsharded"), width)
        axes = ("expert", "embed", "mlp")
        self.up = param(rngs, (num, width, inner), axes, width, (1,))
        self.gate = param(rngs, (num, width, inner), axes, width, (1,))
        down = ("expert", "mlp", "embed")
        self.down = param(rngs, (num, inner, width), down, inner, (1,), gain)
        self.bias = ModelState(jnp.zeros((num,)), axes=("unsharded",))

    def __call__(self, x_BLD, tokens: Tokens, group_rows: int):
        groups = x_BLD.shape[0] // group_rows
        x_WTD = x_BLD.reshape(groups, -1, x_BLD.shape[-1])
        stream_WT = tokens.stream_BL.reshape(groups, -1)
        logits_WTE = jnp.matmul(x_WTD.astype(jnp.float32), self.router[...])
        bias_E = jax.lax.stop_gradient(self.bias[...])
        routing = self.config.router.route(logits_WTE, bias_E, stream_WT, stream_WT > 0)
        up, gate, down = (w[...].astype(x_BLD.dtype) for w in (self.up, self.gate, self.down))
        out = moe.expert_ffn(x_WTD, routing, up, gate, down, self.config.block_rows)
        load_ME = moe.load_by_stream(routing, stream_WT, self.streams, self.config.num_experts)
        stats = {"load": jax.lax.stop_gradient(load_ME)}
        if not isinstance(routing.aux_loss, float):
            stats["aux_loss"] = routing.aux_loss
        return out.reshape(x_BLD.shape), stats


class BlockModule(nnx.Module):
    """Pre-norm block: self-attention, cross-attention if it reads a lane, feed-forward."""

    def __init__(self, config: plan.Transformer, block: plan.Block, streams: int, rngs: nnx.Rngs):
        self.block = block
        depth = sum(len(r.pattern) * r.repeats for r in config.layer_plan())
        gain = (2.0 * depth) ** -0.5
        norm = (config.width, config.norm, config.norm_eps)
        self.norm1, self.attention = Norm(*norm), Attention(config, rngs, gain)
        if block.reads:
            self.cross_norm, self.memory_norm = Norm(*norm), Norm(*norm)
            self.cross = Attention(config, rngs, gain)
        self.norm2 = Norm(*norm)
        if block.moe is None:
            self.mlp = Mlp(config.width, config.ffn_width, rngs, gain)
        else:
            inner = config.expert_width(block.moe)
            self.mlp = Experts(block.moe, config.width, inner, streams, rngs, gain)

    def __call__(self, x_BLD, tokens: Tokens, memory: Encoded | None, group_rows: int):
        block = self.block
        with jax.named_scope("attention"):
            y = self.norm1(x_BLD)
            y = self.attention(y, y, tokens, tokens, causal=block.causal, isolate=block.isolate)
            x_BLD = rules.constrain_batch(x_BLD + y)
        if block.reads:
            assert memory is not None
            with jax.named_scope("cross_attention"):
                y, m = self.cross_norm(x_BLD), self.memory_norm(memory.x_BLD)
                y = self.cross(y, m, tokens, memory.tokens, causal=False, isolate=False)
                x_BLD = x_BLD + y
        with jax.named_scope("experts" if block.moe else "feed_forward"):
            y, stats = self.mlp(self.norm2(x_BLD), tokens, group_rows)
        return rules.constrain_batch(x_BLD + y), stats

    def memory_keys(self, memory_BLD) -> tuple[Array, Array]:
        """Keys and values of the lane that this block reads; they stay while it is decoded."""
        return self.cross.keys(self.memory_norm(memory_BLD))

    def decode_step(
        self, x_BQD, tokens: Tokens, kept: KVCache, cached: Tokens, at, memory, group_rows
    ):
        """The block for tokens in slots from `at` on, behind what is kept; also their keys.

        `cached` are the tokens of all slots, these included; `memory` those of the lane it reads.
        """
        block, new = self.block, self.attention.keys(y := self.norm1(x_BQD))
        put = jax.lax.dynamic_update_slice_in_dim
        k, v = (put(old, n, at, axis=1) for old, n in zip(kept.own, new, strict=True))
        hides = {"causal": block.causal, "isolate": block.isolate}
        x = rules.constrain_batch(x_BQD + self.attention.read(y, k, v, tokens, cached, **hides))
        if block.reads:
            assert kept.memory is not None
            y, (k, v) = self.cross_norm(x), kept.memory
            x = x + self.cross.read(y, k, v, tokens, memory, causal=False, isolate=False)
        y, _ = self.mlp(self.norm2(x), tokens, group_rows)
        return rules.constrain_batch(x + y), new
