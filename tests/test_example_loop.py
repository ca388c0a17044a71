"""The loop of docs/own_loop.md, of public parts only, takes the very steps of `mmjax train`."""

from __future__ import annotations

import ast
import dataclasses
import re
from pathlib import Path

import jax
import mini
import pytest

import mmjax
from mmjax import config
from mmjax.run.checkpoint import Checkpointing

PAGE = Path(__file__).resolve().parent.parent / "docs" / "own_loop.md"
ONE = jax.devices()[:1]


def source() -> str:
    (block,) = re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(), re.M | re.S)
    return block


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """The page's code as a module."""
    path = tmp_path_factory.mktemp("page") / "own_loop.py"
    path.write_text(source())
    return config.load_module(path)


def test_the_loop_is_short_and_uses_public_names_only():
    assert len(source().splitlines()) <= 60
    names = {n.attr for n in ast.walk(ast.parse(source())) if isinstance(n, ast.Attribute)}
    assert not [name for name in names if name.startswith("_")]
    assert {"init_state", "make_train_step", "Batches", "bind"} <= names


def compare(page, experiment, num_steps, tmp_path):
    result = mmjax.train(experiment, tmp_path / "run", devices=ONE)
    state, losses = page.own_loop(page.learned(experiment, tmp_path), num_steps, ONE)
    rows = mini.rows(tmp_path / "run")
    assert result.step == int(state.step) == num_steps == len(losses)
    for number, (task, loss) in enumerate(losses, start=1):
        assert rows[number][f"train/{task}/loss"] == float(f"{loss:.6g}"), number
    mini.assert_same(state, result.state)


@pytest.mark.ci
def test_it_equals_a_run(page, tmp_path):
    compare(page, mini.get_config(), 12, tmp_path)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_it_equals_fifty_steps_of_the_tiny_demo(page, tmp_path):
    tiny = config.load(f"{mini.QUICKSTART}:tiny")
    experiment = dataclasses.replace(
        tiny,
        total_steps=50,
        evaluators={},
        checkpoint=Checkpointing(every=0),
        logging=dataclasses.replace(tiny.logging, log_every=1),
    )
    compare(page, experiment, 50, tmp_path)
