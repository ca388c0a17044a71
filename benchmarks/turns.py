"""Contenders that take turns, so that the speed of the machine drops out of their ratios.

Each is a child process (`--child NAME ...` of a benchmark) that prints what it is, as one line of
JSON, once it is ready, and then answers each number on stdin with a line of what it measured.
"""

from __future__ import annotations

import json
import os
import resource
import statistics
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from mmjax.cli import cpu

ROOT = Path(__file__).resolve().parent.parent
CACHE = {
    "JAX_COMPILATION_CACHE_DIR": str(ROOT / ".cache" / "benchmarks" / "jax"),
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
}


def cpu_seconds() -> float:
    """User and system time of this process."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


class Turns:
    """Contenders by name; `about` is what they say of themselves.

    Args:
      arguments: of each child, after `--child`. They get ready one after another.
      compiling: those that are started twice. The first process compiles into a cache and ends,
        the second reads what it left and takes part: a compiler leaves the heap of its process in
        pieces, from which every step would suffer (`mmjax train` compiles apart for that reason).
    """

    def __init__(
        self, file: str, arguments: Mapping[str, Sequence[str]], compiling: Sequence[str] = ()
    ):
        self._children, self.about = {}, {}
        env = {**os.environ, **cpu.SETTINGS, **cpu.flags(), **CACHE}
        env |= {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
        for name, some in arguments.items():
            command = [sys.executable, file, "--child", *some]
            if name in compiling:
                quiet = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL}
                subprocess.run(command, env=env, check=True, **quiet)
            self._children[name] = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=env
            )
            self.about[name] = json.loads(self._children[name].stdout.readline())

    def run(self, rounds: int, ask: Callable[[int], int]) -> dict[str, list[Any]]:
        """Answers by contender, one a round; `ask` of the round is asked, another one is first in
        each round. The children end."""
        rows: dict[str, list[Any]] = {name: [] for name in self._children}
        names = list(self._children)
        for r in range(rounds):
            first = r % len(names)
            for name in (*names[first:], *names[:first]):
                child = self._children[name]
                child.stdin.write(f"{ask(r)}\n")
                child.stdin.flush()
                rows[name].append(json.loads(child.stdout.readline()))
        for child in self._children.values():
            child.stdin.close()
            child.wait()
        return rows


def quartiles(ratios: Sequence[float]) -> list[float]:
    """First quartile, median, third quartile."""
    return statistics.quantiles(ratios, n=4) if len(ratios) > 1 else list(ratios) * 3


def on_one_core(
    options: dict[str, Any],
    sizes: Sequence[int],
    make: Callable[[int], Mapping[str, Callable[[], Any]]],
    pair: tuple[str, str],
) -> None:
    """Contenders of this process that take turns on one core, for each size; prints a JSON line.

    The line holds the options, medians of CPU milliseconds by size and name, and the quartiles of
    the ratio of the pair inside each round. `options` has `rounds`, and `out`, a file or None.
    """
    import jax

    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    report = options | {"out": None, "device": jax.devices()[0].device_kind}
    report |= {"cpu_ms": {}, "ratio": {}}
    for size in sizes:
        found = _measured(make(size), options["rounds"])
        report["cpu_ms"][size] = {n: round(statistics.median(t), 1) for n, t in found.items()}
        ratios = [a / b for a, b in zip(found[pair[0]], found[pair[1]], strict=True)]
        report["ratio"][size] = [round(x, 3) for x in quartiles(ratios)]
    line = json.dumps(report)
    print(line)
    if options["out"]:
        options["out"].write_text(line)


def _measured(runs: Mapping[str, Callable[[], Any]], rounds: int) -> dict[str, list[float]]:
    """CPU milliseconds by contender, one a round; another is first in each."""
    import jax

    for run in runs.values():
        jax.block_until_ready(run())
    found: dict[str, list[float]] = {name: [] for name in runs}
    for r in range(rounds):
        for name in sorted(runs, reverse=r % 2 == 1):
            begin = cpu_seconds()
            jax.block_until_ready(runs[name]())
            found[name].append(1000 * (cpu_seconds() - begin))
    return found
