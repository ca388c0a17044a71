"""What the objectives of an autoencoder have in common."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from etils import epy

from mmjax.typing import Array, Batch, Tokens, TokenSpec

with epy.lazy_imports():
    import jax.numpy as jnp


def check(
    name: str, part: str, task: Any, specs: Mapping[str, TokenSpec], lanes: Sequence[str]
) -> None:
    """Raises ValueError for a task that an objective which trains one part cannot train."""
    check_input(name, task, lanes)
    check_numbers(name, specs[task.inputs[0]])
    if not all(pattern.startswith(f"{part}/") for pattern in task.trainable):
        raise ValueError(
            f"trainable={task.trainable}, but objective {name} trains the {part} alone; use"
            f" trainable=('{part}/**',)."
        )


def check_input(name: str, task: Any, lanes: Sequence[str]) -> None:
    """Raises ValueError for another model than an autoencoder, or other than one input."""
    if lanes:
        raise ValueError(
            f"objective {name} needs an Autoencoder, not a model with lanes ({', '.join(lanes)})."
        )
    if len(task.inputs) != 1 or task.targets:
        raise ValueError(
            f"inputs={task.inputs}, targets={task.targets}, but a tokenizer is for one modality;"
            " name it in inputs, and no targets."
        )


def check_numbers(name: str, spec: TokenSpec) -> None:
    """Raises ValueError for a stream of ids."""
    if spec.vocab_size:
        raise ValueError(
            f"objective {name} is for numbers, but stream {spec.name!r} is of ids; train it by"
            " Reconstruction(error='cross_entropy') alone."
        )


def weighed(batch: Batch) -> tuple[Tokens, Array]:
    """The one view, without rows that count for nothing, and weights of its rows [B, 1]: their
    sum is 1, or 0 if no row is there."""
    (view,) = batch.views.values()
    counts_B1 = (batch.weight_BS[:, :1] > 0).astype(view.stream_BL.dtype)
    view = view._replace(stream_BL=view.stream_BL * counts_B1)
    is_there_B1 = (view.stream_BL[:, :1] > 0).astype(jnp.float32)
    weight_B1 = batch.weight_BS * is_there_B1
    return view, weight_B1 / jnp.maximum(jnp.sum(weight_B1), 1e-9)
