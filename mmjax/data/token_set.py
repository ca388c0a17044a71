"""TokenSet: examples whose tokens were computed before, by `mmjax tokenize`.

    DIR/tokens.json                    the manifest, written when the set is whole
    DIR/tokenizers/<stream>@<hex>/     what the ids mean; a run takes a copy
    DIR/<part>/<split>/00000.array_record

A part holds some streams, and every part has the same records in the same files, so that one more
part adds a modality. Record i is record i of the raw source, good or bad, so that training on the
set sees the very batches that training on raw data does.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from etils import epath

from mmjax import files
from mmjax.data import array_records, staging
from mmjax.data.source import HELD, BadRecord, Held, Source
from mmjax.files import bucket, confined
from mmjax.typing import Piece, TokenSpec, positions

__all__ = ["TokenSet"]

FORMAT = 1
MANIFEST = "tokens.json"
SUFFIX = ".array_record"
MAX_MANIFEST = 1 << 28  # bytes; a shard takes some 200
REMEDY = "run the same mmjax tokenize again, which goes on where it stopped"


@dataclasses.dataclass(frozen=True, kw_only=True)
class TokenSet(Source):
    """The tokens that `mmjax tokenize CONFIG --out DIR` wrote, in place of its raw source.

    The modalities of the run stay those of CONFIG; their streams are read, not encoded, and must
    have the same tokenizers. Streams that the set does not hold are absent: of raw values there are
    none.

    Fields:
      path: DIR, local or in a bucket.
    """

    path: str = dataclasses.field(default="", metadata={"identity": "none", "is_moved": True})

    def splits(self) -> tuple[str, ...]:
        """Names of the splits. Raises ValueError for a set that is not finished."""
        return tuple(self._manifest["splits"])

    def keys(self) -> tuple[str, ...]:
        """`identity`; tokens have the names of their streams."""
        return ("identity",)

    def held(self) -> dict[str, Held]:
        """Streams of all parts, with their tokenizers."""
        found = {}
        for part in self._manifest["parts"].values():
            for name, about in part["streams"].items():
                folder = str(epath.Path(self.path) / about["tokenizer"])
                found[name] = Held(spec_of(about["spec"]), folder if about["tokenizer"] else "")
        return found

    def open(self, split: str) -> TokenRecords:
        """Random access to one split.

        Raises ValueError for a set that is unfinished, cut, or of a later format.
        """
        manifest = self._manifest
        if split not in manifest["splits"]:
            raise ValueError(
                f"TokenSet: split={split!r} does not exist; there are"
                f" {', '.join(manifest['splits'])}."
            )
        for name, part in manifest["parts"].items():
            folder = epath.Path(self.path) / name / split
            have = _sizes(folder)
            for number, shard in enumerate(part["shards"][split]):
                file = shard_name(number)
                _check_size(folder / file, have.get(file), shard["bytes"])
        return TokenRecords(self.path, split)

    def fingerprint(self) -> str:
        """SHA-256 of all shards and of what their ids mean."""
        about = {
            "source": self._manifest["source"],
            "splits": self._manifest["splits"],
            "parts": self._manifest["parts"],
        }
        text = json.dumps(about, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()

    @property
    def _manifest(self) -> dict[str, Any]:
        return read_manifest(self.path)


class TokenRecords:
    """The records of one split; picklable, and cheap to open again."""

    def __init__(self, path: str, split: str):
        self._path, self._split = path, split
        manifest = read_manifest(path)
        self._ends = np.asarray(manifest["splits"][split], np.int64)
        self._parts = {
            name: {stream: spec_of(about["spec"]) for stream, about in part["streams"].items()}
            for name, part in manifest["parts"].items()
        }

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def key(self, index: int) -> str:
        """The key that the raw source gave the record."""
        return str(self._values(index, next(iter(self._parts))).get("key", index))

    def __getitem__(self, index: int) -> dict[str, Any]:
        """`identity`, and the pieces by stream. Raises BadRecord as the raw source, or its
        modalities, did."""
        example: dict[str, Any] = {}
        pieces: dict[str, list[Piece]] = {}
        key = None
        for part, specs in self._parts.items():
            values = self._values(index, part)
            if key is not None and values["key"] != key:
                raise BadRecord("other_key", f"{part} has {values['key']!r}, not {key!r}")
            key = values["key"]
            if "bad" in values:
                raise BadRecord(*values["bad"])
            if "identity" in values:
                example["identity"] = values["identity"]
            pieces |= unpacked(values, specs)
        return {**example, HELD: pieces}

    def _values(self, index: int, part: str) -> dict[str, Any]:
        if not 0 <= index < len(self):
            raise IndexError(f"Record {index} is outside 0..{len(self) - 1}.")
        number = int(np.searchsorted(self._ends, index, side="right"))
        row = index - (int(self._ends[number - 1]) if number else 0)
        file = _file(f"{self._path}/{part}/{self._split}/{shard_name(number)}")
        return array_records.decode_record(file.raw(row))


def shard_name(number: int) -> str:
    """The file of a shard."""
    return f"{number:05d}{SUFFIX}"


def spec_of(values: Mapping[str, Any]) -> TokenSpec:
    """A spec from JSON."""
    made: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
    return TokenSpec(**made)


def read_manifest(path: str) -> dict[str, Any]:
    """The manifest of a set. Raises ValueError if there is none, or of a later format."""
    place = epath.Path(path) / MANIFEST
    stamp = _stamp(place)
    if not path or stamp is None:
        is_begun = bool(path) and files.exists(epath.Path(path) / "tokens" / "job.json")
        wrong = f"is not finished; {REMEDY}" if is_begun else "holds no tokens; mmjax tokenize"
        raise ValueError(f"TokenSet: path={path!r} {wrong}{'' if is_begun else ' makes them'}.")
    return _read(str(place), stamp)


def _stamp(place: Any) -> tuple[int, int] | None:
    if not files.exists(place):
        return None
    about = place.stat()
    return about.length, int(about.mtime)


@functools.lru_cache(maxsize=16)
def _read(place: str, stamp: tuple[int, int]) -> dict[str, Any]:
    del stamp
    path = epath.Path(place)
    try:
        manifest = json.loads(confined.read(path, MAX_MANIFEST, path.parent))
        form = manifest["format"]
        {name: manifest[name] for name in ("splits", "parts", "source")}
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(
            f"TokenSet: {place} is damaged ({error}); mmjax tokenize finalize writes it anew."
        ) from error
    if form != FORMAT:
        raise ValueError(
            f"TokenSet: {place} has format={form!r:.40}, this version reads {FORMAT}; use the"
            " version that wrote it, or tokenize again."
        )
    return manifest


def _sizes(folder: Any) -> dict[str, int]:
    """Bytes of the files in a folder, by one listing."""
    if files.is_remote(folder):
        return {name: about.size for name, about in bucket.listing(folder).items()}
    if not files.exists(folder):
        return {}
    return {entry.name: entry.stat().st_size for entry in os.scandir(folder)}


def _check_size(path: Any, have: int | None, size: int) -> None:
    if have != size:
        wrong = "is missing" if have is None else f"has {have} bytes, not {size}, and is cut"
        raise ValueError(
            f"TokenSet: shard {path} {wrong}; copy it again, or delete it and {REMEDY}."
        )


@functools.lru_cache(maxsize=1024)
def _file(path: str) -> array_records.ArrayFile:
    place = staging.one(epath.Path(path)) if files.is_remote(path) else Path(path)
    return array_records.ArrayFile(place)


# ------------------------------------------------------------------------------ pieces as bytes


class _Note(NamedTuple):
    """What the header of a record says of a piece."""

    length: int
    num_cut: int
    is_placed: int  # whether positions follow, as they are not those of the spec


def dtype(spec: TokenSpec) -> np.dtype:
    """The smallest type of the ids of a stream, little-endian; of numbers float32."""
    kind = np.min_scalar_type(max(spec.vocab_size - 1, 0)) if spec.vocab_size else np.float32
    return np.dtype(kind).newbyteorder("<")


def packed(pieces: Sequence[Piece], spec: TokenSpec) -> tuple[list[_Note], bytes]:
    """The pieces of one stream, for a record."""
    notes, parts = [], []
    for piece in pieces:
        values = piece.values_LP if piece.ids_L is None else piece.ids_L
        is_placed = not np.array_equal(piece.position_LA, _places(spec, piece.length))
        parts.append(np.ascontiguousarray(values, dtype(spec)).tobytes())
        if is_placed:
            parts.append(np.ascontiguousarray(piece.position_LA, "<f4").tobytes())
        notes.append(_Note(piece.length, int(piece.num_cut), int(is_placed)))
    return notes, b"".join(parts)


def unpacked(values: Mapping[str, Any], specs: Mapping[str, TokenSpec]) -> dict[str, list[Piece]]:
    """The pieces of a record by stream. Raises BadRecord for bytes that are none."""
    try:
        return {
            name: list(_pieces(values[name], notes, specs[name]))
            for name, notes in values.get("tokens", {}).items()
        }
    except (ValueError, KeyError, TypeError) as error:
        raise BadRecord("tokens", f"{error}"[:200]) from error


def _pieces(content: bytes, notes: Sequence[Sequence[int]], spec: TokenSpec):
    start, kind = 0, dtype(spec)
    for note in notes:
        length, num_cut, is_placed = _Note(*note)
        width = 1 if spec.vocab_size else spec.width
        x = np.frombuffer(content, kind, length * width, start)
        start += x.nbytes
        place = _places(spec, length)
        if is_placed:
            place = np.frombuffer(content, "<f4", length * place.shape[1], start)
            place = place.reshape(length, -1).astype(np.float32)
            start += place.nbytes
        if spec.vocab_size:
            yield Piece(place, ids_L=x.astype(np.int32), num_cut=num_cut)
        else:
            yield Piece(
                place, values_LP=x.reshape(length, width).astype(np.float32), num_cut=num_cut
            )


@functools.lru_cache(maxsize=4096)
def _places(spec: TokenSpec, length: int) -> np.ndarray:
    """Positions of the first tokens of a stream, where nothing else is said."""
    if spec.grid is None:
        return positions(length)
    return positions(spec.grid)[:length]
