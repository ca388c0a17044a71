"""plan(experiment, topology): the verb, and the Plan that it gives."""

from __future__ import annotations

import contextlib
import dataclasses
from typing import TYPE_CHECKING, Any

from mmjax.config.error import ConfigError
from mmjax.plan import topology as topology_lib

if TYPE_CHECKING:
    from mmjax.experiment import Experiment
    from mmjax.plan.compiler import Compiled
    from mmjax.plan.model import Estimate, Planned

NUM_MESHES = 5  # of the ranking that is shown


@dataclasses.dataclass(frozen=True, kw_only=True)
class Row:
    """A mesh of the ranking, or a remedy: what to set, bytes of a device, seconds of a step, and
    those of it that devices need to send (ICI and DCN)."""

    what: str
    hbm_bytes: int
    estimated_seconds: float
    network_seconds: float
    fits: bool


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
    """What an experiment takes on a topology; nothing of it was run.

    Fields:
      chips: all; a name of v4, v5p or tpu7x counts cores, two a chip.
      source: `model` = estimated from shapes, `compiler` = memory, collectives and, on TPU, cycles
        are those of the compiled programs; a task that was compiled has `compile_seconds`.
      fits: whether every step fits into `hbm_limit`. hbm_bytes: of a device, in the largest step.
      parameters, active_parameters: all, and those that one token uses.
      flops_per_step, estimated_seconds: means over the tasks by their weight; where some were
        compiled, over those. estimated_mfu: share of the chips' peak.
      slow_axes: axes of the mesh that cross the network of the data center.
      collectives: bytes of a step by kind, as the buffers of one device, in the largest step.
      networks: estimated bytes that a device sends in a step: inside its slice or node (`ici`), to
        others (`dcn`).
      tasks: of each task's variants: memory by class, FLOPs, seconds by what limits them, what
        computes the attention of each lane, and with the compiler arguments, temporaries, kernels,
        cycles and seconds to compile.
      meshes: the best few, best first. remedies: what would help when it does not fit.
      assumed: what was not known of the config.
    """

    name: str
    topology: str
    chips: int
    devices: int
    hosts: int
    source: str
    fits: bool
    hbm_bytes: int
    hbm_limit: int
    parameters: int
    active_parameters: int
    flops_per_step: float
    estimated_seconds: float
    estimated_mfu: float
    collectives: dict[str, int]
    networks: dict[str, int]
    tasks: dict[str, dict[str, Any]]
    mesh: dict[str, int]
    slow_axes: tuple[str, ...]
    dtype: str
    remat_policy: str
    host_bytes: int
    host_limit: int
    checkpoint_bytes: int
    meshes: tuple[Row, ...]
    remedies: tuple[Row, ...]
    assumed: tuple[str, ...]

    def as_dict(self) -> dict[str, Any]:
        """Plain data, as `--json` prints it."""
        return dataclasses.asdict(self)


def plan(
    experiment: Experiment,
    topology: str = "v5e-16",
    compile: bool = False,
    every_step: bool = False,
) -> Plan:
    """What an experiment takes on a topology: memory, FLOPs, traffic, time, the best meshes.

    Without `compile` no jax backend is initialised; with it XLA compiles a step for the described
    devices, on this machine's CPU: the one that is estimated to take most memory, which says what
    fits. The other steps stay estimates, unless `every_step` is set.

    Raises:
      ConfigError: the topology is unknown, its compiler is not installed, or the mesh does not fit.
      ValueError: batches or parameters do not divide over the mesh.
    """
    where = topology_lib.parse(topology)
    from mmjax.plan import assumed, meshes, model, policy

    experiment, said = assumed.ready(experiment)
    with contextlib.suppress(ValueError):  # a mesh that does not fit is told of below
        experiment = policy.resolved(experiment, where)
    planned = model.trace_all(experiment, where)
    ranking = meshes.rank(planned)
    try:
        sizes = experiment.mesh.resolve(where.num_devices)
        estimates = {key: model.estimate(planned, experiment.mesh, key) for key in planned.kept}
    except ValueError as error:
        raise ConfigError(f"{error}{_which_would(ranking)}") from error
    compiled: dict[tuple[str, str], Compiled] = {}
    if compile:
        from mmjax.plan import compiler

        largest = max(estimates, key=lambda key: estimates[key].hbm_bytes)
        keys = tuple(estimates) if every_step else (largest,)
        compiled = compiler.compile_steps(experiment, where, keys)
    return _made(planned, sizes, estimates, compiled, ranking, said)


