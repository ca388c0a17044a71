"""What the records of a split are like by their raw values: sizes, copies, what comes together.

Records are read once and forgotten: what is kept of a value are 16 bytes, a hash and the
number of its record, and its sizes.
"""

from __future__ import annotations

import array
import collections
import dataclasses
import functools
import hashlib
import unicodedata
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import numpy as np

from mmjax import console
from mmjax.data import languages
from mmjax.data.source import BadRecord, Records, Source, key_of
from mmjax.modalities.modality import Modality

__all__ = ["WHOLE", "Lengths", "Measured", "Measuring", "Shared", "Stream", "measure", "shared"]

WHOLE = "whole record"  # beside the names of modalities: all values of a record
NAMED = 3  # pairs of equal records that are named
TEXTS, TEXT = 2000, 4096  # texts that are kept to learn pieces from, and characters of each
LETTERS = 200  # characters of a text that are looked at for its script
RANKS = {"p05": 0.05, "median": 0.5, "p90": 0.9, "p95": 0.95, "p99": 0.99}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Lengths:
    """Quantiles of a size: each is a value that occurs, so that one outlier moves only `max`."""

    count: int
    mean: float
    min: float
    p05: float
    median: float
    p90: float
    p95: float
    p99: float
    max: float

    @classmethod
    def of(cls, values: Any) -> Lengths:
        """Of at least one number."""
        ordered = np.sort(np.asarray(values, np.float64))
        ranks = {name: float(ordered[int(q * (len(ordered) - 1))]) for name, q in RANKS.items()}
        ends = {"min": float(ordered[0]), "max": float(ordered[-1])}
        return cls(count=len(ordered), mean=float(ordered.mean()), **ends, **ranks)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Stream:
    """The values of one modality in a split.

    Fields:
      present: records that have it. different: values that differ in content.
      sizes: by name, as `Modality.measure` gives them.
      unreadable: values whose header cannot be read; why: of the first.
      copies: names of some records whose values are equal.
      scripts: of texts: how many are mostly in which script. languages: shares, as
        `languages.shares` finds them. characters: that occur in the texts looked at.
    """

    present: int = 0
    different: int = 0
    sizes: dict[str, Lengths] = dataclasses.field(default_factory=dict)
    unreadable: int = 0
    why: str = ""
    copies: tuple[tuple[str, str], ...] = ()
    scripts: dict[str, int] = dataclasses.field(default_factory=dict)
    languages: dict[str, float] = dataclasses.field(default_factory=dict)
    characters: int = 0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Measured:
    """A split: its records, those looked at, those that cannot be read, and its modalities.

    Fields:
      together: number of records by the modalities that they have, as "image+text".
      texts: some of the texts, by modality.
    """

    split: str
    records: int
    read: int
    bad: int
    streams: dict[str, Stream]
    together: dict[str, int]
    texts: dict[str, tuple[str, ...]]

    def complete(self, is_complete: Callable[[Collection[str]], bool]) -> int:
        """Records for whose modalities this holds."""
        sets = self.together.items()
        return sum(count for names, count in sets if is_complete(names.split("+")))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Shared:
    """Records of a split whose value is also in another split, and names of some of both."""

    count: int
    of: int
    names: tuple[tuple[str, str], ...]


