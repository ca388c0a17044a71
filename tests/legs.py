"""A run in legs, each on other devices or processes: its losses, and the samples of each step."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import sys
from pathlib import Path

import mini
import numpy as np
import pytest

import mmjax
from mmjax.data import loader
from mmjax.optim import AdamW
from mmjax.parallel import MeshConfig
from mmjax.run import metrics

LEG = 4  # steps

# A sum in another order moves a loss by 1e-7 of itself, and by no more after some steps; but a
# router that is undecided would send a token elsewhere: hence no experts.
STEADY = AdamW(learning_rate=3e-3, schedule="constant", warmup_steps=0)

Ids = dict[int, list]  # first row of a part -> the samples of its rows


def config(total_steps: int, mesh: MeshConfig | None = None) -> mmjax.Experiment:
    """The two tasks of `mini` without experts, in float32; a checkpoint at the end of each leg."""
    base = mini.get_config()
    return dataclasses.replace(
        base,
        model=dataclasses.replace(base.model, moe=None),
        optimizer=STEADY,
        total_steps=total_steps,
        mesh=mesh or MeshConfig(),
        checkpoint=dataclasses.replace(base.checkpoint, every=0),
    )


@dataclasses.dataclass
class Steps:
    """What this process saw: the samples of its devices at each step, and the losses."""

    samples: list[Ids] = dataclasses.field(default_factory=list)
    losses: list[float] = dataclasses.field(default_factory=list)


@contextlib.contextmanager
def watched():
    """Watches the loop. `metrics.jsonl` rounds losses, more than is compared here."""
    found, following, adding = Steps(), loader.Stream.__next__, metrics.Meter.add

    def follow(stream):
        place, batch, counts = following(stream)
        shards = batch.sample_BSI.addressable_shards
        own = {s.index[0].start or 0: np.asarray(s.data)[:, 0].tolist() for s in shards}
        found.samples.append(own)
        return place, batch, counts

    def add(meter, task, out, *args):
        found.losses.append(float(out["loss"]))
        return adding(meter, task, out, *args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loader.Stream, "__next__", follow)
        patch.setattr(metrics.Meter, "add", add)
        yield found


def train(workdir, total_steps: int, mesh: MeshConfig | None = None, devices=None) -> Steps:
    """Trains to a step; what was seen of the steps that it took."""
    with watched() as found:
        result = mmjax.train(config(total_steps, mesh), workdir, devices=devices)
    assert result.step == total_steps
    return found


def joined(parts: list[Ids]) -> list:
    """All rows of a step, from the parts of all processes."""
    merged: Ids = {}
    for part in parts:
        for start, rows in part.items():
            assert merged.setdefault(int(start), rows) == rows
    return [row for start in sorted(merged) for row in merged[start]]


def furthest(a: list[float], b: list[float]) -> float:
    """The largest relative difference of losses at equal steps."""
    return max(abs(x - y) / abs(x) for x, y in zip(a, b, strict=True))


if __name__ == "__main__":  # one process of several: `legs.py WORKDIR STEPS`
    print(json.dumps(dataclasses.asdict(train(Path(sys.argv[1]), int(sys.argv[2])))))
