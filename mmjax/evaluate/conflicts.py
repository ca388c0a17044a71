"""How far the objectives of a run pull the parameters in different directions."""

from __future__ import annotations

import dataclasses
import itertools

from mmjax.config import ranges
from mmjax.experiment import Evaluator


@dataclasses.dataclass(frozen=True, kw_only=True)
class Conflicts(Evaluator):
    """Cosine between the gradients of each two tasks, at the current parameters.

    Below 0 a step of one task raises the loss of the other (Yu et al. 2020), to first order: as
    tasks alternate, no step shows it. The gradients are of the mean loss over the first batches of
    the split; all of them are in memory at once. Metrics: `<a>_against_<b>_cosine` and the lengths
    `<a>_norm`; `mmjax report` draws them as a matrix.

    Fields:
      num_batches: batches per task. tasks: names; empty = all.
      by_loss: each named loss of a task by itself, as `<task>/<loss>`.
    """

    num_batches: ranges.Count = 2
    tasks: tuple[str, ...] = ()
    by_loss: bool = False

    def check(self, view):
        known = view.program.experiment.tasks
        unknown = [name for name in self.tasks if name not in known]
        if unknown:
            raise ValueError(
                f"Conflicts: tasks has {unknown[0]!r}, which is no task; there are"
                f" {', '.join(known)}."
            )
        for name in self.tasks or known:
            view.on(known[name].source).records(view.split)

    def run(self, view):
        self.check(view)
        found = {}
        for task in self.tasks or view.program.experiment.tasks:
            for loss, gradient in view.gradients(task, self.num_batches, self.by_loss).items():
                found[f"{task}/{loss}" if loss else task] = gradient
        metrics = {}
        norms = {name: view.inner(g, g) ** 0.5 for name, g in found.items()}
        for a, b in itertools.combinations(found, 2):
            product = norms[a] * norms[b]
            cosine = view.inner(found[a], found[b]) / product if product else 0.0
            metrics[f"{a}_against_{b}_cosine"] = cosine
        return metrics | {f"{name}_norm": norm for name, norm in norms.items()}
