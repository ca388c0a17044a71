"""Modules of code that a user names: config files, and parts of installed packages."""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import hashlib
import importlib
import linecache
import os
import re
import sys
import traceback
import types
from pathlib import Path

from mmjax.config.error import ConfigError, nearest
from mmjax.config.names import PREFIX
from mmjax.files import confined

__all__ = ["config_errors", "import_module", "load_module", "text_of"]

MAX_CONFIG = 1 << 24  # bytes


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
    source = text_of(file)
    digest = hashlib.sha256(f"{file.resolve()}\0{source}".encode()).hexdigest()[:12]
    name = f"{PREFIX}{re.sub(r'[^0-9a-zA-Z]', '_', file.stem)}_{digest}"
    if name in sys.modules:
        return sys.modules[name]
    module = types.ModuleType(name)
    module.__file__ = str(file.resolve())
    sys.modules[name] = module
    try:
        with config_errors(file):
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


def import_module(name: str) -> None:
    """Imports a module that the user names by --code. Raises ConfigError, with the reason."""
    try:
        importlib.import_module(name)
    except ModuleNotFoundError as error:
        is_itself = f"{name}.".startswith(f"{error.name}.")
        what = "there is no module" if is_itself else "it needs the module"
        raise ConfigError(f"--code {name}: {what} {error.name}; install it.") from error
    except (Exception, SystemExit) as error:
        frame = (traceback.extract_tb(error.__traceback__) or [None])[-1]
        where = f" at {frame.filename}:{frame.lineno}" if frame else ""
        raise ConfigError(
            f"--code {name}: cannot be imported: {type(error).__name__}: {error}{where}."
        ) from error


def text_of(file: Path) -> str:
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


@contextlib.contextmanager
def config_errors(file: Path):
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
