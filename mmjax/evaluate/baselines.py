"""What is reached without a model: nearest neighbours and ridge regression on raw features.

Raw features are small pictures, log-mel means, counted words and letters: what anyone has without
training. All is learned from a bounded number of records of the train split, in NumPy, and scored
on the galleries and by the metrics of the run itself.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import re
import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from mmjax import errors
from mmjax.data.source import BadRecord

__all__ = ["FEW", "Learned", "Raw", "Ridge", "learn"]

WIDTH = 512  # features of a modality at most
SIDE = 12  # of a small picture, or parts of a sound in time and in pitch
LETTERS = 2000  # of a text that are looked at
RUN = 50  # records that are read one after another, as files hold them together
FEW = 8  # records with both sides: fewer teach nothing
STRENGTHS = 10.0 ** np.arange(-5, 3)  # of the penalty, in mean eigenvalues
HELD = 500  # records on which the strength is chosen, each left out of the fit by its leverage

Compare = Callable[[str, str, np.ndarray, np.ndarray], np.ndarray]


def learn(view: Any, modalities: Sequence[str], count: int) -> Learned:
    """Raw features of at most `count` records of the train split, by modality.

    Records that cannot be read are left out: training counts them.
    """
    split = view.program.experiment.data.train_split
    view = dataclasses.replace(view, bad={})
    rows: dict[str, list[np.ndarray | None]] = {name: [] for name in modalities}
    examples = []
    numbers = spread(len(view.records(split)), count)
    with contextlib.suppress(errors.BadDataError):  # what was read so far is what there is
        for found in view.each(split, numbers, decoded=False):
            try:
                own = {name: features(view, name, found[0]) for name in modalities}
            except (ValueError, BadRecord):
                continue
            examples.append(found[0])
            for name, row in own.items():
                rows[name].append(row)
    is_text = lambda name: any(isinstance(view.value(name, e), str) for e in examples)
    raw = {name: Raw.of(name, rows[name], is_text(name)) for name in modalities}
    return Learned(view=view, raw=raw, examples=examples)


def spread(total: int, count: int) -> list[int]:
    """At most `count` of `total` records, in runs that are spread evenly over them: splits may be
    sorted, and single records of a file are slow to reach."""
    if total <= count:
        return list(range(total))
    runs = -(-count // RUN)
    starts = [total * i // runs for i in range(runs)]
    ends = [*starts[1:], total]
    each = count // runs
    return [n for a, b in zip(starts, ends, strict=True) for n in range(a, min(b, a + each))]


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Raw:
    """Raw features of a modality in the train records, centred; rows of absent values are zero.

    Fields:
      width: numbers of a value. kept: those that differ among the train records.
      weight: of each of these (the rarer a word, the more it weighs). mean: what was subtracted.
    """

    name: str
    width: int
    kept_D: np.ndarray
    rows_ND: np.ndarray
    present_N: np.ndarray
    weight_D: np.ndarray
    mean_D: np.ndarray

    @classmethod
    def of(cls, name: str, rows: Sequence[np.ndarray | None], is_text: bool) -> Raw:
        """Learns weights and means."""
        all_NW, present = _stacked(rows)
        kept = np.flatnonzero(all_NW[present].std(axis=0) > 0) if present.any() else np.arange(1)
        rows_ND = all_NW[:, kept]
        weight = np.ones(len(kept))
        if present.any() and is_text:
            weight = np.log((1 + present.sum()) / (1 + (rows_ND[present] > 0).sum(axis=0)))
        mean = (rows_ND[present] * weight).mean(axis=0) if present.any() else 0 * weight
        made = cls(
            name=name, width=all_NW.shape[1], kept_D=kept, rows_ND=rows_ND, present_N=present,
            weight_D=weight, mean_D=mean,
        )  # fmt: skip
        return dataclasses.replace(made, rows_ND=made._centred(rows_ND, present))

    def __call__(self, view: Any, examples: Sequence[Any]) -> tuple[np.ndarray, np.ndarray]:
        """Features [N, D] of other examples, and which of these have the modality."""
        rows, there = _stacked([features(view, self.name, e) for e in examples], self.width)
        return self._centred(rows[:, self.kept_D], there), there

    def _centred(self, rows_ND: np.ndarray, present_N: np.ndarray) -> np.ndarray:
        return np.where(present_N[:, None], rows_ND * self.weight_D - self.mean_D, 0.0)


def _stacked(rows: Sequence[np.ndarray | None], width: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Rows [N, D] float64 and which of them are there. Those of another width are absent."""
    width = width or next((len(row) for row in rows if row is not None), 1)
    rows = [row if row is not None and len(row) == width else None for row in rows]
    zero = np.zeros(width)
    stacked = np.array([zero if row is None else row for row in rows], np.float64)
    return stacked.reshape(-1, width), np.array([row is not None for row in rows], bool)


def features(view: Any, name: str, example: Any) -> np.ndarray | None:
    """At most `WIDTH` numbers of the raw value of a modality; None if absent."""
    value = view.value(name, example)
    if isinstance(value, str):
        return counted(value)
    modality = view.program.experiment.modalities[name]
    piece = None if value is None else modality.encode(value)
    if piece is None:
        return None
    if piece.ids_L is not None:
        spec = modality.spec(name)
        return np.bincount(piece.ids_L % WIDTH, minlength=min(spec.vocab_size, WIDTH))
    shown = piece.values_LP
    with contextlib.suppress(NotImplementedError, ValueError):
        decoded = modality.decode(piece)  # in its own shape: rows and columns, frames and bands
        shown = decoded if isinstance(decoded, np.ndarray) and decoded.ndim > 1 else shown
    return small(np.asarray(shown, np.float64))


