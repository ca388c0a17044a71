"""HuggingFace: a folder of `datasets`, as `save_to_disk` or the Hub lays it out, by pyarrow."""

from __future__ import annotations

import dataclasses
import json
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mmjax.config import ranges
from mmjax.data.files import Files, Table
from mmjax.data.parquet import _Groups, _Parquet, cell_value
from mmjax.data.source import BadRecord
from mmjax.files import confined

__all__ = ["HuggingFace"]

MAX_INFO = 1 << 24  # bytes of a JSON description
# Names of Parquet files on the Hub: data/train-00000-of-00002.parquet, train/0000.parquet.
SHARD = re.compile(r"(?P<split>\w+?)(?:-\d{5}-of-\d{5}(?:-\w+)?)?\.parquet")


@dataclasses.dataclass(frozen=True, kw_only=True)
class HuggingFace(Files):
    """A data set that `datasets` saved; `path` is its folder. `datasets` is not needed.

    What `save_to_disk` wrote are Arrow files by split, read in place; a clone of a repository of
    the Hub has Parquet files, in folders or with names that begin with their split. A folder that
    names no splits has one, `train`, which `shares` divides. Image and audio columns give their
    bytes; classes are numbers, and `class_names` has their names. All files lie in the folder.

    Fields:
      cache_bytes: memory for row groups of Parquet files, in each process.
    """

    shares: dict[str, ranges.NonNegative] = dataclasses.field(default_factory=dict)
    cache_bytes: ranges.Bytes = 1 << 28

    def __post_init__(self):
        if self.files:
            raise ValueError(
                f"HuggingFace: files={self.files}, but the folder says its splits; leave it empty."
            )
        super().__post_init__()

    def splits(self) -> tuple[str, ...]:
        """Names of the splits of the folder, or of `shares`."""
        return tuple(self.shares) or tuple(self._layout())

    def class_names(self, field: str) -> tuple[str, ...]:
        """Names of the classes of a `ClassLabel` column, for `Label(names=...)`.

        Raises ValueError for a column that is none, and for folders that say nothing of columns.
        """
        for folder in dict.fromkeys(p.parent for paths in self._layout().values() for p in paths):
            if os.path.lexists(folder / "dataset_info.json"):
                found = _json(folder / "dataset_info.json", self._folder).get("features", {})
                names = found.get(field, {}).get("names") if isinstance(found, dict) else None
                if isinstance(names, list):
                    return tuple(map(str, names))
        for paths in self._layout().values():
            for name in _schema_names(paths[0], field):
                return name
        raise ValueError(f"HuggingFace: {self.path!r} has no names of classes of {field!r}.")

    @property
    def _folder(self) -> Path:
        found = self._found(self.path)
        if len(found) != 1 or not found[0].is_dir():
            raise ValueError(
                f"HuggingFace: {self.path!r} is no folder; give one that save_to_disk wrote, or a"
                " clone of a repository of the Hub with Parquet files."
            )
        return found[0]

    def _layout(self) -> dict[str, list[Path]]:
        """The files of each split."""
        folder = self._folder
        inner = sorted(p for p in folder.iterdir() if p.is_dir() and p.name[0] != ".")
        if (folder / "state.json").exists():
            return {"train": _arrow_files(folder, folder)}
        saved = {p.name: _arrow_files(p, folder) for p in inner if (p / "state.json").exists()}
        if saved:
            return saved
        found: dict[str, list[Path]] = {}
        for path in sorted(folder.rglob("*.parquet")):
            parts = path.relative_to(folder).parts
            if any(part[0] == "." for part in parts):
                continue
            shard = SHARD.fullmatch(path.name)
            split = shard["split"] if shard and not shard["split"].isdigit() else ""
            above = parts[-2] if len(parts) > 1 and parts[-2] != "data" else ""
            found.setdefault(split or above or "train", []).append(path)
        if not found:
            raise ValueError(
                f"HuggingFace: {str(folder)!r} holds neither state.json nor Parquet files; give a"
                " folder that save_to_disk wrote, or a clone of a repository of the Hub."
            )
        return found

    def _paths(self, split: str) -> list[Path]:
        layout, folder = self._layout(), self._folder
        if self.shares:
            chosen = [path for paths in layout.values() for path in paths]
        else:
            chosen = layout[split]
        for path in chosen:
            try:
                os.close(confined.descriptor(path, folder))
            except (OSError, confined.Refused) as error:
                raise ValueError(
                    f"HuggingFace: {error}; all its files lie in its folder."
                ) from error
        return chosen

    def _tables(self, paths: Sequence[Path]) -> list[Table]:
        groups, limit = _Groups(self.cache_bytes), self.max_record_bytes

        def table(path: Path) -> Table:
            is_parquet = path.suffix == ".parquet"
            return _Parquet(path, groups, limit) if is_parquet else _Arrow(path, limit)

        return self._each(paths, table)


