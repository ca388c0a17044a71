"""Lays meshes on described slices and nodes, in a process of its own: `meshes.py OUT NAME ...`.

Writes OUT/<name>.json: for each mesh where every device lies and what rows it holds, and what each
process reads of a step. Nothing is compiled.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

from mmjax.data import batches, layouts, loader, mixture, task
from mmjax.data.source import Source
from mmjax.modalities.modality import Modality
from mmjax.parallel import MeshConfig, mesh, rules
from mmjax.plan import described, topology
from mmjax.typing import Piece, TokenSpec, Vocabulary

STEP, GROUP = 7, 2


class Numbers(Modality):
    """One number a record."""

    def spec(self, name):
        return TokenSpec(name=name, kind="vector", max_tokens=1, width=1)

    def encode(self, value):
        return Piece(np.zeros((1, 3), np.float32), values_LP=np.full((1, 1), value, np.float32))

    def decode(self, piece):
        return float(piece.values_LP)


@dataclasses.dataclass(frozen=True)
class Toy(Source):
    """As many records as two epochs of the step need."""

    size: int

    def open(self, split):
        return [{"number": record} for record in range(self.size)]


def meshes(slices: int) -> dict[str, MeshConfig]:
    """The meshes of the table, `replica` across slices and nodes."""
    return {
        "data": MeshConfig(replica=slices),
        "fsdp": MeshConfig(replica=slices, data=1, fsdp=-1),
        "fsdp + tensor": MeshConfig(replica=slices, data=1, fsdp=-1, tensor=4),
        "fsdp + wide tensor": MeshConfig(replica=slices, data=1, fsdp=-1, tensor=8),
        "expert + fsdp": MeshConfig(replica=slices, data=1, fsdp=-1, expert=4),
        "wide expert + fsdp": MeshConfig(replica=slices, data=1, fsdp=-1, expert=8),
        "replica + fsdp": MeshConfig(replica=2 * slices, data=1, fsdp=-1),
        "four axes": MeshConfig(replica=slices, fsdp=2, expert=2, tensor=2),
    }


def across_nodes() -> dict[str, MeshConfig]:
    """What GPUs allow beside: another axis than `replica` crosses nodes."""
    return {
        "data across nodes": MeshConfig(),
        "fsdp across nodes": MeshConfig(data=1, fsdp=-1),
        "data across nodes + tensor": MeshConfig(tensor=4),
    }


def stream(num_devices: int) -> dict[str, Any]:
    """What `Batches` of a task with a group for each device takes."""
    one = task.Task(
        source=Toy(3 * GROUP * num_devices),
        inputs=("number",),
        layout=layouts.Aligned(),
        objective=None,  # type: ignore[arg-type]
        batch_size=GROUP * num_devices,
        group_rows=GROUP,
    )
    modalities = {"number": Numbers()}
    vocabulary = Vocabulary((modalities["number"].spec("number"),))
    tasks = {"one": one}
    return {
        "schedule": mixture.Mixture().bind(tasks, 0),
        "journal": mixture.Journal(),
        "readers": loader.readers(tasks, modalities, vocabulary, "train", 0.0),
        "vocabulary": vocabulary,
        "seed": 3,
    }


def laid(config: MeshConfig, devices: list[Any], where: topology.Topology, how: dict) -> dict:
    """A mesh on devices, and what each process reads for it."""
    made = config.make(devices)
    sharding, num_groups = rules.batch_sharding(made), len(devices)
    places = np.asarray(mesh.parts(list(made.devices.flat))).reshape(made.devices.shape)
    crossed = [name for i, name in enumerate(made.axis_names) if np.diff(places, axis=i).any()]
    held = sharding.devices_indices_map((num_groups,))
    read = {}
    for process in sorted({d.process_index for d in devices}):
        mine = loader.host_groups(num_groups, sharding, process)
        _, batch, _ = batches.Batches(**how, groups={("one", "default"): mine})[STEP]
        rows = batch.sample_BSI[:, 0, 0]
        size, cut = loader.parts(rows, sharding, process)
        parts = {start: part.tolist() for start, part in cut.items()}
        read[process] = {"samples": rows.tolist(), "size": size, "parts": parts}
    return {
        "sizes": dict(made.shape),
        "slow": list(config.slow_axes(len(devices), where.slices)),
        "crossed": crossed,
        "held": [[d.process_index, *_ends(i[0], num_groups)] for d, i in held.items()],
        "read": read,
    }


def _ends(part: slice, size: int) -> tuple[int, int]:
    return range(size)[part].start, range(size)[part].stop


def main(out: Path, *names: str) -> None:
    for name in names:
        where = topology.parse(name)
        devices = described.devices(where)
        how = stream(len(devices))
        _, whole, _ = batches.Batches(**how)[STEP]
        table = meshes(where.slices)
        if where.chip.platform == "gpu":
            table |= across_nodes()
        said = {
            "devices": len(devices),
            "chips": where.slices * where.chips,
            "hosts": len({d.process_index for d in devices}),
            "expected": [where.num_devices, where.num_hosts],
            "whole": whole.sample_BSI[:, 0, 0].tolist(),
            "meshes": {key: laid(config, devices, where, how) for key, config in table.items()},
        }
        (out / f"{name}.json").write_text(json.dumps(said))


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:])
