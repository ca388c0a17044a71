"""Judges of maps of pixels, of structures and of words, by the measures of their fields.

Each scores an answer against the real value of the example, in 0..1, of which 1 is all right.
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Callable
from typing import Annotated, Any, ClassVar

import numpy as np

from mmjax.config import ranges
from mmjax.evaluate.judges import Judge
from mmjax.modalities.keypoints import Keypoints
from mmjax.modalities.modality import Modality
from mmjax.modalities.segmentation import Segmentation
from mmjax.modalities.table import Table

__all__ = [
    "PCK",
    "Covering",
    "DepthDelta",
    "EdgeF1",
    "FlowWithin",
    "GraphF1",
    "MeanIoU",
    "NormalsWithin",
    "PaletteF1",
    "SameCells",
    "SameText",
    "Within",
    "WordF1",
]


def _each(modality: Modality, name: str, score: Callable[[Any, Any], float]):
    """The score of each answer beside the real value as the modality sees it."""
    field = modality.field or name

    def scores(answers, examples):
        pairs = zip(answers, examples, strict=True)
        return np.array([score(a, modality.given(e[field])) for a, e in pairs], np.float64)

    return scores


def _back(modality: Modality, real: Any) -> Any:
    """A real value in the form, the order and the steps of answers."""
    piece = modality.encode(real)
    if piece is None:
        raise ValueError(f"{type(modality).__name__}: {real!r} is absent and cannot be judged.")
    return modality.decode(piece)


def _f1(hits: float, made: float, wanted: float) -> float:
    """Of `hits` among so many made and so many wanted; nothing of nothing is 1."""
    return 2 * hits / (made + wanted) if made + wanted else 1.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class MeanIoU(Judge):
    """Mean intersection over union of the classes that are in the answer or in the real map.

    Pixels whose real class is `ignore` of the modality do not count.
    """

    metric: ClassVar[str] = "miou"

    def ready(self, source, modality):
        if not isinstance(modality, Segmentation):
            raise ValueError(f"MeanIoU: {type(modality).__name__} is no Segmentation.")

        def score(answer, real):
            seen = real != modality.ignore
            a, b = np.asarray(answer)[seen], np.asarray(real)[seen]
            found = [
                ((a == c) & (b == c)).sum() / ((a == c) | (b == c)).sum() for c in np.union1d(a, b)
            ]
            return float(np.mean(found)) if found else 1.0

        return _each(modality, "semseg", score)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Covering(Judge):
    """How well the instances of the answer cover the real ones: the best overlap (IoU) of each, by
    its pixels (Arbelaez et al. 2011). Their numbers do not matter; background, 0, is a part too."""

    metric: ClassVar[str] = "covering"

    def ready(self, source, modality):
        def score(answer, real):
            a, b, total = np.ravel(answer), np.ravel(real), 0.0
            for part in np.unique(b):
                inside = b == part
                shared = collections.Counter(a[inside].tolist())
                union = lambda c, inside=inside: (inside | (a == c)).sum()
                total += inside.sum() * max(n / union(c) for c, n in shared.items())
            return total / len(b)

        return _each(modality, "instances", score)


@dataclasses.dataclass(frozen=True, kw_only=True)
class DepthDelta(Judge):
    """Share of pixels whose depth is wrong by less than a factor: delta of Eigen et al. 2014.

    Pixels without a real measurement do not count; those without an answer are wrong.
    """

    factor: Annotated[float, ranges.Range(1, has_low=False)] = 1.25
    metric: ClassVar[str] = "delta1"

    def __post_init__(self):
        ranges.check(self)

    def ready(self, source, modality):
        def score(answer, real):
            seen = np.isfinite(real) & (real > 0)
            a, b = np.asarray(answer, np.float64)[seen], np.asarray(real, np.float64)[seen]
            with np.errstate(divide="ignore", invalid="ignore"):
                ratio = np.maximum(a / b, b / a)
            return float(np.mean(ratio < self.factor)) if len(b) else 1.0  # NaN is not below

        return _each(modality, "depth", score)


@dataclasses.dataclass(frozen=True, kw_only=True)
class NormalsWithin(Judge):
    """Share of pixels whose normal is wrong by less than an angle; those without one do not count.

    Fields:
      degrees: 11.25, 22.5 and 30 are usual.
    """

    degrees: Annotated[float, ranges.Range(0, 180, has_low=False)] = 22.5
    metric: ClassVar[str] = "within"

    def __post_init__(self):
        ranges.check(self)

    def ready(self, source, modality):
        least = np.cos(np.deg2rad(self.degrees))

        def score(answer, real):
            seen = np.linalg.norm(real, axis=2) > 0
            cosine = (np.asarray(answer) * real).sum(axis=2)[seen]
            return float(np.mean(cosine > least)) if len(cosine) else 1.0

        return _each(modality, "normals", score)


@dataclasses.dataclass(frozen=True, kw_only=True)
class FlowWithin(Judge):
    """Share of pixels whose flow ends within so many pixels of the real end; without a real
    measurement they do not count."""

    pixels: ranges.Positive = 1.0
    metric: ClassVar[str] = "within"

    def __post_init__(self):
        ranges.check(self)

    def ready(self, source, modality):
        def score(answer, real):
            seen = np.isfinite(real).all(axis=2)
            error = np.linalg.norm(np.asarray(answer) - real, axis=2)[seen]
            return float(np.mean(error < self.pixels)) if len(error) else 1.0

        return _each(modality, "flow", score)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Within(Judge):
    """Share of numbers that are wrong by no more than a tolerance: of pictures in 0..1, of bands of
    a sound in decibels, of samples in their unit. What is longer than the other is wrong.

    Fields:
      field: key of the real value, where the modality names none.

    >>> Within(tolerance=6.0).metric
    'within'
    """

    tolerance: ranges.Positive = 0.1
    field: str = "image"
    metric: ClassVar[str] = "within"

    def __post_init__(self):
        ranges.check(self)

    def ready(self, source, modality):
        def score(answer, real):
            b = np.asarray(_back(modality, real), np.float64)
            if np.asarray(answer).dtype.kind != "f" or np.shape(answer)[1:] != b.shape[1:]:
                answer = _back(modality, answer)  # it is no answer yet, but a raw value
            a = np.asarray(answer, np.float64)
            both = min(len(a), len(b))
            near = np.abs(a[:both] - b[:both]) <= self.tolerance
            return float(near.sum() / max(a.size, b.size)) if max(a.size, b.size) else 1.0

        return _each(modality, self.field, score)


@dataclasses.dataclass(frozen=True, kw_only=True)
class EdgeF1(Judge):
    """F1 of edge pixels, which count as found within a number of pixels in both directions."""

    pixels: ranges.Natural = 1
    metric: ClassVar[str] = "f1"

    def __post_init__(self):
        ranges.check(self)

    def ready(self, source, modality):
        def score(answer, real):
            a, b = np.asarray(answer) > 0.5, np.asarray(real) > 0.5
            if not a.any() or not b.any():
                return float(a.any() == b.any())
            precision = (a & self._near(b)).sum() / a.sum()
            recall = (b & self._near(a)).sum() / b.sum()
            return float(2 * precision * recall / max(precision + recall, 1e-12))

        return _each(modality, "edges", score)

    def _near(self, edges_HW: np.ndarray) -> np.ndarray:
        """Whether an edge lies within reach of a pixel."""
        wide, side = np.pad(edges_HW, self.pixels), 2 * self.pixels + 1
        around = np.lib.stride_tricks.sliding_window_view(wide, (side, side))
        return np.asarray(around.any(axis=(2, 3)))


@dataclasses.dataclass(frozen=True, kw_only=True)
class PCK(Judge):
    """Share of joints that are right: near enough where they are visible, and not there where they
    are not (PCK, Yang and Ramanan 2013). People are matched by the number of joints that are right,
    the best first; unmatched ones are wrong.

    Fields:
      distance: as a share of the picture.
    """

    distance: ranges.Positive = 0.05
    metric: ClassVar[str] = "pck"

    def __post_init__(self):
        ranges.check(self)

    def ready(self, source, modality):
        if not isinstance(modality, Keypoints):
            raise ValueError(f"PCK: {type(modality).__name__} is no Keypoints.")

        def score(answer, real):
            a, b = (np.asarray(_back(modality, v), np.float64) for v in (answer, real))
            if not len(a) + len(b):
                return 1.0
            seen_a, seen_b = a[:, None, :, 2] > 0, b[None, :, :, 2] > 0
            near = np.linalg.norm(a[:, None, :, :2] - b[None, :, :, :2], axis=3) < self.distance
            right = ((seen_a == seen_b) & (near | ~seen_b)).sum(axis=2)  # of each pair of people
            total = 0
            for _ in range(min(right.shape)):
                pair = np.unravel_index(right.argmax(), right.shape)
                total += right[pair]
                right[pair[0]], right[:, pair[1]] = -1, -1
            return float(total / (max(len(a), len(b)) * len(modality.joints)))

        return _each(modality, "keypoints", score)


@dataclasses.dataclass(frozen=True, kw_only=True)
class PaletteF1(Judge):
    """F1 of colours, each taken once, that lie within a distance of a real one.

    Fields:
      distance: in RGB, of whose sides 1 is full brightness.
    """

    distance: ranges.Positive = 0.1
    metric: ClassVar[str] = "f1"

    def __post_init__(self):
        ranges.check(self)

    def ready(self, source, modality):
        def score(answer, real):
            both = (_back(modality, v) for v in (answer, real))
            made, left = (list(np.reshape(c, (-1, 3)) / 255) for c in both)
            wanted, hits = len(left), 0
            for colour in made:
                gaps = [np.linalg.norm(colour - other) for other in left]
                if gaps and min(gaps) < self.distance:
                    left.pop(int(np.argmin(gaps)))
                    hits += 1
            return _f1(hits, len(made), wanted)

        return _each(modality, "palette", score)


@dataclasses.dataclass(frozen=True, kw_only=True)
class SameCells(Judge):
    """Share of the columns of a table whose cells are the same: names, and numbers by their bin."""

    metric: ClassVar[str] = "right"

    def ready(self, source, modality):
        if not isinstance(modality, Table):
            raise ValueError(f"SameCells: {type(modality).__name__} is no Table.")

        def score(answer, real):
            one, other = (_back(modality, cells) for cells in (answer, real))
            same = [one.get(name) == other.get(name) for name in modality.columns]
            return float(np.mean(same))

        return _each(modality, "table", score)


@dataclasses.dataclass(frozen=True, kw_only=True)
class GraphF1(Judge):
    """Mean of two F1: of nodes, as classes that may occur more than once, and of edges, as pairs of
    the numbers of their nodes."""

    metric: ClassVar[str] = "f1"

    def ready(self, source, modality):
        def score(answer, real):
            answer, real = _back(modality, answer), _back(modality, real)
            nodes = [collections.Counter(map(str, graph["nodes"])) for graph in (answer, real)]
            edges = [set(map(tuple, np.reshape(g["edges"], (-1, 2)))) for g in (answer, real)]
            of_nodes = _f1((nodes[0] & nodes[1]).total(), nodes[0].total(), nodes[1].total())
            return 0.5 * (of_nodes + _f1(len(edges[0] & edges[1]), *map(len, edges)))

        return _each(modality, "graph", score)


@dataclasses.dataclass(frozen=True, kw_only=True)
class SameText(Judge):
    """1 for the very text of the example, white space aside; of several, for any of them."""

    metric: ClassVar[str] = "exact"

    def ready(self, source, modality):
        def score(answer, real):
            texts = [real] if isinstance(real, str) else list(real)
            return float(str(answer).split() in [text.split() for text in texts])

        return _each(modality, "text", score)


@dataclasses.dataclass(frozen=True, kw_only=True)
class WordF1(Judge):
    """F1 of words, which may occur more than once; of several texts, of the nearest."""

    metric: ClassVar[str] = "words"

    def ready(self, source, modality):
        def score(answer, real):
            texts, made = [real] if isinstance(real, str) else list(real), _words(answer)
            found = [
                _f1((made & wanted).total(), made.total(), wanted.total())
                for wanted in map(_words, texts)
            ]
            return max(found, default=0.0)

        return _each(modality, "text", score)


def _words(text: Any) -> collections.Counter:
    return collections.Counter(str(text).lower().split())
