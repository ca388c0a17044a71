"""`mmjax launch local` with real processes: kill -9 of one of four; two ssh hosts that are one."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import four
import mini
import pytest

import mmjax
from mmjax import checkpoint

ROOT = Path(mmjax.__file__).parent.parent
CONFIG = Path(four.__file__)
EVERY, LAST = 5, 20
PROCESSES = 4


def start(workdir: Path) -> subprocess.Popen:
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(CONFIG.parent)])}
    command = [sys.executable, "-m", "mmjax", "launch", "local", "-n", str(PROCESSES), str(CONFIG)]
    command += ["--workdir", str(workdir), "--devices-per-process", "1"]
    return subprocess.Popen(
        command, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def logged(workdir: Path) -> list[int]:
    path = workdir / "metrics.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    return [json.loads(line)["step"] for line in lines if line.endswith("}") and "train/" in line]


def digests(workdir: Path) -> dict[str, object]:
    manifest = workdir / "checkpoints" / str(LAST) / "manifest.json"
    return json.loads(manifest.read_text())["state"]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory) -> Path:
    workdir = tmp_path_factory.mktemp("undisturbed") / "run"
    run = start(workdir)
    out, _ = run.communicate(timeout=1200)
    assert run.returncode == 0, out[-4000:]
    return workdir


def kill_one(seed: int, undisturbed: Path, workdir: Path) -> None:
    """Kills a process at random after a random step, and looks at what comes of it."""
    rng = random.Random(seed)
    run, at, victim = start(workdir), rng.randrange(1, LAST - 1), rng.randrange(PROCESSES)
    try:
        while max(logged(workdir), default=0) < at and run.poll() is None:
            time.sleep(0.05)
        time.sleep(rng.random() / 2)
        saved = max((s for s in checkpoint.steps(workdir / "checkpoints")), default=0)
        text = Path(f"/proc/{run.pid}/task/{run.pid}/children").read_text()
        os.kill(int(text.split()[victim]), signal.SIGKILL)
        out, _ = run.communicate(timeout=1200)
    finally:
        run.kill()
    assert run.returncode == 0, out[-4000:]
    assert "exit code 69: start 2 of at most 11" in out, (at, victim)
    assert digests(workdir) == digests(undisturbed), (at, victim)
    # Steps are done again from the newest save on, and no others.
    again = [s for s in logged(workdir) if logged(workdir).count(s) > 1]
    assert all(saved < s for s in again), (at, saved, again)
    assert len(set(again)) <= EVERY + 1
    assert mini.rows(workdir) == mini.rows(undisturbed)


@pytest.mark.ci
@pytest.mark.timeout(2400)
@pytest.mark.fault(
    "one of four processes is killed (kill -9, out of memory)",
    "all are started again; the last state is that of an undisturbed run, to the bit",
)
@pytest.mark.parametrize("seed", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_a_run_survives_kills(seed, undisturbed, tmp_path):
    kill_one(seed, undisturbed, tmp_path / "run")


@pytest.mark.nightly
@pytest.mark.timeout(2400)
@pytest.mark.parametrize("seed", range(2, 20))
def test_a_run_survives_more_kills(seed, undisturbed, tmp_path):
    kill_one(seed, undisturbed, tmp_path / "run")


@pytest.mark.nightly
@pytest.mark.timeout(1200)
def test_two_hosts_train_one_run_over_ssh(tmp_path, monkeypatch):
    """Hosts are folders here, and ssh runs there what it is told; all else is what it would be."""
    import stand_in

    commands = stand_in.Commands(tmp_path / "stand_in", monkeypatch, ("ssh", "scp"))
    commands.answer("ssh", host=True)
    commands.answer("scp", host=True)
    monkeypatch.setenv("PATH", f"{os.environ['PATH']}:{Path(sys.executable).parent}")
    monkeypatch.setenv("XLA_FLAGS", "--xla_force_host_platform_device_count=2")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), str(CONFIG.parent)]))
    command = [sys.executable, "-m", "mmjax", "launch", "ssh", str(CONFIG), "--name", "two"]
    command += ["--workdir", str(tmp_path / "run"), "--hosts", "localhost,me@localhost"]
    command += ["--python", sys.executable, "--", "--total_steps", "6"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=1100)
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
    assert checkpoint.steps(tmp_path / "run" / "checkpoints")[-1] == 6
    assert sorted(mini.rows(tmp_path / "run")) == list(range(1, 7))
    starts = json.loads((tmp_path / "run" / "run.json").read_text())["starts"]
    assert len(starts) == 1  # one run of both
    assert "ok      workdir" in done.stdout
    assert "[0] step 6/6" in done.stdout
    resumed = subprocess.run([*command[:-1], "8"], capture_output=True, text=True, timeout=1100)
    assert resumed.returncode == 0, (resumed.stdout + resumed.stderr)[-4000:]
    assert checkpoint.steps(tmp_path / "run" / "checkpoints")[-1] == 8
