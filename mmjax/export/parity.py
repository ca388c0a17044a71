"""Checks that the exported model gives mmjax's embeddings, starting from raw files."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import jax
import numpy as np

import mmjax
from mmjax.data.source import BadRecord
from mmjax.errors import CheckFailed
from mmjax.export import describe
from mmjax.modalities.modality import Unreadable
from mmjax.run.view import View

__all__ = ["unverified", "verify"]

PEER = Path(__file__).parent / "peer.py"
EXAMPLES, LOOKED_AT = 8, 64  # files per modality; records searched for them
MAX_ABS, MIN_COSINE = 1e-4, 0.9999


def unverified(view: View) -> dict[str, Any]:
    """The report of an export that was not verified."""
    return {
        "verified": False,
        "step": view.step,
        "max_abs_allowed": MAX_ABS,
        "min_cosine_allowed": MIN_COSINE,
        "modalities": {},
        "mmjax": mmjax.__version__,
        "jax": jax.__version__,
    }


def verify(view: View, folder: Path) -> dict[str, Any]:
    """The report of a folder: differences by modality, and the package versions used.

    mmjax's embeddings are float32 on CPU; the folder's are computed by transformers in a separate
    process, which cannot import mmjax or jax.

    Raises CheckFailed, with the numbers, if a modality differs or has no example, or a weight is
    missing, unexpected or mismatched.
    """
    view = dataclasses.replace(
        view, program=dataclasses.replace(view.program, dtype="float32", compiled={})
    )
    with tempfile.TemporaryDirectory() as temporary:
        files = _write_examples(view, Path(temporary))
        loading, embeddings = _ask_peer(folder, files, Path(temporary))
        rows = {}
        with jax.default_matmul_precision("highest"):
            for name, paths in files.items():
                rows[name] = _compare(_embed(view, name, paths), embeddings[name])
    report = {**unverified(view), "verified": True, "modalities": rows, **loading}
    wrong = [
        f"{name}: difference {row['max_abs']:.3g}, cosine {row['min_cosine']:.6f}"
        for name, row in rows.items()
        if not (row["max_abs"] <= MAX_ABS and row["min_cosine"] > MIN_COSINE)
    ]
    wrong += [f"{kind} weights {names}" for kind, names in loading["weights"].items() if names]
    if wrong:
        raise CheckFailed(
            f"export: transformers does not give the embeddings of mmjax ({'; '.join(wrong)};"
            f" allowed {MAX_ABS:g} and {MIN_COSINE}); nothing was written."
        )
    return report


def _write_examples(view: View, folder: Path) -> dict[str, list[Path]]:
    """Files of validation examples by modality."""
    experiment, files = view.program.experiment, {}
    for name, task in describe.contrastive_tasks(experiment).items():
        records, write = task.source.open(view.split), experiment.modalities[name].write
        written = files[name] = []
        for i in range(min(len(records), LOOKED_AT)):
            if len(written) == EXAMPLES:
                break
            with contextlib.suppress(BadRecord, Unreadable):
                value = view.value(name, records[i])
                if value is not None:
                    written.append(write(value, folder / f"{len(files):02d}_{len(written)}"))
        if not written:
            raise CheckFailed(
                f"export: the first {LOOKED_AT} records of split {view.split!r} hold no {name}, so"
                " it cannot be compared; export without --verify."
            )
    return files


def _embed(view: View, name: str, paths: list[Path]) -> np.ndarray:
    read = view.program.experiment.modalities[name].read
    values = [
        path.read_bytes().decode() if path.suffix == ".txt" else read(str(path)) for path in paths
    ]
    return view.embed(name, [view.example(name, v) for v in values], batch_size=len(values))


def _ask_peer(folder: Path, files: dict[str, list[Path]], temporary: Path):
    """Runs the peer: its report on loading the weights, and embeddings [N, D] by modality."""
    request = {name: [str(path) for path in paths] for name, paths in files.items()}
    (temporary / "request.json").write_text(json.dumps(request))
    done = subprocess.run(
        [sys.executable, "-P", str(PEER), str(folder), str(temporary)],
        capture_output=True,
        text=True,
        env={**os.environ, "HF_MODULES_CACHE": str(temporary / "code"), "HF_HUB_OFFLINE": "1"},
    )
    if done.returncode:
        raise CheckFailed(
            "export: transformers cannot load the folder; nothing was written.\n"
            + done.stderr[-4000:]
        )
    loading = json.loads((temporary / "loading.json").read_text())
    with contextlib.closing(np.load(temporary / "embeddings.npz")) as archive:
        return loading, dict(archive)


def _compare(ours_ND: np.ndarray, theirs_ND: np.ndarray) -> dict[str, Any]:
    lengths = np.linalg.norm(ours_ND, axis=1) * np.linalg.norm(theirs_ND, axis=1)
    cosine_N = np.sum(ours_ND * theirs_ND, axis=1, dtype=np.float64) / lengths
    return {
        "examples": len(ours_ND),
        "width": ours_ND.shape[1],
        "max_abs": float(np.abs(ours_ND - theirs_ND).max()),
        "min_cosine": float(cosine_N.min()),
    }
