"""Modules of blocks: the base class, what a call may look at, what decoding keeps."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
from flax import nnx

from mmjax.typing import Array, PyTree, Tokens


class ModelState(nnx.Variable):
    """State of a router or a codebook, carried across steps without gradient."""


class Encoded(NamedTuple):
    """Output of a lane: features, the tokens they belong to, and what must not get lost.

    Fields:
      record: auxiliary losses and statistics. captured: what else a model hands its objective.
    """

    x_BLD: Array
    tokens: Tokens
    record: dict = {}  # noqa: RUF012 (never written to)
    captured: dict = {}  # noqa: RUF012


class Call(NamedTuple):
    """What a block may look at beside its input.

    Fields:
      tokens: of its lane [B, L]. group_rows: rows of a group.
      memory: the lane that it reads; None when it reads none.
      key: for random numbers, of a block that `draws`; None outside of training.
    """

    tokens: Tokens
    group_rows: int
    memory: Encoded | None = None
    key: Array | None = None


class DecodeCall(NamedTuple):
    """What a block may look at while it decodes Q tokens after those in its cache.

    Fields:
      tokens: the Q new ones of each row. cached: of all slots [B, L], the new ones included.
      filled: int32, slots in use before the new ones. memory: tokens of the lane that it reads.
    """

    tokens: Tokens
    cached: Tokens
    filled: Array
    group_rows: int
    memory: Tokens | None = None


class Cache(NamedTuple):
    """What one block keeps while it decodes; each field is any pytree of arrays.

    Fields:
      slots: arrays [B, ..., L, G] with one entry a token; `decode_step` returns the entries of the
        new tokens alone, [B, ..., Q, G].
      state: arrays [B, ...] that each step replaces, such as the state of a recurrence.
      memory: of the lane that it reads, made once.
    """

    slots: PyTree = ()
    state: PyTree = ()
    memory: PyTree = ()


class BlockModule(nnx.Module):
    """Base of the modules of blocks."""

    def __call__(self, x_BLD: Array, call: Call) -> tuple[Array, dict[str, Array]]:
        """Output [B, L, D] in the dtype of the input, and a record.

        A record holds arrays by name: what begins with `aux_loss` is a scalar that is added to the
        loss; the rest are statistics, which reach `BlockConfig.update_state` and, from `load`, the
        metrics.
        """
        raise NotImplementedError(f"{type(self).__name__} must define __call__().")

    def init_cache(self, rows: int, length: int, dtype: Any, memory: Encoded | None) -> Cache:
        """A cache for `length` tokens of each row, without any."""
        del rows, length, dtype, memory
        raise ValueError(
            f"{type(self).__name__}: init_cache() is not defined, so this block cannot decode with"
            " a cache; define init_cache() and decode_step(), or generate with a parallel scheme."
        )

    def decode_step(self, x_BQD: Array, call: DecodeCall, cache: Cache) -> tuple[Array, Cache]:
        """`__call__` for the new tokens, after those in the cache; and what they add to it."""
        del x_BQD, call, cache
        raise ValueError(
            f"{type(self).__name__}: decode_step() is not defined beside init_cache(); define both."
        )


def param(rngs: nnx.Rngs, shape, axes, fan_in: int, reduce=(), gain: float = 1.0) -> nnx.Param:
    """A normal matrix of scale gain / sqrt(fan_in); `reduce` = input dims, for the optimizer."""
    value = jax.random.normal(rngs.params(), shape) * (gain * fan_in**-0.5)
    return nnx.Param(value, axes=axes, reduce=reduce)
