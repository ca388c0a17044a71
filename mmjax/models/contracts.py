"""What the stack asks of blocks: checks of what they return, while traced, and their state."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
from flax import nnx

from mmjax.models.block import BlockConfig, Stack
from mmjax.models.module import BlockModule


def made(block: BlockConfig, stack: Stack, rngs: nnx.Rngs) -> BlockModule:
    """The module of a block. Raises ValueError when it is none, or has parameters without axes."""
    who, module = type(block).__name__, block.make(stack, rngs)
    if not isinstance(module, BlockModule):
        raise ValueError(
            f"{who}: make() returned a {type(module).__name__}, but a block is made of a"
            " mmjax.models.module.BlockModule."
        )
    for path, leaf in nnx.to_flat_state(nnx.state(module)):
        name = "/".join(map(str, path))
        axes = leaf.get_metadata().get("axes")
        if axes is None or len(axes) != len(leaf.shape):
            raise ValueError(
                f"{who}: {type(leaf).__name__} {name!r} of shape {tuple(leaf.shape)} has"
                f" axes={axes}; give one logical axis a dim, such as"
                " nnx.Param(value, axes=('embed', 'mlp'), reduce=(0,))."
            )
    return module


def check_output(block: BlockConfig, x: Any, y: Any, record: Any) -> None:
    """Raises ValueError unless a block gave features like its input, and a record."""
    who = f"{type(block).__name__}: __call__()"
    if getattr(y, "shape", None) != x.shape or y.dtype != x.dtype:
        shape, dtype = getattr(y, "shape", None), getattr(y, "dtype", type(y).__name__)
        raise ValueError(
            f"{who} returned features of shape {shape} and dtype {dtype}, not {x.shape} and"
            f" {x.dtype} as it was given; return (features, record) and cast back to x.dtype."
        )
    if not isinstance(record, dict):
        raise ValueError(
            f"{who} returned a record of type {type(record).__name__}; return a dict of arrays by"
            " name, {} when there is nothing."
        )


def update_state(runs: Sequence[Any], model_state: dict, record: dict) -> dict:
    """State of the blocks after one optimizer step, from what their calls have recorded."""
    new = jax.tree.map(lambda x: x, model_state)
    for r, run in enumerate(runs):
        for p, block in enumerate(run.pattern):
            end = f"/{r}/{p}"
            own = {n.removesuffix(end): v for n, v in record.items() if n.endswith(end)}
            own = {name: value for name, value in own.items() if not name.startswith("aux_loss")}
            state = _state(new, r, p)
            if own and state:
                state.update(jax.vmap(block.update_state)(state, own))
    return new


def _state(model_state: dict, run: int, place: int) -> dict:
    """The state of the blocks at one place of a run's pattern; empty when they have none."""
    node: Any = model_state
    for key in ("runs", run, "blocks", place):
        if key not in node:
            return {}
        node = node[key]
    return node
