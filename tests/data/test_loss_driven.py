"""Shares that follow the losses: the rule, its bounds, and that a resume comes to the same."""

from __future__ import annotations

import itertools
import json

import numpy as np
import pytest

from mmjax.data import loss_driven, mixture, task
from mmjax.data.loss_driven import LossDriven
from mmjax.data.source import Source

PERIOD = 20


def make(weight: float = 1.0) -> task.Task:
    return task.Task(
        source=Source(), inputs=("text",), layout=task.Layout(), objective=None, weight=weight
    )


TASKS = {"fast": make(), "slow": make(), "flat": make(2.0), "idle": make(0.0)}
SPEED = {"fast": 0.02, "slow": 0.002, "flat": 0.0}


def begin(schedule: LossDriven, period: int = PERIOD) -> mixture.Course:
    config = mixture.Mixture(schedule=schedule, period=period)
    return mixture.Course(config.bind(TASKS, 0), mixture.Journal())


def loss(name: str, n: int, step: int) -> float:
    noise = np.random.default_rng(step).normal() * 1e-3
    return float(np.float32(3.0 * (1 - SPEED[name]) ** n + noise))


def walk(course: mixture.Course, start: int, stop: int, saves=()) -> list[tuple[str, float]]:
    """The loop of a run: metrics are read a step late, and at once before a save."""
    late, seen = None, []
    for step in range(start, stop):
        place = course.bound.locate(step, course.journal)
        if late:
            course.observe(*late)
        course.revise(step + 1)
        late = (place.task, loss(place.task, place.n, step))
        seen.append(late)
        if step + 1 in saves:
            course.observe(*late)
            late = None
    if late:
        course.observe(*late)
    return seen


def oracle(seen, border: int, schedule: LossDriven) -> dict[str, float] | None:
    """The rule of the docstring, over the losses of steps 0 .. border - 2."""
    periods: dict[str, list[np.ndarray]] = {name: [] for name in SPEED}
    ends = [0, *(b - 1 for b in range(PERIOD, border + 1, PERIOD))]
    for first, last in itertools.pairwise(ends):
        for name in SPEED:
            values = np.array([x for n, x in seen[first:last] if n == name])
            if len(values):
                periods[name].append(values)
    rates = {}
    for name, parts in periods.items():
        rate = None
        for before, after in itertools.pairwise(parts):
            fall = max(0.0, before.mean() - after.mean())
            new = fall / abs(before.mean()) / np.mean([len(before), len(after)])
            a = schedule.smoothing
            rate = new if rate is None else a * rate + (1 - a) * new
        rates[name] = rate
    if None in rates.values():
        return None
    rate = np.array(list(rates.values()))
    part = np.array([1.0, 1.0, 2.0]) * np.maximum(rate, 1e-6 * rate.max())
    share = np.full(3, np.nan)
    # Which are at the floor, which at the ceiling: the one choice that is consistent.
    for code in np.ndindex(3, 3, 3):
        where = np.array(code)
        free = where == 0
        rest = 1 - schedule.floor * (where == 1).sum() - schedule.ceiling * (where == 2).sum()
        c = rest / part[free].sum() if free.any() else 0.0
        found = np.select([where == 1, where == 2], [schedule.floor, schedule.ceiling], c * part)
        inside = (found[free] >= schedule.floor).all() and (found[free] <= schedule.ceiling).all()
        low, high = c * part[where == 1], c * part[where == 2]
        beyond = (low <= schedule.floor).all() and (high >= schedule.ceiling).all()
        if free.any() and inside and beyond:
            share = found
    return dict(zip(rates, share, strict=True))


@pytest.mark.parametrize("bounds", [(0.05, 0.8), (0.1, 0.5), (0.3, 0.4)])
def test_shares_are_those_of_the_rule(bounds):
    schedule = LossDriven(floor=bounds[0], ceiling=bounds[1])
    course = begin(schedule)
    seen = walk(course, 0, 8 * PERIOD)
    events = course.journal.events
    assert [step for step, _ in events][:1] == [2 * PERIOD]  # two periods by the weights
    assert all(step % PERIOD == 0 for step, _ in events)
    for step, event in events:
        assert event["by"] == "LossDriven"
        wanted = oracle(seen, step, schedule)
        assert wanted is not None
        assert event["weights"].keys() == SPEED.keys()
        for name, share in event["weights"].items():
            np.testing.assert_allclose(share, wanted[name], atol=1e-5)
    last = course.bound.weights_of(course.journal)
    assert last["fast"] == max(last.values()) == pytest.approx(bounds[1], abs=0.1)
    assert last["idle"] == 0.0
    counts = course.bound.steps_before(8 * PERIOD, course.journal)
    before = course.bound.steps_before(7 * PERIOD, course.journal)
    for name in SPEED:
        assert abs(counts[name] - before[name] - PERIOD * last[name]) <= 1


