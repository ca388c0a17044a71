"""`mmjax eval` and `mmjax embed`."""

from __future__ import annotations

from typing import Any

import numpy as np
from etils import epath

from mmjax import config, console, files
from mmjax.config.code_file import Code
from mmjax.run import checkpoint, evaluations, levels, load
from mmjax.run.levels import chance

__all__ = ["chance", "embed", "evaluate"]


def evaluate(path: str, *, split: str | None = None, code: Code = None) -> dict[str, Any]:
    """Runs the evaluators of a run's config on a checkpoint.

    Writes `evals/<name>/<step>.json` (`<name>.<split>` if the split is not the config's) and
    `scores.json` {name: {value, chance, <simple method>}}; returns the latter.
    """
    view = load.load(path, code=code, split=split or "")
    folder, _ = checkpoint.parse_path(path)
    evaluators = view.program.experiment.evaluators
    if not evaluators:
        raise config.ConfigError(f"{folder}: its config has no evaluators; add some and train on.")
    if view.split not in view.source.splits():
        raise config.ConfigError(
            f"--split {view.split}: the source has {', '.join(view.source.splits())}."
        )
    scores: dict[str, Any] = {}
    own = view.split == view.program.experiment.data.eval_split
    for name, evaluator in evaluators.items():
        metrics = evaluator.run(view)
        target = folder / "evals" / (name if own else f"{name}.{view.split}")
        files.make_folder(target)
        files.write_json(target / f"{view.step}.json", metrics)
        compared = levels.of(view, name, evaluator, metrics)
        for metric, value in metrics.items():
            scores[metric] = {"value": round(value, 4), "chance": None}
            for method, numbers in compared.items():
                if metric in numbers:
                    scores[metric][method] = round(numbers[metric], 4)
    for line in evaluations.left_out(view.bad):
        console.say(line)
    files.write_json(epath.Path(folder) / "scores.json", scores)
    return scores


def embed(path: str, given: dict[str, list[str]], *, code: Code = None):
    """Unit embeddings [N, D] by modality.

    `given`: texts, or files that the modality can read (`Modality.read`).
    """
    view = load.load(path, code=code)
    modalities = view.program.experiment.modalities
    out: dict[str, np.ndarray] = {}
    for name, items in given.items():
        if name not in modalities:
            raise config.ConfigError(
                f"--given {name}=...: the model has no such modality; there are"
                f" {', '.join(modalities)}."
            )
        values = [modalities[name].read(item) for item in items]
        out[name] = view.embed(name, [view.example(name, value) for value in values])
    return out
