"""Own data against a plain convolutional net and ridge: the same samples, the same visits.

    python benchmarks/own_sets.py melodies data/melodies
    python benchmarks/own_data.py data/melodies --seeds 3 --visits 38400

For each seed, `configs/own_data.py` learns from the set, and so do plain nets (plain_net.py), from
batches of the same samples; ridge maps raw features of one kind of data to those of
another. What is compared is the mean reciprocal rank of the right answer among all held-out items,
in each direction from one kind of data to another. A row of JSON a seed, then the means.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import tempfile
import time
from pathlib import Path

import jax
import numpy as np

import mmjax
from mmjax import config
from mmjax.data import loader, mixture
from mmjax.data.layouts import Aligned
from mmjax.data.task import Sample, Streams
from mmjax.evaluate import Retrieval, ranking
from mmjax.models import Convolutions
from mmjax.objectives import CoCa
from mmjax.plan import flops

ROOT = Path(__file__).resolve().parents[1]
TRAIN = 100_000  # records that ridge learns from, or all


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("data")
    parser.add_argument("--config", default=f"{ROOT}/configs/own_data.py:small")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--visits", type=int, default=38_400)
    parser.add_argument("--set", nargs="*", default=[], metavar="FIELD=VALUE")
    parser.add_argument(
        "--arms", nargs="*", default=["net", "ridge"],
        choices=["net", "ridge", *OTHERS],
        help="by_pair: a contrast a pair in turn, of as many encoded views; stems: convolutions in"
        " place of patches; varied: augmentation; shared: one task that contrasts and predicts, at"
        " equal FLOPs",
    )  # fmt: skip
    args = parser.parse_args()
    rows = [one(args, seed) for seed in range(args.seeds)]
    for arm in args.arms:
        mean = lambda name, d: np.mean([row[name][d] for row in rows])
        ratio = {d: float(mean("mmjax", d) / mean(arm, d)) for d in rows[0]["mmjax"]}
        together = float(np.exp(np.mean(np.log(list(ratio.values())))))
        print(json.dumps({"against": arm, "ratio": ratio, "geometric_mean": together}))


def one(args, seed: int) -> dict:
    """Mean reciprocal ranks of all arms by direction, and CPU seconds."""
    file, _, name = args.config.rpartition(":")
    module = config.load_module(file)
    module.get_config.__defaults__ = (args.data, *module.get_config.__defaults__[1:])
    experiment = dataclasses.replace(getattr(module, name)(), seed=seed, evaluators={})
    flags = [(f"--{field}", value) for field, value in (x.split("=") for x in args.set)]
    experiment = config.override(experiment, list(itertools.chain.from_iterable(flags)))
    row: dict = {"seed": seed}
    experiment = for_visits(experiment, args.visits)
    ready, held_out = learned(experiment, row, "mmjax", has_ridge="ridge" in args.arms)
    for arm in (name for name in OTHERS if name in args.arms):
        learned(OTHERS[arm](experiment), row, arm)
    if "net" in args.arms:
        began = time.process_time()
        row["net"] = ranks(net(ready, args.visits, seed, held_out), held_out)
        say(row, "net")
        row["net_seconds"] = round(time.process_time() - began, 1)
    print(json.dumps(row), flush=True)
    return row


def say(row: dict, arm: str) -> None:
    """What an arm has reached, at once: a benchmark of hours may be stopped."""
    mean = float(np.mean(list(row[arm].values())))
    told = {"seed": row["seed"], "arm": arm, "mean": round(mean, 4), **row[arm]}
    print(json.dumps(told), flush=True)


def for_visits(experiment, visits: float):
    """As many steps as take so many rows."""
    tasks = experiment.tasks.values()
    rows = sum(t.weight * t.batch_size for t in tasks) / sum(t.weight for t in tasks)
    return dataclasses.replace(experiment, total_steps=round(visits / rows))


def by_pair(experiment):
    """With a task a pair in place of the contrast of three kinds. A step encodes two of three, so
    there are half as many again, and as many of the others as before."""
    tasks = dict(experiment.tasks)
    whole = tasks.pop("contrast")
    for a, b in itertools.combinations(whole.inputs, 2):
        augment = {n: how for n, how in whole.augment.items() if n in (a, b)}
        tasks[f"{a}_{b}"] = dataclasses.replace(
            whole, inputs=(a, b), augment=augment, weight=whole.weight / 2
        )
    weight = lambda some: sum(task.weight for task in some.values())
    steps = experiment.total_steps * weight(tasks) / weight(experiment.tasks)
    return dataclasses.replace(experiment, tasks=tasks, total_steps=round(steps))


def stems(experiment):
    """With convolutions in place of a matrix for each patch."""
    known = {"image": Convolutions(channels=(16, 32, 64)), "audio": Convolutions(channels=(16, 32))}
    of = {name: stem for name, stem in known.items() if name in experiment.modalities}
    return dataclasses.replace(experiment, model=dataclasses.replace(experiment.model, stems=of))


def varied(experiment):
    """With augmentation, as the recipe has it for long runs."""
    recipe = config.load_module(f"{ROOT}/configs/own_data.py")
    return dataclasses.replace(experiment, tasks=recipe.varied(experiment.tasks))


def shared(experiment):
    """With one task that contrasts and predicts texts from one encoding, in as many steps as take
    the FLOPs of both."""
    whole, vocabulary = experiment.tasks["contrast"], experiment.vocabulary()
    augment = {n: how for n, how in whole.augment.items() if n != "text"}
    task = dataclasses.replace(whole, targets=("text",), objective=CoCa(), augment=augment)
    one = dataclasses.replace(experiment, tasks={"contrast": task})
    of = lambda e, name: flops.step_flops(e, name, "default", vocabulary)
    tasks = experiment.tasks
    mean = sum(t.weight * of(experiment, n) for n, t in tasks.items())
    mean /= sum(t.weight for t in tasks.values())
    return dataclasses.replace(
        one, total_steps=round(experiment.total_steps * mean / of(one, "contrast"))
    )


OTHERS = {"by_pair": by_pair, "stems": stems, "varied": varied, "shared": shared}


def learned(experiment, row: dict, arm: str, has_ridge: bool = False):
    """The experiment as it ran, and the held-out items; ranks and CPU seconds go into the row, and
    the ranks of ridge by those train records that the run learned from."""
    with tempfile.TemporaryDirectory() as workdir:
        began = time.process_time()
        result = mmjax.train(experiment, workdir)
        row[f"{arm}_seconds"] = round(time.process_time() - began, 1)
        view = mmjax.load(workdir, split=experiment.data.eval_split)
        ready = result.program.experiment
        held_out = encoded(ready, experiment.data.eval_split)
        found = {n: view.embed_pieces(n, [p.get(n) for p, _ in held_out]) for n in ready.modalities}
        row[arm] = ranks(found, held_out)
        say(row, arm)
        if has_ridge:
            kinds = tuple(ready.modalities)
            whole = Retrieval(modalities=kinds, gallery=len(held_out), num_train=TRAIN)
            linear = whole.baselines(view, {})["ridge"]
            row["ridge"] = {d: linear[f"{d}_MRR"] for d in row[arm]}
            say(row, "ridge")
    return ready, held_out


def encoded(experiment, split: str) -> list:
    """(pieces by stream, identity) of all records of a split."""
    task = next(iter(experiment.tasks.values()))
    streams = tuple(experiment.modalities)
    found = loader.readers(
        {"all": dataclasses.replace(task, inputs=streams, targets=(), augment={})},
        experiment.modalities, experiment.vocabulary(), split, 0.01,
    )["all"]  # fmt: skip
    read = (found.read(i, streams) for i in range(len(found)))
    return [(r.pieces, i) for i, r in enumerate(read)]


def ranks(vectors: dict, held_out: list) -> dict[str, float]:
    """Mean reciprocal rank of the right item among all, by direction."""
    text = [p.get("text") for p, _ in held_out]
    name = [t.ids_L.tobytes() if t is not None else i for i, t in enumerate(text)]
    same = np.array([[a == b for b in name] for a in name])
    found = {}
    for a, b in itertools.permutations(vectors, 2):
        there = np.array([p.get(a) is not None and p.get(b) is not None for p, _ in held_out])
        scores, right = (vectors[a] @ vectors[b].T)[there][:, there], same[there][:, there]
        found[f"{a}_to_{b}"] = float(np.mean(ranking.reciprocal(scores, right)))
    return found


def net(experiment, visits: int, seed: int, held_out: list) -> dict:
    """Vectors of the held-out items by nets that saw batches of the contrastive task alone."""
    import plain_net  # needs torch, which the other arms do not

    name, task = next((n, t) for n, t in experiment.tasks.items() if not t.targets)
    vocabulary, tasks = experiment.vocabulary(), {name: dataclasses.replace(task, weight=1.0)}
    readers = loader.readers(tasks, experiment.modalities, vocabulary, "train", 0.01)
    bound = mixture.Mixture().bind(tasks, seed)
    batches = loader.Batches(bound, mixture.Journal(), readers, vocabulary, seed)

    def made():
        for number in itertools.count():
            _, batch, _ = batches[number]
            there = {n: batch.present_BSM[:, 0, vocabulary.number(n) - 1] for n in task.inputs}
            yield local(batch.views, vocabulary), there, batch.identity_BS[:, 0]

    specs = {n: vocabulary.spec(n) for n in task.inputs}
    nets = plain_net.train(specs, made(), round(visits / task.batch_size), seed)
    found = {}
    for n, spec in specs.items():
        samples = [Sample({n: p.get(n)}, i, (i, 0), seed=0) for p, i in held_out]
        batch, _ = Aligned().build(samples, Streams((n,), ()), vocabulary)
        views = local(batch.views, vocabulary)
        found[n] = plain_net.vectors(nets[n], views[n], spec)
    return found


def local(views: dict, vocabulary) -> dict:
    """Views with ids counted from 1 in their stream."""
    shift = lambda n, ids: np.where(ids > 0, ids - vocabulary.range(n)[0] + 1, 0)
    return {n: v._replace(ids_BL=shift(n, v.ids_BL)) for n, v in views.items()}


if __name__ == "__main__":
    jax.config.update("jax_platforms", "cpu")
    main()
