"""Checkpoints: asynchronous saves with Orbax; the manifest is written last.

    checkpoints/<step>/{params, opt_state, model_state, extra}/   manifest.json

A step without a manifest is incomplete and ignored. Readers of weights open only `params` and the
manifest. Orbax does not detect flipped bits, so the manifest holds hashes of the files and digests
of the arrays.
"""

from __future__ import annotations

import logging
import math
import os
import threading
import time
from typing import Any

from etils import epath

from mmjax import files
from mmjax.errors import NoCheckpoint, StorageError
from mmjax.experiment import Checkpointing
from mmjax.run import choose as choose_lib
from mmjax.run import digest as digest_lib
from mmjax.run import keeping, records
from mmjax.run import manifest as manifest_lib
from mmjax.run.choose import Chosen, best_step, choose, damaged, newest, parse_path, refuse_new
from mmjax.run.keeping import recover, steps
from mmjax.run.manifest import ITEMS

__all__ = [
    "ITEMS",
    "Checkpointing",
    "Chosen",
    "NoCheckpoint",
    "Saver",
    "best_step",
    "choose",
    "choose_step",
    "damaged",
    "info",
    "newest",
    "parse_path",
    "read_manifest",
    "recover",
    "refuse_new",
    "restore",
    "steps",
]

_log = logging.getLogger("mmjax")
SHOWN = ("streams", "tokenizers", "mesh", "cursors", "journal")  # by info


class Saver:
    """Writes checkpoints of a run in the background, one save at a time.

    Fields:
      verify_seconds: CPU time spent on digests and hashes so far.
    """

    def __init__(self, workdir: epath.Path, settings: Checkpointing):
        import orbax.checkpoint as ocp

        self._folder, self._settings = _absolute(workdir) / "checkpoints", settings
        self._args = ocp.args
        self._orbax = ocp.AsyncCheckpointer(ocp.CompositeCheckpointHandler())
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None
        self._verified: dict[int, dict[str, Any]] = {}
        self.verify_seconds = 0.0
        self._folder.mkdir(parents=True, exist_ok=True)

    def save(self, state: Any, manifest: dict[str, Any]) -> None:
        """Starts a save of a TrainState; returns when the arrays are off the device.

        Raises:
          StorageError: the previous save failed.
        """
        import jax

        self.wait()
        step = int(manifest["step"])
        folder = self._folder / str(step)
        if (folder / manifest_lib.FILE).exists():
            return
        trees = {name: getattr(state, name) for name in ITEMS}
        full = {name: tree for name, tree in trees.items() if _leaves(tree)}
        save = {name: self._args.StandardSave(tree) for name, tree in full.items()}
        began = time.thread_time()
        digests = {name: digest_lib.digest(tree) for name, tree in full.items()}
        self.verify_seconds += time.thread_time() - began
        if jax.process_index() == 0:
            keeping.begin(self._folder, step)
        self._orbax.save(folder, args=self._args.Composite(**save), force=True)
        manifest = {**manifest, "format": manifest_lib.FORMAT, "items": sorted(full)}
        arguments = folder, {**manifest, "state": digests}
        self._thread = threading.Thread(target=self._finish, args=arguments, daemon=True)
        self._thread.start()

    def _finish(self, folder: epath.Path, manifest: dict[str, Any]) -> None:
        import jax

        try:
            self._orbax.wait_until_finished()
            if jax.process_index() == 0:
                manifest["files"] = self._hashed(folder)
                _sync_folders(folder)
                files.write_json(folder / manifest_lib.FILE, manifest_lib.sealed(manifest))
                files.sync(self._folder)
                keeping.end(self._folder, manifest["step"])
                self.know(manifest["step"])
                self._retain()
        except BaseException as error:  # reported by wait(), in the training thread
            self._error = error

    def _hashed(self, folder: epath.Path) -> dict[str, str]:
        """SHA-256 of each file, by name, after syncing it to disk."""
        began, hashes = time.thread_time(), {}
        for entry in files.entries(folder):
            files.sync(entry.path)
            hashes[entry.name] = choose_lib.hash_file(entry.path)
        self.verify_seconds += time.thread_time() - began
        return hashes

    def know(self, step: int) -> None:
        """Records that the files of a step were just verified."""
        self._verified[step] = _stamps(self._folder / str(step))

    def _retain(self) -> None:
        """Retires steps older than the newest `keep` verified ones."""
        settings = self._settings
        there = steps(self._folder)
        whole = [s for s in there if self._verified.get(s) == _stamps(self._folder / str(s))]
        if not settings.keep or len(whole) < settings.keep:
            return
        for step in there:
            is_for_good = settings.keep_every and step % settings.keep_every == 0
            if step < whole[-settings.keep] and not is_for_good:
                keeping.retire(self._folder, step)

    def wait(self) -> None:
        """Waits until the current save is complete on disk.

        Raises:
          StorageError: it failed.
        """
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        self.check()

    def check(self) -> None:
        """Raises StorageError if a save has failed; does not wait."""
        if self._error is not None:
            error, self._error = self._error, None
            raise StorageError(
                f"Checkpoint in {self._folder}: could not be written ({error}); free space or check"
                " the permissions, then start the same command again."
            ) from error

    def close(self) -> None:
        """Waits for the current save."""
        self.wait()
        self._orbax.close()


