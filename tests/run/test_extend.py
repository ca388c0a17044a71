"""New modalities on a trained model: what is fresh, what is trained, and what old ones keep."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import boxed
import jax
import mini
import numpy as np
import pytest

import mmjax
from mmjax import checkpoint
from mmjax.config.error import ConfigError

ONE = jax.devices()[:1]


@pytest.fixture(scope="module")
def old(tmp_path_factory):
    """The workdir of a run that has trained text and pictures."""
    workdir = tmp_path_factory.mktemp("runs") / "old"
    mmjax.train(mini.get_config(total_steps=8), workdir, devices=ONE)
    return workdir


@pytest.fixture(scope="module")
def new(old, tmp_path_factory):
    """The workdir of its extension by boxes, after four steps of the first stage."""
    workdir = tmp_path_factory.mktemp("runs") / "new"
    mmjax.extend(str(old), boxed.get_config(), workdir, devices=ONE)
    return workdir


def arrays(workdir) -> dict[str, np.ndarray]:
    view = mmjax.load(str(workdir), devices=ONE)
    return view.program.to_canonical(jax.device_get(view.params))


def test_only_what_is_new_is_trained_and_old_outputs_are_those_of_before(old, new):
    views = [mmjax.load(str(w), devices=ONE) for w in (old, new)]
    before, after = arrays(old), arrays(new)
    for name, array in before.items():
        np.testing.assert_array_equal(array, after[name], err_msg=name)
    added = set(after) - set(before)
    assert added == {f"embed/boxes/{leaf}" for leaf in ("table", "mask", "stream")}
    examples = views[0].examples("val", 32)
    for modality in ("image", "text"):
        one, two = (view.embed(modality, examples) for view in views)
        np.testing.assert_array_equal(one, two)
    # Routers keep what they had, and what they do with tokens of the new modality changes nothing.
    one, two = (jax.tree.leaves(jax.device_get(view.model_state)) for view in views)
    assert len(one) == len(two) > 0
    for a, b in zip(one, two, strict=True):
        if a.shape == b.shape:
            np.testing.assert_array_equal(a, b)


def test_it_says_what_was_lost(old, new):
    view = mmjax.load(str(old), devices=ONE)
    first, last = (json.loads((new / "evals" / "kept" / f"{n}.json").read_text()) for n in (0, 4))
    assert set(first) == {f"{t}/{m}" for t in ("text", "image_text") for m in ("loss", "lost")}
    for task in ("text", "image_text"):
        assert first[f"{task}/loss"] == pytest.approx(view.losses(task, 4)["loss"], rel=1e-5)
        assert abs(first[f"{task}/lost"]) < 1e-5
        assert abs(last[f"{task}/lost"]) < 1e-5  # nothing old was trained
    rows = mini.rows(new)
    assert {
        key.split("/")[1] for row in rows.values() for key in row if key.startswith("train/")
    } > {"boxes"}


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_stages_that_train_more(old, new, tmp_path):
    whole = dataclasses.replace(boxed.get_config(), total_steps=3)
    mmjax.extend(str(new), whole, tmp_path / "all", stage="all", devices=ONE)
    moved = {n for n, a in arrays(new).items() if np.any(a != arrays(tmp_path / "all")[n])}
    assert any(n.startswith("enc/blocks/") for n in moved)
    lost = json.loads((tmp_path / "all" / "evals" / "kept" / "3.json").read_text())
    assert any(abs(lost[f"{task}/lost"]) > 1e-4 for task in ("text", "image_text"))
    assert "boxes/lost" in lost  # the run before has learned them too
    old_task = dataclasses.replace(mini.get_config().tasks["text"], batch_size=32)
    other = dataclasses.replace(whole, tasks={**whole.tasks, "text": old_task}, total_steps=1)
    mmjax.extend(str(old), other, tmp_path / "other", devices=ONE)
    lost = json.loads((tmp_path / "other" / "evals" / "kept" / "0.json").read_text())
    assert abs(lost["text_before/lost"]) < 1e-5  # a name that the config uses for another task

    adapted = boxed.adapted()
    mmjax.extend(str(old), adapted, tmp_path / "adapters", stage="adapters", devices=ONE)
    before, after = arrays(old), arrays(tmp_path / "adapters")
    assert all(np.array_equal(a, after[n]) for n, a in before.items())
    assert any("/lora/" in n for n in set(after) - set(before))
    lost = json.loads((tmp_path / "adapters" / "evals" / "kept" / "0.json").read_text())
    assert all(abs(value) < 1e-5 for key, value in lost.items() if key.endswith("lost"))


@pytest.mark.ci
def test_the_command_and_its_resume(old, tmp_path):
    root = Path(mmjax.__file__).parent.parent
    command = [
        *(sys.executable, "-m", "mmjax", "extend", str(old), boxed.__file__),
        *("--workdir", str(tmp_path / "new"), "--total_steps"),
    ]
    env = {**os.environ, "PYTHONPATH": f"{root}:{root / 'tests'}"}
    run = lambda steps: subprocess.run(
        [*command, steps], capture_output=True, text=True, env=env, timeout=280, cwd=tmp_path
    )
    done = run("2")
    assert done.returncode == 0, done.stderr
    assert "knows text, image; new: boxes; stage new trains embed/boxes/mask: 1" in done.stderr
    assert "kept: task text: loss " in done.stderr
    again = run("4")
    assert again.returncode == 0, again.stderr
    assert "resumed" in again.stderr
    assert checkpoint.steps(tmp_path / "new" / "checkpoints")[-1] == 4


def without_pictures():
    config = boxed.get_config()
    modalities = {n: m for n, m in config.modalities.items() if n != "image"}
    tasks = {"text": mini.get_config().tasks["text"]}
    return dataclasses.replace(config, modalities=modalities, tasks=tasks)


def with_other_texts():
    config = boxed.get_config()
    text = dataclasses.replace(config.modalities["text"], max_tokens=5)
    return dataclasses.replace(config, modalities={**config.modalities, "text": text})


@pytest.mark.parametrize(
    ("make", "stage", "told"),
    [
        (without_pictures, "new", "modality 'image' of .* is not in the config"),
        (with_other_texts, "new", "modality 'text' is "),
        (boxed.get_config, "adapters", "inserts none; wrap"),
        (boxed.get_config, "some", "stage='some' is none of new, adapters, all"),
    ],
)
def test_what_is_no_extension_is_refused(old, tmp_path, make, stage, told):
    with pytest.raises(ConfigError, match=told):
        mmjax.extend(str(old), make(), tmp_path / "new", stage=stage, devices=ONE)
    assert not (tmp_path / "new").exists()


def test_a_config_that_adds_nothing_or_layers_alone_is_refused(old, tmp_path):
    with pytest.raises(ConfigError, match="the config adds nothing to"):
        mmjax.extend(str(old), mini.get_config(), tmp_path / "new", devices=ONE)
    with pytest.raises(ConfigError, match=r"also inserts .*lora.*use stage 'adapters'"):
        mmjax.extend(str(old), boxed.adapted(), tmp_path / "new", devices=ONE)
