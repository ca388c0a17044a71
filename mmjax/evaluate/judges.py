"""Judges of generated values, independent of the model that is judged.

A judge learns from real data what it must, and scores answers against examples. Its own accuracy
is its score of the real values of held-out examples; no model can be told to be better than that.
"""

from __future__ import annotations

import dataclasses
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np

from mmjax.config import ranges
from mmjax.data import toyworld
from mmjax.data.source import Source
from mmjax.modalities.modality import Example, Modality
from mmjax.modalities.structured import Metadata

__all__ = ["BoxIoU", "DigitReader", "Judge", "MaskIoU", "SameMetadata", "SpeechReader", "Words"]

Score = Callable[[Sequence[Any], Sequence[Example]], np.ndarray]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Judge:
    """Base of all judges.

    `metric` ends the names of metrics. `chance` is the score of a guess; None = to be measured.
    """

    metric: ClassVar[str]
    chance: ClassVar[float | None] = None

    def ready(self, source: Source, modality: Modality) -> Score:
        """Learns from the source; gives (answers, examples) -> scores [N] in 0..1.

        Args:
          modality: of the answers, which are what its `decode` gives, or raw values.
        """
        raise NotImplementedError(f"{type(self).__name__} must define ready().")


@dataclasses.dataclass(frozen=True, kw_only=True)
class DigitReader(Judge):
    """Reads a picture of two digits: nearest neighbours of each half among the train digits.

    Fields:
      neighbours: that vote. examples: of the train split, whose digits are learned.
    """

    metric: ClassVar[str] = "read"
    chance: ClassVar[float | None] = 0.01  # of 100 numbers
    neighbours: ranges.Count = 5
    examples: ranges.Count = 2000

    def __post_init__(self):
        ranges.check(self)

    def reader(self, source: Source) -> Callable[[Sequence[np.ndarray]], np.ndarray]:
        """Pictures (8, 16) or (8, 16, 1), uint8 or 0..1 -> numbers int [N]."""
        from sklearn.neighbors import KNeighborsClassifier

        records = source.open("train")
        known = [records[i] for i in range(min(self.examples, len(records)))]
        halves = _halves([e["image"] for e in known])
        digits = np.array([divmod(e["number"], 10) for e in known]).reshape(-1)
        halves, first = np.unique(halves, axis=0, return_index=True)  # a digit is in many examples
        model = KNeighborsClassifier(self.neighbours).fit(halves, digits[first])

        def read(pictures: Sequence[np.ndarray]) -> np.ndarray:
            tens_units = model.predict(_halves(pictures)).reshape(-1, 2)
            return tens_units @ np.array([10, 1])

        return read

    def ready(self, source, modality):
        return _match(self.reader(source))


def _halves(pictures: Sequence[np.ndarray]) -> np.ndarray:
    """Left and right halves in turn, as rows in 0..1: float32 (2 N, 64)."""
    rows = []
    for picture in pictures:
        gray = np.asarray(picture).reshape(8, 16)
        gray = gray / 255 if gray.dtype == np.uint8 else gray
        rows += [gray[:, :8].reshape(-1), gray[:, 8:].reshape(-1)]
    return np.array(rows, np.float32)


@dataclasses.dataclass(frozen=True, kw_only=True)
class SpeechReader(Judge):
    """Hears a number: linear discriminants of the clip's loud part, stretched to one size.

    Learns the clips of a split by the train voices; its accuracy is that on the new voices.

    Fields:
      split: learned clips. size: frames and bands that a clip is stretched to.
      quiet: level in decibels below which the ends of a clip are cut off.
      shrinkage: of the covariance.
    """

    metric: ClassVar[str] = "recognised"
    chance: ClassVar[float | None] = 0.01  # of 100 numbers
    split: str = "val"  # of all numbers, which train does not hold
    size: tuple[ranges.Count, ranges.Count] = (20, 20)
    quiet: ranges.Finite = -35.0
    shrinkage: ranges.Fraction = 0.1

    def __post_init__(self):
        ranges.check(self)

    def reader(self, source: Source, modality: Modality) -> Callable[[Sequence[Any]], np.ndarray]:
        """Decibels (frames, bands), or waveforms (samples,) -> numbers int [N]."""
        from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

        records = source.open(self.split)
        known = [records[i] for i in range(len(records))]
        model = LinearDiscriminantAnalysis(solver="lsqr", shrinkage=self.shrinkage)
        sounds = np.array([self._features(e["audio"], modality) for e in known])
        model.fit(sounds, [e["number"] for e in known])

        def read(clips: Sequence[np.ndarray]) -> np.ndarray:
            return np.asarray(model.predict(np.array([self._features(c, modality) for c in clips])))

        return read

    def ready(self, source, modality):
        return _match(self.reader(source, modality))

    def _features(self, clip: np.ndarray, modality: Modality) -> np.ndarray:
        """Bands over time less most of their mean, which is of the voice and the room."""
        if np.ndim(clip) == 1:
            piece = modality.encode(clip)
            assert piece is not None
            clip = modality.decode(piece)
        loud = np.flatnonzero(clip.max(axis=1) > self.quiet)
        clip = clip[loud[0] : loud[-1] + 1] if len(loud) else clip
        stretched = _stretch(_stretch(clip, self.size[0]).T, self.size[1]).T
        return (stretched - 0.7 * stretched.mean(axis=0)).reshape(-1)


