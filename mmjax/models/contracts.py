"""What the stack asks of blocks and routers: checks of what they return, while traced; state."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
from flax import nnx

from mmjax.models.block import BlockConfig, Stack
from mmjax.models.module import BlockModule
from mmjax.models.routers import Router, Routing

FORMS = (  # of a Routing
    ("expert_WTX", "weight_WTX"),
    ("token_WEC", "weight_WEC"),
    ("dispatch_WTEC", "combine_WTEC"),
)


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


def check_routing(router: Router, routing: Any, sizes: tuple[int, int, int]) -> None:
    """Raises ValueError unless a router gave one whole form; `sizes` are W, T and E."""
    who = f"{type(router).__name__}: route()"
    if not isinstance(routing, Routing):
        raise ValueError(
            f"{who} returned a {type(routing).__name__}; return a mmjax.models.routers.Routing."
        )
    form = tuple(n for pair in FORMS for n in pair if getattr(routing, n) is not None)
    if form not in FORMS:
        raise ValueError(
            f"{who} set {', '.join(form) or 'no arrays'} of its Routing; set the two of one form: "
            + ", or ".join(" and ".join(pair) for pair in FORMS)
            + "."
        )
    known = dict(zip("WTE", sizes, strict=True))
    for name in form:
        dims, x = name.split("_")[1], getattr(routing, name)
        for dim, size in zip(dims, getattr(x, "shape", ()), strict=False):
            known.setdefault(dim, size)  # choices X and capacity C are the router's own
        dtype = "int32" if name in ("expert_WTX", "token_WEC") else "float32"
        want = f"{dtype}{[known.get(dim, 1) for dim in dims]}"
        if _kind(x) != want:
            raise ValueError(f"{who} returned {name} as {_kind(x)}; here it must be {want}.")
    aux = routing.aux_loss
    if not isinstance(aux, float) and _kind(aux) != "float32[]":
        raise ValueError(f"{who} returned aux_loss as {_kind(aux)}; it must be a float32 scalar.")


def _kind(x: Any) -> str:
    """Dtype and shape of an array, `float32[2, 8]`; the type of anything else."""
    return f"{x.dtype}{list(x.shape)}" if hasattr(x, "shape") else type(x).__name__


def updated(router: Router, state: dict, statistics: dict) -> dict:
    """`Router.update`. Raises ValueError when it gives state of another kind than it got."""
    new = router.update(state, statistics)
    _check_state(f"{type(router).__name__}: update()", state, new)
    return new


def _check_state(who: str, old: Any, new: Any) -> None:
    before, after = (
        {
            jax.tree_util.keystr(path, simple=True, separator="/"): _kind(x)
            for path, x in jax.tree_util.tree_leaves_with_path(tree)
        }
        for tree in (old, new)
    )
    if before != after:
        raise ValueError(
            f"{who} returned {after}, but the state is {before}; keep names, shapes and dtypes."
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
                moved = jax.vmap(block.update_state)(state, own)
                _check_state(f"{type(block).__name__}: update_state()", state, moved)
                state.update(moved)
    return new


def _state(model_state: dict, run: int, place: int) -> dict:
    """The state of the blocks at one place of a run's pattern; empty when they have none."""
    node: Any = model_state
    for key in ("runs", run, "blocks", place):
        if key not in node:
            return {}
        node = node[key]
    return node
