"""Zero-shot classification in the shared space."""

from __future__ import annotations

import dataclasses

import numpy as np

from mmjax.config import ranges
from mmjax.data.source import Source
from mmjax.evaluate import baselines
from mmjax.evaluate.ranking import recall
from mmjax.experiment import Evaluator

__all__ = ["ZeroShot"]

MANY = 100  # records in which a class must turn up


@dataclasses.dataclass(frozen=True, kw_only=True)
class ZeroShot(Evaluator):
    """Classification by text prompts (CLIP): the class with the nearest mean prompt embedding.

    Fields:
      modalities: those to classify. text: the modality of the prompts.
      prompts: class identity -> texts; empty = `class_prompts()` of the evaluated source.
      classes: a `Label` among the modalities, whose names make the prompts and whose values are
        right; replaces prompts and identities. templates: `{}` stands for the name.
      limit: examples; 0 = all.
      source: of the examples; None = that of the first task.
      num_train: train records from which the baselines learn; 0 = no baselines.
    """

    modalities: tuple[str, ...]
    text: str = "text"
    prompts: dict[ranges.Natural, tuple[str, ...]] = dataclasses.field(default_factory=dict)
    classes: str = ""
    templates: tuple[str, ...] = ("{}",)
    limit: ranges.Natural = 0
    source: Source | None = None
    num_train: ranges.Natural = 1000

    def __post_init__(self):
        super().__post_init__()
        if self.classes and self.prompts:
            raise ValueError(
                f"ZeroShot: classes={self.classes!r} and prompts={self.prompts}; give one of them."
            )
        if not self.templates or not all("{}" in one for one in self.templates):
            raise ValueError(
                f"ZeroShot: templates={self.templates}; give texts with {{}} for the name."
            )

    def _prompts(self, view) -> dict[int, tuple[str, ...]]:
        if not self.classes:
            return self.prompts or view.source.class_prompts()
        names = getattr(view.program.experiment.modalities.get(self.classes), "names", ())
        if not names:
            raise ValueError(
                f"ZeroShot: classes={self.classes!r} is no modality with names of classes; name a"
                " Label(names=...)."
            )
        fill = lambda name: tuple(text.replace("{}", name) for text in self.templates)
        return {number: fill(name) for number, name in enumerate(names)}

    def _target(self, view, example) -> int:
        if not self.classes:
            return example["identity"]
        return view.program.experiment.modalities[self.classes].number(
            view.value(self.classes, example)
        )

    def check(self, view):
        view = view.on(self.source)
        for name in self.modalities:
            view.comparing(name, self.text)
        if not self._prompts(view):
            raise ValueError("ZeroShot: prompts is empty; give each class one text at least.")
        limit = min(self.limit or MANY, MANY)
        examples = [e for e in view.examples(view.split, limit) if self._has_class(view, e)]
        for name in self.modalities:
            if not any(view.has(name, e) for e in examples):
                raise ValueError(
                    f"ZeroShot: none of the first {limit} records of split {view.split!r} has a"
                    f" class and {name!r}; name another modality, or give the records both."
                )

    def _has_class(self, view, example) -> bool:
        return view.has(self.classes, example) if self.classes else "identity" in example

    def baselines(self, view, scores):
        view = view.on(self.source)
        if not self.num_train or view.split == view.program.experiment.data.train_split:
            return {}
        learned = baselines.learn(view, self.modalities, self.num_train)
        classes = sorted(self._prompts(view))
        number = {c: i for i, c in enumerate(classes)}
        of = lambda e: number.get(self._target(view, e), -1) if self._has_class(view, e) else -1
        known = np.array([of(e) for e in learned.examples])
        examples = view.examples(view.split, self.limit or None, decoded=False)
        found: dict[str, dict[str, float]] = {"majority": {}, "nearest": {}, "ridge": {}}
        for name in self.modalities:
            chosen = [e for e in examples if view.has(name, e) and of(e) >= 0]
            rows = np.flatnonzero(learned.raw[name].present_N & (known >= 0))
            if len(rows) < baselines.FEW or not chosen:
                continue
            right = np.array([of(e) for e in chosen])
            (x_QD, _), hot = learned.raw[name](view, chosen), np.eye(len(classes))
            likely = np.bincount(known[rows], minlength=len(classes)).argmax()
            mean = hot[known[rows]].mean(axis=0)
            mapped = x_QD @ learned.ridge(name, rows, hot[known[rows]] - mean) + mean
            answers = {
                "majority": np.full(len(right), likely),
                "nearest": known[learned.nearest(name, rows, x_QD)],
                "ridge": mapped.argmax(axis=1),
            }
            for method, answer in answers.items():
                found[method][f"{name}_top1"] = float(np.mean(answer == right))
        return found

    def chance(self, view):
        return {"top1": 1.0 / len(self._prompts(view.on(self.source)))}

    def run(self, view):
        view = view.on(self.source)
        prompts = self._prompts(view)
        classes = sorted(prompts)
        flat = [view.example(self.text, text) for c in classes for text in prompts[c]]
        owner = np.array([i for i, c in enumerate(classes) for _ in prompts[c]])
        examples = view.examples(view.split, self.limit or None)
        if self.classes:
            examples = [e for e in examples if view.has(self.classes, e)]
        metrics, prompted = {}, {}
        for name in self.modalities:
            chosen = [e for e in examples if view.has(name, e)]
            tasks = view.comparing(name, self.text)
            by = tasks[self.text]
            if by not in prompted:
                prompted[by] = view.embed(self.text, flat, task=by)
            own = view.embed(name, chosen, task=tasks[name])
            scores = _class_scores(view, tasks[name], own, prompted[by], owner)
            target = np.array([classes.index(self._target(view, e)) for e in chosen])
            same = np.arange(len(classes))[None, :] == target[:, None]
            metrics[f"{name}_top1"] = float(np.mean(recall(scores, same, 1)))
        return metrics


def _class_scores(view, task: str, own_NX, prompts_PX, owner_P) -> np.ndarray:
    """Similarity [N, C] to the prototype of each class's prompts, or the mean over its prompts."""
    classes = range(int(owner_P.max()) + 1)
    means = [view.prototype(task, prompts_PX[owner_P == c]) for c in classes]
    if all(mean is not None for mean in means):
        return view.similarity(task, own_NX, np.stack(means))
    scores_NP = view.similarity(task, own_NX, prompts_PX)
    return np.stack([scores_NP[:, owner_P == c].mean(1) for c in classes], axis=1)
