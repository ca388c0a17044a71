"""Your own data by one path: which source reads them, which fields are which modality, which files
are which split."""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mmjax import files as mmjax_files
from mmjax.config.error import ConfigError
from mmjax.data import index, shards, staging, started
from mmjax.data.array_records import ArrayRecords
from mmjax.data.files import MADE, Files
from mmjax.data.folder import TABLES, Folder
from mmjax.data.hugging_face import HuggingFace
from mmjax.data.parquet import Parquet
from mmjax.data.source import BadRecord, Records, key_of
from mmjax.data.tfds import TFDS
from mmjax.data.webdataset import WebDataset
from mmjax.modalities.sound import BEGINNINGS

__all__ = ["KINDS_OF_DATA", "eval_split", "is_there", "source_of"]

# Fields of files, by what follows the dot; several in a record: the first counts.
SUFFIXES = {
    "image": "jpg;jpeg;png;webp;gif;bmp;tif;tiff;ppm;jp2;avif",
    "text": "txt;text;caption",
    "audio": "flac;wav;mp3;ogg;oga;opus;aiff;aif;au;caf;m4a;aac;mp4;webm;mkv",
}
# Columns of tables, where their values do not say what they are.
COLUMNS = {
    "image": "image;img;picture;photo;jpg;png",
    "text": "text;caption;captions;title;sentence;description;transcript;transcription;prompt",
    "audio": "audio;sound;speech;wav;flac;mp3",
}
CLASSES = ("label", "class", "category", "class_name", "label_name")
SPLITS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "dev"), "val"),
    **dict.fromkeys(("test", "testing"), "test"),
}
SHARDS = {".tar": WebDataset, ".parquet": Parquet, ".array_record": ArrayRecords}
TABLE = (".csv", ".jsonl")
PACKED = (".zip", ".gz", ".tgz", ".bz2", ".xz", ".zst", ".7z", ".rar")
LOOK = 32  # records whose values say what their fields are
IMAGES = (b"\x89PNG", b"\xff\xd8\xff", b"GIF8", b"BM", b"II*\0", b"MM\0*", b"\0\0\0\x0cjP")
INNER = (b"WEBP", b"avif", b"avis")  # after eight bytes
KINDS_OF_DATA = (
    "a folder of tar, Parquet or ArrayRecord shards, or a pattern of them (data/set-*.tar); a .csv"
    " or .jsonl table whose columns name files, or a folder with metadata.csv; a folder with 1.jpg"
    " beside 1.txt; one folder a class (cat/1.jpg, dog/2.jpg); a TFDS or Hugging Face folder."
    " Folders or files named train, val, test are the splits"
)


def is_there(data: str) -> bool:
    """Whether there is something at a local path or pattern."""
    if mmjax_files.is_remote(data):
        return False
    return any(os.path.lexists(path) for path in index.find(data))


def source_of(data: str) -> Files:
    """The source for a path, by what is there; by its name alone where nothing is.

    Objects of a bucket are copied to be looked at where a run is about to read them anyway.

    Raises ConfigError for what is no data, with what to write.
    """
    if mmjax_files.is_remote(data):
        return _in_bucket(data) if started.reads_data() else _unseen(data)
    return _of_paths(index.find(data), data) if is_there(data) else _unseen(data)


def _in_bucket(data: str) -> Files:
    """By the copies, with the paths of the bucket."""
    try:
        copies = staging.find(data)
    except (ValueError, OSError):  # the run itself says why
        return _unseen(data)
    if not copies or not all(path.exists() for path in copies):
        return _unseen(data)
    source = _of_paths(copies, data)
    by_split = {split: staging.address(path) for split, path in source.files.items()}
    return dataclasses.replace(source, path=staging.address(source.path), files=by_split)


def _of_paths(paths: Sequence[Path], data: str) -> Files:
    if len(paths) == 1 and paths[0].is_dir():
        bare = _folder(paths[0])
    else:
        bare = _files([p for p in paths if not shards.is_note(p.name)], data)
    fields, extra = _fields(bare, data)
    return dataclasses.replace(bare, fields=fields, **extra)


def eval_split(source: Files) -> str:
    """The split that is held out, by the names that there are."""
    there = [name for name in source.splits() if name != "train"]
    by_name = {SPLITS.get(name.lower(), name): name for name in reversed(there)}
    return by_name.get("val") or by_name.get("test") or (there or ["val"])[0]