def _json(path: Path, root: Path) -> dict[str, Any]:
    try:
        content = json.loads(confined.read(path, MAX_INFO, root))
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"HuggingFace: {str(path)!r} cannot be read: {error}.") from error
    if not isinstance(content, dict):
        raise ValueError(f"HuggingFace: {str(path)!r} holds no JSON object.")
    return content


def _arrow_files(folder: Path, root: Path) -> list[Path]:
    """The files of a split, in the order of its state.json."""
    state = _json(folder / "state.json", root)
    if state.get("_indices_files"):
        raise ValueError(
            f"HuggingFace: {str(folder)!r} is a selection of the rows of its files; call"
            " flatten_indices() before save_to_disk."
        )
    entries = state.get("_data_files")
    names = [e.get("filename") for e in entries if isinstance(e, dict)] if isinstance(
        entries, list) else []  # fmt: skip
    if not names or not all(isinstance(n, str) and "/" not in n and n != ".." for n in names):
        raise ValueError(f"HuggingFace: {str(folder / 'state.json')!r} names no files beside it.")
    return [folder / str(name) for name in names]


def _schema_names(path: Path, field: str) -> list[tuple[str, ...]]:
    """Names of classes in the metadata that `datasets` adds to the schema of a file."""
    import pyarrow
    from pyarrow import parquet

    try:
        if path.suffix == ".parquet":
            metadata = parquet.read_schema(path).metadata
        else:
            with pyarrow.memory_map(str(path)) as file, pyarrow.ipc.open_stream(file) as reader:
                metadata = reader.schema.metadata
        info = json.loads((metadata or {}).get(b"huggingface", b"{}"))
        names = info["info"]["features"][field]["names"]
        return [tuple(map(str, names))]
    except (OSError, ValueError, KeyError, TypeError, pyarrow.ArrowException):
        return []


class _Arrow:
    """One Arrow file in the form of a stream, mapped into memory: rows are read where they lie."""

    numbered = True

    def __init__(self, path: Path, limit: int):
        import pyarrow

        self.path, self._limit = path, limit
        try:
            with pyarrow.memory_map(str(path)) as file, pyarrow.ipc.open_stream(file) as reader:
                self._table = reader.read_all()
            self._table.validate()
        except (OSError, pyarrow.ArrowException) as error:
            raise ValueError(f"HuggingFace: {str(path)!r} cannot be read: {error}.") from error
        self.names = self._table.schema.names

    def __len__(self) -> int:
        return self._table.num_rows

    def key(self, row: int) -> str:
        return str(row)

    def read(self, row: int, names: Sequence[str]) -> dict[str, Any]:
        import pyarrow

        try:
            columns = {n: self._table.column(n).slice(row, 1) for n in names if n in self.names}
            return {n: cell_value(c, self.path, self._limit) for n, c in columns.items()}
        except (OSError, ValueError, IndexError, pyarrow.ArrowException) as error:
            raise BadRecord("arrow", str(error)[:200]) from error
