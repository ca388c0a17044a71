"""What `mmjax plan` estimates of a step against what XLA:TPU says of it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
pytestmark = [pytest.mark.compile, pytest.mark.timeout(1800)]

# By experts, remat policy and mesh; see plans.py. Each compiles for five minutes of a CPU.
PROGRAMS = [
    *("dense_none_data", "dense_none_fsdp", "dense_full_data", "dense_full_fsdp"),
    *("experts_none_fsdp", "experts_full_data"),
]


def plan(alone, *args: str) -> dict:
    """What `mmjax plan` says of the small run of 4M on eight chips."""
    command = [sys.executable, "-m", "mmjax", "plan", f"{ROOT}/configs/anyany/fourm.py:tiny"]
    command += ["--topology", "v5e-8", "--mesh.data", "1", "--mesh.fsdp", "8", "--json", *args]
    done = subprocess.run(command, env=alone, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout)


def test_the_command_compiles_what_it_estimates(alone, for_tpu):
    estimated, compiled = plan(alone), plan(alone, "--compile")
    assert (estimated["source"], compiled["source"]) == ("model", "compiler")
    ours, theirs = estimated["tasks"]["masked"], compiled["tasks"]["masked"]
    assert ours["arguments"] == theirs["arguments"]
    assert ours["flops"] == theirs["flops"]
    assert compiled["fits"]
    assert set(theirs["kernels"]) == {"mmjax_attention_forward", "mmjax_attention_backward"}
    assert theirs["collectives"]["all-gather"] > 0


@pytest.mark.nightly
@pytest.mark.parametrize("name", PROGRAMS)
def test_arguments_are_exact_and_memory_is_within_15_percent(name, planned_for_tpu):
    said = planned_for_tpu(name)
    estimated, compiled = said["estimated"], said["compiled"]
    assert estimated["arguments"] == compiled["arguments"]
    assert estimated["bytes"] == pytest.approx(compiled["bytes"], rel=0.15)


@pytest.mark.nightly
@pytest.mark.parametrize(
    ("topology", "batch", "mesh"),
    [
        ("v5e-256", 16_384, {"data": 4, "fsdp": 64}),
        ("4xv5e-256", 65_536, {"replica": 4, "data": 4, "fsdp": 64}),
    ],
)
def test_4m_base_compiles_for_many_chips(alone, for_tpu, topology, batch, mesh):
    """Those of docs/scale.md: as much memory of a chip as on few, and copies across slices."""
    command = [sys.executable, "-m", "mmjax", "plan", f"{ROOT}/configs/anyany/fourm.py:base"]
    command += ["--topology", topology, "--tasks.masked.batch_size", str(batch), "--compile"]
    command += [word for axis, size in mesh.items() for word in (f"--mesh.{axis}", str(size))]
    done = subprocess.run([*command, "--json"], env=alone, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    said = json.loads(done.stdout)
    assert said["source"] == "compiler"
    assert said["hbm_bytes"] < 4 * 2**30
    gathered = said["tasks"]["masked"]["collectives"]["all-gather"]
    assert 0.8 < gathered / (2 * 2 * said["parameters"]) < 1.05
