"""Heads, and the way into the model: ids, continuous pieces, mask vectors, streams, positions."""

from __future__ import annotations

import dataclasses
import math
from typing import Annotated, NamedTuple

import numpy as np
from etils import epy

from mmjax.config import ranges
from mmjax.typing import Array, TokenSpec, Vocabulary

with epy.lazy_imports():
    import jax
    import jax.numpy as jnp

Init = dict[str, tuple[Array, tuple[str, ...]]]  # leaf -> (float32 array, logical axes)


class Linear(NamedTuple):
    """An affine read-out that has not been multiplied out: logits = x @ table^T.

    Losses work on it in chunks of the vocabulary, so that logits are never whole in memory.
    """

    x: Array  # [..., D]
    table_VD: Array


@dataclasses.dataclass(frozen=True, kw_only=True)
class Head:
    """Base of all heads: parameters by leaf name, and what they make of features."""

    def init(self, key: Array, width: int, vocabulary: Vocabulary) -> Init:
        """Parameters for features of this width."""
        raise NotImplementedError(f"{type(self).__name__} must define init().")

    def bounds(self) -> dict[str, tuple[float, float]]:
        """(low, high) of leaves whose values an update must not leave; it clips them."""
        return {}

    def apply(self, params: dict[str, Array], x, context: HeadContext):
        """Output for features x; `params` are cast to the type of x by the head itself."""
        raise NotImplementedError(f"{type(self).__name__} must define apply().")


class HeadContext(NamedTuple):
    """What a head may look at beside its parameters."""

    table_VD: Array  # the one embedding table
    vocabulary: Vocabulary
    stream: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Projection(Head):
    """Into the shared space; `width` 0 = model width. Not normalised: the objective does that."""

    width: ranges.Natural = 0

    def __post_init__(self):
        ranges.check(self)

    def init(self, key, width, vocabulary):
        out = self.width or width
        kernel = jax.random.normal(key, (width, out)) * width**-0.5
        return {"kernel": (kernel, ("embed", "unsharded"))}

    def apply(self, params, x, context):
        return jnp.matmul(x, params["kernel"].astype(x.dtype))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Scale(Head):
    """Learned similarity scale exp(log_scale), at most `max_scale`, and a bias; x is ignored.

    The limit holds for the parameter, after each update (as in CLIP), so that a scale at its limit
    has a gradient and can come back. `max_scale` inf = no limit.
    """

    temperature: ranges.Positive = 0.07
    bias: ranges.Finite = 0.0
    max_scale: Annotated[float, ranges.Range(0, has_low=False, has_inf=True)] = 100.0

    def __post_init__(self):
        ranges.check(self)

    def init(self, key, width, vocabulary):
        log_scale = jnp.full((), -jnp.log(self.temperature), jnp.float32)
        return {"log_scale": (log_scale, ()), "bias": (jnp.full((), self.bias, jnp.float32), ())}

    def bounds(self):
        return {"log_scale": (-math.inf, math.log(self.max_scale))}

    def apply(self, params, x, context):
        return jnp.exp(params["log_scale"]), params["bias"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class VocabularyHead(Head):
    """Read-out of a discrete stream over its own id range; tied to the embedding table."""

    def init(self, key, width, vocabulary):
        return {}

    def apply(self, params, x, context):
        start = context.vocabulary.range(context.stream)[0]
        size = context.vocabulary.spec(context.stream).vocab_size
        return Linear(x, context.table_VD[start : start + size].astype(x.dtype))


@dataclasses.dataclass(frozen=True, kw_only=True)
class ValueHead(Head):
    """Read-out of continuous pieces of one stream."""

    stream: str

    def init(self, key, width, vocabulary):
        piece = vocabulary.spec(self.stream).width
        kernel = jax.random.normal(key, (width, piece)) * width**-0.5
        return {
            "kernel": (kernel, ("embed", "piece")),
            "bias": (jnp.zeros((piece,)), ("piece",)),
        }

    def apply(self, params, x, context):
        return _affine(params, x)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Classify(Head):
    """Class logits over a fixed set."""

    num_classes: ranges.Count

    def __post_init__(self):
        ranges.check(self)

    def init(self, key, width, vocabulary):
        kernel = jax.random.normal(key, (width, self.num_classes)) * 0.02
        return {
            "kernel": (kernel, ("embed", "unsharded")),
            "bias": (jnp.zeros((self.num_classes,)), ("unsharded",)),
        }

    def apply(self, params, x, context):
        return _affine(params, x)


def _affine(params: dict[str, Array], x: Array) -> Array:
    bias = params["bias"].reshape((1,) * (x.ndim - 1) + (-1,))
    return jnp.matmul(x, params["kernel"].astype(x.dtype)).astype(jnp.float32) + bias


def level_streams(vocabulary: Vocabulary) -> tuple[TokenSpec, ...]:
    """Specs of the streams whose ids have digits."""
    return tuple(spec for spec in vocabulary.specs if spec.levels)


def digits(levels: tuple[int, ...]) -> np.ndarray:
    """What each id is made of, 0 or 1: float32 [ids, sum of the levels]."""
    ids, parts, base = np.arange(int(np.prod(levels))), [], 1
    for level in levels:
        parts.append((ids // base % level)[:, None] == np.arange(level))
        base *= level
    return np.concatenate(parts, axis=1).astype(np.float32)


def continuous_streams(vocabulary: Vocabulary) -> tuple[TokenSpec, ...]:
    """Specs of the streams that carry continuous pieces."""
    return tuple(spec for spec in vocabulary.specs if spec.width)
