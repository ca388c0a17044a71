"""Differences between two configs, and which of them a resumed run may have.

A field declares what it affects with `dataclasses.field(metadata={"identity": "model"})`:

    model     shapes and meaning of parameters      a resume refuses a change
    tokens    meaning of ids and pieces             a resume refuses a change
    numerics  values of the updates                 a resume refuses a change
    data      which samples come in which order     a resume refuses a change
    journal   shares of the tasks                   a resume journals a change, and says so
    said      what may change, but not unnoticed    a resume says a change
    none      nothing that is computed              a resume ignores a change

The declaration holds for everything below the field until a deeper field overrides it; at the root
it is "none". A field that came after runs had been saved says so by `metadata={"is_new": True}`:
while it is at its default it is no part of the identity, so that those runs resume. A field whose
declaration came after runs had been saved says so by `"is_moved": True`: for those runs
(`identity(before=True)`) what was declared above it holds.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from mmjax.config import names
from mmjax.config.serial import FORMAT, hints, is_config, is_removed, item_hint, to_json

__all__ = ["diff", "identity", "paths"]

IDENTITIES = ("model", "tokens", "data", "numerics", "journal", "said", "none")


class _Leaf(NamedTuple):
    path: str
    value: Any
    hint: Any
    identity: str
    before: str  # what `identity` was for runs before a declaration had moved
    is_unused: bool = False  # a new field at its default


def paths(config: Any) -> list[str]:
    """Dotted paths of all fields that hold a value, as spelled on the command line."""
    return [leaf.path for leaf in _walk(config, Any, "") if "@" not in leaf.path]


def identity(
    config: Any, kind: str, format: int = FORMAT, *, before: bool = False
) -> dict[str, Any]:
    """JSON values, by path, of the fields that affect `kind` (see the module's docstring).

    The class of each part is included as `<path>@class`, the order of each dict as `<path>@order`.
    Classes of mmjax have their short names; in `format` 1 of config.json all had.

    Args:
      before: what older runs have recorded, before some declarations had moved.
    """
    if kind not in IDENTITIES:
        raise ValueError(f"identity: kind={kind!r} must be one of {', '.join(IDENTITIES)}.")
    leaves = [
        leaf
        for leaf in _walk(config, Any, "")
        if (leaf.before if before else leaf.identity) == kind and not leaf.is_unused
    ]
    found = {}
    for leaf in leaves:
        if leaf.path.endswith("@class"):
            found[leaf.path] = names.short(leaf.value, format == 1)
        else:
            tree = to_json(leaf.value, leaf.hint, leaf.path)
            found[leaf.path] = names.short_names(tree, every=format == 1)
    return found


def diff(old: Any, new: Any) -> list[str]:
    """Readable differences of two configs or their JSON: `tasks.text.batch_size: 64 -> 128`."""
    before, after = (to_json(c) if is_config(c) else c for c in (old, new))
    return list(_diff(before, after, ""))


def _walk(
    value: Any, hint: Any, path: str, kind: str = "none", before: str = "none"
) -> Iterator[_Leaf]:
    """Values that have no parts, and `@class` and `@order` of those that have."""
    stem = f"{path}." if path else ""
    if is_config(value):
        known = hints(type(value))
        yield _Leaf(f"{path}@class", names.name_of(type(value)), str, kind, before)
        for field in dataclasses.fields(value):
            if field.init:
                own = field.metadata.get("identity", kind)
                is_moved = field.metadata.get("is_moved")
                own_before = before if is_moved else field.metadata.get("identity", before)
                if own not in IDENTITIES:
                    raise ValueError(
                        f"{type(value).__name__}.{field.name}: identity={own!r} must be one of"
                        f" {', '.join(IDENTITIES)}."
                    )
                inner = getattr(value, field.name)
                is_unused = bool(field.metadata.get("is_new")) and inner == _default(field)
                inner_hint, at = known.get(field.name, Any), f"{stem}{field.name}"
                for leaf in _walk(inner, inner_hint, at, own, own_before):
                    yield leaf._replace(is_unused=leaf.is_unused or is_unused)
    elif isinstance(value, Mapping) and value:
        yield _Leaf(f"{path}@order", tuple(value), Any, kind, before)
        for key, inner in value.items():
            yield from _walk(inner, item_hint(hint, key), f"{stem}{key}", kind, before)
    elif isinstance(value, (tuple, list)) and any(is_config(v) for v in value):
        for i, inner in enumerate(value):
            yield from _walk(inner, item_hint(hint, i), f"{stem}{i}", kind, before)
    else:
        yield _Leaf(path, value, hint, kind, before)


def _default(field: dataclasses.Field) -> Any:
    has_factory = field.default_factory is not dataclasses.MISSING
    return field.default_factory() if has_factory else field.default  # type: ignore[misc]


def _diff(old: Any, new: Any, path: str) -> Iterator[str]:
    stem = f"{path}." if path else ""
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        if not names.same(old.get("class"), new.get("class")):
            a, b = _brief(old), _brief(new)
            if a.partition("(")[0] == b.partition("(")[0]:
                a, b = f"{a} of {old['class']}", f"{b} of {new['class']}"
            yield f"{path or 'config'}: {a} -> {b}"
            return
        for key in [*old, *(k for k in new if k not in old)]:
            if key == "class" or (key not in new and is_removed(old.get("class"), key)):
                continue
            if key not in old or key not in new:
                yield f"{stem}{key}: {_brief(old.get(key, ...))} -> {_brief(new.get(key, ...))}"
            else:
                yield from _diff(old[key], new[key], f"{stem}{key}")
        if "class" not in old and list(old) != list(new) and set(old) == set(new):
            yield f"{path}: order {', '.join(old)} -> {', '.join(new)}"
    elif _has_parts(old) and _has_parts(new) and len(old) == len(new):
        for i, (a, b) in enumerate(zip(old, new, strict=True)):
            yield from _diff(a, b, f"{stem}{i}")
    elif old != new:
        yield f"{path}: {_brief(old)} -> {_brief(new)}"


def _has_parts(value: Any) -> bool:
    return isinstance(value, list) and any(isinstance(v, Mapping) for v in value)


def _brief(value: Any, room: int = 60) -> str:
    if value is ...:
        return "absent"
    if isinstance(value, Mapping) and "class" in value:
        inner = ", ".join(f"{k}={_brief(v, 20)}" for k, v in value.items() if k != "class")
        text = f"{names.short(value['class'], every=True)}({inner})"
    elif isinstance(value, Mapping):
        text = "{" + ", ".join(f"{k}: {_brief(v, 20)}" for k, v in value.items()) + "}"
    elif isinstance(value, list):
        text = "[" + ", ".join(_brief(v, 20) for v in value) + "]"
    else:
        text = repr(value)
    return text if len(text) <= room else f"{text[: room - 3]}..."
