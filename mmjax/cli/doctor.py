"""`mmjax doctor`: devices, versions, the use of missing extras, a self-test; with a CONFIG, whether
a run of it may start on this host."""

from __future__ import annotations

import argparse
import os
import platform
import re
import shutil
import time
from typing import Any

import mmjax
from mmjax import errors
from mmjax.cli import options, printing
from mmjax.config.error import ConfigError

__all__ = ["EXTRAS", "doctor", "parser", "run", "text"]

# Extra -> what it enables. Those marked "later" are reserved: nothing uses them yet.
EXTRAS = {
    "test": "the test suite",
    "peers": "comparing quantisers with those of others, in the tests",
    "hf": "checking exports in Hugging Face transformers",
    "media": "sound of MP4, M4A, WebM and videos",
    "obs": "profiles in xprof, runs in trackio",
    "cloud": "workdirs in Google Cloud Storage",
    "beam": "later: offline tokenization with Apache Beam",
    "kernels": "later: grouped matrix kernels on GPU and TPU (Python 3.12)",
    "docs": "building the documentation",
    "tpu": "running on TPU",
    "cuda": "running on NVIDIA GPUs",
    "dev": "linting and type checks",
}


def parser() -> options.Parser:
    """The command line."""
    usage = (
        "[--json]\n       mmjax doctor CONFIG --workdir DIR [--topology T] [--json]"
        " [--code FILE|MODULE [--code-sha256 HEX]] [--any.field value ...]"
    )
    words = (
        "Devices, versions, missing extras, and a self-test. With CONFIG: whether a run of it may"
        " start on this host, before it compiles: versions, devices, workdir, data, tokenizers,"
        " disk. Exit 3 when not."
    )
    made = options.parser("doctor", usage, words)
    made.add_argument("config", metavar="CONFIG", nargs="?", help="file.py or file.py:function")
    made.add_argument("--workdir", metavar="DIR", help="folder of the run, written to and read")
    made.add_argument("--topology", metavar="T", help="of the whole run, such as v5e-64")
    options.add_json(made)
    text = "the config file of the run, or a module of an installed package"
    made.add_argument("--code", action="append", default=[], metavar="FILE|MODULE", help=text)
    text = "what that file or package must have"
    made.add_argument("--code-sha256", action="append", metavar="HEX", help=text)
    return made


def run(args: list[str]) -> None:
    """Devices, versions, what missing extras would enable, a self-test; whether a run may start."""
    given, fields = parser().parse_known_args(args)
    if given.config is not None:
        return _look_at_run(given, fields)
    if fields or given.workdir or given.topology:
        first = (fields or ["--workdir, --topology"])[0]
        raise ConfigError(f"{first}: write CONFIG before it.")
    report = doctor()
    print(printing.as_json(report) if given.json else text(report))
    if not report["usable"]:
        raise errors.CheckFailed("; ".join(report["problems"]))


def _look_at_run(given: argparse.Namespace, fields: list[str]) -> None:
    """The checks of a host; raises CheckFailed with those that failed."""
    if not given.workdir:
        raise ConfigError("CONFIG needs --workdir DIR.")
    from mmjax import config
    from mmjax.cli import preflight
    from mmjax.config import code_file
    from mmjax.experiment import Experiment

    code_file.check(given.code, given.code_sha256)
    experiment = config.load(given.config, kind=Experiment, code=given.code)
    experiment = config.override(experiment, fields)
    rows = preflight.preflight(experiment, given.workdir, given.topology or "")
    shown = printing.as_json([row._asdict() for row in rows])
    print(shown if given.json else preflight.text(rows))
    failed = [f"{row.name}: {row.found}" for row in rows if not row.ok]
    if failed:
        raise errors.CheckFailed(f"this host ({platform.node()}) is not ready: {'; '.join(failed)}")


def doctor() -> dict[str, Any]:
    """The findings; `usable` is False if there are `problems`."""
    packages, problems = _packages()
    report: dict[str, Any] = {
        "mmjax": mmjax.__version__,
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores",
        "disk_free_gb": round(shutil.disk_usage(os.getcwd()).free / 1e9, 1),
        "packages": packages,
        "extras_missing": {k: v for k, v in EXTRAS.items() if _absent(k)},
    }
    try:
        report["devices"] = _devices()
        report["self_test"] = _self_test()
        problems += [f"self-test: {k} failed" for k, v in report["self_test"].items() if not v]
    except Exception as error:  # any failure of a driver or a wheel is a finding
        problems.append(f"jax does not run: {type(error).__name__}: {error}")
    return {"usable": not problems, "problems": problems, **report}


