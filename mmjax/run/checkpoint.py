"""Checkpoints: asynchronous saves with Orbax; the manifest is written last.

    checkpoints/<step>/{params, opt_state, model_state, extra}/   manifest.json

A step without a manifest is incomplete and ignored. Readers of weights open only `params` and the
manifest. Orbax does not detect flipped bits, so the manifest holds hashes of the files and digests
of the arrays.
"""

from __future__ import annotations

import functools
import json
import logging
import os
import threading
import time
from collections.abc import Callable
from typing import Any

from etils import epath

from mmjax import files
from mmjax.errors import NoCheckpoint, StorageError, WorkdirBusy
from mmjax.experiment import Checkpointing
from mmjax.files import bucket, versions
from mmjax.parallel import distributed
from mmjax.run import choose as choose_lib
from mmjax.run import digest as digest_lib
from mmjax.run import keeping, lock, replicas
from mmjax.run import manifest as manifest_lib
from mmjax.run.choose import Chosen, best_step, choose, damaged, newest, parse_path, refuse_new
from mmjax.run.info import info
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
OUT_OF_REACH = ("UNAVAILABLE", "DEADLINE_EXCEEDED", "RESOURCE_EXHAUSTED", "PERMISSION_DENIED")


class Saver:
    """Writes checkpoints of a run in the background, one save at a time.

    Fields:
      verify_seconds: CPU time spent on digests and hashes so far.

    Args:
      held: the lock of the workdir, asked before a manifest is written. None = there is none.
      before: called in the background before a manifest is written: what must be safe before it.
    """

    def __init__(
        self,
        workdir: epath.Path,
        settings: Checkpointing,
        held: lock.Held | None = None,
        before: Callable[[], None] | None = None,
    ):
        import orbax.checkpoint as ocp

        self._folder, self._settings = _absolute(workdir) / "checkpoints", settings
        self._args = ocp.args
        self._orbax = ocp.AsyncCheckpointer(ocp.CompositeCheckpointHandler())
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None
        self._verified: dict[int, dict[str, Any]] = {}
        self.verify_seconds = 0.0
        self._held, self._before = held or lock.Held(), before
        self._name = distributed.fresh("saves")
        files.make_folder(self._folder)

    def save(self, state: Any, manifest: dict[str, Any]) -> None:
        """Starts a save of a TrainState; returns when the arrays are off the device.

        Raises:
          StorageError: the previous save failed.
        """
        import jax

        self.wait()
        step = int(manifest["step"])
        folder = self._folder / str(step)
        if files.exists(folder / manifest_lib.FILE):
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
            hashes = self._hashed(folder)
            if jax.process_index() == 0:
                manifest["files"] = hashes
                _sync_folders(folder)
                if self._before is not None:
                    self._before()
                self._held.check()
                self._commit(folder / manifest_lib.FILE, manifest)
                files.sync(self._folder)
                keeping.end(self._folder, manifest["step"])
                self.know(manifest["step"])
                self._retain()
        except BaseException as error:  # reported by wait(), in the training thread
            self._error = error

    def _commit(self, path: epath.Path, manifest: dict[str, Any]) -> None:
        """Writes a manifest; in a bucket only where there is none.

        A run that was taken over just after it asked for the lock may have written one; its fence
        is lower, and its files have been written over.
        """
        if not versions.supports(path):
            files.write_json(path, manifest_lib.sealed(manifest))
            return
        manifest = manifest_lib.sealed({**manifest, "fence": self._held.fence})
        target = versions.Versioned(path)
        try:
            target.write(files.as_json(manifest).encode(), expected=0)
        except versions.Changed:
            content, generation = target.read()
            if json.loads(content).get("fence", 0) >= self._held.fence:
                raise StorageError(f"{path}: another run has written it meanwhile") from None
            target.write(files.as_json(manifest).encode(), expected=generation)

    def _hashed(self, folder: epath.Path) -> dict[str, str]:
        """SHA-256 of each file, by name, after syncing it to disk: each process takes its part, and
        the main one gets all."""
        name = f"{self._name}/{folder.name}"
        distributed.meet(f"{name} written")  # the main process gives the folder its name
        began, process = time.thread_time(), distributed.process()
        there = {entry.name: entry.path for entry in files.entries(folder)}
        own = choose_lib.dealt(there, process, distributed.count())
        for path in own.values():
            files.sync(path)
        hashes = choose_lib.hash_files(own)
        self.verify_seconds += time.thread_time() - began
        told = distributed.gathered(f"{name} hashed", json.dumps(hashes))
        return {file: digest for part in told for file, digest in json.loads(part).items()}

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
        """Raises StorageError if a save has failed; does not wait.

        Raises WorkdirBusy if another run is known to have taken the workdir over.
        """
        self._held.raise_if_lost()
        if self._error is not None:
            error, self._error = self._error, None
            if isinstance(error, WorkdirBusy):
                raise error
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
    if files.is_remote(folder):
        return
    for name in {e.name.rpartition("/")[0] for e in files.entries(folder)} | {""}:
        files.sync(folder / name)


