"""One small multimodal set, written in every format by the writers of those formats."""

from __future__ import annotations

import csv
import io
import json
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import soundfile

from mmjax.data.array_records import ArrayRecords, write_array_records
from mmjax.data.files import Files
from mmjax.data.folder import Folder
from mmjax.data.parquet import Parquet
from mmjax.data.tfds import TFDS
from mmjax.data.webdataset import WebDataset

COLOURS = {"red": (220, 30, 40), "green": (20, 180, 60), "blue": (30, 60, 220), "white": (250,) * 3}
FORMATS = ("tar", "csv", "jsonl", "stems", "parquet", "array_records", "tfds")


def png(pixels: np.ndarray) -> bytes:
    file = io.BytesIO()
    PIL.Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def wav(samples: np.ndarray, rate: int = 16000) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, samples, rate, format="WAV", subtype="PCM_16")
    return file.getvalue()


def records(count: int = 24, size: int = 40, audio: bool = True) -> list[dict[str, Any]]:
    """Coloured pictures with a caption, and a tone whose height goes with the colour.

    Sizes and lengths differ; every fifth record lacks the sound.
    """
    rng, found = np.random.default_rng(0), []
    for i in range(count):
        name = list(COLOURS)[i % len(COLOURS)]
        shape = (size + i % 3, size + 5, 3)
        pixels = np.clip(COLOURS[name] + rng.normal(0, 8, shape), 0, 255).astype(np.uint8)
        time = np.arange(4000 + 100 * i) / 16000
        tone = 0.5 * np.sin(2 * np.pi * 300 * (1 + i % len(COLOURS)) * time)
        found.append(
            {
                "id": f"{i:04}",
                "image": png(pixels),
                "text": f"a {name} square, number {i}",
                "audio": wav(tone) if audio and i % 5 else None,
                "group": i % len(COLOURS),
            }
        )
    return found


def write(folder: Path, kind: str, rows: list[dict[str, Any]]) -> Files:
    """Writes the set; the source that reads it."""
    folder.mkdir(parents=True, exist_ok=True)
    common: dict[str, Any] = {"identity": "group", "shares": {"train": 0.75, "val": 0.25}}
    same = {"image": "image", "text": "text", "audio": "audio"}
    files = {"image": "png", "text": "txt", "audio": "wav"}
    if kind == "tar":
        half = len(rows) // 2
        for i, some in enumerate((rows[half:], rows[:half])):  # in another order
            write_tar(folder / f"set-{i:03}.tar", some)
        path = f"{folder}/set-{{000..001}}.tar"
        return WebDataset(path=path, fields=files, key="__key__", **common | {"identity": "cls"})
    if kind in ("csv", "jsonl"):
        write_table(folder, kind, rows)
        return Folder(path=str(folder), fields=same, key="id", file_columns=("image", "audio"),
                      **common)  # fmt: skip
    if kind == "stems":
        for row in rows:
            for field, content in members(row).items():
                (folder / f"{row['id']}.{field}").write_bytes(content)
        return Folder(path=str(folder), fields=files, key="__key__", **common | {"identity": "cls"})
    if kind == "parquet":
        write_parquet(folder / "set.parquet", rows)
        return Parquet(path=f"{folder}/*.parquet", fields=same, key="id", **common)
    if kind == "array_records":
        write_array_records(folder / "set.array_record", rows)
        return ArrayRecords(path=f"{folder}/set.array_record", fields=same, key="id", **common)
    assert kind == "tfds"
    write_tfds(folder, rows)
    return TFDS(path=str(folder), fields=same, key="id", identity="group")


def members(row: dict[str, Any]) -> dict[str, bytes]:
    text, group = row["text"].encode(), str(row["group"]).encode()
    found = {"png": row["image"], "txt": text, "wav": row["audio"], "cls": group}
    return {field: content for field, content in found.items() if content is not None}


def write_tar(path: Path, rows: list[dict[str, Any]]) -> None:
    with tarfile.open(path, "w") as tar:
        for row in rows:
            for field, content in members(row).items():
                add(tar, f"{row['id']}.{field}", content)


def add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(content)
    tar.addfile(info, io.BytesIO(content))


def write_table(folder: Path, kind: str, rows: list[dict[str, Any]]) -> None:
    lines = []
    for row in rows:
        names = {}
        for key, suffix in (("image", "png"), ("audio", "wav")):
            if row[key] is not None:
                names[key] = f"{key}/{row['id']}.{suffix}"
                (folder / key).mkdir(exist_ok=True)
                (folder / names[key]).write_bytes(row[key])
        lines.append({"id": row["id"], "image": names["image"], "audio": names.get("audio"),
                      "text": row["text"], "group": row["group"]})  # fmt: skip
    if kind == "jsonl":
        (folder / "metadata.jsonl").write_text("".join(json.dumps(x) + "\n" for x in lines))
        return
    with (folder / "metadata.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(lines[0]))
        writer.writeheader()
        writer.writerows(lines)


def write_parquet(path: Path, rows: list[dict[str, Any]]) -> None:
    """Images as structs, as `datasets` writes them, sounds as plain bytes."""
    import pyarrow
    from pyarrow import parquet

    columns = {key: [row[key] for row in rows] for key in ("id", "text", "audio", "group")}
    columns["image"] = [{"bytes": row["image"], "path": None} for row in rows]
    parquet.write_table(pyarrow.table(columns), path, row_group_size=5)


def write_tfds(folder: Path, rows: list[dict[str, Any]]) -> None:
    """By the serializer of tfds; splits are its own, here those of the key hash of the others."""
    import tensorflow_datasets as tfds
    from array_record.python import array_record_module
    from tensorflow_datasets.proto import tf_example_pb2

    from mmjax.data.files import _uniform

    features = tfds.features.FeaturesDict(
        {
            "id": tfds.features.Text(),
            "image": tfds.features.Image(encoding_format="png"),
            "text": tfds.features.Text(),
            "audio": tfds.features.Text(),  # bytes; its own Audio needs TensorFlow to be written
            "group": np.int64,
        }
    )
    features.save_config(str(folder))
    splits = []
    for split in ("train", "val"):
        some = [r for r in rows if (_uniform(r["id"]) < 0.75) == (split == "train")]
        name = f"own-{split}.array_record-00000-of-00001"
        writer = array_record_module.ArrayRecordWriter(str(folder / name), "group_size:1")
        for row in some:
            example = {**row, "image": io.BytesIO(row["image"]), "audio": row["audio"] or b""}
            written = tf_example_pb2.Example.FromString(features.serialize_example(example))
            if row["audio"] is None:
                del written.features.feature["audio"]
            writer.write(written.SerializeToString())
        writer.close()
        splits.append({"name": split, "shardLengths": [str(len(some))]})
    info = {"name": "own", "version": "1.0.0", "fileFormat": "array_record", "splits": splits}
    (folder / "dataset_info.json").write_text(json.dumps(info))
