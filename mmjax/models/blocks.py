"""The ordinary block: norm, attention, feed-forward, experts; how blocks follow: transformer.py."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name

from mmjax.models import attention, contracts, fused, moe, plan, weights
from mmjax.models.block import Stack
from mmjax.models.module import BlockModule, Cache, Call, DecodeCall, Encoded, ModelState, param
from mmjax.parallel import rules
from mmjax.typing import Array, Tokens


class Norm(nnx.Module):
    """RMS (Zhang & Sennrich 2019) or layer norm with a weight, in float32."""

    def __init__(self, width: int, kind: str, eps: float, axis: str = "embed"):
        self.kind, self.eps = kind, eps
        self.scale = nnx.Param(jnp.ones((width,)), axes=(axis,), reduce=())

    def __call__(self, x):
        return fused.norm(x, self.scale[...], self.eps, self.kind == "layer")


class Attention(nnx.Module):
    """Self- or cross-attention with QK-norm and rotary positions where asked for."""

    def __init__(self, stack: Stack, rngs: nnx.Rngs):
        width, heads, kv, g = stack.width, stack.num_heads, stack.kv_heads, stack.head_width
        self.rotary, self.max_wavelength = stack.rotary, stack.max_wavelength
        self.implementation, self.query_block = stack.attention, stack.query_block
        self.query = param(rngs, (width, heads, g), ("embed", "heads", "head_dim"), width, (0,))
        self.key = param(rngs, (width, kv, g), ("embed", "kv", "head_dim"), width, (0,))
        self.value = param(rngs, (width, kv, g), ("embed", "kv", "head_dim"), width, (0,))
        out = ("heads", "head_dim", "embed")
        self.out = param(rngs, (heads, g, width), out, heads * g, (0, 1), stack.gain)
        self.qk_norm = stack.qk_norm
        if self.qk_norm:
            self.query_norm = Norm(g, "rms", stack.norm_eps, "head_dim")
            self.key_norm = Norm(g, "rms", stack.norm_eps, "head_dim")

    def keys(self, x_BLD: Array, tokens: Tokens) -> tuple[Array, Array]:
        """Keys, rotated to their positions, and values [B, L, K, G] of what is looked at."""
        k = fused.project(x_BLD, self.key[...])
        v = fused.project(x_BLD, self.value[...])
        k = self.key_norm(k) if self.qk_norm else k
        return self._rotated(k, tokens), v

    def queries(self, x_BQD: Array, tokens: Tokens) -> Array:
        """Queries [B, Q, H, G], rotated to their positions."""
        q = fused.project(x_BQD, self.query[...])
        return self._rotated(self.query_norm(q) if self.qk_norm else q, tokens)

    def _rotated(self, x_BLHG: Array, tokens: Tokens) -> Array:
        if not self.rotary:
            return x_BLHG
        width = x_BLHG.shape[-1]
        angle = attention.angles(tokens.position_BLA, width, self.max_wavelength)
        return attention.rotate(x_BLHG, angle)

    def __call__(
        self, x_BQD, memory_BLD, query: Tokens, key: Tokens, *, causal=False, isolate=False
    ) -> Array:
        """What tokens make of those that they see, [B, Q, D]."""
        k, v = self.keys(memory_BLD, key)
        out = attention.attend(
            self.queries(x_BQD, query), k, v, attention.visibility(query),
            attention.visibility(key), causal=causal, isolate=isolate,
            implementation=self.implementation, query_block=self.query_block,
        )  # fmt: skip
        return self._out(checkpoint_name(out, weights.ATTENTION))

    def _out(self, x_BQHG: Array) -> Array:
        return fused.project(x_BQHG, self.out[...], inputs=2)

    # ---- decoding: keys and values lie as [B, K, L, G], as the products of a step read them

    def init_slots(self, rows: int, length: int, dtype) -> tuple[Array, Array]:
        """Room for the keys and values of `length` tokens."""
        empty = jnp.zeros((rows, self.key.shape[-2], length, self.key.shape[-1]), dtype)
        return empty, empty

    def slots(self, x_BLD: Array, tokens: Tokens) -> tuple[Array, Array]:
        """`keys` as slots [B, K, L, G]."""
        k, v = self.keys(x_BLD, tokens)
        return jnp.swapaxes(k, 1, 2), jnp.swapaxes(v, 1, 2)

    def read_slots(self, x_BQD, parts, query: Tokens, masks) -> Array:
        """What tokens make of keys and values in several parts, each with a mask [B, Q, L]."""
        out = attention.attend_parts(self.queries(x_BQD, query), parts, masks)
        return self._out(out)


class Mlp(nnx.Module):
    """SwiGLU (Shazeer 2020) without biases."""

    def __init__(self, width: int, inner: int, rngs: nnx.Rngs, gain: float):
        self.up = param(rngs, (width, inner), ("embed", "mlp"), width, (0,))
        self.gate = param(rngs, (width, inner), ("embed", "mlp"), width, (0,))
        self.down = param(rngs, (inner, width), ("mlp", "embed"), inner, (0,), gain)

    def __call__(self, x_BLD, tokens: Tokens, group_rows: int, key: Array | None):
        del tokens, group_rows, key
        up, gate, down = (w[...] for w in (self.up, self.gate, self.down))
        out = fused.swiglu(x_BLD.reshape(-1, x_BLD.shape[-1]), up, gate, down)
        return out.reshape(x_BLD.shape), {}


class Experts(nnx.Module):
    """SwiGLU experts behind a router; logits, routing and statistics are float32."""

    def __init__(self, config: plan.MoE, stack: Stack, inner: int, rngs: nnx.Rngs):
        self.config, self.streams = config, stack.num_streams
        width, gain = stack.width, stack.gain
        num = config.num_experts
        made = {}
        if config.router.uses_logits:
            made = config.router.init_params(rngs.params(), width, num)
        axes = ("expert", "embed", "mlp")
        self.up = param(rngs, (num, width, inner), axes, width, (1,))
        self.gate = param(rngs, (num, width, inner), axes, width, (1,))
        down = ("expert", "mlp", "embed")
        self.down = param(rngs, (num, inner, width), down, inner, (1,), gain)
        if config.shared_width:
            self.shared = Mlp(width, config.shared_width, rngs, gain)
        state = config.router.init_state(num, stack.num_streams)
        self.param_names, self.state_names = tuple(made), tuple(state)
        for name, (value, axes) in made.items():
            self._add("init_params", name, nnx.Param(value, axes=axes, reduce=()))
        for name, value in state.items():
            axes = ("unsharded",) * value.ndim
            self._add("init_state", name, ModelState(value, axes=axes))

    def _add(self, method: str, name: str, variable: nnx.Variable) -> None:
        if hasattr(self, name):
            raise ValueError(
                f"{type(self.config.router).__name__}: {method}() has an array {name!r}, but"
                " experts have something of that name; rename it."
            )
        setattr(self, name, variable)

    def __call__(self, x_BLD, tokens: Tokens, group_rows: int, key: Array | None):
        groups, router = x_BLD.shape[0] // group_rows, self.config.router
        x_WTD = x_BLD.reshape(groups, -1, x_BLD.shape[-1])
        stream_WT = tokens.stream_BL.reshape(groups, -1)
        logits_WTE = None
        if router.uses_logits:
            params = {n: getattr(self, n)[...] for n in self.param_names}
            logits_WTE = router.logits(x_WTD.astype(jnp.float32), params)
        state = {n: jax.lax.stop_gradient(getattr(self, n)[...]) for n in self.state_names}
        routing = router.route(x_WTD, logits_WTE, state, stream_WT, stream_WT > 0, key)
        contracts.check_routing(router, routing, (*stream_WT.shape, self.config.num_experts))
        up, gate, down = (w[...] for w in (self.up, self.gate, self.down))
        out_WTD, overflow_2 = moe.expert_ffn(x_WTD, routing, up, gate, down, self.config)
        load_ME = moe.load_by_stream(routing, stream_WT, self.streams, self.config.num_experts)
        stats = {"load": jax.lax.stop_gradient(load_ME)}
        if not isinstance(routing.aux_loss, float):
            stats["aux_loss"] = routing.aux_loss
        if overflow_2 is not None:
            stats["overflow"] = overflow_2
        out = out_WTD.reshape(x_BLD.shape)
        if self.config.shared_width:
            out = out + self.shared(x_BLD, tokens, group_rows, None)[0]
        return out, stats


class StandardBlock(BlockModule):
    """Pre-norm block: self-attention, cross-attention if it reads a lane, feed-forward."""

    def __init__(self, block: plan.Block, stack: Stack, rngs: nnx.Rngs):
        self.block = block
        norm = (stack.width, stack.norm, stack.norm_eps)
        self.norm1, self.attention = Norm(*norm), Attention(stack, rngs)
        if block.reads:
            self.cross_norm, self.memory_norm = Norm(*norm), Norm(*norm)
            self.cross = Attention(stack, rngs)
        self.norm2 = Norm(*norm)
        if block.moe is None:
            self.mlp = Mlp(stack.width, stack.ffn_width, rngs, stack.gain)
        else:
            self.mlp = Experts(block.moe, stack, block.moe.inner(stack.ffn_width), rngs)

    def __call__(self, x_BLD, call: Call):
        block, tokens = self.block, call.tokens
        with jax.named_scope("attention"):
            y = self.norm1(x_BLD)
            y = self.attention(y, y, tokens, tokens, causal=block.causal, isolate=block.isolate)
            x_BLD = rules.constrain_batch(x_BLD + y)
        if block.reads:
            assert call.memory is not None
            with jax.named_scope("cross_attention"):
                y, m = self.cross_norm(x_BLD), self.memory_norm(call.memory.x_BLD)
                x_BLD = x_BLD + self.cross(y, m, tokens, call.memory.tokens)
        with jax.named_scope("experts" if block.moe else "feed_forward"):
            y, stats = self.mlp(self.norm2(x_BLD), tokens, call.group_rows, call.key)
        return rules.constrain_batch(x_BLD + y), stats

    def init_cache(self, rows: int, length: int, dtype, memory: Encoded | None) -> Cache:
        read = ()
        if self.block.reads:
            assert memory is not None
            read = self.cross.slots(self.memory_norm(memory.x_BLD), memory.tokens)
        return Cache(slots=self.attention.init_slots(rows, length, dtype), memory=read)

    def decode_step(self, x_BQD, call: DecodeCall, cache: Cache):
        block, hides = self.block, {"causal": self.block.causal, "isolate": self.block.isolate}
        y = self.norm1(x_BQD)
        new = self.attention.slots(y, call.tokens)
        where, slots = attention.visibility(call.tokens), attention.visibility(call.cached)
        old = jnp.arange(slots.segment_BL.shape[1])[None, None, :] < call.filled
        masks = (
            attention.visible(where, slots, **hides) & old,
            attention.visible(where, where, **hides),
        )
        y = self.attention.read_slots(y, (cache.slots, new), call.tokens, masks)
        x = rules.constrain_batch(x_BQD + y)
        if block.reads:
            assert call.memory is not None
            seen = attention.visible(
                where, attention.visibility(call.memory), causal=False, isolate=False
            )
            y = self.cross.read_slots(self.cross_norm(x), (cache.memory,), call.tokens, (seen,))
            x = x + y
        y, _ = self.mlp(self.norm2(x), call.tokens, call.group_rows, None)
        return rules.constrain_batch(x + y), Cache(slots=new)
