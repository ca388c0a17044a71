"""Meshes: sizes that do not fit are told with those that would; which axes cross slow networks."""

from __future__ import annotations

import dataclasses
import itertools
import re

import jax
import mini
import pytest

from mmjax.models import MoE
from mmjax.parallel import MeshConfig, mesh
from mmjax.run import program


@dataclasses.dataclass(frozen=True)
class Tpu:
    """What a mesh asks of a TPU."""

    id: int
    coords: tuple[int, ...]
    slice_index: int = 0
    core_on_chip: int = 0
    process_index: int = 0
    device_kind: str = "TPU v5 lite"
    platform: str = "tpu"


@dataclasses.dataclass(frozen=True)
class Gpu:
    """What a mesh asks of a GPU."""

    id: int
    process_index: int
    slice_index: int = 0
    device_kind: str = "NVIDIA H100 80GB HBM3"
    platform: str = "gpu"


def board(columns: int, rows: int, slice_index: int = 0, **fields) -> list[Tpu]:
    """A slice of one host."""
    places = itertools.product(range(rows), range(columns))
    first = 1000 * slice_index
    return [Tpu(first + i, (x, y, 0), slice_index, **fields) for i, (y, x) in enumerate(places)]


@pytest.mark.parametrize(
    ("config", "devices", "said"),
    [
        (MeshConfig(fsdp=3), 8, "fsdp=3: 3 does not divide the 8 devices; use fsdp=4 or fsdp=2."),
        (
            MeshConfig(data=1, fsdp=6, tensor=3),
            16,
            "fsdp=6, tensor=3 asks for 18 devices, and there are 16; use fsdp=4, tensor=4 or"
            " fsdp=8, tensor=2, or set one axis to -1.",
        ),
        (MeshConfig(data=1), 8, "all axes 1 asks for 1 devices, and there are 8; use data=8, or"),
        (MeshConfig(replica=5, fsdp=5), 7, "use replica=1, fsdp=7 or replica=7, fsdp=1."),
    ],
)
def test_devices_that_do_not_multiply(config, devices, said):
    with pytest.raises(ValueError, match=r"^MeshConfig: ") as caught:
        config.resolve(devices)
    assert said in str(caught.value)


def test_what_is_offered_does():
    """Every mesh that an error names resolves."""
    sizes = range(1, 13)
    for devices, fsdp, tensor, data in itertools.product(sizes, sizes, (1, 4, 6), (1, -1)):
        try:
            MeshConfig(data=data, fsdp=fsdp, tensor=tensor).resolve(devices)
            continue
        except ValueError as error:
            offered = re.search(r"use (.*?)(?:, or set one axis to -1)?\.$", str(error))
        assert offered is not None
        for choice in offered[1].split(" or "):
            given = {k: int(v) for k, v in re.findall(r"(\w+)=(\d+)", choice)}
            MeshConfig(**{"data": data, "fsdp": fsdp, "tensor": tensor, **given}).resolve(devices)


@pytest.mark.parametrize(
    ("config", "said"),
    [
        (
            MeshConfig(),
            "replica=1 is no multiple of the 2 slices, and no other axis may cross them;",
        ),
        (MeshConfig(), "use replica=2, data=8 or replica=4, data=4."),
        (MeshConfig(data=1, fsdp=16), "use replica=2, fsdp=8 or replica=4, fsdp=4."),
    ],
)
def test_slices_need_replicas(config, said):
    devices = [*board(2, 4), *board(2, 4, 1)]
    with pytest.raises(ValueError, match=r"^MeshConfig: ") as caught:
        config.make(devices)
    assert said in str(caught.value)


