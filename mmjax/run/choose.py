"""Chooses a checkpoint of a workdir: the newest intact one unless the PATH names another. Damaged
ones are reported and skipped; nothing is modified."""

from __future__ import annotations

import concurrent.futures
import hashlib
import logging
import re
from collections.abc import Callable
from typing import Any, NamedTuple

from etils import epath

from mmjax import files
from mmjax.errors import NoCheckpoint
from mmjax.files import bucket
from mmjax.run import keeping
from mmjax.run import manifest as manifest_lib

__all__ = [
    "Chosen",
    "best_step",
    "choose",
    "damaged",
    "hash_files",
    "newest",
    "parse_path",
]

NAMED = 10  # checkpoints that an error names
_log = logging.getLogger("mmjax")


class Chosen(NamedTuple):
    """An intact checkpoint, and the newer ones that are damaged."""

    workdir: epath.Path
    step: int
    manifest: dict[str, Any]
    passed_over: dict[int, str]  # step -> what is wrong


def parse_path(path: str) -> tuple[epath.Path, str]:
    """`WORKDIR`, `WORKDIR@STEP` or `WORKDIR@best:METRIC` to (workdir, selector).

    A folder that exists is a workdir, whatever its name.
    """
    text = str(files.given(path))
    if "@" not in text or files.exists(epath.Path(text)):
        return epath.Path(text), ""
    head, at, metric = text.partition("@best:")  # first, since a metric may contain an @
    if at:
        return epath.Path(head), f"best:{metric}"
    head, at, tail = text.rpartition("@")
    if at and tail.isascii() and tail.isdigit():
        return epath.Path(head), tail
    return epath.Path(text), ""


def choose(path: str) -> Chosen:
    """The checkpoint that a PATH names; by default the newest intact one.

    Raises:
      NoCheckpoint: no checkpoint is usable; gives the reason for each.
    """
    workdir, selector = parse_path(path)
    there = keeping.steps(workdir / "checkpoints")
    chosen = newest(workdir) if not selector else None
    if chosen is not None:
        return chosen
    if not there:
        raise NoCheckpoint(
            f"{workdir}: no complete checkpoint below {workdir / 'checkpoints'}; give the workdir"
            " of a run that has saved at least once."
        )
    if selector.startswith("best:"):
        step = best_step(workdir, selector[5:], there)
    else:
        step = int(selector)
        if step not in there:
            raise NoCheckpoint(f"{workdir}: no checkpoint of step {selector}; there are {there}.")
    wrong = damaged(workdir, step)
    if wrong:
        raise NoCheckpoint(
            f"{workdir}: checkpoint {step} is damaged ({wrong[0]}); choose another of {there} by"
            f" {workdir}@STEP."
        )
    return Chosen(workdir, step, read(workdir, step), {})


def newest(
    workdir: epath.Path, check: Callable[[epath.Path, int], list[str]] | None = None
) -> Chosen | None:
    """The newest intact checkpoint of a workdir; None if nothing was ever saved.

    Args:
      check: problems of a checkpoint; by default `damaged`.

    Raises:
      NoCheckpoint: there are checkpoints, but none is usable.
    """
    folder = workdir / "checkpoints"
    wrong = keeping.strange(folder)
    for step in reversed(keeping.steps(folder)):
        problems = (check or damaged)(workdir, step)
        if not problems:
            passed_over = {s: why for s, why in wrong.items() if s > step}
            for s, why in passed_over.items():
                _log.warning("checkpoint %s of %s is not used: %s", s, workdir, why)
            return Chosen(workdir, step, read(workdir, step), passed_over)
        more = f" and {len(problems) - 1} more" if len(problems) > 1 else ""
        wrong[step] = f"it is damaged: {problems[0]}{more}"
    if not wrong:
        return None
    told = [f"  {folder / str(s)}: {why}" for s, why in sorted(wrong.items(), reverse=True)]
    rest = [f"  and {len(told) - NAMED} more"] if len(told) > NAMED else []
    raise NoCheckpoint(
        f"{workdir}: none of its {len(told)} checkpoint(s) can be used:\n"
        + "\n".join([*told[:NAMED], *rest])
        + f"\nrestore them from a copy; to start from scratch, move {folder} away first."
    )


def read(workdir: epath.Path, step: int) -> dict[str, Any]:
    """The manifest of a step.

    Raises:
      NoCheckpoint: it is damaged, or written by a later version of mmjax.
    """
    folder = epath.Path(workdir) / "checkpoints" / str(step)
    try:
        return manifest_lib.read(folder, step)
    except manifest_lib.NewerFormat as error:
        raise NoCheckpoint(f"{error}") from error
    except ValueError as error:
        raise NoCheckpoint(f"{folder}: is damaged: {manifest_lib.FILE}: {error}.") from error


