"""The Objective seam: the loss that one kind of training step minimises."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, Literal

from etils import epy

from mmjax.models.block import add_records
from mmjax.models.embed import Head
from mmjax.typing import Array, Batch, Loss, Metrics, PyTree, TokenSpec

with epy.lazy_imports():
    import jax
    import jax.numpy as jnp

Result = tuple[dict[str, Loss], Metrics, dict]  # losses, metrics, record


@dataclasses.dataclass(frozen=True, kw_only=True)
class Extra:
    """State of an objective besides the parameters: a queue, a teacher.

    `init(params) -> tree`; `update(tree, params, features, batch) -> tree` runs after the
    optimizer, on every step (`clock="step"`) or on steps of tasks that name it (`"task"`).
    Two tasks that name the same extra share one copy.
    """

    init: Callable[[PyTree], PyTree]
    update: Callable[..., PyTree]
    clock: Literal["step", "task"] = "task"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Objective:
    """Base of all objectives.

    `embed` computes features with leading dim B (none for generation); `losses` computes named
    losses per sample from them. Their weights hold all that is needed to sum them over any batch.
    """

    def heads(
        self, inputs: tuple[TokenSpec, ...], targets: tuple[TokenSpec, ...]
    ) -> dict[str, Head]:
        """Default heads that the objective calls, by name; the config may replace them."""
        del inputs, targets
        return {}

    def extra(self) -> dict[str, Extra]:
        """State that the objective carries across steps, by name."""
        return {}

    def embed(self, model: Any, batch: Batch, key: Array) -> tuple[dict[str, Array], dict]:
        """Features by name (leading dim B) and the record of the model calls."""
        del model, batch, key
        return {}, {}

    def losses(
        self, model: Any, features: dict[str, Array], batch: Batch, key: Array, extra: dict
    ) -> Result:
        """Named losses per sample, metrics, record."""
        raise NotImplementedError(f"{type(self).__name__} must define losses().")

    def __call__(self, model: Any, batch: Batch, key: Array, extra: dict):
        """`embed`, then `losses`: (losses, metrics, record, features)."""
        features, first = self.embed(model, batch, key)
        losses, metrics, second = self.losses(model, features, batch, key, extra)
        return losses, metrics, add_records(first, second), features


def total(losses: dict[str, Loss]) -> dict[str, Array]:
    """Weighted sum of each named loss, a scalar; 0 without samples."""
    return {name: jnp.sum(loss.value_BS * loss.weight_BS) for name, loss in losses.items()}


def mean(value: Array, weight: Array) -> Array:
    """Weighted mean; 0 if all weights are 0."""
    weight = weight.astype(jnp.float32)
    return jnp.sum(value * weight) / jnp.maximum(jnp.sum(weight), 1e-9)


def unit(z: Array) -> Array:
    """Unit length along the last dim, in float32; a zero vector stays zero."""
    z = z.astype(jnp.float32)
    return z * jax.lax.rsqrt(jnp.maximum(jnp.sum(jnp.square(z), axis=-1, keepdims=True), 1e-12))