def _unseen(data: str) -> Files:
    """By its suffix, with pictures and texts, as they are in most sets."""
    kind = SHARDS.get(os.path.splitext(data)[1])
    names = SUFFIXES if kind is WebDataset else {"image": "image;file_name", "text": "text;caption"}
    fields = {key: names[key] for key in ("image", "text")}
    return (kind or Folder)(path=data, fields=fields)


def _no_data(data: Any, what: str) -> ConfigError:
    return ConfigError(f"DATA={str(data)!r} is {what}. It may be {KINDS_OF_DATA}.")


# ------------------------------------------------------------------------- which source


def _folder(folder: Path) -> Files:
    """The source of a folder, without fields."""
    path, inside = str(folder), sorted(p for p in folder.iterdir() if not shards.is_note(p.name))
    if not inside:
        raise _no_data(folder, "a folder without files")
    if (folder / "dataset_info.json").exists() and (folder / "features.json").exists():
        return TFDS(path=path)
    if any((d / "state.json").exists() for d in (folder, *(p for p in inside if p.is_dir()))):
        return _divided(HuggingFace(path=path))
    if any(os.path.lexists(folder / name) for name in TABLES):
        return Folder(path=path, file_columns=())
    named = [p for p in inside if p.is_dir() and p.name.lower() in SPLITS]
    if named:
        return _split_folders(folder, named)
    whole = [p for p in inside if p.is_file() and (p.suffix in SHARDS or p.suffix in TABLE)]
    if whole:
        return _files(whole, folder)
    packed = [p for p in inside if p.suffix.lower() in PACKED]
    if len(packed) == len(inside):
        raise _no_data(packed[0], f"packed ({packed[0].suffix[1:]}): unpack it, give its folder")
    if any(folder.rglob("*.parquet")):
        return _divided(HuggingFace(path=path))
    return Folder(path=path, file_columns=())


def _divided(source: HuggingFace) -> Files:
    """With a part held out where there is one split."""
    shares = {"train": 0.9, "val": 0.1}
    alone = len(source.splits()) == 1
    return dataclasses.replace(source, shares=shares) if alone else source


def _split_folders(folder: Path, named: Sequence[Path]) -> Files:
    """Folders named train, val, test."""
    by_split = _by_split(named, folder)
    sources = {split: _folder(one) for split, (one, *_) in by_split.items()}
    kinds = {type(source).__name__ for source in sources.values()}
    if len(kinds) > 1:
        raise _no_data(folder, f"of several kinds: its splits are {', '.join(sorted(kinds))}")
    first = sources["train"]
    if isinstance(first, HuggingFace):  # its own layout says the splits
        return HuggingFace(path=str(folder))
    if isinstance(first, TFDS):
        raise _no_data(folder, "of several TFDS versions; give one of them")
    patterns = {split: s.path or s.files["train"] for split, s in sources.items()}
    return _with_splits(first, patterns)


def _files(paths: Sequence[Path], data: Any) -> Files:
    """The source of files of one kind, without fields."""
    if not paths:
        raise _no_data(data, "a pattern that matches READMEs and hidden files alone")
    kinds = sorted({p.suffix.lower() for p in paths})
    if len(paths) == 1:
        _refuse_odd(paths[0])
    known = [kind for kind in kinds if kind in SHARDS or kind in TABLE]
    if not known:
        raise _no_data(data, f"{len(paths)} files of {', '.join(kinds)[:80]}: give their folder")
    if len(known) > 1:
        raise _no_data(
            data, f"of several kinds ({', '.join(known)}): name one, such as *{known[0]}"
        )
    paths = [p for p in paths if p.suffix.lower() == known[0]]
    make = SHARDS.get(known[0], Folder)
    if make is Folder and len(paths) > 1 and not any(map(_split_named, paths)):
        names = ", ".join(p.name for p in paths[:5])
        raise _no_data(data, f"several tables ({names}): name one, or call them train, val, test")
    by_split = _by_split(paths, data) if any(map(_split_named, paths)) else {"train": paths}
    patterns = {split: _pattern(some) for split, some in by_split.items()}
    if len(patterns) == 1 and isinstance(data, str) and len(paths) > 1:
        patterns = {"train": data}
    bare = make(path=patterns["train"])
    if isinstance(bare, Folder):  # cells are to be seen, not the files that they name
        bare = dataclasses.replace(bare, file_columns=())
    return _with_splits(bare, patterns)


