"""Mixture: which task runs at which step, as a pure function of (seed, journal, step).

Any step is located in constant time. The variants of a task are scheduled like tasks.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from mmjax.config import ranges
from mmjax.data import schedules
from mmjax.data.task import Task

CHECKED = 64  # places of an order that are compared with its counts


@dataclasses.dataclass(frozen=True)
class Journal:
    """Events of a run that change its data: (from_step, event), append-only.

    Events: `{"weights": {task: weight}, "by": "config"}` changes shares, by the config or by the
    class of the schedule; `{"skip": {"task": name, "rows": [a, b]}}` leaves out rows a..b-1 of a
    task (those not yet read at from_step). Unknown events are kept and ignored.
    """

    events: tuple[tuple[ranges.Natural, dict[str, Any]], ...] = ()

    def __post_init__(self):
        ranges.check(self)

    def append(self, from_step: int, event: dict[str, Any]) -> Journal:
        """This journal with one more event."""
        if from_step < 0:
            raise ValueError(f"Journal: from_step={from_step} must be 0 or more.")
        return Journal((*self.events, (int(from_step), dict(event))))

    def to_json(self) -> list:
        """JSON values."""
        return [[step, event] for step, event in self.events]

    @classmethod
    def from_json(cls, tree: list) -> Journal:
        """The journal that `to_json` wrote."""
        return cls(tuple((int(step), dict(event)) for step, event in tree))

    def ordered(self, kind: str) -> list[tuple[int, Any]]:
        """Events of a kind by step; events of one step in the order of writing."""
        events = [(step, event[kind]) for step, event in self.events if kind in event]
        return sorted(events, key=lambda e: e[0])


class Place(NamedTuple):
    """What a step runs: the n-th step of a task, in one of its variants."""

    task: str
    variant: str
    n: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Mixture:
    """How tasks alternate.

    Fields:
      weights: share of steps by task; other tasks use their own `weight`.
      period: steps that are scheduled together, with whole counts for each task.
      schedule: `permuted` = each period in its own random order; `block` = task after task;
        `interval` = rounds over the tasks, where a task takes part in every interval-th round (IMP,
        Akbari et al. 2023); or any `Schedule`, such as `LossDriven`.
    """

    weights: dict[str, ranges.NonNegative] = dataclasses.field(
        default_factory=dict, metadata={"identity": "journal", "is_moved": True}
    )
    period: ranges.Count = 1000
    schedule: Any = "permuted"  # str | Schedule; of such a union tyro makes a positional argument

    def __post_init__(self):
        ranges.check(self)
        for name, member in schedules.NAMED.items():
            if self.schedule == member:  # one spelling, so that both are one run
                object.__setattr__(self, "schedule", name)
        is_named = isinstance(self.schedule, str) and self.schedule in schedules.NAMED
        if not is_named and not isinstance(self.schedule, schedules.Schedule):
            raise ValueError(
                f"Mixture: schedule={self.schedule!r}; use 'permuted', 'interval' or 'block', or a"
                " Schedule such as LossDriven()."
            )

    def bind(self, tasks: Mapping[str, Task], seed: int) -> BoundMixture:
        """The schedule of these tasks. Raises ValueError for weights of unknown tasks."""
        return BoundMixture(self, tasks, seed)


class BoundMixture:
    """A mixture bound to its tasks; locates the rows of any step in constant time."""

    def __init__(self, mixture: Mixture, tasks: Mapping[str, Task], seed: int):
        self.mixture, self.tasks, self.seed = mixture, dict(tasks), seed
        given = mixture.schedule
        self.schedule = given if isinstance(given, schedules.Schedule) else schedules.NAMED[given]
        self.weights = {n: float(mixture.weights.get(n, t.weight)) for n, t in self.tasks.items()}
        self._check(mixture.weights)
        self._variants = {
            name: schedules.Weighted(
                list(t.variant_weights().values()), mixture.period, (seed, "variant", name)
            )
            for name, t in self.tasks.items()
        }
        self._known: tuple[Journal, schedules.Order] = (Journal(), self._made(Journal()))

    def locate(self, step: int, journal: Journal) -> Place:
        """Task and variant of a step, and how many earlier steps the task had."""
        if step < 0:
            raise ValueError(f"Mixture: step={step} must be 0 or more.")
        member, n = self._order(journal).locate(step)
        if not 0 <= member < len(self.tasks):
            raise ValueError(
                f"{type(self.schedule).__name__}: its order has member {member} at step {step}, but"
                f" members are the numbers of the {len(self.tasks)} tasks, from 0 on."
            )
        task = list(self.tasks)[member]
        variant, _ = self._variants[task].locate(n)
        return Place(task, list(self.tasks[task].variant_weights())[variant], n)

    def steps_before(self, step: int, journal: Journal) -> dict[str, int]:
        """Steps of each task before this one."""
        if step < 0:
            raise ValueError(f"Mixture: step={step} must be 0 or more.")
        return dict(zip(self.tasks, self._order(journal).counts(step), strict=True))

    def check(self, total_steps: int) -> None:
        """Raises ValueError for a task of some weight that never runs, and for an order that does
        not count its own steps. A task of weight 0 is there for evaluation alone."""
        reach, seen = max(total_steps, self.mixture.period), dict.fromkeys(self.tasks, 0)
        who = f"{type(self.schedule).__name__}: its order"
        for step in range(min(reach, CHECKED)):
            if self.steps_before(step, Journal()) != seen:
                raise ValueError(
                    f"{who} counts {self.steps_before(step, Journal())} before step {step}, but"
                    f" its places give {seen}; counts(place) are those of locate(0..place - 1)."
                )
            place = self.locate(step, Journal())
            if place.n != seen[place.task]:
                raise ValueError(
                    f"{who} gives step {step} to task {place.task!r} after {place.n} earlier ones,"
                    f" but there are {seen[place.task]}."
                )
            seen[place.task] += 1
        for task, count in self.steps_before(reach, Journal()).items():
            if not count and self.weights[task] > 0:
                raise ValueError(
                    f"Mixture: task {task!r} has weight={self.weights[task]:g}, but none of the"
                    f" first {reach} steps (schedule={self.mixture.schedule!r}); give it a larger"
                    " share, or weight=0 if it is there for evaluation alone."
                )

    def first_row(self, task: str, n: int) -> int:
        """Rows that the first n steps of a task read, in all its variants."""
        counts = self._variants[task].counts(n)
        sizes = [self.tasks[task].shape(v).batch_size for v in self.tasks[task].variant_weights()]
        return sum(c * size for c, size in zip(counts, sizes, strict=True))

    def skips(self, task: str, journal: Journal) -> tuple[tuple[int, int], ...]:
        """Row ranges (sorted, disjoint) that a task leaves out."""
        holes: tuple[tuple[int, int], ...] = ()
        for from_step, event in journal.ordered("skip"):
            if event["task"] != task:
                continue
            read = self.first_row(task, self.steps_before(from_step, journal)[task])
            cursor = int(skip_rows(np.asarray([read]), holes)[0])
            start, stop = max(event["rows"][0], cursor), event["rows"][1]
            if start < stop:
                holes = _merge((*holes, (start, stop)))
        return holes

    def cursors(self, step: int, journal: Journal) -> dict[str, int]:
        """The next row of each task at a step."""
        rows = {t: self.first_row(t, n) for t, n in self.steps_before(step, journal).items()}
        return {
            t: int(skip_rows(np.asarray([row]), self.skips(t, journal))[0])
            for t, row in rows.items()
        }

    def without_objectives(self) -> BoundMixture:
        """The same schedule for worker processes, which need no objectives and rules."""
        tasks = {
            n: dataclasses.replace(t, objective=None, gradient_rule=None)
            for n, t in self.tasks.items()
        }
        return BoundMixture(self.mixture, tasks, self.seed)

    def weights_of(self, journal: Journal) -> dict[str, float]:
        """The weights after all events."""
        return self.weights | {k: w for _, e in journal.ordered("weights") for k, w in e.items()}

    def _order(self, journal: Journal) -> schedules.Order:
        if journal is not self._known[0]:
            self._known = (journal, self._made(journal))
        return self._known[1]

    def _made(self, journal: Journal) -> schedules.Order:
        """The orders of all segments of steps with the same weights, joined."""
        weights, starts = self.weights, {0: self.weights}
        for start, event in journal.ordered("weights"):
            self._check(event)
            weights = {**weights, **event}
            starts[start] = weights
        intervals = {n: t.interval for n, t in self.tasks.items()}
        orders = []
        for start, weights in starts.items():
            if not sum(weights.values()) > 0:
                raise ValueError(f"Mixture: weights={weights} train nothing; make one more than 0.")
            segment = schedules.Segment(weights, intervals, self.mixture.period, self.seed, start)
            orders.append(self.schedule.order(segment))
        return orders[0] if len(orders) == 1 else schedules.Joined(list(starts), orders)

    def _check(self, weights: Mapping[str, float]) -> None:
        unknown = [name for name in weights if name not in self.tasks]
        if unknown:
            raise ValueError(
                f"Mixture: weights name {unknown[0]!r}, which is no task; there are"
                f" {', '.join(self.tasks)}."
            )


@dataclasses.dataclass
class Course:
    """The mixture of a run as it goes: its journal, and what the schedule remembers of losses."""

    bound: BoundMixture
    journal: Journal
    memory: schedules.Memory = dataclasses.field(default_factory=dict)

    def observe(self, task: str, loss: float) -> None:
        """Tells the schedule the loss of the next step; one that is not finite says nothing."""
        if math.isfinite(loss):
            self.memory = self.bound.schedule.observe(self.memory, task, float(loss))

    def revise(self, step: int) -> dict[str, float]:
        """Asks the schedule for the weights from a step on, at the border of a period.

        Returns:
          All weights, if they have changed and are in the journal now; else empty.
        """
        if step % self.bound.mixture.period:
            return {}
        schedule, before = self.bound.schedule, self.bound.weights_of(self.journal)
        weights, self.memory = schedule.revise(self.memory, self.bound.weights)
        if not weights or before == {**before, **weights}:
            return {}
        event = {"weights": weights, "by": type(schedule).__name__}
        self.journal = self.journal.append(step, event)
        return {**before, **weights}


def skip_rows(rows: np.ndarray, holes: Sequence[tuple[int, int]]) -> np.ndarray:
    """The rows-th numbers outside the holes (sorted, disjoint)."""
    rows = np.asarray(rows, np.int64).copy()
    for start, stop in holes:
        rows[rows >= start] += stop - start
    return rows


def _merge(ranges) -> tuple[tuple[int, int], ...]:
    out: list[tuple[int, int]] = []
    for start, stop in sorted(ranges):
        if out and start <= out[-1][1]:
            out[-1] = (out[-1][0], max(out[-1][1], stop))
        else:
            out.append((start, stop))
    return tuple(out)
