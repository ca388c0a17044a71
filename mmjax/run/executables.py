"""Executables: one for each (task, variant), compiled ahead of the first step and in parallel.

A compiler leaves the heap of its process in a million pieces, which XLA:CPU then searches for the
buffers of each operation: steps of the demo took 1.5 times as long. So on CPU another process
compiles what is large into jax's compile cache, and this one reads it from there. The other has a
heap for each thread, so that its compilers do not wait for each other either. While steps run it
goes on, in time that they leave, with what evaluation at the end will run.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import dataclasses
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
from etils import epath

import mmjax
from mmjax import config, console
from mmjax.data import loader
from mmjax.processes import children, heap
from mmjax.run import program
from mmjax.run.view import View

LARGE = 1_000_000  # parameters from which a process of its own pays, even for a few steps
CHILD = "from mmjax.run import executables; executables.answer()"
READY = "all steps are compiled"  # the last line of the other process
Pair = tuple[str, str]  # task and variant


def compile_all(
    built: program.Program, say: bool, until: contextlib.ExitStack | None = None
) -> dict[Pair, Any]:
    """The jitted steps of all tasks and variants, compiled; `say` prints a line for each.

    The other process, where there is one, goes on until `until` is closed; None = ends here.
    """
    with contextlib.ExitStack() as here:
        lowered, told = None, False
        if _is_worth_it(built):
            lowered = _marked(built)
            if lowered is None:
                lowered = _compile_apart(built, say, until or here)
                told = lowered is not None
        found = {}
        for pair, executable, seconds in _compiled(built, lowered or {}):
            found[pair] = executable
            console.say(_line(pair, executable, seconds), say and not told)
        return found


def _compiled(
    built: program.Program, lowered: dict[Pair, Any]
) -> Iterator[tuple[Pair, Any, float]]:
    """Pairs, executables and seconds, as they are ready; `lowered` is not lowered once more."""

    def compiled(pair: Pair) -> tuple[Any, float]:
        began = time.perf_counter()
        executable = (lowered.get(pair) or _lowered(built, pair)).compile()
        return executable, time.perf_counter() - began

    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        jobs = {pool.submit(compiled, pair): pair for pair in _pairs(built)}
        for job in concurrent.futures.as_completed(jobs):
            yield jobs[job], *job.result()


def _pairs(built: program.Program) -> list[Pair]:
    tasks = built.experiment.tasks.items()
    return [(name, variant) for name, task in tasks for variant in task.variant_weights()]


def _lowered(built: program.Program, pair: Pair) -> Any:
    experiment = built.experiment
    batch = loader.example_batch(
        experiment.tasks[pair[0]], pair[1], experiment.modalities, built.vocabulary
    )
    shapes = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=built.batch_sharding), batch
    )
    with jax.set_mesh(built.mesh):
        return built.train_step(*pair).lower(built.abstract_state(), {}, shapes)


def _line(pair: Pair, executable: Any, seconds: float) -> str:
    memory = executable.memory_analysis()
    size = (memory.temp_size_in_bytes + memory.argument_size_in_bytes) / 2**20
    return f"compiled {pair[0]}/{pair[1]}: {seconds:.1f} s, {size:.0f} MiB a device"


# --------------------------------------------------------------------- another process


def _is_worth_it(built: program.Program) -> bool:
    return (
        jax.default_backend() == "cpu"
        and jax.process_count() == 1
        and built.mesh.size == jax.device_count()
        and sum(x.size for x in jax.tree.leaves(built.parts.params)) >= LARGE
        and bool(_cache())
    )


def _mark(built: program.Program) -> epath.Path:
    """A file in the compile cache that says of which steps it holds what this experiment needs.
    The code behind an experiment changes, so the steps are told by their digest."""
    told = [config.fingerprint(built.experiment), mmjax.__version__, jax.__version__]
    digest = config.fingerprint([*told, jax.device_count(), os.environ.get("XLA_FLAGS", "")])
    return epath.Path(_cache()) / f"mmjax-{digest[:16]}"


def _marked(built: program.Program) -> dict[Pair, Any] | None:
    """The lowered steps, when the mark says that the cache holds them compiled."""
    try:
        text = _mark(built).read_text()
    except (OSError, ValueError):
        return None
    lowered = {pair: _lowered(built, pair) for pair in _pairs(built)}
    return lowered if text == _digest(lowered) else None


def _digest(lowered: dict[Pair, Any]) -> str:
    return config.fingerprint([[*pair, lowered[pair].as_text()] for pair in sorted(lowered)])


def _cache() -> str:
    return jax.config.jax_compilation_cache_dir or ""  # type: ignore[attr-defined]


def _compile_apart(
    built: program.Program, say: bool, until: contextlib.ExitStack
) -> dict[Pair, Any] | None:
    """Fills the compile cache, with a line for each executable; returns what is read from there by
    `compile()`: the lowered steps, which are made while the other process starts.

    None where that failed, which costs time only: this process then compiles what the cache lacks.
    """
    import cloudpickle

    environment = heap.environment_without()
    environment["JAX_COMPILATION_CACHE_DIR"] = _cache()
    process = until.enter_context(_started(environment))
    with contextlib.suppress(BrokenPipeError):  # it ended before it had read all
        process.stdin.write(cloudpickle.dumps(built.experiment))
        process.stdin.flush()  # and stays open: its end is the end of this process
    lowered, last = {pair: _lowered(built, pair) for pair in _pairs(built)}, ""
    for line in process.stdout:
        last = line.decode(errors="replace").rstrip() or last
        if last == READY:
            break
        console.say(last, say and last.startswith("compiled "))
    if last != READY and process.wait():
        why = f"code {process.returncode}: {last}"
        console.say(f"a process that was to compile ended with {why}; compiling here", say)
        return None
    with contextlib.suppress(OSError):  # without the mark a later start does the same again
        _mark(built).parent.mkdir(parents=True, exist_ok=True)
        _mark(built).write_text(_digest(lowered))
    return lowered


@contextlib.contextmanager
def _started(environment: dict[str, str]) -> Iterator[Any]:
    """The other process, which is killed at the end."""
    with subprocess.Popen(
        children.command(CHILD),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env=environment,
        start_new_session=True,  # Ctrl-C is for this process, which ends the other
    ) as process:
        assert process.stdin is not None
        try:
            yield process
        finally:
            process.kill()
            with contextlib.suppress(BrokenPipeError):  # of what it has not read
                process.stdin.close()


def answer() -> None:
    """What the other process does: compiles the experiment that it is given on standard input, and
    then what its evaluators will run. It ends when standard input does."""
    import cloudpickle

    experiment = cloudpickle.load(sys.stdin.buffer)
    threading.Thread(target=_end_with_input, daemon=True).start()
    built = program.build(experiment)
    for pair, executable, seconds in _compiled(built, {}):
        print(_line(pair, executable, seconds), flush=True)
    print(READY, flush=True)
    nowhere = os.open(os.devnull, os.O_WRONLY)  # nobody reads on
    os.dup2(nowhere, 1)
    os.dup2(nowhere, 2)
    _step_back()
    rehearse(built)


def _step_back() -> None:
    """Takes only time that the process which asked leaves."""
    os.nice(19)
    with contextlib.suppress(OSError):  # Linux weighs sessions first, then processes inside them
        epath.Path("/proc/self/autogroup").write_text("19")


def _end_with_input() -> None:
    while os.read(0, 1 << 16):  # not by `sys.stdin`, which could not be closed at the end meanwhile
        pass
    os._exit(1)


def rehearse(built: program.Program) -> None:
    """Runs all evaluators on the split that training evaluates, with zeros in place of all that
    the model computes, so that what they compile is in the cache."""
    state = built.abstract_state()
    view = View(
        program=dataclasses.replace(built, jit=_only_compiled, compiled={}),
        params=state.params, model_state=state.model_state, extra=state.extra, step=0,
        split=built.experiment.data.eval_split,
    )  # fmt: skip
    for evaluator in built.experiment.evaluators.values():
        with contextlib.suppress(Exception):  # such as a judge's that zeros are no answer for
            evaluator.run(view)


def _only_compiled(run: Callable[..., Any]) -> Callable[..., Any]:
    """In place of `jax.jit`: compiles for all arguments of new shapes and returns zeros."""
    jitted, known = jax.jit(run), {}

    def call(*arguments):
        leaves, tree = jax.tree.flatten(arguments)
        key = (tree, *((x.shape, x.dtype) for x in leaves))
        if key not in known:
            lowered = jitted.lower(*arguments)
            lowered.compile()
            known[key] = lowered.out_info
        return jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), known[key])

    return call
