"""Every test runs on eight simulated CPU devices, with strict promotion and a compile cache."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

# Before the first import of jax.
if "xla_force_host_platform_device_count" not in os.environ.get("XLA_FLAGS", ""):
    flags = os.environ.get("XLA_FLAGS", "")
    # Level 0 compiles in half the time; tests look at values, never at speed.
    quick = "--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0"
    # Eight devices share two cores: one may wait long for the others, and XLA aborts after 40 s.
    patient = "--xla_cpu_collective_call_terminate_timeout_seconds=280"
    os.environ["XLA_FLAGS"] = f"{flags} {quick} {patient}".strip()
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(ROOT / ".cache" / "jax"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import jax  # noqa: E402
import pytest  # noqa: E402

jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")


def pytest_addoption(parser):
    parser.addoption(
        "--tenth",
        type=int,
        default=None,
        help="run only the tenth of the tests whose name hashes to this digit (0-9)",
    )


def pytest_collection_modifyitems(config, items):
    digit = config.getoption("--tenth")
    if digit is None:
        return
    kept, left_out = [], []
    for item in items:
        number = int(hashlib.sha256(item.nodeid.encode()).hexdigest(), 16) % 10
        (kept if number == digit else left_out).append(item)
    config.hook.pytest_deselected(items=left_out)
    items[:] = kept


@pytest.fixture(scope="session")
def root() -> Path:
    """The repository."""
    return ROOT
