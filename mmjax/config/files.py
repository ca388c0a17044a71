"""Loads `file.py:function` and `config.json`."""

from __future__ import annotations

import dataclasses
import inspect
import json
import os
import types
from pathlib import Path
from typing import Any

from mmjax.config.classes import seam_classes
from mmjax.config.code_file import Code
from mmjax.config.error import ConfigError, nearest
from mmjax.config.modules import config_errors, load_module, text_of
from mmjax.config.serial import from_json

__all__ = ["load"]


def load(target: str, *, code: Code = None, kind: type | None = None) -> Any:
    """The config that `file.py:function` returns; the function defaults to `get_config`.

    Args:
      target: a Python file and a function in it, or a `config.json` that a run wrote.
      code: files and modules that define further classes for a `config.json`.
      kind: what the function must return; None = any dataclass.

    Raises ConfigError, naming the file or function and the nearest existing one.
    """
    path, _, name = (target, "", "") if os.path.lexists(target) else target.partition(":")
    name = name or "get_config"
    if path.endswith(".json"):
        config = _read(Path(path), code)
    else:
        config = _call(load_module(path), path, name)
    is_config = dataclasses.is_dataclass(config) and not isinstance(config, type)
    if not is_config or (kind is not None and not isinstance(config, kind)):
        wanted = kind.__name__ if kind else "a config (a frozen dataclass)"
        raise ConfigError(
            f"Config {path!r}: {name}() returned {type(config).__name__}; it must return {wanted}."
        )
    return config


def _read(path: Path, code: Code) -> Any:
    text = text_of(path)
    try:
        tree = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"Config {str(path)!r} cannot be read: {error}.") from error
    try:
        return from_json(tree, seam_classes(code))
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error


def _call(module: types.ModuleType, path: str, name: str) -> Any:
    function = getattr(module, name, None)
    if not inspect.isfunction(function):
        functions = {n: f for n, f in vars(module).items() if inspect.isfunction(f)}
        own = [n for n, f in functions.items() if f.__module__ == module.__name__ and n[0] != "_"]
        raise ConfigError(f"Config {path!r}: no function {name!r}{nearest(name, own)}")
    needed = [
        p.name
        for p in inspect.signature(function).parameters.values()
        if p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)
    ]
    if needed:
        raise ConfigError(
            f"Config {path!r}: {name}() needs arguments {needed}, but a config function is called"
            " without any; give them defaults."
        )
    with config_errors(Path(path)):
        return function()
