"""The Evaluator seam."""

from __future__ import annotations

import concurrent.futures
import dataclasses
import os
from collections.abc import Callable, Iterable
from typing import Any

AT_ONCE = 4  # threads at most: each holds activations of its own


@dataclasses.dataclass(frozen=True, kw_only=True)
class Evaluator:
    """Base of all evaluators.

    Fields:
      every: steps between runs while training; 0 = at the end only.
    """

    every: int = 0

    def run(self, view: Any) -> dict[str, float]:
        """Metrics of a model bound to parameters (`mmjax.evaluate.view.View`)."""
        raise NotImplementedError(f"{type(self).__name__} must define run().")

    def chance(self, view: Any) -> dict[str, float]:
        """Chance level of metrics, by name or by a part of names that follows an underscore."""
        del view
        return {}


def at_once(view: Any, function: Callable[[Any], Any], items: Iterable[Any]) -> list[Any]:
    """function(item) of all items, in threads, so that one compiles while another computes.

    Over several devices one after another: collectives of two programs could wait for each other.
    """
    with concurrent.futures.ThreadPoolExecutor(
        min(os.cpu_count() or 1, AT_ONCE) if view.program.mesh.size == 1 else 1
    ) as pool:
        return list(pool.map(function, items))
