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
from mmjax.launch import local

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
    monkeypatch.setattr(local, "SHORT_GRACE", 0.2)


def launch(place: Path, *codes: str, processes: int = 2, restarts: int = 10) -> tuple[int, int]:
    """(exit code, starts) with one entry of `codes` a start: a code for each process."""
    command = [sys.executable, "-c", CHILD, str(place), *codes]
    code = local.local("c.py", "w", processes=processes, restarts=restarts, command=command)
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
        (("-9", "0"), (137, 1)),
        (("hang,69", "0"), (0, 2)),  # the others are ended
        (("hang,3", "0"), (3, 1)),
    ],
)
def test_what_is_started_again(tmp_path, codes, expected):
    assert launch(tmp_path, *codes) == expected


def test_the_number_of_restarts_is_bounded(tmp_path):
    assert launch(tmp_path, *["75"] * 9, processes=1, restarts=2) == (75, 3)
    assert len((tmp_path / "0").read_text()) == 3


def test_storage_is_given_time(tmp_path, monkeypatch):
    waits = []
    monkeypatch.setattr(local._Stop, "sleep", lambda self, seconds: waits.append(seconds))
    monkeypatch.setattr(local, "LONGEST_WAIT", 0.5)
    assert launch(tmp_path, "74", "74", "75", "74", "0", processes=1) == (0, 5)
    assert waits == [0.3, 0.5, 0.5]


def test_output_is_prefixed(tmp_path, capfdbinary):
    launch(tmp_path, "0")
    assert sorted(capfdbinary.readouterr().out.splitlines()) == [
        b"[0] start 0 of 0",
        b"[1] start 0 of 1",
    ]


def test_the_compile_cache_is_passed_on(monkeypatch):
    commands = []
    monkeypatch.setattr(local, "_run", lambda command, *_: commands.append(command) or 0)
    args = ["launch", "local", f"{mini.QUICKSTART}:tiny", "--workdir", "w"]
    for more in ([], ["--compile-cache", "gs://b/c"]):
        assert cli.main([*args, *more, "--", "--total_steps", "3"]) == 0
    ends = ["train", args[2], "--workdir", "w", "--total_steps", "3"]
    assert commands[0][-6:] == ends
    assert commands[1][-8:] == [*ends[:4], "--compile-cache", "gs://b/c", *ends[4:]]


def test_processes_are_told_who_they_are(monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "--a=1 --xla_force_host_platform_device_count=8")
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    env = local._environment(1, 3, 5000, 4)
    assert env["JAX_COORDINATOR_ADDRESS"] == "localhost:5000"
    assert (env["JAX_NUM_PROCESSES"], env["JAX_PROCESS_ID"]) == ("3", "1")
    assert env["XLA_FLAGS"] == "--a=1 --xla_force_host_platform_device_count=4"
    monkeypatch.setenv("JAX_PLATFORMS", "cuda")
    assert local._environment(1, 3, 5000, 4)["CUDA_VISIBLE_DEVICES"] == "4,5,6,7"
    assert "JAX_PROCESS_ID" not in local._environment(0, 1, 5000, 0)


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
    assert "there is local, tpu" in refused("moon", *good, capsys=capsys)
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
