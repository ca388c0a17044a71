"""Reading for `mmjax data check`: each record once, by its raw values and as the model gets it."""

from __future__ import annotations

import array
import collections
import dataclasses
import time
from collections.abc import Mapping
from typing import Any

import numpy as np

from mmjax import console
from mmjax.data import measure
from mmjax.data.measure import Lengths, Measuring
from mmjax.data.reader import Reader
from mmjax.data.source import BadRecord, Records, Source, key_of
from mmjax.modalities.modality import Modality
from mmjax.typing import Piece, Vocabulary

__all__ = ["Encoded", "Reading", "padding", "read"]

SHOWN = 24  # records on the page, of the split to train on; a third of them of others
KINDS = 1000  # of raw values, that are told apart
KEYS = 1000  # of bad records, by reason, that are kept


@dataclasses.dataclass
class Encoded:
    """What becomes of the values of a stream.

    Fields:
      kinds: number of raw values by their type and shape. tokens: of each value. cut: values that
        are longer than their room.
    """

    kinds: collections.Counter[str]
    tokens: array.array
    cut: int = 0


@dataclasses.dataclass(kw_only=True)
class Reading:
    """A split that was read.

    Fields:
      bad: keys of bad records, by reason, the first KEYS of each. details: of the first of them.
      shown: raw values and pieces of some records, by key.
      seconds: of processor time, for reading and encoding all.
    """

    split: str
    records: Records
    measuring: Measuring
    modalities: Mapping[str, Modality]
    streams: dict[str, Encoded]
    num_bad: collections.Counter[str]
    bad: dict[str, list[str]]
    details: dict[str, str]
    shown: dict[str, tuple[dict[str, Any], dict[str, Piece | None]]]
    seconds: float = 0.0

    @property
    def read(self) -> int:
        """Records that were read."""
        return self.measuring.read

    def add(self, row: int, reader: Reader, is_shown: bool) -> None:
        """Reads, measures and encodes a record."""
        example, error = {}, None
        try:
            example = self.records[row]
        except BadRecord as bad:
            error = bad
        self.measuring.add(row, None if error else example)
        try:
            if error:
                raise error
            pieces = reader.read(row, tuple(self.streams)).pieces
        except BadRecord as bad:
            self.num_bad[bad.reason] += 1
            self.details.setdefault(bad.reason, bad.detail)
            if self.num_bad[bad.reason] <= KEYS:
                self.bad.setdefault(bad.reason, []).append(key_of(self.records, row))
            return
        for name, piece in pieces.items():
            if piece is None:
                continue
            found, modality = self.streams[name], self.modalities[name]
            kind = _kind(example[modality.field or name])
            if kind in found.kinds or len(found.kinds) < KINDS:
                found.kinds[kind] += 1
            found.tokens.append(piece.length)
            found.cut += piece.num_cut > 0
        if is_shown:
            self.shown[key_of(self.records, row)] = example, pieces


def read(
    source: Source,
    split: str,
    modalities: Mapping[str, Modality],
    most: int | None,
    is_train: bool,
) -> Reading:
    """Reads a split, or at most so many of its records. Raises ValueError."""
    records = _Once(source.open(split))
    rows = measure.evenly(len(records), most or max(1, len(records)))
    made = Reading(
        split=split,
        records=records,
        measuring=Measuring(modalities, len(rows)),
        modalities=modalities,
        streams={name: Encoded(collections.Counter(), array.array("l")) for name in modalities},
        num_bad=collections.Counter(),
        bad={},
        details={},
        shown={},
    )
    reader = Reader(
        source=_Opened(records=records),
        split=split,
        modalities=modalities,
        vocabulary=Vocabulary(tuple(m.spec(name) for name, m in modalities.items())),
        max_bad_fraction=1.0,
        cache_bytes=0,
    )
    bar = console.Progress(len(rows), 0, True, name=f"reading {split}")
    room = SHOWN if is_train else SHOWN // 3
    every = max(1, len(rows) // room)
    began = time.process_time()
    try:
        for count, row in enumerate(rows, 1):
            made.add(row, reader, is_shown=count % every == 0 and len(made.shown) < room)
            bar.advance(count)
    finally:
        bar.close()
    made.seconds = time.process_time() - began
    return made


def padding(reading: Reading, name: str) -> tuple[float, float]:
    """Share of the slots of a stream that are empty: where it is present, and over all records."""
    found, spec = reading.streams[name], reading.modalities[name].spec(name)
    count = len(found.tokens)
    filled = sum(found.tokens) / spec.max_tokens
    sizes = reading.measuring.sizes(name)
    if "filled" in sizes and count:  # a grid that is padded within
        filled *= Lengths.of(sizes["filled"]).mean
    return 1 - filled / max(count, 1), 1 - filled / max(reading.read, 1)


class _Once:
    """An open split that keeps the last record, for two who read it one after the other."""

    def __init__(self, records: Records):
        self._records, self._last = records, (-1, {})

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> dict[str, Any]:
        if self._last[0] != index:
            self._last = index, self._records[index]
        return self._last[1]

    def key(self, index: int) -> str:
        return key_of(self._records, index)


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Opened(Source):
    """A split that is open already."""

    records: Any

    def open(self, split: str) -> Records:
        del split
        return self.records


def _kind(value: Any) -> str:
    if isinstance(value, bytes):
        return "bytes"
    if isinstance(value, np.ndarray):
        return f"{value.dtype} {value.shape if value.ndim > 1 else (value.ndim and '(n,)')}"
    return type(value).__name__
