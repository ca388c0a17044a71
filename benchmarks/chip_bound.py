"""The step of 4M by hand for TPU, beside the step of mmjax, both compiled for the same chips.

    python benchmarks/chip_bound.py [--config configs/anyany/fourm.py:base] [--topology v5e-16]
        [--layers 12] [--save FOLDER] [--json] [--any.field value ...]

One file of plain jax: parameters, batch and shardings are those of mmjax's program, attention is
its kernel, everything else is written out. Nothing is run: cycles and bytes are the compiler's.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import json
import os
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import jax.numpy as jnp
import optax
from jax.sharding import PartitionSpec as P

from mmjax import config
from mmjax.experiment import Experiment
from mmjax.models import flash
from mmjax.parallel.mesh import BATCH_AXES
from mmjax.plan import assumed, compiler, flops, hlo, policy, topology
from mmjax.plan.described import devices
from mmjax.run import program as program_lib

ROWS = P(BATCH_AXES)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def whole(x, spec):  # cast, then gathered; its gradient is scattered in bfloat16
    return jax.lax.with_sharding_constraint(x.astype(jnp.bfloat16), P(*[None] * x.ndim))


whole.defvjp(
    lambda x, spec: (whole(x, spec), None),
    lambda spec, _, d: (jax.lax.with_sharding_constraint(d, spec).astype(jnp.float32),),
)


def norm(x, p):
    y = x.astype(jnp.float32)
    y = y - y.mean(-1, keepdims=True)
    y = y * jax.lax.rsqrt((y * y).mean(-1, keepdims=True) + 1e-6)
    return (y * p["scale"]).astype(x.dtype)


def attend(p, x, memory, q_marks, k_marks):
    flat = lambda x, w: (x @ w.reshape(w.shape[0], -1)).reshape(*x.shape[:2], *w.shape[1:])
    rows = P(BATCH_AXES)
    kernel = jax.shard_map(flash.attention, in_specs=rows, out_specs=rows, check_vma=False)
    k, v = flat(memory, p["key"]), flat(memory, p["value"])
    out = kernel(flat(x, p["query"]), k, v, q_marks, k_marks)
    return out.reshape(*x.shape[:2], -1) @ p["out"].reshape(-1, x.shape[-1])


def marks(view, padding, isolate, causal):
    number = view.segment_BL << 16 | view.stream_BL if isolate else view.segment_BL
    number = jnp.where(view.segment_BL > 0, number, padding)
    return jnp.stack([number, view.order_BL] if causal else [number], 1)


def lane(params, specs, table, r, view, names, memory=None, source=None):
    half = table.shape[1] // 2
    valid = (view.stream_BL > 0)[..., None].astype(jnp.bfloat16)
    x = table[view.ids_BL] * (2 * half) ** 0.5
    x = jnp.where((view.ids_BL > 0)[..., None], x, params["mask"][view.stream_BL - 1])
    for name, v in view.values.items():
        piece = v.value_BJP.astype(jnp.bfloat16) @ whole(
            params["pieces"][names[name]], specs["pieces"][names[name]]
        )
        rows = jnp.arange(len(x))[:, None]
        x = x.at[rows, v.slot_BJ].set(piece.astype(x.dtype), mode="drop")

    def place(x, view):
        angle = view.position_BLA[..., jnp.arange(half) % 3] * 1e4 ** (-jnp.arange(half) / half)
        x = x + jnp.concatenate([jnp.sin(angle), jnp.cos(angle)], -1)
        x = x + params["stream"][view.stream_BL - 1]
        return x.astype(jnp.bfloat16) * (view.stream_BL > 0)[..., None].astype(jnp.bfloat16)

    own = source is not None
    q_marks, k_marks = marks(view, -1, own, own), marks(view, 0, own, own)
    if source is not None:
        memory = place(memory @ whole(params["memory"][0], specs["memory"][0]), source)
        q_seen, k_seen = marks(view, -1, False, False), marks(source, 0, False, False)
    spec_of = specs["runs"][r]["blocks"][0]

    def layer(x, p):
        ready = lambda w, s: whole(w, P(*s[1:])) if w.ndim > 1 else w
        p = jax.tree.map(ready, p, spec_of)
        y = norm(x, p["norm1"])
        x = x + attend(p["attention"], y, y, q_marks, k_marks)
        if source is not None:
            y = norm(memory, p["memory_norm"])
            x = x + attend(p["cross"], norm(x, p["cross_norm"]), y, q_seen, k_seen)
        y, w = norm(x, p["norm2"]), p["mlp"]
        x = x + (jax.nn.silu(y @ w["gate"]) * (y @ w["up"])) @ w["down"]
        return jax.lax.with_sharding_constraint(x, ROWS), None

    layer = jax.checkpoint(layer, policy=jax.checkpoint_policies.dots_with_no_batch_dims_saveable)
    x, _ = jax.lax.scan(layer, place(x, view) * valid, params["runs"][r]["blocks"][0])
    return norm(x, params["final_norms"][r])


def loss(params, specs, batch, names, ranges):
    table = whole(params["table"], specs["table"])
    source, target = batch.views["input"], batch.views["target"]
    memory = lane(params, specs, table, 0, source, names)
    x = lane(params, specs, table, 1, target, names, memory, source)
    total = 0.0
    for name, t in batch.targets.items():
        index = (t.row_WU * x.shape[1] + t.slot_WU)[..., None]
        y = jnp.take_along_axis(x.reshape(len(index), -1, x.shape[-1]), index, 1)

        @jax.checkpoint
        def read(y, rows, label):
            logits = jnp.einsum("WUD,VD->WUV", y, rows, preferred_element_type=jnp.float32)
            return optax.softmax_cross_entropy_with_integer_labels(logits, label)

        each = read(y, table[slice(*ranges[name])], t.label_WU)
        total += (each * t.weight_WU).sum() / t.weight_WU.sum() / len(batch.targets)
    return total


def step(program, names, ranges):
    """(params, first, second, count), batch -> the same, loss: AdamW with clipping."""
    specs = jax.tree.map(lambda s: s.spec, program.shardings.params)

    def run(state, batch):
        params, first, second, n = state
        value, grads = jax.value_and_grad(loss)(params, specs, batch, names, ranges)
        clip = 1 / jnp.maximum(optax.tree.norm(grads), 1)

        def update(g, p, m, v):
            g = g * clip
            m, v = 0.9 * m + 0.1 * g, 0.95 * v + 0.05 * g * g
            u = m / (1 - 0.9 ** (n + 1)) / (jnp.sqrt(v / (1 - 0.95 ** (n + 1))) + 1e-8)
            return p - 1e-3 * (u + 0.05 * p), m, v

        tree = jax.tree.structure(params)
        leaves = map(tree.flatten_up_to, (grads, params, first, second))
        new = [update(*xs) for xs in zip(*leaves, strict=True)]
        return (*map(tree.unflatten, zip(*new, strict=True)), n + 1), value

    where = program.shardings
    state = (where.params, where.params, where.params, where.step)
    return jax.jit(
        run, in_shardings=(state, program.batch_sharding), out_shardings=(state, where.step),
        donate_argnums=0, compiler_options=program_lib.mesh_lib.compiler_options(program.mesh),
    )  # fmt: skip


def report(text: str, memory, seconds: float, chip, save: Path | None) -> dict:
    if save:
        save.write_text(text)
    reading = hlo.read(text)
    return {
        "cycles": reading.cycles,
        "kernel_flops": sum(k.flops for k in reading.kernels.values()),
        "estimated_seconds": reading.estimated_seconds(chip.clock, chip.flops),
        "temporaries": memory,
        "collectives": {k: c.by_dtype for k, c in reading.collectives.items()},
        "compile_seconds": round(seconds, 1),
    }


def bound(program: program_lib.Program, task: str, chip, save: Path | None) -> dict:
    """The hand-written step, compiled."""
    vocabulary = program.vocabulary
    names = {s.name: f"s{vocabulary.number(s.name)}" for s in vocabulary.specs}
    ranges = {
        s.name: (vocabulary.range(s.name)[0], vocabulary.range(s.name)[0] + s.vocab_size)
        for s in vocabulary.specs
    }
    state = program.abstract_state()
    shapes = program_lib.loader.example_batch(
        program.experiment.tasks[task], "default", program.experiment.modalities, vocabulary
    )
    batch = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=program.batch_sharding), shapes
    )
    began = time.perf_counter()
    with jax.set_mesh(program.mesh):
        run = step(program, names, ranges)
        made = run.lower((state.params, state.params, state.params, state.step), batch).compile()
    seconds = time.perf_counter() - began
    return report(made.as_text(), made.memory_analysis().temp_size_in_bytes, seconds, chip, save)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", default="configs/anyany/fourm.py:base")
    parser.add_argument("--topology", default="v5e-16", help=topology.EXAMPLES)
    parser.add_argument("--layers", type=int, default=0, help="of each stack; 0 = the config's")
    parser.add_argument("--save", type=Path, help="folder for the texts of both")
    parser.add_argument("--json", action="store_true")
    options, fields = parser.parse_known_args()
    where = topology.parse(options.topology)
    experiment = config.override(config.load(options.config, kind=Experiment), fields)
    if options.layers:
        sizes = {"encoder_layers": options.layers, "decoder_layers": options.layers}
        model = dataclasses.replace(experiment.model, **sizes)
        experiment = dataclasses.replace(experiment, model=model)
    experiment = policy.resolved(assumed.ready(experiment)[0], where)
    program = program_lib.build(experiment, devices(where))
    (task,) = experiment.tasks
    texts = {n: options.save / f"{n}.txt" if options.save else None for n in ("by_hand", "mmjax")}
    by_hand = bound(program, task, where.chip, texts["by_hand"])
    key = (task, "default")
    made = compiler.compile_steps(experiment, where, [key])[key]
    ours = report(made.text, made.temporaries, made.seconds, where.chip, texts["mmjax"])
    asked = flops.step_flops(experiment, task, "default", program.vocabulary)
    asked /= where.num_devices * where.chip.flops
    result = {"by_hand": by_hand, "mmjax": ours}
    for found in result.values():
        found["share_of_peak"] = asked / found["estimated_seconds"]
    result["ratios"] = {k: ours[k] / by_hand[k] for k in ("cycles", "temporaries")}
    print(json.dumps(result, indent=None if options.json else 2))


if __name__ == "__main__":
    main()
