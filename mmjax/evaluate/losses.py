"""Losses of the tasks on held-out data."""

from __future__ import annotations

import dataclasses

from mmjax.config import ranges
from mmjax.experiment import Evaluator


@dataclasses.dataclass(frozen=True, kw_only=True)
class Losses(Evaluator):
    """Mean loss and metrics of each task over the first batches of the split.

    Fields:
      num_batches: batches per task. tasks: names; empty = all.
    """

    num_batches: ranges.Count = 4
    tasks: tuple[str, ...] = ()

    def check(self, view):
        known = view.program.experiment.tasks
        for name in self.tasks or known:
            if name not in known:
                raise ValueError(
                    f"Losses: tasks has {name!r}, which is no task; there are {', '.join(known)}."
                )
            view.on(known[name].source).records(view.split)

    def run(self, view):
        metrics: dict[str, float] = {}
        for name in self.tasks or tuple(view.program.experiment.tasks):
            for key, value in view.losses(name, self.num_batches).items():
                metrics[f"{name}/{key}"] = value
        return metrics
