"""The watch over a run: what ends it, and what does not."""

from __future__ import annotations

import subprocess
import sys
import threading
import time

import pytest
from store import Shared, Store

from mmjax.errors import HostLost, NumericsError, Preempted
from mmjax.parallel.peers import Peers
from mmjax.run import watch as watch_lib
from mmjax.run.clock import Clock
from mmjax.run.watch import Watch

# Steps of 10 ms, then one that hangs in a function of its own.
HANGS = """
import pathlib, sys, time
from mmjax.run.watch import Watch
watch = Watch(pathlib.Path(sys.argv[1]), 1.0, None, exits={exits})
watch.start()
for _ in range(5):
    watch.clock.enter("input")
    watch.clock.enter("step")
    time.sleep(0.01)
def where_it_hangs():
    watch.clock.enter("{phase}")
    time.sleep({seconds})
where_it_hangs()
print("went on")
"""


def hangs(tmp_path, **fields) -> subprocess.CompletedProcess:
    text = HANGS.format(**{"exits": True, "phase": "step", "seconds": 60, **fields})
    command = [sys.executable, "-c", text, str(tmp_path)]
    return subprocess.run(command, capture_output=True, text=True, timeout=100)


@pytest.mark.ci
@pytest.mark.fault("a step that hangs", "the stacks of all threads are written; exit 69")
def test_a_step_that_hangs_ends_the_process_with_its_stacks(tmp_path):
    began = time.monotonic()
    ended = hangs(tmp_path)
    assert ended.returncode == 69
    assert time.monotonic() - began < 50
    assert "no step ended for" in ended.stderr
    assert "where_it_hangs" in ended.stderr
    assert "where_it_hangs" in (tmp_path / "logs" / "host_0.log").read_text()


@pytest.mark.slow
def test_a_batch_that_does_not_come_ends_the_process_later(tmp_path):
    ended = hangs(tmp_path, phase="input")
    assert ended.returncode == 69
    assert "no batch came for" in ended.stderr
    assert "where 6 s are allowed" in ended.stderr


@pytest.mark.ci
def test_in_a_notebook_a_step_that_hangs_is_only_told(tmp_path):
    ended = hangs(tmp_path, exits=False, seconds=4)
    assert (ended.returncode, ended.stdout) == (0, "went on\n")
    assert ended.stderr.count("no step ended for") == 1
    assert "where_it_hangs" in ended.stderr


@pytest.mark.ci
def test_an_evaluation_may_take_any_time(tmp_path):
    assert hangs(tmp_path, phase="evaluate", seconds=4).stdout == "went on\n"


def test_limits_follow_what_the_run_has_shown():
    watch = Watch(None, 10.0, None, exits=True)
    clock = watch.clock
    assert watch.limit("step") == float("inf")  # no step is known
    for seconds in (0.1, 4.0, 0.1, 0.1):
        clock.enter("step")
        clock.since -= seconds
        clock.enter("input")
    assert watch.limit("step") == pytest.approx(20, abs=1)
    assert watch.limit("input") == 60.0
    assert watch.limit("compile") == watch.limit("save") == float("inf")


def test_phases_add_up_to_the_time_that_has_passed():
    clock = Clock()
    began = clock.since
    clock.enter("step")
    with clock.during("save"):
        time.sleep(0.02)
    assert clock.phase == "step"
    time.sleep(0.01)
    seconds = clock.seconds()
    assert seconds["save"] >= 0.02
    assert sum(seconds.values()) == pytest.approx(time.monotonic() - began, abs=0.005)


# ---------------------------------------------------------------------------- among others


@pytest.fixture
def ended(monkeypatch):
    """Exit codes with which this process would have ended."""
    codes = []
    monkeypatch.setattr(watch_lib.os, "_exit", codes.append)
    monkeypatch.setattr(watch_lib, "TICK", 0.05)
    monkeypatch.setattr(watch_lib, "BEAT", 0.1)
    monkeypatch.setattr(watch_lib, "TELLING", 0.3)
    monkeypatch.setattr(watch_lib, "PARTING", 0.1)
    return codes


