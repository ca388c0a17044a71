"""TFDS: a directory that TensorFlow Datasets prepared, read without TensorFlow."""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mmjax.config import ranges
from mmjax.data.array_records import ArrayFile
from mmjax.data.files import Files, Table
from mmjax.data.source import BadRecord

__all__ = ["TFDS"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class TFDS(Files):
    """A prepared version of a data set; `path` is the folder with its `dataset_info.json`.

    Splits are its own, so `files` and `shares` stay empty. Images and sounds come as the bytes
    that were stored; sounds that were decoded while preparing, as an array with their rate. The
    files must be ArrayRecord: TFRecord has no random access. A field in others is named by its
    path, `objects/bbox`, and is flat.
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
        """Names of the splits that were prepared."""
        return tuple(split["name"] for split in self._json("dataset_info.json").get("splits", ()))

    def _json(self, name: str) -> dict[str, Any]:
        path = Path(self.path).expanduser() / name
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise ValueError(
                f"TFDS: {str(path)!r} cannot be read: {error}; give the folder of a prepared"
                " version, such as mnist/3.0.1."
            ) from error
        if not isinstance(found, dict):
            raise ValueError(f"TFDS: {str(path)!r} holds no JSON object.")
        return found

    def _paths(self, split: str) -> list[Path]:
        info = self._json("dataset_info.json")
        kind = info.get("fileFormat", "tfrecord")
        if kind != "array_record":
            raise ValueError(
                f"TFDS: {self.path!r} is stored as {kind}, which has no random access; run `tfds"
                " build --file_format=array_record`, or its convert_format."
            )
        found = next(s for s in info["splits"] if s["name"] == split)
        shards = len(found["shardLengths"])
        template = found.get("filepathTemplate", "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}")
        paths = []
        for i in range(shards):
            words = {
                "{DATASET}": info["name"],
                "{SPLIT}": split,
                "{FILEFORMAT}": kind,
                "{SHARD_INDEX}": f"{i:05}",
                "{NUM_SHARDS}": f"{shards:05}",
                "{SHARD_X_OF_Y}": f"{i:05}-of-{shards:05}",
            }
            name = functools.reduce(lambda text, word: text.replace(*word), words.items(), template)
            paths.append(Path(self.path).expanduser() / name)
        absent = [p for p in paths if not p.exists()]
        if absent:
            raise ValueError(f"TFDS: {str(absent[0])!r} does not exist; prepare the data again.")
        return paths

    def _table(self, path: Path) -> Table:
        return _Examples(path, _rates("", self._json("features.json")))


def _rates(path: str, feature: dict[str, Any]) -> dict[str, int]:
    """Fields of a description of features; the rate of those that are sound, else 0."""
    inner = feature.get("featuresDict", {}).get("features")
    if inner is None:
        return {path: int(feature.get("audio", {}).get("sampleRate", 0))}
    found: dict[str, int] = {}
    for name, one in inner.items():
        found |= _rates(f"{path}/{name}".lstrip("/"), one)
    return found


class _Examples:
    """One file of `tf.train.Example`."""

    numbered = True

    def __init__(self, path: Path, rates: dict[str, int]):
        self._file, self._rates, self.names = ArrayFile(path), rates, list(rates)

    def __len__(self) -> int:
        return len(self._file)

    def key(self, row: int) -> str:
        return str(row)

    def read(self, row: int, names: Sequence[str]) -> dict[str, Any]:
        from google.protobuf.message import DecodeError
        from tensorflow_datasets.proto import tf_example_pb2

        try:
            example = tf_example_pb2.Example.FromString(self._file.raw(row))  # type: ignore[attr-defined]
        except DecodeError as error:
            raise BadRecord("example", str(error)[:200]) from error
        features = example.features.feature
        return {n: self._value(n, features[n]) for n in names if n in features}

    def _value(self, name: str, feature: Any) -> Any:
        kind = feature.WhichOneof("kind")
        values = getattr(feature, kind).value if kind else ()
        rate = self._rates.get(name)
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
