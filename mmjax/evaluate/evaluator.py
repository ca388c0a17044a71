"""The Evaluator seam."""

from __future__ import annotations

import dataclasses
from typing import Any

from mmjax.config import ranges


@dataclasses.dataclass(frozen=True, kw_only=True)
class Evaluator:
    """Base of all evaluators.

    Fields:
      every: steps between runs while training; 0 = at the end only.
    """

    every: ranges.Natural = 0

    def __post_init__(self):
        ranges.check(self)

    def run(self, view: Any) -> dict[str, float]:
        """Metrics of a model bound to parameters (`mmjax.evaluate.view.View`).

        Where training compiles in another process, this runs there once too, on a view without a
        folder in which all that the model computes is zero, so that executables are ready at the
        end (`mmjax.executables.rehearse`). So what it leaves behind belongs in `view.folder`.
        """
        raise NotImplementedError(f"{type(self).__name__} must define run().")

    def chance(self, view: Any) -> dict[str, float]:
        """Chance level of metrics, by name or by a part of names that follows an underscore."""
        del view
        return {}
