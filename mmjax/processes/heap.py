"""Settings of glibc's allocator and of XLA with which runs on CPU take less time."""

from __future__ import annotations

import os
import sys

__all__ = ["MARKER", "SETTINGS", "compiler", "environment_without", "restart_with"]

# glibc otherwise maps and unmaps the temporary arena of XLA:CPU in each execution, which costs
# about a third of the step; it reads these at the start of the process only.
SETTINGS = {
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": "1099511627776",
    "MALLOC_TOP_PAD_": "268435456",
}
# Steps of the demo are as quick as at the usual level 3, since matrix products, which are most of
# them, are compiled already; compiling the rest takes three quarters of the time.
LEVEL = "--xla_backend_optimization_level=1"
# YNNPACK multiplies the small matrices of Muon on one core, Eigen on all: steps of the demo took 4
# to 9 % less. Flags that a jaxlib does not know end the process, so only known ones are told.
PRODUCTS = "--xla_cpu_experimental_ynn_fusion_type="
MARKER = "MMJAX_MALLOC"  # in the environment: leave the allocator as it is


def compiler() -> dict[str, str]:
    """The setting of XLA, of flags that the installed jaxlib knows."""
    import importlib.metadata  # slow, and most commands come without

    is_known = importlib.metadata.version("jaxlib").startswith("0.10.")
    return {"XLA_FLAGS": f"{LEVEL} {PRODUCTS}" if is_known else LEVEL}


def restart_with() -> None:
    """Starts this process again, once, with the settings; those of the user stay."""
    wanted = {**SETTINGS, **compiler()}
    missing = {k: v for k, v in wanted.items() if k not in os.environ}
    if MARKER in os.environ or not missing or sys.platform != "linux":
        return
    environment = {**os.environ, **missing, MARKER: "set"}
    sys.stdout.flush()
    sys.stderr.flush()
    os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], environment)


def environment_without() -> dict[str, str]:
    """The environment of a process that compiles and does not compute: a heap for each thread."""
    return {k: v for k, v in os.environ.items() if SETTINGS.get(k) != v}
