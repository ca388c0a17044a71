"""A run goes on with other devices, meshes and processes: same samples, same losses to 1e-6."""

from __future__ import annotations

import itertools
import json
import os
import sys
from pathlib import Path

import hosts
import jax
import legs
import pytest

from mmjax.parallel import MeshConfig

pytestmark = [pytest.mark.nightly, pytest.mark.timeout(3000)]

TOLERANCE = 1e-6  # of the loss
STEPS = 7 * legs.LEG
MESHES = [
    (8, MeshConfig(fsdp=2)),
    (4, MeshConfig(data=2, fsdp=2)),
    (2, MeshConfig()),
    (1, MeshConfig()),
    (2, MeshConfig(data=1, fsdp=2)),
    (4, MeshConfig()),
    (8, MeshConfig(data=4, tensor=2)),
]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run that nothing disturbed, on eight devices."""
    found = legs.train(tmp_path_factory.mktemp("runs") / "whole", STEPS)
    return legs.Steps([legs.joined([step]) for step in found.samples], found.losses)


def test_other_devices_and_meshes(whole, tmp_path):
    """8 -> 4 -> 2 -> 1 -> 2 -> 4 -> 8 devices, a few steps on each."""
    losses: list[float] = []
    for count, mesh in MESHES:
        done = len(losses)
        found = legs.train(tmp_path, done + legs.LEG, mesh, jax.devices()[:count])
        got = [legs.joined([step]) for step in found.samples]
        assert got == whole.samples[done : done + legs.LEG], (count, mesh)
        losses += found.losses
    assert legs.furthest(whole.losses, losses) < TOLERANCE


def test_other_numbers_of_processes(whole, tmp_path):
    """1 -> 2 -> 4 -> 2 -> 1 processes with eight devices in all."""
    losses: list[float] = []
    for count in (1, 2, 4, 2, 1):
        done = len(losses)
        told = run(count, tmp_path, done + legs.LEG)
        for step, parts in enumerate(zip(*(t["samples"] for t in told), strict=True), done):
            assert legs.joined(list(parts)) == whole.samples[step], (count, step)
            mine = [set(part) for part in parts]
            assert not any(a & b for a, b in itertools.combinations(mine, 2))  # each its own
        losses += told[0]["losses"]
    assert legs.furthest(whole.losses[: len(losses)], losses) < TOLERANCE


def run(count: int, workdir: Path, steps: int) -> list[dict]:
    """What each of the processes says."""
    here = Path(legs.__file__).parent
    paths = os.pathsep.join([str(here), str(here.parent), *sys.path[1:]])
    command = [sys.executable, legs.__file__, str(workdir), str(steps)]
    started = hosts.start(command, count, {"PYTHONPATH": paths})
    return [json.loads(line) for line in hosts.finish(started, timeout=900)]
