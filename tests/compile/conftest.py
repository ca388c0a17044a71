"""Programs compiled for described chips, once for all tests of this folder."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent


@dataclasses.dataclass(frozen=True)
class Compiled:
    """Texts of the compiled programs by name, and what the compiler says of their memory."""

    texts: dict[str, str]
    memory: dict[str, dict[str, int]]


def require(chips: str) -> None:
    """Skips where the compiler for these chips, `tpu` or `cuda`, is missing."""
    module = {"tpu": "libtpu", "cuda": "jax_plugins.xla_cuda13"}[chips]
    if importlib.util.find_spec(module) is None:
        make = "test-compile" if chips == "tpu" else "test-cuda"
        pytest.skip(f"no compiler for {chips.upper()} here: `make {make}` sets one up")


@pytest.fixture(scope="session")
def scripts(alone):
    """Runs a script of this folder, which asks the compiler of `tpu` or `cuda` for devices."""

    def run(chips: str, script: str, *args) -> None:
        require(chips)
        _run(alone, script, *map(str, args))

    return run


@pytest.fixture(scope="session")
def for_tpu(tmp_path_factory, alone) -> Compiled:
    """Programs for the eight chips of a v5e host."""
    require("tpu")
    return _compile(tmp_path_factory.mktemp("tpu"), "tpu", alone)


@pytest.fixture(scope="session")
def for_gpu(tmp_path_factory, alone) -> Compiled:
    """Programs for eight H100."""
    require("cuda")
    return _compile(tmp_path_factory.mktemp("gpu"), "cuda", alone)


@pytest.fixture(scope="session")
def alone() -> dict[str, str]:
    """The environment of a process that compiles: without what tests set for CPU."""
    flags = ("XLA_FLAGS", "LIBTPU_INIT_ARGS", "JAX_COMPILATION_CACHE_DIR")
    paths = [*map(str, (HERE.parent, HERE.parents[1])), *sys.path[1:]]
    return {k: v for k, v in os.environ.items() if k not in flags} | {
        "JAX_PLATFORMS": "cpu",  # arrays of the process itself
        "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # nobody holds a chip
        "PYTHONPATH": os.pathsep.join(paths),
    }


@pytest.fixture(scope="session")
def planned_for_tpu(tmp_path_factory, alone):
    """name -> what plans.py says of one of its programs, on four chips."""
    require("tpu")
    out = tmp_path_factory.mktemp("plans")

    def plan(name: str) -> dict:
        _run(alone, "plans.py", str(out), "v5e-4", name)
        return json.loads((out / f"{name}.json").read_text())

    return plan


def _compile(out: Path, chips: str, env: dict[str, str]) -> Compiled:
    _run(env, "programs.py", str(out), chips)
    texts = {path.stem: path.read_text() for path in out.glob("*.txt")}
    return Compiled(texts, json.loads((out / "memory.json").read_text()))


def _run(env: dict[str, str], script: str, *args: str) -> None:
    """Runs a script of this folder."""
    command = [sys.executable, str(HERE / script), *args]
    ended = subprocess.run(command, env=env, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr[-4000:]
