"""The manifest of a checkpoint: what it holds, and by which it is judged whole.

    {"format", "step", "items", "files": {name: SHA-256}, "state": {item: digest}, ..., "digest"}

It carries the hashes of all files, a digest of the arrays and one of itself, and is read by one
function, so that whatever changes one of its bytes is noticed.
"""

from __future__ import annotations

import hashlib
import json
import re
from typing import Any

from mmjax import files
from mmjax.files import DamagedFile

__all__ = ["FILE", "FORMAT", "ITEMS", "NewerFormat", "read", "sealed", "unsealed"]

FILE = "manifest.json"
FORMAT = 2
ITEMS = ("params", "opt_state", "model_state", "extra")
KEYS: dict[str, type] = {
    **{"step": int, "journal": list, "cursors": dict, "streams": list, "vocabulary": dict},
    **{"layer_plan": list, "tokenizers": dict, "identity": dict, "mesh": dict, "time": str},
    **{"parameters": dict, "items": list, "files": dict},
}
NEW_KEYS: dict[str, type] = {"state": dict, "digest": str}  # since format 2


class NewerFormat(ValueError):
    """A whole manifest of a later version of mmjax."""


def sealed(value: dict[str, Any]) -> dict[str, Any]:
    """The object with a digest of itself."""
    return {**value, "digest": _digest(value)}


def unsealed(value: dict[str, Any]) -> dict[str, Any]:
    """The object without the digest of itself.

    Raises:
      DamagedFile: it is not the one that was sealed.
    """
    if value.get("digest") != _digest(value):
        raise DamagedFile("its content differs from its own digest")
    return {key: inner for key, inner in value.items() if key != "digest"}


def _digest(value: dict[str, Any]) -> str:
    rest = {key: inner for key, inner in value.items() if key != "digest"}
    text = json.dumps(rest, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def read(folder: Any, step: int, name: str = FILE) -> dict[str, Any]:
    """The manifest of the checkpoint of a step, with every key that readers use.

    Raises:
      DamagedFile: it is not what was written, or that of another step.
      NewerFormat: this version does not know its format.
    """
    found = files.read_json(folder / name)
    if "digest" in found:
        unsealed(found)
        if type(found.get("format")) is int and found["format"] > FORMAT:
            raise NewerFormat(
                f"{folder}: has format {found['format']} and this version of mmjax reads up to"
                f" {FORMAT}; install the version that wrote it, or a later one."
            )
    # Manifests of format 1 had no digests; all others must.
    known = {**KEYS, **NEW_KEYS} if "digest" in found or found.get("format") != 1 else KEYS
    if found.get("format") not in (1, FORMAT):
        raise DamagedFile(f"its format {found.get('format')!r} is unknown")
    for key, kind in known.items():
        if type(found.get(key)) is not kind:
            raise DamagedFile(f"it has no {key} ({kind.__name__})")
    if found["step"] != step:
        raise DamagedFile(f"it is of step {found['step']}")
    if not set(found["items"]) <= set(ITEMS) or "params" not in found["items"]:
        raise DamagedFile(f"its items {found['items']} are not those of a checkpoint")
    for file, digest in found["files"].items():
        if not _is_inside(file) or not re.fullmatch("[0-9a-f]{64}", str(digest)):
            raise DamagedFile(f"it names {file!r}, no file of a checkpoint")
    return found


def _is_inside(name: str) -> bool:
    parts = name.split("/")
    return name != FILE and all(p not in ("", ".", "..") and "\0" not in p for p in parts)
