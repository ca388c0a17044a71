"""load(PATH): a usable model of a run, on whatever devices there are."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json

import jax
from etils import epath

from mmjax import checkpoint, config, files, program, rundir
from mmjax.evaluate.view import View
from mmjax.experiment import Experiment
from mmjax.parallel.mesh import MeshConfig
from mmjax.run import records


def read_experiment(folder: epath.Path, code: str | None = None) -> Experiment:
    """The experiment of a workdir. Nothing inside a workdir is imported.

    Raises:
      NoCheckpoint: it holds no run. ConfigError: its config names classes of a config file that
      was not given, or `code` is another file than the run was started with.
    """
    if not (folder / "config.json").exists():
        raise checkpoint.NoCheckpoint(
            f"{folder}: holds no config.json, so it is not the workdir of a run; give a PATH as"
            " WORKDIR, WORKDIR@STEP or WORKDIR@best:METRIC."
        )
    if code is not None:
        run = json.loads((folder / "run.json").read_text())
        known = [start["code_sha256"] for start in run["starts"]]
        if hashlib.sha256(epath.Path(code).read_bytes()).hexdigest() not in known:
            raise config.ConfigError(
                f"--code {code}: is not the file that {folder} was started with; give that file."
            )
    try:
        document = records.read_config(folder)
    except files.DamagedFile as error:
        raise checkpoint.NoCheckpoint(
            f"{folder / 'config.json'}: {error}; restore it from a copy, or start `mmjax train"
            f" CONFIG --workdir {folder}` with the config of the run, which writes it anew."
        ) from error
    return config.from_json(document, config.seam_classes(code))


def load(path: str, *, code: str | None = None, split: str = "", devices=None) -> View:
    """The model of a run: parameters on these devices (default: all), with its modalities.

    `view.embed(modality, examples)` gives embeddings; `view.model()` the model calls.
    """
    folder, step, manifest, _ = checkpoint.choose(path)
    experiment = read_experiment(folder, code)
    experiment = rundir.ready_modalities(experiment, folder, False, manifest)
    built = _build(experiment, devices, folder)
    like = built.abstract_state()
    items = ("params", "model_state", "extra")
    found = checkpoint.restore(folder, step, {name: getattr(like, name) for name in items})
    return View(
        program=built,
        params=found["params"],
        model_state=found["model_state"],
        extra=found["extra"],
        step=step,
        split=split or experiment.data.eval_split,
        folder=folder,
    )


def _build(experiment: Experiment, devices, folder) -> program.Program:
    """On the run's own mesh where it fits, else on plain data parallelism."""
    count = len(devices if devices is not None else jax.devices())
    with contextlib.suppress(ValueError):
        experiment.mesh.resolve(count)
        experiment.check_mesh(count)
        return program.build(experiment, devices, folder)
    plain = dataclasses.replace(experiment, mesh=MeshConfig())
    with contextlib.suppress(ValueError):
        plain.check_mesh(count)
        return program.build(plain, devices, folder)
    # The batch of training does not divide over so many devices: copies of the model do.
    first = list(devices if devices is not None else jax.devices())[:1]
    return program.build(plain, first, folder)
