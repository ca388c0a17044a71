"""One transformer over all streams: embedding, lanes of scanned runs, heads.

The model knows streams as numbers and specs, never as modalities. `Model` is built with no mesh:
every parameter carries its logical `axes`, and `mmjax.parallel.rules` turns these into shardings.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from mmjax.models import attention, embed, moe, plan
from mmjax.parallel import rules
from mmjax.typing import NUM_AXES, Array, Tokens, Vocabulary


class RouterState(nnx.Variable):
    """State of a router, carried across steps without gradient."""


class Encoded(NamedTuple):
    """Output of a lane: features, the tokens they belong to, and what must not get lost."""

    x_BLD: Array
    tokens: Tokens
    record: dict
    captured: dict


def add_records(*records: dict) -> dict:
    """Sum of records: auxiliary losses and router statistics add up over calls."""
    out: dict = {}
    for record in records:
        for name, value in record.items():
            out[name] = out[name] + value if name in out else value
    return out


def _param(rngs: nnx.Rngs, shape, axes, fan_in: int, reduce=(), gain: float = 1.0) -> nnx.Param:
    """A normal matrix of scale gain / sqrt(fan_in); `reduce` = input dims, for the optimizer."""
    value = jax.random.normal(rngs.params(), shape) * (gain * fan_in**-0.5)
    return nnx.Param(value, axes=axes, reduce=reduce)


class Norm(nnx.Module):
    """RMS (Zhang & Sennrich 2019) or layer norm with a weight, in float32."""

    def __init__(self, width: int, kind: str, eps: float, axis: str = "embed"):
        self.kind, self.eps = kind, eps
        self.scale = nnx.Param(jnp.ones((width,)), axes=(axis,), reduce=())

    def __call__(self, x):
        y = x.astype(jnp.float32)
        if self.kind == "layer":
            y = y - jnp.mean(y, axis=-1, keepdims=True)
        y = y * jax.lax.rsqrt(jnp.mean(jnp.square(y), axis=-1, keepdims=True) + self.eps)
        return (y * self.scale[...].reshape((1,) * (x.ndim - 1) + (-1,))).astype(x.dtype)


class Attention(nnx.Module):
    """Self- or cross-attention with QK-norm and rotary positions where asked for."""

    def __init__(self, config: plan.Transformer, rngs: nnx.Rngs, gain: float):
        width, heads, kv, g = config.width, config.num_heads, config.kv_heads, config.head_width
        self.rotary = config.position == "rotary"
        self.max_wavelength, self.query_block = config.max_wavelength, config.query_block
        self.query = _param(rngs, (width, heads, g), ("embed", "heads", "head_dim"), width, (0,))
        self.key = _param(rngs, (width, kv, g), ("embed", "kv", "head_dim"), width, (0,))
        self.value = _param(rngs, (width, kv, g), ("embed", "kv", "head_dim"), width, (0,))
        self.out = _param(
            rngs, (heads, g, width), ("heads", "head_dim", "embed"), heads * g, (0, 1), gain
        )
        self.qk_norm = config.qk_norm
        if config.qk_norm:
            self.query_norm = Norm(g, "rms", config.norm_eps, "head_dim")
            self.key_norm = Norm(g, "rms", config.norm_eps, "head_dim")

    def __call__(self, x_BQD, memory_BLD, query: Tokens, key: Tokens, *, causal, isolate):
        dtype = x_BQD.dtype
        q = jnp.einsum("BQD,DHG->BQHG", x_BQD, self.query[...].astype(dtype))
        k = jnp.einsum("BLD,DKG->BLKG", memory_BLD, self.key[...].astype(dtype))
        v = jnp.einsum("BLD,DKG->BLKG", memory_BLD, self.value[...].astype(dtype))
        if self.qk_norm:
            q, k = self.query_norm(q), self.key_norm(k)
        if self.rotary:
            g = q.shape[-1]
            q = attention.rotate(q, attention.angles(query.position_BLA, g, self.max_wavelength))
            k = attention.rotate(k, attention.angles(key.position_BLA, g, self.max_wavelength))
        out = attention.attend(
            q, k, v, attention.place(query), attention.place(key),
            causal=causal, isolate=isolate, query_block=self.query_block,
        )  # fmt: skip
        return jnp.einsum("BQHG,HGD->BQD", out, self.out[...].astype(dtype))


class Mlp(nnx.Module):
    """SwiGLU (Shazeer 2020) without biases."""

    def __init__(self, width: int, inner: int, rngs: nnx.Rngs, gain: float):
        self.up = _param(rngs, (width, inner), ("embed", "mlp"), width, (0,))
        self.gate = _param(rngs, (width, inner), ("embed", "mlp"), width, (0,))
        self.down = _param(rngs, (inner, width), ("mlp", "embed"), inner, (0,), gain)

    def __call__(self, x, tokens, group_rows):
        del tokens, group_rows
        up, gate = (jnp.matmul(x, w[...].astype(x.dtype)) for w in (self.up, self.gate))
        return jnp.matmul(jax.nn.silu(gate) * up, self.down[...].astype(x.dtype)), {}


class Experts(nnx.Module):
    """SwiGLU experts behind a router; logits, routing and statistics are float32."""

    def __init__(self, config: plan.MoE, width, inner, streams: int, rngs: nnx.Rngs, gain: float):
        self.config, self.streams = config, streams
        num = config.num_experts
        self.router = _param(rngs, (width, num), ("embed", "unsharded"), width)
        axes = ("expert", "embed", "mlp")
        self.up = _param(rngs, (num, width, inner), axes, width, (1,))
        self.gate = _param(rngs, (num, width, inner), axes, width, (1,))
        down = ("expert", "mlp", "embed")
        self.down = _param(rngs, (num, inner, width), down, inner, (1,), gain)
        self.bias = RouterState(jnp.zeros((num,)), axes=("unsharded",))

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
        y = self.norm1(x_BLD)
        y = self.attention(y, y, tokens, tokens, causal=block.causal, isolate=block.isolate)
        x_BLD = rules.constrain_batch(x_BLD + y)
        if block.reads:
            assert memory is not None
            y, m = self.cross_norm(x_BLD), self.memory_norm(memory.x_BLD)
            y = self.cross(y, m, tokens, memory.tokens, causal=False, isolate=False)
            x_BLD = x_BLD + y
        y, stats = self.mlp(self.norm2(x_BLD), tokens, group_rows)
        return rules.constrain_batch(x_BLD + y), stats


class RunModule(nnx.Module):
    """Blocks of a pattern; every leaf is stacked over the repeats of the run."""

    def __init__(self, config: plan.Transformer, run: plan.Run, streams: int, rngs: nnx.Rngs):
        def stacked(block):
            @nnx.vmap(in_axes=0, out_axes=0)
            def make(key):
                return BlockModule(config, block, streams, nnx.Rngs(params=key))

            return make(jax.random.split(rngs.params(), run.repeats))

        self.blocks = nnx.List([stacked(block) for block in run.pattern])


class Named(nnx.Module):
    """Parameters by leaf name."""

    def __init__(self, init: embed.Init):
        self.leaves = tuple(init)
        for name, (value, axes) in init.items():
            setattr(self, name, nnx.Param(value.astype(jnp.float32), axes=axes, reduce=()))

    def arrays(self) -> dict[str, Array]:
        """Leaf name -> array."""
        return {name: getattr(self, name)[...] for name in self.leaves}


class Model(nnx.Module):
    """The model calls that objectives know: `encode`, `decode`, `head`.

    `group_rows` (rows of a group) and `compute_dtype` are set by the step around a merge.
    """

    def __init__(self, config: plan.Transformer, vocabulary: Vocabulary, heads: dict, seed: int):
        rngs = nnx.Rngs(params=seed)
        width, streams = config.width, len(vocabulary.specs)
        self.config, self.vocabulary, self.head_configs = config, vocabulary, dict(heads)
        self.group_rows, self.compute_dtype = 0, "float32"
        self.table = _param(rngs, (vocabulary.size, width), ("vocab", "embed"), width)
        self.mask = _param(rngs, (streams, width), ("stream", "embed"), width)
        self.stream = _param(rngs, (streams, width), ("stream", "embed"), width)
        pieces = {
            f"s{vocabulary.number(s.name)}": (
                jax.random.normal(rngs.params(), (s.width, width)) * s.width**-0.5,
                ("piece", "embed"),
            )
            for s in embed.continuous_streams(vocabulary)
        }
        self.pieces = Named(pieces)
        self.runs = nnx.List([RunModule(config, r, streams, rngs) for r in config.layer_plan()])
        lanes, reads = config.lane_names(), config.read_lanes()
        norms = [Norm(width, config.norm, config.norm_eps) for _ in lanes]
        self.final_norms = nnx.List(norms)
        shape, axes = (width, width), ("embed", "unsharded")
        self.memory = nnx.List([_param(rngs, shape, axes, width, (0,)) for _ in reads])
        self.heads = nnx.List(
            [Named(h.init(rngs.params(), width, vocabulary)) for h in heads.values()]
        )

    def embed(self, tokens: Tokens) -> Array:
        """Input features [B, L, D] of a view; padding is zero."""
        dtype, width = jnp.dtype(self.compute_dtype), self.config.width
        known = (tokens.ids_BL > 0)[:, :, None]
        index = jnp.maximum(tokens.stream_BL - 1, 0)
        # Rows have scale 1/sqrt(D), so that they also serve as a read-out.
        x = jnp.where(known, self.table[...][tokens.ids_BL] * width**0.5, self.mask[...][index])
        rows = jnp.arange(x.shape[0])[:, None]
        for name, values in tokens.values.items():
            kernel = getattr(self.pieces, f"s{self.vocabulary.number(name)}")[...]
            piece = jnp.matmul(values.value_BJP.astype(dtype), kernel.astype(dtype))
            x = x.at[rows, values.slot_BJ].set(piece.astype(x.dtype), mode="drop")
        return (x + self._where(tokens)).astype(dtype) * self._valid(tokens, dtype)

    def _valid(self, tokens: Tokens, dtype):
        return (tokens.stream_BL > 0)[:, :, None].astype(dtype)

    def _where(self, tokens: Tokens) -> Array:
        """Stream and position vectors, added to inputs and again to a memory."""
        where = self.stream[...][jnp.maximum(tokens.stream_BL - 1, 0)]
        if self.config.position == "sincos":
            where = where + attention.sincos(
                tokens.position_BLA, self.config.width, self.config.max_wavelength
            )
        return where

    def encode(self, tokens: Tokens, lane: str = "", capture=(), taps=None, key=None) -> Encoded:
        """Runs the blocks of a lane (default: the first) over a view.

        `capture` and the keys of `taps` are of `embed`, `output`: a captured activation is
        returned, a tap (zeros) is added to it, so its gradient is that activation's gradient.
        """
        del key  # no block of today draws random numbers
        return self._lane(tokens, lane or self.config.lane_names()[0], None, capture, taps or {})

    def decode(self, tokens: Tokens, memory: Encoded, lane: str = "", capture=(), taps=None,
               key=None) -> Encoded:  # fmt: skip
        """Runs a lane that reads another (default: the one that reads) over a view."""
        del key
        reads = self.config.read_lanes()
        lane = lane or next(iter(reads), "")
        if lane not in reads:
            raise ValueError(
                f"Model: lane={lane!r} reads no other lane, shape={self.config.shape!r}; use"
                " shape='encoder_decoder' or a task with a single view."
            )
        kernel = self.memory[list(reads).index(lane)][...].astype(memory.x_BLD.dtype)
        x = jnp.matmul(memory.x_BLD, kernel)
        x = (x + self._where(memory.tokens).astype(x.dtype)) * self._valid(memory.tokens, x.dtype)
        return self._lane(tokens, lane, memory._replace(x_BLD=x), capture, taps or {})

    def _lane(self, tokens, lane, memory, capture, taps) -> Encoded:
        names = self.config.lane_names()
        if lane not in names:
            raise ValueError(f"Model: lane={lane!r} does not exist; use one of {', '.join(names)}.")
        wrong = [name for name in (*capture, *taps) if name not in ("embed", "output")]
        if wrong:
            raise ValueError(f"Model: {wrong[0]!r} is no tap; use 'embed' or 'output'.")
        x, captured, record = self.embed(tokens), {}, {}
        x = rules.constrain_batch(x + taps["embed"] if "embed" in taps else x)
        captured["embed"] = x
        for r, run in enumerate(self.config.layer_plan()):
            if run.pattern[0].lane == lane:
                x, stats = self._run(r, run, x, tokens, memory)
                record = add_records(record, stats)
        x = self.final_norms[names.index(lane)](x)
        x = x + taps["output"] if "output" in taps else x
        captured["output"] = x
        return Encoded(x, tokens, record, {name: captured[name] for name in capture})

    def _run(self, r, run: plan.Run, x, tokens, memory):
        parts = [nnx.split(b, nnx.Param, RouterState) for b in self.runs[r].blocks]
        graphs = [graph for graph, _, _ in parts]
        group_rows = self.group_rows or x.shape[0]

        def body(x, states):
            stats = []
            for graph, (params, state) in zip(graphs, states, strict=True):
                x, out = nnx.merge(graph, params, state)(x, tokens, memory, group_rows)
                stats.append(out)
            return x, stats

        policy = self.config.remat_policy
        if policy != "none":
            keep = jax.checkpoint_policies.dots_with_no_batch_dims_saveable
            body = jax.checkpoint(body, policy=keep if policy == "dots" else None)
        states = [nnx.as_pure((params, state)) for _, params, state in parts]
        x, stats = jax.lax.scan(body, x, states)
        record = {
            f"{name}/{r}/{p}": value if name == "load" else jnp.sum(value)
            for p, out in enumerate(stats)
            for name, value in out.items()
        }
        return x, record

    def head(self, name: str, x, stream: str = ""):
        """Output of a named head; `stream` picks the id range of a vocabulary head."""
        if name not in self.head_configs:
            raise ValueError(
                f"Model: no head {name!r}; there are {', '.join(self.head_configs) or 'none'}."
            )
        context = embed.HeadContext(self.table[...], self.vocabulary, stream)
        index = list(self.head_configs).index(name)
        return self.head_configs[name].apply(self.heads[index].arrays(), x, context)


def update_routers(config: plan.Transformer, model_state: dict, record: dict) -> dict:
    """Router states after one optimizer step, from the loads in the record."""
    state = jax.tree.map(lambda x: x, model_state)
    for r, run in enumerate(config.layer_plan()):
        for p, block in enumerate(run.pattern):
            if block.moe is None or f"load/{r}/{p}" not in record:
                continue
            bias = state["runs"][r]["blocks"][p]["mlp"]
            update = jax.vmap(block.moe.router.update)
            bias["bias"] = update(bias["bias"], record[f"load/{r}/{p}"])
    return state


assert NUM_AXES == 3  # positions are (time, row, column)
