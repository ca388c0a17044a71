"""Files: the base of file sources, with field names, splits, keys and bad records."""

from __future__ import annotations

import bisect
import copy
import dataclasses
import functools
import hashlib
import itertools
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Protocol

import numpy as np

from mmjax import console
from mmjax import files as mmjax_files
from mmjax.config import ranges
from mmjax.data import fields as fields_lib
from mmjax.data import index, shards, staging
from mmjax.data.source import BadRecord, Source
from mmjax.files import confined

PICKLES = ("pickle", "pkl", "pyd", "pth", "pt", "joblib", "dill")
MADE = ("__key__", "__folder__")  # fields that the name of a record gives
SHOWN = 20  # fields that an error names
UNNAMED = "\x7f"  # begins the keys of records whose field of keys cannot be read
MAX_KEY = 1024  # characters; longer names are shortened
MAX_ROWS_BYTES = 1 << 26  # of the index of splits, besides 8 per record
LIMIT = 1 << 28  # bytes of a record


class Table(Protocol):
    """An open file: its records by number.

    An optional method `label(row)` describes a record in more detail than its key, for people. An
    optional `num_sampled` says that `names` are those of so many records, and not of all.
    """

    names: list[str]  # fields of its records
    numbered: bool  # whether its keys are row numbers, which change when the file is edited

    def __len__(self) -> int: ...

    def key(self, row: int) -> str:
        """Name of a record, unique in the file."""
        ...

    def read(self, row: int, names: Sequence[str]) -> dict[str, Any]:
        """Raw values of at least these fields. Raises BadRecord if they cannot be read."""
        ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class Files(Source):
    """Base of the sources that read your own files. Nothing is extracted or unpickled, and nothing
    copied but what is in a bucket (`mmjax.data.staging`).

    A value is None (absent), bytes (of a file, which the modality decodes), str, a number or an
    array. Bytes of fields whose names end in `npy`, `json` or `cls` become arrays, JSON values or
    integers.

    Fields:
      path: files of all records: a path, or a pattern with `*`, `{a,b}` or `{000..123}`; local or
        in a bucket.
      files: split -> such a pattern, if splits are separate files; replaces path.
      shares: splits made from `path`: name -> share. A record's key alone decides its split.
      fields: key of the example -> field of the record; "jpg;png" = the first that is present,
        "meta.size.0" = a value inside of JSON, "x0=left, x1=right" = a dict of several fields.
        Empty = all fields under their own names.
      required: keys without which a record counts as bad; other keys may be absent.
      key: field with a unique name of the record; records are then sorted by it. Empty = the name
        that the format gives.
      identity: field of the record; records with equal values are positives of one another.
      cache: folder of the index; empty = `.mmjax` beside the data.
      max_record_bytes: limit of the values of one record; a record with more, packed or unpacked,
        counts as bad.
    """

    # Where the files lie may change between the starts of a run: `fingerprint` compares them.
    path: str = dataclasses.field(default="", metadata={"identity": "none", "is_moved": True})
    files: dict[str, str] = dataclasses.field(
        default_factory=dict, metadata={"identity": "none", "is_moved": True}
    )
    shares: dict[str, ranges.NonNegative] = dataclasses.field(
        default_factory=lambda: {"train": 0.9, "val": 0.1}
    )
    fields: dict[str, str] = dataclasses.field(default_factory=dict)
    required: tuple[str, ...] = ()
    key: str = ""
    identity: str = ""
    cache: str = dataclasses.field(default="", metadata={"identity": "none", "is_moved": True})
    max_record_bytes: Annotated[int, ranges.Range(1, 2**50)] = dataclasses.field(
        default=LIMIT, metadata={"identity": "none"}
    )

    def __post_init__(self):
        ranges.check(self)
        who = type(self).__name__
        if bool(self.path) == bool(self.files):
            raise ValueError(
                f"{who}: path={self.path!r}, files={self.files}; give one of the two: path for all"
                " records, or files for one pattern a split."
            )
        made = self._made()
        if made and (min(made.values()) <= 0 or abs(sum(made.values()) - 1) > 1e-6):
            raise ValueError(f"{who}: shares={self.shares} must be positive and sum to 1.")
        for pattern in (self.path, *self.files.values()):
            if "://" in pattern and pattern.partition("://")[0] not in mmjax_files.SCHEMES:
                raise ValueError(
                    f"{who}: {pattern!r} is no local file and in no bucket"
                    f" ({', '.join(mmjax_files.SCHEMES)}); copy or mount it."
                )
        for name in self.required:
            if name not in self.fields:
                raise ValueError(f"{who}: required={name!r} is not among fields={self.fields}.")
        for text in (*self.fields.values(), self.key, self.identity):
            for one in fields_lib.names(text):
                if one.rpartition(".")[2].lower() in PICKLES:
                    raise ValueError(
                        f"{who}: field {one!r} is a pickle, which may run any code and is never"
                        " read; write it as npy, json or text."
                    )

    def splits(self) -> tuple[str, ...]:
        """Names of the splits."""
        return tuple(self._made() or self.files)

    def keys(self) -> tuple[str, ...]:
        """Keys of an example, from `fields` and `identity`."""
        return (*self.fields, *(["identity"] if self.identity else []))

    def open(self, split: str) -> FileRecords:
        """Random access to one split.

        Raises ValueError for a missing split, file or field, and for files not in this format.
        """
        if split not in self.splits():
            raise ValueError(
                f"{type(self).__name__}: split={split!r} does not exist; there are"
                f" {', '.join(self.splits())}."
            )
        paths = self._paths(split)
        tables = self._tables(paths)
        self._check_fields(paths, tables)
        return FileRecords(self, paths, tables, self._rows(split, paths, tables))

    def fingerprint(self) -> str:
        """SHA-256 of the fields that affect values, and of the names, sizes and ends of the files.

        `cache` and the record limit do not change values, so they are left out.
        """
        kept = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        for name in ("cache", "path", "files", "max_record_bytes"):
            del kept[name]
        digest = hashlib.sha256(f"{type(self).__name__} {json.dumps(kept)}".encode())
        for split in self.splits()[:1] if self._made() else self.splits():
            digest.update(f" {'' if self._made() else split}:".encode())
            digest.update(" ".join(self._stamp(p) for p in self._paths(split)).encode())
        return digest.hexdigest()

    def _made(self) -> dict[str, float]:
        """The splits of `shares`; empty if splits are separate files."""
        return {} if self.files else self.shares

    def _stamp(self, path: Path) -> str:
        """A stamp that changes when the file does."""
        return index.stamp(path)

    def _table(self, path: Path) -> Table:
        """Opens a file; subclasses define it. Raises ValueError for other formats."""
        raise NotImplementedError(f"{type(self).__name__} must define _table(path).")

    def _paths(self, split: str) -> list[Path]:
        pattern = self.files.get(split, self.path)
        paths = self._found(pattern)
        if any(c in pattern for c in "*?["):
            paths = [p for p in paths if not shards.is_note(p.name)]
        absent = [p for p in paths if not p.exists()]
        if absent or not paths:
            first = absent[0] if absent and not mmjax_files.is_remote(pattern) else pattern
            more = f" (and {len(absent) - 1} more)" if len(absent) > 1 else ""
            raise ValueError(
                f"{type(self).__name__}: {str(first)!r}{more} does not exist; check path or files"
                f" (the working folder is {str(Path.cwd())!r})."
            )
        for path in paths:
            if what := self._not_read(path):
                raise ValueError(
                    f"{type(self).__name__}: {str(path)!r} is {what}, no file; leave it out of path"
                    " or files."
                )
        return paths

    def _found(self, pattern: str) -> list[Path]:
        """Files of a pattern; those of a bucket are copied to this disk first."""
        return staging.find(pattern) if mmjax_files.is_remote(pattern) else index.find(pattern)

    def _not_read(self, path: Path) -> str:
        """What a path leads to, if that is not readable as data; else empty."""
        return confined.kind(path)

    def under(self, on_bad_shard: str) -> Files:
        """The same source that skips or refuses files which cannot be read (`Guards`)."""
        other = copy.copy(self)
        object.__setattr__(other, "_on_bad_shard", on_bad_shard)
        return other

    def _tables(self, paths: Sequence[Path]) -> list[Table]:
        return self._each(paths, self._table)

    def _each(self, paths: Sequence[Path], open_one: Callable[[Path], Table]) -> list[Table]:
        skip = getattr(self, "_on_bad_shard", "refuse") == "skip"
        return shards.tables(type(self).__name__, paths, open_one, skip)

    def _check_fields(self, paths: Sequence[Path], tables: Sequence[Table]) -> None:
        there = {name for table in tables for name in table.names}
        wanted = {f"fields[{k!r}]": v for k, v in self.fields.items()}
        for who, names in {**wanted, "key": self.key, "identity": self.identity}.items():
            is_named = names and sum(map(len, tables))
            if not is_named or not fields_lib.parsed(names, there).missing(there):
                continue
            if sampled := sum(getattr(table, "num_sampled", 0) for table in tables):
                if shards.is_first_process():
                    console.say_once(
                        f"{type(self).__name__}: {who}={names!r} is in none of {sampled} records"
                        f" that were looked at; there are {', '.join(sorted(there)[:SHOWN])}."
                    )
                continue
            raise ValueError(
                f"{type(self).__name__}: {who}={names!r} is in no record of {paths[0]}"
                f"{' and the other files' if len(paths) > 1 else ''}; there are"
                f" {', '.join(sorted(there)[:SHOWN])}."
            )

    # ---- order and splits, kept in the index

    def _rows(self, split: str, paths: Sequence[Path], tables: Sequence[Table]) -> Any:
        """Record numbers of a split, counted over all files, in order."""
        total = sum(len(table) for table in tables)
        shares = self._made()
        if not shares and not self.key:
            return range(total)
        pattern = self.files.get(split, self.path)
        about = json.dumps([type(self).__name__, pattern, "" if shares else split, self.key])
        name = f"splits-{hashlib.sha256(about.encode()).hexdigest()[:16]}"
        places = index.folders(self.cache, paths[0])
        stamps = [self._stamp(p) for p in paths]
        check = functools.partial(index.check_rows, stamps=stamps, shares=shares, total=total)
        known = index.load(name, places, MAX_ROWS_BYTES + 8 * total, check)
        if known:
            loose = not self.key and any(table.numbered for table in tables)
            self._check_known(known[0], stamps, shares, loose, places[0] / f"{name}.npz")
        if not known or known[0]["files"] != stamps:
            notes, arrays = self._split_up(paths, tables, stamps, shares)
            index.save(name, notes, arrays, places)
            known = notes, arrays
        return known[1][split if shares else "all"]

    def _check_known(
        self, notes: Any, stamps: list[str], shares: Any, loose: bool, path: Path
    ) -> None:
        remedy = f"delete {path} to make new splits: what was held out may then be trained on"
        if notes["shares"] != shares:
            raise ValueError(
                f"{type(self).__name__}: shares={shares}, but the splits were made with"
                f" {notes['shares']}; use these, or {remedy}."
            )
        if shares and notes["files"] != stamps and loose:
            raise ValueError(
                f"{type(self).__name__}: path={self.path!r} has changed since its splits were made,"
                f" and its records have no names; set key to a field that names them, or {remedy}."
            )

    def _split_up(
        self, paths: Sequence[Path], tables: Sequence[Table], stamps: list[str], shares: Any
    ) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        console.say(f"{type(self).__name__}: reading the keys of {sum(map(len, tables))} records")
        keys = [
            self._key(path, table, row)
            for path, table in zip(paths, tables, strict=True)
            for row in range(len(table))
        ]
        rows = sorted(range(len(keys)), key=keys.__getitem__) if self.key else range(len(keys))
        if self.key:
            for a, b in itertools.pairwise(rows):
                if keys[a] == keys[b]:
                    raise ValueError(
                        f"{type(self).__name__}: key={self.key!r} has the value {keys[a]!r} twice;"
                        " name a field that each record has another value of."
                    )
        names = list(shares) or ["all"]
        ends = np.cumsum(list(shares.values()))[:-1] if shares else []
        split_rows: dict[str, list[int]] = {name: [] for name in names}
        for row in rows:
            split_rows[names[bisect.bisect_right(ends, _uniform(keys[row]))]].append(row)
        arrays = {name: np.asarray(rows, np.int64) for name, rows in split_rows.items()}
        return {"files": stamps, "shares": shares}, arrays

    def _key(self, path: Path, table: Table, row: int) -> str:
        if not self.key:
            return f"{path.name}/{table.key(row)}"
        wanted = fields_lib.parsed(self.key, table.names)
        try:
            value = wanted.value(table.read(row, wanted.fields()))
        except BadRecord:
            value = None  # counted as bad when it is read; here it only needs a key
        return f"{UNNAMED}{path.name}/{table.key(row)}" if value is None else _short(_plain(value))


