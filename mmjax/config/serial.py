"""Lossless conversion of configs to JSON and back.

A dataclass becomes `{"class": "module:Class", field: value, ...}`. A bare array is a tuple unless
the annotation of its field says list; a string is a path or an enum if the annotation says so.
Values whose type the annotation leaves open are written as `{"class": "list", "value": ...}`.
"""

from __future__ import annotations

import dataclasses
import enum
import functools
import hashlib
import json
import math
import os
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mmjax.config import names
from mmjax.config.error import ConfigError, nearest

__all__ = [
    "FORMAT",
    "dump",
    "fingerprint",
    "from_json",
    "hints",
    "is_removed",
    "item_hint",
    "to_json",
]

FORMAT = 2  # of config.json; format 1 names classes without their module
# Fields that are gone: class -> field -> (its default, what to use). A config.json of before loads
# where it holds the default, which said nothing.
REMOVED = {"Experiment": {"eval_every": (0, "set `every` of each evaluator")}}


def dump(config: Any) -> str:
    """Text of a `config.json`: format, fingerprint and every field, in order."""
    tree = to_json(config)
    document = {"format": FORMAT, "fingerprint": fingerprint(tree), "config": tree}
    return json.dumps(document, indent=2, allow_nan=False) + "\n"


def fingerprint(value: Any) -> str:
    """SHA-256 of canonical JSON (sorted keys, no spaces) of a config or of JSON values.

    It does not depend on the modules in which classes of mmjax are defined.
    """
    tree = names.short_names(to_json(value) if is_config(value) else value)
    text = json.dumps(tree, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def to_json(config: Any, hint: Any = Any, path: str = "config") -> Any:
    """The config as JSON values.

    Args:
      config: dataclasses, dicts by name, tuples, lists, numbers, strings, paths, enums, None.
      hint, path: annotation and name, when only a part is converted.

    Raises ConfigError, naming the path, for values that JSON cannot hold (functions, arrays).
    """
    if config is None or isinstance(config, bool):
        return config
    if is_config(config) or isinstance(config, (Mapping, tuple, list)):
        return _encode_many(config, _without_none(hint), path)
    return _encode_one(config, _without_none(hint), path)


def _encode_many(value: Any, hint: Any, path: str) -> Any:
    if is_config(value):
        known = hints(type(value))
        fields = [f.name for f in dataclasses.fields(value) if f.init]
        tree = {n: to_json(getattr(value, n), known.get(n, Any), f"{path}.{n}") for n in fields}
        return {"class": names.name_of(type(value)), **tree}
    if isinstance(value, Mapping):
        if "class" in value or not all(isinstance(k, str) for k in value):
            raise ConfigError(f"{path}: keys of a dict must be names (str), and none 'class'.")
        return {k: to_json(v, item_hint(hint, k), f"{path}.{k}") for k, v in value.items()}
    items = [to_json(v, item_hint(hint, i), f"{path}.{i}") for i, v in enumerate(value)]
    if type(value) is not (list if _origin(hint) is list else tuple):
        if type(value) not in (list, tuple):
            raise ConfigError(f"{path}: a {type(value).__name__} cannot be written; use a tuple.")
        return _tag(type(value).__name__, items)
    return items


def _encode_one(value: Any, hint: Any, path: str) -> Any:
    if isinstance(value, enum.Enum):
        return value.name if hint is type(value) else _tag(names.name_of(type(value)), value.name)
    if isinstance(value, str):
        return str(value)
    if getattr(value, "shape", None) == () and hasattr(value, "item"):
        value = value.item()  # a NumPy number
    if isinstance(value, int):
        return float(value) if hint is float else value
    if isinstance(value, float):
        return value if math.isfinite(value) else _tag("float", repr(value))
    if isinstance(value, Path):
        return str(value) if hint is Path else _tag("Path", str(value))
    if isinstance(value, os.PathLike) and _is_path(hint):
        return os.fspath(value)
    raise ConfigError(
        f"{path}: a {type(value).__name__} cannot be written to config.json; use numbers, text,"
        " tuples, dicts by name and frozen dataclasses."
    )


def from_json(tree: Any, classes: Mapping[str, type], kind: Any = Any) -> Any:
    """The config that `to_json` or `dump` wrote.

    Args:
      tree: JSON values.
      classes: the classes that "class" may name, by `module:Class` (see `seam_classes`).
      kind: dataclass that the config must be of.

    Raises ConfigError for an unknown class or field, naming the nearest, and for a class that is
    not of the kind that its field holds; missing fields take their defaults.
    """
    if isinstance(tree, Mapping) and "config" in tree and "class" not in tree:
        if tree.get("format") not in range(1, FORMAT + 1):
            raise ConfigError(
                f"config.json: format={repr(tree.get('format'))[:60]}, but this version reads up to"
                f" {FORMAT}."
            )
        tree = tree["config"]
    try:
        return _decode(tree, kind, classes, "config")
    except RecursionError as error:
        raise ConfigError("config: is nested too deeply.") from error


def _decode(tree: Any, hint: Any, classes: Mapping[str, type], path: str) -> Any:
    hint = _without_none(hint)
    if isinstance(tree, Mapping):
        if "class" in tree:
            return _decode_class(tree, hint, classes, path)
        _check_kind(hint, "an object without class", path)
        return {k: _decode(v, item_hint(hint, k), classes, f"{path}.{k}") for k, v in tree.items()}
    if isinstance(tree, str) and isinstance(hint, type) and issubclass(hint, enum.Enum):
        return _member(hint, tree, path)
    if tree is not None:
        _check_kind(hint, repr(tree)[:60], path)
    if isinstance(tree, list):
        items = [_decode(v, item_hint(hint, i), classes, f"{path}.{i}") for i, v in enumerate(tree)]
        return items if _origin(hint) is list else tuple(items)
    return hint(tree) if isinstance(tree, str) and _is_path(hint) else tree


def _decode_class(
    tree: Mapping[str, Any], hint: Any, classes: Mapping[str, type], path: str
) -> Any:
    name = tree["class"]
    if isinstance(name, str) and name in _TAGS:
        return _tagged(_TAGS[name], tree, classes, path)
    cls = names.resolve(name, classes, path)
    if isinstance(hint, type) and not issubclass(cls, hint):
        _check_kind(hint, names.name_of(cls), path)
    if issubclass(cls, enum.Enum):
        return _member(cls, tree.get("value"), path)
    fields = [f.name for f in dataclasses.fields(cls) if f.init]
    for key in tree:
        if is_removed(name, key):
            _check_removed(name, key, tree[key], path)
        elif key != "class" and key not in fields:
            what = f"{cls.__name__} has no field {repr(key)[:60]}"
            raise ConfigError(f"{path}: {what}{nearest(key[:60], fields)}")
    known = hints(cls)
    values = {
        n: _decode(tree[n], known.get(n, Any), classes, f"{path}.{n}") for n in fields if n in tree
    }
    try:
        return cls(**values)
    except ConfigError:
        raise
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{path}: {error}") from error


def _check_kind(hint: Any, what: str, path: str) -> None:
    """Raises ConfigError if the field holds a dataclass or an enum, of which `what` is none."""
    if isinstance(hint, type) and (dataclasses.is_dataclass(hint) or issubclass(hint, enum.Enum)):
        raise ConfigError(f"{path}: {what} is no {hint.__name__}, and this field holds one.")


def _tagged(kind: Any, tree: Mapping[str, Any], classes: Mapping[str, type], path: str) -> Any:
    value = _decode(tree.get("value"), Any, classes, f"{path}.value")
    try:
        return kind(value)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{path}: {repr(value)[:60]} is no {kind.__name__}.") from error


def is_removed(name: Any, field: str) -> bool:
    """Whether a class of mmjax, by its name, had this field once."""
    return isinstance(name, str) and field in REMOVED.get(names.short(name), {})


def _check_removed(name: str, field: str, value: Any, path: str) -> None:
    """Raises ConfigError for a field of before that did not hold its default."""
    short = name.rpartition(":")[2]
    default, remedy = REMOVED[short][field]
    if value != default:
        raise ConfigError(
            f"{path}: {short} has no field {field!r} any more (here {value!r}); {remedy}."
        )


def _member(cls: type[enum.Enum], name: Any, path: str) -> enum.Enum:
    if not isinstance(name, str) or name not in cls.__members__:
        known = nearest(str(name)[:60], cls.__members__)
        raise ConfigError(f"{path}: no {cls.__name__} {repr(name)[:60]}{known}")
    return cls[name]


_TAGS = {"float": float, "Path": Path, "tuple": tuple, "list": list}


def _tag(name: str, value: Any) -> dict[str, Any]:
    return {"class": name, "value": value}


def is_config(value: Any) -> bool:
    """Whether the value is an instance of a dataclass."""
    return dataclasses.is_dataclass(value) and not isinstance(value, type)


@functools.cache
def hints(cls: type) -> dict[str, Any]:
    """Resolved annotations of a dataclass; {} if one of them cannot be resolved."""
    try:
        return typing.get_type_hints(cls)
    except (NameError, TypeError, AttributeError):
        return {}


def item_hint(hint: Any, key: Any) -> Any:
    """The annotation of one item of an annotated dict, tuple or list."""
    hint = _without_none(hint)
    args, origin = typing.get_args(hint), _origin(hint)
    if not isinstance(origin, type) or not args:
        return Any
    if issubclass(origin, Mapping):
        return args[-1]
    if origin is tuple and args[-1] is not Ellipsis:
        return args[key] if key < len(args) else Any
    return args[0]


def _origin(hint: Any) -> Any:
    return typing.get_origin(hint) or hint


def _without_none(hint: Any) -> Any:
    """X for an annotation `X | None`; Any for other unions."""
    if typing.get_origin(hint) not in (typing.Union, types.UnionType):
        return hint
    members = [m for m in typing.get_args(hint) if m is not type(None)]
    return members[0] if len(members) == 1 else Any


def _is_path(hint: Any) -> bool:
    return isinstance(hint, type) and hasattr(hint, "__fspath__")
