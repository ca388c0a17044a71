"""Ranges of a config's numbers: declared by annotations, checked when an object is created.

    batch_size: ranges.Count = 64                      def __post_init__(self):
    drop: dict[str, ranges.BelowOne] = ...                 ranges.check(self)

So the same check applies in a Python file, in a `config.json` and on the command line.
"""

from __future__ import annotations

import collections.abc
import contextlib
import dataclasses
import functools
import inspect
import math
import sys
import types
import typing
from collections.abc import Iterator
from typing import Annotated, Any

__all__ = [
    "BelowOne",
    "Bytes",
    "Count",
    "Finite",
    "Fraction",
    "Natural",
    "NonNegative",
    "Positive",
    "Range",
    "check",
    "declared",
    "is_number",
    "problem",
]

LARGEST = {int: 2**31 - 1, float: 3e38}  # limits of int32 and float32
ROOM = 60  # characters of a value shown in a message
UNIONS = (typing.Union, types.UnionType)


@dataclasses.dataclass(frozen=True)
class Range:
    """Which numbers a field accepts. NaN, bools and strings are never accepted.

    Fields:
      low, high: the ends; None = the limits of int32 and float32.
      has_low, has_high: whether the ends are included.
      has_inf: whether infinity is included.
      also: accepted numbers outside the range with a special meaning, such as -1 = automatic.
    """

    low: float | None = None
    high: float | None = None
    has_low: bool = True
    has_high: bool = True
    has_inf: bool = False
    also: tuple[float, ...] = ()

    def holds(self, number: float, kind: type) -> bool:
        """Whether a field of this kind, int or float, accepts the number."""
        low, high = self._ends(kind)
        if number in self.also or (number == math.inf and self.has_inf):
            return True
        return low < number < high or (
            (number == low and self.has_low) or (number == high and self.has_high)
        )

    def rule(self, kind: type, number: float | None = None) -> str:
        """The rule in words; names an undeclared end only if `number` exceeds it."""
        low, high, largest = self.low, self.high, LARGEST[kind]
        if number is not None and low is None and number < -largest:
            low = -largest
        if number is not None and high is None and number > largest:
            high = largest
        noun = "a whole number" if kind is int else "a number"
        if low is not None and high is not None and self.has_low and self.has_high:
            ends = f"from {_show(low)} to {_show(high)}"
        else:
            first = "" if low is None else ("of {} or more" if self.has_low else "above {}")
            last = "" if high is None else ("at most {}" if self.has_high else "below {}")
            ends = " and ".join(filter(None, [first.format(_show(low)), last.format(_show(high))]))
        if not ends and kind is float:
            noun = "a finite number"
        others = ["inf"] * self.has_inf + [_show(number) for number in self.also]
        return ", or ".join([f"{noun} {ends}".strip(), *others])

    def _ends(self, kind: type) -> tuple[float, float]:
        largest = LARGEST[kind]
        low = -largest if self.low is None else self.low
        return low, largest if self.high is None else self.high


Count = Annotated[int, Range(1)]
Natural = Annotated[int, Range(0)]
Bytes = Annotated[int, Range(0, 2**50)]
Positive = Annotated[float, Range(0, has_low=False)]
NonNegative = Annotated[float, Range(0)]
Fraction = Annotated[float, Range(0, 1)]
BelowOne = Annotated[float, Range(0, 1, has_high=False)]
Finite = Annotated[float, Range()]


def check(config: Any, who: str = "") -> None:
    """Raises ValueError for a number of a dataclass that is outside its declared range.

    Fields without a declared range are not checked, nor are nested objects.

    Args:
      who: start of the message; empty = the name of the class.
    """
    for name, hint in declared(type(config)).items():
        wrong = _problem(getattr(config, name), hint, name)
        if wrong:
            raise ValueError(f"{who or type(config).__name__}: {wrong}.")


def problem(cls: type, name: str, value: Any) -> str:
    """The message of `check` for a value of a field; empty = no problem."""
    hint = declared(cls).get(name)
    wrong = "" if hint is None else _problem(value, hint, name)
    return f"{cls.__name__}: {wrong}." if wrong else ""


def is_number(cls: type, name: str) -> bool:
    """Whether a field declares a range and accepts numbers only."""
    return _unwrapped(declared(cls).get(name), None)[0] in (int, float)


@functools.cache
def declared(cls: type) -> dict[str, Any]:
    """Annotations of the fields of a dataclass that declare a range, by name."""
    names = {field.name for field in dataclasses.fields(cls)}
    return {n: h for n, h in _annotations(cls) if n in names and _declares(h)}


def _annotations(cls: type) -> Iterator[tuple[str, Any]]:
    """Resolved annotations, without those that cannot be resolved."""
    try:
        yield from typing.get_type_hints(cls, include_extras=True).items()
        return
    except (NameError, TypeError, AttributeError):
        pass
    unresolved = contextlib.suppress(NameError, TypeError, AttributeError)
    for base in reversed(cls.__mro__):
        scope, own = vars(sys.modules.get(base.__module__, typing)), {}
        with unresolved:
            own = inspect.get_annotations(base)
        for name, hint in own.items():
            one = types.SimpleNamespace(__annotations__={name: hint})
            with unresolved:
                yield from typing.get_type_hints(one, scope, include_extras=True).items()


