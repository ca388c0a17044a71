"""One optimizer step of the demo's tasks against a hand-written lower bound.

    python benchmarks/step.py [--processes 5] [--rounds 3] [--steps 4] [--out FILE]

Contenders are child processes that have compiled and warmed up; they are asked in rotating order
for a short burst of steps. CPU time is user + system time of the child; ratios are taken inside a
round, and medians over rounds are printed. The machine may be noisy: the ratio is the result.
Processes of one and the same program differ by up to 10 %, so each contender is started several
times. Host time is CPU time of the thread that calls the step and reads the metrics before; what of
it the device waits for, in the whole loop, is read from a trace: see host.py.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import statistics
import sys
import time
from pathlib import Path

import host
from turns import ROOT, Turns, cpu_seconds, quartiles

TASKS = ("masked", "image_text")
LIMIT, HOST_LIMIT_MS = 1.1, 1.0


def demo(task: str, folder: Path):
    """The demo's program and a real batch of a task."""
    from etils import epath

    from mmjax import config
    from mmjax.data import loader, mixture
    from mmjax.run import program
    from mmjax.run import workdir as workdir_lib

    experiment = config.load(f"{ROOT / 'configs' / 'quickstart.py'}:raw")
    learned = epath.Path(folder) / config.fingerprint(experiment.modalities["text"])[:12]
    experiment = workdir_lib.ready_modalities(experiment, learned, main=True)
    built = program.build(experiment)
    only = {task: experiment.tasks[task]}
    schedule = experiment.mixture.bind(only, experiment.seed)
    readers = loader.readers(only, experiment.modalities, built.vocabulary, "train", 0.0)
    batches = loader.Batches(
        schedule, mixture.Journal(), readers, built.vocabulary, experiment.seed
    )
    return built, loader.to_global(batches[0][1], built.batch_sharding)


def model_flops(built, batch) -> float:
    """Forward FLOPs of a batch by mmjax's own account."""
    from mmjax.models import plan

    model, total = built.experiment.model, 0.0
    for name, view in batch.views.items():
        lane = "dec" if name == "target" else "enc"
        read = batch.views["input"].ids_BL.shape[1] if lane == "dec" else 0
        rows, length = view.ids_BL.shape
        total += rows * length * plan.flops_per_token(model, lane, length, read)
    return total


def bound_flops(params, batch) -> float:
    """The same from the matrices of the lower bound: 2 per multiply-add, causal scores halved."""
    total = 0.0
    for name, view in batch.views.items():
        rows, length = view.ids_BL.shape
        decodes = name == "target"
        read = batch.views["input"].ids_BL.shape[1] if decodes else 0
        for block in params["runs"][int(decodes)]["blocks"].values():
            repeats, _, heads, width = block["attention"]["query"].shape
            scores = repeats * 2 * heads * width
            total += rows * length * (matrices(block["attention"]) + matrices(block["mlp"]))
            total += rows * length * length * scores * (0.5 if decodes else 1.0)
            if decodes:
                cross = block["cross"]
                total += rows * (length * (cross["query"].size + cross["out"].size))
                total += rows * read * (cross["key"].size + cross["value"].size + length * scores)
    return 2.0 * total


def matrices(tree, chosen: int = 2) -> float:
    """Weights that a token meets: all of a matrix, or of `chosen` experts."""
    experts = tree["router"].shape[-1] if "router" in tree else 0
    weights = {name: leaf for name, leaf in tree.items() if not isinstance(leaf, dict)}
    return sum(
        leaf.size * (chosen / experts if experts and name != "router" else 1.0)
        for name, leaf in weights.items()
    )


def plain(tree):
    """Dicts all the way down."""
    return {k: plain(v) for k, v in tree.items()} if hasattr(tree, "items") else tree


def bound(built, batch):
    """The step and state of the lower bound, from the parameters that mmjax begins with."""
    import jax
    import jax.numpy as jnp
    import lower_bound

    experiment = built.experiment
    init = built.init_state()
    params, model_state, names = plain(init.params), plain(init.model_state), {}
    for i, name in enumerate({**experiment.heads(), **experiment.model.heads}):
        names[name] = names[name.split("/")[0]] = i
    for spec in built.vocabulary.specs:
        start = built.vocabulary.range(spec.name)[0]
        names["ids/" + spec.name] = (start, start + spec.vocab_size)
        names["piece/" + spec.name] = f"s{built.vocabulary.number(spec.name)}"
    if len(batch.views) == 2 and "input" not in batch.views:
        names["scale"] = names["scale/" + "+".join(sorted(batch.views))]
    bias = {r: {} for r in params["runs"]}
    for r, run in model_state.get("runs", {}).items():
        bias[r] = {i: block["mlp"]["bias"] for i, block in run["blocks"].items()}

    def kind(leaf, matrix):
        """Shape of the matrices in a leaf, () for what Adam moves."""
        if matrix is None:
            return ()
        sizes = (math.prod(leaf.shape[d] for d in dims) for dims in (matrix.inputs, matrix.outputs))
        return (-1, *sizes)

    leaves, tree = jax.tree.flatten(params)
    flat = tree.flatten_up_to(plain(built.matrices))
    kinds = tree.unflatten([kind(x, m) for x, m in zip(leaves, flat, strict=True)])
    loss = lower_bound.masked if "input" in batch.views else lower_bound.contrast
    run = lower_bound.make_step(loss, names, kinds)
    zeros = jax.tree.map(jnp.zeros_like, params)
    other = jax.tree.map(lambda x, k: jnp.zeros(() if k else x.shape), params, kinds)
    return run, (params, bias, zeros, other, jnp.zeros((), jnp.int32)), bound_flops(params, batch)