def _stamps(folder: epath.Path) -> dict[str, Any]:
    """Sizes and times of a checkpoint's files, which show whether they were modified."""
    if files.is_remote(folder):
        return bucket.listing(folder)
    stamps = {}
    for entry in files.entries(folder) if folder.exists() else ():
        if entry.kind == "file":
            stat = os.stat(entry.path)
            stamps[entry.name] = (stat.st_size, stat.st_mtime_ns)
        else:
            stamps[entry.name] = entry.kind
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

    Where a mesh has replicas on processes of their own, those of the first read the arrays and the
    others get them over the network.

    Raises:
      NoCheckpoint: the tree on disk has another structure, or its arrays differ from those saved.
    """
    folder = epath.Path(workdir) / "checkpoints" / str(step)
    manifest = read_manifest(epath.Path(workdir), step)
    wanted = {name: tree for name, tree in like.items() if _leaves(tree)}
    for name in wanted:
        if name not in manifest["items"]:
            raise NoCheckpoint(
                f"{folder}: holds no {name}, which this config needs; to start from its parameters"
                " alone, name it in `init` of a new run."
            )
    processes = replicas.readers(wanted)
    read = functools.partial(_read, folder, processes=processes)
    items = replicas.read_once(read, wanted) if processes else read(wanted)
    items = {name: items[name] if name in wanted else like[name] for name in like}
    for name in wanted if "state" in manifest else ():  # older manifests had none
        if digest_lib.digest(items[name]) != manifest["state"].get(name):
            raise NoCheckpoint(
                f"{folder}: the arrays of {name} differ from what was saved, though its files are"
                " whole; start again. If that does not help, memory or a device is at fault, or the"
                " config asks for another type of number."
            )
    return items


def _read(folder: epath.Path, wanted: dict[str, Any], processes: set[int]) -> dict[str, Any]:
    """Items of a checkpoint, on the processes that call this; empty = all of them."""
    import orbax.checkpoint as ocp

    args = ocp.args.Composite(
        **{name: ocp.args.StandardRestore(tree) for name, tree in wanted.items()}
    )
    who = ocp.options.MultiprocessingOptions(
        primary_host=min(processes, default=0), active_processes=processes or None
    )
    checkpointer = ocp.Checkpointer(ocp.CompositeCheckpointHandler(), multiprocessing_options=who)
    try:
        items = checkpointer.restore(_absolute(folder), args=args)
        return {name: items[name] for name in wanted}
    except (ValueError, KeyError, TypeError) as error:
        if files.is_remote(folder) and any(word in str(error) for word in OUT_OF_REACH):
            raise StorageError(
                f"{folder}: could not be read ({error}); start the same command again."
            ) from error
        raise NoCheckpoint(
            f"{folder}: does not fit this model ({error}); the config has changed since then."
        ) from error
    finally:
        checkpointer.close()


def _absolute(path: epath.Path) -> epath.Path:
    return path if files.is_remote(path) else epath.Path(path).resolve()