def others(count: int = 2) -> list[Peers]:
    shared = Shared(count)
    return [Peers(Store(shared), i, count, "signs") for i in range(count)]


def until(codes: list, seconds: float = 10.0) -> None:
    end = time.monotonic() + seconds
    while not codes and time.monotonic() < end:
        time.sleep(0.05)


def test_a_silent_process_ends_the_others(ended, tmp_path, capsys):
    main, _ = others()
    watch = Watch(tmp_path, 0.6, main, exits=False)
    watch.start()
    until(ended)
    watch.close()
    assert ended[0] == 69
    assert "process 1 gave no sign for 0.6 s: a host was lost" in capsys.readouterr().err
    assert "test_a_silent_process" in (tmp_path / "logs" / "host_0.log").read_text()


def test_nobody_waits_for_a_silent_process(ended, tmp_path, monkeypatch):
    monkeypatch.setattr(watch_lib, "LAST", 30.0)
    main, _ = others()
    began = time.monotonic()
    Watch(tmp_path, 5.0, main, exits=False)._tell(69, "process 1 is silent", silent=[1])
    assert time.monotonic() - began < 5


def test_process_0_ends_after_the_others(ended, tmp_path, monkeypatch):
    gone: set[int] = set()
    monkeypatch.setattr(watch_lib.distributed, "gone", lambda: set(gone))
    main, first, second = others(3)

    def end() -> None:
        for number, peers in enumerate((first, second), 1):
            time.sleep(0.2)
            peers.beat()
            assert peers.ended == (0, 70, "not finite")
            time.sleep(0.2)
            gone.add(number)

    later = threading.Thread(target=end)
    later.start()
    Watch(tmp_path, 5.0, main, exits=False)._tell(70, "not finite")
    assert gone == {1, 2}
    later.join()


def test_process_0_does_not_wait_for_ever(ended, tmp_path, monkeypatch):
    monkeypatch.setattr(watch_lib, "LAST", 0.3)
    main, _ = others()
    Watch(tmp_path, 5.0, main, exits=False)._tell(70, "not finite")


def test_the_error_of_one_process_ends_the_others_with_its_code(ended, tmp_path, capsys):
    main, other = others()
    watch = Watch(tmp_path, 5.0, other, exits=False)
    watch.start()
    main.beat()
    main.end(76, "the workdir is held by pid 1")
    until(ended)
    watch.close()
    assert ended[0] == 76
    assert "process 0 ended: the workdir is held by pid 1" in capsys.readouterr().err


class JaxRuntimeError(RuntimeError):
    """Named like that of jax."""


GLOO = JaxRuntimeError("UNKNOWN: Gloo all-reduce failed: Connection closed by peer [127.0.0.1]")


def test_an_error_of_a_collective_is_a_lost_host(ended, tmp_path):
    main, other = others()
    error = Watch(tmp_path, 5.0, other, exits=False).failed(GLOO)
    assert isinstance(error, HostLost)
    assert "Gloo all-reduce failed" in str(error)
    main.beat()
    assert main.ended.code == 69


def test_what_the_lost_process_told_counts_more(ended, tmp_path):
    main, other = others()
    main.end(70, "the loss is not finite")
    error = Watch(tmp_path, 5.0, other, exits=False).failed(GLOO)
    assert isinstance(error, NumericsError)
    assert str(error) == "process 0 ended: the loss is not finite"


def test_errors_of_our_own_are_told_and_kept(ended, tmp_path):
    main, other = others()
    mine = NumericsError("not finite")
    assert Watch(tmp_path, 5.0, other, exits=False).failed(mine) is mine
    main.beat()
    assert (main.ended.process, main.ended.code) == (1, 70)


def test_a_stop_by_a_signal_hurries_nobody(ended, tmp_path):
    main, other = others()
    stop = Preempted("SIGTERM: saved step 3")
    assert Watch(tmp_path, 5.0, other, exits=False).failed(stop) is stop
    main.beat()
    assert main.ended is None


def test_an_error_alone_is_what_it_was(tmp_path):
    assert Watch(tmp_path, 5.0, None, exits=True).failed(GLOO) is GLOO
