"""What `fields` of a source may say: names, paths into JSON, and maps of several fields."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

import numpy as np

from mmjax.data.source import BadRecord
from mmjax.files import npy

MAX_JSON = 1 << 23  # bytes of a JSON value; parsed, it takes up to thirty times as much memory

MAX_CLASS = 1024  # bytes of the name of a class


class Place(NamedTuple):
    """Where a value is: a field, and keys and numbers into its JSON value."""

    field: str
    path: tuple[str, ...] = ()


class Wanted(NamedTuple):
    """The value of a key of the example: the first of `places` that is there, or a dict of them."""

    places: tuple[Place, ...] = ()
    parts: tuple[tuple[str, Wanted], ...] = ()

    def fields(self) -> list[str]:
        """Names of the fields of the record that it needs."""
        inner = [name for _, part in self.parts for name in part.fields()]
        return list(dict.fromkeys([*(place.field for place in self.places), *inner]))

    def missing(self, there: Collection[str]) -> bool:
        """Whether no record has it, by the names of the fields that there are."""
        if self.parts:
            return any(part.missing(there) for _, part in self.parts)
        return not any(place.field in there for place in self.places)

    def value(self, raw: Mapping[str, Any]) -> Any:
        """The value in a record; None if it is absent. Raises BadRecord."""
        if self.parts:
            values = {name: part.value(raw) for name, part in self.parts}
            return {name: v for name, v in values.items() if v is not None} or None
        for place in self.places:
            value = raw.get(place.field)
            if value is not None:
                value = _at(place, decoded(place.field, value))
            if value is not None:
                return value
        return None


def parsed(text: str, there: Collection[str]) -> Wanted:
    """What a text of `fields` means for records with these fields.

    >>> parsed("png;jpg", {"png"}).fields()
    ['png', 'jpg']
    >>> parsed("meta.size.0", {"meta"}).places
    (Place(field='meta', path=('size', '0')),)
    >>> parsed("x0=left, x1=right", {"left", "right"}).value({"left": 1, "right": 2})
    {'x0': 1, 'x1': 2}
    """
    if "=" in text and text not in there:
        pairs = [part.partition("=") for part in text.split(",")]
        return Wanted(parts=tuple((k.strip(), parsed(v.strip(), there)) for k, _, v in pairs))
    return Wanted(tuple(_place(name, there) for name in text.split(";")))


def names(text: str) -> list[str]:
    """All names in a text of `fields`, whatever fields there are."""
    parts = [part.partition("=") for part in text.split(",")] if "=" in text else [("", "", text)]
    return [one.strip() for _, _, part in parts for one in part.split(";")]


def _place(name: str, there: Collection[str]) -> Place:
    """A field of this very name, or else the longest field that it is a path into."""
    parts = name.split(".")
    for count in range(len(parts), 0, -1):
        field = ".".join(parts[:count])
        if field in there:
            return Place(field, tuple(parts[count:]))
    return Place(name)


def _at(place: Place, value: Any) -> Any:
    """The value at a path; None if there is none."""
    if not place.path:
        return value
    if isinstance(value, (str, bytes)):
        try:
            value = _json(value.encode() if isinstance(value, str) else value)
        except (ValueError, RecursionError) as error:
            raise BadRecord("no_json", f"{place.field}: {error}") from error
    for part in place.path:
        if isinstance(value, Mapping):
            value = value.get(part)
        elif isinstance(value, (list, tuple, np.ndarray)) and part.isascii() and part.isdigit():
            value = value[int(part)] if int(part) < len(value) else None
        else:
            return None
    return value


def decoded(name: str, value: Any) -> Any:
    """Bytes parsed as the suffix of the field says; modalities decode other fields."""
    kind = name.rpartition(".")[2]
    if not isinstance(value, bytes) or kind not in ("npy", "json", "cls"):
        return value
    try:
        return {"npy": npy.parsed, "json": _json, "cls": _class}[kind](value)
    except Exception as error:  # parsers raise anything on broken bytes
        raise BadRecord(f"no_{kind}", f"{name}: {error}") from error


def _json(content: bytes) -> Any:
    if len(content) > MAX_JSON:
        raise ValueError(f"{len(content)} bytes of JSON, more than {MAX_JSON}")
    return json.loads(content)


def _class(content: bytes) -> int | str:
    """The number of a class, or its name."""
    if len(content) > MAX_CLASS:
        raise ValueError(f"{len(content)} bytes, more than {MAX_CLASS}")
    text = content.decode("utf-8-sig").strip()
    return int(text) if text.removeprefix("-").isdigit() else text
