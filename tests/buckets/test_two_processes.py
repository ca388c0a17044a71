"""Two real processes of one run whose workdir is in a bucket."""

from __future__ import annotations

import sys
from pathlib import Path

import hosts
import pytest

import mmjax
from mmjax import checkpoint, files
from mmjax.run import metrics

CONFIG = str(Path(__file__).with_name("tiny.py"))


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_two_processes_save_to_a_bucket_and_go_on_from_it(service, address, monkeypatch):
    service.page = 100
    root = str(Path(mmjax.__file__).parent.parent)
    command = [sys.executable, "-m", "mmjax", "train", CONFIG, "--workdir", address]
    for steps in (6, 10):
        env = {"PYTHONPATH": root}
        started = hosts.start([*command, "--total_steps", str(steps)], 2, env)
        told = [process.communicate(timeout=1000)[1] for process in started]
        assert [process.returncode for process in started] == [0, 0], told[0][-3000:]
    assert f"resumed {address} at step 6" in told[0]
    workdir = files.given(address)
    saved = checkpoint.steps(workdir / "checkpoints")
    assert saved[-1] == 10
    assert all(checkpoint.damaged(workdir, step) == [] for step in saved)
    rows, bad = metrics.read(workdir)
    assert not bad
    assert sorted({row["step"] for row in rows if "train/loss" in row}) == list(range(1, 11))
