"""The Objective seam: the loss that one kind of training step minimises."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

from etils import epy

from mmjax.models.block import add_records
from mmjax.models.embed import Head
from mmjax.typing import Array, Batch, Loss, Metrics, PyTree, Tokens, TokenSpec

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

    An objective that compares views says which (`views`), what it compares of one (`represent`)
    and how (`similarity`): retrieval, zero-shot, `embed`, reranking and export ask for that.
    """

    @property
    def target_balance(self) -> str:
        """`stream` = declared target streams have equal weight; `token` = tokens have."""
        return "stream"

    @property
    def generates(self) -> bool:
        """Whether its targets can be generated: it trains the model calls that decoding makes."""
        return False

    @property
    def mixes_streams(self) -> bool:
        """Whether several streams of a task pass the model in one call."""
        return True

    @property
    def parts(self) -> tuple[str, ...]:
        """Optional parts of the model that it calls, such as the critic of an `Autoencoder`."""
        return ()

    def check(self, task: Any, specs: Mapping[str, TokenSpec], lanes: Sequence[str]) -> None:
        """Raises ValueError for a `data.task.Task` that it cannot train: field=value, rule, remedy.

        `specs` are of all modalities, made when asked for; `lanes` of the model, () for one that
        is no stack of blocks. The experiment adds the name of the task."""
        del task, specs, lanes

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

    def views(self, task: Any) -> tuple[str, ...]:
        """Streams of a task that it represents in a space where it compares them."""
        del task
        return ()

    def lane(self, view: str) -> str:
        """Lane that encodes a view; "" = the first of the model."""
        del view
        return ""

    @property
    def is_pooled(self) -> bool:
        """Whether `represent` is that of `Contrastive`: what exported models compute."""
        return False

    def represent(
        self, model: Any, tokens: Tokens, view: str, num_slots: int, key: Array | None = None
    ) -> tuple[Array, dict]:
        """What `similarity` compares of the samples in a view, and the record of the model calls.

        Returns one vector a sample, [B, S, D] float32, or a set of them, [B, S, N, D], in which
        a zero vector is none; `num_slots` are the sample slots S of a row.
        """
        del model, tokens, view, num_slots, key
        raise ValueError(
            f"{type(self).__name__}: represents no views; define views(), represent() and"
            " similarity(), or use a contrastive objective."
        )

    def similarity(self, a_NX: Array, b_MX: Array) -> Array:
        """Similarity [N, M] of representations; called with NumPy arrays by evaluators."""
        del a_NX, b_MX
        raise ValueError(
            f"{type(self).__name__}: similarity() is not defined beside represent(); define both."
        )

    def prototype(self, z_PX: Array) -> Array | None:
        """One representation for several prompts of a class, NumPy; None = there is none, and
        the similarities of the prompts are averaged."""
        del z_PX
        return None

    def logit_scale(self, model: Any, views: Sequence[str]) -> Array:
        """What a similarity of these views is multiplied by to add to log-probabilities."""
        del model, views
        return jnp.ones(())

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


def check_stack(objective: Objective, lanes: Sequence[str]) -> None:
    """Raises ValueError for a model without lanes, which is no stack of blocks."""
    if not lanes:
        raise ValueError(
            f"objective {type(objective).__name__} trains no Autoencoder, nor any other model"
            " without lanes; use Reconstruction."
        )


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