def child(contender: str, task: str, folder: Path) -> None:
    """Compiles, says what it is, then answers each number on stdin with ms of so many steps."""
    import jax

    built, batch = demo(task, folder)
    if contender == "mmjax":
        with jax.set_mesh(built.mesh):
            shapes = jax.tree.map(
                lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), batch
            )
            run = built.train_step(task).lower(built.abstract_state(), shapes).compile()
        state, flops = built.init_state(), model_flops(built, batch)
        params = state.params

        def step(state):
            state, metrics = run(state, batch)
            return state, metrics
    else:
        jitted, state, flops = bound(built, batch)
        params = state[0]
        run = jitted.lower(state, batch).compile()

        def step(state):
            state, loss = run(state, batch)
            return state, {"loss": loss}

    count = sum(x.size for x in jax.tree.leaves(params))
    state, first = step(state)
    for _ in range(2):
        state, _ = step(state)
    jax.block_until_ready(state)
    about = {"parameters": count, "flops": flops, "first_loss": float(first["loss"])}
    print(json.dumps(about), flush=True)
    for line in sys.stdin:
        cpu, wall, thread = cpu_seconds(), time.perf_counter(), 0.0
        for _ in range(int(line)):
            start, last = time.thread_time(), first
            state, first = step(state)
            jax.device_get(last)  # as in the loop: metrics are read one step late
            thread += time.thread_time() - start
            jax.block_until_ready(first)
        jax.block_until_ready(state)
        ms = 1e3 / int(line)
        row = [ms * (cpu_seconds() - cpu), ms * (time.perf_counter() - wall), ms * thread]
        print(json.dumps(row), flush=True)


def measure(task: str, processes: int, rounds: int, steps: int, folder: Path) -> dict:
    """Medians and ratios of a task."""
    names: tuple[str, ...] = ("mmjax", "bound")
    rows: dict[str, list] = {n: [] for n in names}
    for p in range(processes):
        names = names[::-1]  # which one is started first may matter too
        arguments = {n: (n, task, str(folder)) for n in names}
        turns = Turns(__file__, arguments, compiling=() if p else names)
        about = turns.about
        for key, tolerance in (("parameters", 0.0), ("flops", 1e-9), ("first_loss", 1e-4)):
            ours, theirs = about["mmjax"][key], about["bound"][key]
            if abs(ours - theirs) > tolerance * abs(theirs):
                raise SystemExit(f"{task}: {key} differ: {ours} of mmjax, {theirs} of the bound.")
        for name, more in turns.run(rounds, lambda r: steps).items():
            rows[name] += more
    spread = quartiles([a[0] / b[0] for a, b in zip(rows["mmjax"], rows["bound"], strict=True)])
    median = {
        n: [statistics.median(column) for column in zip(*v, strict=True)] for n, v in rows.items()
    }
    return {
        "about": about,
        "cpu_ms": {n: m[0] for n, m in median.items()},
        "wall_ms": {n: m[1] for n, m in median.items()},
        "host_ms": {n: m[2] for n, m in median.items()},
        "cpu_ratio": spread[1],
        "cpu_ratio_quartiles": spread[::2],
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--processes", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--tasks", nargs="*", default=TASKS)
    parser.add_argument("--folder", type=Path, default=ROOT / ".cache" / "benchmarks")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--child", nargs=3, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        child(args.child[0], args.child[1], Path(args.child[2]))
        return 0
    args.folder.mkdir(parents=True, exist_ok=True)
    found, good = {"machine": f"{os.cpu_count()} x {platform.machine()}"}, True
    for task in args.tasks:
        result = found[task] = measure(task, args.processes, args.rounds, args.steps, args.folder)
        cpu, low, high = result["cpu_ms"], *result["cpu_ratio_quartiles"]
        thread = result["host_ms"]["mmjax"]
        good &= result["cpu_ratio"] <= LIMIT and thread <= HOST_LIMIT_MS
        print(
            f"{task}: {cpu['mmjax']:.0f} ms CPU, lower bound {cpu['bound']:.0f} ms, ratio"
            f" {result['cpu_ratio']:.2f} ({low:.2f} to {high:.2f}; at most {LIMIT});"
            f" host {thread:.2f} ms (at most {HOST_LIMIT_MS})"
        )
    found["host"] = host.measure()
    good &= host.is_good(found["host"])
    print(host.describe(found["host"]))
    if args.out:
        args.out.write_text(json.dumps(found, indent=1))
    return 0 if good else 3


if __name__ == "__main__":
    sys.exit(main())
