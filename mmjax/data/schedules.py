"""Schedules: in which order the tasks of a run take their steps.

    Mixture(schedule="block")                  # by name: permuted, block, interval
    Mixture(schedule=LossDriven(floor=0.1))    # any subclass of Schedule

A schedule makes an order of each segment of steps with the same weights. An order locates any place
in constant time. Most schedules use `Weighted`: places are assigned period by period, and the
counts so far are Webster's apportionment of the places so far, so that shares are exact in the long
run and no count ever falls.
"""

from __future__ import annotations

import bisect
import dataclasses
import fractions
import hashlib
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np

MAX_ROUNDS = 1_000_000  # entries of the table of an interval schedule

Memory = dict[str, Any]  # JSON values


class Order(Protocol):
    """An endless sequence of members 0, 1, ...; both answers are pure and take constant time."""

    def locate(self, place: int) -> tuple[int, int]:
        """The member at a place, and the number of its earlier places."""
        ...

    def counts(self, place: int) -> Sequence[int]:
        """Places of each member before this one."""
        ...


class Segment(NamedTuple):
    """The steps from `start` on, while the weights stay what they are."""

    weights: dict[str, float]  # by task, in the order of members
    intervals: dict[str, int]
    period: int
    seed: int
    start: int  # the step of place 0

    @property
    def key(self) -> tuple:
        """What seeds random choices of the segment."""
        return self.seed, "mixture", str(self.start)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Schedule:
    """Base of all schedules.

    `order` alone makes a schedule whose order is known ahead. One that follows the losses defines
    `observe` and `revise` too. What it remembers is in each checkpoint, so that a resumed run comes
    to the same weights.
    """

    def order(self, segment: Segment) -> Order:
        """The order of the tasks in a segment; by default each period is permuted."""
        return Weighted(list(segment.weights.values()), segment.period, segment.key)

    def observe(self, memory: Memory, task: str, loss: float) -> Memory:
        """What is remembered after a step with this loss. Called for each step, in order."""
        del task, loss
        return memory

    def revise(
        self, memory: Memory, weights: Mapping[str, float]
    ) -> tuple[dict[str, float] | None, Memory]:
        """New weights from the step B on, a multiple of the period, and what is remembered.

        Called when the losses up to step B - 2 have been observed: that of B - 1 is still being
        computed.

        Args:
          weights: those of the config, by task.

        Returns:
          The weights that change (None = none do) and the memory.
        """
        del weights
        return None, memory


