"""Mixture: which task runs at which step, as a pure function of (seed, journal, step).

Any step is located in constant time. The variants of a task are scheduled like tasks.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np

from mmjax.config import ranges
from mmjax.data import schedules
from mmjax.data.task import Task


@dataclasses.dataclass(frozen=True)
class Journal:
    """Events of a run that change its data: (from_step, event), append-only.

    Events: `{"weights": {task: weight}}` changes shares; `{"skip": {"task": name, "rows": [a, b]}}`
    leaves out rows a..b-1 of a task (those not yet read at from_step). Unknown events are kept and
    ignored.
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
        Akbari et al. 2023).
    """

    weights: dict[str, ranges.NonNegative] = dataclasses.field(default_factory=dict)
    period: ranges.Count = 1000
    schedule: Literal["permuted", "interval", "block"] = "permuted"

    def __post_init__(self):
        ranges.check(self)
        if self.schedule not in ("permuted", "interval", "block"):
            raise ValueError(
                f"Mixture: schedule={self.schedule!r}; use 'permuted', 'interval' or 'block'."
            )

    def bind(self, tasks: Mapping[str, Task], seed: int) -> Schedule:
        """The schedule of these tasks. Raises ValueError for weights of unknown tasks."""
        return Schedule(self, tasks, seed)


class Schedule:
    """A mixture bound to its tasks; locates the rows of any step in constant time."""

    def __init__(self, mixture: Mixture, tasks: Mapping[str, Task], seed: int):
        self.mixture, self.tasks, self.seed = mixture, dict(tasks), seed
        self._weights = {n: mixture.weights.get(n, t.weight) for n, t in self.tasks.items()}
        self._check(mixture.weights)
        self._variants = {
            name: schedules.Weighted(
                list(t.variant_weights().values()), mixture.period, (seed, "variant", name)
            )
            for name, t in self.tasks.items()
        }
        self._known: tuple[Journal, list[_Segment]] = (Journal(), self._segments(Journal()))

    def locate(self, step: int, journal: Journal) -> Place:
        """Task and variant of a step, and how many earlier steps the task had."""
        segment = self._segment(step, journal)
        member, rank = segment.order.locate(step - segment.start)
        task = list(self.tasks)[member]
        n = segment.before[member] + rank
        variant, _ = self._variants[task].locate(n)
        return Place(task, list(self.tasks[task].variant_weights())[variant], n)

    def steps_before(self, step: int, journal: Journal) -> dict[str, int]:
        """Steps of each task before this one."""
        segment = self._segment(step, journal)
        counts = segment.order.counts(step - segment.start)
        return {t: b + c for t, b, c in zip(self.tasks, segment.before, counts, strict=True)}

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

    def without_objectives(self) -> Schedule:
        """The same schedule for worker processes, which do not need objectives."""
        tasks = {n: dataclasses.replace(t, objective=None) for n, t in self.tasks.items()}
        return Schedule(self.mixture, tasks, self.seed)

    def _segment(self, step: int, journal: Journal) -> _Segment:
        if step < 0:
            raise ValueError(f"Schedule: step={step} must be 0 or more.")
        if journal is not self._known[0]:
            self._known = (journal, self._segments(journal))
        segments = self._known[1]
        return next(s for s in reversed(segments) if s.start <= step)

    def _segments(self, journal: Journal) -> list[_Segment]:
        """Ranges of steps with the same weights."""
        segments = [_Segment(0, self._order(self._weights, 0), (0,) * len(self.tasks))]
        weights = self._weights
        for start, event in journal.ordered("weights"):
            self._check(event)
            if self.mixture.schedule == "interval":
                raise ValueError(
                    "Journal: an event changes weights, but schedule='interval' has none; use"
                    " schedule='permuted'."
                )
            weights, last = {**weights, **event}, segments[-1]
            counts = last.order.counts(start - last.start)
            before = tuple(b + c for b, c in zip(last.before, counts, strict=True))
            segments.append(_Segment(start, self._order(weights, start), before))
        return segments

    def _order(
        self, weights: dict[str, float], start: int
    ) -> schedules.Weighted | schedules.Interval:
        if self.mixture.schedule == "interval":
            return schedules.Interval({n: t.interval for n, t in self.tasks.items()})
        if not sum(weights.values()) > 0:
            raise ValueError(f"Mixture: weights={weights} train nothing; make one more than 0.")
        key = None if self.mixture.schedule == "block" else (self.seed, "mixture", str(start))
        return schedules.Weighted(list(weights.values()), self.mixture.period, key)

    def _check(self, weights: Mapping[str, float]) -> None:
        unknown = [name for name in weights if name not in self.tasks]
        if unknown:
            raise ValueError(
                f"Mixture: weights name {unknown[0]!r}, which is no task; there are"
                f" {', '.join(self.tasks)}."
            )


class _Segment(NamedTuple):
    start: int
    order: schedules.Weighted | schedules.Interval
    before: tuple[int, ...]  # steps of each task before the start


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
