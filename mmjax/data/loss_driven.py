"""A schedule that follows the losses: what a task still learns decides its share."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence

from mmjax.config import ranges
from mmjax.data.schedules import Memory, Order, Schedule, Segment

DIGITS = 6  # of the shares in the journal
LEAST = 1e-6  # of the largest rate: what tasks that do not fall divide among themselves


@dataclasses.dataclass(frozen=True, kw_only=True)
class LossDriven(Schedule):
    """Shares follow how fast the losses fall, within bounds.

    Let m be a task's mean loss in a period, n the number of its steps there, and m', n' those of
    the last period in which it ran. Its loss falls at the rate, for each of its own steps,

        r = max(0, m' - m) / (|m'| (n + n') / 2)

    so that losses of any scale compare, and a task with more steps is not favoured for that. Rates
    are averaged over the periods, R = smoothing R + (1 - smoothing) r, and a task's share is

        s = min(ceiling, max(floor, c w R)),   c such that all shares sum to 1

    where w is its weight. The first two periods run by the weights. Tasks of weight 0 stay out.

    This is the learning progress of Graves et al. 2017 (arXiv 1704.03003), loss gained for time
    spent, with bounded shares in place of a bandit. A loss that rises counts as one that stays.

    Fields:
      floor, ceiling: bounds of the share of a task.
      smoothing: weight of the former periods in the rate; 0 = the last two periods alone.

    >>> from mmjax.data.mixture import Mixture
    >>> Mixture(schedule=LossDriven(floor=0.1), period=500).schedule.ceiling
    0.8
    """

    floor: ranges.Fraction = 0.05
    ceiling: ranges.Fraction = 0.8
    smoothing: ranges.BelowOne = 0.5

    def __post_init__(self):
        ranges.check(self)
        if self.floor > self.ceiling:
            raise ValueError(
                f"LossDriven: floor={self.floor} is above ceiling={self.ceiling}; lower it."
            )

    def order(self, segment: Segment) -> Order:
        """Permuted periods. Raises ValueError if shares within the bounds cannot sum to 1."""
        num = sum(weight > 0 for weight in segment.weights.values())
        if self.floor * num > 1 or self.ceiling * num < 1:
            wrong = f"floor={self.floor}" if self.floor * num > 1 else f"ceiling={self.ceiling}"
            raise ValueError(
                f"LossDriven: {wrong} for each of {num} tasks of weight above 0 cannot sum to 1;"
                f" use floor of {1 / max(num, 1):.3g} or less and ceiling of that or more."
            )
        if self.floor * segment.period < 1:
            raise ValueError(
                f"LossDriven: floor={self.floor} is less than one step of period={segment.period},"
                f" so a task might never run; use {1 / segment.period:.3g} or more."
            )
        return super().order(segment)

    def observe(self, memory: Memory, task: str, loss: float) -> Memory:
        """Adds a loss to the sum of this period."""
        known = memory.get(task) or {"sum": 0.0, "steps": 0, "last": None, "rate": None}
        now = {"sum": known["sum"] + loss, "steps": known["steps"] + 1}
        return {**memory, task: {**known, **now}}

    def revise(
        self, memory: Memory, weights: Mapping[str, float]
    ) -> tuple[dict[str, float] | None, Memory]:
        """The shares of the next period; None until each task has run in two periods."""
        memory = {task: self._closed(known) for task, known in memory.items()}
        wanted = {task: weight for task, weight in weights.items() if weight > 0}
        rates = {t: memory[t]["rate"] for t in wanted if t in memory}
        if len(rates) < len(wanted) or None in rates.values():
            return None, memory
        least = LEAST * max(rates.values()) or 1.0  # none falls: by weight
        parts = [weight * max(rates[task], least) for task, weight in wanted.items()]
        shares = bounded(parts, self.floor, self.ceiling)
        return {t: round(s, DIGITS) for t, s in zip(wanted, shares, strict=True)}, memory

    def _closed(self, known: Memory) -> Memory:
        """What is remembered of a task when a period ends; a task that did not run waits."""
        if not known["steps"]:
            return known
        mean, steps, rate = known["sum"] / known["steps"], known["steps"], known["rate"]
        if known["last"] is not None:
            before, steps_before = known["last"]
            apart = abs(before) * (steps + steps_before) / 2
            new = max(0.0, before - mean) / apart if apart else 0.0
            rate = new if rate is None else self.smoothing * rate + (1 - self.smoothing) * new
        return {"sum": 0.0, "steps": 0, "last": [mean, steps], "rate": rate}


def bounded(parts: Sequence[float], floor: float, ceiling: float) -> list[float]:
    """Shares in proportion to positive parts, cut to [floor, ceiling], that sum to 1.

    The factor is found by bisection: additions, products and quotients alone, which round alike on
    every host.
    """
    parts = [part / max(parts) for part in parts]
    low, high = 0.0, ceiling / min(parts)
    for _ in range(200):
        middle = (low + high) / 2
        cut = [min(ceiling, max(floor, middle * part)) for part in parts]
        low, high = (middle, high) if math.fsum(cut) < 1 else (low, middle)
    return [min(ceiling, max(floor, high * part)) for part in parts]
