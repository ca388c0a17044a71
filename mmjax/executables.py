"""Executables: one for each (task, variant), compiled ahead of the first step and in parallel.

A compiler leaves the heap of its process in a million pieces, which XLA:CPU then searches for the
buffers of each operation: steps of the demo took 1.5 times as long. So on CPU another process
compiles what is large into jax's compile cache, and this one reads it from there. The other has a
heap for each thread, so that its compilers do not wait for each other either.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

import jax
from etils import epath

import mmjax
from mmjax import config, heap, metrics, program
from mmjax.data import loader

LARGE = 1_000_000  # parameters from which a process of its own pays, even for a few steps
CHILD = "from mmjax import executables; executables.answer()"
Pair = tuple[str, str]  # task and variant


def compile_all(built: program.Program, say: bool) -> dict[Pair, Any]:
    """The jitted steps of all tasks and variants, compiled; `say` prints a line for each."""
    lowered = _compile_apart(built, say) if _is_worth_it(built) else None
    found = {}
    for pair, executable, seconds in _compiled(built, lowered or {}):
        found[pair] = executable
        metrics.say(_line(pair, executable, seconds), say and lowered is None)
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
        and not _mark(built).exists()
    )


def _mark(built: program.Program) -> epath.Path:
    """A file in the compile cache that says that it holds what this program needs."""
    told = [config.fingerprint(built.experiment), mmjax.__version__, jax.__version__]
    digest = config.fingerprint([*told, jax.device_count(), os.environ.get("XLA_FLAGS", "")])
    return epath.Path(_cache()) / f"mmjax-{digest[:16]}"


def _cache() -> str:
    return jax.config.jax_compilation_cache_dir or ""  # type: ignore[attr-defined]


def _compile_apart(built: program.Program, say: bool) -> dict[Pair, Any] | None:
    """Fills the compile cache, with a line for each executable; returns what is read from there by
    `compile()`: the lowered steps, which are made while the other process starts.

    None where that failed, which costs time only: this process then compiles what the cache lacks.
    """
    import cloudpickle

    environment = heap.environment_without()
    environment["JAX_COMPILATION_CACHE_DIR"] = _cache()
    environment["PYTHONPATH"] = os.pathsep.join(sys.path)  # where the config's classes are found
    last = ""
    with subprocess.Popen(
        [sys.executable, "-c", CHILD],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env=environment,
        start_new_session=True,  # Ctrl-C is for this process, which ends the other
    ) as process:
        try:
            assert process.stdin is not None
            assert process.stdout is not None
            with contextlib.suppress(BrokenPipeError):  # it ended before it had read all
                process.stdin.write(cloudpickle.dumps(built.experiment))
                process.stdin.close()
            lowered = {pair: _lowered(built, pair) for pair in _pairs(built)}
            for line in process.stdout:
                last = line.decode(errors="replace").rstrip() or last
                metrics.say(last, say and last.startswith("compiled "))
        except BaseException:
            process.kill()
            raise
    if process.returncode:
        why = f"code {process.returncode}: {last}"
        metrics.say(f"a process that was to compile ended with {why}; compiling here", say)
        return None
    with contextlib.suppress(OSError):  # without the mark a later start does the same again
        _mark(built).parent.mkdir(parents=True, exist_ok=True)
        _mark(built).touch()
    return lowered


def answer() -> None:
    """What the other process does: compiles the experiment that it is given on standard input."""
    import cloudpickle

    built = program.build(cloudpickle.load(sys.stdin.buffer))
    for pair, executable, seconds in _compiled(built, {}):
        print(_line(pair, executable, seconds), flush=True)