def _declares(hint: Any, limit: Range | None = None) -> bool:
    """Whether the annotation declares a range for a number."""
    hint, limit = _unwrapped(hint, limit)
    if hint in (int, float):
        return limit is not None
    return any(_declares(arg, limit) for arg in typing.get_args(hint))


def _unwrapped(hint: Any, limit: Range | None) -> tuple[Any, Range | None]:
    """The annotation without `Annotated`, and the innermost range around it."""
    while typing.get_origin(hint) is Annotated:
        limit = next((m for m in hint.__metadata__ if isinstance(m, Range)), limit)
        hint = typing.get_args(hint)[0]
    return hint, limit


def _problem(value: Any, hint: Any, where: str, limit: Range | None = None) -> str:
    """The problem with a value, without the full stop; empty = none."""
    hint, limit = _unwrapped(hint, limit)
    origin, args = typing.get_origin(hint) or hint, typing.get_args(hint)
    if hint in (int, float):
        number = _number(value, hint)
        is_good = limit is None or (number is not None and limit.holds(number, hint))
        return "" if is_good else f"{where}={_show(value)} must be {_rule(hint, limit, number)}"
    if origin in UNIONS:
        return _problem_of_union(value, args, where, limit)
    if origin in (tuple, list) and args:
        is_long = origin is list or args[-1] is Ellipsis
        if not isinstance(value, (tuple, list)) or not (is_long or len(value) == len(args)):
            return f"{where}={_show(value)} must be {_rule(hint, limit)}"
        hints = args[:1] * len(value) if is_long else args
        parts = [(f"{where}[{i}]", v, h) for i, (v, h) in enumerate(zip(value, hints, strict=True))]
    elif origin in (dict, collections.abc.Mapping) and args:
        if not isinstance(value, collections.abc.Mapping):
            return f"{where}={_show(value)} must be {_rule(hint, limit)}"
        if wrong := next((w for k in value if (w := _problem(k, args[0], f"{where} key"))), ""):
            return wrong
        parts = [(f"{where}[{k!r}]", v, args[1]) for k, v in value.items()]
    else:
        return ""
    return next((w for at, v, h in parts if (w := _problem(v, h, at, limit))), "")


def _problem_of_union(value: Any, members: tuple, where: str, limit: Range | None) -> str:
    problems = []
    for member in members:
        if not _declares(member, limit):
            if _is_of(value, member):
                return ""
            continue
        wrong = _problem(value, member, where, limit)
        if not wrong:
            return ""
        # Report a wrong item of a dict or tuple rather than that it is not a number.
        problems.append((not wrong.startswith(f"{where}["), wrong))
    end = ", or None" if type(None) in members else ""
    return f"{min(problems, key=lambda f: f[0])[1]}{end}" if problems else ""


def _is_of(value: Any, hint: Any) -> bool:
    """Whether the value is of this union member, which has no range."""
    if typing.get_origin(hint) is typing.Literal:
        return value in typing.get_args(hint)
    kind = typing.get_origin(hint) or hint
    return not isinstance(kind, type) or isinstance(value, kind)


def _number(value: Any, kind: type) -> float | None:
    """The value as a Python number; None if it is not a number of this kind."""
    if getattr(value, "shape", None) == () and hasattr(value, "item"):
        value = value.item()  # NumPy's
    is_one = isinstance(value, int if kind is int else (int, float))
    return value if is_one and not isinstance(value, bool) else None


def _rule(hint: Any, limit: Range | None, number: float | None = None) -> str:
    """The rule for a value of an annotation, in words."""
    hint, limit = _unwrapped(hint, limit)
    if hint in (int, float):
        return (limit or Range()).rule(hint, number)
    origin, args = typing.get_origin(hint) or hint, typing.get_args(hint)
    if origin in UNIONS:
        return ", or ".join(dict.fromkeys(_rule(a, limit) for a in args))
    if origin in (dict, collections.abc.Mapping) and args:
        return f"a dict, each value {_rule(args[1], limit)}"
    if origin in (tuple, list) and args:
        count = "" if origin is list or args[-1] is Ellipsis else f" of {len(args)}"
        return f"a {origin.__name__}{count}, each item {_rule(args[0], limit)}"
    return "None" if hint is type(None) else getattr(hint, "__name__", str(hint))


def _show(value: Any) -> str:
    if getattr(value, "shape", None) == () and hasattr(value, "item"):
        value = value.item()
    if isinstance(value, int) and value.bit_length() > 4 * ROOM:
        return f"{'-' if value < 0 else ''}2**{value.bit_length() - 1}.."  # Python may not print it
    text = repr(value)
    return text if len(text) <= ROOM else f"{text[: ROOM - 3]}..."
