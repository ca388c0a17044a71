"""The lock of a workdir in a bucket: one writer, whatever dies, sleeps or has another clock."""

from __future__ import annotations

import contextlib
import datetime
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time

import pytest

from mmjax import errors
from mmjax.run import lock as lock_lib

HOLD = """
import sys, time
from mmjax import errors
from mmjax.run import lock
lock.HEARTBEAT, lock.LEASE = float(sys.argv[2]), float(sys.argv[3])
with lock.lock(sys.argv[1]) as held:
    print("held", held.fence, flush=True)
    for line in sys.stdin:
        try:
            held.check()
            print("still held", flush=True)
        except errors.WorkdirBusy as error:
            print("lost:", error, flush=True)
"""


@pytest.fixture(autouse=True)
def short(monkeypatch):
    monkeypatch.setattr(lock_lib, "HEARTBEAT", 0.1)
    monkeypatch.setattr(lock_lib, "LEASE", 0.6)


def hold(address: str, heartbeat=0.1, lease=0.6) -> subprocess.Popen:
    """A process that holds the lock; asked by a line whether it does."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, address, str(heartbeat), str(lease)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline().startswith("held")
    return process


def ask(process: subprocess.Popen) -> str:
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write("\n")
    process.stdin.flush()
    return process.stdout.readline()


def of_elsewhere(service, address: str, **fields) -> None:
    """A lock that a process of another host has left."""
    there = {"pid": 7, "host": "elsewhere", "owner": "x", "fence": 4, "time": "?", **fields}
    with lock_lib.lock(address):
        content = service.read(f"{address}/lock")
    assert json.loads(content)["host"] == socket.gethostname()
    service.put(f"{address}/lock", json.dumps(there).encode())


def race(address: str) -> int:
    """How many of two writers got the lock at the same time."""
    ready, done = threading.Barrier(2), threading.Barrier(2)
    won = []

    def run():
        ready.wait()
        with contextlib.suppress(errors.WorkdirBusy), lock_lib.lock(address):
            won.append(1)
            done.wait(20)
            return
        done.wait(20)

    threads = [threading.Thread(target=run) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return len(won)


@pytest.mark.fault("two runs start in one workdir of a bucket at once", "one of them; exit 76")
def test_of_two_writers_exactly_one_wins(address):
    assert [race(address) for _ in range(20)] == [1] * 20


def test_without_preconditions_both_win(service, address):
    """What the lock rests on: a service that does not heed them cannot be locked."""
    service.has_preconditions = False
    assert 2 in [race(address) for _ in range(5)]


def test_the_lock_names_its_holder_and_is_gone_afterwards(service, address, capfd):
    process = hold(address)
    try:
        message = f"held by pid {process.pid} on {socket.gethostname()} since 20"
        with pytest.raises(errors.WorkdirBusy, match=message), lock_lib.lock(address):
            pass
        said = f"lock is of pid {process.pid} on {socket.gethostname()}; it is taken over if it"
        assert said in capfd.readouterr().err
    finally:
        process.communicate()
    assert service.names(address) == []
    with lock_lib.lock(address) as held:
        assert held.fence == 1


@pytest.mark.fault(
    "a run in a bucket was killed, and starts again on its host", "its lock is taken over at once"
)
def test_the_lock_of_a_dead_process_of_this_host(address):
    process = hold(address, heartbeat=60, lease=60)
    process.kill()
    process.wait()
    began = time.monotonic()
    with lock_lib.lock(address) as held:
        assert held.fence == 2
        held.check()
    assert time.monotonic() - began < lock_lib.LEASE


@pytest.mark.fault(
    "the host of a run in a bucket is gone", "its lock is taken over after 30 s of silence"
)
@pytest.mark.parametrize("hours", [-9, 9])
def test_a_silent_lock_of_another_host_is_taken_over_whatever_its_clock(service, address, hours):
    when = datetime.datetime.now(datetime.UTC) + datetime.timedelta(hours=hours)
    of_elsewhere(service, address, time=when.isoformat())
    began = time.monotonic()
    with lock_lib.lock(address) as held:
        assert lock_lib.LEASE <= time.monotonic() - began < 5 * lock_lib.LEASE
        assert held.fence == 5


@pytest.mark.fault(
    "the clock of the host that holds a bucket's lock is hours off", "exit 76 as ever"
)
@pytest.mark.parametrize("hours", [-9, 9])
def test_a_living_lock_is_not_taken_over_whatever_its_clock(service, address, hours):
    when = datetime.datetime.now(datetime.UTC) + datetime.timedelta(hours=hours)
    of_elsewhere(service, address, time=when.isoformat())
    ended = threading.Event()

    def beat():
        while not ended.wait(0.1):
            service.put(f"{address}/lock", service.read(f"{address}/lock"))

    thread = threading.Thread(target=beat)
    thread.start()
    try:
        message = "held by pid 7 on elsewhere"
        with pytest.raises(errors.WorkdirBusy, match=message), lock_lib.lock(address):
            pass
    finally:
        ended.set()
        thread.join()


@pytest.mark.fault(
    "a run was stopped for longer than its lease (SIGSTOP), and another took its workdir over",
    "it writes no more once it wakes; exit 76",
)
def test_a_holder_that_slept_learns_that_it_was_taken_over(service, address, monkeypatch):
    process = hold(address)
    try:
        assert ask(process) == "still held\n"
        os.kill(process.pid, signal.SIGSTOP)
        monkeypatch.setattr(socket, "gethostname", lambda: "another")
        with lock_lib.lock(address) as held:
            assert held.fence == 2
            os.kill(process.pid, signal.SIGCONT)
            answer = ask(process)
            assert answer.startswith("lost: ")
            assert f"taken over by pid {os.getpid()} on another" in answer
            held.check()
    finally:
        process.communicate()
    assert service.names(address) == []  # the one that lost it does not delete it


def test_a_holder_that_slept_and_was_not_taken_over_goes_on(address):
    process = hold(address)
    os.kill(process.pid, signal.SIGSTOP)
    time.sleep(2 * lock_lib.LEASE)
    os.kill(process.pid, signal.SIGCONT)
    assert ask(process) == "still held\n"
    process.communicate()


@pytest.mark.fault("a bucket answers 429 or 503 for a while", "it is asked again; the run goes on")
@pytest.mark.parametrize("status", [429, 503])
def test_throttling_does_not_end_a_run(service, address, status):
    service.fail(status, times=2)
    with lock_lib.lock(address) as held:
        before = service.generation(f"{address}/lock")
        service.fail(status, times=2, concerns=lambda method, name: name.endswith("lock"))
        time.sleep(0.5)
        held.check()
        assert service.generation(f"{address}/lock") > before


@pytest.mark.fault(
    "the answer to a write of a bucket's lock is lost", "the lock is held all the same"
)
def test_lost_answers(service, address):
    writes = lambda method, name: method == "POST" and name.endswith("lock")
    service.fail(503, concerns=writes, is_done=True)
    with lock_lib.lock(address) as held:
        for _ in range(3):
            service.fail(503, concerns=writes, is_done=True)
            time.sleep(0.25)
            held.check()
    assert service.names(address) == []


def test_the_heartbeat_costs_little(service, address):
    with lock_lib.lock(address):
        time.sleep(0.3)  # the first one opens the connection
        with service.watched() as calls:
            began = time.process_time()
            time.sleep(1.0)
            spent = time.process_time() - began
        assert 3 <= len(calls) <= 11
    assert spent / len(calls) < 0.05  # seconds a beat, with that of the server; one in ten seconds


@pytest.mark.parametrize(
    ("fault", "error", "text"),
    [
        pytest.param(
            "read_only", errors.StorageError, "permission denied.*roles/storage.objectUser",
            marks=pytest.mark.fault("a bucket that may only be read", "one error says so; exit 74"),
        ),
        pytest.param(
            "full", errors.StorageError, "the storage is full.*free space",
            marks=pytest.mark.fault("a bucket that is full", "one error says so; exit 74"),
        ),
        pytest.param(
            "closed", errors.StorageError, "no valid credentials.*gcloud auth application-default",
            marks=pytest.mark.fault("no credentials for a bucket", "one error says so; exit 74"),
        ),
    ],
)  # fmt: skip
def test_what_a_bucket_refuses_is_told_with_the_remedy(service, address, fault, error, text):
    setattr(service, fault, True)
    with pytest.raises(error, match=text), lock_lib.lock(address):
        pass


@pytest.mark.fault("a bucket that does not exist", "one error names it; exit 2")
def test_an_absent_bucket_is_named(service):
    message = "no bucket 'mmjax-absent'.*buckets create gs://mmjax-absent"
    with pytest.raises(errors.ConfigError, match=message), lock_lib.lock("gs://mmjax-absent/run"):
        pass
