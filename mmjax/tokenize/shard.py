"""One unit of work: records of a raw source in, a shard of tokens and its sidecar out.

    DIR/<part>/<split>/00000.array_record    written aside, read again, then renamed
    DIR/<part>/<split>/00000.json            the sidecar, last: a shard without one is not there

Two processes that do the same unit write the same bytes, so nobody has to lock it.
"""

from __future__ import annotations

import collections
import dataclasses
import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from mmjax import errors, files
from mmjax.data import array_records, batches, shuffle, token_set
from mmjax.data.augment import varied
from mmjax.data.reader import as_bad, encode_sample
from mmjax.data.source import BadRecord, Records, key_of
from mmjax.modalities.modality import Modality
from mmjax.run import choose
from mmjax.tokenize.job import Job, Unit
from mmjax.typing import Piece

BATCH = 1024  # examples whose codes are computed at a time
GROUP = 16  # records that are compressed together: a random read unpacks so many
SHOWN = 8  # keys of rejected records that a sidecar names, of each reason


def path_of(job: Job, unit: Unit) -> Any:
    """The file of a shard."""
    return job.folder() / unit.split / token_set.shard_name(unit.number)


def sidecar_of(path: Any) -> Any:
    """Beside a shard: what it holds."""
    return path.parent / f"{path.name.removesuffix(token_set.SUFFIX)}.json"


def note_of(path: Any) -> Any:
    """Beside a shard that is not there: the error of the last attempts."""
    return path.parent / f"{path.name.removesuffix(token_set.SUFFIX)}.failed.json"


def known(job: Job, unit: Unit) -> dict[str, Any] | None:
    """The sidecar of a shard that is whole; None if it is to be made."""
    path = path_of(job, unit)
    side = sidecar_of(path)
    if not (files.exists(side) and files.exists(path)):
        return None
    try:
        about = files.read_json(side)
        is_whole = about["records"] == unit.stop - unit.start
    except (files.DamagedFile, KeyError, TypeError, ValueError):
        return None
    return about if is_whole and path.stat().length == about["bytes"] else None


def make(job: Job, unit: Unit) -> dict[str, Any]:
    """Writes the shard of a unit, unless it is there; returns its sidecar.

    Raises:
      StorageError: what was written cannot be read again.
      OSError: the disk is full.
    """
    if (there := known(job, unit)) is not None:
        return there
    path = path_of(job, unit)
    files.make_folder(path.parent)
    tally = _Tally()
    with files.replacing(path) as partial:
        local = Path(partial)
        array_records.write_records(local, map(tally.add, _examples(job, unit)), GROUP)
        _verify(local, tally)
        about = tally.about(local, unit)
    files.write_json(sidecar_of(path), about)
    return about


class _Tally:
    """Counts and hashes records as they are written."""

    def __init__(self):
        self.hashed, self.records = hashlib.sha256(), 0
        self.rejected: dict[str, list[str]] = collections.defaultdict(list)
        self.tokens: collections.Counter[str] = collections.Counter()
        self.present: collections.Counter[str] = collections.Counter()

    def add(self, example: dict[str, Any]) -> bytes:
        """The record of an example."""
        content = array_records.encode_record(example)
        self.hashed.update(content)
        self.records += 1
        if "bad" in example:
            self.rejected[example["bad"][0]].append(example["key"])
        for name, notes in example.get("tokens", {}).items():
            self.present[name] += 1
            self.tokens[name] += sum(note[0] for note in notes)
        return content

    def about(self, path: Path, unit: Unit) -> dict[str, Any]:
        """The sidecar."""
        return {
            "records": self.records,
            "rows": [unit.start, unit.stop],
            "bytes": path.stat().st_size,
            "sha256": choose.hash_file(path),
            "examples": dict(sorted(self.present.items())),
            "tokens": dict(sorted(self.tokens.items())),
            "rejected": {reason: len(keys) for reason, keys in sorted(self.rejected.items())},
            "rejected_keys": {r: keys[:SHOWN] for r, keys in sorted(self.rejected.items())},
        }


def _verify(path: Path, tally: _Tally) -> None:
    """Raises StorageError unless the records read from a file are those that were written."""
    try:
        file = array_records.ArrayFile(path)
        hashed = hashlib.sha256()
        for row in range(len(file)):
            hashed.update(file.raw(row))
        is_same = len(file) == tally.records and hashed.digest() == tally.hashed.digest()
    except (ValueError, BadRecord) as error:
        raise errors.StorageError(f"Shard {path}: cannot be read again: {error}") from error
    if not is_same:
        raise errors.StorageError(
            f"Shard {path}: what was read again is not what was written; the disk or the network"
            " file system loses data."
        )


# ------------------------------------------------------------------------------ records


