"""Speeds up commands that compute on CPU, when they start.

It does not change results, and nothing else in mmjax depends on it. glibc's allocator and XLA are
configured before jax is loaded, and large models are compiled in another process: a compiler
fragments the heap of its process, which XLA:CPU then searches for the buffers of each operation,
and steps of the large demo took 1.5 times as long.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mmjax
from mmjax import config, console
from mmjax.processes import children

__all__ = ["MARKER", "SETTINGS", "compile_first", "flags", "is_alone", "restart"]

# Otherwise glibc maps and unmaps the temporary arena of XLA:CPU in each execution, which takes
# about a third of the step; it reads these settings only when the process starts.
SETTINGS = {
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": "1099511627776",
    "MALLOC_TOP_PAD_": "268435456",
}
# Steps of the demo are as fast as at the default level 3, since matrix products, which dominate,
# are precompiled; compiling the rest takes three quarters of the time.
LEVEL = "--xla_backend_optimization_level=1"
# YNNPACK multiplies the small matrices of Muon on one core, Eigen on all: steps of the demo took 4
# to 9 % less. Flags that jaxlib does not know abort the process, so only known ones are set.
PRODUCTS = "--xla_cpu_experimental_ynn_fusion_type="
MARKER = "MMJAX_MALLOC"  # environment variable: leave the allocator as it is

LARGE = 1_000_000  # parameters from which another process pays off, even for a few steps
CHILD = "from mmjax.cli import cpu; cpu.compile_given()"


def is_alone() -> bool:
    """Whether the CPU is jax's only device, judged without importing jax."""
    platforms = os.environ.get("JAX_PLATFORMS", "")
    if platforms:
        return platforms == "cpu"
    names = os.listdir("/dev") if os.path.isdir("/dev") else []
    vfio = os.listdir("/dev/vfio") if os.path.isdir("/dev/vfio") else []
    found = any(n.startswith(("nvidia", "accel", "kfd")) for n in names)
    return not found and not any(n.isdigit() for n in vfio)


# --------------------------------------------------------------------- allocator and flags


def flags() -> dict[str, str]:
    """The XLA flags that the installed jaxlib knows."""
    import importlib.metadata  # slow, and most commands do not need it

    is_known = importlib.metadata.version("jaxlib").startswith("0.10.")
    return {"XLA_FLAGS": f"{LEVEL} {PRODUCTS}" if is_known else LEVEL}


def restart() -> None:
    """Restarts this process once with the settings; the user's own settings take precedence."""
    wanted = {**SETTINGS, **flags()}
    missing = {k: v for k, v in wanted.items() if k not in os.environ}
    if MARKER in os.environ or not missing or sys.platform != "linux":
        return
    environment = {**os.environ, **missing, MARKER: "set"}
    sys.stdout.flush()
    sys.stderr.flush()
    os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], environment)


# ----------------------------------------------------------- compiling in another process


def compile_first(built: Any) -> None:
    """Compiles the steps of a `run.program.Program` into jax's compile cache, in another process.

    That process has a heap per thread, so that its compilers do not wait for each other. If it
    fails, or the cache loses its entries, the run compiles by itself.
    """
    import jax
    from etils import epath

    folder = jax.config.jax_compilation_cache_dir  # type: ignore[attr-defined]
    devices = built.mesh.devices.flat
    large = sum(x.size for x in jax.tree.leaves(built.params)) >= LARGE
    mine = {d.platform for d in devices} == {"cpu"} and len(devices) == jax.device_count()
    if not folder or not large or not mine or jax.process_count() > 1:
        return
    mark = epath.Path(folder) / f"mmjax-{_digest(built.experiment)}"
    if mark.exists():
        return
    if _ended_well(built.experiment, {**_without_settings(), "JAX_COMPILATION_CACHE_DIR": folder}):
        console.say("another process has compiled the steps; this one reads them from the cache:")
        with contextlib.suppress(OSError):  # without the mark a later start only repeats this
            mark.touch()


def _digest(experiment: Any) -> str:
    """Hash of everything that compiled steps depend on: config, mmjax's code, versions, flags."""
    import jax

    root = Path(mmjax.__file__).parent
    code = [path.read_text() for path in sorted(root.rglob("*.py"))]
    told = [config.fingerprint(experiment), code, jax.__version__, jax.device_count()]
    return config.fingerprint([*told, os.environ.get("XLA_FLAGS", "")])[:16]


def _without_settings() -> dict[str, str]:
    return {k: v for k, v in os.environ.items() if SETTINGS.get(k) != v}


def _ended_well(experiment: Any, environment: dict[str, str]) -> bool:
    import cloudpickle

    last = ""
    with _started(environment) as process:
        with contextlib.suppress(BrokenPipeError):  # it exited before reading everything
            process.stdin.write(cloudpickle.dumps(experiment))
            process.stdin.flush()  # stays open: end of file means this process ended
        for line in process.stdout:
            last = line.decode(errors="replace").rstrip() or last
            console.say(last, last.startswith("compiled "))
        code = process.wait()
    if code:
        console.say(f"a process that was to compile ended with code {code}: {last}; compiling here")
    return not code


@contextlib.contextmanager
def _started(environment: dict[str, str]) -> Iterator[Any]:
    """The compiling process; it is killed at the end."""
    with subprocess.Popen(
        children.command(CHILD),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env=environment,
        start_new_session=True,  # Ctrl-C goes to this process, which ends the other
    ) as process:
        assert process.stdin is not None
        try:
            yield process
        finally:
            process.kill()
            with contextlib.suppress(BrokenPipeError):  # unread input
                process.stdin.close()


def compile_given() -> None:
    """Entry point of the compiling process: compiles the experiment on standard input."""
    import cloudpickle

    from mmjax.run import program

    experiment = cloudpickle.load(sys.stdin.buffer)
    threading.Thread(target=_end_with_input, daemon=True).start()
    program.compile_all(program.build(experiment), say=True)


def _end_with_input() -> None:
    while os.read(0, 1 << 16):  # not `sys.stdin`, which could not be closed at exit meanwhile
        pass
    os._exit(1)