def text(report: dict[str, Any]) -> str:
    """The findings as text."""
    lines = [f"mmjax {report['mmjax']}, Python {report['python']}, {report['system']}"]
    lines.append(f"disk      {report['disk_free_gb']} GB free here")
    for device, count in report.get("devices", {}).items():
        lines.append(f"device    {count} x {device}")
    shown = [f"{k} {v or 'MISSING'}" for k, v in report["packages"].items()]
    lines += [f"packages  {', '.join(shown[i : i + 5])}" for i in range(0, len(shown), 5)]
    for name, use in report["extras_missing"].items():
        lines.append(f"extra     {name:8} not installed: {use}")
    for name, passed in report.get("self_test", {}).items():
        lines.append(
            f"self-test {name}: {passed if name == 'seconds' else 'ok' if passed else 'FAILED'}"
        )
    lines += [f"PROBLEM   {p}" for p in report["problems"]]
    lines.append("usable" if report["usable"] else "not usable")
    return "\n".join(lines)


def _requirements() -> list[tuple[str, str]]:
    """(package, marker) of each requirement in mmjax's own metadata."""
    import importlib.metadata  # slow, and other verbs do not need it

    try:
        requirements = importlib.metadata.requires("mmjax") or []
    except importlib.metadata.PackageNotFoundError:  # a bare checkout on PYTHONPATH
        return []
    parts = (r.partition(";") for r in requirements)
    return [(re.split(r"[^\w.-]", name.strip())[0], marker) for name, _, marker in parts]


def _version(package: str) -> str | None:
    import importlib.metadata

    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _packages() -> tuple[dict[str, str | None], list[str]]:
    core = [name for name, marker in _requirements() if "extra" not in marker]
    packages = {name: _version(name) for name in core or ("jax", "flax", "optax", "numpy")}
    return packages, [f"package {k} is not installed" for k, v in packages.items() if v is None]


def _absent(extra: str) -> bool:
    own = [n for n, m in _requirements() if re.search(rf"extra == ['\"]{extra}['\"]", m)]
    if extra in ("tpu", "cuda"):  # these name jax itself, with an extra of jax
        own = ["libtpu"] if extra == "tpu" else ["jax-cuda13-plugin"]
    return any(_version(name) is None for name in own) or not own


def _devices() -> dict[str, int]:
    import jax

    kinds = [f"{d.platform} ({d.device_kind})" for d in jax.devices()]
    return {kind: kinds.count(kind) for kind in dict.fromkeys(kinds)}


def _self_test() -> dict[str, Any]:
    """Compiles a product and a gradient; two optimizer steps must lower a loss."""
    import jax
    import jax.numpy as jnp
    import numpy as np
    import optax

    start = time.monotonic()
    rng = np.random.default_rng(0)
    x_BD = jnp.asarray(rng.normal(size=(64, 32)), jnp.float32)
    w_DF = rng.normal(size=(32, 8)).astype(np.float32)
    y_BF = jax.jit(jnp.matmul)(x_BD, w_DF)
    product = bool(np.allclose(y_BF, np.asarray(x_BD) @ w_DF, rtol=2e-2, atol=2e-2))

    def loss(v_DF):
        return jnp.mean((x_BD @ v_DF - y_BF) ** 2)

    def step(v_DF, state):
        value, grad_DF = jax.value_and_grad(loss)(v_DF)
        update_DF, state = tx.update(grad_DF, state, v_DF)
        return v_DF + update_DF, state, value

    v_DF = jnp.zeros((32, 8), jnp.float32)
    grad_DF = np.asarray(jax.jit(jax.grad(loss))(v_DF))
    expected_DF = -2 * np.asarray(x_BD).T @ np.asarray(y_BF) / y_BF.size
    tx = optax.adam(0.1)
    state, losses, compiled = tx.init(v_DF), [], jax.jit(step)
    for _ in range(3):
        v_DF, state, value = compiled(v_DF, state)
        losses.append(float(value))
    return {
        "product": product,
        "gradient": bool(np.allclose(grad_DF, expected_DF, rtol=5e-2, atol=5e-2)),
        "training": losses[2] < losses[1] < losses[0],
        "seconds": round(time.monotonic() - start, 1),
    }
