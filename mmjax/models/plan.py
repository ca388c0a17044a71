"""The layer plan: which blocks a model has, in which lanes, as data.

A stack is a tuple of runs; a run is a pattern of block kinds and how often it repeats. The
parameters of a run are stacked and scanned, so compile time grows with runs, not with layers.
"""

from __future__ import annotations

import dataclasses
from typing import Annotated, Any, Literal

from mmjax.config import ranges
from mmjax.models.block import BlockConfig, Stack
from mmjax.models.config import ModelConfig
from mmjax.models.embed import Head
from mmjax.models.routers import Router, TokenChoice
from mmjax.models.stems import Patches, Stem
from mmjax.typing import Vocabulary


@dataclasses.dataclass(frozen=True, kw_only=True)
class MoE:
    """Experts in place of a dense feed-forward.

    Fields:
      num_experts: experts. width: inner width of one; 0 = half of the dense one, so that two
        chosen experts cost what the dense layer costs.
      every: each `every`-th block of a lane has experts (the last of each `every`).
      router: how tokens find experts.
      implementation: of the products of experts that tokens choose; `auto` takes what suits the
        devices: `megablox` on TPU, `triton` on GPU, both kernels on sorted tokens, and `blocks`, a
        loop over blocks of them, on CPU. `ragged` is `jax.lax.ragged_dot`, and `capacity` gives
        each expert equal room and drops what finds it full (see `docs/experts.md`).
      block_rows: rows of a block of `blocks` and `triton`, whose last one of each expert is padded;
        `triton` takes the next power of two below.
      capacity_factor: room for choices, in fair shares: of the devices along the mesh axis
        `expert`, and of each expert with `capacity`. What overflows is dropped and counted.
      exchange: between devices along `expert`: `equal` sends rooms whole, `ragged` the rows that
        are used, with a collective that only TPUs have.
      shared_width: inner width of a feed-forward beside the experts that every token passes
        (DeepSeekMoE, Dai et al. 2024); 0 = none.
    """

    num_experts: ranges.Count = 8
    width: ranges.Natural = 0
    every: ranges.Count = 2
    router: Router = TokenChoice()
    block_rows: ranges.Count = 128
    shared_width: ranges.Natural = dataclasses.field(default=0, metadata={"is_new": True})
    implementation: Literal["auto", "blocks", "ragged", "megablox", "triton", "capacity"] = (
        dataclasses.field(default="auto", metadata={"is_new": True, "identity": "none"})
    )
    capacity_factor: ranges.Positive = dataclasses.field(default=2.0, metadata={"is_new": True})
    exchange: Literal["equal", "ragged"] = dataclasses.field(
        default="equal", metadata={"is_new": True, "identity": "none"}
    )

    def __post_init__(self):
        ranges.check(self)
        chosen = getattr(self.router, "num_experts_per_tok", 1)
        if self.num_experts < chosen:
            raise ValueError(
                f"MoE: num_experts={self.num_experts} is less than num_experts_per_tok={chosen};"
                " use at least as many experts."
            )

    def inner(self, ffn_width: int) -> int:
        """Inner width F of one expert beside a dense feed-forward of `ffn_width`."""
        return self.width or max(1, ffn_width // 2)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Block(BlockConfig):
    """The ordinary block: self-attention, cross-attention if it `reads` a lane, feed-forward.

    Fields:
      causal: a token sees none of a later order. isolate: it sees its own stream only.
      moe: experts in place of the dense feed-forward.
    """

    causal: bool = False
    isolate: bool = False
    moe: MoE | None = None

    def make(self, stack, rngs):
        from mmjax.models import blocks

        return blocks.StandardBlock(self, stack, rngs)

    def flops_per_token(self, stack, length, read_length=0):
        width, inner = stack.width, stack.num_heads * stack.head_width
        kv = stack.kv_heads * stack.head_width
        macs = 2 * width * inner + 2 * width * kv
        macs += 2 * inner * length * (0.5 if self.causal else 1.0)
        if self.reads:
            per_query = read_length / max(length, 1)
            macs += 2 * width * inner + 2 * width * kv * per_query + 2 * inner * read_length
        if self.moe is None:
            macs += 3 * width * stack.ffn_width
        else:
            moe = self.moe
            chosen = getattr(moe.router, "num_experts_per_tok", 1)
            macs += width * moe.num_experts * moe.router.uses_logits
            macs += 3 * width * (moe.inner(stack.ffn_width) * chosen + moe.shared_width)
        return 2.0 * macs

    @property
    def router(self) -> Router | None:
        return self.moe.router if self.moe else None

    @property
    def is_causal(self) -> bool:
        return self.causal and not self.needs_whole_group

    def update_state(self, state, record):
        if self.moe is None or "load" not in record:
            return state
        from mmjax.models import contracts

        return {**state, "mlp": contracts.updated(self.moe.router, state["mlp"], record)}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run:
    """A pattern of blocks, repeated; its parameters are stacked over the repeats."""

    pattern: tuple[BlockConfig, ...]
    repeats: ranges.Count = 1

    def __post_init__(self):
        ranges.check(self)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Transformer(ModelConfig):
    """One transformer over all streams.

    Fields:
      shape: `encoder` and `decoder` have lane `main`; `encoder_decoder` lanes `enc` and `dec`;
        `towers` one lane per entry of `lanes`, not connected.
      width, num_heads, num_kv_heads (0 = num_heads), head_dim (0 = width / num_heads).
      encoder_layers, decoder_layers: blocks of the lanes (`encoder` and `towers` use the first,
        `decoder` the second).
      mlp_width: SwiGLU inner width; 0 = 8/3 of the width, rounded up to a multiple of 64.
      norm, norm_eps, qk_norm; position: `rotary` in attention, or vectors added to the input, of
        time, row and column (`sincos`), as in ViT-MAE (rows, columns), or as in Whisper (time).
      moe: experts in chosen layers; None = dense.
      heads: by name; what objectives need and the config does not name is added with defaults.
      runs: an explicit layer plan instead of the one made from the fields above.
      stems: what turns continuous pieces into vectors, by stream; others have `Patches`, a matrix.
      frames: places (time, row, column) that positions are counted in, by stream of a grid. Those
        of a grid of another size are interpolated: two resolutions of a modality then agree on
        where things are, and a finer one starts from what a coarser one has learned.
      remat_policy: what a layer keeps for the backward pass beside its input, from much memory to
        little: `none` (all is kept), `dots` (what products with weights and attention give),
        `attention` (what attention gives), `full` (nothing); `auto` takes the quickest of those
        with which `mmjax plan` says that a run fits its devices, and `none` on CPU.
      attention: `auto` takes what suits the devices of the mesh. `chunked` computes blocks of
        `query_block` queries and keys, `full` all at once; `pallas` and `splash` are kernels for
        TPU, `cudnn` for GPU (docs/attention.md).
    """

    shape: Literal["encoder", "encoder_decoder", "decoder", "towers"] = "encoder_decoder"
    width: ranges.Count = 512
    num_heads: ranges.Count = 8
    num_kv_heads: ranges.Natural = 0
    head_dim: ranges.Natural = 0
    encoder_layers: ranges.Natural = 8
    decoder_layers: ranges.Natural = 8
    mlp_width: ranges.Natural = 0
    norm: Literal["rms", "layer"] = "rms"
    norm_eps: ranges.Positive = 1e-6
    qk_norm: bool = True
    position: Literal["sincos", "rotary", "vit_mae", "whisper"] = "sincos"
    max_wavelength: Annotated[float, ranges.Range(1)] = 10_000.0
    moe: MoE | None = MoE()
    heads: dict[str, Head] = dataclasses.field(default_factory=dict)
    lanes: tuple[str, ...] = ()
    runs: tuple[Run, ...] = ()
    stems: dict[str, Stem] = dataclasses.field(default_factory=dict, metadata={"is_new": True})
    frames: dict[str, tuple[ranges.Positive, ranges.Positive, ranges.Positive]] = dataclasses.field(
        default_factory=dict, metadata={"is_new": True}
    )
    remat_policy: Literal["auto", "none", "dots", "attention", "full"] = dataclasses.field(
        default="auto", metadata={"identity": "none"}
    )
    query_block: ranges.Count = 512
    attention: Literal["auto", "chunked", "full", "splash", "pallas", "cudnn"] = dataclasses.field(
        default="auto", metadata={"is_new": True, "identity": "none"}
    )

    def __post_init__(self):
        ranges.check(self)
        if not self.head_dim and self.width % self.num_heads:
            raise ValueError(
                f"Transformer: width={self.width} is not divisible by num_heads={self.num_heads};"
                " change one of them or set head_dim."
            )
        if self.position == "rotary" and self.head_width % 2:
            raise ValueError(
                f"Transformer: head_dim={self.head_width} is odd; rotary positions turn pairs."
            )
        if self.num_heads % self.kv_heads:
            raise ValueError(
                f"Transformer: num_heads={self.num_heads} is not divisible by"
                f" num_kv_heads={self.kv_heads}."
            )
        if self.shape == "towers" and not (self.lanes or self.runs):
            raise ValueError("Transformer: shape='towers' needs lanes=('image', 'text', ...).")
        for run in self.layer_plan():
            if not run.pattern:
                raise ValueError(f"Transformer: {run} holds no block; name one in its pattern.")
            for block in run.pattern:
                if getattr(block, "causal", False) and block.needs_whole_group:
                    router = type(block.router or block).__name__
                    raise ValueError(
                        f"Transformer: router {router} looks at the whole group, which leaks the"
                        f" future in causal lane {block.lane!r}; use TokenChoice there."
                    )

    def check(self, specs):
        for name, stem in self.stems.items():
            if name not in specs or not specs[name].width:
                known = [n for n in specs if specs[n].width]
                raise ValueError(
                    f"Transformer: stems has {name!r}, which is no stream of continuous pieces;"
                    f" there are {', '.join(known) or 'none'}."
                )
            stem.check(specs[name])
        for name in self.frames:
            if name not in specs or specs[name].grid is None:
                known = [n for n in specs if specs[n].grid is not None]
                raise ValueError(
                    f"Transformer: frames has {name!r}, which is no stream of a grid; there are"
                    f" {', '.join(known) or 'none'}."
                )

    def stem(self, stream: str) -> Stem:
        """What turns the continuous pieces of a stream into vectors."""
        return self.stems.get(stream, Patches())

    @property
    def head_width(self) -> int:
        """Width G of one head."""
        return self.head_dim or self.width // self.num_heads

    @property
    def kv_heads(self) -> int:
        """Number K of key/value heads."""
        return self.num_kv_heads or self.num_heads

    @property
    def ffn_width(self) -> int:
        """Inner width F of the dense feed-forward."""
        return self.mlp_width or -(-8 * self.width // 3 // 64) * 64

    def expert_width(self, moe: MoE) -> int:
        """Inner width F of one expert."""
        return moe.inner(self.ffn_width)

    def stack(self, num_streams: int) -> Stack:
        """What its blocks share."""
        return Stack(
            width=self.width,
            num_heads=self.num_heads,
            kv_heads=self.kv_heads,
            head_width=self.head_width,
            ffn_width=self.ffn_width,
            norm=self.norm,
            norm_eps=self.norm_eps,
            qk_norm=self.qk_norm,
            rotary=self.position == "rotary",
            max_wavelength=self.max_wavelength,
            attention=self.attention,
            query_block=self.query_block,
            depth=sum(len(run.pattern) * run.repeats for run in self.layer_plan()),
            num_streams=num_streams,
        )

    def layer_plan(self) -> tuple[Run, ...]:
        """The runs, in order."""
        if self.runs:
            return self.runs
        if self.shape == "encoder":
            return self._lane_runs(Block(), self.encoder_layers)
        if self.shape == "decoder":
            return self._lane_runs(Block(causal=True), self.decoder_layers)
        if self.shape == "towers":
            return tuple(
                run
                for lane in self.lanes
                for run in self._lane_runs(Block(lane=lane), self.encoder_layers)
            )
        return self._lane_runs(Block(lane="enc"), self.encoder_layers) + self._lane_runs(
            Block(lane="dec", reads="enc", causal=True, isolate=True), self.decoder_layers
        )

    def _lane_runs(self, block: Block, layers: int) -> tuple[Run, ...]:
        if self.moe is None or layers == 0:
            return (Run(pattern=(block,), repeats=layers),) if layers else ()
        every = self.moe.every
        expert = dataclasses.replace(block, moe=self.moe)
        runs = []
        if layers // every:
            pattern = (block,) * (every - 1) + (expert,)
            runs.append(Run(pattern=pattern, repeats=layers // every))
        if layers % every:
            runs.append(Run(pattern=(block,), repeats=layers % every))
        return tuple(runs)

    def lane_names(self) -> tuple[str, ...]:
        """Lanes in the order of their first block."""
        names = [block.lane for run in self.layer_plan() for block in run.pattern]
        return tuple(dict.fromkeys(names))

    def read_lanes(self) -> dict[str, str]:
        """Lane read by each lane that has cross-attention."""
        return {b.lane: b.reads for run in self.layer_plan() for b in run.pattern if b.reads}

    def make(self, vocabulary: Vocabulary, heads: dict[str, Head], seed: int):
        """The NNX module with fresh parameters; call it inside jit or `jax.eval_shape`."""
        from mmjax.models import transformer

        return transformer.Model(self, vocabulary, {**heads, **self.heads}, seed)

    def update_state(self, model_state, record):
        """Router states, from the loads in the record."""
        from mmjax.models import contracts

        return contracts.update_state(self.layer_plan(), model_state, record)

    def canonical_parts(self, vocabulary, heads, paths):
        """Names by lane and number of the block (see `mmjax.models.names`)."""
        from mmjax.models import names

        return names.canonical_parts(self, vocabulary, tuple(heads), list(paths))


def block_places(model: ModelConfig) -> dict[tuple[int, int, int], tuple[str, int]]:
    """(run, pattern place, repeat) -> (lane, number of the block in its lane)."""
    places: dict[tuple[int, int, int], tuple[str, int]] = {}
    next_number: dict[str, int] = {}
    for r, run in enumerate(model.layer_plan()):
        for n in range(run.repeats):
            for p, block in enumerate(run.pattern):
                number = next_number.get(block.lane, 0)
                next_number[block.lane] = number + 1
                places[r, p, n] = (block.lane, number)
    return places


def layer_lines(runs: tuple[Run, ...]) -> list[str]:
    """The layer plan for people: a line a run, with the fields that are not at their defaults.

    >>> layer_lines((Run(pattern=(Block(), Block(moe=MoE(num_experts=4))), repeats=3),))
    ['3 x main: Block, Block(moe=MoE(num_experts=4))']
    """
    lines = []
    for run in runs:
        lanes: dict[str, list[str]] = {}
        for block in run.pattern:
            lanes.setdefault(block.lane, []).append(_short(block))
        blocks = "; ".join(f"{lane}: {', '.join(names)}" for lane, names in lanes.items())
        lines.append(f"{run.repeats} x {blocks}")
    return lines


def _short(value: Any) -> str:
    if not dataclasses.is_dataclass(value):
        return repr(value)
    fields = [
        f"{field.name}={_short(getattr(value, field.name))}"
        for field in dataclasses.fields(value)
        if field.name != "lane" and getattr(value, field.name) != field.default
    ]
    return f"{type(value).__name__}({', '.join(fields)})" if fields else type(value).__name__


def flops_per_token(model: Transformer, lane: str, length: int, read_length: int = 0) -> float:
    """Forward FLOPs of one token in a lane: 2 per multiply-add, attention scores included.

    Rematerialisation is not counted; a causal lane counts half of its scores.
    """
    stack = model.stack(0)
    return sum(
        block.flops_per_token(stack, length, read_length) * run.repeats
        for run in model.layer_plan()
        for block in run.pattern
        if block.lane == lane
    )


def fourm(size: Literal["tiny", "small", "base", "large", "xlarge"]) -> Transformer:
    """The exact shapes of 4M (METHODS: SwiGLU widths not rounded, LayerNorm, sin-cos)."""
    width, heads, layers = {
        "tiny": (384, 6, 6),
        "small": (512, 8, 8),
        "base": (768, 12, 12),
        "large": (1024, 16, 24),
        "xlarge": (2048, 32, 24),
    }[size]
    return Transformer(
        width=width,
        num_heads=heads,
        encoder_layers=layers,
        decoder_layers=layers,
        mlp_width=8 * width // 3,
        norm="layer",
        qk_norm=False,
        moe=None,
    )
