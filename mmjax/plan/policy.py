"""`remat_policy="auto"`: the quickest policy with which a run fits the devices that it has."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax

from mmjax import console
from mmjax.experiment import Experiment
from mmjax.parallel import mesh as mesh_lib
from mmjax.plan import assumed, chips, flops, model
from mmjax.plan.topology import Topology

SPARE = 0.9  # share of the memory that an estimate may take
# Stacks of a scan are written and read at about half of the bandwidth: with this, and what `dots`
# computes again, policies of 4M base stand in the order of XLA:TPU's cycles on v5e.
STACKS = 1.8


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
    policy, size, _ = choose(experiment, where)
    room = where.hbm_limit / 2**30
    console.say(f"remat_policy {policy}: estimated {size / 2**30:.1f} of {room:.1f} GiB", say)
    return _with(experiment, policy)


class Found(NamedTuple):
    """What a policy takes: bytes of a device, and seconds of compute and of its memory, one after
    the other."""

    policy: str
    size: int
    seconds: float


def choose(experiment: Experiment, where: Topology) -> Found:
    """The quickest policy of those that fit, else the one that needs least.

    What is kept is written and read again, which at the widths of 4M takes XLA:TPU longer than to
    compute it twice: memory alone would choose a slower step.
    """
    found = list(estimates(experiment, where))
    fits = [f for f in found if f.size <= SPARE * where.hbm_limit]
    if not fits:
        return min(found, key=lambda f: f.size)
    return min(fits, key=lambda f: f.seconds)


def estimates(experiment: Experiment, where: Topology) -> Iterator[Found]:
    """Each policy, from much memory to little, by the step that has most to keep."""
    experiment, _ = assumed.ready(experiment)
    largest, planned = flops.largest(experiment), None
    for policy in model.KEPT:
        changed = _with(experiment, policy)
        planned = model.trace_all(changed, where, known=planned, only=largest)
        made = [model.estimate(planned, experiment.mesh, key) for key in planned.kept]
        seconds = sum(e.roofline["compute"] + STACKS * e.roofline["hbm"] for e in made)
        yield Found(policy, max(e.hbm_bytes for e in made), seconds)


def _with(experiment: Experiment, policy: str) -> Experiment:
    changed: Any = {"remat_policy": policy}
    return dataclasses.replace(experiment, model=dataclasses.replace(experiment.model, **changed))


def topology_of(devices: Sequence[Any]) -> Topology | None:
    """What the devices of a run are; None for CPUs and chips that the table lacks."""
    chip = next((c for c in chips.CHIPS.values() if c.kind == devices[0].device_kind), None)
    if chip is None:
        return None
    nodes = set(mesh_lib.parts(devices))
    count = max(1, len(devices) // chip.devices_per_chip // len(nodes))
    return Topology(f"{len(devices)} x {chip.kind}", chip, len(nodes), count)
