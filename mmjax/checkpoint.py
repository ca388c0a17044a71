"""Checkpoints: Orbax behind one module, async, the manifest last.

    checkpoints/<step>/{params, opt_state, model_state, extra}/   manifest.json

A step without a manifest was not finished and is ignored. Readers of weights open `params` and the
manifest alone. Orbax does not notice flipped bits, so the manifest carries file hashes.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import math
import shutil
import threading
from typing import Any

from etils import epath

from mmjax import atomic
from mmjax.lifecycle import NoCheckpoint, StorageError

FORMAT_VERSION = 1
ITEMS = ("params", "opt_state", "model_state", "extra")
_log = logging.getLogger("mmjax")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Checkpointing:
    """When to save and what to keep.

    Fields:
      every: steps between saves; 0 = at the end only. keep: newest ones kept, 0 = all.
      keep_every: steps whose multiples are kept for good; 0 = none.
    """

    every: int = 500
    keep: int = 3
    keep_every: int = 0


class Saver:
    """Writes checkpoints of one run in the background; one save at a time."""

    def __init__(self, workdir: epath.Path, settings: Checkpointing):
        import orbax.checkpoint as ocp

        self._folder, self._settings = _absolute(workdir) / "checkpoints", settings
        self._args = ocp.args
        self._orbax = ocp.AsyncCheckpointer(ocp.CompositeCheckpointHandler())
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None
        self._folder.mkdir(parents=True, exist_ok=True)
        clean(self._folder)

    def save(self, state: Any, manifest: dict[str, Any]) -> None:
        """Starts a save of a TrainState; returns when the arrays are off the device."""
        self.wait()
        step = int(manifest["step"])
        folder = self._folder / str(step)
        if (folder / "manifest.json").exists():
            return
        trees = {name: getattr(state, name) for name in ITEMS}
        full = {name: tree for name, tree in trees.items() if _leaves(tree)}
        save = {name: self._args.StandardSave(tree) for name, tree in full.items()}
        self._orbax.save(folder, args=self._args.Composite(**save), force=True)
        manifest = {**manifest, "format": FORMAT_VERSION, "items": sorted(full)}
        self._thread = threading.Thread(target=self._finish, args=(folder, manifest), daemon=True)
        self._thread.start()

    def _finish(self, folder: epath.Path, manifest: dict[str, Any]) -> None:
        import jax

        try:
            self._orbax.wait_until_finished()
            if jax.process_index() == 0:
                manifest["files"] = hash_files(folder)
                write_json(folder / "manifest.json", manifest)
                self._retain()
        except BaseException as error:  # reported by wait(), in the thread of the loop
            self._error = error

    def _retain(self) -> None:
        settings = self._settings
        if not settings.keep:
            return
        for step in steps(self._folder)[: -settings.keep]:
            if not (settings.keep_every and step % settings.keep_every == 0):
                shutil.rmtree(self._folder / str(step), ignore_errors=True)

    def drop_after(self, step: int) -> None:
        """Removes later checkpoints: a run that goes on before them writes them anew."""
        import jax

        if jax.process_index() == 0:
            for later in steps(self._folder):
                if later > step:
                    (self._folder / str(later)).rmtree()

    def wait(self) -> None:
        """Until the save under way is complete on disk.

        Raises:
          StorageError: it failed.
        """
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        self.check()

    def check(self) -> None:
        """Raises StorageError when a save has failed; does not wait."""
        if self._error is not None:
            error, self._error = self._error, None
            raise StorageError(
                f"Checkpoint in {self._folder}: could not be written ({error}); free space or check"
                " the permissions, then start the same command again."
            ) from error

    def close(self) -> None:
        """Waits and lets go."""
        self.wait()
        self._orbax.close()


def _leaves(tree: Any) -> list:
    import jax

    return jax.tree.leaves(tree)


def clean(folder: epath.Path) -> None:
    """Removes what an interrupted save left behind; the lock of the run is held."""
    import jax

    if jax.process_index() != 0:
        return
    for path in folder.iterdir():
        if "orbax-checkpoint-tmp" in path.name or not (path / "manifest.json").exists():
            path.rmtree()


def hash_files(folder: epath.Path) -> dict[str, str]:
    """SHA-256 of every file below a folder, by relative path."""
    out: dict[str, str] = {}
    for path in sorted(epath.Path(folder).iterdir()):
        if path.is_dir():
            out |= {f"{path.name}/{name}": d for name, d in hash_files(path).items()}
        elif path.name != "manifest.json" and path.suffix != ".partial":
            out[path.name] = hashlib.sha256(path.read_bytes()).hexdigest()
    return out


def write_json(path: epath.Path, value: Any) -> None:
    """Writes whole or not at all, over what is there."""
    with atomic.replacing(path) as partial:
        partial.write_text(json.dumps(value, indent=1, sort_keys=True))


def steps(folder: epath.Path) -> list[int]:
    """Steps of complete checkpoints, rising."""
    folder = epath.Path(folder)
    if not folder.exists():
        return []
    return sorted(
        int(p.name) for p in folder.iterdir()
        if p.name.isdigit() and (p / "manifest.json").exists()
    )  # fmt: skip


def read_manifest(workdir: epath.Path, step: int) -> dict[str, Any]:
    """The manifest of a step."""
    return json.loads((workdir / "checkpoints" / str(step) / "manifest.json").read_text())


def damaged(workdir: epath.Path, step: int) -> list[str]:
    """Files of a checkpoint that are missing or differ from their hash."""
    folder = workdir / "checkpoints" / str(step)
    found = hash_files(folder)
    return [
        f for f, digest in read_manifest(workdir, step)["files"].items() if found.get(f) != digest
    ]


def parse_path(path: str) -> tuple[epath.Path, str]:
    """`WORKDIR`, `WORKDIR@STEP` or `WORKDIR@best:METRIC` to (workdir, selector)."""
    text = str(path)
    head, at, metric = text.partition("@best:")  # first: a metric may hold an @ of its own
    if at:
        return epath.Path(head), f"best:{metric}"
    head, at, tail = text.rpartition("@")
    if at and tail.isdigit():
        return epath.Path(head), tail
    return epath.Path(text), ""


def choose_step(path: str) -> tuple[epath.Path, int]:
    """The checkpoint that a PATH means; the newest one whose files are whole by default.

    Raises:
      NoCheckpoint: there is none that can be used.
    """
    workdir, selector = parse_path(path)
    there = steps(workdir / "checkpoints")
    if not workdir.exists() or not there:
        raise NoCheckpoint(
            f"{workdir}: no complete checkpoint below {workdir / 'checkpoints'}; give the workdir"
            " of a run that has saved at least once."
        )
    if selector.startswith("best:"):
        candidates = [best_step(workdir, selector[5:], there)]
    elif selector:
        if int(selector) not in there:
            raise NoCheckpoint(f"{workdir}: no checkpoint of step {selector}; there are {there}.")
        candidates = [int(selector)]
    else:
        candidates = there[::-1]
    for step in candidates:
        bad = damaged(workdir, step)
        if not bad:
            return workdir, step
        _log.warning("checkpoint %s of %s is damaged (%s); it is not used", step, workdir, bad[0])
    raise NoCheckpoint(
        f"{workdir}: checkpoint(s) {candidates} are damaged; choose another of {there} by"
        f" {workdir}@STEP."
    )


def best_step(workdir: epath.Path, metric: str, there: list[int]) -> int:
    """The saved step with the highest (for a loss: lowest) value of an evaluated metric."""
    values: dict[int, float] = {}
    names: set[str] = set()
    for file in (workdir / "evals").glob("*/*.json") if (workdir / "evals").exists() else ():
        found = json.loads(file.read_text())
        names |= set(found)
        if metric in found and int(file.stem) in there:
            values[int(file.stem)] = found[metric]
    if not values:
        raise NoCheckpoint(
            f"{workdir}: metric {metric!r} was not evaluated at a saved step; there are"
            f" {', '.join(sorted(names)[:12]) or 'none'}."
        )
    sign = -1.0 if "loss" in metric else 1.0
    return max(values, key=lambda step: sign * values[step])


def restore(workdir: epath.Path, step: int, like: dict[str, Any]) -> dict[str, Any]:
    """Items of a checkpoint, placed as the abstract arrays of `like` say (any mesh).

    Raises:
      NoCheckpoint: the tree on disk is another one.
    """
    import orbax.checkpoint as ocp

    folder = epath.Path(workdir) / "checkpoints" / str(step)
    stored = read_manifest(epath.Path(workdir), step)["items"]
    wanted = {name: tree for name, tree in like.items() if name in stored}
    args = ocp.args.Composite(
        **{name: ocp.args.StandardRestore(tree) for name, tree in wanted.items()}
    )
    checkpointer = ocp.Checkpointer(ocp.CompositeCheckpointHandler())
    try:
        found = checkpointer.restore(_absolute(folder), args=args)
    except (ValueError, KeyError, TypeError) as error:
        raise NoCheckpoint(
            f"{folder}: does not fit this model ({error}); the config has changed since then."
        ) from error
    finally:
        checkpointer.close()
    return {name: found[name] if name in wanted else like[name] for name in like}


def _absolute(path: epath.Path) -> epath.Path:
    return path if "://" in str(path) else epath.Path(path).resolve()


def info(path: str, verify: bool = False) -> dict[str, Any]:
    """What a run or checkpoint is: step, parameters by part, modalities, tokenizers, lineage.

    Raises:
      NoCheckpoint: the path holds no checkpoint, or (with `verify`) a damaged one.
    """
    workdir, _ = parse_path(path)
    if not (workdir / "config.json").exists():
        raise NoCheckpoint(
            f"{workdir}: holds no config.json, so it is not the workdir of a run; give a PATH as"
            " WORKDIR, WORKDIR@STEP or WORKDIR@best:METRIC."
        )
    run = json.loads((workdir / "run.json").read_text()) if (workdir / "run.json").exists() else {}
    there = steps(workdir / "checkpoints")
    out: dict[str, Any] = {"workdir": str(workdir), "checkpoints": there, "run": run}
    if not there:
        return out
    workdir, step = choose_step(path)
    manifest = read_manifest(workdir, step)
    shapes = manifest["parameters"]
    parts: dict[str, int] = {}
    for name, shape in shapes.items():
        part = name.split("/")[0]
        parts[part] = parts.get(part, 0) + math.prod(shape)
    out |= {
        "step": step,
        "parameters": sum(parts.values()),
        "parameters_by_part": parts,
        **{key: manifest[key] for key in ("streams", "tokenizers", "mesh", "cursors", "journal")},
    }
    if verify:
        bad = {s: damaged(workdir, s) for s in there}
        out["damaged"] = {s: files for s, files in bad.items() if files}
    return out
