"""Whole runs whose training data vary: stopping one changes nothing."""

from __future__ import annotations

import dataclasses

import jax
import mini
import pytest

import mmjax
from mmjax import checkpoint, errors
from mmjax.data.pictures import Pictures
from mmjax.data.texts import Texts

ONE = jax.devices()[:1]
PICTURES = Pictures(flip=0.5, rotation=10.0)


def get_config(pictures: Pictures = PICTURES, **fields) -> mmjax.Experiment:
    """`mini`, with pictures and texts that vary in the contrastive task."""
    tasks = dict(mini.get_config().tasks)
    tasks["image_text"] = dataclasses.replace(
        tasks["image_text"], augment={"image": pictures, "text": Texts(drop=0.3)},
        positives_by="text",
    )  # fmt: skip
    return mini.get_config(tasks=tasks, **fields)


@pytest.mark.slow
def test_a_run_that_was_stopped_and_resumed_sees_the_same_variations(tmp_path):
    whole = mmjax.train(get_config(), tmp_path / "whole", devices=ONE)
    stopped = get_config(evaluators={"stop": mini.StopAt(every=7)})
    with pytest.raises(errors.Preempted, match="SIGTERM: saved step 8"):
        mmjax.train(stopped, tmp_path / "run", devices=ONE)
    other = get_config(dataclasses.replace(PICTURES, flip=0.0))
    with pytest.raises(ValueError, match=r"tasks\.image_text\.augment\.image\.flip: 0\.5 -> 0\.0"):
        mmjax.train(other, tmp_path / "run", devices=ONE)
    workers = get_config(data=dataclasses.replace(get_config().data, num_workers=1))
    result = mmjax.train(workers, tmp_path / "run", devices=ONE)
    assert mini.rows(tmp_path / "run") == mini.rows(tmp_path / "whole")
    states = [{i: getattr(r.state, i) for i in checkpoint.ITEMS} for r in (result, whole)]
    mini.assert_same(*states)
