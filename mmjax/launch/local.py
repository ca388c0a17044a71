"""`mmjax launch local`: processes on this machine, joined by jax.distributed, started again.

Also what runs on each worker of a TPU slice, with one process there, for its restarts.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from mmjax.config.error import ConfigError
from mmjax.processes import children

__all__ = ["local"]

TRAIN = "from mmjax import cli; sys.exit(cli.main())"

AT_ONCE, LATER = (69, 75), 74  # exit codes that are started again; see docs/errors.md
FIRST_WAIT, LONGEST_WAIT = 5.0, 300.0  # seconds before a start after 74; doubled each time
GRACE = 120.0  # seconds for the others to end when one has ended well or preempted
SHORT_GRACE = 5.0  # the same when one has failed: the others wait for it in vain
POLL = 0.05


def local(
    config: str,
    workdir: str,
    *,
    processes: int = 1,
    devices_per_process: int = 0,
    overrides: Sequence[str] = (),
    restarts: int = 10,
    command: Sequence[str] = (),
) -> int:
    """Trains CONFIG in `processes` processes of this machine; returns the exit code.

    Exit codes 69 and 75 are started again at once, 74 after a wait that doubles, others never.
    SIGINT and SIGTERM go to all processes, and then nothing is started again.

    Args:
      devices_per_process: simulated ones on CPU, GPUs of its own otherwise; 0 = as they come.
      overrides: further arguments of `mmjax train`.
      restarts: at most so many.
      command: instead of `mmjax train CONFIG ...`.

    Raises ConfigError for sizes that make no sense.
    """
    for name, value, least in (("-n", processes, 1), ("--restarts", restarts, 0)):
        if value < least:
            raise ConfigError(f"{name} {value}: use {least} or more.")
    if devices_per_process < 0:
        raise ConfigError(f"--devices-per-process {devices_per_process}: use 1 or more.")
    train = children.command(TRAIN, "train", config, "--workdir", workdir, *overrides)
    stop, wait = _Stop(), FIRST_WAIT
    with stop.listening():
        for start in range(restarts + 1):
            code = _run(list(command) or train, processes, devices_per_process, stop)
            if stop.number or code not in (*AT_ONCE, LATER) or start == restarts:
                break
            _say(f"exit code {code}: start {start + 2} of at most {restarts + 1}")
            if code == LATER:
                stop.sleep(wait)
                wait = min(2 * wait, LONGEST_WAIT)
                if stop.number:
                    break
    return code


class _Stop:
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


def _run(command: list[str], processes: int, devices: int, stop: _Stop) -> int:
    """One start of all processes; the exit code of the one that ended the run."""
    port = _free_port()
    readers = []
    stop.children = []
    for i in range(processes):
        child = subprocess.Popen(
            command,
            env=_environment(i, processes, port, devices),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # Ctrl-C reaches it once, by way of us
        )
        stop.children.append(child)
        reader = threading.Thread(target=_copy, args=(child, i, processes), daemon=True)
        reader.start()
        readers.append(reader)
    if stop.number:  # it came before all were listed
        stop.handle(stop.number, None)
    try:
        code = _first_failure(stop.children)
        _end_others(stop.children, code)
    finally:
        for child in stop.children:
            if child.poll() is None:
                child.kill()
            child.wait()
    for reader in readers:
        reader.join(timeout=5)
    return code


def _first_failure(children: list[subprocess.Popen[bytes]]) -> int:
    """Waits for the first bad end, or for all; of ends at one moment, the one that stays."""
    while True:
        codes = [child.poll() for child in children]
        bad = [_code(c) for c in codes if c]
        if bad:
            return min(bad, key=lambda code: code in (*AT_ONCE, LATER))
        if None not in codes:
            return 0
        time.sleep(POLL)


def _code(status: int) -> int:
    """As a shell tells it: 128 + the signal of a killed process."""
    return 128 - status if status < 0 else status


def _end_others(children: list[subprocess.Popen[bytes]], code: int) -> None:
    """Gives them time to end by themselves; a run that was preempted is still saving."""
    end = time.monotonic() + (GRACE if code == 75 else SHORT_GRACE)
    while any(c.poll() is None for c in children) and time.monotonic() < end:
        time.sleep(POLL)


def _environment(index: int, processes: int, port: int, devices: int) -> dict[str, str]:
    env = {**os.environ, "PYTHONUNBUFFERED": "1"}
    if processes > 1:
        env |= {
            "JAX_COORDINATOR_ADDRESS": f"localhost:{port}",
            "JAX_NUM_PROCESSES": str(processes),
            "JAX_PROCESS_ID": str(index),
        }
    if devices and _on_gpu(env):
        first = index * devices
        env["CUDA_VISIBLE_DEVICES"] = ",".join(map(str, range(first, first + devices)))
    elif devices:
        name = "--xla_force_host_platform_device_count"
        flags = [f for f in env.get("XLA_FLAGS", "").split() if not f.startswith(name)]
        env["XLA_FLAGS"] = " ".join([*flags, f"{name}={devices}"])
    return env


def _on_gpu(env: dict[str, str]) -> bool:
    platforms = env.get("JAX_PLATFORMS", "")
    if platforms:
        return platforms.split(",")[0] in ("cuda", "gpu")
    return any(Path("/dev").glob("nvidia[0-9]*"))


def _free_port() -> int:
    with socket.socket() as s:
        s.bind(("localhost", 0))
        return s.getsockname()[1]


def _copy(child: subprocess.Popen[bytes], index: int, processes: int) -> None:
    """The output of a process, each line with its number in front."""
    prefix = f"[{index}] ".encode() if processes > 1 else b""
    assert child.stdout is not None
    for line in child.stdout:
        sys.stdout.buffer.write(prefix + line.rstrip(b"\n") + b"\n")
        sys.stdout.buffer.flush()


def _say(text: str) -> None:
    print(f"mmjax launch: {text}", file=sys.stderr, flush=True)
