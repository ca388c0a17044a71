"""The manifest of a checkpoint: its content, and the hashes that verify it.

    {"format", "step", "items", "files": {name: SHA-256}, "state": {item: digest}, ..., "digest"}

It holds the hashes of all files, a digest of the arrays and one of itself, so that a change to any
byte is detected.
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
LATER_KEYS: dict[str, type] = {
    "schedule": dict,
    "data": dict,
    "fence": int,
}  # that not all of format 2 have


class NewerFormat(ValueError):
    """An intact manifest written by a later version of mmjax."""


def sealed(value: dict[str, Any]) -> dict[str, Any]:
    """The object with a digest of its content added."""
    return {**value, "digest": _digest(value)}


def unsealed(value: dict[str, Any]) -> dict[str, Any]:
    """The object without its digest.

    Raises:
      DamagedFile: the digest does not match.
    """
    if value.get("digest") != _digest(value):
        raise DamagedFile("its content differs from its own digest")
    return {key: inner for key, inner in value.items() if key != "digest"}


def _digest(value: dict[str, Any]) -> str:
    rest = {key: inner for key, inner in value.items() if key != "digest"}
    text = json.dumps(rest, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def read(folder: Any, step: int, name: str = FILE) -> dict[str, Any]:
    """The manifest of a step's checkpoint, with every key that readers use.

    Raises:
      DamagedFile: it was modified, or belongs to another step.
      NewerFormat: its format is newer than this version of mmjax.
    """
    manifest = files.read_json(folder / name)
    if "digest" in manifest:
        unsealed(manifest)
        if type(manifest.get("format")) is int and manifest["format"] > FORMAT:
            raise NewerFormat(
                f"{folder}: has format {manifest['format']} and this version of mmjax reads up to"
                f" {FORMAT}; install the version that wrote it, or a later one."
            )
    # Manifests of format 1 had no digests; later ones must.
    known = {**KEYS, **NEW_KEYS} if "digest" in manifest or manifest.get("format") != 1 else KEYS
    if manifest.get("format") not in (1, FORMAT):
        raise DamagedFile(f"its format {manifest.get('format')!r} is unknown")
    known |= {key: kind for key, kind in LATER_KEYS.items() if key in manifest}
    for key, kind in known.items():
        if type(manifest.get(key)) is not kind:
            raise DamagedFile(f"it has no {key} ({kind.__name__})")
    if manifest["step"] != step:
        raise DamagedFile(f"it is of step {manifest['step']}")
    if not set(manifest["items"]) <= set(ITEMS) or "params" not in manifest["items"]:
        raise DamagedFile(f"its items {manifest['items']} are not those of a checkpoint")
    for file, digest in manifest["files"].items():
        if not _is_inside(file) or not re.fullmatch("[0-9a-f]{64}", str(digest)):
            raise DamagedFile(f"it names {file!r}, no file of a checkpoint")
    return manifest


def _is_inside(name: str) -> bool:
    parts = name.split("/")
    return name != FILE and all(p not in ("", ".", "..") and "\0" not in p for p in parts)
