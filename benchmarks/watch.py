"""CPU time of what watches a run: signs of life, the watch, and logging, beside that of its steps.

    python benchmarks/watch.py configs/quickstart.py:tiny --steps 200

Two real processes share one run. Threads are measured by their own CPU clocks, a step by that of
the whole process, both over the same steps; a logged row by the CPU time of the main thread in it.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
LOG_EVERY = 10
WATCHING = ("mmjax peers", "mmjax watch")


def thread_seconds() -> float:
    """CPU time of the threads that watch."""
    clocks = [
        time.pthread_getcpuclockid(thread.ident)
        for thread in threading.enumerate()
        if thread.name in WATCHING and thread.ident is not None
    ]
    return sum(map(time.clock_gettime, clocks))


def child(config_path: str, steps: int, workdir: str) -> None:
    """A process of the run; the main one prints what it measured."""
    import dataclasses

    from mmjax import config, train
    from mmjax.run import metrics

    experiment = config.load(config_path)
    experiment = dataclasses.replace(
        experiment,
        total_steps=steps,
        evaluators={},
        logging=dataclasses.replace(experiment.logging, log_every=LOG_EVERY),
        checkpoint=dataclasses.replace(experiment.checkpoint, every=0),
    )
    found: dict[str, Any] = {"logging": 0.0, "rows": 0}
    write, row = metrics.Writer.write, metrics.Meter.row

    def timed(function):
        def call(*args):
            began = time.thread_time()
            made = function(*args)
            found["logging"] += time.thread_time() - began
            return made

        return call

    def counted(self, step, values):
        write(self, step, values)
        if step == 2 * LOG_EVERY:  # warm: everything was computed once
            found["begin"] = (step, time.process_time(), thread_seconds(), found["logging"])
        if step % LOG_EVERY == 0:
            found["end"] = (step, time.process_time(), thread_seconds(), found["logging"])

    metrics.Writer.write, metrics.Meter.row = timed(counted), timed(row)
    train.train(experiment, workdir)
    if os.environ["JAX_PROCESS_ID"] == "0":
        first, last = found["begin"], found["end"]
        count, spent, threads, logging = (b - a for a, b in zip(first, last, strict=True))
        print(
            json.dumps(
                {
                    "steps": count,
                    "cpu_ms_per_step": round(1000 * spent / count, 3),
                    "watch_share": round(threads / spent, 6),
                    "logging_share": round(logging / spent, 6),
                    "share": round((threads + logging) / spent, 6),
                }
            )
        )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("config")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--child", metavar="WORKDIR", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child:
        child(given.config, given.steps, given.child)
        return
    with socket.socket() as s, tempfile.TemporaryDirectory() as folder:
        s.bind(("localhost", 0))
        address = f"localhost:{s.getsockname()[1]}"
        s.close()
        path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
        env = {**os.environ, "PYTHONPATH": path, "JAX_NUM_PROCESSES": "2"}
        env |= {"JAX_COORDINATOR_ADDRESS": address, "JAX_PLATFORMS": "cpu"}
        command = [sys.executable, __file__, given.config, "--steps", str(given.steps)]
        started = [
            subprocess.Popen(
                [*command, "--child", str(Path(folder) / "run")],
                env={**env, "JAX_PROCESS_ID": str(i)},
                stdout=subprocess.PIPE,
                text=True,
            )
            for i in range(2)
        ]
        said = [process.communicate()[0] for process in started]
        if any(process.returncode for process in started):
            sys.exit("a process failed")
        print(said[0].strip().splitlines()[-1])


if __name__ == "__main__":
    main()
