"""`mmjax launch local`: restarts by exit code, signals, output; and two real processes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import mini
import pytest

import mmjax
from mmjax import checkpoint, cli
from mmjax.launch import local, node, progress
from mmjax.launch.node import Ended, Node

ROOT = Path(mmjax.__file__).parent.parent

# Says who it is, counts its starts, and ends with the code that is written for this start.
CHILD = """
import os, sys, time
me, place, codes = os.environ.get("JAX_PROCESS_ID", "0"), sys.argv[1], sys.argv[2:]
with open(f"{place}/{me}", "a") as f:
    f.write("x")
start = os.path.getsize(f"{place}/{me}") - 1
print("start", start, "of", me, flush=True)
mine = codes[start].split(",")[int(me) % len(codes[start].split(","))]
if mine == "hang":
    time.sleep(60)
if mine.startswith("-"):
    os.kill(os.getpid(), -int(mine))
sys.exit(int(mine))
"""


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(local, "FIRST_WAIT", 0.3)
    monkeypatch.setattr(local, "APART", 0.1)
    monkeypatch.setattr(node, "SHORT_GRACE", 0.2)


def launch(place: Path, *codes: str, processes: int = 2, **limits) -> tuple[int, int]:
    """(exit code, starts) with one entry of `codes` a start: a code for each process."""
    command = [sys.executable, "-c", CHILD, str(place), *codes]
    code = local.local("c.py", str(place), processes=processes, command=command, **limits)
    return code, len((place / "0").read_text())


@pytest.mark.parametrize(
    ("codes", "expected"),
    [
        (("0",), (0, 1)),
        (("75", "69", "0"), (0, 3)),
        (("74", "0"), (0, 2)),
        (("1", "0"), (1, 1)),
        (("2", "0"), (2, 1)),
        (("76", "0"), (76, 1)),
        (("70", "0"), (70, 1)),
        (("-9", "0"), (0, 2)),  # as a host that was lost: killed, out of memory, crashed
        (("-11", "-6", "0"), (0, 3)),
        (("-9,1", "0"), (0, 2)),  # the other failed for want of it
        (("-9,2", "0"), (2, 1)),  # what no start mends
        (("hang,69", "0"), (0, 2)),  # the others are ended
        (("hang,3", "0"), (3, 1)),
    ],
)
def test_what_is_started_again(tmp_path, codes, expected):
    assert launch(tmp_path, *codes) == expected


def test_the_number_of_restarts_is_bounded(tmp_path):
    assert launch(tmp_path, *["75"] * 9, processes=1, restarts=2, retries=9) == (75, 3)


def test_starts_without_progress_end_with_the_first_error(tmp_path, capfd):
    assert launch(tmp_path, "69,hang", *["-9"] * 9, retries=2) == (69, 2)
    said = capfd.readouterr().err
    assert "2 starts in a row without a new checkpoint or a later logged step; the first" in said
    assert "exit code 69, by process 0, which wrote last:\n  | [0] start 0 of 0\n" in said


# Saves or logs once more at each of its first four starts.
PROGRESS = """
import json, os, sys
place, what = sys.argv[1:]
with open(f"{place}/starts", "a") as f:
    f.write("x")
start = os.path.getsize(f"{place}/starts")
if start <= 4:
    if what == "saves":
        os.makedirs(f"{place}/checkpoints/{start}")
    with open(f"{place}/metrics.jsonl", "a") as f:
        f.write("\\n" + json.dumps({"step": start if what == "logs" else 1}) + '\\n{"st')
