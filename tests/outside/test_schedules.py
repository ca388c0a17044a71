"""Schedules that a stranger defines: they train, resume bit for bit, and belong to the identity."""

from __future__ import annotations

import collections
import dataclasses
import sys
from pathlib import Path

import jax
import mini
import pytest
from etils import epath

import mmjax
from mmjax import ConfigError, config, errors
from mmjax.data import mixture, schedules
from mmjax.data.mixture import Mixture
from mmjax.run import records, resume

sys.path.insert(0, str(Path(__file__).parent / "schedules"))
import curriculum

ONE = jax.devices()[:1]
EASY_FIRST = Mixture(
    weights={"text": 3.0, "image_text": 1.0},
    period=4,
    schedule=curriculum.Curriculum(last={"text": 1.0, "image_text": 3.0}, steps=8),
)


def bind(config_: Mixture, **fields) -> mixture.BoundMixture:
    return config_.bind(mini.get_config(**fields).tasks, 0)


def test_the_shares_change_with_the_step():
    bound, journal = bind(EASY_FIRST), mixture.Journal()
    bound.check(100)
    tasks = [bound.locate(step, journal).task for step in range(40)]
    counts = [tasks[i : i + 4].count("text") for i in range(0, 40, 4)]
    assert counts == [3, 2, *[1] * 8]
    assert bound.steps_before(10**12 + 12, journal)["text"] == 6 + 10**12 // 4
    again = bind(EASY_FIRST)
    for step in (39, 0, 17):
        assert again.locate(step, journal) == bound.locate(step, journal)
    # A change of weights in the journal begins another segment, which knows its step.
    later = journal.append(5, {"weights": {"text": 0.0}})
    seen: collections.Counter = collections.Counter()
    for step in range(40):
        place = bound.locate(step, later)
        assert place.n == seen[place.task]
        seen[place.task] += 1


@pytest.mark.slow
def test_it_trains_and_resumes_bit_for_bit(tmp_path):
    whole = mmjax.train(mini.get_config(mixture=EASY_FIRST), tmp_path / "whole", devices=ONE)
    rows = mini.rows(tmp_path / "whole")
    text = [step for step, row in rows.items() if "train/text/loss" in row]
    assert [sum(4 * i < s <= 4 * i + 4 for s in text) for i in range(3)] == [3, 2, 1]
    stopped = mini.get_config(mixture=EASY_FIRST, evaluators={"stop": mini.StopAt(every=5)})
    with pytest.raises(errors.Preempted, match="saved step 6"):
        mmjax.train(stopped, tmp_path / "run", devices=ONE)
    result = mmjax.train(mini.get_config(mixture=EASY_FIRST), tmp_path / "run", devices=ONE)
    assert mini.rows(tmp_path / "run") == rows
    mini.assert_same(result.state, whole.state)


def test_its_fields_are_part_of_what_a_resume_refuses(tmp_path):
    experiment = mini.get_config(mixture=EASY_FIRST)
    records.write_config(epath.Path(tmp_path), experiment)
    manifest = {
        **{"identity": resume.identity(experiment), "step": 4, "tokenizers": {}, "mesh": {}},
        **{"journal": mixture.Journal().to_json(), "config_format": config.FORMAT},
    }
    for schedule in (dataclasses.replace(EASY_FIRST.schedule, steps=9), "permuted"):
        other = mini.get_config(mixture=dataclasses.replace(EASY_FIRST, schedule=schedule))
        with pytest.raises(ConfigError, match=r"\(data differ\)(.|\n)*mixture.schedule"):
            resume.check(epath.Path(tmp_path), other, manifest, {})
    resume.check(epath.Path(tmp_path), experiment, manifest, {})
    longer = config.override(experiment, ["--mixture.schedule.steps", "9"])
    assert longer.mixture.schedule.steps == 9


@dataclasses.dataclass(frozen=True, kw_only=True)
class Wrong(schedules.Schedule):
    """An order that breaks the contract: `member` out of range, or `rank` or `count` wrong."""

    member: int = 0
    rank: int = 0
    count: int = 0

    def order(self, segment):
        return self

    def locate(self, place):
        return self.member, place + self.rank

    def counts(self, place):
        return [place + self.count * bool(place), 0]


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"member": 2}, r"Wrong: its order has member 2 at step 0.*the 2 tasks, from 0"),
        ({"member": -1}, "Wrong: its order has member -1"),
        ({"rank": 1}, "Wrong: its order gives step 0 to task 'text' after 1 earlier ones"),
        ({"count": 1}, r"Wrong: its order counts .*'text': 2.* before step 1, but its places"),
        ({}, r"task 'image_text' has weight=1, but none of the first 1000 steps.*Wrong\("),
    ],
)
def test_a_wrong_order_is_refused_before_anything_runs(fields, said, tmp_path):
    experiment = mini.get_config(mixture=Mixture(schedule=Wrong(**fields)))
    with pytest.raises(ValueError, match=said):
        mmjax.train(experiment, tmp_path, devices=ONE)
    assert not list(tmp_path.iterdir())
