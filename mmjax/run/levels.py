"""What the scores of a run are compared to: chance, and simple methods that need no model.

`evals/<evaluator>/baselines.json` keeps them: they are the same for every checkpoint of a run.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from mmjax import config, console, errors, files

if TYPE_CHECKING:
    from mmjax.experiment import Evaluator
    from mmjax.run.view import View

__all__ = ["FILE", "chance", "is_loss", "lines", "of", "read", "rows", "verdict"]

FILE = "baselines.json"
SHOWN = 16  # rows of an evaluator that are printed
REPEATED = 0.9  # what nearest neighbours reach, if no less anywhere, on records of train
VALUE = "value"  # of the run itself, beside the levels
Levels = dict[str, dict[str, float]]  # by method, then by metric
# What it means to be no better than a method, the most telling one first.
MEANING = {
    "chance": "nothing has been learnt",
    "majority": "the classes have not been learnt",
    "constant": "one answer for all is as good",
    "ridge": "no more has been learnt than a linear map of raw features gives",
    "nearest": "looking up the most similar train record is as good",
}
REMEDY = (
    "train longer (total_steps), look whether train and val part (mmjax report), and whether the"
    " records fit each other (mmjax data check)"
)


def of(view: View, name: str, evaluator: Evaluator, scores: Mapping[str, float]) -> Levels:
    """The levels of an evaluator's scores, by method; kept in the folder of the view.

    Only one process calls it. What cannot be computed is said and left out.
    """
    own = view.split == view.program.experiment.data.eval_split
    folder = view.folder / "evals" / (name if own else f"{name}.{view.split}")  # type: ignore[operator]
    key = _key(view, evaluator)
    kept = _read(folder / FILE)
    if kept.get("key") == key:
        return known(kept)
    found: Levels = {}
    try:
        guess = evaluator.chance(view)
        found["chance"] = {m: c for m in scores if (c := chance(guess, m)) is not None}
        found |= evaluator.baselines(view, dict(scores))
    except (ValueError, errors.BadDataError) as error:
        console.say(f"{name}: no baselines: {error}")
    found = {method: numbers for method, numbers in found.items() if numbers}
    if found:
        files.make_folder(folder)
        files.write_json(folder / FILE, {"key": key, "levels": found})
    return found


def _key(view: View, evaluator: Evaluator) -> str:
    """Fingerprint of what the levels depend on."""
    source = getattr(evaluator, "source", None) or view.source
    data = ""
    with contextlib.suppress(NotImplementedError):
        data = source.fingerprint()
    experiment = view.program.experiment
    modalities = {name: config.to_json(m) for name, m in experiment.modalities.items()}
    split = [experiment.data.train_split, view.split]
    return config.fingerprint([config.to_json(evaluator), modalities, split, data])


def _read(path: Any) -> dict[str, Any]:
    with contextlib.suppress(files.DamagedFile, errors.StorageError):
        return files.read_json(path)
    return {}


def known(document: Any) -> Levels:
    """The levels of a file, without what is no number."""
    found = document.get("levels") if isinstance(document, dict) else None
    kinds = (int, float)
    return {
        str(method): {m: v for m, v in numbers.items() if type(v) in kinds}
        for method, numbers in (found if isinstance(found, dict) else {}).items()
        if isinstance(numbers, dict)
    }


def read(folder: Any) -> Levels:
    """The levels that are kept in `evals/<evaluator>/`; empty if there are none."""
    return known(_read(folder / FILE))


def chance(levels: dict[str, float], metric: str) -> float | None:
    """Chance level of a metric, by the longest part of its name that has one."""
    hits = [key for key in levels if metric == key or f"_{key}" in metric]
    return levels[max(hits, key=len)] if hits else None


def rows(scores: Mapping[str, float], levels: Levels) -> dict[str, dict[str, float]]:
    """Metrics with what they are compared to: of simple methods, or else of chance."""
    simple = [m for m in scores if any(m in own for n, own in levels.items() if n != "chance")]
    chosen = simple or [m for m in scores if m in levels.get("chance", {})]
    return {
        m: {VALUE: scores[m]} | {name: own[m] for name, own in levels.items() if m in own}
        for m in chosen
    }


def lines(title: str, table: Mapping[str, Mapping[str, float]]) -> list[str]:
    """A table for a terminal, then what it says in words."""
    methods = list(dict.fromkeys(n for row in table.values() for n in row if n != VALUE))
    head = [title, "this run", *methods]
    shown = list(table.items())[:SHOWN]
    cell = lambda row, name: f"{row[name]:.3f}" if name in row else ""
    body = [[f"  {m}", *(cell(row, n) for n in (VALUE, *methods))] for m, row in shown]
    below = [", ".join(_below(metric, row)) for metric, row in shown]
    widths = [max(len(line[i]) for line in (head, *body)) for i in range(len(head))]
    fit = lambda line: "  ".join(
        text.ljust(w) if i == 0 else text.rjust(w)
        for i, (text, w) in enumerate(zip(line, widths, strict=True))
    )
    out = [fit(head)]
    out += [
        fit(line) + (f"  not above {names}" if names else "")
        for line, names in zip(body, below, strict=True)
    ]
    more = len(table) - len(shown)
    return [*out, *([f"  and {more} more"] if more else []), *verdict(table)]


def is_loss(metric: str) -> bool:
    """Whether less of a metric is better."""
    return metric.rpartition("/")[2].endswith("loss")


def _below(metric: str, row: Mapping[str, float]) -> list[str]:
    """The methods that a score is not better than."""
    sign = -1 if is_loss(metric) else 1
    levels = {name: value for name, value in row.items() if name != VALUE}
    return [name for name, value in levels.items() if sign * row[VALUE] <= sign * value]


def verdict(table: Mapping[str, Mapping[str, float]]) -> list[str]:
    """In words, where a run is not better than chance or a simple method, and what to do."""
    methods = list(dict.fromkeys(n for row in table.values() for n in row if n != VALUE))
    compared = {n: [m for m, row in table.items() if n in row] for n in methods}
    lost = {n: [m for m in compared[n] if n in _below(m, table[m])] for n in methods}
    out = []
    found = [row["nearest"] for row in table.values() if "nearest" in row]
    if found and min(found) >= REPEATED:
        out.append(
            "nearest neighbours in train answer nearly all of it: does the split repeat train?"
            " (mmjax data check)"
        )
    for name in (*(n for n in MEANING if n in methods), *(n for n in methods if n not in MEANING)):
        if lost[name]:
            some = ", ".join(lost[name][:3]) + (", ..." if len(lost[name]) > 3 else "")
            count = f"in {len(lost[name])} of {len(compared[name])} scores ({some})"
            means = f": {MEANING[name]}" if name in MEANING else ""
            out.append(f"not above {name} {count}{means}")
    if any(lost.values()):
        return [*out, f"what to do: {REMEDY}"]
    above = [f"above {', '.join(methods)} in all {len(table)} scores"] if methods else []
    return [*out, *above]
