"""Samples for a page: `samples.json` and the files that it names.

`{"entries": [{"given": {modality: value}, "wanted": {modality: value}, ...}]}`, where a value is a
file in the same folder, or text. Further keys: `score` {modality: 0..1}, and `note`, a text; of
retrieval `rank`, `gallery` and, where another value was right, `right` {modality: value}.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from etils import epath

from mmjax import files
from mmjax.modalities.modality import Modality

__all__ = ["FILE", "Writer"]

FILE = "samples.json"
Values = Mapping[str, tuple[Modality, Any]]  # by name: a value and the modality that writes it


class Writer:
    """Writes the values of samples to a folder (local or a bucket), then their list."""

    def __init__(self, folder: epath.PathLike):
        self._folder, self._entries = epath.Path(folder), []
        files.make_folder(self._folder)

    def add(
        self, given: Values, wanted: Values, *, right: Values | None = None, **more: Any
    ) -> None:
        """Adds a sample; `more` holds `score`, `note` or other keys."""
        stem = f"{'+'.join(given)}_to_{'+'.join(wanted)}_{len(self._entries)}"
        entry: dict[str, Any] = {}
        sides = {"given": given, "wanted": wanted} | ({"right": right} if right else {})
        for side, values in sides.items():
            entry[side] = {
                name: self._write(modality, value, f"{stem}_{side}_{name}")
                for name, (modality, value) in values.items()
            }
        self._entries.append(entry | more)

    def _write(self, modality: Modality, value: Any, stem: str) -> str:
        with tempfile.TemporaryDirectory() as folder:  # modalities write local files
            path = modality.write(value, Path(folder) / stem)
            files.write_bytes(self._folder / path.name, path.read_bytes())
        return path.name

    def close(self) -> None:
        """Writes the list."""
        text = json.dumps({"entries": self._entries}, indent=1)
        files.write_bytes(self._folder / FILE, f"{text}\n".encode())
