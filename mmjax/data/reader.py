"""Reader: the encoded examples of one split of a source; bad records are named and counted."""

from __future__ import annotations

import collections
import contextlib
import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from mmjax import errors
from mmjax.config import ranges
from mmjax.data.source import BadRecord, Records, Source, key_of
from mmjax.data.tokens import TokenTable
from mmjax.modalities.modality import Modality, Unreadable
from mmjax.typing import Piece, Vocabulary

MIN_READ = 1000  # records read before the share of bad ones is meaningful
NAMED = 8  # records that an error names


class Encoded(NamedTuple):
    """One example as tokens."""

    pieces: dict[str, Piece | None]
    identity: int


def encode_sample(
    example: Mapping[str, Any],
    modalities: Mapping[str, Modality],
    streams: Sequence[str],
    vocabulary: Vocabulary,
) -> dict[str, Piece | None]:
    """The pieces of an example by stream; None if it has no value.

    Tokens beyond `max_tokens` are cut from the end and counted in the piece. Raises BadRecord for
    values that are not finite and for ids outside the stream's range.
    """
    pieces: dict[str, Piece | None] = {}
    for name in streams:
        modality = modalities[name]
        value = example.get(modality.field or name)
        piece = None if value is None else modality.encode(value)
        if piece is not None and not modality.is_finite:
            _check_finite(piece, name)
        pieces[name] = None if piece is None else _checked(piece, name, vocabulary)
    return pieces


def _check_finite(piece: Piece, name: str) -> None:
    for part in (piece.position_LA, piece.values_LP):
        if part is not None and not np.isfinite(part).all():
            raise BadRecord("not_finite", f"stream {name!r} has a value that is NaN or infinite")


def _checked(piece: Piece, name: str, vocabulary: Vocabulary) -> Piece:
    spec = vocabulary.spec(name)
    if piece.ids_L is not None:
        try:
            vocabulary.check(name, piece.ids_L)
        except ValueError as error:
            raise BadRecord("id_out_of_range", str(error)) from error
    if piece.length <= spec.max_tokens:
        return piece
    parts = [x if x is None else x[: spec.max_tokens] for x in piece[:3]]
    return Piece(*parts, num_cut=piece.num_cut + piece.length - spec.max_tokens)  # type: ignore[arg-type]


def values_of(
    source: Source, split: str, name: str, records: Records, rows: Iterable[int]
) -> Iterator[Any]:
    """Yields the values of a key; records that are bad or lack it are skipped.

    Raises:
      BadDataError: no record has it.
    """
    first, count, is_there = "", 0, False
    for row in rows:
        count += 1
        try:
            value = records[row].get(name)
        except BadRecord as bad:
            first = first or f"; {bad.reason} in {key_of(records, row)}: {bad.detail}"
            continue
        if value is not None:
            is_there = True
            yield value
    if not is_there:
        raise errors.BadDataError(
            f"Source {type(source).__name__}, split {split!r}: none of {count} records has {name!r}"
            f" to learn a tokenizer from{first}."
        )