def damaged(workdir: epath.Path, step: int, part: int = 0, parts: int = 1) -> list[str]:
    """Problems of a checkpoint: files that are missing, or differ from their hash.

    Args:
      part, parts: of the files only those that fall to this part, where several share the work.

    Raises:
      NoCheckpoint: it was written by a later version of mmjax, so it may be intact.
    """
    folder = epath.Path(workdir) / "checkpoints" / str(step)
    try:
        if not files.is_remote(folder) and files.kind(folder) != "folder":
            return [f"it is a {files.kind(folder)}, not a folder"]
        wanted = dealt(manifest_lib.read(folder, step)["files"], part, parts)
        there = {e.name: e for e in files.entries(folder)}
    except manifest_lib.NewerFormat as error:
        raise NoCheckpoint(f"{error}") from error
    except (ValueError, OSError) as error:
        return [f"{manifest_lib.FILE}: {error}"]
    whole = [name for name in wanted if name in there and there[name].kind == "file"]
    hashes = hash_files({name: there[name].path for name in whole}, _hash_or_none)
    wrong = []
    for name, digest in wanted.items():
        if name not in there:
            wrong.append(f"{name} is missing")
        elif there[name].kind != "file":
            wrong.append(f"{name} is a {there[name].kind}")
        elif hashes[name] != digest:
            wrong.append(f"{name} differs from its hash")
    return wrong


def dealt(of: dict[str, Any], part: int, parts: int) -> dict[str, Any]:
    """Every so many-th file by name: those of one process of the save are neighbours."""
    return {name: of[name] for name in sorted(of)[part::parts]}


def hash_files(paths: dict[str, Any], hashed: Callable[[Any], str] | None = None) -> dict[str, str]:
    """SHA-256 of files by name; of a bucket several at a time."""
    hashed = hashed or hash_file
    if not any(map(files.is_remote, paths.values())):
        return {name: hashed(path) for name, path in paths.items()}
    with concurrent.futures.ThreadPoolExecutor(bucket.PARALLEL) as pool:
        return dict(zip(paths, pool.map(hashed, paths.values()), strict=True))


def _hash_or_none(path: Any) -> str:
    try:
        return hash_file(path)
    except OSError:  # it is gone, or a disk cannot read it
        return ""


def hash_file(path: Any) -> str:
    """SHA-256 of a file, read in chunks."""
    digest = hashlib.sha256()
    if files.is_remote(path):
        for chunk in bucket.chunks(path):
            digest.update(chunk)
        return digest.hexdigest()
    with epath.Path(path).open("rb") as file:
        while chunk := file.read(files.CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def best_step(workdir: epath.Path, metric: str, there: list[int]) -> int:
    """The saved step with the highest (for a loss: lowest) value of an evaluated metric.

    Raises:
      NoCheckpoint: the metric was not evaluated at any of them.
    """
    values: dict[int, float] = {}
    names: set[str] = set()
    suites = files.children(workdir / "evals", "*")
    for file in (file for suite in suites for file in files.children(suite, "*.json")):
        try:
            scores = files.read_json(file)
        except files.DamagedFile as error:
            _log.warning("%s is left out: %s", file, error)
            continue
        names |= set(scores)
        step, value = keeping.step_of(file.stem), scores.get(metric)
        if step in there and isinstance(value, (int, float)):
            values[step] = value
    if not values:
        raise NoCheckpoint(
            f"{workdir}: metric {metric!r} was not evaluated at a saved step; there are"
            f" {', '.join(sorted(names)[:12]) or 'none'}."
        )
    sign = -1.0 if "loss" in metric else 1.0
    return max(values, key=lambda step: sign * values[step])


def refuse_new(workdir: epath.Path) -> None:
    """Raises ValueError if a workdir's name looks like a step of another one, or like a pattern."""
    text = str(workdir)
    if set(text) & set("[]*?"):  # Orbax looks for its own files by `glob`, and does not find them
        raise ValueError(
            f"Workdir {text!r}: checkpoints cannot be saved below a folder whose name has one of"
            " [ ] * ?; choose a name without."
        )
    if not files.exists(workdir) and re.search(r"@(best:.*|[0-9]+)$", text):
        raise ValueError(
            f"Workdir {text!r}: reads as a checkpoint of {text.partition('@')[0]!r}; choose a name"
            " that does not end in @STEP or @best:METRIC."
        )
