"""Retrieval and zero-shot classification in the shared space."""

from __future__ import annotations

import dataclasses
import itertools
from typing import Annotated

import numpy as np

from mmjax.config import ranges
from mmjax.data.source import Source
from mmjax.experiment import Evaluator


@dataclasses.dataclass(frozen=True, kw_only=True)
class Retrieval(Evaluator):
    """R@k in every direction between modalities, in galleries of consecutive examples.

    A query is a hit if a candidate with its identity is among the best k; ties are averaged over
    random orders, so a model that maps everything to one point scores at chance. Metrics:
    `<a>_to_<b>_R@<k>`, with `_<slice>` for the examples' slices (key `slices`) and `_<name>` for
    each of `splits`.

    Fields:
      modalities: at least two. gallery: candidates per query; a smaller split is one gallery.
      num_galleries: 0 = all.
      splits: suffix -> further split, where `{split}` stands for the evaluated one.
      source: of the examples; None = that of the first task.
    """

    modalities: tuple[str, ...]
    gallery: Annotated[int, ranges.Range(2)] = 100
    num_galleries: ranges.Natural = 0
    ks: tuple[ranges.Count, ...] = (1, 5)
    splits: dict[str, str] = dataclasses.field(default_factory=lambda: {"": "{split}"})
    source: Source | None = None

    def __post_init__(self):
        super().__post_init__()
        if len(self.modalities) < 2:
            raise ValueError(
                f"Retrieval: modalities={self.modalities} has fewer than two; name at least two."
            )

    def chance(self, view):
        view, levels = view.on(self.source), {}
        for suffix, split in self.splits.items():
            size = len(view.examples(split.format(split=view.split), self.gallery))
            end = f"_{suffix}" if suffix else ""
            levels |= {f"R@{k}{end}": min(k / max(size, 1), 1.0) for k in self.ks}
        return levels

    def run(self, view):
        view, metrics = view.on(self.source), {}
        for suffix, split in self.splits.items():
            limit = self.num_galleries * self.gallery or None
            examples = view.examples(split.format(split=view.split), limit)
            compare = _Compare(view, examples)
            present = {m: np.array([view.has(m, e) for e in examples]) for m in self.modalities}
            for a, b in itertools.permutations(self.modalities, 2):
                hits = self._direction(examples, compare, present, a, b)
                self._report(metrics, f"{a}_to_{b}", suffix, examples, hits)
        return metrics

    def _direction(self, examples, compare, present, a, b) -> dict[int, np.ndarray]:
        identity = np.array([e.get("identity", i) for i, e in enumerate(examples)])
        hits = {k: np.full(len(examples), np.nan) for k in self.ks}
        size = min(self.gallery, len(examples))
        for start in range(0, len(examples) - size + 1, max(size, 1)):
            rows = np.arange(start, start + size)
            candidates, queries = rows[present[b][rows]], rows[present[a][rows]]
            if not len(candidates):
                continue
            scores = compare(a, b, queries, candidates)
            same = identity[queries][:, None] == identity[candidates][None, :]
            for k in self.ks:
                hits[k][queries] = np.where(same.any(1), recall(scores, same, k), np.nan)
        return hits

    def _report(self, metrics, direction, suffix, examples, hits):
        end = f"_{suffix}" if suffix else ""
        slices = sorted({s for e in examples for s in e.get("slices", ())})
        for k, hit in hits.items():
            metrics[f"{direction}_R@{k}{end}"] = float(np.nanmean(hit))
            for name in slices:
                chosen = np.array([name in e.get("slices", ()) for e in examples])
                metrics[f"{direction}_R@{k}{end}_{name}"] = float(np.nanmean(hit[chosen]))


class _Compare:
    """Similarities of the examples of a view, embedded once for each modality and task."""

    def __init__(self, view, examples):
        self._view, self._examples = view, examples
        self._features: dict[tuple[str, str], np.ndarray] = {}

    def __call__(self, a: str, b: str, queries: np.ndarray, candidates: np.ndarray) -> np.ndarray:
        tasks = self._view.comparing(a, b)
        for name, task in tasks.items():
            if (name, task) not in self._features:
                self._features[name, task] = self._view.embed(name, self._examples, task=task)
        one, two = (self._features[name, tasks[name]] for name in (a, b))
        return self._view.similarity(tasks[a], one[queries], two[candidates])


def recall(scores_QC: np.ndarray, same_QC: np.ndarray, k: int) -> np.ndarray:
    """Probability [Q] that a positive is among the best k, with ties in random order."""
    best = np.max(np.where(same_QC, scores_QC, -np.inf), axis=1, keepdims=True)
    above = np.sum(scores_QC > best, axis=1)
    tied = np.sum(scores_QC == best, axis=1)
    positives = np.sum((scores_QC == best) & same_QC, axis=1)
    free = k - above  # places left for the tied candidates
    out = np.zeros(len(scores_QC))
    for q in range(len(out)):
        miss = 1.0
        for i in range(min(max(free[q], 0), tied[q])):
            others = tied[q] - positives[q] - i
            miss *= max(others, 0) / (tied[q] - i)
        out[q] = 1.0 - miss if free[q] > 0 else 0.0
    return out


@dataclasses.dataclass(frozen=True, kw_only=True)
class ZeroShot(Evaluator):
    """Classification by text prompts (CLIP): the class with the nearest mean prompt embedding.

    Fields:
      modalities: those to classify. text: the modality of the prompts.
      prompts: class identity -> texts; empty = `class_prompts()` of the evaluated source.
      limit: examples; 0 = all.
      source: of the examples; None = that of the first task.
    """

    modalities: tuple[str, ...]
    text: str = "text"
    prompts: dict[ranges.Natural, tuple[str, ...]] = dataclasses.field(default_factory=dict)
    limit: ranges.Natural = 0
    source: Source | None = None

    def _prompts(self, view) -> dict[int, tuple[str, ...]]:
        return self.prompts or view.source.class_prompts()

    def chance(self, view):
        return {"top1": 1.0 / len(self._prompts(view.on(self.source)))}

    def run(self, view):
        view = view.on(self.source)
        prompts = self._prompts(view)
        classes = sorted(prompts)
        flat = [view.example(self.text, text) for c in classes for text in prompts[c]]
        owner = np.array([i for i, c in enumerate(classes) for _ in prompts[c]])
        examples = view.examples(view.split, self.limit or None)
        metrics, prompted = {}, {}
        for name in self.modalities:
            chosen = [e for e in examples if view.has(name, e)]
            tasks = view.comparing(name, self.text)
            by = tasks[self.text]
            if by not in prompted:
                prompted[by] = view.embed(self.text, flat, task=by)
            own = view.embed(name, chosen, task=tasks[name])
            scores = _class_scores(view, tasks[name], own, prompted[by], owner)
            target = np.array([classes.index(e["identity"]) for e in chosen])
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
