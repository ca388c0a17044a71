"""Reads and writes `run.json` and `config.json` of a workdir; detects damage."""

from __future__ import annotations

from typing import Any

from mmjax import config, files
from mmjax.files import DamagedFile
from mmjax.run import manifest as manifest_lib

__all__ = ["read_config", "read_run", "write_config", "write_run"]


def read_run(folder: Any) -> dict[str, Any]:
    """Identity and starts of a run.

    Raises:
      DamagedFile: `run.json` is missing or was modified.
    """
    run = files.read_json(folder / "run.json")
    run = manifest_lib.unsealed(run) if "digest" in run else run  # older files have none
    starts = run.get("starts")
    if not isinstance(run.get("identity"), dict) or not isinstance(starts, list):
        raise DamagedFile("it has no identity or no starts")
    if not all(isinstance(start, dict) for start in starts):
        raise DamagedFile("its starts are no objects")
    return run


def write_run(folder: Any, run: dict[str, Any]) -> None:
    """Writes `run.json`."""
    files.write_json(folder / "run.json", manifest_lib.sealed(run))


def read_config(folder: Any) -> dict[str, Any]:
    """The document in `config.json`: format, fingerprint, config.

    Raises:
      DamagedFile: it is missing or was modified.
    """
    document = files.read_json(folder / "config.json")
    if not isinstance(document.get("config"), dict):
        raise DamagedFile("it holds no config")
    try:
        fingerprint = config.fingerprint(document["config"])
    except RecursionError:
        raise DamagedFile("it is nested too deeply") from None
    if fingerprint != document.get("fingerprint"):
        raise DamagedFile("its config differs from its own fingerprint: it was damaged or edited")
    return document


def write_config(folder: Any, experiment: Any) -> None:
    """Writes `config.json`."""
    with files.replacing(folder / "config.json") as partial:
        partial.write_text(config.dump(experiment))
