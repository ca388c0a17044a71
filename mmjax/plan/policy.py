"""`remat_policy="auto"`: the first policy with which a run fits the devices that it has."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import jax

from mmjax import console
from mmjax.experiment import Experiment
from mmjax.plan import assumed, chips, model
from mmjax.plan.topology import Topology

SPARE = 0.9  # share of the memory that an estimate may take


def resolved(
    experiment: Experiment, where: Topology | Sequence[Any] | None = None, say: bool = False
) -> Experiment:
    """The experiment with a policy in place of `auto`.

    On CPU, and on a device of which nothing is known, everything is kept.

    Args:
      where: a topology or devices, by default all. say: prints which was taken, and why.
    """
    if getattr(experiment.model, "remat_policy", "") != "auto":
        return experiment
    if not isinstance(where, Topology):
        where = topology_of(jax.devices() if where is None else where)
    if where is None:
        return _with(experiment, "none")
    policy, size = choose(experiment, where)
    room = where.hbm_limit / 2**30
    console.say(f"remat_policy {policy}: estimated {size / 2**30:.1f} of {room:.1f} GiB", say)
    return _with(experiment, policy)


def choose(experiment: Experiment, where: Topology) -> tuple[str, int]:
    """The first policy, from much memory to little, whose estimate fits, and its bytes a device;
    the last one where none does."""
    found = ("", 0)
    for found in sizes(experiment, where):
        if found[1] <= SPARE * where.hbm_limit:
            break
    return found


def sizes(experiment: Experiment, where: Topology) -> Iterator[tuple[str, int]]:
    """Each policy and the bytes that its largest step takes of a device, estimated."""
    experiment, _ = assumed.ready(experiment)
    for policy in model.KEPT:
        planned = model.trace_all(_with(experiment, policy), where)
        found = [model.estimate(planned, experiment.mesh, key) for key in planned.kept]
        yield policy, max(estimate.hbm_bytes for estimate in found)


def _with(experiment: Experiment, policy: str) -> Experiment:
    changed: Any = {"remat_policy": policy}
    return dataclasses.replace(experiment, model=dataclasses.replace(experiment.model, **changed))


def topology_of(devices: Sequence[Any]) -> Topology | None:
    """What the devices of a run are; None for CPUs and chips that the table lacks."""
    chip = next((c for c in chips.CHIPS.values() if c.kind == devices[0].device_kind), None)
    if chip is None:
        return None
    nodes = {getattr(d, "slice_index", 0) if chip.dims else d.process_index for d in devices}
    count = max(1, len(devices) // chip.devices_per_chip // len(nodes))
    return Topology(f"{len(devices)} x {chip.kind}", chip, len(nodes), count)
