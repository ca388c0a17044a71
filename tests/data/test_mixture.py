import collections
import itertools
import json
import time

import numpy as np
import pytest

from mmjax.data import mixture, schedules, task
from mmjax.data.source import Source


def make(weight=1.0, interval=0, batch_size=8, variants=None):
    return task.Task(
        source=Source(),
        inputs=("text",),
        layout=task.Layout(),
        objective=None,
        weight=weight,
        interval=interval,
        batch_size=batch_size,
        group_rows=4,
        variants=variants or {},
    )


TASKS = {"a": make(6.0), "b": make(1.0), "c": make(1.0), "d": make(1.0)}


def steps(schedule, journal, start, stop):
    return [schedule.locate(step, journal) for step in range(start, stop)]


@pytest.mark.parametrize("kind", ["permuted", "block", "interval"])
def test_locate_counts_earlier_steps_and_needs_no_history(kind):
    tasks = {name: make(t.weight, i + 1) for i, (name, t) in enumerate(TASKS.items())}
    config, journal = mixture.Mixture(schedule=kind, period=100), mixture.Journal()
    places = steps(config.bind(tasks, 3), journal, 0, 450)
    seen = collections.Counter()
    for place in places:
        assert place.n == seen[place.task]
        seen[place.task] += 1
    # Resume: a new schedule asked in another order gives the same.
    again = config.bind(tasks, 3)
    for step in [449, 7, 300, 0, 449, 123]:
        assert again.locate(step, journal) == places[step]
    assert again.steps_before(450, journal) == dict(seen)


def test_shares_are_exact_in_whole_periods_and_in_the_long_run():
    schedule, journal = mixture.Mixture().bind(TASKS, 0), mixture.Journal()
    assert schedule.steps_before(9_000, journal) == {"a": 6000, "b": 1000, "c": 1000, "d": 1000}
    for step in [1000, 5000, 10**12]:
        counts = schedule.steps_before(step, journal)
        assert sum(counts.values()) == step
        for name, t in TASKS.items():
            assert abs(counts[name] - step * t.weight / 9) <= 1
    small = mixture.Mixture(period=7, weights={"a": 0.01, "b": 1.0, "c": 1.0, "d": 1.0})
    counts = small.bind(TASKS, 0).steps_before(301, journal)
    assert counts["a"] == 1  # a share below one step a period is carried, not lost


def test_each_period_has_an_order_of_its_own():
    schedule, journal = mixture.Mixture(period=50).bind(TASKS, 0), mixture.Journal()
    first, second = ([p.task for p in steps(schedule, journal, i, i + 50)] for i in (450, 900))
    assert collections.Counter(first) == collections.Counter(second)
    assert first != second
    assert first != [
        p.task for p in steps(mixture.Mixture(period=50).bind(TASKS, 1), journal, 450, 500)
    ]
    block = mixture.Mixture(period=50, schedule="block").bind(TASKS, 0)
    order = [p.task for p in steps(block, journal, 0, 50)]
    assert [name for name, _ in itertools.groupby(order)] == list(TASKS)


def test_locate_takes_constant_time():
    schedule, journal = mixture.Mixture().bind(TASKS, 0), mixture.Journal()

    def seconds(start):
        schedule.locate(start, journal)
        began = time.perf_counter()
        for step in range(start, start + 200):
            schedule.locate(step, journal)
        return time.perf_counter() - began

    near, far = min(seconds(0) for _ in range(3)), min(seconds(10**12) for _ in range(3))
    assert far < 5 * near + 0.01
    assert near / 200 < 1e-3


def test_division_is_fair_whole_and_never_falls():
    rng = np.random.default_rng(0)
    for _ in range(200):
        weights = rng.integers(0, 50, rng.integers(1, 7)).tolist()
        if not sum(weights):
            continue
        before = [0] * len(weights)
        for total in range(0, 120, 3):
            parts = schedules.divide(weights, total)
            assert sum(parts) == total
            assert all(new >= old for new, old in zip(parts, before, strict=True))
            for part, weight in zip(parts, weights, strict=True):
                assert abs(part - total * weight / sum(weights)) <= len(weights) / 2
            before = parts