def _refuse_odd(path: Path) -> None:
    """Says what to write in place of one file that is no set of data."""
    suffix = path.suffix.lower()
    if suffix in PACKED:
        raise _no_data(path, f"packed ({suffix[1:]}): unpack it, give the tar or the folder")
    kind = next((k for k, names in SUFFIXES.items() if suffix[1:] in names.split(";")), "")
    if kind:
        word = {"image": "one picture", "text": "one text", "audio": "one sound"}[kind]
        raise _no_data(path, f"{word}: give the folder {str(path.parent)!r}")
    if suffix not in SHARDS and suffix not in TABLE:
        raise _no_data(path, f"a file of an unknown kind ({suffix or 'no suffix'})")


def _split_named(path: Path) -> str:
    """The split that the name of a file or folder says; empty = none."""
    if path.is_dir():
        return SPLITS.get(path.name.lower(), "")
    words = re.findall("[a-z]+", path.name.lower().partition(".")[0]) or [""]
    words = [word for word in words if word != "of"] or [""]  # train-00000-of-00002
    return SPLITS.get(words[0]) or SPLITS.get(words[-1], "")


def _by_split(paths: Iterable[Path], data: Any) -> dict[str, list[Path]]:
    """Files or folders by split; those without a name of a split are to train on."""
    found: dict[str, list[Path]] = {}
    for path in paths:
        found.setdefault(_split_named(path), []).append(path)
    unnamed = found.pop("", [])
    if unnamed and "train" in found:
        names = ", ".join(p.name for p in unnamed[:5])
        raise _no_data(data, f"in splits, but for {names}: move them, or name their split")
    if unnamed:
        found["train"] = unnamed
    if "train" not in found:
        raise _no_data(data, f"{' and '.join(found)} without train: name what to train on")
    twice = next((s for s, some in found.items() if some[0].is_dir() and len(some) > 1), "")
    if twice:
        names = " and ".join(p.name for p in found[twice])
        raise _no_data(data, f"ambiguous: {names} are both {twice}; leave one")
    return {split: found[split] for split in ("train", "val", "test") if split in found}


def _with_splits(source: Files, patterns: Mapping[str, str]) -> Files:
    """With the splits that are named; a tenth is held out where there is but one to train on."""
    if len(patterns) == 1:
        return dataclasses.replace(source, path=patterns["train"])
    return dataclasses.replace(source, path="", files=dict(patterns))


def _pattern(paths: Sequence[Path]) -> str:
    """One pattern for files of one folder."""
    if len(paths) == 1:
        return str(paths[0])
    parent, suffix = paths[0].parent, paths[0].suffix
    if sorted(p for p in parent.glob(f"*{suffix}") if not shards.is_note(p.name)) == sorted(paths):
        return f"{parent}/*{suffix}"
    odd = next((p for p in paths if set(p.name) & set("{},")), None)
    if odd is not None or len({p.parent for p in paths}) > 1:
        raise _no_data(odd or paths[0], "in a list of names that make no pattern; name a pattern")
    return f"{paths[0].parent}/{{{','.join(p.name for p in paths)}}}"


# ------------------------------------------------------------------------- which fields


def _fields(bare: Files, data: str) -> tuple[dict[str, str], dict[str, Any]]:
    """Fields by modality, and further settings of the source."""
    records = bare.open("train" if "train" in bare.splits() else bare.splits()[0])
    names = list(dict.fromkeys(name for table in records.tables for name in table.names))
    numbered = any(table.numbered for table in records.tables) or isinstance(bare, TFDS)
    by_name = isinstance(bare, (WebDataset, Folder)) and not numbered
    numbers = False  # whether classes are numbers
    if by_name:
        fields = {
            kind: ";".join(found)
            for kind, known in SUFFIXES.items()
            if (found := [name for name in known.split(";") if name in names])
        }
        extra, classes = {}, MADE[1] if len(_folders(records)) > 1 else ""
        if "cls" in names:
            classes = "cls"
            numbers = isinstance(records[0].get("cls"), int) if len(records) else False
    else:
        fields, extra, classes, numbers = _columns(bare, records, names)
    if "text" not in fields and classes:  # names of classes are captions, equal ones positives
        fields["label" if numbers else "text"], extra["identity"] = classes, classes
    if len(fields) < 2:
        shown = ", ".join(n for n in names if n not in MADE)[:200]
        what = f"{' and '.join(fields)} alone" if fields else "neither pictures, texts nor sounds"
        raise ConfigError(
            f"DATA={data!r} has {what} (fields {shown or 'none'}): two kinds are needed that belong"
            " together, such as 1.jpg beside 1.txt, or one folder a class (cat/1.jpg, dog/2.jpg)."
            " Fields of other names: give source=, with its fields, to get_config."
        )
    return fields, extra


