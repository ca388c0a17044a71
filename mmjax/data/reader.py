"""Reader: the encoded examples of one split of a source; bad records are named and counted."""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import functools
import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from mmjax import console, errors
from mmjax.config import ranges
from mmjax.data.augment import Augment, Visit
from mmjax.data.source import HELD, BadRecord, Records, Source, key_of
from mmjax.data.tokens import TokenTable
from mmjax.modalities.modality import Modality, Unreadable
from mmjax.typing import Piece, Vocabulary

MIN_READ = 1000  # records read before the share of bad ones is meaningful
NAMED = 8  # records that an error names
IDENTITY = ("identity",)  # key of the cache; names of streams are texts


def as_bad(error: Exception) -> BadRecord:
    """What went wrong with a record, as a reason to leave it out."""
    if isinstance(error, BadRecord):
        return error
    reason = error.reason if isinstance(error, Unreadable) else type(error).__name__
    return BadRecord(reason, str(error))


def most_bad(fraction: float, read: int) -> float:
    """How many records of those read may be bad: a share of them, and one in any case, which is no
    sign of trouble; none where the share is 0."""
    return max(fraction * read, 1) if fraction else 0


def check_bad(
    source: Source, split: str, records: Records, bad: Mapping[int, BadRecord], read: int,
    fraction: float,
) -> None:  # fmt: skip
    """Raises BadDataError where more than a fraction of the records read are bad (`most_bad`)."""
    read = max(read, min(MIN_READ, len(records)))
    if len(bad) <= most_bad(fraction, read):
        return
    reasons = collections.defaultdict(list)
    for record, error in bad.items():
        reasons[error.reason].append(record)
    text = "; ".join(
        f"{reason} in records {', '.join(key_of(records, key) for key in keys[:NAMED])}"
        f"{', ...' if len(keys) > NAMED else ''} ({bad[keys[0]].detail})"
        for reason, keys in reasons.items()
    )
    raise errors.BadDataError(
        f"Source {type(source).__name__}, split {split!r}: {len(bad)} of {read} records are bad,"
        f" more than max_bad_fraction={fraction:g} allows: {text}. Repair or leave out these"
        " records, or raise guards.max_bad_fraction (guards.strict allows none)."
    )


class Encoded(NamedTuple):
    """One example as tokens."""

    pieces: dict[str, Piece | None]
    identity: int


class _Several(tuple):
    """Pieces, or prepared values, of several values of one stream."""

    def turn(self, number: int) -> Any:
        """One of them, another for each of successive numbers."""
        return self[number % len(self)]


def encode_sample(
    example: Mapping[str, Any],
    modalities: Mapping[str, Modality],
    streams: Sequence[str],
    vocabulary: Vocabulary,
) -> dict[str, Piece | _Several | None]:
    """The pieces of an example by stream; None if it has no value, several if it has several.

    Tokens beyond `max_tokens` are cut from the end and counted in the piece. Raises BadRecord for
    values that are not finite and for ids outside the stream's range. Tokens that the example holds
    itself (`source.HELD`) are taken as they are.
    """
    pieces: dict[str, Piece | _Several | None] = {}
    held = example.get(HELD, {})
    for name in streams:
        modality = modalities[name]
        given = held.get(name)
        encoded = _each(example, name, modality, modality.encode) if given is None else given
        good = [_checked(piece, name, modality, vocabulary) for piece in encoded]
        pieces[name] = _one_or_several(good)
    return pieces


def _each(
    example: Mapping[str, Any], name: str, modality: Modality, convert: Callable[[Any], Any]
) -> list[Any]:
    """What the values of a stream become, without those that are absent."""
    value = example.get(modality.field or name)
    values = () if value is None else modality.choices(value)
    return [new for one in values if (new := convert(one)) is not None]


def _one_or_several(there: list[Any]) -> Any:
    return _Several(there) if len(there) > 1 else there[0] if there else None


def _check_finite(piece: Piece, name: str) -> None:
    for part in (piece.position_LA, piece.values_LP):
        if part is not None and not np.isfinite(part).all():
            raise BadRecord("not_finite", f"stream {name!r} has a value that is NaN or infinite")