def _stretch(rows: np.ndarray, count: int) -> np.ndarray:
    """`count` rows at equal distances, interpolated linearly."""
    at = np.linspace(0, len(rows) - 1, count)
    below = at.astype(int)
    above, part = np.minimum(below + 1, len(rows) - 1), (at - below)[:, None]
    return rows[below] * (1 - part) + rows[above] * part


@dataclasses.dataclass(frozen=True, kw_only=True)
class Words(Judge):
    """Exact text: the number in the words of one of the languages, whichever it is.

    Compared in Unicode's composed form (NFC), without spaces around it.
    """

    metric: ClassVar[str] = "exact"
    chance: ClassVar[float | None] = 0.01  # of 100 numbers

    def ready(self, source, modality):
        known = {
            toyworld.words(number, language): number
            for number in range(100)
            for language in toyworld.LANGUAGES
        }

        def read(texts: Sequence[str]) -> np.ndarray:
            return np.array([known.get(unicodedata.normalize("NFC", t).strip(), -1) for t in texts])

        return _match(read)


@dataclasses.dataclass(frozen=True, kw_only=True)
class MaskIoU(Judge):
    """Intersection over union of masks; both empty = 1."""

    metric: ClassVar[str] = "iou"

    def ready(self, source, modality):
        field = modality.field or "mask"

        def score(answers, examples):
            return np.array([mask_iou(a, e[field]) for a, e in zip(answers, examples, strict=True)])

        return score


def mask_iou(a: np.ndarray, b: np.ndarray) -> float:
    """Of two masks, bool or shares in 0..1 (more than a half is inside), (8, 16) or (8, 16, 1)."""
    inside_a, inside_b = np.ravel(a) > 0.5, np.ravel(b) > 0.5
    union = (inside_a | inside_b).sum()
    return float((inside_a & inside_b).sum() / union) if union else 1.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class BoxIoU(Judge):
    """Mean intersection over union of boxes matched in order; one without its match counts 0."""

    metric: ClassVar[str] = "iou"

    def ready(self, source, modality):
        field = modality.field or "boxes"

        def score(answers, examples):
            pairs = zip(answers, examples, strict=True)
            return np.array([box_iou(_sorted(a), _sorted(e[field])) for a, e in pairs])

        return score


def _sorted(boxes: Any) -> np.ndarray:
    """Boxes (N, 4), nearest to the origin first, as `Boxes` says them."""
    boxes_N4 = np.reshape(boxes, (-1, 4))
    return boxes_N4[np.argsort(np.hypot(boxes_N4[:, 0], boxes_N4[:, 1]), kind="stable")]


def box_iou(a_N4: np.ndarray, b_N4: np.ndarray) -> float:
    """Of boxes x0, y0, x1, y1 matched in order, over the larger number of boxes; none = 1."""
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
    """Share of the example's named numbers that are said, each in the bin of the schema."""

    metric: ClassVar[str] = "right"

    def ready(self, source, modality):
        if not isinstance(modality, Metadata):
            raise ValueError(f"SameMetadata: {type(modality).__name__} is no Metadata.")
        field = modality.field or "metadata"

        def score(answers, examples):
            shares = []
            for said, example in zip(answers, examples, strict=True):
                real: Mapping[str, Any] = example[field]
                bins = {k: modality.schema[k].bin(v) for k, v in real.items()}
                same = [k in said and modality.schema[k].bin(said[k]) == b for k, b in bins.items()]
                shares.append(np.mean(same))
            return np.array(shares)

        return score


def _match(read: Callable[[Sequence[Any]], np.ndarray]) -> Score:
    def score(answers, examples):
        return (read(answers) == np.array([e["number"] for e in examples])).astype(float)

    return score
