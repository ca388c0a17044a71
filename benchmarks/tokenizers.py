"""Quantisers behind the same small autoencoder: what their codes are worth, and what they cost.

    python benchmarks/tokenizers.py [--steps 300] [--rounds 9] [--arms FSQ ...] [--out FILE]

`configs/anyany/toyworld_tokenizers.py:image`: pictures of 32 x 32 pixels, 64 ids each, about 1,000
codes in all; four codebooks have a grid of a quarter of the cells. All arms see the same batches
in one process: each step is taken by every arm in turn, another one first each time, and so are
the rounds of encoding and decoding 256 pictures. Times are medians of wall time; memory is
what the compiler says that a step takes. `mmjax list tokenizers --json` reads what
`--out mmjax/tokenizers/measured.json` writes.
"""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import jax  # noqa: E402
import numpy as np  # noqa: E402
from etils import epath  # noqa: E402

from mmjax import config, train_tokenizer  # noqa: E402
from mmjax.data import loader, mixture  # noqa: E402
from mmjax.experiment import Experiment  # noqa: E402
from mmjax.modalities.codes import Codes, content  # noqa: E402
from mmjax.models import FSQ, LFQ, VQ, ProductVQ, Quantizer, ResidualVQ  # noqa: E402
from mmjax.models import names as names_lib  # noqa: E402
from mmjax.run import program as program_lib  # noqa: E402

CONFIG = f"{ROOT}/configs/anyany/toyworld_tokenizers.py:image"
TASK, SKIPPED, PICTURES = "reconstruct", 10, 256
ARMS: dict[str, Quantizer] = {
    "FSQ": FSQ(levels=(8, 5, 5, 5)),
    "LFQ": LFQ(bits=10),
    "BSQ": LFQ(bits=10, spherical=True),
    "VQ": VQ(num_codes=1024),
    "ResidualVQ": ResidualVQ(of=VQ(num_codes=256, cosine=False), num_codebooks=4),
    "ProductVQ": ProductVQ(of=VQ(num_codes=256), num_codebooks=4),
}


class Arm:
    """A quantiser in training."""

    def __init__(self, quantizer: Quantizer, steps: int):
        base: Experiment = config.load(CONFIG)
        grid = (8, 8) if quantizer.num_codebooks == 1 else (4, 4)
        model = dataclasses.replace(base.model, quantizer=quantizer, code_grid=grid)
        self.experiment = dataclasses.replace(base, model=model, total_steps=steps)
        self.program = program_lib.build(self.experiment, jax.devices()[:1])
        self.state = self.program.init_state()
        self.seconds: dict[str, list[float]] = {"step": [], "encode": [], "decode": []}
        self._step: Any = None

    def train(self, batch: Any) -> None:
        """One step; the first one compiles."""
        with jax.set_mesh(self.program.mesh):
            if self._step is None:
                step = self.program.train_step(TASK).lower(self.state, batch)
                self._step = step.compile()
                used = self._step.memory_analysis()
                self.bytes = (
                    used.argument_size_in_bytes + used.output_size_in_bytes
                    + used.temp_size_in_bytes - used.alias_size_in_bytes
                )  # fmt: skip
            self.timed("step", lambda: self._take(batch))

    def _take(self, batch: Any) -> None:
        self.state, _ = self._step(self.state, batch)
        jax.block_until_ready(self.state)

    def timed(self, name: str, call: Any) -> Any:
        """What a call gives; keeps how long it took."""
        began = time.perf_counter()
        found = call()
        self.seconds[name].append(time.perf_counter() - began)
        return found

    def export(self, folder: epath.Path) -> dict[str, Any]:
        """The tokenizer, as `self.learned`; its report."""
        self.learned = train_tokenizer.exported(self.program, self.state, {})
        self.learned.write(folder / "tokenizer")
        (base,) = self.experiment.modalities.values()
        codes = Codes(base=base, path=str(folder)).fit(lambda: iter(()), folder / "tokenizer")
        return train_tokenizer.evaluate(self.experiment, codes, self.learned, folder)


