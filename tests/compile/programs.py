"""Compiles programs for described chips in a process of its own: `programs.py OUT CHIPS`.

Writes OUT/<name>.txt, the compiled text of each program, and OUT/memory.json, what the compiler
says of its memory. A process of its own, because the compiler of TPU refuses the XLA_FLAGS with
which tests run on CPU, and because it may end the process that it runs in.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import small
from jax.experimental import pallas as pl
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from mmjax import step as step_lib
from mmjax.models import MoE, moe
from mmjax.models import attention as attention_lib
from mmjax.models import weights as weights_lib
from mmjax.models.routers import Routing
from mmjax.objectives import MaskedTokens
from mmjax.optim import AdamW, Muon, optimizer
from mmjax.parallel import MeshConfig, MeshRules
from mmjax.parallel.mesh import BATCH_AXES
from mmjax.plan import described, topology
from mmjax.typing import General, InOrder, OneSegment

# Lengths that no other dimension has, so that an array of queries x keys is known by its shape.
INPUT, TARGET, HEADS, LONG = 384, 272, 2, 1280


def chips(name: str) -> list[Any]:
    """Eight devices of a described machine: a host of v5e or of H100."""
    return described.devices(topology.parse("v5e-8" if name == "tpu" else "h100x8"))


def like(mesh, shape, dtype, *spec):
    """Shape, dtype and sharding of an argument."""
    return jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(mesh, P(*spec)))


def gather(mesh):
    """Six layers whose weights of 1,024 x 1,024, in eight parts, are gathered in bfloat16."""

    def layer(x, w):
        w = jax.lax.with_sharding_constraint(w.astype(jnp.bfloat16), P())
        return jnp.tanh(x @ w), ()

    weights = like(mesh, (6, 1024, 1024), jnp.float32, None, "fsdp")
    return (
        lambda x, w: jax.lax.scan(layer, x, w)[0],
        like(mesh, (1024, 1024), jnp.bfloat16, "fsdp"),
        weights,
    )


def gradient(mesh):
    """Gradients of four layers of two weights, which are scattered; XLA fuses a gather with the
    product before it."""

    def layer(x, weights):
        up, down = (jax.lax.with_sharding_constraint(w.astype(jnp.bfloat16), P()) for w in weights)
        return x + jax.nn.relu(x @ up) @ down, ()

    def loss(weights, x):
        x = jax.lax.scan(jax.checkpoint(layer), x, weights)[0]
        return (x.astype(jnp.float32) ** 2).mean()

    def run(weights, x):
        return jax.lax.with_sharding_constraint(jax.grad(loss)(weights, x), P(None, "fsdp"))

    up = like(mesh, (4, 1024, 4096), jnp.float32, None, "fsdp")
    down = like(mesh, (4, 4096, 1024), jnp.float32, None, "fsdp")
    return run, (up, down), like(mesh, (8 * 2048, 1024), jnp.bfloat16, "fsdp")


def scatter(mesh):
    """Five turns, each of which scatters the sum of 4,096 x 1,024 in float32."""

    def turn(carry, x):
        part = jax.lax.psum_scatter(x * carry.sum(), "fsdp", tiled=True)
        return carry + jnp.tanh(part), ()

    def run(x):
        return jax.lax.scan(turn, jnp.ones((512, 1024), jnp.float32), x)[0]

    run = jax.shard_map(run, mesh=mesh, in_specs=P(), out_specs=P("fsdp"), check_vma=False)
    return run, like(mesh, (5, 4096, 1024), jnp.float32)


def others(mesh):
    """A sum, an exchange and a shift of 512 x 1,024 float32 a device."""
    ring = [(i, (i + 1) % 8) for i in range(8)]

    def run(x):
        swapped = jax.lax.all_to_all(x, "fsdp", 0, 1, tiled=True)
        return jax.lax.psum(x, "fsdp"), swapped, jax.lax.ppermute(x, "fsdp", ring)

    run = jax.shard_map(run, mesh=mesh, in_specs=P("fsdp"), out_specs=P("fsdp"), check_vma=False)
    return run, like(mesh, (4096, 1024), jnp.float32, "fsdp")


def matmul(mesh):
    """A product of 2,048 x 2,048 matrices on each device, twice."""
    square = like(mesh, (2048, 2048), jnp.bfloat16)
    return (lambda a, b: (a @ b) @ b), square, square


def kernel(mesh):
    """A Pallas kernel of 12,345 FLOPs, seven times."""

    def double(x, out):
        out[...] = x[...] * 2

    def turn(x, _):
        cost = pl.CostEstimate(flops=12345, bytes_accessed=10, transcendentals=0)
        shape = jax.ShapeDtypeStruct(x.shape, x.dtype)
        return pl.pallas_call(double, out_shape=shape, name="double_it", cost_estimate=cost)(x), ()

    def run(x):
        return jax.lax.scan(turn, x, None, length=7)[0]

    run = jax.shard_map(run, mesh=mesh, in_specs=P(), out_specs=P(), check_vma=False)
    return run, like(mesh, (128, 128), jnp.float32)


def attention(mesh):
    """Gradients of attention over rows of 1,280 tokens, causal by numbers known at run time."""
    return _attention(mesh, "pallas", True)


def splash(mesh):
    """The same with jax's kernel, not causal."""
    return _attention(mesh, "splash", False)


def cudnn(mesh):
    """The same with cuDNN, over rows that are one segment."""
    return _attention(mesh, "cudnn", False, OneSegment())


def cudnn_causal(mesh):
    """The same in the order of slots."""
    return _attention(mesh, "cudnn", True, InOrder())


