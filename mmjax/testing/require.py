"""How a broken contract is told."""

from __future__ import annotations

import dataclasses
import pickle
from typing import Any

import numpy as np


class Broken(AssertionError):
    """A part does not keep the contract of its seam."""


def require(condition: Any, part: Any, method: str, rule: str) -> None:
    """Raises Broken, with class, method and rule, unless the condition holds."""
    if not condition:
        raise Broken(f"{type(part).__name__}.{method}: {rule}.")


def inert(part: Any, base: type) -> Any:
    """A copy of the part from a pickle; the part is a frozen dataclass of a seam's base."""
    require(isinstance(part, base), part, "__class__", f"it must be a {base.__name__}")
    frozen = dataclasses.is_dataclass(part) and type(part).__dataclass_params__.frozen  # type: ignore[attr-defined]
    require(frozen, part, "__class__", "it must be a frozen dataclass")
    copy = pickle.loads(pickle.dumps(part))
    require(copy == part, part, "__eq__", "a pickled copy must be equal, as workers get copies")
    return copy


def same(a: Any, b: Any) -> bool:
    """Whether two values, arrays or tuples of them are equal to the bit."""
    if a is None or b is None:
        return a is b
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(x, b[k]) for k, x in a.items())
    if isinstance(a, (tuple, list)):
        return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
    if isinstance(a, np.ndarray) or hasattr(a, "shape"):
        return np.shape(a) == np.shape(b) and bool(np.array_equal(np.asarray(a), np.asarray(b)))
    return bool(a == b)