sys.exit(69)
"""


def test_progress_of_a_bucket_is_read_from_the_newest_part(tmp_path):
    part = lambda start, step: tmp_path / "metrics" / f"{start:04}-{step:09}-0000-00000000.jsonl"
    part(1, 0).parent.mkdir()
    seen = progress.Progress(str(tmp_path))
    assert not seen.moved()
    part(1, 0).write_text('{"step": 1}\n{"step": 2}\n')
    assert seen.moved()
    part(2, 0).write_text('{"step": 1}\n')  # the same steps again
    assert not seen.moved()
    part(2, 0).write_text('{"step": 1}\n{"step": 2}\n{"step": 3}\n')
    assert seen.moved()


@pytest.mark.parametrize(("what", "starts"), [("saves", 6), ("logs", 6), ("neither", 3)])
def test_progress_is_a_newer_checkpoint_or_a_later_logged_step(tmp_path, what, starts):
    command = [sys.executable, "-c", PROGRESS, str(tmp_path), what]
    assert local.local("c.py", str(tmp_path), retries=2, command=command) == 69
    assert len((tmp_path / "starts").read_text()) == starts


def test_storage_is_given_time(tmp_path, monkeypatch):
    waits = []
    monkeypatch.setattr(node.Stop, "sleep", lambda self, seconds: waits.append(seconds))
    monkeypatch.setattr(local, "LONGEST_WAIT", 0.5)
    assert launch(tmp_path, "74", "74", "75", "74", "0", processes=1, retries=5) == (0, 5)
    assert waits == [0.3, 0.5, 0.5]


@pytest.mark.parametrize(("topology", "waited"), [("v5e-16", [0.1]), ("v5e-8", []), ("", [])])
def test_the_processes_of_other_machines_are_given_time_to_end(
    topology, waited, tmp_path, monkeypatch
):
    waits = []
    monkeypatch.setattr(node.Stop, "sleep", lambda self, seconds: waits.append(seconds))
    assert launch(tmp_path, "69", "0", processes=1, topology=topology) == (0, 2)
    assert waits == waited


def test_output_is_prefixed(tmp_path, capfdbinary):
    launch(tmp_path, "0")
    assert sorted(capfdbinary.readouterr().out.splitlines()) == [
        b"[0] start 0 of 0",
        b"[1] start 0 of 1",
    ]


def test_the_compile_cache_is_passed_on(monkeypatch):
    commands = []
    monkeypatch.setattr(local, "run", lambda command, *_: commands.append(command) or Ended(0))
    args = ["launch", "local", f"{mini.QUICKSTART}:tiny", "--workdir", "w"]
    for more in ([], ["--compile-cache", "gs://b/c"]):
        assert cli.main([*args, *more, "--", "--total_steps", "3"]) == 0
    ends = ["train", args[2], "--workdir", "w", "--total_steps", "3"]
    assert commands[0][-6:] == ends
    assert commands[1][-8:] == [*ends[:4], "--compile-cache", "gs://b/c", *ends[4:]]


def test_processes_are_told_who_they_are(monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "--a=1 --xla_force_host_platform_device_count=8")
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    here = Node(processes=3, devices=4)
    env = here.environment(1, 5000)
    assert env["JAX_COORDINATOR_ADDRESS"] == "localhost:5000"
    assert (env["JAX_NUM_PROCESSES"], env["JAX_PROCESS_ID"]) == ("3", "1")
    assert env["XLA_FLAGS"] == "--a=1 --xla_force_host_platform_device_count=4"
    monkeypatch.setenv("JAX_PLATFORMS", "cuda")
    assert here.environment(1, 5000)["CUDA_VISIBLE_DEVICES"] == "4,5,6,7"
    assert "JAX_PROCESS_ID" not in Node().environment(0, 5000)


@pytest.mark.parametrize("processes", [1, 8])
def test_processes_of_several_machines_are_numbered_through(processes):
    third = Node(processes=processes, nodes=4, rank=2, coordinator="n0:8476")
    env = third.environment(processes - 1, 5000)
    assert env["JAX_COORDINATOR_ADDRESS"] == "n0:8476"
    assert env["JAX_NUM_PROCESSES"] == str(4 * processes)
    assert env["JAX_PROCESS_ID"] == str(3 * processes - 1)


def test_what_the_environment_says_of_the_coordinator_is_passed_on(monkeypatch):
    mine = {"JAX_COORDINATOR_ADDRESS": "n0:1", "JAX_NUM_PROCESSES": "2", "JAX_PROCESS_ID": "1"}
    for name, value in mine.items():
        monkeypatch.setenv(name, value)
    assert mine.items() <= Node(nodes=2, rank=1).environment(0, 5000).items()


@pytest.mark.parametrize(
    ("topology", "variable"), [("v5e-16", "LIBTPU_INIT_ARGS"), ("2xh100x8", "XLA_FLAGS")]
)
def test_flags_of_the_platform_are_set_and_those_of_the_user_stay(topology, variable, monkeypatch):
    monkeypatch.delenv(variable, raising=False)
    ours = Node(topology=topology).environment(0, 5000)[variable].split()
    assert len(ours) >= 3
    name = ours[0].partition("=")[0]
    monkeypatch.setenv(variable, f"--mine=1 {name}=false")
    given = Node(topology=topology).environment(0, 5000)[variable].split()
    assert given == ["--mine=1", f"{name}=false", *ours[1:]]


WAITING = """
import signal, sys, time
def handle(number, frame):
    print("got", signal.Signals(number).name, flush=True)
    sys.exit(75)