def _which_would(ranking: tuple[Row, ...]) -> str:
    if not ranking:
        return " No mesh fits this topology: its devices do not divide the batches."
    return " Meshes that would do: " + "; ".join(row.what for row in ranking[:NUM_MESHES]) + "."


def _made(
    planned: Planned,
    sizes: dict[str, int],
    estimates: dict[tuple[str, str], Estimate],
    compiled: dict[tuple[str, str], Compiled],
    ranking: tuple[Row, ...],
    said: tuple[str, ...],
) -> Plan:
    from mmjax.plan import experts, flops, kernels, meshes, model

    experiment, where, program = planned.experiment, planned.topology, planned.program
    tasks: dict[str, dict[str, Any]] = {}
    for key, estimate in estimates.items():
        batch = planned.batches[key]
        in_use = experts.share_in_use(experiment, key[0], batch, sizes)
        found = _of_task(planned, estimate, compiled.get(key), in_use)
        found["attention"] = kernels.attention(
            experiment, key[0], batch, where.chip.platform, program.dtype
        )
        found["experts"] = experts.implementations(experiment, where.chip.platform, sizes)
        tasks[key[0] if key[1] == "default" else "/".join(key)] = found
    parameters, active = flops.count_parameters(experiment, program.params, program.axes)
    shares = _shares(experiment)
    told = compiled or estimates  # a roofline's seconds beside a compiler's would flatter the mean
    total = sum(shares[key] for key in told)
    by_share = [
        (found, shares[key] / total if total else 1 / len(told))
        for found, key in zip(tasks.values(), estimates, strict=True)
        if key in told
    ]
    seconds = sum(t["estimated_seconds"] * share for t, share in by_share)
    work = sum(t["flops"] * share for t, share in by_share)
    largest = max(tasks.values(), key=lambda t: t["hbm_bytes"])
    fits = all(t["fits"] for t in tasks.values())
    key = max(estimates, key=lambda k: estimates[k].hbm_bytes)
    return Plan(
        name=experiment.name,
        topology=where.name,
        chips=where.slices * where.chips,
        devices=where.num_devices,
        hosts=where.num_hosts,
        source="compiler" if compiled else "model",
        fits=fits,
        hbm_bytes=largest["hbm_bytes"],
        hbm_limit=where.hbm_limit,
        parameters=parameters,
        active_parameters=active,
        flops_per_step=work,
        estimated_seconds=seconds,
        estimated_mfu=work / seconds / (where.num_devices * where.chip.flops),
        collectives=largest["collectives"],
        networks=largest["networks"],
        tasks=tasks,
        mesh=sizes,
        slow_axes=experiment.mesh.slow_axes(where.num_devices, where.slices),
        dtype=program.dtype,
        remat_policy=getattr(experiment.model, "remat_policy", "none"),
        host_bytes=model.host_bytes(planned, sizes),
        host_limit=where.chip.host_memory,
        checkpoint_bytes=model.checkpoint_bytes(planned),
        meshes=ranking[:NUM_MESHES],
        remedies=() if fits else meshes.remedies(planned, key, ranking),
        assumed=said,
    )


def _shares(experiment: Experiment) -> dict[tuple[str, str], float]:
    """Share of the steps of each (task, variant), by weights; an interval is one in so many."""
    weights = {}
    for name, task in experiment.tasks.items():
        own = task.variant_weights()
        weight = 1.0 / task.interval if task.interval else task.weight
        for variant, part in own.items():
            weights[name, variant] = weight * part / (sum(own.values()) or 1.0)
    total = sum(weights.values())
    return {key: w / total if total else 1.0 / len(weights) for key, w in weights.items()}


def _of_task(
    planned: Planned, estimate: Estimate, compiled: Compiled | None, grouped: float
) -> dict[str, Any]:
    where = planned.topology
    found: dict[str, Any] = {
        "flops": estimate.flops,
        "estimated_seconds": estimate.seconds,
        "bound_by": max(estimate.roofline, key=lambda name: estimate.roofline[name]),
        "roofline_seconds": estimate.roofline,
        "memory": estimate.memory,
        "arguments": estimate.arguments,
        "hbm_bytes": estimate.hbm_bytes,
        "collectives": estimate.collectives,
        "networks": {name: int(size) for name, size in estimate.networks.items()},
    }
    if compiled is not None:
        found |= compiled.as_dict(where, estimate, grouped)
    found["fits"] = found["hbm_bytes"] <= where.hbm_limit and not found.get("refused")
    return found
