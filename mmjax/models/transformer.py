"""One transformer over all streams: embedding, lanes of scanned runs, heads.

The model knows streams as numbers and specs, never as modalities. `Model` is built with no mesh:
every parameter carries its logical `axes`, and `mmjax.parallel.rules` turns these into shardings.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx

from mmjax.models import attention, blocks, embed, fused, plan
from mmjax.parallel import rules
from mmjax.typing import NUM_AXES, Array, Tokens, Vocabulary

UNROLLED = 2  # repeats up to which a run is no loop: it would store and read all activations


def add_records(*records: dict) -> dict:
    """Sum of records: auxiliary losses and router statistics add up over calls."""
    out: dict = {}
    for record in records:
        for name, value in record.items():
            out[name] = out[name] + value if name in out else value
    return out


class RunModule(nnx.Module):
    """Blocks of a pattern; every leaf is stacked over the repeats of the run."""

    def __init__(self, config: plan.Transformer, run: plan.Run, streams: int, rngs: nnx.Rngs):
        def stacked(block):
            @nnx.vmap(in_axes=0, out_axes=0)
            def make(key):
                return blocks.BlockModule(config, block, streams, nnx.Rngs(params=key))

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
        self.table = blocks.param(rngs, (vocabulary.size, width), ("vocab", "embed"), width)
        self.mask = blocks.param(rngs, (streams, width), ("stream", "embed"), width)
        self.stream = blocks.param(rngs, (streams, width), ("stream", "embed"), width)
        pieces = {
            f"s{vocabulary.number(s.name)}": (
                jax.random.normal(rngs.params(), (s.width, width)) * s.width**-0.5,
                ("piece", "embed"),
            )
            for s in embed.continuous_streams(vocabulary)
        }
        self.pieces = Named(pieces)
        levels = {
            f"s{vocabulary.number(s.name)}": (
                jax.random.normal(rngs.params(), (sum(s.levels), width)) * width**-0.5,
                ("level", "embed"),
            )
            for s in embed.level_streams(vocabulary)
        }
        self.levels = Named(levels)
        self.runs = nnx.List([RunModule(config, r, streams, rngs) for r in config.layer_plan()])
        lanes, reads = config.lane_names(), config.read_lanes()
        norms = [blocks.Norm(width, config.norm, config.norm_eps) for _ in lanes]
        self.final_norms = nnx.List(norms)
        shape, axes = (width, width), ("embed", "unsharded")
        self.memory = nnx.List([blocks.param(rngs, shape, axes, width, (0,)) for _ in reads])
        self.heads = nnx.List(
            [Named(h.init(rngs.params(), width, vocabulary)) for h in heads.values()]
        )

    def _table(self) -> Array:
        """Vectors of all ids [V, D]. Ids with digits add a vector of each digit to their own, so
        that what is learned of one code holds for those like it."""
        table = jnp.asarray(self.table[...])  # parameters that were loaded are NumPy's
        for spec in embed.level_streams(self.vocabulary):
            start, digits = self.vocabulary.range(spec.name)[0], embed.digits(spec.levels)
            shared = jnp.matmul(
                digits, getattr(self.levels, f"s{self.vocabulary.number(spec.name)}")[...]
            )
            table = table.at[start : start + len(digits)].add(shared)
        return table

    def embed(self, tokens: Tokens) -> Array:
        """Input features [B, L, D] of a view; padding is zero."""
        dtype, width = jnp.dtype(self.compute_dtype), self.config.width
        known = (tokens.ids_BL > 0)[:, :, None]
        index = jnp.maximum(tokens.stream_BL - 1, 0)
        # Rows have scale 1/sqrt(D), so that they also serve as a read-out.
        x = jnp.where(known, self._table()[tokens.ids_BL] * width**0.5, self.mask[...][index])
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

    def encode(
        self, tokens: Tokens, lane: str = "", capture=(), taps=None, key=None
    ) -> blocks.Encoded:
        """Runs the blocks of a lane (default: the first) over a view.

        `capture` and the keys of `taps` are of `embed`, `output`: a captured activation is
        returned, a tap (zeros) is added to it, so its gradient is that activation's gradient.
        """
        del key  # no block of today draws random numbers
        return self._lane(tokens, lane or self.config.lane_names()[0], None, capture, taps or {})

    def decode(self, tokens: Tokens, memory: blocks.Encoded, lane: str = "", capture=(), taps=None,
               key=None) -> blocks.Encoded:  # fmt: skip
        """Runs a lane that reads another (default: the one that reads) over a view."""
        del key
        lane, memory = self.read_by(lane, memory)
        return self._lane(tokens, lane, memory, capture, taps or {})

    def read_by(self, lane: str, memory: blocks.Encoded) -> tuple[str, blocks.Encoded]:
        """The lane that reads (default: the only one), and a memory as its blocks see it."""
        reads = self.config.read_lanes()
        lane = lane or next(iter(reads), "")
        if lane not in reads:
            raise ValueError(
                f"Model: lane={lane!r} reads no other lane, shape={self.config.shape!r}; use"
                " shape='encoder_decoder' or a task with a single view."
            )
        kernel = self.memory[list(reads).index(lane)][...].astype(memory.x_BLD.dtype)
        x = fused.project(memory.x_BLD, kernel)
        x = (x + self._where(memory.tokens).astype(x.dtype)) * self._valid(memory.tokens, x.dtype)
        return lane, memory._replace(x_BLD=x)

    def _lane(self, tokens, lane, memory, capture, taps) -> blocks.Encoded:
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
        return blocks.Encoded(x, tokens, record, {name: captured[name] for name in capture})

    def _run(self, r, run: plan.Run, x, tokens, memory):
        parts = [nnx.split(b, nnx.Param, blocks.ModelState) for b in self.runs[r].blocks]
        graphs = [graph for graph, _, _ in parts]
        group_rows = self.group_rows or x.shape[0]

        def body(x, states):
            stats = []
            for p, (graph, (params, state)) in enumerate(zip(graphs, states, strict=True)):
                with jax.named_scope(f"{run.pattern[p].lane}_{r}_{p}"):  # as in metrics
                    x, out = nnx.merge(graph, params, state)(x, tokens, memory, group_rows)
                stats.append(out)
            return x, stats

        policy = self.config.remat_policy
        if policy != "none":
            keep = jax.checkpoint_policies.dots_with_no_batch_dims_saveable
            body = jax.checkpoint(body, policy=keep if policy == "dots" else None)
        states = [nnx.as_pure((params, state)) for _, params, state in parts]
        unroll = UNROLLED if run.repeats <= UNROLLED else 1
        x, stats = jax.lax.scan(body, x, states, unroll=unroll)
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
        context = embed.HeadContext(self._table(), self.vocabulary, stream)
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
