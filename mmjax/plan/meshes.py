"""Which meshes a topology allows, ranked; and what would help when a step does not fit."""

from __future__ import annotations

import dataclasses
import itertools

from mmjax.models.plan import Transformer
from mmjax.parallel.mesh import MeshConfig
from mmjax.plan import model
from mmjax.plan.model import Planned
from mmjax.plan.planning import Row

NETWORKS = ("ici", "dcn")
MAX_TENSOR = 8  # beyond, sums of activations cost more than they save


def rank(planned: Planned) -> tuple[Row, ...]:
    """Meshes that the config can have on the topology: those that fit first, then the fastest."""
    rows = []
    for mesh in candidates(planned):
        try:
            found = [model.estimate(planned, mesh, key) for key in planned.kept]
        except ValueError:
            continue
        rows.append(_row(planned, command(mesh), found))
    order = lambda r: (not r.fits, r.estimated_seconds, r.network_seconds, r.hbm_bytes)
    return tuple(sorted(rows, key=order))


def _row(planned: Planned, what: str, found: list[model.Estimate]) -> Row:
    size = max(e.hbm_bytes for e in found)
    return Row(
        what=what,
        hbm_bytes=size,
        estimated_seconds=sum(e.seconds for e in found) / len(found),
        network_seconds=sum(e.roofline.get(n, 0.0) for e in found for n in NETWORKS) / len(found),
        fits=size <= planned.topology.hbm_limit,
    )


def candidates(planned: Planned) -> list[MeshConfig]:
    """Meshes with copies across slices and everything else inside them."""
    where, config = planned.topology, planned.experiment.model
    experts, heads = 1, 1
    if isinstance(config, Transformer):
        moes = [getattr(b, "moe", None) for run in config.layer_plan() for b in run.pattern]
        experts = max([moe.num_experts for moe in moes if moe is not None], default=1)
        heads = config.kv_heads
    inside = where.devices_per_slice
    made = []
    tensors = [n for n in _divisors(inside) if n <= MAX_TENSOR and heads % n == 0]
    for tensor, expert in itertools.product(tensors, _divisors(inside)):
        if experts % expert or inside % (tensor * expert):
            continue
        left = inside // (tensor * expert)
        for fsdp in _divisors(left):
            made.append(
                MeshConfig(
                    replica=where.slices, data=left // fsdp, fsdp=fsdp, expert=expert, tensor=tensor
                )
            )
    return made


def command(mesh: MeshConfig) -> str:
    """The options that set it; `data` is said always, as it fills by default.

    >>> command(MeshConfig(data=1, fsdp=16))
    '--mesh.data 1 --mesh.fsdp 16'
    """
    sizes = mesh.as_dict()
    return " ".join(f"--mesh.{k} {v}" for k, v in sizes.items() if k == "data" or v != 1)


def remedies(planned: Planned, key: tuple[str, str], ranking: tuple[Row, ...]) -> tuple[Row, ...]:
    """What would help, with its figures: another remat policy, another mesh, half the batch."""
    experiment, rows = planned.experiment, []
    policy = getattr(experiment.model, "remat_policy", "")
    for other in [name for name in model.KEPT if policy and name not in (policy, "none")]:
        again = model.trace_all(experiment, planned.topology, other)
        found = [model.estimate(again, experiment.mesh, k, other) for k in again.kept]
        rows.append(_row(planned, f"--model.remat_policy {other}", found))
    rows += ranking[:2]
    now = model.estimate(planned, experiment.mesh, key)
    task = experiment.tasks[key[0]]
    _, batch_size, group_rows = task.shape(key[1])
    if batch_size // 2 % group_rows == 0 and key[1] == "default":
        half = dataclasses.replace(task, batch_size=batch_size // 2)
        smaller = dataclasses.replace(experiment, tasks={**experiment.tasks, key[0]: half})
        try:
            again = model.trace_all(smaller, planned.topology)
            found = [model.estimate(again, experiment.mesh, k) for k in again.kept]
            rows.append(_row(planned, f"--tasks.{key[0]}.batch_size {batch_size // 2}", found))
        except ValueError:
            pass  # half a batch does not divide over the mesh
    return tuple(row for row in rows if row.hbm_bytes < now.hbm_bytes)


def _divisors(number: int) -> list[int]:
    return [n for n in range(1, number + 1) if number % n == 0]