@dataclasses.dataclass(frozen=True, kw_only=True)
class Permuted(Schedule):
    """Each period in its own random order, with whole counts by weight."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Blocked(Schedule):
    """Task after task in each period, with whole counts by weight."""

    def order(self, segment: Segment) -> Order:
        """One task after another."""
        return Weighted(list(segment.weights.values()), segment.period, None)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Intervals(Schedule):
    """Rounds over the tasks, where a task takes part in every `Task.interval`-th (IMP, Akbari et
    al. 2023)."""

    def order(self, segment: Segment) -> Order:
        """Rounds. Raises ValueError if weights have changed, which it does not know."""
        if segment.start:
            raise ValueError(
                f"Journal: weights change at step {segment.start}, but schedule='interval' has"
                " none; keep the weights, or use schedule='permuted' from the start."
            )
        return Interval(segment.intervals)


# The plain ones have names, which configs and command lines use.
NAMED: dict[str, Schedule] = {
    "permuted": Permuted(),
    "block": Blocked(),
    "interval": Intervals(),
}


class Joined:
    """Orders one after another.

    Args:
      starts: first place of each; the first is 0.
    """

    def __init__(self, starts: Sequence[int], orders: Sequence[Order]):
        self._starts, self._orders, self._before = list(starts), list(orders), []
        before: Sequence[int] = ()
        for i, order in enumerate(orders):
            if i:
                counts = orders[i - 1].counts(starts[i] - starts[i - 1])
                before = [b + c for b, c in zip(before, counts, strict=True)]
            else:
                before = [0] * len(order.counts(0))
            self._before.append(before)

    def locate(self, place: int) -> tuple[int, int]:
        """The member at a place, and the number of its earlier places."""
        i = bisect.bisect_right(self._starts, place) - 1
        member, rank = self._orders[i].locate(place - self._starts[i])
        known = 0 <= member < len(self._before[i])
        return member, (self._before[i][member] if known else 0) + rank

    def counts(self, place: int) -> list[int]:
        """Places of each member before this one."""
        i = bisect.bisect_right(self._starts, place) - 1
        counts = self._orders[i].counts(place - self._starts[i])
        return [b + c for b, c in zip(self._before[i], counts, strict=True)]


class Weighted:
    """An endless sequence of members, assigned in periods with whole counts.

    Args:
      weights: share of each member.
      period: places that are assigned together.
      key: seeds the permutation of each period; None = one member after another.
    """

    def __init__(self, weights: Sequence[float], period: int, key: tuple | None):
        parts = [fractions.Fraction(w).limit_denominator(10**6) for w in weights]
        scale = math.lcm(*(p.denominator for p in parts))
        self.weights = [int(p * scale) for p in parts]
        self.period, self.key = period, key
        self._periods: dict[int, tuple[list[int], np.ndarray, np.ndarray]] = {}
        if not sum(self.weights) > 0:
            raise ValueError(f"Mixture: weights={list(weights)} are all 0; make one more than 0.")

    def locate(self, place: int) -> tuple[int, int]:
        """The member at a place, and the number of its earlier places."""
        if len(self.weights) == 1:
            return 0, place
        number, offset = divmod(place, self.period)
        before, order, rank = self._period(number)
        member = int(order[offset])
        return member, before[member] + int(rank[offset])

    def counts(self, place: int) -> list[int]:
        """Places of each member before this one."""
        number, offset = divmod(place, self.period)
        if not offset:
            return divide(self.weights, place)
        before, order, _ = self._period(number)
        inside = np.bincount(order[:offset], minlength=len(before)).tolist()
        return [b + i for b, i in zip(before, inside, strict=True)]

    def _period(self, number: int) -> tuple[list[int], np.ndarray, np.ndarray]:
        """Counts before a period, its members, and their ranks within it."""
        if number in self._periods:
            return self._periods[number]
        before, after = (divide(self.weights, (number + i) * self.period) for i in (0, 1))
        counts = [b - a for a, b in zip(before, after, strict=True)]
        order = np.repeat(np.arange(len(counts)), counts)
        if self.key is not None:
            digest = hashlib.sha256(repr((*self.key, number)).encode()).digest()
            order = np.random.Generator(np.random.PCG64(int.from_bytes(digest[:16]))).permutation(
                order
            )
        rank = np.zeros(self.period, np.int64)
        for member, count in enumerate(counts):
            rank[order == member] = np.arange(count)
        if len(self._periods) >= 4:
            self._periods.pop(next(iter(self._periods)), None)
        self._periods[number] = (before, order, rank)
        return self._periods[number]


class Interval:
    """Rounds over the tasks in order: a task takes a step if its interval divides the round."""

    def __init__(self, interval_of: Mapping[str, int]):
        intervals = list(interval_of.values())
        for name, interval in interval_of.items():
            if interval < 1:
                raise ValueError(
                    f"Task {name!r}: interval={interval}, but Mixture(schedule='interval') needs 1"
                    " (each round) or more."
                )
        cycle = math.lcm(*intervals)
        if cycle * len(intervals) > MAX_ROUNDS:
            raise ValueError(
                f"Mixture: intervals {intervals} repeat only after {cycle} rounds; use numbers with"
                " small common multiples, or schedule='permuted' with weights."
            )
        rounds = np.arange(1, cycle + 1)[:, None] % np.asarray(intervals) == 0
        self._order = np.nonzero(rounds)[1]
        each = np.eye(len(intervals), dtype=np.int64)[self._order]
        self._before = np.concatenate([each[:1] * 0, each.cumsum(axis=0)])

    def counts(self, place: int) -> list[int]:
        """Places of each task before this one."""
        number, offset = divmod(place, len(self._order))
        return (number * self._before[-1] + self._before[offset]).tolist()

    def locate(self, place: int) -> tuple[int, int]:
        """The task at a place, and the number of its earlier places."""
        member = int(self._order[place % len(self._order)])
        return member, self.counts(place)[member]


def divide(weights: Sequence[int], total: int) -> list[int]:
    """Webster's apportionment of `total` by integer weights: no part falls as the total rises."""
    whole = sum(weights)
    parts = [(2 * total * w + whole) // (2 * whole) for w in weights]
    members = [i for i, w in enumerate(weights) if w]
    while sum(parts) < total:
        # Largest w / (2 p + 1) first, ties to the earlier; in integers, so exact.
        best = members[0]
        for i in members[1:]:
            if weights[i] * (2 * parts[best] + 1) > weights[best] * (2 * parts[i] + 1):
                best = i
        parts[best] += 1
    while sum(parts) > total:
        least = next(i for i in members if parts[i])
        for i in members:
            if parts[i] and weights[i] * (2 * parts[least] - 1) <= weights[least] * (
                2 * parts[i] - 1
            ):
                least = i
        parts[least] -= 1
    return parts
