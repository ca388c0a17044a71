"""The block seam: what a stack needs to know of a layer, whatever it computes.

A block is a frozen dataclass (`BlockConfig`) that makes an NNX module (`module.BlockModule`). The
stack repeats and scans the modules of a run, names and shards their parameters and caches their
decoding by these two contracts alone; it knows no kind of block by name.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

from mmjax.models.routers import Router
from mmjax.typing import Array

if TYPE_CHECKING:
    from flax import nnx

    from mmjax.models.module import BlockModule


@dataclasses.dataclass(frozen=True, kw_only=True)
class Stack:
    """What the blocks of a stack share; each takes of it what it needs.

    Fields:
      width: features D of a token. num_heads, kv_heads, head_width: H, K and G of attention.
      ffn_width: inner width F of a dense feed-forward. norm, norm_eps, qk_norm.
      rotary: whether attention rotates queries and keys by position. max_wavelength: of rotation.
      attention: implementation of attention, and query_block: queries and keys whose scores are in
        memory at a time (see `attention.attend`).
      depth: blocks of the stack, for the scale of what is added to the residual.
      num_streams: streams M of the vocabulary.
    """

    width: int
    num_heads: int
    kv_heads: int
    head_width: int
    ffn_width: int
    norm: str
    norm_eps: float
    qk_norm: bool
    rotary: bool
    max_wavelength: float
    attention: str
    query_block: int
    depth: int
    num_streams: int

    @property
    def gain(self) -> float:
        """Scale of the last product of a part, so that a deep sum keeps its variance."""
        return (2.0 * self.depth) ** -0.5


@dataclasses.dataclass(frozen=True, kw_only=True)
class BlockConfig:
    """Base of all blocks.

    Fields:
      lane: the lane that it writes. reads: a lane that it looks at beside; empty = none.
    """

    lane: str = "main"
    reads: str = ""

    def make(self, stack: Stack, rngs: nnx.Rngs) -> BlockModule:
        """The module of one layer, with fresh parameters.

        Each parameter is an `nnx.Param` with metadata `axes` (logical axes, one a dim; see
        `mmjax.parallel.rules`) and `reduce` (its input dims, for the optimizer; empty = no matrix).
        """
        raise NotImplementedError(f"{type(self).__name__} must define make().")

    def flops_per_token(self, stack: Stack, length: int, read_length: int = 0) -> float:
        """Forward FLOPs of one token in a row of `length`, 2 a multiply-add."""
        raise NotImplementedError(f"{type(self).__name__} must define flops_per_token().")

    @property
    def router(self) -> Router | None:
        """The router of its experts, which answers the next three for it; None = none."""
        return None

    @property
    def draws(self) -> bool:
        """Whether it draws random numbers while it trains, and so needs a key."""
        return self.router is not None and self.router.draws

    @property
    def needs_whole_group(self) -> bool:
        """Whether what it makes of a token depends on all others of its group."""
        return self.router is not None and self.router.needs_whole_group

    @property
    def balances_within_groups(self) -> bool:
        """Whether it evens out a load inside each group, which undoes the work of alternation."""
        return self.router is not None and not getattr(self.router, "allow_unmixed", True)

    @property
    def is_causal(self) -> bool:
        """Whether a token never depends on one of a later order: it may decode token by token."""
        return False

    def update_state(self, state: dict[str, Any], record: dict[str, Array]) -> dict[str, Any]:
        """Its `ModelState`, as a tree of arrays, after one optimizer step."""
        del record
        return state

    def canonical(self, path: str) -> str:
        """Canonical name, inside the block, of the parameter at a path inside its module."""
        return path


def add_records(*records: dict[str, Any]) -> dict[str, Any]:
    """Sum of records: auxiliary losses and statistics add up over the calls of a step."""
    out: dict[str, Any] = {}
    for record in records:
        for name, value in record.items():
            out[name] = out[name] + value if name in out else value
    return out