@dataclasses.dataclass(kw_only=True, eq=False)
class Reader:
    """Encoded examples by index, cached while there is room.

    An example is encoded once for all tasks that share a reader. Copies in worker processes start
    with an empty cache.

    Fields:
      max_bad_fraction: largest share of bad records among those read; reading stops beyond it. A
        record counts once, however often it is read.
      excluded: records that count as bad without being read.
      tokens: precomputed ids by stream; other streams are encoded here.
      cache_bytes: memory for encoded examples.
    """

    source: Source
    split: str
    modalities: Mapping[str, Modality]
    vocabulary: Vocabulary
    max_bad_fraction: ranges.Fraction = 0.01
    excluded: frozenset[int] = frozenset()
    tokens: Mapping[str, TokenTable] = dataclasses.field(default_factory=dict)
    cache_bytes: ranges.Bytes = 1 << 30

    def __post_init__(self):
        ranges.check(self)
        self._forget()

    def _forget(self) -> None:
        self._records: Records | None = None
        self._cache: dict[int, dict[str, Piece | None]] = {}
        self._identity: dict[int, int] = {}
        self._bad: dict[int, BadRecord] = {}
        self._cached_bytes, self.num_read, self._seen = 0, 0, bytearray()

    def __getstate__(self):
        return {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}

    def __setstate__(self, state):
        self.__dict__.update(state)
        self._forget()

    @property
    def records(self) -> Records:
        """The opened split. Raises BadDataError if it is empty."""
        if self._records is None:
            records = self.source.open(self.split)
            if not len(records):
                raise errors.BadDataError(
                    f"Source {type(self.source).__name__}: split {self.split!r} has no record."
                )
            self._records = records
        return self._records

    def __len__(self) -> int:
        return len(self.records)

    def read(self, index: int, streams: Sequence[str]) -> Encoded:
        """An example with these streams. Raises BadRecord, the same at each read of a record.

        Raises:
          BadDataError: more than `max_bad_fraction` of the records read are bad.
        """
        self._see(index)
        if index in self.excluded:
            raise BadRecord("excluded", "the record was excluded")
        try:
            if index in self._bad:
                raise self._bad[index]
            return self._read(index, streams)
        except BadRecord as bad:
            self._count(index, bad)
            raise
        except (MemoryError, errors.RunError):
            raise
        except Exception as error:
            reason = error.reason if isinstance(error, Unreadable) else type(error).__name__
            bad = BadRecord(reason, str(error))
            self._count(index, bad)
            raise bad from error

    def _read(self, index: int, streams: Sequence[str]) -> Encoded:
        known = self._cache.get(index, {})
        lacking = [name for name in streams if name not in known]
        if lacking or index not in self._identity:
            example = self.records[index]
            new = self._looked_up(index, lacking) if self.tokens else {}
            lacking = [name for name in lacking if name not in new]
            new |= encode_sample(example, self.modalities, lacking, self.vocabulary)
            identity = int(example.get("identity", index)) & 0x7FFFFFFF
            known = known | new
            if self._cached_bytes < self.cache_bytes:
                self._cached_bytes += sum(_size(piece) for piece in new.values())
                self._cache[index], self._identity[index] = known, identity
        else:
            identity = self._identity[index]
        return Encoded({name: known[name] for name in streams}, identity)

    def _looked_up(self, index: int, streams: Sequence[str]) -> dict[str, Piece | None]:
        """Pieces from the tables; bad values are left out, since encoding them gives the reason."""
        pieces = {}
        for name in streams:
            if name in self.tokens:
                with contextlib.suppress(LookupError):
                    pieces[name] = self.tokens[name][index]
        return pieces

    def _see(self, index: int) -> None:
        """Counts the records read, each once, with a bit per record."""
        if not self._seen:
            self._seen = bytearray(len(self) // 8 + 1)
        byte, bit = index >> 3, 1 << (index & 7)
        if not self._seen[byte] & bit:
            self._seen[byte] |= bit
            self.num_read += 1

    def _count(self, index: int, bad: BadRecord) -> None:
        self._bad.setdefault(index, bad)
        read = max(self.num_read, min(MIN_READ, len(self)))
        if len(self._bad) <= self.max_bad_fraction * read:
            return
        reasons = collections.defaultdict(list)
        for record, error in self._bad.items():
            reasons[error.reason].append(record)
        text = "; ".join(
            f"{reason} in records {', '.join(key_of(self.records, key) for key in keys[:NAMED])}"
            f"{', ...' if len(keys) > NAMED else ''} ({self._bad[keys[0]].detail})"
            for reason, keys in reasons.items()
        )
        raise errors.BadDataError(
            f"Source {type(self.source).__name__}, split {self.split!r}: {len(self._bad)}"
            f" of {read} records are bad, more than max_bad_fraction="
            f"{self.max_bad_fraction:g} allows: {text}. Repair or leave out these records, or raise"
            " guards.max_bad_fraction (guards.strict allows none)."
        )


def _size(piece: Piece | None) -> int:
    parts = () if piece is None else piece[:3]
    return 200 + sum(x.nbytes for x in parts if x is not None)