class FileRecords:
    """The records of one split of files."""

    def __init__(self, source: Files, paths: Sequence[Path], tables: Sequence[Table], rows: Any):
        self._source, self._paths, self.tables, self._rows = source, paths, tables, rows
        self._ends = list(itertools.accumulate(len(table) for table in tables))
        everything = dict.fromkeys(name for table in tables for name in table.names)
        texts = source.fields.items()
        self._fields = {key: fields_lib.parsed(text, everything) for key, text in texts}
        self._everything: list[str] = [name for name in everything if name not in MADE]
        names = [name for wanted in self._fields.values() for name in wanted.fields()]
        self._identity = fields_lib.parsed(source.identity, everything)
        names += self._identity.fields() if source.identity else []
        self._names: list[str] = list(dict.fromkeys(names)) if self._fields else self._everything

    def __len__(self) -> int:
        return len(self._rows)

    def file_ends(self) -> list[int]:
        """Numbers after the last record of each file that has any; all of one if records of
        several files are mixed, as a `key` sorts them."""
        of_row = np.searchsorted(self._ends, np.asarray(self._rows), side="right")
        ends = (np.flatnonzero(np.diff(of_row)) + 1).tolist()
        return [*(ends if len(ends) < len(self.tables) else ()), len(self)]

    @property
    def num_skipped(self) -> int:
        """Files that cannot be read, and were left out."""
        return sum(isinstance(table, shards.Skipped) for table in self.tables)

    def _find(self, index: int) -> tuple[int, int]:
        """Number of the file, and of the record within it."""
        if not 0 <= index < len(self):
            raise IndexError(f"Record {index} is outside 0..{len(self) - 1}.")
        row = int(self._rows[index])
        number = bisect.bisect_right(self._ends, row)
        return number, row - (self._ends[number - 1] if number else 0)

    def key(self, index: int) -> str:
        """File and name of a record."""
        number, row = self._find(index)
        table = self.tables[number]
        return f"{self._paths[number].name}/{getattr(table, 'label', table.key)(row)}"

    def each_key(self) -> Iterator[str | None]:
        """The key of each record, by which its split is decided; None where `key` has no value.

        Raises ValueError where records have no names: their numbers change with every edit.
        """
        source = self._source
        if not source.key and any(table.numbered for table in self.tables):
            raise ValueError(
                f"{type(source).__name__}: key={source.key!r}, but its records have only numbers;"
                " set key to a field that names them."
            )
        for number, row in map(self._find, range(len(self))):
            key = source._key(self._paths[number], self.tables[number], row)
            yield None if key.startswith(UNNAMED) and source.key else key

    def index_folders(self) -> list[Path]:
        """Folders to try for an index of these records."""
        return index.folders(self._source.cache, self._paths[0])

    def __getitem__(self, index: int) -> dict[str, Any]:
        number, row = self._find(index)
        table, source = self.tables[number], self._source
        raw = table.read(row, self._names)
        size = sum(map(_weight, raw.values()))
        if size > source.max_record_bytes:
            most = source.max_record_bytes
            raise BadRecord("too_large", f"{size} bytes, more than max_record_bytes={most}")
        plain = (name for name in raw if name not in MADE) if not self._fields else ()
        fields = self._fields or {name: fields_lib.parsed(name, raw) for name in plain}
        values = {key: wanted.value(raw) for key, wanted in fields.items()}
        example = {key: value for key, value in values.items() if value is not None}
        missing = [key for key in source.required if key not in example]
        if missing or not example:
            names = source.fields[missing[0]] if missing else "of fields"
            everything = table.read(row, self._everything)
            there = sorted(n for n, v in everything.items() if v is not None and n not in MADE)
            has = ", ".join(there[:SHOWN])
            raise BadRecord(
                "no_field", f"it has no {names.replace(';', ' or ')}; it has {has or 'nothing'}"
            )
        if source.identity:
            if (identity := self._identity.value(raw)) is None:
                raise BadRecord("no_identity", f"it has no {source.identity}")
            example["identity"] = _number(_plain(identity))
        return example


