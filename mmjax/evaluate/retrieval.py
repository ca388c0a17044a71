"""Retrieval in the shared space."""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Iterator
from typing import Annotated, NamedTuple

import numpy as np

from mmjax.config import ranges
from mmjax.data.source import Source
from mmjax.evaluate import baselines, hits
from mmjax.evaluate.ranking import recall, reciprocal
from mmjax.experiment import Evaluator

__all__ = ["Retrieval"]


class Gallery(NamedTuple):
    """Queries and candidates by number of example, their similarities, and which are right."""

    queries: np.ndarray
    candidates: np.ndarray
    scores_QC: np.ndarray
    same_QC: np.ndarray


@dataclasses.dataclass(frozen=True, kw_only=True)
class Retrieval(Evaluator):
    """R@k and mean reciprocal rank in every direction, in galleries of consecutive examples.

    A query is a hit if a candidate with its identity is among the best k, or one with its text, or
    an example's with the text of the query: captions that repeat are the same. Ties are averaged
    over random orders, so a model that maps everything to one point scores at chance. Metrics:
    `<a>_to_<b>_R@<k>` and `<a>_to_<b>_MRR`, with `_<slice>` for the examples' slices (key `slices`)
    and `_<name>` for each of `splits`. A view with a folder writes hits and misses to
    `samples/<step>/`.

    Fields:
      modalities: at least two. gallery: candidates per query; a smaller split is one gallery.
      num_galleries: 0 = all.
      splits: suffix -> further split, where `{split}` stands for the evaluated one.
      source: of the examples; None = that of the first task.
      num_train: train records from which the baselines learn; 0 = no baselines.
      num_samples: hits, and as many misses, written for each direction.
    """

    modalities: tuple[str, ...]
    gallery: Annotated[int, ranges.Range(2)] = 100
    num_galleries: ranges.Natural = 0
    ks: tuple[ranges.Count, ...] = (1, 5)
    splits: dict[str, str] = dataclasses.field(default_factory=lambda: {"": "{split}"})
    source: Source | None = None
    num_train: ranges.Natural = 1000
    num_samples: ranges.Natural = 3

    def __post_init__(self):
        super().__post_init__()
        if len(self.modalities) < 2:
            raise ValueError(
                f"Retrieval: modalities={self.modalities} has fewer than two; name at least two."
            )

    def check(self, view):
        view = view.on(self.source)
        for a, b in itertools.combinations(self.modalities, 2):
            view.comparing(a, b)
        for split in self.splits.values():
            self._check_gallery(view, split.format(split=view.split))

    def _check_gallery(self, view, split: str) -> None:
        """One gallery is read, and the rest only where it lacks a pair."""
        pairs = list(itertools.combinations(self.modalities, 2))
        for limit in dict.fromkeys((self.gallery, self.num_galleries * self.gallery)):
            examples = view.examples(split, limit)
            has = self._present(view, examples)
            counts = {(a, b): int((has[a] & has[b]).sum()) for a, b in pairs}
            if min(counts.values()) >= 2:
                return
        (a, b), count = min(counts.items(), key=lambda pair: pair[1])
        raise ValueError(
            f"Retrieval: {count} of {len(examples)} examples of split {split!r} have {a!r} and"
            f" {b!r}, but a gallery needs two at least; give the split more records, or leave one"
            " of the two out of modalities."
        )

    def chance(self, view):
        view, levels = view.on(self.source), {}
        for suffix, split in self.splits.items():
            size = len(view.examples(split.format(split=view.split), self.gallery))
            end = f"_{suffix}" if suffix else ""
            levels |= {f"R@{k}{end}": min(k / max(size, 1), 1.0) for k in self.ks}
            levels[f"MRR{end}"] = float(np.mean(1 / np.arange(1, size + 1))) if size else 0.0
        return levels

    def run(self, view):
        view, metrics = view.on(self.source), {}
        chosen = hits.Hits(view, self, self.num_samples)
        for suffix, examples in self._examples(view):
            compare = _Compare(view, examples)
            present = self._present(view, examples)
            right = _Right(view, examples, present)
            for a, b in itertools.permutations(self.modalities, 2):
                galleries = list(self._galleries(examples, compare, right, present, a, b))
                self._report(metrics, f"{a}_to_{b}", suffix, examples, galleries)
                if suffix == next(iter(self.splits)):
                    chosen.add(a, b, examples, galleries)
        chosen.close()
        return metrics

    def baselines(self, view, scores):
        view = view.on(self.source)
        if not self.num_train or view.split == view.program.experiment.data.train_split:
            return {}
        learned = baselines.learn(view, self.modalities, self.num_train)
        found: dict[str, dict[str, float]] = {}
        for suffix, examples in self._examples(view, decoded=False):
            present, methods = learned.ranked(self.modalities, examples)
            right = _Right(view, examples, present)
            for method, compare in methods.items():
                own = found.setdefault(method, {})
                for a, b in itertools.permutations(self.modalities, 2):
                    if len(learned.both(a, b)) < baselines.FEW:
                        continue
                    galleries = list(self._galleries(examples, compare, right, present, a, b))
                    self._report(own, f"{a}_to_{b}", suffix, examples, galleries)
        shown = tuple(f"_{m}_{s}" if s else f"_{m}" for m in self._main for s in self.splits)
        return {
            method: {m: v for m, v in own.items() if m.endswith(shown) and np.isfinite(v)}
            for method, own in found.items()
        }

    @property
    def _main(self) -> tuple[str, ...]:
        """The measures that are compared to those of simple methods."""
        return (*(f"R@{k}" for k in self.ks[:1]), "MRR")

    def _examples(self, view, **how) -> Iterator[tuple[str, list]]:
        """Suffix and examples of each split."""
        limit = self.num_galleries * self.gallery or None
        for suffix, split in self.splits.items():
            yield suffix, view.examples(split.format(split=view.split), limit, **how)

    def _present(self, view, examples) -> dict[str, np.ndarray]:
        return {m: np.array([view.has(m, e) for e in examples], bool) for m in self.modalities}

    def _galleries(self, examples, compare, right, present, a, b) -> Iterator[Gallery]:
        size = min(self.gallery, len(examples))
        for start in range(0, len(examples) - size + 1, max(size, 1)):
            rows = np.arange(start, start + size)
            candidates, queries = rows[present[b][rows]], rows[present[a][rows]]
            if not len(candidates):
                continue
            scores = compare(a, b, queries, candidates)
            yield Gallery(queries, candidates, scores, right(a, b, queries, candidates))

    def _report(self, metrics, direction, suffix, examples, galleries):
        end = f"_{suffix}" if suffix else ""
        slices = sorted({s for e in examples for s in e.get("slices", ())})
        measures = {f"R@{k}": functools.partial(recall, k=k) for k in self.ks}
        for measure, of in {**measures, "MRR": reciprocal}.items():
            value = np.full(len(examples), np.nan)
            for g in galleries:
                score = of(g.scores_QC, g.same_QC)
                value[g.queries] = np.where(g.same_QC.any(1), score, np.nan)
            metrics[f"{direction}_{measure}{end}"] = float(np.nanmean(value))
            for name in slices:
                chosen = np.array([name in e.get("slices", ()) for e in examples])
                metrics[f"{direction}_{measure}{end}_{name}"] = float(np.nanmean(value[chosen]))


class _Right:
    """Which candidates are right for a query: those with its identity, and those where one of the
    two has a text that is the same."""

    def __init__(self, view, examples, present):
        number: dict[object, int] = {}
        own = (e.get("identity", (i, "of its own")) for i, e in enumerate(examples))
        self._identity_N = np.array([number.setdefault(key, len(number)) for key in own])
        self._texts = {m: _texts(view, m, examples, there) for m, there in present.items()}

    def __call__(self, a: str, b: str, queries: np.ndarray, candidates: np.ndarray) -> np.ndarray:
        same = np.zeros((len(queries), len(candidates)), bool)
        for number_N in (self._identity_N, self._texts[a], self._texts[b]):
            same |= number_N[queries][:, None] == number_N[candidates][None, :]
        return same


def _texts(view, modality: str, examples, present_N: np.ndarray) -> np.ndarray:
    """A number for each example, which those with an equal text of a modality share."""
    known: dict[str, int] = {}
    numbers = np.arange(len(examples))
    for i in np.flatnonzero(present_N).tolist():
        value = view.value(modality, examples[i])
        if isinstance(value, str):
            numbers[i] = known.setdefault(value, i)
    return numbers


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
