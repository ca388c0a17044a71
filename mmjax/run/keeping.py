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
from mmjax.files import bucket
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
    there = _look(epath.Path(folder))
    return sorted(step for step, names in there.items() if manifest_lib.FILE in names)


def strange(folder: Any) -> dict[int, str]:
    """Folders named like steps that are not checkpoints, and why; saves in progress excepted."""
    known = {manifest_lib.FILE, RETIRED, SAVING}
    there = _look(epath.Path(folder))
    return {s: f"it has no {manifest_lib.FILE}" for s, names in there.items() if not known & names}


def _look(folder: epath.Path) -> dict[int, set[str]]:
    """What tells the state of each step: names of files in its folder, and SAVING for its marker.

    In a bucket from one listing; a marker of a step without a folder is not told.
    """
    found: dict[int, set[str]] = {}
    if files.is_remote(folder):
        names = list(bucket.listing(folder))
        for head, slash, tail in (name.partition("/") for name in names):
            step = step_of(head)
            if slash and step is not None:
                found.setdefault(step, set()).add(tail)
        marked = [step_of(name.removesuffix(SAVING)) for name in names if name.endswith(SAVING)]
    else:
        paths = {step_of(path.name): path for path in folder.iterdir()} if folder.exists() else {}
        marks = (manifest_lib.FILE, RETIRED)
        for step, path in paths.items():
            if step is not None:
                found[step] = {name for name in marks if (path / name).exists()}
        marked = [s for s in found if (folder / f"{s}{SAVING}").exists()]
    for step in marked:
        if step in found:
            found[step].add(SAVING)
    return found


# ---------------------------------------------------------------------------- a save


def begin(folder: epath.Path, step: int) -> None:
    """Moves away anything that blocks a save of a step, then marks the save as begun."""
    for path in (folder / str(step), *_unfinished(folder, step)):
        if files.exists(path):
            files.quarantine(path, folder.parent, "it stands where a checkpoint is to be written")
    marker = folder / f"{step}{SAVING}"  # its existence is the information
    if files.is_remote(marker):
        bucket.write(marker, b"")
    else:
        marker.write_text("")


def end(folder: epath.Path, step: int) -> None:
    """Removes the marker of `begin`, once the manifest is written."""
    _unlink(folder / f"{step}{SAVING}")


def _unlink(path: epath.Path) -> None:
    if files.is_remote(path):
        bucket.delete([path])
    else:
        path.unlink(missing_ok=True)


def _unfinished(folder: epath.Path, step: int) -> list[epath.Path]:
    """Paths that Orbax leaves behind when a save is killed."""
    return files.children(folder, f"{step}.orbax-checkpoint-tmp*")


def recover(folder: Any) -> None:
    """Cleans up after a killed run: deletes its partial save, and the rest of a retired step.

    The caller holds the run lock.
    """
    folder = epath.Path(folder)
    for path in files.children(folder.parent, f".*{files.PARTIAL}"):
        if re.fullmatch(rf"\.({RECORDS})\.[0-9a-f]{{32}}{files.PARTIAL}", path.name):
            path.unlink()
    if files.is_remote(folder):
        _recover_objects(folder)
        return
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


def _recover_objects(folder: epath.Path) -> None:
    """As `recover`, in a bucket, whose one listing tells all."""
    names = set(bucket.listing(folder))
    for name in sorted(names):
        head, slash, tail = name.partition("/")
        step = step_of(head.removesuffix(SAVING))
        if step is None:
            continue
        if not slash and head.endswith(SAVING):
            whole = {f"{step}/{manifest_lib.FILE}", f"{step}/{RETIRED}"} & names
            half = () if whole else (n for n in names if n.startswith(f"{step}/"))
            bucket.delete(folder / n for n in half)
            bucket.delete([folder / name])
        elif tail == RETIRED:
            _finish_retiring(folder / head, step)


def _delete_half(folder: epath.Path, step: int) -> None:
    half = folder / str(step)
    is_whole = any((half / name).exists() for name in (manifest_lib.FILE, RETIRED))
    for left in [*([] if is_whole else [half]), *_unfinished(folder, step)]:
        if left.exists() and not os.path.islink(left):
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
    if files.is_remote(path):  # a rename is a copy and a deletion
        bucket.copy(path / manifest_lib.FILE, path / RETIRED)
        bucket.delete([path / manifest_lib.FILE])
    else:
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
    if files.is_remote(path):
        there = set(bucket.listing(path))
        bucket.delete([path / manifest_lib.FILE])  # where the copy was made, and nothing else
        bucket.delete(path / name for name in sorted(there & set(names)))
        bucket.delete([path / RETIRED])
        return
    (path / manifest_lib.FILE).unlink(missing_ok=True)
    own = re.compile(
        rf"\.({re.escape(manifest_lib.FILE)}|{RETIRED})\.[0-9a-f]{{32}}{files.PARTIAL}"
    )
    for entry in list(files.entries(path)):
        if entry.name in names or own.fullmatch(entry.name):
            entry.path.unlink()
    parents = {"/".join(n.split("/")[:i]) for n in names for i in range(1, n.count("/") + 1)}
    for name in sorted(parents, key=len, reverse=True):
        with contextlib.suppress(OSError):  # not empty, or gone
            os.rmdir(path / name)
    (path / RETIRED).unlink()
    with contextlib.suppress(OSError):  # it contains a file of the user's
        os.rmdir(path)