def test_a_torus_carries_boxes_alone():
    with pytest.raises(ValueError, match="the 3 devices given are no box") as caught:
        MeshConfig().make(board(2, 2)[:3])
    assert "the first 1 or 2 are" in str(caught.value)
    with pytest.raises(ValueError, match="the slices have 8, 4 of the devices") as caught:
        MeshConfig(replica=2).make([*board(2, 4), *board(2, 2, 1)])
    assert "give 4 of each" in str(caught.value)
    two_a_chip = [*board(2, 2, device_kind="TPU v4")]
    two_a_chip += [dataclasses.replace(d, core_on_chip=1) for d in two_a_chip]
    with pytest.raises(ValueError, match="each chip of this TPU v4 shows two devices"):
        MeshConfig().make(two_a_chip)


def test_slices_and_nodes_are_told_apart():
    """By slices where they differ, on TPUs always; else by processes."""
    assert mesh.parts(board(2, 2) + board(2, 2, 1)) == [0] * 4 + [1] * 4
    hosts = [dataclasses.replace(d, process_index=i) for i, d in enumerate(board(2, 2))]
    assert mesh.parts(hosts) == [0] * 4
    assert mesh.parts([Gpu(n, n // 2) for n in range(4)]) == [0, 0, 1, 1]
    # One process for each GPU, as Slurm starts them.
    assert mesh.parts([Gpu(n, n, n // 2) for n in range(4)]) == [0, 0, 1, 1]


@pytest.mark.parametrize(
    ("config", "parts", "slow"),
    [
        (MeshConfig(), 1, ()),
        (MeshConfig(), 2, ("data",)),
        (MeshConfig(replica=2), 2, ("replica",)),
        (MeshConfig(replica=4, data=1, fsdp=-1), 2, ("replica",)),
        (MeshConfig(replica=2, data=1, fsdp=-1), 4, ("replica", "fsdp")),
        (MeshConfig(data=2, fsdp=-1), 4, ("data", "fsdp")),
        (MeshConfig(data=1, fsdp=2, expert=2, tensor=-1), 2, ("fsdp",)),
        (MeshConfig(data=1, tensor=-1), 2, ("tensor",)),
    ],
)
def test_axes_that_cross_the_slow_network(config, parts, slow):
    assert config.slow_axes(16, parts) == slow
    for slices in (False, True):
        gpus = [
            Gpu(n, process_index=n // (16 // parts), slice_index=n * parts // 16 if slices else 0)
            for n in range(16)
        ]
        laid = mesh._laid(config.resolve(16), gpus[::-1])
        node = lambda device: device.id * parts // 16
        crossed = []
        for axis, name in enumerate(mesh.AXES):
            lines = laid.swapaxes(0, axis).reshape(laid.shape[axis], -1).T
            if any(len({node(d) for d in line}) > 1 for line in lines):
                crossed.append(name)
        assert tuple(crossed) == slow


def test_a_batch_that_does_not_divide_over_the_mesh():
    """`mini` has tasks of 8 groups."""
    tasks = mini.get_config().tasks
    sixteen = {n: dataclasses.replace(t, group_rows=t.batch_size // 4) for n, t in tasks.items()}
    with pytest.raises(ValueError, match="makes 4 groups, which do not divide") as caught:
        program.build(mini.get_config(tasks=sixteen), jax.devices())
    task = next(iter(sixteen.values()))
    fits = f"batch_size of a multiple of {task.group_rows * 8}"
    assert f"{fits}, or a mesh of 4 batch shards (tensor=2)." in str(caught.value)
    program.build(mini.get_config(tasks=sixteen, mesh=MeshConfig(tensor=2)), jax.devices())


def test_experts_that_do_not_divide_over_their_axis():
    base = mini.get_config()
    six = dataclasses.replace(base.model, moe=MoE(num_experts=6, width=32, every=1))
    with pytest.raises(ValueError, match="expert=6 is not divisible") as caught:
        program.build(mini.get_config(model=six, mesh=MeshConfig(expert=4)), jax.devices())
    assert "mesh axis expert=4; use expert of 1, 2, 3, 6." in str(caught.value)
    program.build(mini.get_config(model=six, mesh=MeshConfig(expert=2)), jax.devices())
