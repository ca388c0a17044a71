"""The benchmarks run, and what they compare is comparable."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest


@pytest.mark.ci
def test_all_loaders_hold_the_same_epoch(root, tmp_path):
    out = tmp_path / "found.json"
    command = [sys.executable, "benchmarks/data.py", "--samples", "128", "--rounds", "1"]
    done = subprocess.run(
        [*command, "--no-bars", "--folder", str(tmp_path), "--out", str(out)],
        cwd=root, capture_output=True, text=True, timeout=240,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = json.loads(out.read_text())
    assert set(found["contents"].values()) == {found["contents"]["memory"]}
    assert len(found["contents"]) == 6
    assert min(found["cpu_ms"].values()) > 0


@pytest.mark.slow
def test_gaps_between_executables_of_the_loop_are_read_from_a_trace(root, tmp_path):
    out = tmp_path / "found.json"
    done = subprocess.run(
        [sys.executable, "benchmarks/host.py", "--steps", "5", "--no-bars", "--out", str(out)],
        cwd=root, capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = json.loads(out.read_text())
    assert len(found["gap_ms"]) == found["executions"] - 1
    assert min(found["gap_ms"]) > 0
    assert 0.5 < found["inside"] < 1


@pytest.mark.slow
def test_the_cost_of_verification_is_measured_in_a_run(root, tmp_path):
    out = tmp_path / "found.json"
    program = ["benchmarks/verify.py", "--config", "configs/quickstart.py:tiny"]
    done = subprocess.run(
        [sys.executable, *program, "--steps", "101", "--limit", "1000", "--out", str(out)],
        cwd=root, capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = json.loads(out.read_text())
    assert found["saves"] == 1
    assert 0 < found["verify"] < found["steps"] * 1000
    assert found["ratio"] > 0


def test_a_saved_program_is_read(root, tmp_path):
    gather = "bf16[8,1024]{1,0} all-gather(%x), channel_id=1, dimensions={0}"
    cycles = 'backend_config={"window_config":{"estimated_cycles":"3000000"}}'
    text = f"""HloModule jit_f
ENTRY %main (x: bf16[1,1024]) -> bf16[8,1024] {{
  %x = bf16[1,1024]{{1,0}} parameter(0)
  %g = {gather}
  ROOT %y = bf16[8,1024]{{1,0}} tanh(%g), {cycles}, metadata={{op_name="tanh"}}
}}
"""
    (tmp_path / "f.txt").write_text(text)
    command = [sys.executable, "benchmarks/compiled.py", "--read", str(tmp_path / "f.txt")]
    command += ["--topology", "v5e-8", "--min-mib", "0.01"]
    run = lambda *more: (
        subprocess.run(
            [*command, *more], cwd=root, capture_output=True, text=True, check=True
        ).stdout
    )
    found = json.loads(run("--json"))["f"]
    assert found["collectives"]["all-gather"]["by_dtype"] == {"bf16": 16384}
    assert found["estimated_seconds"] == pytest.approx(0.002)  # at 1.5 GHz
    assert [a["shape"] for a in found["arrays"]] == [[8, 1024]]
    shown = run()
    assert "busy         2.00 ms (estimated)" in shown
    assert "all-gather   1: bf16 0.0 MiB" in shown
