"""load(PATH): the model of a run, on the available devices."""

from __future__ import annotations

import contextlib
import dataclasses
import re

import jax
from etils import epath

from mmjax import config, files
from mmjax.config import code_file
from mmjax.experiment import Experiment
from mmjax.parallel.mesh import MeshConfig
from mmjax.run import checkpoint, program, records
from mmjax.run import workdir as workdir_lib
from mmjax.run.view import View


def read_experiment(folder: epath.Path, code: str | None = None) -> Experiment:
    """The experiment of a workdir. Code inside a workdir is never imported.

    Raises:
      NoCheckpoint: it holds no run. ConfigError: its config needs classes from a config file that
      was not given, or `code` is not the file that the run was started with.
    """
    if not (folder / "config.json").exists():
        raise checkpoint.NoCheckpoint(
            f"{folder}: holds no config.json, so it is not the workdir of a run; give a PATH as"
            " WORKDIR, WORKDIR@STEP or WORKDIR@best:METRIC."
        )
    if code is not None:
        code_file.check_recorded(code, _recorded(folder), str(folder))
    try:
        document = records.read_config(folder)
    except files.DamagedFile as error:
        raise checkpoint.NoCheckpoint(
            f"{folder / 'config.json'}: {error}; restore it from a copy, or start `mmjax train"
            f" CONFIG --workdir {folder}` with the config of the run, which writes it anew."
        ) from error
    return config.from_json(document, config.seam_classes(code))


def _recorded(folder: epath.Path) -> list[str]:
    """SHA-256 of the config file at each start; empty if run.json cannot be read."""
    try:
        starts = records.read_run(folder)["starts"]
    except files.DamagedFile:
        return []
    digests = [str(start.get("code_sha256")) for start in starts]
    return [digest for digest in digests if re.fullmatch("[0-9a-f]{64}", digest)]


def load(path: str, *, code: str | None = None, split: str = "", devices=None) -> View:
    """The model of a run: parameters on these devices (default: all), with its modalities.

    `view.embed(modality, examples)` gives embeddings; `view.model()` the model calls.
    """
    folder, step, manifest, _ = checkpoint.choose(path)
    experiment = read_experiment(folder, code)
    experiment = workdir_lib.ready_modalities(experiment, folder, False, manifest)
    built = _build(experiment, devices, folder)
    like = built.abstract_state()
    items = ("params", "model_state", "extra")
    state = checkpoint.restore(folder, step, {name: getattr(like, name) for name in items})
    return View(
        program=built,
        params=state["params"],
        model_state=state["model_state"],
        extra=state["extra"],
        step=step,
        split=split or experiment.data.eval_split,
        folder=folder,
    )


def _build(experiment: Experiment, devices, folder) -> program.Program:
    """Builds on the run's own mesh if it fits, else with plain data parallelism."""
    count = len(devices if devices is not None else jax.devices())
    with contextlib.suppress(ValueError):
        experiment.mesh.resolve(count)
        experiment.check_mesh(count)
        return program.build(experiment, devices, folder)
    plain = dataclasses.replace(experiment, mesh=MeshConfig())
    with contextlib.suppress(ValueError):
        plain.check_mesh(count)
        return program.build(plain, devices, folder)
    # The training batch does not divide over so many devices, so replicate the model.
    first = list(devices if devices is not None else jax.devices())[:1]
    return program.build(plain, first, folder)