def _examples(job: Job, unit: Unit) -> Iterator[dict[str, Any]]:
    """The records of a shard, for `encode_record`."""
    records, specs = job.records(unit.split), job.specs()
    for start in range(unit.start, unit.stop, BATCH):
        rows = range(start, min(start + BATCH, unit.stop))
        for row, found in zip(rows, _encoded(job, unit.split, records, rows), strict=True):
            example: dict[str, Any] = {"key": _key(records, row)}
            if isinstance(found, BadRecord):
                yield example | {"bad": [found.reason, found.detail]}
                continue
            if found.identity is not None:
                example["identity"] = found.identity
            notes = {}
            for name, pieces in found.pieces.items():
                notes[name], example[name] = token_set.packed(pieces, specs[name])
            yield example | {"tokens": notes}


def _key(records: Records, row: int) -> str:
    try:
        return key_of(records, row)
    except BadRecord:
        return str(row)


@dataclasses.dataclass
class _Found:
    """An example on its way: its values, and pieces by stream, of each variation or choice."""

    identity: int | None
    pieces: dict[str, list[Piece]]


def _encoded(job: Job, split: str, records: Records, rows: range) -> list[_Found | BadRecord]:
    """What becomes of each row. Codes are computed of all rows at once."""
    found: list[_Found | BadRecord] = []
    bases: dict[str, list[list[Piece]]] = {name: [] for name in _offline(job)}
    for row in rows:
        try:
            one, of_base = _prepared(job, split, records, row)
        except (MemoryError, errors.RunError):
            raise
        except Exception as error:  # as the reader of a run counts it
            one, of_base = as_bad(error), {name: [] for name in bases}
        found.append(one)
        for name, pieces in of_base.items():
            bases[name].append(pieces)
    for name, pieces in bases.items():
        _add_codes(job.experiment.modalities[name], name, pieces, found)
    for i, one in enumerate(found):
        if isinstance(one, _Found):
            one.pieces = {n: one.pieces[n] for n in job.streams if one.pieces.get(n)}
            try:
                _check(job, one)
            except BadRecord as error:
                found[i] = error
    return found


def _offline(job: Job) -> list[str]:
    return [n for n in job.streams if job.experiment.modalities[n].offline]


def _prepared(
    job: Job, split: str, records: Records, row: int
) -> tuple[_Found, dict[str, list[Piece]]]:
    """Pieces of a row, and those of which codes are computed. Raises what encoding raises."""
    example, modalities, crops = records[row], job.experiment.modalities, job.crops_of(split)
    pieces: dict[str, list[Piece]] = {}
    for name in job.streams:
        augment, base = job.augments.get(name) if crops else None, varied(modalities[name])
        value = example.get(modalities[name].field or name)
        if value is None:
            pieces[name] = []
        elif augment is None:
            encoded = [base.encode(one) for one in base.choices(value)]
            pieces[name] = [piece for piece in encoded if piece is not None]
        else:
            kept = augment.prepare(value, base)
            draws = (augment.generator(name, seed) for seed in _seeds(job, row, crops))
            encoded = [augment(kept, base, draw) for draw in draws] if kept is not None else []
            pieces[name] = [piece for piece in encoded if piece is not None]
    identity = example.get("identity")
    of_base = {name: pieces.pop(name) for name in _offline(job)}
    return _Found(None if identity is None else int(identity), pieces), of_base


def _seeds(job: Job, row: int, crops: int) -> list[int]:
    """A seed of each variation, which all streams of an example share."""
    key = batches.task_key(job.experiment.seed, "tokenize")
    return shuffle.seeds(key, np.arange(crops), np.full(crops, row)).tolist()


def _add_codes(
    modality: Any, name: str, bases: list[list[Piece]], found: list[_Found | BadRecord]
) -> None:
    """Codes of the pieces of all rows, where these are good."""
    flat = [piece for pieces in bases for piece in pieces]
    codes = iter(modality.encode_pieces(flat))
    for one, pieces in zip(found, bases, strict=True):
        mine = [next(codes) for _ in pieces]
        if isinstance(one, _Found):
            one.pieces[name] = mine


def _check(job: Job, found: _Found) -> None:
    """Cuts what is too long. Raises BadRecord for ids out of range and numbers that are none."""
    held = {token_set.HELD: found.pieces}
    checked = encode_sample(held, job.experiment.modalities, list(found.pieces), job.vocabulary)
    for name, pieces in checked.items():
        one: Any = pieces
        found.pieces[name] = [one] if isinstance(one, Piece) else list(one)


def check_modalities(modalities: dict[str, Modality]) -> None:
    """Raises ConfigError for a modality whose codes cannot be computed in batches."""
    for name, modality in modalities.items():
        if modality.offline and not hasattr(modality, "encode_pieces"):
            raise errors.ConfigError(
                f"modalities[{name!r}]={type(modality).__name__} is offline, but has no"
                " encode_pieces(pieces); derive it as Codes is, with a base."
            )
