"""Retention of checkpoints: saves and retirements that were killed are completed later.

    checkpoints/<step>.saving          a save of this step has begun and has no manifest yet
    checkpoints/<step>/manifest.json   the step is complete
    checkpoints/<step>/retired.json    the manifest of a step whose files are being deleted

mmjax deletes only a partial save that has a `.saving` marker, and the files that a retired step's
manifest names. Anything else is left alone, or moved to `WORKDIR/quarantine` if it is damaged or
blocks a save.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
from typing import Any

from etils import epath

from mmjax import files
from mmjax.run import manifest as manifest_lib

__all__ = ["begin", "end", "recover", "retire", "step_of", "steps"]

RETIRED = "retired.json"
SAVING = ".saving"  # suffix
RECORDS = r"run\.json|config\.json|metrics\.jsonl|scores\.json"  # written in a workdir
_log = logging.getLogger("mmjax")


def step_of(name: str) -> int | None:
    """The step that a folder name stands for, or None."""
    return int(name) if re.fullmatch("0|[1-9][0-9]{0,17}", name) else None


def steps(folder: Any) -> list[int]:
    """Steps of checkpoints that have a manifest, ascending."""
    folder = epath.Path(folder)
    if not folder.exists():
        return []
    paths = {step_of(path.name): path for path in folder.iterdir()}
    return sorted(s for s, p in paths.items() if s is not None and (p / manifest_lib.FILE).exists())


def strange(folder: Any) -> dict[int, str]:
    """Folders named like steps that are not checkpoints, and why; saves in progress excepted."""
    folder, reasons = epath.Path(folder), {}
    for path in folder.iterdir() if folder.exists() else ():
        step = step_of(path.name)
        known = (path / manifest_lib.FILE, path / RETIRED, folder / f"{path.name}{SAVING}")
        if step is not None and not any(p.exists() for p in known):
            reasons[step] = f"it has no {manifest_lib.FILE}"
    return reasons


# ---------------------------------------------------------------------------- a save


def begin(folder: epath.Path, step: int) -> None:
    """Moves away anything that blocks a save of a step, then marks the save as begun."""
    for path in (folder / str(step), *_unfinished(folder, step)):
        if files.exists(path):
            files.quarantine(path, folder.parent, "it stands where a checkpoint is to be written")
    (folder / f"{step}{SAVING}").write_text("")  # its existence is the information


def end(folder: epath.Path, step: int) -> None:
    """Removes the marker of `begin`, once the manifest is written."""
    (folder / f"{step}{SAVING}").unlink(missing_ok=True)


def _unfinished(folder: epath.Path, step: int) -> list[epath.Path]:
    """Paths that Orbax leaves behind when a save is killed."""
    return [p for p in folder.iterdir() if p.name.startswith(f"{step}.orbax-checkpoint-tmp")]


def recover(folder: Any) -> None:
    """Cleans up after a killed run: deletes its partial save, and the rest of a retired step.

    The caller holds the run lock.
    """
    folder = epath.Path(folder)
    for path in list(folder.parent.iterdir()) if folder.parent.exists() else ():
        if re.fullmatch(rf"\.({RECORDS})\.[0-9a-f]{{32}}{files.PARTIAL}", path.name):
            path.unlink()
    for path in list(folder.iterdir()) if folder.exists() else ():
        step = step_of(path.name.removesuffix(SAVING))
        if step is None:
            continue
        if path.name.endswith(SAVING):
            if not path.is_dir():
                _delete_half(folder, step)
                path.unlink()
        elif (path / RETIRED).exists():
            _finish_retiring(path, step)


def _delete_half(folder: epath.Path, step: int) -> None:
    half = folder / str(step)
    is_whole = any((half / name).exists() for name in (manifest_lib.FILE, RETIRED))
    for left in [*([] if is_whole else [half]), *_unfinished(folder, step)]:
        if left.exists() and not _is_link(left):
            left.rmtree()


# ------------------------------------------------------------------------- a retirement


def retire(folder: epath.Path, step: int) -> bool:
    """Deletes a checkpoint; returns False if it cannot be proven to be one.

    Its manifest goes first, so that a step is never listed without its files.
    """
    path = folder / str(step)
    try:
        manifest_lib.read(path, step)
    except ValueError as error:
        _log.warning("%s is left alone: %s", path, error)
        return False
    (path / manifest_lib.FILE).rename(path / RETIRED)
    files.sync(path)
    _finish_retiring(path, step)
    return True


def _finish_retiring(path: epath.Path, step: int) -> None:
    """Deletes the files that the manifest names, then the empty folders."""
    try:
        names = manifest_lib.read(path, step, RETIRED)["files"]
    except ValueError as error:
        _log.warning("%s is left alone: %s: %s", path, RETIRED, error)
        return
    (path / manifest_lib.FILE).unlink(missing_ok=True)  # in a bucket renaming is copying
    own = re.compile(
        rf"\.({re.escape(manifest_lib.FILE)}|{RETIRED})\.[0-9a-f]{{32}}{files.PARTIAL}"
    )
    for entry in list(files.entries(path)):
        if entry.name in names or own.fullmatch(entry.name):
            entry.path.unlink()
    if not files.is_remote(path):
        parents = {"/".join(n.split("/")[:i]) for n in names for i in range(1, n.count("/") + 1)}
        for name in sorted(parents, key=len, reverse=True):
            with contextlib.suppress(OSError):  # not empty, or gone
                os.rmdir(path / name)
    (path / RETIRED).unlink()
    if not files.is_remote(path):
        with contextlib.suppress(OSError):  # it contains a file of the user's
            os.rmdir(path)


def _is_link(path: epath.Path) -> bool:
    return not files.is_remote(path) and os.path.islink(path)
