"""The processes of one start: their environment, output, signals and end."""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from mmjax.launch import flags
from mmjax.plan import topology as topology_lib

__all__ = ["AT_ONCE", "LATER", "Ended", "Node", "Stop", "run"]

AT_ONCE, LATER = (69, 75), 74  # exit codes that are started again; see docs/errors.md
LOST = 69  # also what a process counts as that a signal ended
UNKNOWN = 1  # what a process may end with because another was lost
GRACE = 120.0  # seconds for the others to end when one has ended well or preempted
SHORT_GRACE = 5.0  # the same when one has failed: the others wait for it in vain
POLL = 0.05
MOMENT = 0.5  # seconds in which ends count as being at one moment
SHOWN = 20  # last lines of the process that failed first


@dataclasses.dataclass(frozen=True, kw_only=True)
class Node:
    """The processes of this machine, and its place among the machines of the run.

    Fields:
      processes: here. devices: of each; simulated ones on CPU, GPUs of its own; 0 = as they come.
      nodes, rank: machines, and which this is. coordinator: HOST:PORT of the first; "" = this
        machine, or what the environment says.
      topology: whose flags of XLA are set; "" = none.
    """

    processes: int = 1
    devices: int = 0
    nodes: int = 1
    rank: int = 0
    coordinator: str = ""
    topology: str = ""

    @property
    def is_one_of_several(self) -> bool:
        """Whether other machines take part."""
        hosts = topology_lib.parse(self.topology).num_hosts if self.topology else 1
        return max(self.nodes, hosts) > 1

    def environment(self, index: int, port: int) -> dict[str, str]:
        """The environment of one process."""
        env = {**os.environ, "PYTHONUNBUFFERED": "1"}
        if self.coordinator or self.processes > 1:
            env |= {
                "JAX_COORDINATOR_ADDRESS": self.coordinator or f"localhost:{port}",
                "JAX_NUM_PROCESSES": str(self.nodes * self.processes),
                "JAX_PROCESS_ID": str(self.rank * self.processes + index),
            }
        if self.topology:
            env |= flags.environment(topology_lib.parse(self.topology).chip.platform, env)
        if self.devices and _on_gpu(env):
            first = index * self.devices
            env["CUDA_VISIBLE_DEVICES"] = ",".join(map(str, range(first, first + self.devices)))
        elif self.devices:
            name = "--xla_force_host_platform_device_count"
            given = [f for f in env.get("XLA_FLAGS", "").split() if not f.startswith(name)]
            env["XLA_FLAGS"] = " ".join([*given, f"{name}={self.devices}"])
        return env


@dataclasses.dataclass(frozen=True)
class Ended:
    """How a start ended: exit code, which process decided it, and the last lines it wrote."""

    code: int
    process: int = 0
    lines: tuple[bytes, ...] = ()


class Stop:
    """The signal that this process got, passed on to its children."""

    def __init__(self):
        self.number = 0
        self.children: list[subprocess.Popen[bytes]] = []

    def handle(self, number: int, frame: object) -> None:
        del frame
        self.number = number
        for child in self.children:
            if child.poll() is None:
                child.send_signal(number)

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {s: signal.signal(s, self.handle) for s in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def sleep(self, seconds: float) -> None:
        """Sleeps, but not on after a signal."""
        end = time.monotonic() + seconds
        while not self.number and time.monotonic() < end:
            time.sleep(POLL)


def run(command: list[str], node: Node, stop: Stop) -> Ended:
    """One start of all processes, until the last has ended."""
    port = _free_port()
    readers, written = [], []
    stop.children = []
    for i in range(node.processes):
        child = subprocess.Popen(
            command,
            env=node.environment(i, port),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # Ctrl-C reaches it once, by way of us
        )
        stop.children.append(child)
        written.append(collections.deque(maxlen=SHOWN))
        name = node.rank * node.processes + i if node.nodes * node.processes > 1 else None
        reader = threading.Thread(target=_copy, args=(child, name, written[i]), daemon=True)
        reader.start()
        readers.append(reader)
    if stop.number:  # it came before all were listed
        stop.handle(stop.number, None)
    try:
        code, decided = _first_failure(stop)
        _end_others(stop.children, code)
    finally:
        for child in stop.children:
            if child.poll() is None:
                child.kill()
            child.wait()
    for reader in readers:
        reader.join(timeout=5)
    return Ended(code, decided, tuple(written[decided]))


def _first_failure(stop: Stop) -> tuple[int, int]:
    """Waits for the first bad end, or for all: (exit code, process)."""
    while True:
        statuses = [child.poll() for child in stop.children]
        if any(statuses):
            time.sleep(MOMENT)
            statuses = [child.poll() for child in stop.children]
            bad = [(_rank(s), _code(s, stop), i) for i, s in enumerate(statuses) if s]
            return min(bad)[1:]
        if None not in statuses:
            return 0, 0
        time.sleep(POLL)


def _rank(status: int) -> int:
    """Of ends at one moment the one that says most decides: a code that no start mends, then a
    process that a signal ended, since the others may have failed for want of it."""
    if status < 0:
        return 1
    if status == UNKNOWN:
        return 2
    return 3 if status in (*AT_ONCE, LATER) else 0


def _code(status: int, stop: Stop) -> int:
    """Killed from outside, out of memory, or crashed counts as a host that was lost. What our own
    signal has ended is told as a shell tells it."""
    if status < 0:
        return 128 - status if -status == stop.number else LOST
    return status


def _end_others(children: list[subprocess.Popen[bytes]], code: int) -> None:
    """Gives them time to end by themselves; a run that was preempted is still saving."""
    end = time.monotonic() + (GRACE if code == 75 else SHORT_GRACE)
    while any(c.poll() is None for c in children) and time.monotonic() < end:
        time.sleep(POLL)


def _on_gpu(env: dict[str, str]) -> bool:
    platforms = env.get("JAX_PLATFORMS", "")
    if platforms:
        return platforms.split(",")[0] in ("cuda", "gpu")
    return any(Path("/dev").glob("nvidia[0-9]*"))


def _free_port() -> int:
    with socket.socket() as s:
        s.bind(("localhost", 0))
        return s.getsockname()[1]


def _copy(
    child: subprocess.Popen[bytes], name: int | None, written: collections.deque[bytes]
) -> None:
    """The output of a process, each line with its number in front; the last lines are kept."""
    prefix = b"" if name is None else f"[{name}] ".encode()
    assert child.stdout is not None
    for line in child.stdout:
        shown = prefix + line.rstrip(b"\n")
        written.append(shown)
        sys.stdout.buffer.write(shown + b"\n")
        sys.stdout.buffer.flush()
