"""Divides an endless sequence of places among members by weight, in constant time.

Places are assigned period by period. The counts so far are Webster's apportionment of the places so
far: shares are exact in the long run, and no count ever falls.
"""

from __future__ import annotations

import fractions
import hashlib
import math
from collections.abc import Mapping, Sequence

import numpy as np

MAX_ROUNDS = 1_000_000  # entries of the table of an interval schedule


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
