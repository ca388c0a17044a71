"""Processes of one run on this machine, with eight simulated devices in all."""

from __future__ import annotations

import os
import socket
import subprocess
from collections.abc import Mapping, Sequence


def start(
    command: Sequence[str], count: int = 2, env: Mapping[str, str] | None = None
) -> list[subprocess.Popen]:
    """Starts the command `count` times, each a process of the same run."""
    with socket.socket() as s:
        s.bind(("localhost", 0))
        port = s.getsockname()[1]
    flags = os.environ["XLA_FLAGS"].replace("device_count=8", f"device_count={8 // count}")
    shared = {
        **os.environ,
        **(env or {}),
        "XLA_FLAGS": flags,
        "JAX_COORDINATOR_ADDRESS": f"localhost:{port}",
        "JAX_NUM_PROCESSES": str(count),
    }
    return [
        subprocess.Popen(
            command,
            env={**shared, "JAX_PROCESS_ID": str(i)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for i in range(count)
    ]


def finish(processes: list[subprocess.Popen], code: int = 0, timeout: int = 400) -> list[str]:
    """The last line that each printed; all must end with this exit code."""
    try:
        results = [p.communicate(timeout=timeout) for p in processes]
    finally:
        for p in processes:
            p.kill()
    for process, (_, err) in zip(processes, results, strict=True):
        assert process.returncode == code, err[-4000:]
    return [out.splitlines()[-1] for out, _ in results]
