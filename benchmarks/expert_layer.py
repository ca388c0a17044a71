"""A layer of experts, compiled for a described TPU: cycles, temporary memory, exchange.

    .venv-tpu/bin/python benchmarks/expert_layer.py [--topology v5e-1] [--tokens 8192]
        [--width 1024] [--inner 2816] [--experts 8] [--choices 2] [--capacity 2.0]
        [--layers dense megablox ...]

Forward and backward pass in bfloat16, with `--tokens` on each chip and the experts over all chips.
`dense` is a SwiGLU of as many FLOPs (the compiler makes the same of one that jax derives). Kernels
are taken to reach 60 % of the peak; they count the rows that they are given, which over several
chips are rooms of `--capacity` fair shares. One JSON line a layer; compiled, never run.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ.pop("XLA_FLAGS", None)  # libtpu refuses those for CPU

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
from jax.sharding import NamedSharding, PartitionSpec  # noqa: E402

from mmjax.models import MoE, fused, moe  # noqa: E402
from mmjax.models.routers import Routing  # noqa: E402
from mmjax.parallel import MeshConfig  # noqa: E402
from mmjax.parallel.mesh import BATCH_AXES  # noqa: E402
from mmjax.plan import described, hlo, topology  # noqa: E402

LAYERS = ("dense", "megablox", "ragged", "capacity")


def layer(name: str, options: argparse.Namespace) -> Callable:
    """(x_WTD, expert_WTX, weight_WTX, up, gate, down) -> [W, T, D]."""
    if name == "dense":
        flat = lambda x: x.reshape(-1, x.shape[-1])
        return lambda x, expert, weight, *w: fused.swiglu(flat(x), *w).reshape(x.shape)
    how = MoE(num_experts=options.experts, implementation=name, capacity_factor=options.capacity)
    return lambda x, expert, weight, *w: (
        moe.expert_ffn(x, Routing(expert_WTX=expert, weight_WTX=weight), *w, how).x_WTD
    )


def compiled(name: str, options: argparse.Namespace, mesh: jax.sharding.Mesh) -> dict:
    """What the compiler says of both passes."""

    def like(shape, dtype, *spec):
        where = NamedSharding(mesh, PartitionSpec(*spec))
        return jax.ShapeDtypeStruct(shape, dtype, sharding=where)

    rows, (width, inner) = (mesh.size, options.tokens), (options.width, options.inner)
    x = like((*rows, width), jnp.bfloat16, BATCH_AXES)
    expert = like((*rows, options.choices), jnp.int32, BATCH_AXES)
    weight = like((*rows, options.choices), jnp.float32, BATCH_AXES)
    shapes = [(width, inner), (width, inner), (inner, width)]
    if name == "dense":
        wide = inner * options.choices
        matrices = [like(s, jnp.bfloat16) for s in ((width, wide), (width, wide), (wide, width))]
    else:
        matrices = [like((options.experts, *s), jnp.bfloat16, "expert") for s in shapes]
    made = layer(name, options)

    def loss(x, weight, matrices, expert, d):
        return jnp.sum((made(x, expert, weight, *matrices) * d).astype(jnp.float32))

    with jax.set_mesh(mesh):
        run = jax.jit(jax.grad(loss, (0, 1, 2))).lower(x, weight, matrices, expert, x).compile()
    return read(run)


def read(run) -> dict:
    """Figures of a compiled program."""
    reading, memory = hlo.read(run.as_text()), run.memory_analysis()
    kernels = sum(kernel.flops for kernel in reading.kernels.values())
    return {
        "cycles": reading.cycles,
        "kernel_flops": kernels,
        "temporary_mib": round(memory.temp_size_in_bytes / 2**20, 1),
        "exchanged_mib": round(
            sum(c.bytes for k, c in reading.collectives.items() if k == "all-to-all") / 2**20, 1
        ),
    }


def main() -> None:
    """Prints a JSON line for each layer."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--topology", default="v5e-1")
    for name, default in (("tokens", 8192), ("width", 1024), ("inner", 2816), ("experts", 8)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--choices", type=int, default=2)
    parser.add_argument("--capacity", type=float, default=2.0)
    parser.add_argument("--layers", nargs="+", default=LAYERS, choices=LAYERS)
    options = parser.parse_args()
    where = topology.parse(options.topology)
    mesh = MeshConfig(data=1, expert=-1).make(described.devices(where))
    for name in options.layers:
        found = compiled(name, options, mesh)
        seconds = found["kernel_flops"] / (hlo.EFFICIENCY * where.chip.flops)
        found["with_kernels"] = round(found["cycles"] + seconds * where.chip.clock)
        print(json.dumps({"layer": name, "topology": options.topology} | found), flush=True)


if __name__ == "__main__":
    main()
