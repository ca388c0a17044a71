"""One transformer over all streams: embedding, lanes of scanned runs, heads.

The model knows streams as numbers and specs, never as modalities. `Model` is built with no mesh:
every parameter carries its logical `axes`, and `mmjax.parallel.rules` turns these into shardings.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from mmjax.models import blocks, contracts, embed, fused, plan, positions, stacked, stems, weights
from mmjax.models.block import add_records
from mmjax.models.module import Call, Encoded, ModelState, param
from mmjax.optim.taps import Taps
from mmjax.parallel import rules
from mmjax.typing import Array, Tokens, Vocabulary

UNROLLED = 2  # repeats up to which a run is no loop: it would store and read all activations


class Model(nnx.Module):
    """The model calls that objectives know: `encode`, `decode`, `head`.

    `group_rows` (rows of a group), `compute_dtype`, `training`, `taps` and `placement` are set by
    the step around a merge.
    """

    taps, placement = Taps(()), weights.Placement()

    def __init__(self, config: plan.Transformer, vocabulary: Vocabulary, heads: dict, seed: int):
        rngs = nnx.Rngs(params=seed)
        width, streams = config.width, len(vocabulary.specs)
        self.config, self.vocabulary, self.head_configs = config, vocabulary, dict(heads)
        self.group_rows, self.compute_dtype, self.training = 0, "float32", False
        self.table = param(rngs, (vocabulary.size, width), ("vocab", "embed"), width)
        self.mask = param(rngs, (streams, width), ("stream", "embed"), width)
        self.stream = param(rngs, (streams, width), ("stream", "embed"), width)
        pieces = {
            stems.key(vocabulary.number(s.name), leaf): value
            for s in embed.continuous_streams(vocabulary)
            for leaf, value in config.stem(s.name).init(rngs.params(), s, width).items()
        }
        self.pieces = stacked.Named(pieces)
        levels = {
            f"s{vocabulary.number(s.name)}": (
                jax.random.normal(rngs.params(), (sum(s.levels), width)) * width**-0.5,
                ("level", "embed"),
            )
            for s in embed.level_streams(vocabulary)
        }
        self.levels = stacked.Named(levels)
        stack = config.stack(streams)
        self.runs = nnx.List([stacked.RunModule(run, stack, rngs) for run in config.layer_plan()])
        lanes, reads = config.lane_names(), config.read_lanes()
        self.final_norms = nnx.List(blocks.Norm(width, config.norm, config.norm_eps) for _ in lanes)
        shape, axes = (width, width), ("embed", "unsharded")
        self.memory = nnx.List([param(rngs, shape, axes, width, (0,)) for _ in reads])
        made = [(h.init(rngs.params(), width, vocabulary), h.bounds()) for h in heads.values()]
        self.heads = nnx.List([stacked.Named(*head) for head in made])

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
        return self.placement.below("table").ready(table)

    def embed(self, tokens: Tokens) -> Array:
        """Input features [B, L, D] of a view; padding is zero."""
        dtype, width = jnp.dtype(self.compute_dtype), self.config.width
        known, index = (tokens.ids_BL > 0)[:, :, None], jnp.maximum(tokens.stream_BL - 1, 0)
        # Rows have scale 1/sqrt(D), so that they also serve as a read-out.
        x = fused.rows(self._table(), tokens.ids_BL) * width**0.5
        x = jnp.where(known, x.astype(jnp.float32), self.mask[...][index])
        rows, params = jnp.arange(x.shape[0])[:, None], self._ready_below("pieces")
        for name, values in tokens.values.items():
            own = stems.own(params, self.vocabulary.number(name))
            spec = self.vocabulary.spec(name)
            piece = self.config.stem(name).apply(own, values, tokens, spec, dtype)
            x = x.at[rows, values.slot_BJ].set(piece.astype(x.dtype), mode="drop")
        return (x + self._where(self.placed(tokens))).astype(dtype) * self._valid(tokens, dtype)

    def placed(self, tokens: Tokens) -> Tokens:
        """Tokens whose positions are counted in the frames of their streams, as blocks see them."""
        return positions.placed(tokens, self.config.frames, self.vocabulary)

    def _ready(self, *path) -> Array:
        """A matrix outside of the runs, as products use it."""
        return self.placement.below(*path).ready(_at(self, path)[...])

    def _ready_below(self, *path) -> dict[str, Array]:
        """Parameters with names, matrices as products use them."""
        found = _at(self, path).arrays().items()
        return {leaf: self._ready(*path, leaf) if x.ndim > 1 else x for leaf, x in found}

    def _valid(self, tokens: Tokens, dtype):
        return (tokens.stream_BL > 0)[:, :, None].astype(dtype)

    def _where(self, tokens: Tokens) -> Array:
        """Stream and position vectors, added to inputs and again to a memory."""
        stream, config = self.stream[...][jnp.maximum(tokens.stream_BL - 1, 0)], self.config
        places = tokens.position_BLA, config.width, config.max_wavelength, config.position
        return stream if config.position == "rotary" else stream + positions.vectors(*places)

    def encode(self, tokens: Tokens, lane: str = "", key=None) -> Encoded:
        """Runs the blocks of a lane (default: the first) over a view.

        `key` is for blocks that draw random numbers while they train.
        """
        lane = lane or self.config.lane_names()[0]
        return self.run_lanes({lane: tokens}, key=key)[lane]

    def decode(self, tokens: Tokens, memory: Encoded, lane: str = "", key=None) -> Encoded:
        """Runs a lane that reads another (default: the one that reads) over a view."""
        lane, memory = self.read_by(lane, memory)
        given = {self.config.read_lanes()[lane]: memory}
        return self.run_lanes({lane: tokens}, given, key)[lane]

    def run_lanes(
        self,
        views: Mapping[str, Tokens],
        given: Mapping[str, Encoded] | None = None,
        key: Array | None = None,
    ) -> dict[str, Encoded]:
        """Runs the blocks of several lanes, in the order of the layer plan, each over its view.

        A block that reads a lane sees what is `given` of it, else the features that the lane has
        when the block runs, so that lanes may look at one another layer by layer.
        """
        given = given or {}
        self._check_lanes(views, given)
        xs, records = {}, {lane: {} for lane in views}
        for lane, tokens in views.items():
            xs[lane] = rules.constrain_batch(self.taps(lane, "embed", self.embed(tokens)))
        views = {lane: self.placed(tokens) for lane, tokens in views.items()}
        for r, run in enumerate(self.config.layer_plan()):
            if any(block.lane in views for block in run.pattern):
                xs, stats = self._run(r, run, xs, views, given, key)
                for lane, more in stats.items():
                    records[lane] = add_records(records[lane], more)
        names, out = self.config.lane_names(), {}
        for lane, tokens in views.items():
            x = self.final_norms[names.index(lane)](xs[lane])
            out[lane] = Encoded(self.taps(lane, "output", x), tokens, records[lane])
        return out

    def _check_lanes(self, views, given) -> None:
        names = self.config.lane_names()
        for lane in views:
            if lane not in names:
                raise ValueError(
                    f"Model: lane={lane!r} does not exist; use one of {', '.join(names)}."
                )
        for block in (block for run in self.config.layer_plan() for block in run.pattern):
            other = block.reads
            if block.lane in views and other and other not in given and other not in views:
                raise ValueError(
                    f"Model: lane={block.lane!r} reads lane {other!r}, which is not run; use"
                    " decode() with a memory, or run_lanes() over both."
                )

    def read_by(self, lane: str, memory: Encoded) -> tuple[str, Encoded]:
        """The lane that reads (default: the only one), and a memory as its blocks see it."""
        reads = self.config.read_lanes()
        lane = lane or next(iter(reads), "")
        if lane not in reads:
            raise ValueError(
                f"Model: lane={lane!r} reads no other lane, shape={self.config.shape!r}; use"
                " shape='encoder_decoder' or a task with a single view."
            )
        x: Array = fused.project(memory.x_BLD, self._ready("memory", list(reads).index(lane)))
        x = (x + self._where(memory.tokens).astype(x.dtype)) * self._valid(memory.tokens, x.dtype)
        return lane, memory._replace(x_BLD=x)

    def _run(self, r, run: plan.Run, xs, views, given, key):
        """Features by lane after a run, and records by lane."""
        active = [(p, b) for p, b in enumerate(run.pattern) if b.lane in views]
        parts = [nnx.split(self.runs[r].blocks[p], nnx.Param, ModelState) for p, _ in active]
        group_rows = self.group_rows or next(iter(xs.values())).shape[0]
        ready = [
            self.placement.below("runs", r, "blocks", p).layer(params)
            for (p, _), (_, params, _) in zip(active, parts, strict=True)
        ]
        draws = [b for _, b in active if b.draws] if self.training else []
        if draws and key is None:
            who = type(draws[0].router or draws[0]).__name__
            raise ValueError(
                f"{who}: draws=True needs random numbers, but the model was called without a key;"
                " pass the key of losses() to encode() and decode()."
            )

        def body(xs, layer):
            states, number = layer
            xs, stats = dict(xs), []
            for n, (p, block) in enumerate(active):
                graph, (params, state) = parts[n][0], states[n]
                memory, own = None, None
                if block.reads:
                    memory = given.get(block.reads) or Encoded(xs[block.reads], views[block.reads])
                if block.draws and draws:
                    own = jax.random.fold_in(jax.random.fold_in(key, 1000 * r + p), number)
                call = Call(views[block.lane], group_rows, memory, own)
                with jax.named_scope(f"{block.lane}_{r}_{p}"):  # as in metrics
                    x, out = nnx.merge(graph, ready[n](params), state)(xs[block.lane], call)
                contracts.check_output(block, xs[block.lane], x, out)
                xs[block.lane] = x
                stats.append(out)
            return xs, stats

        body = weights.remat(body, self.config.remat_policy, self.placement)
        states = [nnx.as_pure((params, state)) for _, params, state in parts]
        numbers = jnp.arange(run.repeats) if draws else None
        unroll = UNROLLED if run.repeats <= UNROLLED else 1
        xs, stats = jax.lax.scan(body, xs, (states, numbers), unroll=unroll)
        records: dict[str, dict] = {}
        for (p, block), out in zip(active, stats, strict=True):
            records.setdefault(block.lane, {}).update({
                f"{name}/{r}/{p}": jnp.sum(value) if name.startswith("aux_loss") else value
                for name, value in out.items()
            })  # fmt: skip
        return xs, records

    def head(self, name: str, x, stream: str = ""):
        """Output of a named head; `stream` picks the id range of a vocabulary head."""
        if name not in self.head_configs:
            raise ValueError(
                f"Model: no head {name!r}; there are {', '.join(self.head_configs) or 'none'}."
            )
        context = embed.HeadContext(self._table(), self.vocabulary, stream)
        params = self._ready_below("heads", list(self.head_configs).index(name))
        return self.head_configs[name].apply(params, x, context)


def _at(module: Any, path) -> Any:
    part = lambda m, key: m[key] if isinstance(key, int) else getattr(m, key)
    return functools.reduce(part, path, module)