def _leaves(tree: Any) -> list:
    import jax

    return jax.tree.leaves(tree)


def _sync_folders(folder: epath.Path) -> None:
    """Syncs the folders, so that the names of their files are on disk."""
    for name in {e.name.rpartition("/")[0] for e in files.entries(folder)} | {""}:
        files.sync(folder / name)


def _stamps(folder: epath.Path) -> dict[str, Any]:
    """Sizes and times of a checkpoint's files, which show whether they were modified."""
    stamps = {}
    for entry in files.entries(folder) if folder.exists() else ():
        if entry.kind == "file" and not files.is_remote(folder):
            stat = os.stat(entry.path)
            stamps[entry.name] = (stat.st_size, stat.st_mtime_ns)
        else:
            stamps[entry.name] = entry.path.stat() if entry.kind == "file" else entry.kind
    return stamps


def choose_step(path: str) -> tuple[epath.Path, int]:
    """The checkpoint that a PATH names; by default the newest one with intact files.

    Raises:
      NoCheckpoint: no checkpoint is usable.
    """
    chosen = choose(path)
    return chosen.workdir, chosen.step


def read_manifest(workdir: epath.Path, step: int) -> dict[str, Any]:
    """The manifest of a step. Raises NoCheckpoint if it is damaged."""
    return choose_lib.read(workdir, step)


def restore(workdir: epath.Path, step: int, like: dict[str, Any]) -> dict[str, Any]:
    """Items of a checkpoint, sharded like the abstract arrays in `like` (on any mesh).

    Raises:
      NoCheckpoint: the tree on disk has another structure, or its arrays differ from those saved.
    """
    import orbax.checkpoint as ocp

    folder = epath.Path(workdir) / "checkpoints" / str(step)
    manifest = read_manifest(epath.Path(workdir), step)
    wanted = {name: tree for name, tree in like.items() if _leaves(tree)}
    for name in wanted:
        if name not in manifest["items"]:
            raise NoCheckpoint(
                f"{folder}: holds no {name}, which this config needs; to start from its parameters"
                " alone, name it in `init` of a new run."
            )
    args = ocp.args.Composite(
        **{name: ocp.args.StandardRestore(tree) for name, tree in wanted.items()}
    )
    checkpointer = ocp.Checkpointer(ocp.CompositeCheckpointHandler())
    try:
        items = checkpointer.restore(_absolute(folder), args=args)
    except (ValueError, KeyError, TypeError) as error:
        raise NoCheckpoint(
            f"{folder}: does not fit this model ({error}); the config has changed since then."
        ) from error
    finally:
        checkpointer.close()
    items = {name: items[name] if name in wanted else like[name] for name in like}
    for name in wanted if "state" in manifest else ():  # older manifests had none
        if digest_lib.digest(items[name]) != manifest["state"].get(name):
            raise NoCheckpoint(
                f"{folder}: the arrays of {name} differ from what was saved, though its files are"
                " whole; start again. If that does not help, memory or a device is at fault, or the"
                " config asks for another type of number."
            )
    return items


def _absolute(path: epath.Path) -> epath.Path:
    return path if "://" in str(path) else epath.Path(path).resolve()


def info(path: str, verify: bool = False) -> dict[str, Any]:
    """Describes a run or checkpoint: step, parameters by part, modalities, tokenizers, lineage.

    Raises:
      NoCheckpoint: the path holds no checkpoint, or (with `verify`) a damaged one.
    """
    workdir, _ = parse_path(path)
    if not (workdir / "config.json").exists():
        raise NoCheckpoint(
            f"{workdir}: holds no config.json, so it is not the workdir of a run; give a PATH as"
            " WORKDIR, WORKDIR@STEP or WORKDIR@best:METRIC."
        )
    try:
        run = records.read_run(workdir)
    except files.DamagedFile as error:
        run = {}
        _log.warning("%s is left out: %s", workdir / "run.json", error)
    there = steps(workdir / "checkpoints")
    out: dict[str, Any] = {"workdir": str(workdir), "checkpoints": there, "run": run}
    if not there:
        return out
    workdir, step, manifest, _ = choose(path)
    shapes = manifest["parameters"]
    parts: dict[str, int] = {}
    for name, shape in shapes.items():
        part = name.split("/")[0]
        parts[part] = parts.get(part, 0) + math.prod(shape)
    out |= {
        "step": step,
        "parameters": sum(parts.values()),
        "parameters_by_part": parts,
        "layer_plan": {str(n): line for n, line in enumerate(manifest["layer_plan"], 1)},
        **{key: manifest[key] for key in SHOWN},
    }
    if verify:
        bad = {s: damaged(workdir, s) for s in there}
        out["damaged"] = {s: wrong for s, wrong in bad.items() if wrong}
    return out