def test_a_resume_anywhere_comes_to_the_same_weights():
    whole = begin(LossDriven())
    walk(whole, 0, 5 * PERIOD)
    for stop in [*range(1, 5 * PERIOD, 7), PERIOD - 1, 3 * PERIOD - 1, 3 * PERIOD, 3 * PERIOD + 1]:
        first = begin(LossDriven())
        walk(first, 0, stop, saves=(stop,))
        journal, memory = json.loads(json.dumps([first.journal.to_json(), first.memory]))
        bound = begin(LossDriven()).bound
        second = mixture.Course(bound, mixture.Journal.from_json(journal), memory)
        walk(second, stop, 5 * PERIOD)
        assert second.journal == whole.journal, stop
        assert second.memory == whole.memory, stop


def test_the_loss_of_the_step_before_the_border_is_not_looked_at():
    one, two = begin(LossDriven()), begin(LossDriven())
    for course, last in ((one, 1.0), (two, 50.0)):
        for step in range(2 * PERIOD - 1):
            course.observe(list(SPEED)[step % 3], 3.0 - 0.01 * step)
            course.revise(step + 2)
        course.observe("fast", last)
    assert len(one.journal.events) == 1
    assert one.journal == two.journal
    assert one.memory != two.memory


def test_losses_that_stay_rise_or_are_not_finite():
    course = begin(LossDriven())
    for step in range(3 * PERIOD):
        course.observe("fast", float("nan"))
        for name in SPEED:
            course.observe(name, 2.0 + (0.01 * step if name == "slow" else 0.0))
        course.revise(step + 1)
    # Nothing falls: by weight.
    assert course.bound.weights_of(course.journal) == {
        "fast": 0.25, "slow": 0.25, "flat": 0.5, "idle": 0.0
    }  # fmt: skip
    zero = LossDriven().observe({}, "a", 0.0)
    for _ in range(3):
        _, zero = LossDriven().revise(LossDriven().observe(zero, "a", 0.0), {"a": 1.0})
    assert zero["a"]["rate"] == 0.0


def test_bounded_shares_sum_to_one():
    rng = np.random.default_rng(0)
    for _ in range(300):
        num = int(rng.integers(2, 9))
        floor = float(rng.uniform(0, 1 / num))
        ceiling = float(rng.uniform(1 / num, 1))
        parts = (10.0 ** rng.uniform(-9, 3, num)).tolist()
        shares = loss_driven.bounded(parts, floor, ceiling)
        assert sum(shares) == pytest.approx(1, abs=1e-9)
        assert min(shares) >= floor
        assert max(shares) <= ceiling
        assert np.argsort(shares, kind="stable").tolist() == sorted(
            range(num), key=lambda i: (shares[i], i)
        )
        order = np.argsort(parts)
        assert (np.diff(np.array(shares)[order]) >= 0).all()


@pytest.mark.parametrize(
    ("fields", "period", "said"),
    [
        (
            {"floor": 0.4},
            20,
            "floor=0.4 for each of 3 tasks .* sum to 1; use floor of 0.333 or",
        ),
        ({"ceiling": 0.3}, 20, "ceiling=0.3 for each of 3 tasks"),
        ({"floor": 0.04}, 20, "floor=0.04 is less than one step of period=20.*use 0.05 or more"),
    ],
)
def test_bounds_that_cannot_be_kept(fields, period, said):
    with pytest.raises(ValueError, match=f"LossDriven: {said}"):
        begin(LossDriven(**fields), period)
    with pytest.raises(ValueError, match=r"LossDriven: floor=0.5 is above ceiling=0.4; lower it\."):
        LossDriven(floor=0.5, ceiling=0.4)
