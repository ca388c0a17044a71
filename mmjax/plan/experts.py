"""Experts over devices: rows that travel, and which implementation computes them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

from mmjax.experiment import Experiment
from mmjax.models import grouped
from mmjax.models.plan import Transformer
from mmjax.plan import flops
from mmjax.typing import Batch

GROUPED = ("gmm", "tgmm")  # names of the kernels of TPU


class Rows(NamedTuple):
    """Of the blocks of one kind, as a device has them.

    Fields:
      layers: blocks. choices: of its own tokens. rooms: rows that it gets for its experts, which
      is as many where each device has all experts. inner: width of an expert.
    """

    layers: int
    choices: int
    rooms: int
    inner: int


def rows(experiment: Experiment, task: str, batch: Batch, sizes: dict[str, int]) -> Iterator[Rows]:
    """Each kind of block with experts in a step, by the calls of its lane."""
    model, shards = experiment.model, _shards(sizes)
    if not isinstance(model, Transformer):
        return
    for call in flops.calls(experiment, experiment.tasks[task], batch):
        for run in model.layer_plan():
            for block in run.pattern:
                moe = getattr(block, "moe", None)
                if block.lane != call.lane or moe is None:
                    continue
                tokens = call.rows * call.length // shards
                yield _rows(moe, run.repeats, tokens, sizes["expert"], model.expert_width(moe))


def share_in_use(experiment: Experiment, task: str, batch: Batch, sizes: dict[str, int]) -> float:
    """Of the rows that grouped kernels are given, those that hold a choice; they skip the others,
    but count them as work."""
    found = list(rows(experiment, task, batch, sizes))
    rooms = sum(r.layers * r.rooms for r in found)
    return sum(r.layers * r.choices for r in found) / rooms if rooms else 1.0


def _rows(moe: Any, layers: int, tokens: int, devices: int, inner: int) -> Rows:
    chosen = getattr(moe.router, "num_experts_per_tok", 0)
    # Experts that choose for themselves take as many from each device.
    choices = int(tokens * (chosen or getattr(moe.router, "capacity_factor", 1)))
    rooms = choices
    if devices > 1 and chosen:
        rooms = devices * grouped.room(choices, devices, moe.capacity_factor)
    return Rows(layers, choices, rooms, inner)


def _shards(sizes: dict[str, int]) -> int:
    return sizes["replica"] * sizes["data"] * sizes["fsdp"] * sizes["expert"]


def implementations(experiment: Experiment, platform: str, sizes: dict[str, int]) -> dict[str, str]:
    """Lane -> what computes its experts, and how tokens reach them."""
    model, found = experiment.model, {}
    if not isinstance(model, Transformer):
        return found
    for block in (block for run in model.layer_plan() for block in run.pattern):
        moe = getattr(block, "moe", None)
        if moe is None:
            continue
        name = "slots of each expert"
        if hasattr(moe.router, "num_experts_per_tok"):
            inner = model.expert_width(moe) // sizes["tensor"]
            name = grouped.chosen(moe.implementation, platform, model.width, inner)
        if sizes["expert"] > 1:
            name += f", {moe.exchange} rooms over expert={sizes['expert']}"
        found[block.lane] = name
    return found
