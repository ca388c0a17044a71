"""Blocks that ship beside the ordinary one: gated cross-attention, LoRA, adapters, queries.

Each is an exact identity when it is inserted into a trained model. Their modules are in files of
their own, so that importing this imports no jax.
"""

from __future__ import annotations

import dataclasses
import fnmatch

from mmjax.config import ranges
from mmjax.models.block import BlockConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class GatedCrossAttention(BlockConfig):
    """Cross-attention and a feed-forward behind gates that begin closed (Flamingo, Alayrac et al.
    2022): x + tanh(a) attend(x, lane), then x + tanh(b) feed_forward(x), with a = b = 0.

    Two lanes that hold such blocks of one another and run together (`Model.run_lanes`) are bridged
    layer by layer (Xu et al. 2023).

    Fields:
      ffn_width: inner width of the feed-forward; 0 = none.
    """

    ffn_width: ranges.Natural = 0

    def __post_init__(self):
        ranges.check(self)
        if not self.reads:
            raise ValueError("GatedCrossAttention: reads='' looks at no lane; name one.")

    def make(self, stack, rngs):
        from mmjax.models import gated

        return gated.GatedModule(self, stack, rngs)

    def flops_per_token(self, stack, length, read_length=0):
        inner, kv = stack.num_heads * stack.head_width, stack.kv_heads * stack.head_width
        macs = 2 * stack.width * inner + 2 * inner * read_length
        macs += 2 * stack.width * kv * read_length / max(length, 1)
        return 2.0 * (macs + 3 * stack.width * self.ffn_width)

    @property
    def is_causal(self) -> bool:
        return True


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Around(BlockConfig):
    """A block around another one, whose lanes it takes."""

    block: BlockConfig

    def __post_init__(self):
        ranges.check(self)
        object.__setattr__(self, "lane", self.block.lane)
        object.__setattr__(self, "reads", self.block.reads)

    @property
    def router(self):
        return self.block.router

    @property
    def draws(self) -> bool:
        return self.block.draws

    @property
    def needs_whole_group(self) -> bool:
        return self.block.needs_whole_group

    @property
    def balances_within_groups(self) -> bool:
        return self.block.balances_within_groups

    @property
    def is_causal(self) -> bool:
        return self.block.is_causal

    def update_state(self, state, record):
        if "block" not in state:
            return state
        return {**state, "block": self.block.update_state(state["block"], record)}

    def canonical(self, path):
        inner = path.removeprefix("block/")
        return path if inner == path else self.block.canonical(inner)


@dataclasses.dataclass(frozen=True, kw_only=True)
class LoRA(_Around):
    """Low-rank changes to matrices of a block (Hu et al. 2021): W + alpha / rank A B, with B = 0.

    The parameters of the block keep their names; the new ones are `lora/<matrix>/{a, b}`. To train
    them alone: `Task(trainable=("*/lora/*",))`. `lora.merge` adds them to the matrices.

    Fields:
      block: what is changed. rank, alpha.
      target_modules: patterns of paths inside the block, such as `attention/query`; of what they
        match, matrices are changed, but not those of experts.
    """

    rank: ranges.Count = 8
    alpha: ranges.Positive = 16.0
    target_modules: tuple[str, ...] = ("attention/query", "attention/value")

    def make(self, stack, rngs):
        from mmjax.models import lora

        return lora.LoRAModule(self, stack, rngs)

    def is_target(self, path: str) -> bool:
        """Whether the parameter at a path inside the block is changed."""
        return any(fnmatch.fnmatch(path, pattern) for pattern in self.target_modules)

    def flops_per_token(self, stack, length, read_length=0):
        # Changes are added to the matrices, once a call: nothing is computed for each token.
        return self.block.flops_per_token(stack, length, read_length)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Adapter(_Around):
    """A narrow feed-forward after a block (Houlsby et al. 2019): y + up(gelu(down(norm(y)))), with
    up = 0. To train it alone: `Task(trainable=("*/adapter/*",))`.

    Fields:
      block: what it follows. width: of the bottleneck.
    """

    width: ranges.Count = 64

    def make(self, stack, rngs):
        from mmjax.models import adapter

        return adapter.AdapterModule(self, stack, rngs)

    def flops_per_token(self, stack, length, read_length=0):
        inner = self.block.flops_per_token(stack, length, read_length)
        return inner + 4.0 * stack.width * self.width


@dataclasses.dataclass(frozen=True, kw_only=True)
class Queries(BlockConfig):
    """A learned vector for each of the first slots of a lane, added to its input.

    As the first block of a lane that reads another one it makes a query reader (Perceiver, Jaegle
    et al. 2021; BLIP-2, Li et al. 2023): `queries.tokens` is the view of that lane.

    Fields:
      num: slots that have a vector.
    """

    num: ranges.Count = 32

    def __post_init__(self):
        ranges.check(self)

    def make(self, stack, rngs):
        from mmjax.models import queries

        return queries.QueriesModule(self, stack, rngs)

    def flops_per_token(self, stack, length, read_length=0):
        return float(stack.width)

    @property
    def is_causal(self) -> bool:
        return True
