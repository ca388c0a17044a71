"""Processes that wait for each other before jax joins them: threads over real sockets."""

from __future__ import annotations

import concurrent.futures
import json
import socket
import time

import pytest

from mmjax.errors import ConfigError, HostLost
from mmjax.parallel import distributed, rendezvous


@pytest.fixture
def address():
    with socket.socket() as s:
        s.bind(("localhost", 0))
        return f"localhost:{s.getsockname()[1]}"


def come(address: str, processes, seconds: float = 20.0) -> list:
    """What became of each: its connections, or the error that it raised."""
    with concurrent.futures.ThreadPoolExecutor(len(processes)) as pool:
        jobs = [pool.submit(rendezvous.wait, address, *p, seconds) for p in processes]
        return [job.exception() or job.result() for job in jobs]


def test_all_go_on_when_the_last_has_come(address):
    connections = come(address, [(4, i) for i in (2, 0, 3, 1)])
    assert [sorted(of) for of in connections] == [[0], [1, 2, 3], [0], [0]]
    with socket.create_server(("localhost", int(address.rpartition(":")[2]))):
        pass  # the port is free again, for the coordinator of jax


def test_the_end_of_a_process_is_seen(address):
    main, first, second = come(address, [(3, 0), (3, 1), (3, 2)])
    first[0].close()
    time.sleep(0.1)
    assert [rendezvous.is_open(main[i]) for i in (1, 2)] == [False, True]
    for connection in main.values():
        connection.close()
    time.sleep(0.1)
    assert not rendezvous.is_open(second[0])


@pytest.mark.fault(
    "hosts that do not start", "they are named after 120 s, with the command; exit 69"
)
def test_absent_processes_are_named_with_the_command_that_starts_them(address, monkeypatch):
    monkeypatch.setattr("sys.argv", ["/bin/mmjax", "train", "a b.py", "--workdir", "runs/a"])
    began = time.monotonic()
    errors = come(address, [(5, 0), (5, 3)], seconds=1.5)
    assert time.monotonic() - began < 10
    for error in errors:
        assert isinstance(error, HostLost)
        assert "processes 1, 2, 4 of 5 did not come to" in str(error)
        assert f"JAX_COORDINATOR_ADDRESS={address} JAX_NUM_PROCESSES=5 JAX_PROCESS_ID=1" in str(
            error
        )
        assert "mmjax train 'a b.py' --workdir runs/a" in str(error)


def test_without_the_main_process_the_others_name_it(address, monkeypatch):
    monkeypatch.setattr(rendezvous, "TALK", 0.5)
    (error,) = come(address, [(2, 1)], seconds=1.0)
    assert isinstance(error, HostLost)
    assert "process 0 of 2 did not come" in str(error)


def test_a_process_that_was_started_twice_is_named(address):
    errors = come(address, [(3, 0), (3, 1), (3, 1)])
    assert all(isinstance(error, ConfigError) for error in errors)
    assert all("process 1 was started twice" in str(error) for error in errors)


def test_a_process_of_a_run_of_another_size_is_named(address):
    errors = come(address, [(3, 0), (4, 1)])
    assert all(isinstance(error, ConfigError) for error in errors)
    assert all("process 1 on" in str(e) and "started for 4 processes" in str(e) for e in errors)


def test_a_process_may_be_started_again_while_others_are_awaited(address):
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        main = pool.submit(rendezvous.wait, address, 3, 0, 20.0)
        host, _, port = address.rpartition(":")
        time.sleep(0.3)
        with socket.create_connection((host, int(port))) as first:  # it comes, and dies
            hello = {"process": 1, "of": 3, "host": "a", "pid": 1}
            first.sendall(json.dumps(hello).encode() + b"\n")
            time.sleep(0.3)
        last = pool.submit(rendezvous.wait, address, 3, 2, 20.0)  # now each has come once
        time.sleep(0.6)
        assert not main.done()
        again = pool.submit(rendezvous.wait, address, 3, 1, 20.0)
        assert [job.exception() for job in (main, last, again)] == [None] * 3


def test_what_is_no_process_of_mmjax_is_not_heard(address):
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        main = pool.submit(rendezvous.wait, address, 2, 0, 20.0)
        host, _, port = address.rpartition(":")
        for words in (b"GET / HTTP/1.1\r\n\n", b"[1]\n", b'{"process": "x", "of": 2}\n'):
            time.sleep(0.2)
            with socket.create_connection((host, int(port))) as stranger:
                stranger.sendall(words)
        assert pool.submit(rendezvous.wait, address, 2, 1, 20.0).exception() is None
        assert main.exception() is None


@pytest.mark.parametrize(
    ("address", "count", "process", "told"),
    [
        ("localhost", 2, 0, "JAX_COORDINATOR_ADDRESS=localhost must be HOST:PORT"),
        ("localhost:http", 2, 0, "must be HOST:PORT"),
        ("localhost:1", 2, 2, "JAX_PROCESS_ID=2: processes are numbered from 0 to 1"),
        ("localhost:1", 2, -1, "JAX_PROCESS_ID=-1"),
    ],
)
def test_an_environment_that_makes_no_sense_is_told(address, count, process, told):
    with pytest.raises(ConfigError, match=told):
        rendezvous.wait(address, count, process, 1.0)


@pytest.mark.parametrize("text", ["soon", "0", "nan", "-3"])
def test_the_time_must_be_a_number_of_seconds(text, monkeypatch):
    monkeypatch.setenv(distributed.START_SECONDS, text)
    with pytest.raises(ValueError, match=f"MMJAX_START_SECONDS={text} must be a number"):
        distributed._seconds()
