"""The demo cut down to two tasks of two modalities: whole runs that compile quickly."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
from pathlib import Path
from typing import Any

import jax
import numpy as np

from mmjax import Experiment, checkpoint, config
from mmjax.data.source import BadRecord
from mmjax.demo.numbers import Numbers
from mmjax.evaluate import Evaluator, Losses, Retrieval
from mmjax.models import MoE
from mmjax.optim import AdamW

QUICKSTART = Path(__file__).resolve().parent.parent / "configs" / "quickstart.py"


def get_config(**fields) -> Experiment:
    """Twelve steps of masked text and image-text contrast in turn; a checkpoint every fourth."""
    tiny = config.load(f"{QUICKSTART}:tiny")
    moe = MoE(num_experts=4, width=32, every=1)
    mini = {
        "name": "mini",
        "modalities": {name: tiny.modalities[name] for name in ("text", "image")},
        "tasks": {name: tiny.tasks[name] for name in ("text", "image_text")},
        "model": dataclasses.replace(tiny.model, encoder_layers=1, decoder_layers=1, moe=moe),
        "optimizer": AdamW(learning_rate=3e-3),
        "evaluators": {},
        "logging": dataclasses.replace(tiny.logging, log_every=1),
    }
    return dataclasses.replace(tiny, **{**mini, **fields})


def evaluated() -> Experiment:
    """With the losses on held-out data and retrieval, at every checkpoint."""
    return get_config(
        evaluators={
            "losses": Losses(num_batches=1, tasks=("text",), every=4),
            "retrieval": Retrieval(modalities=("image", "text"), num_galleries=1, every=4),
        }
    )


def with_source(source: Numbers, **fields) -> Experiment:
    """The tasks read another source."""
    base = get_config()
    tasks = {n: dataclasses.replace(t, source=source) for n, t in base.tasks.items()}
    return get_config(tasks=tasks, **fields)


class Damaged(Numbers):
    """Some records cannot be read, or hold no image."""

    def open(self, split):
        return Records(super().open(split))


@dataclasses.dataclass
class Records:
    all: Any

    def __len__(self):
        return len(self.all)

    def __getitem__(self, index):
        if index == 3:
            raise BadRecord("lost", "the file is gone")
        return self.all[index] | ({"image": b"no image"} if index == 5 else {})


@dataclasses.dataclass(frozen=True, kw_only=True)
class StopAt(Evaluator):
    """Sends this process a signal after a step, as a scheduler does."""

    def run(self, view):
        os.kill(os.getpid(), signal.SIGTERM)
        return {}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Spoilt(Numbers):
    """Some records of `train` hold another value.

    Fields:
      every: each `every`-th record is spoilt. image, text: what it holds then; None = as it was.
    """

    every: int = 7
    image_nan: bool = False
    text: str | None = None

    def open(self, split):
        records = super().open(split)
        return _SpoiltRecords(records, self) if split == "train" else records


class _SpoiltRecords:
    def __init__(self, records, source: Spoilt):
        self.records, self.source = records, source

    def __len__(self):
        return len(self.records)

    def __getitem__(self, index) -> dict[str, Any]:
        example = dict(self.records[index])
        if index % self.source.every == 0:
            if self.source.image_nan:
                example["image"] = np.full((8, 16), np.nan, np.float32)
            if self.source.text is not None:
                example["text"] = self.source.text
        return example


def rows(workdir) -> dict[int, dict[str, float]]:
    """Training metrics by step. Steps that were run twice must have come to the same."""
    found: dict[int, dict[str, float]] = {}
    for line in (Path(workdir) / "metrics.jsonl").read_text().splitlines():
        row = json.loads(line)
        kept = {k: v for k, v in row.items() if k.startswith(("train/", "moe/", "data/"))}
        kept.pop("data/wait_fraction", None)
        if kept:
            assert found.setdefault(row["step"], kept) == kept, row["step"]
    return found


def state(program, workdir, step: int) -> Any:
    """Everything that a checkpoint holds, on the host."""
    like = program.abstract_state()._asdict()
    trees = {name: like[name] for name in checkpoint.ITEMS}
    return jax.device_get(checkpoint.restore(Path(workdir), step, trees))


def assert_same(one, two) -> None:
    """Bit for bit."""
    a, b = jax.tree.leaves(jax.device_get(one)), jax.tree.leaves(jax.device_get(two))
    assert len(a) == len(b) > 0
    for x, y in zip(a, b, strict=True):
        assert x.dtype == y.dtype
        np.testing.assert_array_equal(x, y)
