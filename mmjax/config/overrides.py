"""Sets fields of a config from the command line, by their dotted paths."""

from __future__ import annotations

import contextlib
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
    if not any(a in ("-h", "--help") for a in args):
        _check_names(config, args)
    import tyro  # takes 0.1 s, which runs without overrides need not pay

    stderr = io.StringIO()
    try:
        with contextlib.redirect_stderr(stderr):
            return tyro.cli(
                type(config),
                prog=prog,
                default=config,
                args=list(args),
                config=(tyro.conf.AvoidSubcommands,),
                use_underscores=True,
            )
    except SystemExit as stop:
        if not stop.code:
            raise
        raise ConfigError(_worded(_message(stderr.getvalue()), config, args)) from None
    except ConfigError:
        raise
    except ValueError as error:  # a rule of a dataclass that the new value breaks
        raise ConfigError(str(error)) from error


def _check_names(config: Any, args: Sequence[str]) -> None:
    if not args[0].startswith("--"):
        raise ConfigError(f"Unexpected argument {args[0]!r}; fields are set by --field value.")
    known = list(paths(config))
    for arg in args:
        if not re.match(r"--[A-Za-z_]", arg):
            continue
        name = arg[2:].partition("=")[0].replace("-", "_")
        head, dot, last = name.rpartition(".")
        if name in known or (last.startswith("no_") and f"{head}{dot}{last[3:]}" in known):
            continue
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
    if path not in paths(config):  # such as --no-x
        return message
    keys, part = path.split("."), config
    owner, start = config, 0  # the innermost object on the path, and its depth
    for i, key in enumerate(keys):
        if is_config(part):
            owner, start, part = part, i, getattr(part, key)
        else:
            part = part[key] if isinstance(part, Mapping) else part[int(key)]
    words = _words(path, args)
    value = words if isinstance(part, (tuple, list)) else (*words, "")[0]
    for key in reversed(keys[start + 1 :]):
        value = {key: value}
    wrong = ranges.problem(type(owner), keys[start], value)
    return ": ".join([*filter(None, [".".join(keys[:start])]), wrong]) if wrong else message


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
