"""Sets fields of a config from the command line, by their dotted paths."""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import io
import re
from collections.abc import Mapping, Sequence
from typing import Any

from mmjax.config import ranges
from mmjax.config.compare import paths
from mmjax.config.error import ConfigError
from mmjax.config.serial import is_config

__all__ = ["override"]


def override(config: Any, args: Sequence[str], *, prog: str = "mmjax") -> Any:
    """The config with fields replaced: `["--tasks.text.batch_size", "32"]`.

    The member of a union can only be changed in the config file.

    Raises ConfigError for an unknown field (naming the nearest) and for a wrong type or value.
    `--help` prints every field and raises SystemExit(0).
    """
    if not args:
        return config
    wants_help = any(a in ("-h", "--help") for a in args)
    if not wants_help:
        _check_names(config, args)
        _check_numbers(config, args)
    found = {f.name: getattr(config, f.name) for f in _found(config)}
    bare = dataclasses.replace(config, **dict.fromkeys(found)) if found else config
    import tyro  # takes 0.1 s, which runs without overrides need not pay

    # Comments are read as help by tokenizing the files of all classes: as slow as all the rest.
    silent = () if wants_help else (tyro.conf.HelptextFromCommentsOff,)
    stderr = io.StringIO()
    try:
        with contextlib.redirect_stderr(stderr):
            made = tyro.cli(
                type(config),
                prog=prog,
                default=bare,
                args=list(args),
                config=(tyro.conf.AvoidSubcommands, *silent),
                use_underscores=True,
            )
        return dataclasses.replace(made, **found) if found else made
    except SystemExit as stop:
        if not stop.code:
            raise
        raise ConfigError(_worded(_message(stderr.getvalue()), config, args)) from None
    except ConfigError:
        raise
    except ValueError as error:  # a rule of a dataclass that the new value breaks
        raise ConfigError(str(error)) from error


def _found(config: Any) -> list[dataclasses.Field]:
    """Fields that say what was found, and that nobody is to set."""
    return [f for f in dataclasses.fields(config) if f.metadata.get("is_found")]


def _check_names(config: Any, args: Sequence[str]) -> None:
    if not args[0].startswith("--"):
        raise ConfigError(f"Unexpected argument {args[0]!r}; fields are set by --field value.")
    found = {field.name for field in _found(config)}
    known = [path for path in paths(config) if path.partition(".")[0] not in found]
    for arg in args:
        if not re.match(r"--[A-Za-z_]", arg):
            continue
        name = arg[2:].partition("=")[0].replace("-", "_")
        head, dot, last = name.rpartition(".")
        if name in known or (last.startswith("no_") and f"{head}{dot}{last[3:]}" in known):
            continue
        if name.partition(".")[0] in found:
            raise ConfigError(f"--{name}: was found, and is not set; set what was made of it.")
        inner = [k for k in known if k.startswith(f"{name}.")]
        if inner:
            raise ConfigError(f"--{name} has fields of its own; set one, such as --{inner[0]}.")
        close = difflib.get_close_matches(name, known, n=1, cutoff=0.0)
        meant = f"; did you mean --{close[0]}?" if close else "."
        raise ConfigError(f"No field --{name}{meant} (--help after the config lists them all)")


def _worded(message: str, config: Any, args: Sequence[str]) -> str:
    """A message of tyro, replaced by that of the field's range if it declares one."""
    match = re.match(r"Error parsing (--)?([\w.-]+): (.*)", message)
    if not match:
        return message
    is_option, path, rest = match[1], match[2].replace("-", "_"), match[3]
    if not is_option:  # raised by a class
        return rest if match[2] == type(config).__name__ else f"{path}: {rest}"
    return _out_of_range(path, config, args) or message


def _check_numbers(config: Any, args: Sequence[str]) -> None:
    """Tells a number outside its range in half the time that tyro takes to read the classes."""
    named = {arg[2:].partition("=")[0].replace("-", "_") for arg in args if arg[:2] == "--"}
    for path in sorted(named):
        wrong = _out_of_range(path, config, args, only_numbers=True)
        if wrong:
            raise ConfigError(wrong)


def _out_of_range(
    path: str, config: Any, args: Sequence[str], *, only_numbers: bool = False
) -> str:
    """What its field's declared range says of a value on the command line; empty = nothing.

    Args:
      only_numbers: leave fields alone that also accept what is no number.
    """
    if path not in paths(config):  # such as --no-x
        return ""
    keys, part = path.split("."), config
    owner, start = config, 0  # the innermost object on the path, and its depth
    for i, key in enumerate(keys):
        if is_config(part):
            owner, start, part = part, i, getattr(part, key)
        else:
            part = part[key] if isinstance(part, Mapping) else part[int(key)]
    if only_numbers and not ranges.is_number(type(owner), keys[start]):
        return ""
    words = _words(path, args)
    value = words if isinstance(part, (tuple, list)) else (*words, "")[0]
    for key in reversed(keys[start + 1 :]):
        value = {key: value}
    wrong = ranges.problem(type(owner), keys[start], value)
    return ": ".join([*filter(None, [".".join(keys[:start])]), wrong]) if wrong else ""


def _words(path: str, args: Sequence[str]) -> tuple[Any, ...]:
    """The values of a field on the command line, as numbers if possible."""
    words: list[str] = []
    is_its = False
    for arg in args:
        if re.match(r"--[A-Za-z_]", arg):
            name, equals, value = arg[2:].partition("=")
            is_its = name.replace("-", "_") == path
            words = [] if is_its else words
            words += [value] if is_its and equals else []
        elif is_its:
            words.append(arg)
    return tuple(map(_word, words))


def _word(text: str) -> Any:
    for kind in (int, float):
        with contextlib.suppress(ValueError):
            return kind(text)
    return text


def _message(text: str) -> str:
    """The text between the first two rules of tyro's box, with or without line drawing."""
    blocks: list[list[str]] = [[]]
    for line in re.sub(r"\x1b\[[0-9;]*m", "", text).splitlines():
        bare = line.strip("\u2502| ")
        if not bare.strip("\u2500- ") or bare.startswith("\u256d"):
            blocks.append([])
        else:
            blocks[-1].append(bare)
    message = " ".join(blocks[1]) if len(blocks) > 1 else text.strip()
    return message or "The command line could not be read."