signal.signal(signal.SIGINT, handle)
signal.signal(signal.SIGTERM, handle)
print("ready", flush=True)
time.sleep(60)
"""
LAUNCHER = """
import sys
from mmjax.launch import local
sys.exit(local.local("c", "w", processes=2, command=[sys.executable, "-c", sys.argv[1]]))
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_goes_to_all_and_ends_the_restarts(number):
    launcher = subprocess.Popen(
        [sys.executable, "-c", LAUNCHER, WAITING], stdout=subprocess.PIPE, text=True
    )
    try:
        assert sorted(launcher.stdout.readline() for _ in range(2)) == [
            "[0] ready\n",
            "[1] ready\n",
        ]
        launcher.send_signal(number)
        out, _ = launcher.communicate(timeout=30)
    finally:
        launcher.kill()
    assert sorted(out.splitlines()) == [f"[{i}] got {number.name}" for i in range(2)]
    assert launcher.returncode == 75


def refused(*args: str, capsys) -> str:
    assert cli.main(["launch", *args]) == 2
    return capsys.readouterr().err


def test_what_is_refused(tmp_path, capsys):
    good = (str(mini.QUICKSTART), "--workdir", str(tmp_path))
    assert "is no target; there is gke, local, sky, slurm, ssh, tpu" in refused(
        "moon", *good, capsys=capsys
    )
    text = refused("local", *good, "--nodes", "2", capsys=capsys)
    assert "--nodes 2 needs --coordinator HOST:PORT" in text
    text = refused("local", *good, "--nodes", "2", "--node-rank", "2", capsys=capsys)
    assert "--node-rank 2: of 2 machines use 0 to 1" in text
    text = refused("local", *good, "--coordinator", "host", capsys=capsys)
    assert "write HOST:PORT" in text
    assert "--retries 0: use 1" in refused("local", *good, "--retries", "0", capsys=capsys)
    text = refused("local", *good, "--topology", "v5f-16", capsys=capsys)
    assert "unknown; did you mean 'v5p'?" in text
    assert "-n 0: use 1 or more" in refused("local", *good, "-n", "0", capsys=capsys)
    assert "--zone is for launch tpu" in refused("local", *good, "--zone", "a", capsys=capsys)
    assert "absent.py" in refused("local", "absent.py", "--workdir", "w", capsys=capsys)
    text = refused("local", *good, "--", "--optimizer.learning_rat", "1", capsys=capsys)
    assert "learning_rate" in text
    assert list(tmp_path.iterdir()) == []


@pytest.mark.ci
@pytest.mark.timeout(400)
def test_two_real_processes_are_one_run(tmp_path):
    config = Path(mini.__file__)
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(config.parent)])}
    command = [sys.executable, "-m", "mmjax", "launch", "local", "-n", "2", str(config)]
    command += ["--workdir", str(tmp_path / "run"), "--devices-per-process", "4"]
    command += ["--", "--total_steps", "6"]
    start = time.monotonic()
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=380)
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
    assert {line[:4] for line in done.stdout.splitlines()} <= {"[0] ", "[1] "}
    assert checkpoint.steps(tmp_path / "run" / "checkpoints")[-1] == 6
    assert sorted(mini.rows(tmp_path / "run")) == list(range(1, 7))
    started = json.loads((tmp_path / "run" / "run.json").read_text())["starts"]
    assert len(started) == 1  # one run, one writer
    assert time.monotonic() - start < 380
