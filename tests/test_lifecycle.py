"""The run lock and the signals."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import time

import pytest

from mmjax import errors
from mmjax.run import lifecycle

HOLD = """
import sys, time
from mmjax import errors
from mmjax.run import lifecycle
with lifecycle.lock(sys.argv[1]):
    print("held", flush=True)
    time.sleep(60)
"""


def hold(workdir) -> subprocess.Popen:
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(workdir)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


def test_a_second_run_is_refused_and_told_who_holds(tmp_path):
    process = hold(tmp_path)
    try:
        message = f"held by pid {process.pid} on {socket.gethostname()} since 20"
        with pytest.raises(errors.WorkdirBusy, match=message), lifecycle.lock(tmp_path):
            pass
    finally:
        process.kill()
        process.wait()
    with lifecycle.lock(tmp_path):  # the kernel drops the lock of a killed process
        assert json.loads((tmp_path / "lock").read_text())["pid"] == os.getpid()


def test_the_lock_is_free_again_after_the_block(tmp_path):
    for _ in range(2):
        with lifecycle.lock(tmp_path / "new"):
            inner = lifecycle.lock(tmp_path / "new")
            with pytest.raises(errors.WorkdirBusy, match=f"pid {os.getpid()}"), inner:
                pass


def test_the_lock_of_a_dead_owner_is_taken_over_from_its_children(tmp_path):
    program = textwrap.dedent(
        """
        import os, sys, time
        from mmjax import errors
        from mmjax.run import lifecycle
        with lifecycle.lock(sys.argv[1]):
            if os.fork() == 0:
                print(os.getpid(), flush=True)
                time.sleep(60)
            time.sleep(0.2)
            os._exit(1)
        """
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program, str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    orphan = int(process.stdout.readline())
    process.wait()
    try:
        os.kill(orphan, 0)  # it lives and holds the descriptor
        with lifecycle.lock(tmp_path):
            inner = lifecycle.lock(tmp_path)
            with pytest.raises(errors.WorkdirBusy, match=f"pid {os.getpid()}"), inner:
                pass
    finally:
        os.kill(orphan, signal.SIGKILL)


def _count_holders(workdir, counter, gate) -> None:
    gate.wait()
    for _ in range(20):
        try:
            with lifecycle.lock(workdir):
                with counter.get_lock():
                    counter.value += 1
                    assert counter.value == 1
                time.sleep(0.002)
                with counter.get_lock():
                    counter.value -= 1
        except errors.WorkdirBusy:
            time.sleep(0.001)


def test_never_two_holders(tmp_path):
    context = multiprocessing.get_context("spawn")
    counter, gate = context.Value("i", 0), context.Barrier(3)
    processes = [
        context.Process(target=_count_holders, args=(tmp_path, counter, gate)) for _ in range(3)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [p.exitcode for p in processes] == [0, 0, 0]


def test_the_first_signal_asks_and_the_second_interrupt_stops(capfd):
    before = signal.getsignal(signal.SIGINT)
    with lifecycle.stop_on_signals() as stop:
        stop.check(1)
        assert not stop.requested
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.01)
        assert stop.requested
        with pytest.raises(errors.Preempted, match="SIGINT: saved step 7"):
            stop.check(7)
        with pytest.raises(errors.Interrupted):
            signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before
    assert "SIGINT: saving after this step" in capfd.readouterr().err


def test_sigterm_asks_once():
    with lifecycle.stop_on_signals() as stop:
        for _ in range(3):
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0.01)
        assert stop.signal_name == "SIGTERM"


def test_signals_are_left_alone_in_a_thread():
    found = []

    def body():
        with lifecycle.stop_on_signals() as stop:
            found.append(stop.requested)

    thread = threading.Thread(target=body)
    thread.start()
    thread.join()
    assert found == [False]