def test_intervals_give_the_published_shares_of_steps():
    """METHODS of IMP: rounds over six loaders with intervals 1, 1, 12, 5, 12, 8."""
    intervals = {
        "image_text": 1,
        "classes": 1,
        "video_text": 12,
        "video": 5,
        "three": 12,
        "sound": 8,
    }
    tasks = {name: make(interval=i) for name, i in intervals.items()}
    schedule, journal = mixture.Mixture(schedule="interval").bind(tasks, 0), mixture.Journal()
    expected, counter = [], 0
    while len(expected) < 1000:
        counter += 1
        expected += [name for name, i in intervals.items() if counter % i == 0]
    assert [p.task for p in steps(schedule, journal, 0, 1000)] == expected[:1000]
    counts = schedule.steps_before(299_000, journal)
    shares = [round(100 * counts[name] / 299_000, 1) for name in intervals]
    assert shares == [40.1, 40.1, 3.3, 8.0, 3.3, 5.0]
    with pytest.raises(ValueError, match="interval=0"):
        mixture.Mixture(schedule="interval").bind(TASKS, 0)
    primes = {str(p): make(interval=p) for p in (997, 1009, 1013)}
    with pytest.raises(ValueError, match="repeat only after"):
        mixture.Mixture(schedule="interval").bind(primes, 0)


def test_variants_share_the_cursor_of_their_task():
    variants = {"short": task.Variant(weight=3.0), "long": task.Variant(batch_size=4)}
    tasks = {"a": make(variants=variants), "b": make()}
    schedule, journal = mixture.Mixture(period=40).bind(tasks, 0), mixture.Journal()
    row, counts = 0, collections.Counter()
    for place in steps(schedule, journal, 0, 400):
        if place.task == "a":
            assert schedule.first_row("a", place.n) == row
            row += tasks["a"].shape(place.variant).batch_size
            counts[place.variant] += 1
    assert counts == {"short": 150, "long": 50}
    assert schedule.cursors(400, journal) == {"a": row, "b": 200 * 8}


def test_weights_in_the_journal_change_later_steps_alone():
    schedule, journal = mixture.Mixture(period=100).bind(TASKS, 0), mixture.Journal()
    changed = journal.append(250, {"weights": {"a": 0.0}})
    before, after = (steps(schedule, j, 0, 600) for j in (journal, changed))
    assert before[:250] == after[:250]
    assert "a" not in {p.task for p in after[250:]}
    seen = collections.Counter()
    for place in after:
        assert place.n == seen[place.task]
        seen[place.task] += 1
    with pytest.raises(ValueError, match="no task"):
        schedule.locate(300, journal.append(0, {"weights": {"nothing": 1.0}}))
    with pytest.raises(ValueError, match="train nothing"):
        schedule.locate(300, journal.append(9, {"weights": dict.fromkeys(TASKS, 0.0)}))


def test_skipped_rows():
    tasks, config = {"a": make()}, mixture.Mixture()
    schedule = config.bind(tasks, 0)
    # A rewind to step 10: the rows of steps 10 and 11 (80..95) are not read again.
    journal = mixture.Journal().append(10, {"skip": {"task": "a", "rows": [80, 96]}})
    assert schedule.cursors(9, journal) == {"a": 72}
    assert schedule.cursors(10, journal) == {"a": 96}
    holes = schedule.skips("a", journal)
    assert mixture.skip_rows(np.arange(76, 84), holes).tolist() == [76, 77, 78, 79, 96, 97, 98, 99]
    # What was read before the event stays read: only the rest of the range is left out.
    late = mixture.Journal().append(10, {"skip": {"task": "a", "rows": [0, 90]}})
    assert schedule.skips("a", late) == ((80, 90),)
    both = late.append(20, {"skip": {"task": "a", "rows": [85, 200]}})
    assert schedule.skips("a", both) == ((80, 90), (170, 200))
    assert schedule.skips("a", mixture.Journal()) == ()


def test_journal_is_json_and_append_only():
    journal = mixture.Journal().append(5, {"weights": {"a": 2.0}})
    longer = journal.append(3, {"skip": {"task": "a", "rows": [0, 8]}})
    assert journal.events == ((5, {"weights": {"a": 2.0}}),)
    assert mixture.Journal.from_json(json.loads(json.dumps(longer.to_json()))) == longer
    with pytest.raises(ValueError, match="from_step=-1"):
        journal.append(-1, {})


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"schedule": "sorted"}, "schedule='sorted'"),
        ({"period": 0}, "period=0"),
        ({"weights": {"a": -1.0}}, r"weights\['a'\]=-1"),
        ({"weights": {"a": float("nan")}}, r"weights\['a'\]=nan"),
    ],
)
def test_wrong_fields(fields, message):
    with pytest.raises(ValueError, match=message):
        mixture.Mixture(**fields)


def test_unknown_or_absent_weights():
    with pytest.raises(ValueError, match="'e', which is no task; there are a, b, c, d"):
        mixture.Mixture(weights={"e": 1.0}).bind(TASKS, 0)
    with pytest.raises(ValueError, match="train nothing"):
        mixture.Mixture(weights=dict.fromkeys(TASKS, 0.0)).bind(TASKS, 0)