def _folders(records: Any) -> set[str]:
    """Names of the folders that records lie in, of the first thousands."""
    table = records.tables[0]
    keys = (table.key(row) for row in range(0, len(table), max(1, len(table) // 2000)))
    return {key.rpartition("/")[0] for key in keys}


def _columns(
    bare: Files, records: Records, names: Sequence[str]
) -> tuple[dict[str, str], dict[str, Any], str, bool]:
    """Fields of a table by what their values are, then by their names; the column of a class, and
    whether it holds numbers."""
    seen: dict[str, list[Any]] = {name: [] for name in names if name not in MADE}
    good, why = 0, ""
    for row in range(min(len(records), LOOK)):
        try:
            example = records[row]
        except BadRecord as bad:
            why = why or f"{bad.reason} in {key_of(records, row)}: {bad.detail}"
            continue
        good += 1
        for name in seen.keys() & example.keys():
            seen[name].append(example[name])
    if why and not good:
        raise ConfigError(f"{type(bare).__name__}: none of its first records can be read, {why}.")
    kinds = {name: _kind(name, values) for name, values in seen.items()}
    fields, files = {}, [name for name, kind in kinds.items() if kind.startswith("file of ")]
    for kind, known in COLUMNS.items():
        there = [n for n, k in kinds.items() if k.removeprefix("file of ") == kind]
        there.sort(key=lambda n: [*known.split(";"), n].index(n))
        if there:
            fields[kind] = there[0]
    texts = [n for n, k in kinds.items() if k == "words" and n not in CLASSES]
    if "text" not in fields and len(texts) == 1:
        fields["text"] = texts[0]
    classes = next((n for n in CLASSES if kinds.get(n) in ("words", "text", "number")), "")
    extra = {"file_columns": tuple(files)} if isinstance(bare, Folder) else {}
    return fields, extra, classes, kinds.get(classes) == "number"


def _kind(name: str, values: Sequence[Any]) -> str:
    """What the values of a column are: a modality, files of one, words, or nothing of use ("")."""
    kinds = {_kind_of(value) for value in values}
    if kinds <= {"file of image", "file of audio", "words"} and len(kinds - {"words"}) == 1:
        kinds -= {"words"}
    kind = kinds.pop() if len(kinds) == 1 else ""
    if kind == "words" and name.lower() in COLUMNS["text"].split(";"):
        return "text"
    if not values:  # of none of the records looked at: its name must do
        return next((k for k, known in COLUMNS.items() if name in known.split(";")), "")
    return kind


def _is_one(value: np.ndarray) -> bool:
    return value.size == 1 and value.dtype.kind in "iu"


def _kind_of(value: Any) -> str:
    if isinstance(value, str):
        suffix = os.path.splitext(value)[1][1:].lower()
        kind = next((k for k, known in SUFFIXES.items() if suffix in known.split(";")), "")
        return f"file of {kind}" if kind in ("image", "audio") and len(value) < 1024 else "words"
    if isinstance(value, (int, np.integer)) or (isinstance(value, np.ndarray) and _is_one(value)):
        return "number"
    if isinstance(value, bytes):
        if value.startswith(IMAGES) or value[8:12] in INNER:
            return "image"
        is_mp3 = value[:1] == b"\xff" and value[1:2] >= b"\xe0"
        if is_mp3 or value.startswith(BEGINNINGS) or value[4:8] == b"ftyp":
            return "audio"
        try:
            return "words" if value.decode() else ""
        except UnicodeDecodeError:
            return ""
    if isinstance(value, (list, tuple)) and value and isinstance(value[0], str):
        return "words"
    if isinstance(value, tuple) and len(value) == 2 and np.ndim(value[0]) in (1, 2):
        return "audio"
    is_pixels = isinstance(value, np.ndarray) and value.dtype == np.uint8 and value.ndim == 3
    return "image" if is_pixels else ""
