"""The files of a run, read without its classes and without building its model."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import logging
import math
import os
import re
from collections.abc import Iterator
from typing import Any, TypeVar

from etils import epath

from mmjax import files
from mmjax.evaluate import samples
from mmjax.files import confined
from mmjax.run import checkpoint, experts, goodput, metrics, records
from mmjax.run import levels as levels_lib

_log = logging.getLogger("mmjax")

Row = dict[str, Any]
Points = list[tuple[float, float]]
Part = TypeVar("Part")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run:
    """The content of a workdir.

    Fields:
      config: the tree in `config.json`. info: as from `mmjax info`. rows: of `metrics.jsonl`.
      scores: of `scores.json`. evals: evaluator (`<name>` or `<name>.<split>`) -> step -> metrics.
      samples: entries of the newest `samples/<step>/`, files by their paths.
      experts: the document of `experts.json`.
      levels: evaluator -> what chance and simple methods reach, by method, then by metric.
    """

    folder: epath.Path
    config: dict[str, Any]
    info: dict[str, Any]
    rows: list[Row]
    scores: dict[str, Any]
    evals: dict[str, dict[int, dict[str, float]]]
    samples: list[dict[str, Any]]
    experts: dict[str, Any] = dataclasses.field(default_factory=dict)
    levels: dict[str, levels_lib.Levels] = dataclasses.field(default_factory=dict)

    @property
    def name(self) -> str:
        """The name of the run."""
        return str(self.config.get("name") or self.folder.name)

    @property
    def last_start(self) -> dict[str, Any]:
        """The entry of the last start in `run.json`."""
        starts = self.info.get("run", {}).get("starts") or [{}]
        return starts[-1]

    @functools.cached_property
    def names(self) -> list[str]:
        """Names of all logged metrics, in order of appearance."""
        return list(dict.fromkeys(name for row in self.rows for name in row))

    def points(self, name: str) -> Points:
        """(step, value) of a metric at each log."""
        return [(r["step"], r[name]) for r in self.rows if r.get(name) is not None]

    def matching(self, pattern: str) -> Iterator[tuple[re.Match[str], Points]]:
        """Metrics whose whole name matches, with their points."""
        for name in self.names:
            match = re.fullmatch(pattern, name)
            if match and (points := self.points(name)):
                yield match, points

    def total(self, pattern: str) -> float:
        """Sum of the matching metrics over all logs."""
        return sum(y for _, points in self.matching(pattern) for _, y in points)

    @functools.cached_property
    def tables(self) -> dict[str, dict[str, float]]:
        """Evaluator -> metrics of its newest step, on the split of `scores.json`."""
        newest = {name: steps[max(steps)] for name, steps in self.evals.items()}
        wanted = {m: _part(self.scores, m, dict).get("value") for m in self.scores}

        def agrees(table: dict[str, float]) -> bool:
            return all(wanted.get(m) == round(v, 4) for m, v in table.items())

        out: dict[str, dict[str, float]] = {}
        for name, table in newest.items():
            base = self._evaluator(name)
            if base not in out or agrees(table):
                out[base] = table
        return out

    def simple(self, evaluator: str) -> levels_lib.Levels:
        """What simple methods reach on the split of `tables`, by method."""
        table = self.tables.get(evaluator, {})
        shown = (n for n, steps in self.evals.items() if steps[max(steps)] is table)
        found = self.levels.get(next(shown, evaluator), {})
        return {method: own for method, own in found.items() if method != "chance"}

    def _evaluator(self, name: str) -> str:
        known = self.config.get("evaluators", {})
        return next((k for k in known if name == k or name.startswith(f"{k}.")), name)

    def chance(self, metric: str) -> float | None:
        """Chance level of a score."""
        found = _numbers(_part(self.scores, metric, dict)).get("chance")
        kept = (own.get("chance", {}).get(metric) for own in self.levels.values())
        return found if found is not None else next((v for v in kept if v is not None), None)

    @functools.cached_property
    def seconds(self) -> dict[str, float]:
        """Where the time of all starts went; empty if the metrics do not tell."""
        return {name: s for name, s in goodput.budget(self.rows).items() if s > 0}


def read(workdir: str) -> Run:
    """Reads everything about a run.

    Raises:
      NoCheckpoint: the folder is not the workdir of a run.
    """
    info = checkpoint.info(workdir)
    folder = epath.Path(info["workdir"])
    return Run(
        folder=folder,
        config=_config(folder),
        info=info,
        rows=_rows(folder),
        scores=_scores(folder / "scores.json"),
        evals=_evals(folder / "evals"),
        samples=_samples(folder / "samples", folder),
        experts=_json(folder / experts.FILE),
        levels={p.name: found for p in _inside(folder / "evals") if (found := levels_lib.read(p))},
    )


def _json(path: epath.Path) -> dict[str, Any]:
    """A JSON object; empty if it is missing or truncated."""
    with contextlib.suppress(files.DamagedFile):
        return files.read_json(path)
    return {}


def _rows(folder: epath.Path) -> list[Row]:
    with contextlib.suppress(files.DamagedFile):
        return metrics.read(folder)[0]
    return []


def _config(folder: epath.Path) -> dict[str, Any]:
    """The tree in `config.json`; empty if it was modified."""
    try:
        return records.read_config(folder)["config"]
    except files.DamagedFile as error:
        _log.warning("%s is left out: %s", folder / "config.json", error)
        return {}


def _scores(path: epath.Path) -> dict[str, Any]:
    return {m: n for m, s in _json(path).items() if isinstance(s, dict) and (n := _numbers(s))}


def _numbered(folder: epath.Path, suffix: str = "") -> dict[int, epath.Path]:
    """Children whose names are steps."""
    names = {p: p.name.removesuffix(suffix) for p in _inside(folder)}
    return {int(n): p for p, n in sorted(names.items()) if n.isdecimal()}


def _inside(folder: epath.Path) -> list[epath.Path]:
    """What is in a folder; [] for anything else."""
    is_there = files.is_remote(folder) or folder.is_dir()
    return files.children(folder, "*") if is_there else []


def _is_folder(path: epath.Path) -> bool:
    return files.kind(path) == "folder" if files.is_remote(path) else path.is_dir()


def _evals(folder: epath.Path) -> dict[str, dict[int, dict[str, float]]]:
    evals = {}
    for child in _inside(folder):
        steps = {s: _json(p) for s, p in _numbered(child, ".json").items()}
        steps = {s: _numbers(m) for s, m in steps.items()}
        if any(steps.values()):
            evals[child.name] = {s: m for s, m in steps.items() if m}
    return evals


def _numbers(metrics: dict[str, Any]) -> dict[str, float]:
    kinds = (int, float)
    return {m: v for m, v in metrics.items() if type(v) in kinds and math.isfinite(v)}


def _samples(folder: epath.Path, root: epath.Path) -> list[dict[str, Any]]:
    """Entries of the newest step and of its subfolders; values are file paths, or texts.

    Files behind links that lead out of the run are skipped.
    """
    steps = {s: p for s, p in _numbered(folder).items() if _is_folder(p)}
    if not steps:
        return []
    newest = steps[max(steps)]
    inside = [child for child in _inside(newest) if _is_folder(child)]
    return [entry for place in (newest, *inside) for entry in _entries(place, root)]


def _entries(folder: epath.Path, root: epath.Path) -> list[dict[str, Any]]:
    document = _json(folder / samples.FILE) if _is_file(folder / samples.FILE, root) else {}
    entries = list(_part(document, "entries", list))
    given = _part(_part(document, "request", dict), "given", dict)  # from `mmjax generate`
    given = {m: _part(v, "value", str) for m, v in given.items()}
    made = [_part(sample, "files", dict) for sample in _part(document, "samples", list)]
    entries += [{"given": given, "wanted": files} for files in made]

    def value(raw: Any) -> Any:
        text = str(raw)
        is_name = text and "/" not in text and "\\" not in text
        return folder / text if is_name and _is_file(folder / text, root) else text

    def side(entry: dict[str, Any], name: str) -> dict[str, Any]:
        return {m: value(v) for m, v in _part(entry, name, dict).items()}

    sides = ("given", "wanted", "right")
    entries = [e | {n: side(e, n) for n in sides} for e in entries if type(e) is dict]
    entries = [e if e["right"] else {n: v for n, v in e.items() if n != "right"} for e in entries]
    return [e | {"score": _part(e, "score", dict)} if "score" in e else e for e in entries]


def _part(value: Any, name: str, kind: type[Part]) -> Part:
    """A part of a JSON value; empty if it is absent or of another type."""
    part = value.get(name) if isinstance(value, dict) else None
    return part if isinstance(part, kind) else kind()


def _is_file(path: epath.Path, root: epath.Path) -> bool:
    """Whether the path is a regular file inside the run."""
    if files.is_remote(path):
        return files.exists(path) and not _is_folder(path)
    with contextlib.suppress(OSError, confined.Refused):
        os.close(confined.descriptor(path, root))
        return True
    return False