def named(key: str, top: str = "") -> dict[str, Any]:
    """The fields that the name of a record gives; `top` is the folder of names without one."""
    return {"__key__": key, "__folder__": key.rpartition("/")[0].rpartition("/")[2] or top or None}


def _weight(value: Any) -> int:
    """Approximate size of a value, in bytes."""
    if isinstance(value, (list, tuple)):
        return sum(map(_weight, value))
    if isinstance(value, (bytes, str)):
        return len(value)
    return value.nbytes if isinstance(value, np.ndarray) else 8


def _short(key: str) -> str:
    """A key; a long one is cut, and a hash of the whole appended."""
    if len(key) <= MAX_KEY:
        return key
    digest = hashlib.blake2b(key.encode("utf-8", "surrogateescape"), digest_size=16).hexdigest()
    return f"{key[:MAX_KEY]}...{digest}"


def _plain(value: Any) -> str:
    """A value as text, the same in every format: 7, "7" and b"7 " are one key."""
    if isinstance(value, bytes):
        value = value.decode("utf-8", "backslashreplace")
    return str(value.item() if isinstance(value, np.generic) else value).strip()


def _number(text: str) -> int:
    """An identity as a number: the number itself, or a hash of the text."""
    if text.lstrip("-").isascii() and text.lstrip("-").isdigit() and len(text) < 10:
        return int(text)
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8", "replace"), digest_size=4).digest())


def _uniform(key: str) -> float:
    """A number in 0..1 from a key, the same on every machine."""
    digest = hashlib.blake2b(key.encode("utf-8", "surrogateescape"), digest_size=8).digest()
    return int.from_bytes(digest) / 2**64
