"""What a model that was extended has kept of what it knew before."""

from __future__ import annotations

import dataclasses
import math

from mmjax.config import ranges
from mmjax.evaluate.losses import Losses
from mmjax.experiment import Evaluator

__all__ = ["Kept"]

SAME = 1e-5  # relative; another vocabulary is another program, which rounds elsewhere


@dataclasses.dataclass(frozen=True, kw_only=True)
class Kept(Evaluator):
    """Losses on held-out data of the tasks that a run had before it was extended, and what of them
    was lost since: the loss now minus the loss before.

    Before the first step nothing may be lost; otherwise the model is another one than before.

    Fields:
      before: loss of each task before. num_batches: batches a task.
    """

    before: dict[str, ranges.Finite] = dataclasses.field(default_factory=dict)
    num_batches: ranges.Count = 4

    def check(self, view):
        self._losses().check(view)

    def run(self, view):
        now = self._losses().run(view)
        found: dict[str, float] = {}
        for task, before in self.before.items():
            loss = now[f"{task}/loss"]
            if not view.step and not math.isclose(loss, before, rel_tol=SAME, abs_tol=SAME):
                raise ValueError(
                    f"Kept: before the first step task {task!r} has loss {loss:.6f}, and"
                    f" {before:.6f} before the run was extended: its model computes something else"
                    " than that of the run; what is added must change nothing at first."
                )
            found[f"{task}/loss"], found[f"{task}/lost"] = loss, loss - before
        return found

    def _losses(self) -> Losses:
        return Losses(tasks=tuple(self.before), num_batches=self.num_batches)
