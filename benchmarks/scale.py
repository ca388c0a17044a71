"""How the published sizes scale, by plan: the tables of docs/scale.md.

    python benchmarks/scale.py [--rows 64] [--most 4096] [--out FILE]

No chip and no compiler: figures are the estimates of `mmjax plan`. Weak scaling gives every chip as
many rows; strong scaling divides one batch over more chips.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import mmjax  # noqa: E402
from mmjax import config  # noqa: E402
from mmjax.parallel import MeshConfig  # noqa: E402
from mmjax.plan import topology as topologies  # noqa: E402

WEAK = (
    ("anyany/fourm.py:base", "masked", ("v5e-16", "v5e-64", "v5e-256", "4xv5e-256", "16xv5e-256")),
    ("anyany/fourm.py:large", "masked", ("v5p-32", "v5p-128", "v5p-512", "v5p-2048", "v5p-8192")),
    ("anyany/fourm.py:base", "masked", ("2xh100x8", "8xh100x8", "32xh100x8")),
    ("alternating/imp.py:moe_large", "image_text", ("v5e-64", "v5e-256", "4xv5e-256")),
)
STRONG = (
    ("anyany/fourm.py:base", "masked", ("v5e-16", "v5e-32", "v5e-64", "v5e-128", "v5e-256")),
    ("anyany/fourm.py:large", "masked", ("v5p-32", "v5p-128", "v5p-512")),
)


def row(name: str, task: str, topology: str, batch: int) -> dict:
    """A config with one task, of so many rows, on a topology: copies across slices, `expert` as in
    the config, `fsdp` up to 64, `data` over the rest."""
    where = topologies.parse(topology)
    experiment = config.load(f"{ROOT}/configs/{name}")
    one = dataclasses.replace(experiment.tasks[task], batch_size=batch, variants={})
    inside = where.num_devices // where.slices
    expert = max(1, experiment.mesh.expert)
    mesh = MeshConfig(replica=where.slices, data=1, fsdp=min(inside // expert, 64), expert=expert)
    rest = inside // (mesh.fsdp * expert)
    mesh = dataclasses.replace(mesh, data=rest)
    experiment = dataclasses.replace(experiment, tasks={task: one}, evaluators={}, mesh=mesh)
    begin = time.perf_counter()
    plan = mmjax.plan(experiment, topology)
    found = plan.tasks[task]
    return {
        "config": name, "topology": topology, "devices": plan.devices, "batch": batch,
        "mesh": {k: v for k, v in plan.mesh.items() if v > 1}, "fits": plan.fits,
        "remat": plan.remat_policy, "gib": round(plan.hbm_bytes / 2**30, 1),
        "ms": {k: round(1000 * v, 1) for k, v in found["roofline_seconds"].items()},
        "sent_mib": {k: round(v / 2**20) for k, v in plan.networks.items()},
        "peak": round(100 * plan.estimated_mfu, 1),
        "seconds_to_plan": round(time.perf_counter() - begin, 1),
    }  # fmt: skip


def main() -> None:
    """Prints one JSON line a row."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rows", type=int, default=64, help="of a chip, in weak scaling")
    parser.add_argument("--most", type=int, default=4096, help="chips; larger rows are left out")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    rows = []
    for kind, table in (("weak", WEAK), ("strong", STRONG)):
        for name, task, where in table:
            first = topologies.parse(where[0]).num_devices
            for topology in where:
                own = topologies.parse(topology).num_devices
                if own > options.most:
                    continue
                devices = first if kind == "strong" else own
                try:
                    found = row(name, task, topology, devices * options.rows)
                except ValueError as error:
                    found = {"config": name, "topology": topology, "refused": str(error)}
                rows.append({"scaling": kind, **found})
                print(json.dumps(rows[-1]), flush=True)
    if options.out:
        options.out.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
