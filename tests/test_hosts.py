"""Real processes of one run to which something happens: lost, stopped, unlike, asked to stop."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import sys
import time
from pathlib import Path

import hosts
import mini
import pytest

import mmjax
from mmjax import checkpoint

pytestmark = [pytest.mark.ci, pytest.mark.timeout(600)]

TRAIN = """
import dataclasses, os, signal, sys, time
sys.path[:0] = [{tests!r}, {root!r}]
import mini, mmjax
from mmjax import errors
from mmjax.evaluate import Evaluator

@dataclasses.dataclass(frozen=True, kw_only=True)
class Slow(Evaluator):
    every: int = 4
    def run(self, view):
        print("evaluating", view.step, flush=True)
        for _ in range({batches}):
            view.losses("text", 1)
        return {{"done": 1.0}}

if {signal_at}:  # as if a signal came just before that step, to one of the processes
    from mmjax.run.stopping import Stopping
    flags, calls = Stopping.flags, []
    def counted(self):
        calls.append(0)
        if len(calls) == {signal_at} and os.environ["JAX_PROCESS_ID"] == "1":
            os.kill(os.getpid(), signal.SIGTERM)
        return flags(self)
    Stopping.flags = counted

base = mini.get_config()  # of one task, without experts: what compiles soonest
config = mini.get_config(
    total_steps={steps},
    tasks={{"text": base.tasks["text"]}},
    model=dataclasses.replace(base.model, moe=None),
    evaluators={{"slow": Slow()}} if {batches} else {{}},
    **{fields},
)
try:
    mmjax.train(config, {workdir!r})
except errors.RunError as error:
    print(type(error).__name__, error, file=sys.stderr)
    sys.stderr.flush()
    time.sleep({leaves_after} if os.environ["JAX_PROCESS_ID"] == "1" else 0)
    os._exit(errors.EXIT_CODES.get(type(error), 1))
except ValueError as error:
    print(error, file=sys.stderr, flush=True)
    os._exit(2)
"""


def start(workdir: Path, count: int = 2, **about):
    """Processes that train; `fields` is an expression that may use `os`."""
    root = Path(mmjax.__file__).parent.parent
    default = {"steps": 100000, "batches": 0, "fields": "{}", "signal_at": 0, "leaves_after": 0}
    about = {**default, **about, "workdir": str(workdir)}
    text = TRAIN.format(tests=str(root / "tests"), root=str(root), **about)
    return hosts.start([sys.executable, "-u", "-c", text], count)


def after_step(workdir: Path, processes, step: int) -> None:
    """Waits until the step is logged."""
    deadline = time.monotonic() + 400
    while not (workdir / "metrics.jsonl").exists() or max(mini.rows(workdir), default=0) < step:
        assert time.monotonic() < deadline
        assert all(p.poll() is None for p in processes), processes[0].communicate()[1][-3000:]
        time.sleep(0.1)


def ended(processes, seconds: float = 120) -> list[tuple[int, str]]:
    """Exit code and errors of each, in this time."""
    try:
        told = [p.communicate(timeout=seconds)[1] for p in processes]
    finally:
        for process in processes:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
    return [(p.returncode, text) for p, text in zip(processes, told, strict=True)]


@pytest.mark.fault(
    "one of several processes is stopped (SIGSTOP)",
    "the others end within 15 s, exit 69, and say what their threads did",
)
def test_a_stopped_process_ends_the_other_within_15_seconds(tmp_path):
    processes = start(tmp_path)
    after_step(tmp_path, processes, 3)
    processes[1].send_signal(signal.SIGSTOP)
    began = time.monotonic()
    ((code, err),) = ended(processes[:1], 60)
    seconds = time.monotonic() - began
    processes[1].kill()
    assert code == 69, err[-3000:]
    # Of a step that is overdue and a host whose sign is, the watch names the host.
    assert re.search("process 1 gave no sign for (10|5) s", err), err
    assert "train.py" in (tmp_path / "logs" / "host_0.log").read_text()
    assert seconds < 15


@pytest.mark.slow
def test_a_stopped_main_process_ends_the_others(tmp_path):
    processes = start(tmp_path)
    after_step(tmp_path, processes, 3)
    processes[0].send_signal(signal.SIGSTOP)
    began = time.monotonic()
    ((code, err),) = ended(processes[1:], 60)
    seconds = time.monotonic() - began
    processes[0].kill()
    assert code == 69, err[-3000:]
    assert seconds < 15


@pytest.mark.slow  # on every submission tests/launch kills one of four
@pytest.mark.parametrize("victim", [0, 1])
@pytest.mark.fault("one of several processes is killed", "the others end, exit 69")
def test_a_killed_process_ends_the_other(tmp_path, victim):
    processes = start(tmp_path)
    after_step(tmp_path, processes, 3)
    processes[victim].kill()
    ((code, err),) = ended([processes[1 - victim]], 60)
    # The client of jax aborts where its coordinator is gone, before anything else can be done.
    assert code == 69 or (victim == 0 and code == -signal.SIGABRT), err[-3000:]


@pytest.mark.fault(
    "processes of a run with different configs",
    "all end before they compile, the field is named; exit 2",
)
def test_processes_with_other_fields_all_end_before_they_compile(tmp_path):
    field = "dict(seed=int(os.environ['JAX_PROCESS_ID']))"
    for code, err in ended(start(tmp_path, fields=field), 300):
        assert code == 2, err[-3000:]
        assert "seed: 0 -> 1" in err
    assert not (tmp_path / "config.json").exists()


def test_an_error_of_the_main_process_is_that_of_all(tmp_path):
    (tmp_path / "checkpoints" / "4").mkdir(parents=True)  # no checkpoint, and nothing else
    for code, err in ended(start(tmp_path, leaves_after=4), 300):
        assert code == 66, err[-3000:]
        assert "has no manifest.json" in err


def test_a_signal_to_one_stops_all_within_two_steps(tmp_path):
    for code, err in ended(start(tmp_path, signal_at=6), 300):
        assert code == 75, err[-3000:]
    assert checkpoint.steps(tmp_path / "checkpoints")[-1] == 5 + 2


@pytest.mark.slow
def test_a_signal_in_an_evaluation_stops_all_and_the_evaluation_runs_later(tmp_path):
    processes = start(tmp_path, batches=100000)
    for line in processes[1].stdout:
        if line.startswith("evaluating 4"):
            break
    processes[1].send_signal(signal.SIGTERM)
    for code, err in ended(processes):
        assert code == 75, err[-3000:]
    assert checkpoint.steps(tmp_path / "checkpoints") == [4]
    assert not (tmp_path / "evals").exists()
    again = start(tmp_path, steps=5, batches=1)
    for code, err in ended(again, 300):
        assert code == 0, err[-3000:]
    scores = sorted(p.name for p in (tmp_path / "evals" / "slow").iterdir())
    assert scores == ["4.json", "5.json"]
    run = json.loads((tmp_path / "run.json").read_text())
    assert [one["processes"] for one in run["starts"]] == [2, 2]
    assert os.path.isdir(tmp_path / "checkpoints" / "5")
