"""Two real processes over jax.distributed: one run, one checkpoint, the losses of one process."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import hosts
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


# Devices of the processes in turns, so that no two rows of a process are neighbours.
IN_TURNS = PROGRAM.replace("{workdir!r})", "{workdir!r}, devices=turns)").replace(
    "result =",
    """mmjax.parallel.distributed.initialize()
each = jax.device_count() // jax.process_count()
turns = [d for row in zip(*(jax.devices()[i * each:(i + 1) * each]
                            for i in range(jax.process_count()))) for d in row]
result =""",
)

# Each process is a replica. What is read of arrays when both restore, and whether it is all there.
REPLICAS = """
import dataclasses, json, sys
sys.path[:0] = [{tests!r}, {root!r}]
import jax, mini
import numpy as np
import tensorstore as ts
from etils import epath
from mmjax import checkpoint
from mmjax.parallel import MeshConfig, distributed
from mmjax.run import program, resume, workdir
distributed.initialize()
folder, base = epath.Path({workdir!r}), mini.get_config()
dense = dataclasses.replace(base.model, moe=None)
config = dataclasses.replace(base, model=dense, mesh=MeshConfig(replica=2, data=2, fsdp=2))
built = program.build(config)
state = built.init_state()
saver = checkpoint.Saver(folder, config.checkpoint)
saver.save(state, workdir.manifest(built, 4, resume.course(config, None), {{}}))
saver.close()
distributed.barrier("saved")
opened, files = [], []
ts_open = ts.open
ts.open = lambda *a, **k: opened.append(0) or ts_open(*a, **k)
sys.addaudithook(lambda what, args: what == "open" and files.append(str(args[0])))
chosen = workdir.resume_from(folder, distributed.is_main())
like = built.abstract_state()._asdict()
there = checkpoint.restore(folder, chosen.step, {{name: like[name] for name in checkpoint.ITEMS}})
own = lambda tree: [np.asarray(s.data).tobytes()
                    for x in jax.tree.leaves(tree) for s in x.addressable_shards]
same = all(own(there[name]) == own(getattr(state, name)) for name in checkpoint.ITEMS)
placed = jax.tree.all(jax.tree.map(lambda x, y: x.sharding == y, there["params"],
                                   built.shardings.params))
print(json.dumps(dict(
    process=jax.process_index(), opened=len(opened), same=same, placed=placed, step=chosen.step,
    files=[f for f in files if "/checkpoints/4/" in f and not f.endswith("manifest.json")],
)))
"""


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


def start(program: str, workdir: Path, count: int = 2) -> list[subprocess.Popen]:
    """Processes with eight devices in all."""
    root = Path(mmjax.__file__).parent.parent
    text = program.format(tests=str(root / "tests"), root=str(root), workdir=str(workdir))
    return hosts.start([sys.executable, "-c", text], count)


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """(workdir, what each process said) of a run of two processes."""
    workdir = tmp_path_factory.mktemp("runs") / "two"
    return workdir, [json.loads(line) for line in hosts.finish(start(PROGRAM, workdir))]


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


@pytest.mark.slow  # takes turns with other slow tests
def test_rows_of_a_process_need_not_be_neighbours(one, two, tmp_path):
    said = [json.loads(line) for line in hosts.finish(start(IN_TURNS, tmp_path))]
    whole = two[1][0]["samples"] + two[1][1]["samples"]
    each = len(whole) // 8
    parts = [whole[i * each : (i + 1) * each] for i in range(8)]
    for process in range(2):
        assert said[process]["samples"] == [row for part in parts[process::2] for row in part]
    first, turns = mini.rows(one[0]), mini.rows(tmp_path)
    assert first.keys() == turns.keys()
    for step, row in first.items():
        assert row["train/loss"] == pytest.approx(turns[step]["train/loss"], abs=1e-5), step
    for name, score in one[1].metrics.items():
        assert said[0]["scores"][name] == pytest.approx(score, abs=1e-4), name


def test_a_checkpoint_is_read_once_for_all_replicas(tmp_path):
    first, second = (json.loads(line) for line in hosts.finish(start(REPLICAS, tmp_path)))
    assert first["opened"] > 0
    assert second["opened"] == 0
    # The hashes of the files are compared by both, each its part.
    known = json.loads((tmp_path / "checkpoints" / "4" / "manifest.json").read_text())["files"]
    name = lambda path: path.partition("/checkpoints/4/")[2]
    assert {name(path) for path in second["files"]} == set(sorted(known)[1::2])
    assert {name(path) for path in first["files"]} >= set(sorted(known)[::2])
    for said in (first, second):
        assert said["same"]
        assert said["placed"]
        assert said["step"] == 4


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
    first, second = hosts.finish(processes, 75)
    last = checkpoint.steps(tmp_path / "checkpoints")[-1]
    assert (
        first == f"another process was asked to stop: saved step {last}; the same command goes on."
    )
    assert second == f"SIGTERM: saved step {last}; the same command goes on."
    assert checkpoint.damaged(tmp_path, last) == []


@pytest.mark.slow
def test_one_process_may_compile_for_longer_than_another(tmp_path):
    assert hosts.finish(start(SLOW, tmp_path)) == ["2", "2"]
