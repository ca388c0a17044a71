"""Offline tokens: the ids of learned codes, computed once before training and kept on disk.

    WORKDIR/tokens/<stream>@<fingerprint>/<fingerprint of the source>/<split>.npy

Rows are examples, in the smallest unsigned type; a first id of `vocab_size` means that the example
has no value, `vocab_size + 1` that its value cannot be encoded. Beside it `<split>.json` holds the
number of finished rows and their SHA-256, which is checked once; a file that is damaged, or of
other data, is recomputed. Data workers memory-map the file.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import io
import itertools
import json
import os
import pickle
import re
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from etils import epath

from mmjax import console, files
from mmjax.data import staging
from mmjax.data.source import BadRecord, Source
from mmjax.errors import StorageError
from mmjax.files import confined, npy
from mmjax.modalities.modality import Modality
from mmjax.parallel import distributed
from mmjax.typing import Piece, TokenSpec, Vocabulary, positions

__all__ = ["TokenTable", "prepare"]

BATCH = 1024  # examples at a time
NOTE_SECONDS = 60.0  # between two records of the progress
MAX_NOTE = 1 << 16  # bytes
MAX_KNOWN = 1 << 20  # different values that are cached


@dataclasses.dataclass(eq=False)
class TokenTable:
    """The ids of one stream of a split, by example; picklable.

    Fields:
      path: the file; empty = in memory.
    """

    spec: TokenSpec
    path: str = ""
    ids_NL: np.ndarray | None = None

    def __getitem__(self, index: int) -> Piece | None:
        """The piece of an example; None when it is absent.

        Raises LookupError for a value that could not be encoded; encode it to learn why.
        """
        if self.ids_NL is None:
            self.ids_NL = _open(epath.Path(self.path), self.spec)
        ids_L = self.ids_NL[index]
        if ids_L[0] == self.spec.vocab_size:
            return None
        if ids_L.max() >= self.spec.vocab_size:  # also ids that no tokenizer gives
            raise LookupError(f"Stream {self.spec.name!r}: example {index} could not be encoded.")
        return Piece(positions(self.spec.grid or len(ids_L)), ids_L=ids_L.astype(np.int32))

    def __getstate__(self):
        kept = None if self.path else self.ids_NL
        return {**self.__dict__, "ids_NL": kept}


def prepare(
    modalities: Mapping[str, Modality],
    streams: Iterable[str],
    vocabulary: Vocabulary,
    source: Source,
    split: str,
    folder: Any = None,
) -> dict[str, TokenTable]:
    """Tables of the offline streams among `streams`; computes missing ones.

    Args:
      folder: workdir; if None or read-only, the ids are kept in memory.
    """
    tables, held = {}, source.held()
    for name in streams:
        spec = vocabulary.spec(name)
        if name in held:
            _check_held(source, spec, held[name].spec)
        if name in held or not modalities[name].offline:
            continue
        if folder is None:
            ids_NL = _Filler(modalities[name], spec, source, split).run()
            tables[name] = TokenTable(spec, ids_NL=ids_NL)
            continue
        place = f"{name}@{spec.fingerprint[:12]}", source.fingerprint()[:12]
        path = epath.Path(folder).joinpath("tokens", *place, f"{split}.npy")
        count, ids_NL = len(source.open(split)), None
        is_there = _is_whole(path, spec, count)
        if distributed.of_main(str(is_there)) != str(True):
            ids_NL = _by_all(modalities[name], spec, source, split, path)
        elif not is_there:  # a host that does not share the folder
            ids_NL = _Filler(modalities[name], spec, source, split).run()
        if ids_NL is None:
            tables[name] = TokenTable(spec, str(path))
            continue
        tables[name] = TokenTable(spec, ids_NL=ids_NL)
    return tables


def _check_held(source: Source, spec: TokenSpec, held: TokenSpec) -> None:
    """Raises ValueError unless tokens that a source holds mean what the run takes them for."""
    who = f"{type(source).__name__}: stream {spec.name!r}"
    if held.fingerprint != spec.fingerprint:
        raise ValueError(
            f"{who} was made by tokenizer {held.fingerprint[:12] or 'none'}, but that of the run is"
            f" {spec.fingerprint[:12] or 'none'}; use the same, or tokenize again with mmjax"
            " tokenize."
        )
    for field in dataclasses.fields(TokenSpec):
        have, want = getattr(held, field.name), getattr(spec, field.name)
        is_cut = field.name == "max_tokens" and spec.grid is None  # a shorter sequence is cut
        if field.name != "name" and have != want and not is_cut:
            raise ValueError(
                f"{who} has {field.name}={have!r:.60}, but its modality in the run says"
                f" {want!r:.60}; use the modality that it was made with, or tokenize again."
            )


def _by_all(
    modality: Modality, spec: TokenSpec, source: Source, split: str, path: epath.Path
) -> np.ndarray | None:
    """Computes a table on all processes, each its part of the rows; the main one joins the parts.

    None where the table is on disk, then. They wait for each other at the coordinator, in no
    collective: one may take much longer. Parts that the main process cannot see, as its folder is
    not shared, or that could not be written, it computes itself.
    """
    count, parts = len(source.open(split)), distributed.count()
    work = [  # of each process: a file of its own, and its rows
        (path if parts == 1 else path.parent / f"{split}.{i}-of-{parts}.npy", rows)
        for i, rows in enumerate(_cut(count, parts))
    ]
    fill = functools.partial(_Filler, modality, spec, source, split)
    ids_NL = fill(*work[distributed.process()]).run()
    distributed.barrier(f"parts of tokens {spec.name} {split}")
    if parts > 1 and distributed.is_main():
        rest = [
            _open(part, spec) if _is_whole(part, spec, len(rows)) else fill(part, rows).run()
            for part, rows in work[1:]
        ]
        ids_NL = np.concatenate([ids_NL, *rest])
        fill(path).keep(ids_NL)
        own = re.compile(rf"{re.escape(split)}\.\d+-of-\d+\.(npy|json)(\.partial)?")
        for left in files.children(path.parent, "*"):  # also of starts with other numbers
            if own.fullmatch(left.name):
                left.unlink(missing_ok=True)
    distributed.barrier(f"tokens {spec.name} {split}")
    if _is_whole(path, spec, count):
        return None
    return ids_NL if distributed.is_main() else fill().run()


def _cut(count: int, parts: int) -> list[range]:
    """Rows in parts of nearly equal length."""
    ends = [count * i // parts for i in range(parts + 1)]
    return [range(a, b) for a, b in itertools.pairwise(ends)]


@dataclasses.dataclass(eq=False)
class _Filler:
    """Computes the ids of a split, resuming an interrupted computation.

    Fields:
      path: where they are kept; None = in memory. rows: those to compute; None = all.
    """

    modality: Modality
    spec: TokenSpec
    source: Source
    split: str
    path: epath.Path | None = None
    rows: range | None = None

    def run(self) -> np.ndarray:
        """Ids [N, L] of the rows, with marks for those that have none."""
        self._noted = time.monotonic()
        records = self.source.open(self.split)
        rows = range(len(records)) if self.rows is None else self.rows
        known: dict[bytes, np.ndarray] = {}
        ids_NL, first = self._begin(len(rows))
        bar = console.Progress(len(rows), first, True, name=f"{self.spec.name} of {self.split}")
        key = self.modality.field or self.spec.name
        for start in range(first, len(rows), BATCH):
            stop = min(start + BATCH, len(rows))
            values, bad = [], []
            for i in range(start, stop):
                try:
                    values.append(records[rows[i]].get(key))
                except BadRecord:  # the reader reports the reason
                    values.append(None)
                    bad.append(i)
            ids_NL[start:stop] = self._rows(values, known, ids_NL.dtype)
            ids_NL[bad] = self.spec.vocab_size + 1
            self._note(ids_NL, stop)
            bar.advance(stop)
        bar.close()
        self.keep(ids_NL)
        part = f" of {len(records)}" if len(rows) < len(records) else ""
        console.say(f"tokens of {self.spec.name!r}, {self.split}: {len(rows)}{part} examples")
        return ids_NL

    def _rows(self, values: Sequence[Any], known: dict[bytes, np.ndarray], dtype) -> np.ndarray:
        """Ids [n, L] of values; equal values are encoded once."""
        digests = [None if value is None else digest(value) for value in values]
        new = {d: v for d, v in zip(digests, values, strict=True) if d and d not in known}
        if len(known) + len(new) > MAX_KNOWN:
            known.clear()
            new = {d: v for d, v in zip(digests, values, strict=True) if d}
        known |= zip(new, self._encode(list(new.values())), strict=True)
        out = np.full((len(values), self.spec.max_tokens), self.spec.vocab_size, dtype)
        for row, d in enumerate(digests):
            if d is not None:
                out[row] = known[d]
        return out

    def _encode(self, values: list[Any]) -> np.ndarray:
        if not values:
            return np.zeros((0, self.spec.max_tokens), np.int32)
        try:
            return self.modality.encode_batch(values)
        except Exception:  # one of them is bad; the reader reports which, and why
            rows = []
            for value in values:
                try:
                    rows.append(self.modality.encode_batch([value])[0])
                except Exception:
                    rows.append(np.full(self.spec.max_tokens, self.spec.vocab_size + 1))
            return np.stack(rows)

    # ---- on disk: <split>.npy.partial, and in <split>.json how many rows of it are done

    def _begin(self, count: int) -> tuple[np.ndarray, int]:
        ids_NL = np.zeros((count, self.spec.max_tokens), _dtype(self.spec))
        if self.path is None:
            return ids_NL, 0
        try:
            done = _done(self._partial, self._note_path, self.spec, count)
            files.make_folder(self.path.parent)
            if not files.is_remote(self.path) and not os.access(self.path.parent, os.W_OK):
                raise PermissionError
        except OSError:
            self.path = None  # the folder is read-only, as when evaluating someone else's run
            return ids_NL, 0
        if done:
            ids_NL[:done] = _open(self._partial, self.spec)[:done]
        return ids_NL, done

    @property
    def _partial(self) -> epath.Path:
        assert self.path is not None
        return self.path.parent / f"{self.path.name}.partial"

    @property
    def _note_path(self) -> epath.Path:
        assert self.path is not None
        return _note_of(self.path)

    def _note(self, ids_NL: np.ndarray, done: int) -> None:
        """Writes the progress, rarely enough that writing takes a small part of the time."""
        if self.path is not None and time.monotonic() - self._noted > NOTE_SECONDS:
            self._write(ids_NL, done)
            self._noted = time.monotonic()

    def _write(self, ids_NL: np.ndarray, done: int) -> None:
        """Writes the ids, then the note; the previous note stays true for the first rows."""
        content = io.BytesIO()
        np.save(content, ids_NL)
        note = {"rows": done, "sha256": _sha256(ids_NL[:done])}
        try:
            with files.replacing(self._partial) as file:
                file.write_bytes(content.getvalue())
            with files.replacing(self._note_path) as file:
                file.write_text(json.dumps(note) + "\n")
        except StorageError as error:  # a bucket that may only be read, or does not answer
            console.say(f"tokens of {self.spec.name!r} are not kept: {error}")
            self.path = None

    def keep(self, ids_NL: np.ndarray) -> None:
        """Writes all ids, where they are kept."""
        if self.path is None:
            return
        self._write(ids_NL, len(ids_NL))
        if self.path is None:
            return
        if files.is_remote(self.path):
            files.move(self._partial, self.path)
        else:
            self._partial.replace(self.path)


def digest(value: Any) -> bytes:
    """16 bytes that equal values share."""
    if isinstance(value, np.ndarray):
        about = f"{value.dtype.str}{value.shape}".encode()
        return hashlib.blake2b(about + value.tobytes(), digest_size=16).digest()
    return hashlib.blake2b(pickle.dumps(value), digest_size=16).digest()


def _dtype(spec: TokenSpec) -> np.dtype:
    return np.min_scalar_type(spec.vocab_size + 1)


def _note_of(path: epath.Path) -> epath.Path:
    return path.parent / f"{path.name.removesuffix('.npy')}.json"


def _sha256(ids_NL: np.ndarray) -> str:
    hashed = hashlib.sha256()
    for start in range(0, len(ids_NL), BATCH):
        hashed.update(np.ascontiguousarray(ids_NL[start : start + BATCH]).data)
    return hashed.hexdigest()


def _is_whole(path: epath.Path, spec: TokenSpec, count: int) -> bool:
    """Whether a file holds the ids of `count` examples, as they were written.

    Prints the reason if an existing file is not usable.
    """
    return files.exists(path) and _done(path, _note_of(path), spec, count) == count


def _done(path: epath.Path, note: epath.Path, spec: TokenSpec, count: int) -> int:
    """Number of usable rows of a file: those that its note counts, if their digest matches."""
    if not files.exists(path) or (not files.exists(note) and path.name.endswith(".partial")):
        return 0
    try:
        progress = json.loads(_content(note, MAX_NOTE))
        if not isinstance(progress, dict) or type(progress.get("rows")) is not int:
            raise ValueError(f"{note.name} does not say how many rows there are")
        ids_NL = _open(path, spec)
        is_part = path.name.endswith(".partial") and 0 <= progress["rows"] <= count
        if len(ids_NL) != count or (progress["rows"] != count and not is_part):
            raise ValueError(f"{progress['rows']} of {len(ids_NL)} rows for {count} examples")
        if _sha256(ids_NL[: progress["rows"]]) != progress.get("sha256"):
            raise ValueError(f"its content is not what {note.name} says")
        return progress["rows"]
    except FileNotFoundError as error:
        wrong = f"{error.filename or note} is absent"
    except (ValueError, RecursionError, EOFError) as error:
        wrong = str(error)
    console.say(f"{path} is no table of these tokens ({wrong}); they are computed anew")
    return 0


def _content(path: epath.Path, limit: int) -> bytes:
    return confined.read(path, limit, path.parent)


def _open(path: epath.Path, spec: TokenSpec) -> np.ndarray:
    """The ids of a file, memory-mapped; of a bucket its copy on this disk.

    Raises ValueError for a file whose shape or type does not match the spec.
    """
    place = staging.one(path) if files.is_remote(path) else path
    with os.fdopen(confined.descriptor(place, place.parent), "rb") as file:
        shape, fortran, dtype = npy.header(file)
        room = os.fstat(file.fileno()).st_size - file.tell()
        if len(shape) != 2 or fortran or shape[0] * shape[1] * dtype.itemsize != room:
            raise ValueError(f"shape {shape} of {dtype} in {room} bytes")
        start = file.tell()
        if not room:
            return np.zeros((0, spec.max_tokens), _dtype(spec))
        ids_NL = np.memmap(file, dtype, "r", start, shape)
    if ids_NL.ndim != 2 or ids_NL.shape[1] != spec.max_tokens or ids_NL.dtype != _dtype(spec):
        raise ValueError(f"rows of {ids_NL.shape[1:]} {ids_NL.dtype}, not {spec.max_tokens}")
    return ids_NL
