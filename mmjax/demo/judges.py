"""Judges of the numbers set: what number is drawn, said or written, read without the model."""

from __future__ import annotations

import dataclasses
import unicodedata
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import numpy as np

from mmjax.config import ranges
from mmjax.data.source import Source
from mmjax.demo import numbers
from mmjax.evaluate.judges import BoxIoU, Judge, MaskIoU, SameMetadata, Score
from mmjax.modalities.modality import Modality

__all__ = ["NUMBERS_JUDGES", "NUMBERS_SPLITS", "DigitReader", "SpeechReader", "Words"]


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
            numbers.words(number, language): number
            for number in range(100)
            for language in numbers.LANGUAGES
        }

        def read(texts: Sequence[str]) -> np.ndarray:
            return np.array([known.get(unicodedata.normalize("NFC", t).strip(), -1) for t in texts])

        return _match(read)


def _match(read: Callable[[Sequence[Any]], np.ndarray]) -> Score:
    def score(answers, examples):
        return (read(answers) == np.array([e["number"] for e in examples])).astype(float)

    return score


# Of `Generation` over the numbers set, by the raw field of a modality.
NUMBERS_JUDGES: dict[str, Judge] = {
    "text": Words(),
    "image": DigitReader(),
    "audio": SpeechReader(),
    "mask": MaskIoU(),
    "boxes": BoxIoU(),
    "metadata": SameMetadata(),
}
NUMBERS_SPLITS = {"audio": "{split}_new_voice"}  # sound that is given is of voices never heard
