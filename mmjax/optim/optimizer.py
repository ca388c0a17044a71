"""Optimizers as inert dataclasses; `make` turns one into an optax transformation."""

from __future__ import annotations

import dataclasses
from typing import Annotated, Any, Literal

from etils import epy

from mmjax.config import ranges
from mmjax.typing import PyTree

with epy.lazy_imports():
    import jax
    import optax


@dataclasses.dataclass(frozen=True, kw_only=True)
class Optimizer:
    """Base of all optimizers: schedule, decay and clipping; subclasses say the update.

    Fields:
      learning_rate: peak. warmup_steps: linear warm-up; -1 = 8 % of the run.
      schedule: after the warm-up. final_scale: share of the peak at the end.
      weight_decay: on matrices only, never on embeddings, norms, heads, biases.
      grad_clip_norm: global norm; 0 = off.
      grad_reduce_dtype: in which gradients of weights are added up over devices; `auto` = the
        compute type of the model. They are clipped and applied in float32.
    """

    learning_rate: ranges.Positive = 1e-3
    warmup_steps: Annotated[int, ranges.Range(0, also=(-1,))] = -1
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    final_scale: ranges.Fraction = 0.0
    weight_decay: ranges.NonNegative = 0.05
    grad_clip_norm: ranges.NonNegative = 1.0
    grad_reduce_dtype: Literal["auto", "float32", "bfloat16"] = dataclasses.field(
        default="auto", metadata={"is_new": True, "identity": "numerics"}
    )

    def __post_init__(self):
        ranges.check(self)

    def rate(self, peak: float, total_steps: int):
        """Schedule step -> learning rate with this peak."""
        warmup = round(0.08 * total_steps) if self.warmup_steps < 0 else self.warmup_steps
        rest, end = max(total_steps - warmup, 1), peak * self.final_scale
        if self.schedule == "cosine":
            decay = optax.cosine_decay_schedule(peak, rest, self.final_scale)
        elif self.schedule == "linear":
            decay = optax.linear_schedule(peak, end, rest)
        else:
            decay = optax.constant_schedule(peak)
        if not warmup:
            return decay
        # Starts above zero: a first step of rate 0 would be a step thrown away.
        first = peak / (warmup + 1)
        return optax.join_schedules([optax.linear_schedule(first, peak, warmup), decay], [warmup])

    def make(self, matrices: PyTree, total_steps: int) -> Any:
        """The optax transformation.

        `matrices` has the structure of the parameters: a `Matrix` for a matrix of a block, None for
        everything else.
        """
        raise NotImplementedError(f"{type(self).__name__} must define make().")


@dataclasses.dataclass(frozen=True)
class Matrix:
    """Which dims of a parameter are the inputs and outputs of one matrix; the rest is a batch."""

    inputs: tuple[ranges.Natural, ...]
    outputs: tuple[ranges.Natural, ...]

    def __post_init__(self):
        ranges.check(self)


def matrix_of(axes: tuple[str, ...], reduce: tuple[int, ...], ndim: int) -> Matrix | None:
    """The matrix in a parameter with these logical axes, `reduce` being its input dims."""
    if not reduce:
        return None
    lead = ndim - len(axes)
    outputs = tuple(lead + i for i, axis in enumerate(axes) if i not in reduce and axis != "expert")
    return Matrix(tuple(lead + i for i in reduce), outputs)


def decay_mask(matrices: PyTree) -> PyTree:
    """True where weight decay applies."""
    return jax.tree.map(lambda m: m is not None, matrices, is_leaf=lambda m: m is None)


@dataclasses.dataclass(frozen=True, kw_only=True)
class AdamW(Optimizer):
    """AdamW (Loshchilov & Hutter 2019) with the betas of 4M."""

    b1: ranges.BelowOne = 0.9
    b2: ranges.BelowOne = 0.95
    eps: ranges.Positive = 1e-8

    def make(self, matrices, total_steps):
        return optax.adamw(
            self.rate(self.learning_rate, total_steps), b1=self.b1, b2=self.b2, eps=self.eps,
            weight_decay=self.weight_decay, mask=decay_mask(matrices),
        )  # fmt: skip


@dataclasses.dataclass(frozen=True, kw_only=True)
class Muon(Optimizer):
    """Muon (Jordan et al. 2024) for the matrices of the blocks, Adam for everything else.

    `learning_rate` is Adam's; matrices move at `matrix_learning_rate`.
    """

    matrix_learning_rate: ranges.Positive = 1e-2
    momentum: ranges.BelowOne = 0.95
    ns_steps: ranges.Count = 5
    b1: ranges.BelowOne = 0.9
    b2: ranges.BelowOne = 0.95

    def make(self, matrices, total_steps):
        from mmjax.optim import muon

        return muon.muon(
            matrices,
            self.rate(self.matrix_learning_rate, total_steps),
            self.rate(self.learning_rate, total_steps),
            momentum=self.momentum,
            ns_steps=self.ns_steps,
            b1=self.b1,
            b2=self.b2,
            weight_decay=self.weight_decay,
        )