def _checked(piece: Piece, name: str, modality: Modality, vocabulary: Vocabulary) -> Piece:
    if not modality.is_finite:
        _check_finite(piece, name)
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
      max_bad_fraction: largest share of bad records among those read; reading stops beyond it, if
        they are more than one. A record counts once, however often it is read.
      excluded: records that count as bad without being read.
      tokens: precomputed ids by stream; other streams are encoded here.
      cache_bytes: memory for encoded examples, in each process.
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
        self._cache: dict[int, dict[Any, Any]] = {}
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

    @property
    def bad(self) -> Mapping[int, BadRecord]:
        """The bad records among those read."""
        return self._bad

    @property
    def num_skipped(self) -> int:
        """Files of the source that cannot be read, and were left out."""
        return getattr(self.records, "num_skipped", 0)

    def __len__(self) -> int:
        return len(self.records)

    def read(self, index: int, streams: Sequence[str], visit: Visit = Visit()) -> Encoded:
        """An example with these streams. Raises BadRecord, the same at each read of a record.

        Streams that the visit augments are encoded anew; the values that they are made of are kept.

        Raises:
          BadDataError: more than `max_bad_fraction` of the records read are bad.
        """
        self._see(index)
        if index in self.excluded:
            raise BadRecord("excluded", "the record was excluded")
        try:
            if index in self._bad:
                raise self._bad[index]
            return self._read(index, streams, visit)
        except BadRecord as bad:
            self._count(index, bad)
            raise
        except (MemoryError, errors.RunError):
            raise
        except Exception as error:
            bad = as_bad(error)
            self._count(index, bad)
            raise bad from error

    def _read(self, index: int, streams: Sequence[str], visit: Visit) -> Encoded:
        varied = {name: visit.augment[name] for name in streams if name in visit.augment}
        kept = {name: _kept_as(name, varied.get(name)) for name in streams}
        known = self._known(index, kept, varied, visit.alike)
        turned = lambda one: one.turn(visit.turn) if isinstance(one, _Several) else one
        pieces = {name: turned(known[kept[name]]) for name in streams}
        for name, augment in varied.items():
            if pieces[name] is not None:
                pieces[name] = self._varied(index, name, pieces[name], augment, visit.seed)
        identity = known[IDENTITY]
        if identity is None:
            alike = turned(known[visit.alike]) if visit.alike else None
            identity = index if alike is None else _digest(alike)
        return Encoded(pieces, identity & 0x7FFFFFFF)

    def _known(
        self, index: int, kept: Mapping[str, Any], varied: Mapping[str, Augment], alike: str = ""
    ) -> dict[Any, Any]:
        """What is known of an example, by the names of `kept`: pieces, and values to vary."""
        known = self._cache.get(index, {})
        prepared = [n for n in varied if kept[n] != n and kept[n] not in known]
        plain = [n for n in kept if kept[n] == n] + [alike] * bool(alike)
        lacking = [n for n in dict.fromkeys(plain) if n not in known]
        if not (prepared or lacking) and known:
            return known
        example = self.records[index]
        new: dict[Any, Any] = self._looked_up(index, lacking) if self.tokens else {}
        lacking = [name for name in lacking if name not in new]
        new |= encode_sample(example, self.modalities, lacking, self.vocabulary)
        for name in prepared:
            modality = self.modalities[name]
            prepare = functools.partial(varied[name].prepare, modality=modality)
            new[kept[name]] = _one_or_several(_each(example, name, modality, prepare))
        identity = example.get("identity")
        known = known | new | {IDENTITY: None if identity is None else int(identity)}
        if self._cached_bytes < self.cache_bytes:
            self._cached_bytes += sum(_size(value) for value in new.values())
            self._cache[index] = known
        return known

    def _varied(self, index: int, name: str, value: Any, augment: Augment, seed: int) -> Any:
        modality = self.modalities[name]
        try:
            piece = augment(value, modality, augment.generator(name, seed))
            return None if piece is None else _checked(piece, name, modality, self.vocabulary)
        except Exception as error:
            self._known(index, {name: name}, {})  # raises if the value itself cannot be encoded
            raise errors.BadDataError(
                f"augment[{name!r}]={type(augment).__name__} failed on record"
                f" {key_of(self.records, index)}, whose value can be encoded:"
                f" {type(error).__name__}: {console.inline(str(error))}. Repair or leave out the"
                " augmentation."
            ) from error

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
        check_bad(
            self.source, self.split, self.records, self._bad, self.num_read, self.max_bad_fraction
        )


def _kept_as(name: str, augment: Augment | None) -> Any:
    """The key under which the cache keeps what a stream is made of; the name stands for pieces."""
    return name if augment is None or augment.of_pieces else (name, augment.key)


def _digest(piece: Piece) -> int:
    """A number that equal pieces share, of 31 bits."""
    hashed = hashlib.blake2b(digest_size=4)
    for part in piece[:3]:
        hashed.update(b"-" if part is None else np.ascontiguousarray(part).tobytes())
    return int.from_bytes(hashed.digest(), "big") >> 1


def _size(value: Any) -> int:
    """Bytes of a piece or of a value to vary (pixels, a file, a text), or of several of them."""
    if isinstance(value, (tuple, list)):
        return 200 + sum(map(_size, value))
    return getattr(value, "nbytes", 0) or (len(value) if isinstance(value, (bytes, str)) else 0)
