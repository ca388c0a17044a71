"""Two real processes over jax.distributed: one run, one checkpoint, the losses of one process."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import jax
import mini
import numpy as np
import pytest

import mmjax
from mmjax import checkpoint

pytestmark = [pytest.mark.ci, pytest.mark.timeout(600)]

# What each process does: trains, and says which samples it read at a late step.
PROGRAM = """
import json, sys
sys.path[:0] = [{tests!r}, {root!r}]
import jax, mini, mmjax
from mmjax.run import program
from mmjax.data import loader, mixture
result = mmjax.train(mini.evaluated(), {workdir!r})
experiment = result.program.experiment
schedule = experiment.mixture.bind(experiment.tasks, experiment.seed)
stream = loader.open_stream(experiment, result.program, schedule, mixture.Journal(), step=9)
place, batch, _ = next(stream)
stream.close()
mine = [shard.data.tolist() for shard in sorted(
    batch.sample_BSI.addressable_shards, key=lambda shard: shard.index[0].start)]
print(json.dumps(dict(
    process=jax.process_index(), processes=jax.process_count(), devices=jax.device_count(),
    task=place.task, step=result.step, scores=result.metrics,
    samples=[row[0] for shard in mine for row in shard],
)))
"""


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("localhost", 0))
        return s.getsockname()[1]


STOPPED = """
import sys
sys.path[:0] = [{tests!r}, {root!r}]
import mini, mmjax
from mmjax import errors
try:
    mmjax.train(mini.get_config(total_steps=100000), {workdir!r})
except errors.Preempted as stop:
    print(stop)
    sys.exit(75)
"""

# One process compiles for longer than collectives of CPU wait for another.
SLOW = """
import sys, time
sys.path[:0] = [{tests!r}, {root!r}]
import jax, mini, mmjax
late = lambda program: time.sleep(40 * jax.process_index())
print(mmjax.train(mini.get_config(total_steps=2), {workdir!r}, before_compile=late).step)
"""


def start(program: str, workdir: Path) -> list[subprocess.Popen]:
    """Two processes with four devices each."""
    root = Path(mmjax.__file__).parent.parent
    text = program.format(tests=str(root / "tests"), root=str(root), workdir=str(workdir))
    flags = os.environ["XLA_FLAGS"].replace("device_count=8", "device_count=4")
    env = {
        **os.environ,
        "XLA_FLAGS": flags,
        "JAX_COORDINATOR_ADDRESS": f"localhost:{free_port()}",
        "JAX_NUM_PROCESSES": "2",
    }
    return [
        subprocess.Popen(
            [sys.executable, "-c", text],
            env={**env, "JAX_PROCESS_ID": str(i)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for i in range(2)
    ]


def finish(processes: list[subprocess.Popen], code: int) -> list[str]:
    """What they printed; each must end with this exit code."""
    try:
        results = [p.communicate(timeout=400) for p in processes]
    finally:
        for p in processes:
            p.kill()
    for process, (_, err) in zip(processes, results, strict=True):
        assert process.returncode == code, err[-4000:]
    return [out.splitlines()[-1] for out, _ in results]


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """(workdir, what each process said) of a run of two processes."""
    workdir = tmp_path_factory.mktemp("runs") / "two"
    return workdir, [json.loads(line) for line in finish(start(PROGRAM, workdir), 0)]


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    """(workdir, result) of a run of this process with eight devices."""
    workdir = tmp_path_factory.mktemp("runs") / "one"
    return workdir, mmjax.train(mini.evaluated(), workdir)


def test_both_took_part(two):
    for i, said in enumerate(two[1]):
        assert (said["process"], said["processes"], said["devices"]) == (i, 2, 8)
        assert said["step"] == 12


def test_losses_are_those_of_one_process(one, two):
    first, second = mini.rows(one[0]), mini.rows(two[0])
    assert first.keys() == second.keys() == set(range(1, 13))
    for step, row in first.items():
        assert row["train/loss"] == pytest.approx(second[step]["train/loss"], abs=1e-5), step
    for name, score in one[1].metrics.items():
        for said in two[1]:
            assert said["scores"][name] == pytest.approx(score, abs=1e-4), name


def test_hosts_read_the_samples_that_one_host_reads(one, two):
    from mmjax.data import loader, mixture

    experiment, program = one[1].program.experiment, one[1].program
    schedule = experiment.mixture.bind(experiment.tasks, experiment.seed)
    stream = loader.open_stream(experiment, program, schedule, mixture.Journal(), step=9)
    place, batch, _ = next(stream)
    stream.close()
    expected = np.asarray(batch.sample_BSI)[:, 0].tolist()
    assert place.task == two[1][0]["task"] == two[1][1]["task"]
    assert two[1][0]["samples"] + two[1][1]["samples"] == expected


def test_one_process_loads_what_two_have_written(one, two):
    assert checkpoint.steps(two[0] / "checkpoints") == [4, 8, 12]
    assert checkpoint.damaged(two[0], 12) == []
    alone, both = (mmjax.load(str(folder), devices=jax.devices()[:1]) for folder, _ in (one, two))
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=2e-4), alone.params, both.params
    )
    examples = both.examples("val", 20)
    np.testing.assert_allclose(
        both.embed("image", examples), alone.embed("image", examples), atol=1e-3
    )
    run = json.loads((two[0] / "run.json").read_text())
    assert len(run["starts"]) == 1  # one process writes


def test_one_process_goes_on_where_two_have_stopped(two, one):
    result = mmjax.train(mini.evaluated(), two[0])
    assert result.step == 12
    assert len(json.loads((two[0] / "run.json").read_text())["starts"]) == 2


def test_a_signal_to_one_process_stops_both_at_one_step(tmp_path):
    processes = start(STOPPED, tmp_path)
    deadline = time.monotonic() + 300
    while not (tmp_path / "metrics.jsonl").exists() or len(mini.rows(tmp_path)) < 3:
        assert time.monotonic() < deadline
        assert all(p.poll() is None for p in processes)
        time.sleep(0.2)
    processes[1].send_signal(signal.SIGTERM)
    first, second = finish(processes, 75)
    last = checkpoint.steps(tmp_path / "checkpoints")[-1]
    assert (
        first == f"another process was asked to stop: saved step {last}; the same command goes on."
    )
    assert second == f"SIGTERM: saved step {last}; the same command goes on."
    assert checkpoint.damaged(tmp_path, last) == []


@pytest.mark.slow
def test_one_process_may_compile_for_longer_than_another(tmp_path):
    assert finish(start(SLOW, tmp_path), 0) == ["2", "2"]
