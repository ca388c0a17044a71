"""Jitted functions that several processes run as one program."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from etils import epy

from mmjax.parallel import distributed

with epy.lazy_imports():
    import jax

__all__ = ["jit"]


def jit(function: Callable, **options: Any) -> Callable:
    """`jax.jit`, whose first call with arguments of a kind waits until all processes have compiled.

    The first collective between some devices connects their processes and gives up after 30 s on
    CPU, while one process may compile for minutes longer than another. All processes must make the
    same calls in the same order.
    """
    jitted = jax.jit(function, **options)
    return jitted if distributed.count() == 1 else _Together(jitted, function.__name__)


class _Together:
    """A jitted function, compiled ahead for each kind of arguments."""

    def __init__(self, jitted: Any, name: str):
        self._jitted, self._name = jitted, name
        self._compiled: dict[Any, Any] = {}

    def __call__(self, *args: Any) -> Any:
        leaves, tree = jax.tree.flatten(args)
        key = tree, tuple((jax.typeof(x), getattr(x, "sharding", None)) for x in leaves)
        if key not in self._compiled:
            compiled = self._jitted.lower(*args).compile()
            distributed.barrier(f"compiled {self._name}")
            self._compiled[key] = compiled
        return self._compiled[key](*args)