def train(arms: dict[str, Arm], steps: int) -> None:
    """All arms on the same batches, in turn."""
    first = next(iter(arms.values()))
    experiment, program = first.experiment, first.program
    readers = loader.readers(
        experiment.tasks, experiment.modalities, program.vocabulary, "train", 0.0
    )
    schedule = mixture.Mixture().bind(experiment.tasks, experiment.seed)
    batches = loader.Batches(
        schedule, mixture.Journal(), readers, program.vocabulary, experiment.seed
    )
    for number in range(steps):
        batch = loader.to_global(batches[number][1], program.batch_sharding)
        for arm in turned(arms, number):
            arm.train(batch)
        if number % 50 == 0:
            print(f"step {number}", file=sys.stderr, flush=True)


def turned(arms: dict[str, Arm], number: int) -> list[Arm]:
    """The arms, another one first for each of successive numbers."""
    some = list(arms.values())
    first = number % len(some)
    return [*some[first:], *some[:first]]


def speeds(arms: dict[str, Arm], rounds: int) -> None:
    """Encodes and decodes the same pictures in turn."""
    first = next(iter(arms.values()))
    (stream,) = first.experiment.modalities
    reader = loader.eval_reader(first.program, TASK, first.experiment.data.eval_split)
    given = np.stack([content(reader.read(i, (stream,)).pieces[stream]) for i in range(PICTURES)])
    ids = {id(arm): arm.learned.encode(given) for arm in arms.values()}
    for arm in arms.values():
        arm.learned.decode(ids[id(arm)])  # compiles
    for number in range(rounds):
        for arm in turned(arms, number):
            arm.timed("encode", lambda: arm.learned.encode(given))  # noqa: B023
            arm.timed("decode", lambda: arm.learned.decode(ids[id(arm)]))  # noqa: B023


def figures(arm: Arm, report: dict[str, Any]) -> dict[str, Any]:
    """The row of an arm."""
    middle = lambda name, skip=0: statistics.median(arm.seconds[name][skip:])
    leaves = names_lib.flatten(arm.program.params).values()
    quantizer = arm.experiment.model.quantizer
    return {
        "class": type(quantizer).__name__,
        "config": repr(quantizer),
        "codes": report["codes"],
        "ids": report["tokens"],
        "usage": round(report["usage"], 4),
        "perplexity": round(report["perplexity"], 1),
        "psnr": round(report["psnr"], 2),
        "train_steps_per_second": round(1 / middle("step", SKIPPED), 2),
        "encode_per_second": round(PICTURES / middle("encode")),
        "decode_per_second": round(PICTURES / middle("decode")),
        "step_bytes": arm.bytes,
        "parameters": sum(int(np.prod(x.shape)) for x in leaves),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="Quantisers behind the same autoencoder.")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--rounds", type=int, default=9, help="of encoding and decoding")
    parser.add_argument("--arms", nargs="+", choices=list(ARMS), default=list(ARMS))
    parser.add_argument("--out", default="", help="file for the figures, JSON")
    args = parser.parse_args()
    if args.steps <= SKIPPED:
        parser.error(f"--steps {args.steps}: the first {SKIPPED} are not timed; take more.")
    arms = {name: Arm(ARMS[name], args.steps) for name in args.arms}
    train(arms, args.steps)
    with tempfile.TemporaryDirectory() as folder:
        reports = {name: arm.export(epath.Path(folder) / name) for name, arm in arms.items()}
    speeds(arms, args.rounds)
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True
    ).stdout.strip()
    found = {
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "commit": commit,
        "jax": jax.__version__,
        "device": jax.devices()[0].device_kind,
        "cpus": os.cpu_count(),
        "steps": args.steps,
        "examples": next(iter(reports.values()))["examples"],
        "tokenizers": {name: figures(arm, reports[name]) for name, arm in arms.items()},
    }
    for name, row in found["tokenizers"].items():
        print(name, json.dumps(row), flush=True)
    if args.out:
        Path(args.out).write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
