"""load(PATH): the model of a run, on the available devices."""

from __future__ import annotations

import contextlib
import dataclasses
import re
from typing import Any

import jax
from etils import epath

from mmjax import config, files
from mmjax.config import code_file
from mmjax.config.code_file import Code
from mmjax.experiment import Experiment
from mmjax.parallel.mesh import MeshConfig
from mmjax.run import checkpoint, program, records
from mmjax.run import workdir as workdir_lib
from mmjax.run.view import View


def read_experiment(folder: epath.Path, code: Code = None, *, of: Any = None) -> Experiment:
    """The experiment of a workdir. What a workdir holds or names is never imported.

    Args:
      code: config file and modules of packages whose classes it may name. of: an experiment whose
        own classes it may name too.

    Raises:
      NoCheckpoint: it holds no run. ConfigError: its config needs classes of a config file or a
      package that was not given, or `code` is not what the run was started with.
    """
    if not files.exists(folder / "config.json"):
        raise checkpoint.NoCheckpoint(
            f"{folder}: holds no config.json, so it is not the workdir of a run; give a PATH as"
            " WORKDIR, WORKDIR@STEP or WORKDIR@best:METRIC."
        )
    for one in code_file.many(code):
        code_file.check_recorded(one, _recorded(folder), str(folder))
    try:
        document = records.read_config(folder)
    except files.DamagedFile as error:
        raise checkpoint.NoCheckpoint(
            f"{folder / 'config.json'}: {error}; restore it from a copy, or start `mmjax train"
            f" CONFIG --workdir {folder}` with the config of the run, which writes it anew."
        ) from error
    return config.from_json(document, config.seam_classes(code, of=of), Experiment)


def _recorded(folder: epath.Path) -> dict[str, list[str]]:
    """SHA-256 at each start, of packages by name and of the config file by ""; empty if run.json
    cannot be read."""
    try:
        starts = records.read_run(folder)["starts"]
    except files.DamagedFile:
        return {}
    found: dict[str, list[str]] = {}
    for start in starts:
        packages = start.get("code_packages")
        known = {**(packages if isinstance(packages, dict) else {}), "": start.get("code_sha256")}
        for name, digest in known.items():
            if re.fullmatch("[0-9a-f]{64}", str(digest)):
                found.setdefault(name, []).append(str(digest))
    return found


def load(path: str, *, code: Code = None, split: str = "", devices=None, of: Any = None) -> View:
    """The model of a run: parameters on these devices (default: all), with its modalities.

    `code` is the config file of the run, or packages, whose classes its config names; `of` is an
    experiment whose own classes it may name too.
    `view.embed(modality, examples)` gives embeddings; `view.model()` the model calls.
    """
    folder, step, manifest, _ = checkpoint.choose(path)
    experiment = read_experiment(folder, code, of=of)
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
