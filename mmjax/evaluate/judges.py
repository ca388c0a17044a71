"""Judges of generated values, independent of the model under evaluation.

A judge may learn from real data, and scores answers against examples. Its own accuracy is its score
on the real values of held-out examples, which is the highest score that it can measure.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np

import mmjax
from mmjax.data.source import Source
from mmjax.modalities.modality import Example, Modality
from mmjax.modalities.structured import Metadata

__all__ = ["BoxIoU", "Judge", "MaskIoU", "SameMetadata"]

MOVED = ("DigitReader", "SpeechReader", "Words")  # to mmjax.demo.judges
Score = Callable[[Sequence[Any], Sequence[Example]], np.ndarray]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Judge:
    """Base of all judges.

    `metric` is the suffix of metric names. `chance` is the score of a guess; None = measured.
    """

    metric: ClassVar[str]
    chance: ClassVar[float | None] = None

    def ready(self, source: Source, modality: Modality) -> Score:
        """Learns from the source; returns a function (answers, examples) -> scores [N] in 0..1.

        Args:
          modality: that of the answers, which are raw values or come from its `decode`.
        """
        raise NotImplementedError(f"{type(self).__name__} must define ready().")


@dataclasses.dataclass(frozen=True, kw_only=True)
class MaskIoU(Judge):
    """Intersection over union of masks; 1 if both are empty."""

    metric: ClassVar[str] = "iou"

    def ready(self, source, modality):
        field = modality.field or "mask"

        def score(answers, examples):
            return np.array([mask_iou(a, e[field]) for a, e in zip(answers, examples, strict=True)])

        return score


def mask_iou(a: np.ndarray, b: np.ndarray) -> float:
    """IoU of two masks of equal size, bool or in 0..1 (above 0.5 is inside)."""
    inside_a, inside_b = np.ravel(a) > 0.5, np.ravel(b) > 0.5
    union = (inside_a | inside_b).sum()
    return float((inside_a & inside_b).sum() / union) if union else 1.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class BoxIoU(Judge):
    """Mean intersection over union of boxes matched in order; an unmatched box counts 0."""

    metric: ClassVar[str] = "iou"

    def ready(self, source, modality):
        field = modality.field or "boxes"

        def score(answers, examples):
            pairs = zip(answers, examples, strict=True)
            return np.array([box_iou(_sorted(a), _sorted(e[field])) for a, e in pairs])

        return score


def _sorted(boxes: Any) -> np.ndarray:
    """Boxes (N, 4), nearest to the origin first, in the order of `Boxes`."""
    boxes_N4 = np.reshape(boxes, (-1, 4))
    return boxes_N4[np.argsort(np.hypot(boxes_N4[:, 0], boxes_N4[:, 1]), kind="stable")]


def box_iou(a_N4: np.ndarray, b_N4: np.ndarray) -> float:
    """IoU of boxes x0, y0, x1, y1 matched in order, over the larger count; no boxes = 1."""
    most, both = max(len(a_N4), len(b_N4)), min(len(a_N4), len(b_N4))
    if not most:
        return 1.0
    a, b = np.asarray(a_N4[:both], np.float64), np.asarray(b_N4[:both], np.float64)
    inside = np.maximum(np.minimum(a[:, 2:], b[:, 2:]) - np.maximum(a[:, :2], b[:, :2]), 0)
    shared = inside.prod(axis=1)
    union = (a[:, 2:] - a[:, :2]).prod(axis=1) + (b[:, 2:] - b[:, :2]).prod(axis=1) - shared
    return float(np.divide(shared, union, out=np.ones(both), where=union > 0).sum() / most)


@dataclasses.dataclass(frozen=True, kw_only=True)
class SameMetadata(Judge):
    """Share of the example's named numbers that the answer has, in the same bin of the schema."""

    metric: ClassVar[str] = "right"

    def ready(self, source, modality):
        if not isinstance(modality, Metadata):
            raise ValueError(f"SameMetadata: {type(modality).__name__} is no Metadata.")
        field = modality.field or "metadata"

        def score(answers, examples):
            shares = []
            for answer, example in zip(answers, examples, strict=True):
                real: Mapping[str, Any] = example[field]
                bins = {k: modality.schema[k].bin(v) for k, v in real.items()}
                same = [
                    k in answer and modality.schema[k].bin(answer[k]) == b for k, b in bins.items()
                ]
                shares.append(np.mean(same))
            return np.array(shares)

        return score


def __getattr__(name: str) -> Any:
    """What has moved, by its old name for one release."""
    return mmjax.moved_name(name, "mmjax.evaluate.judges", "mmjax.demo.judges", MOVED)
