"""The run directory: its files, and the checks of a resume."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import importlib.metadata
import json
import os
import platform
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
from etils import epath

import mmjax
from mmjax import config, console, errors, files
from mmjax.config import code_file
from mmjax.config.code_file import Code
from mmjax.data import meeting, mixture
from mmjax.data.reader import values_of
from mmjax.experiment import Experiment, Init
from mmjax.modalities.modality import Modality
from mmjax.models import names as names_lib
from mmjax.models import plan
from mmjax.parallel import distributed
from mmjax.run import checkpoint, lock, matching, records, resume
from mmjax.run.program import Program

PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy", "sentencepiece")
MAX_TOKENIZER = 1 << 33  # bytes of a tokenizer file
FRESH = -1  # what the main process says in place of a step


@contextlib.contextmanager
def held(folder: epath.Path, main: bool) -> Iterator[lock.Held | None]:
    """The run lock, held by the main process; None for the others."""
    if not main:
        yield None
        return
    try:
        with lock.lock(str(folder)) as handle:
            yield handle
    except PermissionError as error:
        raise errors.StorageError(
            f"Workdir {folder}: {error.strerror}; choose a --workdir that you may write to."
        ) from error


def resume_from(folder: epath.Path, main: bool) -> checkpoint.Chosen | None:
    """The checkpoint that a run resumes from; None if nothing was saved yet.

    The main process looks for it, and each process compares the hashes of its part of the files.

    Raises:
      NoCheckpoint: there are checkpoints, but none is usable.
    """
    if not main:
        while (word := distributed.of_main("")).startswith("check "):
            _damaged(folder, int(word.removeprefix("check ")))
        if not word.startswith("step "):
            raise errors.NoCheckpoint(word)
        step = int(word.removeprefix("step "))
        manifest = checkpoint.read_manifest(folder, step) if step != FRESH else None
        return checkpoint.Chosen(folder, step, manifest, {}) if manifest else None

    def check(workdir: epath.Path, step: int) -> list[str]:
        del workdir
        distributed.of_main(f"check {step}")
        return _damaged(folder, step)

    checkpoint.recover(folder / "checkpoints")
    try:
        chosen = checkpoint.newest(folder, check)
    except errors.NoCheckpoint as error:
        distributed.of_main(str(error))
        raise
    distributed.of_main(f"step {chosen.step if chosen else FRESH}")
    return chosen


def _damaged(folder: epath.Path, step: int) -> list[str]:
    """Problems of a checkpoint that any process has found in its part, on the main one."""
    name = distributed.fresh(f"damaged {step}")
    try:
        own = checkpoint.damaged(folder, step, distributed.process(), distributed.count())
    except errors.NoCheckpoint as error:  # of a later version: the main process finds the same
        told = distributed.gathered(name, json.dumps([str(error)]))
        if told:
            raise
        return []
    told = distributed.gathered(name, json.dumps(own))
    return list(dict.fromkeys(line for part in told for line in json.loads(part)))


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
    start = start_of(experiment, code) | {
        "devices": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
        "processes": distributed.count(),
    }
    if chosen is None:
        # Nothing was saved, so any experiment may start here; tokenizers of another are moved away.
        if files.exists(folder / "tokenizers"):
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


def start_of(experiment: Experiment, code: Code) -> dict[str, Any]:
    """Versions and code of a start, which needs no device."""
    versions = {}
    for name in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(name)
    return {
        "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "mmjax": mmjax.__version__,
        "python": platform.python_version(),
        "packages": versions,
        "cpu_cores": os.cpu_count(),
        "flags": {name: os.environ.get(name, "") for name in ("XLA_FLAGS", "LIBTPU_INIT_ARGS")},
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
      ConfigError: a task whose modalities never meet in a record.
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
        if not manifest:
            _copy(_held(experiment), folder / "tokenizers")
            split = experiment.data.train_split
            meeting.check_all(experiment.tasks, experiment.modalities, split)
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


def fit_modalities(
    experiment: Experiment, names: Sequence[str], folder: epath.Path
) -> dict[str, Modality]:
    """Some modalities with fitted tokenizers, which lie in `folder`/tokenizers."""
    return {name: _fit(experiment, name, folder) for name in names}


def learned(init: Init) -> dict[str, epath.Path]:
    """Folders of tokenizers of the run that parameters start from, by the stream that they are for
    here: that of the embeddings which `init` takes, as ids must mean what they meant there.

    Raises:
      NoCheckpoint: the run does not exist.
    """
    source, _ = checkpoint.choose_step(init.path)
    found = {}
    for path in files.children(source / "tokenizers", "*"):
        name = f"embed/{path.name.partition('@')[0]}/table"
        new = re.fullmatch("embed/([^/]+)/table", matching.renamed(name, init.rename))
        if matching.matches(name, init.select) and new:
            found[new[1]] = path
    return found


def _copy_learned(experiment: Experiment, init: Init, target: epath.Path) -> None:
    """Copies `tokenizers/<stream>@<fingerprint>` of the run that `init` names."""
    found = learned(init).items()
    _copy({name: path for name, path in found if name in experiment.modalities}, target)


def _held(experiment: Experiment) -> dict[str, epath.Path]:
    """Folders of the tokenizers of sources that hold tokens, by stream.

    Raises ConfigError where the config names another tokenizer of a stream.
    """
    found = {}
    for task in experiment.tasks.values():
        for name, (spec, folder) in task.source.held().items():
            if not folder or name not in experiment.modalities:
                continue
            given = experiment.modalities[name].given_fingerprint()
            if given not in ("", spec.fingerprint):
                raise config.ConfigError(
                    f"{type(task.source).__name__}: stream {name!r} was made by tokenizer"
                    f" {spec.fingerprint[:12]}, but modalities[{name!r}] names {given[:12]}; use"
                    " the same, or tokenize again with mmjax tokenize."
                )
            found[name] = epath.Path(folder)
    return found


def _copy(folders: Mapping[str, epath.Path], target: epath.Path) -> None:
    """Copies folders `<stream>@<fingerprint>`, by stream."""
    for name, folder in folders.items():
        copy = target / f"{name}@{folder.name.partition('@')[2]}"
        partial = _begin(target, name)
        if files.exists(copy):
            continue
        files.make_folder(partial)
        for entry in files.entries(folder):
            content = files.read_bytes(entry.path, MAX_TOKENIZER)
            files.write_bytes(partial / entry.name, content)
        files.move(partial, copy)


def _begin(parent: Any, name: str) -> Any:
    """The folder in which a tokenizer is made, before it is named by its fingerprint.

    One that is there is of a run that was killed; in a bucket, where a folder is not renamed but
    copied, so may then be the copy.
    """
    partial = parent / f"{name}.partial"
    if files.exists(partial):
        for half in files.children(parent, f"{name}@*") if files.is_remote(parent) else ():
            files.delete_tree(half)
        files.delete_tree(partial)
    return partial


def _fit(experiment: Experiment, name: str, folder: Any):
    """Fits into `tokenizers/<stream>`, then renames it to `<stream>@<fingerprint>`."""
    modality = experiment.modalities[name]
    parent = folder / "tokenizers"
    partial = _begin(parent, name)
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

    ready = modality.fit(values, partial)
    if not files.exists(partial):
        return ready
    print_of = ready.spec(name).fingerprint[:12]
    files.move(partial, parent / f"{name}@{print_of}")
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
        files.make_folder(folder / "evals" / name)
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