class Measuring:
    """Adds up the records of a split, in any order."""

    def __init__(self, modalities: Mapping[str, Modality], total: int):
        self.modalities, self.read, self.bad = modalities, 0, 0
        self._every = -(-max(total, 1) // TEXTS)
        self._sizes: dict[tuple[str, str], array.array] = {}
        self._digests = {name: array.array("Q") for name in (*modalities, WHOLE)}
        self._rows = {name: array.array("Q") for name in (*modalities, WHOLE)}
        self._together: collections.Counter[str] = collections.Counter()
        self._scripts: dict[str, collections.Counter[str]] = {}
        self._characters: dict[str, set[str]] = {}
        self._texts: dict[str, list[str]] = {}
        self._wrong: dict[str, list[str]] = {}

    def add(self, row: int, example: Mapping[str, Any] | None) -> None:
        """A record; None = it cannot be read."""
        self.read += 1
        if example is None:
            self.bad += 1
            return
        there, digests = [], b""
        for name, modality in self.modalities.items():
            try:
                value = modality.given(example.get(modality.field or name))
                sizes = {} if value is None else modality.measure(value)
            except ValueError as error:
                self._wrong.setdefault(name, []).append(str(error)[:200])
                value, sizes = example.get(modality.field or name), {}
            if value is None:
                continue
            there.append(name)
            for size, number in sizes.items():
                self._sizes.setdefault((name, size), array.array("f")).append(number)
            if isinstance(value, str):
                self._look_at(name, value)
            digests += self._note(name, row, _content(value))
        self._together["+".join(there)] += 1
        if there:
            self._note(WHOLE, row, digests)

    def _note(self, name: str, row: int, content: bytes) -> bytes:
        digest = hashlib.blake2b(content, digest_size=8).digest()
        self._digests[name].append(int.from_bytes(digest, "little"))
        self._rows[name].append(row)
        return digest

    def _look_at(self, name: str, text: str) -> None:
        """Script and characters of a text; some texts are kept."""
        head = text[:LETTERS]
        kinds = collections.Counter(filter(None, map(_script, head)))
        most = kinds.most_common(1)[0][0] if kinds else "none"
        self._scripts.setdefault(name, collections.Counter())[most] += 1
        if len(self._digests[name]) % self._every == 0:
            self._texts.setdefault(name, []).append(text[:TEXT])
            self._characters.setdefault(name, set()).update(text[:TEXT])

    def result(self, split: str, records: Records) -> Measured:
        """What was added up."""
        return Measured(
            split=split,
            records=len(records),
            read=self.read,
            bad=self.bad,
            streams={name: self._stream(name, records) for name in (*self.modalities, WHOLE)},
            together=dict(self._together.most_common()),
            texts={name: tuple(texts) for name, texts in self._texts.items()},
        )

    def _stream(self, name: str, records: Records) -> Stream:
        digests, rows = self.digests(name)
        wrong = self._wrong.get(name, [])
        return Stream(
            present=len(digests),
            different=len(np.unique(digests)),
            sizes={size: Lengths.of(values) for size, values in self.sizes(name).items()},
            unreadable=len(wrong),
            why=wrong[0] if wrong else "",
            copies=_copies(digests, rows, records),
            scripts=dict(self._scripts.get(name, collections.Counter()).most_common()),
            languages=languages.shares([text[:LETTERS] for text in self._texts.get(name, ())]),
            characters=len(self._characters.get(name, ())),
        )

    @property
    def present(self) -> int:
        """Records that have a value."""
        return len(self._digests[WHOLE])

    def sizes(self, name: str) -> dict[str, array.array]:
        """Sizes of the values of a modality, by name, in the order of reading."""
        return {size: values for (n, size), values in self._sizes.items() if n == name}

    def digests(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        """Hashes of the values of a modality, and the numbers of their records."""
        return np.asarray(self._digests[name], np.uint64), np.asarray(self._rows[name], np.int64)


def measure(source: Source, split: str, modalities: Mapping[str, Modality], most: int) -> Measured:
    """A split by at most so many of its records, evenly spaced. Raises ValueError."""
    records = source.open(split)
    rows = evenly(len(records), most)
    measuring = Measuring(modalities, len(rows))
    bar = console.Progress(len(rows), 0, True, name="measuring the data")
    try:
        for count, row in enumerate(rows, 1):
            try:
                measuring.add(row, records[row])
            except BadRecord:
                measuring.add(row, None)
            bar.advance(count)
    finally:
        bar.close()
    return measuring.result(split, records)


def evenly(total: int, most: int) -> Sequence[int]:
    """At most so many numbers of 0 .. total - 1, evenly spaced, the first and the last included."""
    if total <= most:
        return range(total)
    return np.unique(np.linspace(0, total - 1, most).round().astype(np.int64)).tolist()


def shared(
    one: Measuring, other: Measuring, name: str, records: Records, others: Records
) -> Shared:
    """The records of one split whose value of a modality another split has too."""
    (own, own_rows), (known, known_rows) = one.digests(name), other.digests(name)
    is_there = np.isin(own, known)
    names = []
    for place in np.flatnonzero(is_there)[:NAMED].tolist():
        match = int(np.flatnonzero(known == own[place])[0])
        first, second = int(own_rows[place]), int(known_rows[match])
        names.append((key_of(records, first), key_of(others, second)))
    return Shared(count=int(is_there.sum()), of=len(own), names=tuple(names))


def _copies(digests: np.ndarray, rows: np.ndarray, records: Records) -> tuple[tuple[str, str], ...]:
    order = np.argsort(digests, kind="stable")
    same = np.flatnonzero(digests[order][1:] == digests[order][:-1])[:NAMED]
    pairs = ((int(rows[order[i]]), int(rows[order[i + 1]])) for i in same.tolist())
    return tuple((key_of(records, a), key_of(records, b)) for a, b in pairs)


def _content(value: Any) -> bytes:
    """The content of a raw value: equal values give equal bytes, whatever their format."""
    if isinstance(value, bytes):
        return value
    if isinstance(value, str):
        return value.strip().encode("utf-8", "surrogateescape")
    if isinstance(value, np.ndarray) and value.dtype != object:
        return f"{value.dtype} {value.shape} ".encode() + value.tobytes()
    if isinstance(value, (list, tuple, np.ndarray)):
        return b"\0".join(map(_content, value))
    if isinstance(value, Mapping):
        return b"\0".join(_content(part) for item in sorted(value.items()) for part in item)
    return repr(value).encode()


@functools.lru_cache(1 << 16)
def _script(character: str) -> str:
    """The first word of a letter's name, such as "Latin" or "Cjk"; empty for what is no letter."""
    if not character.isalpha():
        return ""
    return unicodedata.name(character, "other").split()[0].capitalize()
