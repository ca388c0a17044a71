"""Joined: several sources read as one, by the keys of their records, as 4M lays out its data."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import itertools
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from mmjax import console
from mmjax.data import index, shards
from mmjax.data.files import FileRecords, Files
from mmjax.data.source import BadRecord, Records, Source, key_of

__all__ = ["Joined"]

# Two of n records share 8 bytes of a hash by chance with a probability of about n^2 / 2^65: 3e-8
# for a million, 3e-4 for a hundred million.
HASH_BYTES = 8
MAX_NOTES = 1 << 16  # bytes of an index besides its rows
Rows = Mapping[str, Sequence[int] | np.ndarray]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Joined(Source):
    """Records that several sources hold parts of: `rgb/00000.tar`, `caption/00000.tar`.

    Records with equal keys are one: the name of the file and that of the record in it, as
    `00000.tar/a1`, or only what a part's `key` says. It also decides which split of `shares` a
    record is in, so that the parts split alike. A record that not all parts have is left out, and
    a line tells how many are; the others lie in the order of the first part.

    Fields:
      parts: sources by name, two or more. Each value of an example is given by one of them, and so
        is `identity`.
    """

    parts: dict[str, Source] = dataclasses.field(default_factory=dict)

    def __post_init__(self):
        if len(self.parts) < 2:
            raise ValueError(
                f"Joined: parts={list(self.parts)}, but two or more are joined; a single one is a"
                " source by itself."
            )
        giver: dict[str, str] = {}
        for name, part in self.parts.items():
            keys = part.keys()
            if not keys:
                raise ValueError(
                    f"Joined: parts[{name!r}] does not say what it gives; set its fields, as"
                    " {'image': 'jpg'}."
                )
            for key in keys:
                if giver.setdefault(key, name) != name:
                    raise ValueError(
                        f"Joined: parts {giver[key]!r} and {name!r} both give {key!r}; leave it out"
                        " of the fields of one, or rename it."
                    )
        self._check_shares()

    def _check_shares(self) -> None:
        made = {n: list(p.shares.items()) for n, p in self.parts.items()
                if isinstance(p, Files) and p.shares and not p.files}  # fmt: skip
        first, *others = made or [""]
        for name in others:
            if made[name] != made[first]:
                raise ValueError(
                    f"Joined: shares={dict(made[first])} of part {first!r} and {dict(made[name])}"
                    f" of {name!r} divide the same records differently; give both the same, in the"
                    " same order."
                )

    def splits(self) -> tuple[str, ...]:
        """Names of the splits that all parts have."""
        there = {name: part.splits() for name, part in self.parts.items()}
        first, *others = there.values()
        common = tuple(split for split in first if all(split in other for other in others))
        if not common:
            text = "; ".join(f"{name!r} has {', '.join(splits)}" for name, splits in there.items())
            raise ValueError(f"Joined: no split is in all parts: {text}; name them alike.")
        return common

    def keys(self) -> tuple[str, ...]:
        """Keys of the examples of all parts."""
        return tuple(itertools.chain.from_iterable(p.keys() for p in self.parts.values()))

    def open(self, split: str) -> JoinedRecords:
        """Random access to one split.

        Raises ValueError for a split that a part lacks, records without names, a key twice in a
        part, and parts that have no key in common.
        """
        if split not in self.splits():
            raise ValueError(
                f"Joined: split={split!r} is not in all parts; there are"
                f" {', '.join(self.splits())}."
            )
        opened = {name: part.open(split) for name, part in self.parts.items()}
        rows = self._rows(split, opened)
        count = len(next(iter(rows.values())))
        alone = {name: len(part) - count for name, part in opened.items() if len(part) > count}
        if alone and shards.is_first_process():
            text = ", ".join(f"{n} of {len(opened[name])} of {name!r}" for name, n in alone.items())
            console.say_once(
                f"Joined, split {split!r}: {count} records; left out, as other parts lack them:"
                f" {text}"
            )
        return JoinedRecords(opened, rows)

    def under(self, on_bad_shard: str) -> Joined:
        """The same with parts that skip or refuse files which cannot be read (`Guards`)."""
        parts = {name: part.under(on_bad_shard) for name, part in self.parts.items()}
        return dataclasses.replace(self, parts=parts)

    def fingerprint(self) -> str:
        """SHA-256 of the fingerprints of the parts, and of which one says the order."""
        parts = {name: self.parts[name].fingerprint() for name in sorted(self.parts)}
        about = json.dumps([next(iter(self.parts)), parts])
        return hashlib.sha256(f"Joined {about}".encode()).hexdigest()

    def _rows(self, split: str, opened: Mapping[str, Records]) -> Rows:
        """Rows of each part, kept in an index beside the files of the first part that has any."""
        sizes = {name: len(part) for name, part in opened.items()}
        skipped = [getattr(part, "num_skipped", 0) for part in opened.values()]
        about = json.dumps([split, self.fingerprint(), sizes, skipped])
        name = f"joined-{hashlib.sha256(about.encode()).hexdigest()[:16]}"
        files = [part for part in opened.values() if isinstance(part, FileRecords)]
        places = files[0].index_folders() if files else []
        limit = MAX_NOTES + 8 * sum(sizes.values())
        known = index.load(name, places, limit, functools.partial(_check, sizes=sizes))
        if known is None:
            console.say(f"Joined: reading the keys of {sum(sizes.values())} records")
            rows = _match(split, opened)
            arrays = {f"rows.{n}": column for n, column in (rows or {}).items()}
            known = {"parts": list(sizes)}, arrays
            index.save(name, *known, places)
        arrays = known[1]
        return {n: arrays[f"rows.{n}"] if arrays else range(sizes[n]) for n in sizes}


class JoinedRecords:
    """The records of one split that all parts have."""

    def __init__(self, parts: Mapping[str, Records], rows: Rows):
        self._parts, self._rows = parts, rows
        self._first = next(iter(parts))

    def __len__(self) -> int:
        return len(self._rows[self._first])

    @property
    def num_skipped(self) -> int:
        """Files of all parts that cannot be read, and were left out."""
        return sum(getattr(part, "num_skipped", 0) for part in self._parts.values())

    def key(self, index: int) -> str:
        """File and name of a record in the first part."""
        return key_of(self._parts[self._first], self._row(self._first, index))

    def __getitem__(self, index: int) -> dict[str, Any]:
        example: dict[str, Any] = {}
        for name, part in self._parts.items():
            try:
                example |= part[self._row(name, index)]
            except BadRecord as bad:
                raise BadRecord(bad.reason, f"part {name!r}: {bad.detail}") from bad
        return example

    def _row(self, name: str, index: int) -> int:
        if not 0 <= index < len(self):
            raise IndexError(f"Record {index} is outside 0..{len(self) - 1}.")
        return int(self._rows[name][index])


def _keys(records: Records) -> Iterable[str | None]:
    """The key of each record. Raises ValueError if records have none."""
    if isinstance(records, FileRecords):
        return records.each_key()
    key = getattr(records, "key", None)
    if key is None:
        raise ValueError("its records have no names; define key(index) of its records")
    return map(key, range(len(records)))


def _hashes(name: str, records: Records) -> np.ndarray:
    """A hash of each key. Raises ValueError for a key that is there twice."""

    def hashed(row: int, key: str | None) -> int:
        # A record without a key has one that no other part can have.
        text = f"\0{name}\0{row}" if key is None else key
        content = text.encode("utf-8", "surrogateescape")
        return int.from_bytes(hashlib.blake2b(content, digest_size=HASH_BYTES).digest())

    try:
        keys = (hashed(row, key) for row, key in enumerate(_keys(records)))
        found = np.fromiter(keys, np.uint64, len(records))
    except ValueError as error:
        raise ValueError(f"Joined: part {name!r}: {error}") from error
    order = np.argsort(found, kind="stable")
    twice = np.flatnonzero(found[order[1:]] == found[order[:-1]])
    if len(twice):
        a, b = (key_of(records, int(order[twice[0] + i])) for i in range(2))
        raise ValueError(
            f"Joined: part {name!r} has {len(twice)} keys more than once, the first is that of its"
            f" records {a!r} and {b!r}; name files apart, or set key to a field with a unique name."
        )
    return found


def _match(split: str, opened: Mapping[str, Records]) -> dict[str, np.ndarray] | None:
    """Rows of each part that are of the same records; None if all are, in the same order."""
    hashes = {name: _hashes(name, part) for name, part in opened.items()}
    first, *others = hashes.values()
    if all(np.array_equal(first, other) for other in others):
        return None
    is_common = np.ones(len(first), bool)
    for other in others:
        is_common &= np.isin(first, other)
    if not is_common.any():
        text = ", ".join(f"{key_of(p, 0)!r} of {n!r}" for n, p in opened.items() if len(p))
        raise ValueError(
            f"Joined, split {split!r}: no key is in all parts; there are {text or 'no records'}."
            " Keys are names of files and records: name files alike, or set key='__key__' of all"
            " parts if names of records are unique over all files."
        )
    wanted, rows = first[is_common], {}
    for name, own in hashes.items():
        order = np.argsort(own)
        rows[name] = order[np.searchsorted(own, wanted, sorter=order)].astype(np.int64)
    return rows


def _check(notes: dict[str, Any], arrays: dict[str, np.ndarray], sizes: Mapping[str, int]) -> None:
    """Raises ValueError for an index that does not hold rows of these parts, each once."""
    if notes.get("parts") != list(sizes):
        raise ValueError("it is of other parts")
    if not arrays:
        if len(set(sizes.values())) > 1:
            raise ValueError("it says that all parts have the same records")
        return
    columns = {name: index.check_column(arrays, f"rows.{name}", np.int64) for name in sizes}
    if len({len(column) for column in columns.values()}) > 1:
        raise ValueError("its columns differ in length")
    for name, column in columns.items():
        seen = np.zeros(sizes[name], bool)
        if len(column) and column.min() >= 0 and column.max() < len(seen):
            seen[column] = True
        if not len(column) or seen.sum() != len(column):
            raise ValueError(f"it does not hold rows of {name!r}, each once")
