"""What a run or a checkpoint is, and how a run is doing: `mmjax info`."""

from __future__ import annotations

import datetime
import logging
import math
import time
from typing import Any

from mmjax import files
from mmjax.errors import NoCheckpoint
from mmjax.run import choose as choose_lib
from mmjax.run import goodput, keeping, levels, lock, metrics, records

__all__ = ["info", "progress"]

SHOWN = ("streams", "tokenizers", "mesh", "cursors", "journal")
_log = logging.getLogger("mmjax")


def info(path: str, verify: bool = False) -> dict[str, Any]:
    """Describes a run or checkpoint: step, parameters by part, modalities, tokenizers, lineage.

    Raises:
      NoCheckpoint: the path holds no checkpoint, or (with `verify`) a damaged one.
    """
    workdir, _ = choose_lib.parse_path(path)
    if not files.exists(workdir / "config.json"):
        raise NoCheckpoint(
            f"{workdir}: holds no config.json, so it is not the workdir of a run; give a PATH as"
            " WORKDIR, WORKDIR@STEP or WORKDIR@best:METRIC."
        )
    try:
        run = records.read_run(workdir)
    except files.DamagedFile as error:
        run = {}
        _log.warning("%s is left out: %s", workdir / "run.json", error)
    there = keeping.steps(workdir / "checkpoints")
    out: dict[str, Any] = {"workdir": str(workdir), **progress(workdir, run, there)}
    out |= {"checkpoints": there, "run": run}
    if not there:
        return out
    workdir, step, manifest, _ = choose_lib.choose(path)
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
        bad = {s: choose_lib.damaged(workdir, s) for s in there}
        out["damaged"] = {s: wrong for s, wrong in bad.items() if wrong}
    return out


def progress(workdir: Any, run: dict[str, Any], saved: list[int]) -> dict[str, Any]:
    """How a run is doing, by what it has written: also while it runs, here or elsewhere.

    Args:
      run: the content of run.json. saved: steps of its checkpoints.
    """
    try:
        rows = metrics.read(workdir)[0]
    except files.DamagedFile:
        rows = []
    try:
        total = int(records.read_config(workdir)["config"].get("total_steps", 0))
    except (files.DamagedFile, TypeError, ValueError):
        total = 0
    step = max([row["step"] for row in rows] + saved, default=0)
    out: dict[str, Any] = {"state": _state(workdir, step, total)}
    out["progress"] = f"step {step:,} of {total:,}"
    rates = [row.get("throughput/steps_per_second") for row in rows]
    rate = next((r for r in reversed(rates) if r), 0.0)
    if rate:
        out["steps_per_second"] = round(rate, 3)
    if rate and step < total and out["state"].startswith("running"):
        out["remaining"] = _span((total - step) / rate)
    times = {row["step"]: row["time"] for row in rows if row.get("time")}  # the last of each step
    if times:
        out["last_row"] = f"{_span(time.time() - max(times.values()))} ago"
    if saved:
        ago = f", {_span(time.time() - times[saved[-1]])} ago" if saved[-1] in times else ""
        out["last_checkpoint"] = f"step {saved[-1]:,}{ago}"
    parts = goodput.budget(rows)
    if parts:
        out["goodput"] = f"{goodput.goodput(parts):.1%} of {_span(sum(parts.values()))}"
        out["time"] = {name: _span(seconds) for name, seconds in parts.items() if seconds}
    if scores := _scores(workdir):
        out["scores"] = scores
    last = (run.get("starts") or [{}])[-1]
    if last:
        count = last.get("processes", 1)
        hosts = f"{count} processes, " if count != 1 else ""
        out["hosts"] = f"{hosts}{last.get('devices', 'devices are not known')}"
        out["starts"] = len(run["starts"])
    return out


def _scores(workdir: Any) -> dict[str, str]:
    """The newest scores that have something to be compared to."""
    out = {}
    for folder in files.children(workdir / "evals", "*"):
        steps = [int(p.stem) for p in files.children(folder, "*.json") if p.stem.isdecimal()]
        try:
            found = files.read_json(folder / f"{max(steps)}.json") if steps else {}
        except files.DamagedFile:
            continue
        numbers = {m: float(v) for m, v in found.items() if type(v) in (int, float)}
        for metric, row in list(levels.rows(numbers, levels.read(folder)).items())[: levels.SHOWN]:
            other = ", ".join(f"{n} {v:.3f}" for n, v in row.items() if n != levels.VALUE)
            out[f"{folder.name}/{metric}"] = f"{row[levels.VALUE]:.3f} ({other})"
    return out


def _state(workdir: Any, step: int, total: int) -> str:
    holder = lock.holder(workdir)
    if holder:
        who = "pid {pid} on {host} since {time}".format(**{**lock.UNKNOWN, **holder})
        if lock.is_dead(holder):
            return f"killed (it was {who}); the same command goes on"
        return f"running ({who})"
    return "done" if total and step >= total else "stopped; the same command goes on"


def _span(seconds: float) -> str:
    """1.2 s, or hours, minutes and seconds."""
    if abs(seconds) < 60:
        return f"{seconds:.1f} s"
    return str(datetime.timedelta(seconds=round(seconds)))
