"""The run directory: its files, and the checks of a resume."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import importlib.metadata
import os
import platform
import re
from collections.abc import Iterator
from typing import Any

import jax
from etils import epath

import mmjax
from mmjax import config, console, errors, files
from mmjax.config import code_file
from mmjax.config.code_file import Code
from mmjax.data import mixture
from mmjax.data.reader import values_of
from mmjax.experiment import Experiment, Init
from mmjax.models import names as names_lib
from mmjax.models import plan
from mmjax.parallel import distributed
from mmjax.run import checkpoint, lifecycle, matching, records, resume
from mmjax.run.program import Program

PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy", "sentencepiece")
MAX_TOKENIZER = 1 << 33  # bytes of a tokenizer file


@contextlib.contextmanager
def held(folder: epath.Path, main: bool) -> Iterator[None]:
    """The run lock, held by the main process."""
    if not main:
        yield
        return
    try:
        with lifecycle.lock(str(folder)):
            yield
    except PermissionError as error:
        raise errors.StorageError(
            f"Workdir {folder}: {error.strerror}; choose a --workdir that you may write to."
        ) from error


def resume_from(folder: epath.Path, main: bool) -> checkpoint.Chosen | None:
    """The checkpoint that a run resumes from; None if nothing was saved yet.

    Raises:
      NoCheckpoint: there are checkpoints, but none is usable.
    """
    if main:
        checkpoint.recover(folder / "checkpoints")
    distributed.barrier("half saves are deleted")
    chosen = checkpoint.newest(folder)
    distributed.barrier("checkpoint chosen")  # before any checkpoint is moved or written
    return chosen


def open_run(
    folder: epath.Path,
    experiment: Experiment,
    code: Code,
    chosen: checkpoint.Chosen | None,
    data: dict[str, str] | None = None,
) -> None:
    """Writes config.json and run.json, or checks that they match. Only the main process calls it.

    Args:
      chosen: the checkpoint to resume from, whose manifest identifies its run; None = a fresh
        start.
      data: fingerprints of the data, by task (`resume.fingerprints`).

    Raises:
      ConfigError: the workdir belongs to another experiment; names the fields that differ.
    """
    lineage = experiment.warm_start.path if experiment.warm_start else ""
    run: dict[str, Any] = {"lineage": lineage, "starts": []}
    start = _start(experiment, code)
    if chosen is None:
        # Nothing was saved, so any experiment may start here; tokenizers of another are moved away.
        if (folder / "tokenizers").exists():
            files.quarantine(folder / "tokenizers", folder, "no checkpoint goes with it")
    else:
        start["changed"] = resume.check(folder, experiment, chosen.manifest, data or {})
        for step, why in chosen.passed_over.items():
            files.quarantine(folder / "checkpoints" / str(step), folder, why)
        run = _known(folder, "run.json", records.read_run) or run
        _known(folder, "config.json", records.read_config)
    run["identity"] = resume.identity(experiment)
    run["starts"].append(start)
    records.write_run(folder, run)
    records.write_config(folder, experiment)


def _known(folder: epath.Path, name: str, read: Any) -> dict[str, Any] | None:
    """The content of a file of a resumed run; None, with a message, if it is damaged."""
    try:
        return read(folder)
    except files.DamagedFile as error:
        if files.exists(folder / name):
            files.quarantine(folder / name, folder, str(error))
        console.say(f"{folder / name}: {error}; it is written anew")
        return None


def _start(experiment: Experiment, code: Code) -> dict[str, Any]:
    versions = {}
    for name in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(name)
    return {
        "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "mmjax": mmjax.__version__,
        "python": platform.python_version(),
        "packages": versions,
        "devices": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
        "cpu_cores": os.cpu_count(),
        "code_sha256": code_file.file_digest(code),
        "code_packages": code_file.digests(config.modules_of(experiment)),
    }


def ready_modalities(
    experiment: Experiment, folder: epath.Path, main: bool, manifest: dict[str, Any] | None = None
) -> Experiment:
    """Modalities with fitted tokenizers: from the workdir, else from the run that `init` names,
    since ids must keep their meaning, else fitted on the train split.

    Args:
      manifest: of the checkpoint whose tokenizers they must match; None = nothing was saved yet.

    Raises:
      NoCheckpoint: `experiment.init` is not a run, or the tokenizers are not those of the
        checkpoint; raised before anything is compiled.
    """
    for name in manifest["tokenizers"] if manifest else ():
        if not files.children(folder / "tokenizers", f"{name}@*"):
            raise checkpoint.NoCheckpoint(
                f"{folder}: the tokenizer of stream {name!r} is not in {folder / 'tokenizers'};"
                " copy that folder from where the run was trained."
            )
    if main:
        if experiment.warm_start and not manifest:
            _copy_learned(experiment, experiment.warm_start, folder / "tokenizers")
        for name in experiment.modalities:
            _fit(experiment, name, folder)
    distributed.barrier("modalities")
    ready = {name: _fit(experiment, name, folder) for name in experiment.modalities}
    wanted = manifest["tokenizers"] if manifest else {}
    for name, modality in ready.items() if manifest else ():
        want, have = wanted.get(name, ""), modality.spec(name).fingerprint
        if want != have:
            raise checkpoint.NoCheckpoint(
                f"{folder}: stream {name!r} was trained with tokenizer {want[:12] or 'none'} but"
                f" the workdir holds {have[:12] or 'none'}; restore {folder / 'tokenizers'}."
            )
    return dataclasses.replace(experiment, modalities=ready)


def learned(init: Init) -> dict[str, epath.Path]:
    """Folders of tokenizers of the run that parameters start from, by the stream that they are for
    here: that of the embeddings which `init` takes, as ids must mean what they meant there.

    Raises:
      NoCheckpoint: the run does not exist.
    """
    source, _ = checkpoint.choose_step(init.path)
    folder = source / "tokenizers"
    found = {}
    for path in folder.iterdir() if folder.exists() else ():
        name = f"embed/{path.name.partition('@')[0]}/table"
        new = re.fullmatch("embed/([^/]+)/table", matching.renamed(name, init.rename))
        if matching.matches(name, init.select) and new:
            found[new[1]] = path
    return found


def _copy_learned(experiment: Experiment, init: Init, target: epath.Path) -> None:
    """Copies `tokenizers/<stream>@<fingerprint>` of the run that `init` names."""
    for name, folder in learned(init).items():
        copy = target / f"{name}@{folder.name.partition('@')[2]}"
        if name not in experiment.modalities or copy.exists():
            continue
        partial = target / f"{name}.partial"
        if partial.exists():
            partial.rmtree()
        partial.mkdir(parents=True)
        for entry in files.entries(folder):
            (partial / entry.name).write_bytes(files.read_bytes(entry.path, MAX_TOKENIZER))
        partial.rename(copy)


def _fit(experiment: Experiment, name: str, folder: Any):
    """Fits into `tokenizers/<stream>`, then renames it to `<stream>@<fingerprint>`."""
    modality = experiment.modalities[name]
    parent = folder / "tokenizers"
    there = files.children(parent, f"{name}@*")
    if there:
        return modality.fit(lambda: iter(()), there[0])

    def values():
        for task in experiment.tasks.values():
            if name in (*task.inputs, *task.targets):
                split = experiment.data.train_split
                records = task.source.open(split)
                rows = range(len(records))
                # Bad records are counted during training.
                yield from values_of(task.source, split, modality.field or name, records, rows)
                return

    partial = parent / f"{name}.partial"
    if partial.exists():
        partial.rmtree()
    ready = modality.fit(values, partial)
    if not partial.exists():
        return ready
    print_of = ready.spec(name).fingerprint[:12]
    partial.rename(parent / f"{name}@{print_of}")
    return modality.fit(lambda: iter(()), parent / f"{name}@{print_of}")


def manifest(
    built: Program,
    step: int,
    course: mixture.Course | None = None,
    data: dict[str, str] | None = None,
) -> dict[str, Any]:
    """The manifest of a checkpoint, except the hashes of its files.

    Args:
      course: that of the run, which tells the journal, the cursors and what the schedule remembers.
      data: fingerprints of the data, by task.
    """
    experiment = built.experiment
    shapes = names_lib.canonical_shapes(built.params, built.canonical)
    specs = built.vocabulary.specs
    return {
        "step": step,
        "journal": course.journal.to_json() if course else [],
        "cursors": course.bound.cursors(step, course.journal) if course else {},
        "schedule": course.memory if course else {},
        "data": data or {},
        "streams": [s.name for s in specs],
        "vocabulary": {s.name: list(built.vocabulary.range(s.name)) for s in specs},
        "layer_plan": plan.layer_lines(experiment.model.layer_plan()),
        "tokenizers": {s.name: s.fingerprint for s in specs if s.fingerprint},
        "identity": resume.identity(experiment),
        "config_format": config.FORMAT,  # of the names of classes in the identity
        "mesh": resume.mesh_of(built.mesh),
        "parameters": {name: list(shape) for name, shape in shapes.items()},
        "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }


def write_scores(folder: epath.Path, name: str, step: int, scores: dict, main: bool) -> None:
    """Writes `evals/<name>/<step>.json`."""
    if main:
        (folder / "evals" / name).mkdir(parents=True, exist_ok=True)
        files.write_json(folder / "evals" / name / f"{step}.json", scores)


def write_seconds(folder: epath.Path, seconds: dict[str, float], main: bool) -> None:
    """Adds the time budget of this start to run.json."""
    if main:
        _add_to_start(folder, "seconds", {k: round(v, 2) for k, v in seconds.items()})


def write_init(folder: epath.Path, report: dict[str, Any], main: bool) -> None:
    """Adds which parameters came from another run to run.json."""
    if main:
        _add_to_start(folder, "init", report)


def _add_to_start(folder: epath.Path, key: str, value: Any) -> None:
    run = records.read_run(folder)
    run["starts"][-1][key] = value
    records.write_run(folder, run)
