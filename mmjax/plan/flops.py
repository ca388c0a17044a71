"""FLOPs of a training step: what the model asks for, whatever the program does twice.

They are the FLOPs of `mmjax plan` and of `throughput/mfu`: each block says its own, three times the
forward pass are a step. Padding of heads and rooms, and rematerialisation, are not counted.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import numpy as np

from mmjax.data import loader
from mmjax.data.task import Task
from mmjax.experiment import Experiment
from mmjax.models.plan import Transformer, flops_per_token
from mmjax.plan import chips
from mmjax.run.program import Program
from mmjax.typing import Batch, PyTree, Vocabulary, path_name


def forward_flops(
    experiment: Experiment, task: Task, batch: Batch, vocabulary: Vocabulary
) -> float:
    """Of one forward pass of a stack of blocks over a global batch."""
    model = experiment.model
    assert isinstance(model, Transformer)
    total = 0.0
    for call in calls(experiment, task, batch):
        total += call_flops(model, call)
        total += 2.0 * call.rows * call.read_length * model.width**2  # the memory, projected
    for tokens in batch.views.values():
        for name, values in tokens.values.items():
            stem, spec = model.stem(name), vocabulary.spec(name)
            total += stem.flops(spec, model.width, *values.slot_BJ.shape)
    return total + _head_flops(model, batch, vocabulary)


class Call(NamedTuple):
    """A view that a lane runs over: its shape, and the views that the lane reads."""

    view: str
    lane: str
    rows: int
    length: int
    reads: tuple[str, ...]
    read_length: int


def call_flops(model: Transformer, call: Call) -> float:
    """Of the blocks of a lane over a view."""
    tokens = call.rows * call.length
    return tokens * flops_per_token(model, call.lane, call.length, call.read_length)


def calls(experiment: Experiment, task: Task, batch: Batch) -> list[Call]:
    """What objectives make of the views: `target` is for the lane that reads, the others for the
    lane that the objective names, by default the first."""
    model = experiment.model
    shapes = {view: tokens.ids_BL.shape for view, tokens in batch.views.items()}
    reads = model.read_lanes() if isinstance(model, Transformer) else {}
    found = []
    for view, (rows, length) in shapes.items():
        lane, seen = task.objective.lane(view) or model.lane_names()[0], ()
        if view == "target" and reads:
            lane = next(iter(reads))
            apart = [v for v in shapes if v != view and v not in batch.targets]
            seen = ("input",) if "input" in shapes else tuple(apart)
        found.append(Call(view, lane, rows, length, seen, sum(shapes[v][1] for v in seen)))
    return found


def _head_flops(model: Transformer, batch: Batch, vocabulary: Vocabulary) -> float:
    """Of read-outs: of as many tokens as are predicted, not of the room that there is for them."""
    rooms = {stream: _size(t.weight_WU.shape) for stream, t in batch.targets.items()}
    view = batch.views.get("target") or batch.views.get("input")
    if not rooms or view is None:
        return 0.0
    share = min(1.0, _size(view.ids_BL.shape) / sum(rooms.values()))
    outs = {s: vocabulary.spec(s).vocab_size or vocabulary.spec(s).width for s in rooms}
    return sum(2.0 * model.width * outs[s] * rooms[s] * share for s in rooms)


def step_flops(
    experiment: Experiment, task: str, variant: str, vocabulary: Vocabulary
) -> float | None:
    """Of one optimizer step; None = the model is no stack of blocks, whose program must be read."""
    if not isinstance(experiment.model, Transformer):
        return None
    config = experiment.tasks[task]
    batch = loader.batch_shapes(config, variant, experiment.modalities, vocabulary)
    return 3.0 * forward_flops(experiment, config, batch, vocabulary)


def largest(experiment: Experiment) -> tuple[str, str]:
    """The (task, variant) whose step is most work, or has most slots in its views."""
    vocabulary = experiment.vocabulary()

    def work(key: tuple[str, str]) -> float:
        task = experiment.tasks[key[0]]
        batch = loader.batch_shapes(task, key[1], experiment.modalities, vocabulary)
        slots = sum(_size(view.ids_BL.shape) for view in batch.views.values())
        return step_flops(experiment, *key, vocabulary) or float(slots)

    keys = [(n, v) for n, task in experiment.tasks.items() for v in task.variant_weights()]
    return max(keys, key=work)


def of_program(program: Program) -> tuple[dict[tuple[str, str], float], float]:
    """FLOPs by (task, variant), and the peak of a device; nothing and 0 where it is not known."""
    device = np.asarray(program.mesh.devices).flat[0]
    peak = chips.peak_flops(device.device_kind, program.dtype)
    if peak is None:
        return {}, 0.0
    found = {
        (name, variant): step_flops(program.experiment, name, variant, program.vocabulary)
        for name, task in program.experiment.tasks.items()
        for variant in task.variant_weights()
    }
    return {key: flops for key, flops in found.items() if flops is not None}, peak


def count_parameters(experiment: Experiment, params: PyTree, axes: dict) -> tuple[int, int]:
    """(all, those that one token uses): of experts only those that are chosen."""
    runs, total, active = experiment.model.layer_plan(), 0, 0.0
    for path, leaf in jax.tree_util.tree_flatten_with_path(params)[0]:
        keys, size = path_name(path).split("/"), _size(leaf.shape)
        total += size
        if keys[0] == "runs" and "expert" in axes[path_name(path)]:
            block = runs[int(keys[1])].pattern[int(keys[3])]
            names = axes[path_name(path)]
            experts = leaf.shape[len(leaf.shape) - len(names) + names.index("expert")]
            size *= min(1.0, getattr(block.router, "num_experts_per_tok", 1) / experts)
        active += size
    return total, round(active)


def _size(shape: tuple[int, ...]) -> int:
    size = 1
    for n in shape:
        size *= n
    return size