def counted(text: str) -> np.ndarray:
    """Words and groups of three letters, counted by hash, of length 1."""
    text = text[:LETTERS].casefold()
    words = re.findall(r"\w+", text)
    padded = [f" {word} " for word in words] or [text]
    threes = [word[i : i + 3] for word in padded for i in range(max(len(word) - 2, 1))]
    numbers = [zlib.crc32(part.encode("utf-8", "replace")) % WIDTH for part in (*words, *threes)]
    counts = np.sqrt(np.bincount(numbers, minlength=WIDTH))
    return counts / max(np.linalg.norm(counts), 1e-12)


def small(value: np.ndarray) -> np.ndarray:
    """An array as few numbers: means over parts of its first two axes; of frames by bands also mean
    and deviation over time, since sounds begin when they like."""
    if value.size <= WIDTH:
        return value.ravel()
    parts = _means(_means(value, 0), 1).ravel()
    if value.ndim == 2:
        bands = _means(np.stack([value.mean(axis=0), value.std(axis=0)]), 1, WIDTH // 4)
        parts = np.concatenate([parts, bands.ravel()])
    return parts if len(parts) <= WIDTH else _means(parts, 0, WIDTH)


def _means(value: np.ndarray, axis: int, parts: int = SIDE) -> np.ndarray:
    """Means over so many even parts of an axis, which stays as it is if it is shorter."""
    size = value.shape[axis]
    if size <= parts:
        return value
    edges = np.arange(parts) * size // parts
    widths = np.diff(np.append(edges, size))
    shape = [-1 if i == axis else 1 for i in range(value.ndim)]
    return np.add.reduceat(value, edges, axis=axis) / widths.reshape(shape)


class Ridge:
    """Ridge regression in float64 from centred features [N, D], by the eigenvectors of X'X."""

    def __init__(self, x_ND: np.ndarray):
        self._x = x_ND
        values, self._vectors = np.linalg.eigh(x_ND.T @ x_ND)
        self._values = np.maximum(values, 0.0)
        self._turned = x_ND @ self._vectors

    def fit(self, y_NM: np.ndarray) -> np.ndarray:
        """Weights [D, M], by the penalty with the least error on records that are left out."""
        count, held = len(self._x), slice(None, None, -(-len(self._x) // HELD))
        unit = max(self._values.sum() / max(min(self._x.shape), 1), 1e-12)
        target = self._turned.T @ y_NM
        best, weights = np.inf, np.zeros_like(target)
        for strength in STRENGTHS * unit:
            shrunk = target / (self._values + strength)[:, None]
            leverage = (self._turned[held] ** 2 / (self._values + strength)).sum(axis=1) + 1 / count
            residual = (y_NM[held] - self._turned[held] @ shrunk) / (1 - leverage)[:, None].clip(
                1e-6
            )
            error = float(np.mean(residual**2))
            if error < best:
                best, weights = error, shrunk
        return self._vectors @ weights


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Learned:
    """Raw features of train records, and what is learned from them.

    Fields:
      raw: by modality. examples: the train records.
    """

    view: Any
    raw: Mapping[str, Raw]
    examples: Sequence[Any]

    def both(self, a: str, b: str) -> np.ndarray:
        """Numbers of the train records that have two modalities."""
        return np.flatnonzero(self.raw[a].present_N & self.raw[b].present_N)

    @functools.cached_property
    def _fits(self) -> dict[tuple[str, bytes], Ridge]:
        return {}

    def ridge(self, name: str, rows: np.ndarray, y_NM: np.ndarray) -> np.ndarray:
        """Weights [D, M] from the features of a modality in some train records."""
        key = (name, rows.tobytes())
        if key not in self._fits:
            self._fits[key] = Ridge(self.raw[name].rows_ND[rows])
        return self._fits[key].fit(y_NM)

    def nearest(self, name: str, rows: np.ndarray, x_QD: np.ndarray) -> np.ndarray:
        """The train record, among `rows`, that is nearest to each query."""
        return rows[np.argmax(unit(x_QD) @ unit(self.raw[name].rows_ND[rows]).T, axis=1)]

    def ranked(
        self, modalities: Sequence[str], examples: Sequence[Any]
    ) -> tuple[dict[str, np.ndarray], dict[str, Compare]]:
        """Which examples have each modality; and, by method, similarities of queries in one
        modality to candidates in another.

        A method turns the query into features of the other modality: those of the train record
        that is nearest, or a linear map of the query's.
        """
        both = {name: self.raw[name](self.view, examples) for name in modalities}
        own = {name: rows for name, (rows, _) in both.items()}

        @functools.cache
        def nearest(a: str, b: str) -> np.ndarray:
            return self.raw[b].rows_ND[self.nearest(a, self.both(a, b), own[a])]

        @functools.cache
        def ridge(a: str, b: str) -> np.ndarray:
            rows = self.both(a, b)
            return own[a] @ self.ridge(a, rows, self.raw[b].rows_ND[rows])

        def compare(made: Callable[[str, str], np.ndarray]) -> Compare:
            return lambda a, b, queries, candidates: (
                unit(made(a, b)[queries]) @ unit(own[b][candidates]).T
            )

        methods = {"nearest": compare(nearest), "ridge": compare(ridge)}
        return {name: there for name, (_, there) in both.items()}, methods


def unit(x_ND: np.ndarray) -> np.ndarray:
    """Rows of length 1; those of length 0 stay."""
    return x_ND / np.maximum(np.linalg.norm(x_ND, axis=1, keepdims=True), 1e-12)
