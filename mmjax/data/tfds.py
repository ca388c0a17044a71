"""TFDS: a directory that TensorFlow Datasets prepared, read without TensorFlow."""

from __future__ import annotations

import dataclasses
import functools
import json
import os
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from mmjax import files
from mmjax.config import ranges
from mmjax.data import staging
from mmjax.data.array_records import ArrayFile
from mmjax.data.files import LIMIT, Files, Table
from mmjax.data.source import BadRecord
from mmjax.files import confined

__all__ = ["TFDS"]

MAX_INFO = 1 << 24  # bytes of a JSON description
# Types of the numbers of tensors.
NUMBERS = (
    "bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64", "float16",
    "float32", "float64",
)  # fmt: skip


@functools.lru_cache(16)
def _staged(path: str) -> Path:
    """The copy of a folder of a bucket."""
    (place,) = staging.find(path)
    if not place.is_dir():
        raise ValueError(f"TFDS: {path!r} does not exist; give the folder of a prepared version.")
    return place


UNPACKED = 8  # bytes in memory for a number stored in one byte


@dataclasses.dataclass(frozen=True, kw_only=True)
class TFDS(Files):
    """A prepared data set version; `path` is the folder with its `dataset_info.json`.

    The data set defines its splits, so `files` and `shares` stay empty. Images and sounds come as
    the stored bytes, and sounds that were decoded during preparation as an array with their rate.
    The files must be ArrayRecord: TFRecord has no random access. A nested field is named by its
    path, `objects/bbox`. Tensors, sequences and boxes have the shape and type of `features.json`;
    classes are numbers, and `class_names` has their names. A record may take an eighth of
    `max_record_bytes`, since its numbers take up to eight times as much when unpacked. All files
    lie in the folder.
    """

    shares: dict[str, ranges.NonNegative] = dataclasses.field(default_factory=dict)

    def __post_init__(self):
        if self.files or self.shares:
            raise ValueError(
                f"TFDS: files={self.files}, shares={self.shares}, but its splits are its own; leave"
                " both empty."
            )
        super().__post_init__()

    def splits(self) -> tuple[str, ...]:
        """Names of the prepared splits."""
        return tuple(self._shards())

    def class_names(self, field: str) -> tuple[str, ...]:
        """Names of the classes of a `ClassLabel` feature, for `Label(names=...)`.

        Raises ValueError if the folder has none.
        """
        path = self._folder / f"{field.replace('/', '-')}.labels.txt"
        try:
            content = confined.read(path, MAX_INFO, self._folder).decode()
        except (OSError, ValueError) as error:
            raise ValueError(
                f"TFDS: there are no names of classes of {field!r}: {error}; give a ClassLabel."
            ) from error
        return tuple(line for line in content.splitlines() if line)

    @property
    def _folder(self) -> Path:
        if files.is_remote(self.path):
            return _staged(self.path)
        return Path(self.path).expanduser()

    def _json(self, name: str) -> dict[str, Any]:
        path = self._folder / name
        try:
            content = json.loads(confined.read(path, MAX_INFO, self._folder))
        except (OSError, ValueError, RecursionError) as error:
            raise ValueError(
                f"TFDS: {str(path)!r} cannot be read: {error}; give the folder of a prepared"
                " version, such as mnist/3.0.1."
            ) from error
        if not isinstance(content, dict):
            raise ValueError(f"TFDS: {str(path)!r} holds no JSON object.")
        return content

    def _shards(self) -> dict[str, dict[str, Any]]:
        """The entry of each split in `dataset_info.json`."""
        splits = self._json("dataset_info.json").get("splits", [])
        if not isinstance(splits, list) or not all(
            isinstance(s, dict)
            and isinstance(s.get("name"), str)
            and isinstance(s.get("shardLengths"), list)
            and isinstance(s.get("filepathTemplate", ""), str)
            for s in splits
        ):
            raise ValueError(
                f"TFDS: {str(self._folder)!r}: dataset_info.json does not say the name and the"
                " shardLengths of each split; prepare the data again."
            )
        return {split["name"]: split for split in splits}

    def _paths(self, split: str) -> list[Path]:
        info = self._json("dataset_info.json")
        kind = info.get("fileFormat", "tfrecord")
        if kind != "array_record":
            raise ValueError(
                f"TFDS: {self.path!r} is stored as {kind}, which has no random access; run `tfds"
                " build --file_format=array_record`, or its convert_format."
            )
        split_info = self._shards()[split]
        shards = len(split_info["shardLengths"])
        template = split_info.get(
            "filepathTemplate", "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}"
        )
        paths = []
        for i in range(shards):
            words = {
                "{DATASET}": str(info.get("name")),
                "{SPLIT}": split,
                "{FILEFORMAT}": kind,
                "{SHARD_INDEX}": f"{i:05}",
                "{NUM_SHARDS}": f"{shards:05}",
                "{SHARD_X_OF_Y}": f"{i:05}-of-{shards:05}",
            }
            name = functools.reduce(lambda text, word: text.replace(*word), words.items(), template)
            paths.append(self._folder / name)
        for path in paths:
            try:
                os.close(confined.descriptor(path, self._folder))
            except FileNotFoundError:
                raise ValueError(
                    f"TFDS: {str(path)!r} does not exist; prepare the data again."
                ) from None
            except (OSError, confined.Refused) as error:
                raise ValueError(f"TFDS: {error}; all its files lie in its folder.") from error
        return paths

    def _table(self, path: Path) -> Table:
        try:
            features = _features("", self._json("features.json"))
        except (AttributeError, TypeError, ValueError, RecursionError) as error:
            if isinstance(error, ValueError) and str(error).startswith("TFDS: "):
                raise
            raise ValueError(
                f"TFDS: {str(self._folder)!r}: features.json describes no features; prepare the"
                " data again."
            ) from error
        return _Examples(path, features, self.max_record_bytes // UNPACKED)


class _Feature(NamedTuple):
    """What `features.json` says of a stored field."""

    rate: int = 0  # of sound
    shape: tuple[int, ...] | None = None  # -1 = any; None = as stored
    dtype: str = ""
    encoding: str = "none"  # bytes and zlib: the numbers are stored as bytes


def _features(path: str, feature: dict[str, Any], repeats: bool = False) -> dict[str, _Feature]:
    """The stored fields of a feature description; `repeats` inside of a sequence."""
    inner = feature.get("featuresDict", {}).get("features")
    if inner is not None:
        found: dict[str, _Feature] = {}
        for name, one in inner.items():
            found |= _features(f"{path}/{name}".lstrip("/"), one, repeats)
        return found
    if (sequence := feature.get("sequence")) is not None:
        # One sequence in another is stored in parts, which are left as they are.
        return {path: _Feature()} if repeats else _features(path, sequence["feature"], True)
    tensor = feature.get("tensor") or feature.get("boundingBox")
    if tensor is None:
        return {path: _Feature(int(feature.get("audio", {}).get("sampleRate", 0)))}
    shape = tuple(int(size) for size in tensor.get("shape", {}).get("dimensions", ()))
    shape = (-1, *shape) if repeats else shape
    dtype = str(tensor.get("dtype", ""))
    if shape and sum(size < 0 for size in shape) < 2 and dtype in NUMBERS:
        return {path: _Feature(0, shape, dtype, str(tensor.get("encoding", "none")).lower())}
    return {path: _Feature()}


class _Examples:
    """One file of `tf.train.Example`."""

    numbered = True

    def __init__(self, path: Path, features: dict[str, _Feature], limit: int = LIMIT // UNPACKED):
        self._file, self._features, self.names = ArrayFile(path, limit), features, list(features)
        self._limit = limit

    def __len__(self) -> int:
        return len(self._file)

    def key(self, row: int) -> str:
        return str(row)

    def read(self, row: int, names: Sequence[str]) -> dict[str, Any]:
        from google.protobuf.message import DecodeError
        from tensorflow_datasets.proto import tf_example_pb2

        content = self._file.raw(row)
        if len(content) > self._limit:
            raise BadRecord("too_large", f"{len(content)} bytes, more than {self._limit}")
        try:
            example = tf_example_pb2.Example.FromString(content)  # type: ignore[attr-defined]
        except DecodeError as error:
            raise BadRecord("example", str(error)[:200]) from error
        features = example.features.feature
        return {n: self._value(n, features[n]) for n in names if n in features}

    def _value(self, name: str, feature: Any) -> Any:
        kind = feature.WhichOneof("kind")
        values = getattr(feature, kind).value if kind else ()
        known = self._features.get(name, _Feature())
        if known.shape is not None and kind:
            return self._tensor(name, known, kind, values)
        rate = known.rate
        if kind != "bytes_list" and rate:
            samples = np.asarray(values, np.float32 if kind == "float_list" else np.int64)
            if samples.dtype == np.int64:
                narrow = np.int16 if np.abs(samples).max(initial=0) < 1 << 15 else np.int32
                samples = samples.astype(narrow)
            return samples, rate
        if len(values) == 1:
            return values[0]
        if not values:
            return None
        return list(values) if kind == "bytes_list" else np.asarray(values)

    def _tensor(self, name: str, known: _Feature, kind: str, values: Any) -> np.ndarray:
        """The numbers of a tensor in its shape and type."""
        assert known.shape is not None
        try:
            if kind == "bytes_list":
                content = values[0] if len(values) else b""
                if known.encoding == "zlib":
                    unpacker = zlib.decompressobj()
                    content = unpacker.decompress(content, self._limit * UNPACKED + 1)
                    if len(content) > self._limit * UNPACKED or unpacker.unconsumed_tail:
                        raise BadRecord("too_large", f"{name}: more than {self._limit} bytes")
                return np.frombuffer(content, known.dtype).reshape(known.shape)
            return np.asarray(values).astype(known.dtype).reshape(known.shape)
        except (ValueError, zlib.error, IndexError) as error:
            raise BadRecord("example", f"{name}: {error}"[:200]) from error