def _attention(mesh, name: str, causal: bool, rule: Any = General()):
    where = attention_lib.Visibility(
        *(like(mesh, (8, LONG), jnp.int32, "fsdp") for _ in range(3)), rule
    )
    isolate = isinstance(rule, General)
    tokens = like(mesh, (8, LONG, 4, 128), jnp.bfloat16, "fsdp")

    def loss(q, k, v, where):
        out = attention_lib.attend(
            q, k, v, where, where, causal=causal, isolate=isolate, implementation=name
        )
        return jnp.sum(out.astype(jnp.float32) ** 2)

    return jax.grad(loss, (0, 1, 2)), tokens, tokens, tokens, where


def muon(mesh):
    """An update of a stack of 12 matrices of 256 x 512 whose rows lie in eight parts."""
    matrices = {"w": optimizer.matrix_of(("embed", "mlp"), (0,), 3)}
    tx = Muon().make(matrices, 100)
    params = {"w": like(mesh, (12, 256, 512), jnp.float32, None, "fsdp")}
    where = jax.sharding.NamedSharding(mesh, P(None, "fsdp"))
    state = jax.eval_shape(tx.init, params)
    state = jax.tree.map(
        lambda x: like(mesh, x.shape, x.dtype, *((None, "fsdp") if x.ndim else ())), state
    )

    def run(grads, state, params):
        with step_lib.standard_promotion():
            return jax.lax.with_sharding_constraint(tx.update(grads, state, params)[0]["w"], where)

    return run, params, state, params


def experts(mesh, exchange="equal"):
    """Gradients of a layer of eight experts, two on each device of an axis; 256 tokens a device
    choose two each, and rooms hold twice the fair share: 4 x 256 rows."""
    tokens = like(mesh, (8, 256, 256), jnp.bfloat16, BATCH_AXES)
    choices = like(mesh, (8, 256, 2), jnp.int32, BATCH_AXES)
    weights = like(mesh, (8, 256, 2), jnp.float32, BATCH_AXES)
    wide = like(mesh, (8, 256, 512), jnp.float32, "expert", "fsdp")
    down = like(mesh, (8, 512, 256), jnp.float32, "expert", None, "fsdp")
    specs = [P("expert", "fsdp"), P("expert", "fsdp"), P("expert", None, "fsdp")]
    config = MoE(num_experts=8, exchange=exchange)

    def loss(x, weight, matrices, expert):
        ready = [
            weights_lib.Placement(spec, "bfloat16", "bfloat16").ready(w)
            for w, spec in zip(matrices, specs, strict=True)
        ]
        routing = Routing(expert_WTX=expert, weight_WTX=weight)
        out = moe.expert_ffn(x, routing, *ready, config).x_WTD
        return jnp.sum(out.astype(jnp.float32) ** 2)

    return jax.grad(loss, (0, 1, 2)), tokens, weights, (wide, wide, down), choices


def ragged_experts(mesh):
    """The same, where devices send the rows that are used."""
    return experts(mesh, "ragged")


def step(mesh):
    """A training step of the tests' small world in bfloat16, parameters over `fsdp`."""
    model = small.config(width=128, num_heads=HEADS, mlp_width=320)
    model = dataclasses.replace(model, moe=dataclasses.replace(model.moe, width=128))
    objective = MaskedTokens()
    heads = objective.heads(small.SPECS, small.SPECS)
    parts = step_lib.split(functools.partial(model.make, small.VOCABULARY, heads, 0))
    tx = AdamW().make(parts.matrices, 100)
    shardings = step_lib.state_shardings(parts, tx, {}, mesh, MeshRules())

    def init(params, model_state):
        zero = jnp.zeros((), jnp.int32)
        return step_lib.TrainState(zero, params, model_state, tx.init(params), {})

    state = jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
        jax.eval_shape(init, parts.params, parts.model_state),
        shardings,
    )
    rng = np.random.default_rng(0)
    views = {
        "input": small.view(rng, "image", length=INPUT),
        "target": small.view(rng, "codes", length=TARGET, masked=True),
    }
    batch = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=small.batch_sharding(mesh)),
        small.base(rng, views, {"codes": small.targets(rng, "codes", length=TARGET)}),
    )
    run = small.train_step(model, parts, tx, objective, shardings, dtype="bfloat16")
    return run, state, batch


PROGRAMS = {
    "tpu": (
        step,
        gather,
        gradient,
        scatter,
        others,
        matmul,
        kernel,
        attention,
        splash,
        muon,
        experts,
        ragged_experts,
    ),
    "cuda": (step, gather, scatter, others, kernel, cudnn, cudnn_causal, experts),
}
MESHES = {"experts": MeshConfig(data=1, fsdp=2, expert=4)}
MESHES["ragged_experts"] = MESHES["experts"]


def main(out: Path, name: str) -> None:
    memory, devices = {}, chips(name)
    for make in PROGRAMS[name]:
        mesh = MESHES.get(make.__name__, MeshConfig(fsdp=8)).make(devices)
        with jax.set_mesh(mesh):
            run, *arguments = make(mesh)
            run = run if hasattr(run, "lower") else jax.jit(run)
            compiled = run.lower(*arguments).compile()
        (out / f"{make.__name__}.txt").write_text(compiled.as_text())
        said = compiled.memory_analysis()
        memory[make.__name__] = {
            "arguments": said.argument_size_in_bytes, "temporary": said.temp_size_in_bytes
        }  # fmt: skip
        if make is step:
            sizes = [x.size for x in jax.tree.leaves(arguments[0].params)]
            memory["step"]["parameters"] = sum(sizes)
    (out / "memory.json").write_text(json.dumps(memory))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
