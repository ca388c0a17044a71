"""Host time of the loop outside its executables, read from a trace of `mmjax train`.

    python benchmarks/host.py [--steps 40] [--no-bars] [--out FILE]

The demo of five tasks trains as users train it; a few steps in, a trace is taken of so many steps.
The gap between two executables is time in which the device waits for the host: for the dispatch,
the next batch, metrics, logs. CPU time of the thread that runs the loop is told too; most of it is
spent while an executable runs, as steps are dispatched and metrics read one step late. Exit code 3:
the median gap is above LIMIT_MS; never so with `--no-bars`.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import itertools
import json
import sys
import tempfile
import time
from pathlib import Path

from turns import ROOT, Turns, quartiles

LIMIT_MS, FIRST = 1.0, 20
EXECUTION, WAIT, THREAD = "ThunkExecutor::Execute", "(wait", "XLAPjRtCpuClient"  # jaxlib 0.10, CPU


class Traced:
    """Executables of a loop, of which calls number FIRST to FIRST + steps are traced."""

    def __init__(self, steps: int, folder: str):
        self.steps, self.folder, self.calls, self.thread_ms = steps, folder, 0, 0.0

    def wrap(self, executable):
        """The executable, with its calls counted."""
        import jax

        def call(*arguments):
            if self.calls == FIRST:
                options = jax.profiler.ProfileOptions()
                options.python_tracer_level = 0
                jax.profiler.start_trace(self.folder, profiler_options=options)
                self.thread_ms = -1e3 * time.thread_time()
            if self.calls == FIRST + self.steps:
                self.thread_ms = (self.thread_ms + 1e3 * time.thread_time()) / self.steps
                jax.profiler.stop_trace()
            self.calls += 1
            return executable(*arguments)

        return call


def executions(folder: str) -> list[tuple[float, float]]:
    """Begin and end in ms of each executable in a trace, in order."""
    import jax

    (file,) = Path(folder).glob("**/*.xplane.pb")
    spans = [
        (1e-6 * event.start_ns, 1e-6 * event.end_ns, WAIT in event.name)
        for plane in jax.profiler.ProfileData.from_file(str(file)).planes
        for line in plane.lines
        if THREAD in line.name
        for event in line.events
        if event.name.startswith(EXECUTION)
    ]
    # An executable begins in one span and waits for its parts, on other threads, in the next.
    whole: list[tuple[float, float]] = []
    for begin, end, waits in sorted(spans):
        if whole and (waits or begin < whole[-1][1]):
            whole[-1] = (whole[-1][0], max(end, whole[-1][1]))
        else:
            whole.append((begin, end))
    return whole


def child(steps: int) -> None:
    """Trains and prints what the trace says."""
    import mmjax
    from mmjax import config
    from mmjax.cli import cpu
    from mmjax.run import program

    experiment = config.load(f"{ROOT / 'configs' / 'quickstart.py'}:raw")
    experiment = dataclasses.replace(experiment, evaluators={}, total_steps=FIRST + steps + 10)
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(sys.stderr):
        traced, compile_all = Traced(steps, f"{folder}/trace"), program.compile_all

        def wrapped(*arguments):
            return {pair: traced.wrap(e) for pair, e in compile_all(*arguments).items()}

        program.compile_all = wrapped
        mmjax.train(experiment, f"{folder}/run", before_compile=cpu.compile_first)
        spans = executions(traced.folder)
    gaps = [after[0] - before[1] for before, after in itertools.pairwise(spans)]
    inside = sum(end - begin for begin, end in spans) / (spans[-1][1] - spans[0][0])
    found = {"executions": len(spans), "gap_ms": gaps, "inside": inside}
    print(json.dumps(found | {"thread_ms": traced.thread_ms}), flush=True)


def measure(steps: int = 40) -> dict:
    """Quartiles of the gaps in ms, share of time inside executables, CPU ms of the loop's thread.

    Raises:
      SystemExit: the trace has not one execution for each step.
    """
    turns = Turns(__file__, {"loop": (str(steps),)})
    turns.run(0, lambda r: 0)
    found = turns.about["loop"]
    if abs(found["executions"] - steps) > 2:  # those at the ends may lie half outside
        raise SystemExit(f"{found['executions']} executions in a trace of {steps} steps.")
    return found | {"gap_ms_quartiles": quartiles(found["gap_ms"])}


def describe(found: dict) -> str:
    """One line."""
    low, median, high = found["gap_ms_quartiles"]
    return (
        f"host: {median:.2f} ms between two executables of the loop ({low:.2f} to {high:.2f}; at"
        f" most {LIMIT_MS}), {100 * found['inside']:.1f} % of the time inside; its thread works"
        f" {found['thread_ms']:.1f} ms a step"
    )


def is_good(found: dict) -> bool:
    """Whether the median gap is within the limit."""
    return found["gap_ms_quartiles"][1] <= LIMIT_MS


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--no-bars", action="store_true", help="tell the gaps, judge none")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--child", nargs=1, type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        child(args.child[0])
        return 0
    found = measure(args.steps)
    print(describe(found))
    if args.out:
        args.out.write_text(json.dumps(found, indent=1))
    return 0 if is_good(found) or args.no_bars else 3


if __name__ == "__main__":
    sys.exit(main())
