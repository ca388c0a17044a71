"""A schedule of a stranger: shares move in a straight line from the weights to others."""

from __future__ import annotations

import dataclasses

from mmjax.config import ranges
from mmjax.data.schedules import Joined, Order, Schedule, Segment, Weighted


@dataclasses.dataclass(frozen=True, kw_only=True)
class Curriculum(Schedule):
    """The easy first: shares change with the step, period by period, and then stay.

    Fields:
      last: weights by task from step `steps` on; other tasks keep theirs.
      steps: length of the change.
    """

    last: dict[str, ranges.NonNegative]
    steps: ranges.Count = 1000

    def __post_init__(self):
        ranges.check(self)

    def order(self, segment: Segment) -> Order:
        """A period after the other, each with its own shares."""
        period = segment.period
        starts = list(range(0, max(self.steps - segment.start, 0) + period, period))
        orders = [self._period(segment, start) for start in starts]
        return Joined(starts, orders)

    def _period(self, segment: Segment, start: int) -> Order:
        part = min(1.0, (segment.start + start) / self.steps)
        weights = [
            (1 - part) * weight + part * self.last.get(task, weight)
            for task, weight in segment.weights.items()
        ]
        return Weighted(weights, segment.period, (*segment.key, start))
