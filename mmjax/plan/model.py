"""Memory, traffic and time of a step on a mesh, estimated: no compiler, no jax backend.

Parameters, optimizer and batch are exact, by the shardings that a run would have. What the forward
pass keeps is read from the traced program (`trace`); KEPT says what XLA makes of that.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import Any

import jax
import numpy as np

from mmjax import step as step_lib
from mmjax.data import loader
from mmjax.experiment import Experiment
from mmjax.models.plan import Transformer
from mmjax.parallel.mesh import BATCH_AXES, MeshConfig, check_slices
from mmjax.plan import experts, flops, tiles, trace
from mmjax.plan.topology import Topology
from mmjax.run import program as program_lib
from mmjax.run.program import Program
from mmjax.typing import PyTree, path_name

# Matrix products reach this share of a chip's peak, the rest of a step its memory bandwidth.
MATMUL_SHARE = 0.6
PROCESS_BYTES = 4 << 30  # of a host: Python, jax, the compiler and what it compiled


@dataclasses.dataclass(frozen=True)
class Keeps:
    """What a remat policy means for XLA, as shares of what jax says.

    The shares are those with which estimates come near XLA:TPU (tests/compile/test_plan.py).

    Fields:
      kept: share of the arrays that jax keeps for the backward pass. layer: share of what one
        layer keeps without a policy, which the backward pass of a layer has in memory.
      forwards: forward passes that a step computes.
    """

    kept: float = 1.0
    layer: float = 0.4
    forwards: float = 1.0


KEPT: dict[str, Keeps] = {
    "none": Keeps(),
    "dots": Keeps(forwards=1.3),
    "attention": Keeps(forwards=1.9),
    "full": Keeps(forwards=2.0),
}


@dataclasses.dataclass(frozen=True)
class Estimate:
    """A task's step on a mesh; bytes are those of a device.

    Fields:
      memory: bytes by class. collectives: bytes by kind. networks: bytes by network.
      roofline: seconds by what limits them.
    """

    memory: dict[str, int]
    collectives: dict[str, int]
    networks: dict[str, float]
    roofline: dict[str, float]
    flops: float
    arguments: int

    @property
    def hbm_bytes(self) -> int:
        """All of it."""
        return sum(self.memory.values())

    @property
    def seconds(self) -> float:
        """The slowest of what a step needs at the same time."""
        return max(self.roofline.values())


def abstract_mesh(sizes: dict[str, int], topology: Topology) -> Any:
    """A mesh that says what its devices are, and has none."""
    from jax.sharding import AbstractDevice, AbstractMesh, AxisType

    chip = topology.chip
    kind = AbstractDevice(chip.kind, 1 if chip.platform == "tpu" else None, chip.platform)
    return AbstractMesh(
        tuple(sizes.values()), tuple(sizes), (AxisType.Auto,) * len(sizes), abstract_device=kind
    )


@dataclasses.dataclass(frozen=True, eq=False)
class Planned:
    """An experiment whose steps have been traced once, to be laid on meshes.

    Fields:
      state: shapes of the training state.
      kept: by (task, variant), of a global batch. full: the same without a remat policy.
      step_flops: by (task, variant).
    """

    experiment: Experiment
    topology: Topology
    program: Program
    state: Any
    batches: dict[tuple[str, str], Any]
    kept: dict[tuple[str, str], trace.Kept]
    full: dict[tuple[str, str], trace.Kept]
    step_flops: dict[tuple[str, str], float]


def trace_all(
    experiment: Experiment,
    topology: Topology,
    remat: str = "",
    known: Planned | None = None,
    only: tuple[str, str] | None = None,
) -> Planned:
    """Traces every (task, variant) for the devices of a topology; the mesh does not matter yet.

    Args:
      known: the same under another policy; what no policy changes is taken from it.
      only: of these, the one to trace.
    """
    own: Any = experiment.model
    changed = {"dtype": topology.chip.dtype if own.dtype == "auto" else own.dtype}
    if topology.chip.platform == "gpu" and getattr(own, "attention", "full") != "full":
        # A kernel of cuDNN asks for the library even to be traced; this keeps about the same.
        changed["attention"] = "chunked"
    typed = dataclasses.replace(own, **changed)
    one = dataclasses.replace(experiment, model=typed, mesh=MeshConfig(data=1))
    program = program_lib.on_mesh(one, abstract_mesh(one.mesh.resolve(1), topology))
    policy = remat or getattr(experiment.model, "remat_policy", "none")
    batches, kept, full, counted = {}, {}, {}, {}
    for name, task in experiment.tasks.items():
        for variant in task.variant_weights():
            key = (name, variant)
            if only not in (None, key):
                continue
            batch = loader.batch_shapes(task, variant, experiment.modalities, program.vocabulary)
            batches[key] = batch
            kept[key] = trace.keep(program, name, variant, batch, policy)
            layered = policy != "none" and isinstance(experiment.model, Transformer)
            if known is not None:
                full[key] = known.full[key]
            elif layered:
                full[key] = trace.keep(program, name, variant, batch, "none")
            else:
                full[key] = kept[key]
            step = flops.step_flops(experiment, name, variant, program.vocabulary)
            counted[key] = 3 * full[key].flops if step is None else step
    state = program.abstract_state()
    return Planned(experiment, topology, program, state, batches, kept, full, counted)


def estimate(planned: Planned, mesh: MeshConfig, key: tuple[str, str], remat: str = "") -> Estimate:
    """A (task, variant) on a mesh.

    Raises:
      ValueError: batches or parameters do not divide over the mesh.
    """
    experiment = dataclasses.replace(planned.experiment, mesh=mesh)
    sizes = mesh.resolve(planned.topology.num_devices)
    experiment.check_mesh(planned.topology.num_devices)
    if planned.topology.chip.platform == "tpu":
        check_slices(sizes, planned.topology.slices)
    layout = _layout(planned, tuple(sizes.items()))
    policy = remat or getattr(experiment.model, "remat_policy", "none")
    memory = layout.memory(key, KEPT.get(policy, Keeps()))
    sent = layout.traffic(key)
    return Estimate(
        memory={k: int(v) for k, v in memory.items()},
        collectives={k: int(v) for k, v in sent.kinds.items() if v},
        networks=sent.networks,
        roofline=layout.roofline(key, KEPT.get(policy, Keeps()), memory, sent),
        flops=planned.step_flops[key],
        arguments=int(sum(memory[k] for k in ("parameters", "optimizer", "state", "batch"))),
    )


@dataclasses.dataclass
class Traffic:
    """Bytes of collectives by kind, as the buffers of one device, and seconds by network."""

    kinds: dict[str, float] = dataclasses.field(default_factory=dict)
    networks: dict[str, float] = dataclasses.field(default_factory=dict)

    def add(self, kind: str, size: float, parts: int, network: str) -> None:
        """A collective over so many devices; an all-reduce sends twice what a gather does."""
        if parts > 1:
            sent = size * (parts - 1) / parts * (2 if kind == "all-reduce" else 1)
            self.kinds[kind] = self.kinds.get(kind, 0.0) + size
            self.networks[network] = self.networks.get(network, 0.0) + sent


@functools.lru_cache(maxsize=2)  # all steps on a mesh, then the next mesh
def _layout(planned: Planned, sizes: tuple[tuple[str, int], ...]) -> Layout:
    return Layout(planned, dict(sizes))


class Layout:
    """A traced experiment on a mesh of these sizes."""

    def __init__(self, planned: Planned, sizes: dict[str, int]):
        self.planned, self.sizes, self.topology = planned, sizes, planned.topology
        program, mesh = planned.program, abstract_mesh(sizes, planned.topology)
        rules = planned.experiment.rules
        specs = step_lib.state_shardings(program, program.tx, program.extras, mesh, rules)
        self.state = jax.tree.map(
            lambda x, s: (x, s.spec),
            planned.state,
            specs,
            is_leaf=lambda x: hasattr(x, "dtype"),
        )
        self.shards = math.prod(sizes[axis] for axis in BATCH_AXES)
        self.slow = MeshConfig(**sizes).slow_axes(self.topology.num_devices, self.topology.slices)
        self.itemsize = np.dtype(program.dtype).itemsize
        # In which gradients are added up over devices: that of the products by default.
        reduced = getattr(planned.experiment.optimizer, "grad_reduce_dtype", "float32")
        self.reduced = self.itemsize if reduced == "auto" else np.dtype(reduced).itemsize

    def parts(self, spec) -> int:
        """Number of parts that a spec cuts an array into."""
        axes = [a for entry in spec for a in (entry if isinstance(entry, tuple) else (entry,)) if a]
        return math.prod(self.sizes[a] for a in axes)

    def bytes_of(self, tree: PyTree) -> int:
        """Of a device, of a part of the state."""
        is_pair = lambda x: isinstance(x, tuple) and len(x) == 2 and hasattr(x[0], "dtype")
        leaves = jax.tree.leaves(tree, is_leaf=is_pair)
        return sum(self._array(self._part(x.shape, spec), x.dtype.itemsize) for x, spec in leaves)

    def _part(self, shape: tuple[int, ...], spec) -> tuple[int, ...]:
        """The shape of a device's part."""
        entries = [*spec, *[None] * (len(shape) - len(spec))]
        return tuple(n // self.parts([e]) for n, e in zip(shape, entries, strict=True))

    def _array(self, shape: tuple[int, ...], itemsize: int) -> int:
        return tiles.size(shape, itemsize, self.topology.chip.platform)

    @functools.cached_property
    def leaves(self) -> list[tuple[str, Any, Any]]:
        """(path, shape, spec) of every parameter."""
        is_pair = lambda x: isinstance(x, tuple) and len(x) == 2 and hasattr(x[0], "dtype")
        flat = jax.tree_util.tree_flatten_with_path(self.state.params, is_leaf=is_pair)[0]
        return [(path_name(path), *pair) for path, pair in flat]

    def memory(self, key: tuple[str, str], keeps: Keeps) -> dict[str, float]:
        """Bytes of a device by class."""
        planned, kept = self.planned, self.planned.kept[key]
        batch = jax.tree.leaves(planned.batches[key])
        used = [x for x, is_used in zip(batch, kept.used, strict=True) if is_used]
        parameters = self.bytes_of(self.state.params)
        rest = {
            "state": self.bytes_of((self.state.extra, self.state.model_state, self.state.step)),
            "optimizer": self.bytes_of(self.state.opt_state),
            "batch": sum(
                self._array((x.shape[0] // self.shards, *x.shape[1:]), x.dtype.itemsize)
                for x in used
            ),
        }
        activations = keeps.kept * self._local(kept.activations)
        kept_rooms, rooms = self._rooms(key)
        if keeps == KEPT["none"]:
            activations += kept_rooms
        return {
            "parameters": parameters,
            **rest,
            "gradients": parameters + self._to_be_summed(),
            "activations": activations,
            "logits": self._local(kept.logits),
            "buffers": self._buffers(key, keeps) + rooms,
        }

    def _rooms(self, key: tuple[str, str]) -> tuple[float, float]:
        """Bytes of what experts get beyond the choices of a device, which is what was traced: in
        all layers; and of one layer, with the buffers in which rows go and come."""
        experiment, batch = self.planned.experiment, self.planned.batches[key]
        width, tensor = getattr(experiment.model, "width", 0), self.sizes["tensor"]
        kept, largest = 0.0, 0.0
        if self.sizes["expert"] > 1:
            for rows in experts.rows(experiment, key[0], batch, self.sizes):
                more = (rows.rooms - rows.choices) * (width + 2 * rows.inner / tensor)
                kept += rows.layers * more * self.itemsize
                largest = max(largest, (more + 2 * rows.rooms * width) * self.itemsize)
        return kept, largest

    def _local(self, kept: tuple[trace.Residual, ...]) -> int:
        """Bytes of a device."""
        tensor = self.sizes["tensor"]
        return sum(self._array(r.local(self.shards, tensor), r.itemsize) for r in kept)

    def _buffers(self, key: tuple[str, str], keeps: Keeps) -> float:
        """In memory for a while: weights as they are used, and what is largest beside them: logits
        and the gradient of the table, or, when they are gone, a layer in its backward pass."""
        whole = self._local(self.planned.full[key].activations)
        layer = keeps.layer * whole * self._largest_layer(key)
        used, table = self._weights_in_use()
        return used + max(table, layer - self._local(self.planned.kept[key].logits))

    def _largest_layer(self, key: tuple[str, str]) -> float:
        """Share of all layers' work, and so about of what they keep, that one layer has."""
        experiment, model = self.planned.experiment, self.planned.experiment.model
        if not isinstance(model, Transformer):
            return 1.0
        blocks = [b.lane for run in model.layer_plan() for b in run.pattern * run.repeats]
        work: dict[str, float] = {}
        for call in flops.calls(experiment, experiment.tasks[key[0]], self.planned.batches[key]):
            work[call.lane] = work.get(call.lane, 0.0) + flops.call_flops(model, call)
        return max(w / blocks.count(lane) for lane, w in work.items()) / sum(work.values())

    def _copies(self, spec: Any) -> int:
        """Devices of a slice that have the same part of a parameter, and add up its gradient."""
        return math.prod(self.sizes[a] for a in ("data", "fsdp", "expert") if a not in spec)

    def _to_be_summed(self) -> float:
        """Gradients before devices have added them up; those that are scattered have no room of
        their own."""
        return sum(
            _size(x) * self.reduced / self.parts(spec)
            for _, x, spec in self.leaves
            if self._copies(spec) > 1
        )

    def _network(self, *axes: str) -> str:
        """The slowest network that collectives along these axes cross."""
        return "dcn" if set(axes) & set(self.slow) else "ici"

    def _gathered(self, x: Any, spec: Any) -> float:
        """Elements of a parameter as it is used: whole along fsdp."""
        return _size(x) / self.parts([a for a in spec if a != "fsdp"])

    def _weights_in_use(self) -> tuple[float, float]:
        """In the compute type those of a layer and, gathered ahead, of the next, and what stands
        outside of the layers; and the gradient, in float32, of the largest of the latter."""
        layers: dict[str, float] = {}
        outside = [0.0]
        for path, x, spec in self.leaves:
            if path.startswith("runs/"):
                block = "/".join(path.split("/")[:4])
                layers[block] = layers.get(block, 0.0) + self._gathered(x, spec) / x.shape[0]
            else:
                outside.append(self._gathered(x, spec))
        used = 2 * max(layers.values(), default=0.0) + sum(outside)
        return used * self.itemsize, 4 * max(outside)

    def traffic(self, key: tuple[str, str]) -> Traffic:
        """Collectives of a step, as the shardings ask for them."""
        sent, sizes = Traffic(), self.sizes
        within = {axis: self._network(axis) for axis in sizes}
        for path, x, spec in self.leaves:
            axes = {a for a in spec if a}
            whole = self._gathered(x, spec)
            if "fsdp" in axes and sizes["fsdp"] > 1:
                # Gathered in the compute type, forward and backward; gradients are scattered.
                turns = 2 if path.startswith("runs/") else 1
                sent.add("all-gather", turns * whole * self.itemsize, sizes["fsdp"], within["fsdp"])
                sent.add("reduce-scatter", whole * self.reduced, sizes["fsdp"], within["fsdp"])
            own = _size(x) * self.reduced / self.parts(spec)
            copies = self._network(*(a for a in ("data", "fsdp", "expert") if a not in spec))
            sent.add("all-reduce", own, self._copies(spec), copies)
            sent.add("all-reduce", own, sizes["replica"], within["replica"])
        self._of_blocks(key, sent, within)
        return sent

    def _of_blocks(self, key: tuple[str, str], sent: Traffic, within: dict[str, str]) -> None:
        """Of activations: sums over the tensor axis, tokens that go to their experts."""
        experiment = self.planned.experiment
        model = experiment.model
        if not isinstance(model, Transformer):
            return
        task, batch = experiment.tasks[key[0]], self.planned.batches[key]
        for call in flops.calls(experiment, task, batch):
            size = call.rows * call.length * model.width * self.itemsize / self.shards
            for run in model.layer_plan():
                for block in run.pattern:
                    if block.lane != call.lane:
                        continue
                    sums = 3 if block.reads else 2
                    total = 2 * sums * run.repeats * size
                    sent.add("all-reduce", total, self.sizes["tensor"], within["tensor"])
        for rows in experts.rows(experiment, key[0], batch, self.sizes):
            row = rows.layers * rows.rooms * model.width * self.itemsize
            # There and back, and their gradients.
            sent.add("all-to-all", 4 * row, self.sizes["expert"], within["expert"])

    def roofline(self, key, keeps: Keeps, memory: dict, sent: Traffic) -> dict[str, float]:
        """Seconds by what limits a step."""
        chip, step = self.topology.chip, self.planned.step_flops[key]
        devices = self.topology.num_devices
        computed = step * (2 + keeps.forwards) / 3 / devices
        # XLA:TPU fills the stacks of a scan with zeros, writes what a layer keeps into them (a read
        # and a write) and takes it out again (the same).
        moved = (
            5 * memory["activations"]
            + 2 * memory["logits"]
            + 3 * self.itemsize * sum(self._gathered(x, spec) for _, x, spec in self.leaves)
        )
        moved += 2 * (memory["parameters"] + memory["optimizer"] + memory["gradients"])
        hosts = self.topology.num_hosts / self.topology.slices
        per_host = self.topology.devices_per_slice / hosts
        found = {
            "compute": computed / (chip.flops * MATMUL_SHARE),
            "hbm": moved / chip.hbm_bandwidth,
            "ici": sent.networks.get("ici", 0.0) / chip.ici_bandwidth,
            "dcn": sent.networks.get("dcn", 0.0) / (chip.dcn_bandwidth / per_host),
        }
        return {name: seconds for name, seconds in found.items() if seconds}


def host_bytes(planned: Planned, sizes: dict[str, int]) -> int:
    """Of a host: its batches made ahead, encoded examples, and the copy of its part of the state
    that a save makes."""
    layout, topology = _layout(planned, tuple(sizes.items())), planned.topology
    devices = topology.num_devices / topology.num_hosts
    state = layout.bytes_of(tuple(layout.state)) * devices
    batches = max(
        sum(_size(x) * x.dtype.itemsize for x in jax.tree.leaves(batch))
        for batch in planned.batches.values()
    )
    data = planned.experiment.data
    made = (data.prefetch + 2) * batches / topology.num_hosts + data.cache_bytes
    return int(PROCESS_BYTES + state + made)


def checkpoint_bytes(planned: Planned) -> int:
    """Of the state, whole."""
    return sum(_size(x) * x.dtype.itemsize for x in jax.tree.leaves(planned.state))


def _size(x: Any) -> int:
    return math.prod(x.shape)
