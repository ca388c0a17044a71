"""Loads `file.py:function`, and resolves the classes that a `config.json` names."""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import enum
import hashlib
import importlib
import importlib.util
import inspect
import json
import linecache
import os
import pkgutil
import re
import sys
import traceback
import types
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mmjax.config.error import ConfigError, nearest
from mmjax.config.serial import from_json
from mmjax.files import confined

__all__ = ["load", "load_module", "seam_classes", "seam_modules"]

SEAM_PACKAGES = (
    "modalities",
    "tokenizers",
    "data",
    "models",
    "objectives",
    "optim",
    "parallel",
    "evaluate",
    "demo",
)
SEAM_MODULES = ("experiment", "generate.plan")
OLD_NAMES = {"mmjax.data.deal"}  # they warn when imported, and their classes go by the new name
MAX_CONFIG = 1 << 24  # bytes
PREFIX = "mmjax_config_"  # of the modules made from config files


def load(target: str, *, code: str | None = None, kind: type | None = None) -> Any:
    """The config that `file.py:function` returns; the function defaults to `get_config`.

    Args:
      target: a Python file and a function in it, or a `config.json` that a run wrote.
      code: file that defines further classes for a `config.json`.
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


def load_module(path: str | os.PathLike[str], *, beside: str | None = None) -> types.ModuleType:
    """Imports a Python file under a unique name; the same text gives the same module.

    Its classes are pickled by value, so that data workers do not need the file.

    Args:
      path: the file.
      beside: a file whose folder `path` is relative to; recipes of a family share code with `common
        = config.load_module("common.py", beside=__file__)`.
    """
    file = Path(beside).parent / path if beside else Path(path)
    if not os.path.lexists(file):
        raise ConfigError(f"Config {str(file)!r}: no such file{_nearest_file(file)}.")
    if file.suffix != ".py":  # a file with another suffix was not meant to be run
        raise ConfigError(
            f"Config {str(file)!r}: configs are Python: file.py:function; or the config.json that a"
            " run wrote."
        )
    source = _text(file)
    digest = hashlib.sha256(f"{file.resolve()}\0{source}".encode()).hexdigest()[:12]
    name = f"{PREFIX}{re.sub(r'[^0-9a-zA-Z]', '_', file.stem)}_{digest}"
    if name in sys.modules:
        return sys.modules[name]
    module = types.ModuleType(name)
    module.__file__ = str(file.resolve())
    sys.modules[name] = module
    try:
        with _config_errors(file):
            linecache.checkcache(module.__file__)
            # Not by the import system: its bytecode cache misses two edits within one second.
            exec(_compiled(source, module.__file__), module.__dict__)
    except BaseException:
        del sys.modules[name]
        raise
    with contextlib.suppress(ImportError):  # installed with grain, whose workers need it
        cloudpickle = importlib.import_module("cloudpickle")
        cloudpickle.register_pickle_by_value(module)
    return module


def seam_modules() -> Iterator[types.ModuleType]:
    """The modules whose classes make up a config, imported one by one.

    For a package with `__all__`, only those that define its public names. A module that needs a
    missing package (grain, for data workers) is skipped.
    """
    names = [f"mmjax.{m}" for m in SEAM_MODULES if importlib.util.find_spec(f"mmjax.{m}")]
    for seam in SEAM_PACKAGES:
        package = importlib.import_module(f"mmjax.{seam}")
        if public := getattr(package, "__all__", ()):
            names += {getattr(package, n).__module__ for n in public}
        else:
            names += [f"mmjax.{seam}.{m.name}" for m in pkgutil.iter_modules(package.__path__)]
    for name in sorted(set(names) - OLD_NAMES):
        try:
            with warnings.catch_warnings():  # old names of modules are for configs of before
                warnings.filterwarnings("ignore", r"mmjax\.\S+ is now", DeprecationWarning)
                module = importlib.import_module(name)
            yield module
        except ModuleNotFoundError as error:
            if (error.name or "").startswith("mmjax"):
                raise


def seam_classes(code: str | None = None) -> dict[str, type]:
    """Classes by short name, from the seam modules and the config file `code`.

    Raises ConfigError if two classes have the same name: JSON could not tell them apart.
    """
    modules = list(seam_modules())
    if code is not None:
        own = load_module(code)
        shared = [m for m in vars(own).values() if isinstance(m, types.ModuleType)]
        modules += [own, *(m for m in shared if m.__name__.startswith(PREFIX))]
    classes: dict[str, type] = {}
    for module in modules:
        for name, cls in vars(module).items():
            if not isinstance(cls, type) or cls.__module__ != module.__name__:
                continue
            if name.startswith("_") or not (
                dataclasses.is_dataclass(cls) or issubclass(cls, enum.Enum)
            ):
                continue
            if classes.setdefault(name, cls) is not cls:
                raise ConfigError(
                    f"Class {name!r} is defined in {classes[name].__module__} and in"
                    f" {module.__file__}; a config names classes by their short name, rename one."
                )
    return classes


def _text(file: Path) -> str:
    """The text of a config: a UTF-8 file of at most MAX_CONFIG bytes."""
    try:
        return confined.read(file, MAX_CONFIG).decode()
    except FileNotFoundError:
        raise ConfigError(f"Config {str(file)!r}: no such file.") from None
    except (OSError, UnicodeDecodeError, confined.Refused) as error:
        raise ConfigError(f"Config {str(file)!r} cannot be read: {error}.") from error


def _compiled(source: str, name: str) -> types.CodeType:
    try:
        return compile(source, name, "exec")
    except (ValueError, RecursionError, MemoryError) as error:  # NUL bytes; endless nesting
        reason = str(error) or "it is nested too deeply"
        raise ConfigError(f"Config {name!r} is no Python: {reason}.") from error


def _read(path: Path, code: str | None) -> Any:
    text = _text(path)
    try:
        tree = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"Config {str(path)!r} cannot be read: {error}.") from error
    try:
        return from_json(tree, seam_classes(code))
    except RecursionError as error:
        raise ConfigError(f"Config {str(path)!r} is nested too deeply.") from error


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
    with _config_errors(Path(path)):
        return function()


@contextlib.contextmanager
def _config_errors(file: Path):
    """Turns errors raised in a config file into ConfigError with the line; others pass through."""
    try:
        yield
    except ConfigError:
        raise
    except SyntaxError as error:
        where = f"{error.filename or file}:{error.lineno or 1}"
        raise ConfigError(f"{where}: {error.msg}.") from error
    except Exception as error:
        frames = traceback.extract_tb(error.__traceback__)
        lines = [f for f in frames if os.path.realpath(f.filename) == os.path.realpath(file)]
        is_theirs = bool(lines) and frames[-1] is lines[-1]
        is_rule = isinstance(error, ValueError)  # raised by dataclasses for a wrong value
        is_absent = isinstance(error, ModuleNotFoundError) and "mmjax" not in str(error.name)
        if not (is_theirs or is_rule or is_absent):
            raise
        callers = [f for f in lines if f.name != "__post_init__"]
        where = f"{file}:{callers[-1].lineno}" if callers else str(file)
        what = "" if is_rule else f"{type(error).__name__}: "
        raise ConfigError(f"{where}: {what}{error}{_nearest_keyword(error)}") from error


def _nearest_keyword(error: Exception) -> str:
    """Suggests a field name when a constructor was called with an unknown keyword."""
    pattern = r"(?:.*\.)?(\w+)\.__init__\(\) got an unexpected keyword argument '(\w+)'"
    match = re.match(pattern, str(error))
    if not match or error.__traceback__ is None:
        return ""
    frame = list(traceback.walk_tb(error.__traceback__))[-1][0]
    scope = {**frame.f_globals, **frame.f_locals}
    spaces = [scope, *(vars(m) for m in scope.values() if isinstance(m, types.ModuleType))]
    for space in spaces:
        cls = space.get(match[1])
        if isinstance(cls, type) and dataclasses.is_dataclass(cls):
            return nearest(match[2], [f.name for f in dataclasses.fields(cls)])
    return ""


def _nearest_file(file: Path) -> str:
    if not file.parent.is_dir():
        return f", nor its folder {str(file.parent)!r}"
    close = difflib.get_close_matches(file.name, [p.name for p in file.parent.glob("*.py")], n=1)
    return f"; did you mean {str(file.parent / close[0])!r}" if close else ""
