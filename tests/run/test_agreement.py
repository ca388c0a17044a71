"""Processes that differ are told before anything is compiled."""

from __future__ import annotations

import concurrent.futures
import copy
import time

import mini
import pytest
from store import Shared, Store

from mmjax.errors import ConfigError
from mmjax.run import agreement


@pytest.fixture(scope="module")
def facts():
    experiment = mini.get_config()
    return agreement.facts(experiment, None, {"text": "a" * 64}, "gs://bucket/run")


def compare(all_facts) -> tuple[list, list[int]]:
    """What each process raised, and the round trips that it made."""
    count = len(all_facts)
    shared = Shared(count)
    stores = [Store(shared) for _ in all_facts]
    with concurrent.futures.ThreadPoolExecutor(count) as pool:
        jobs = [
            pool.submit(agreement.compare, own, stores[i], "agreement", i, count)
            for i, own in enumerate(all_facts)
        ]
        return [job.exception() for job in jobs], [store.round_trips for store in stores]


def changed(facts, *path):
    """The facts with another value at a path."""
    other = copy.deepcopy(facts)
    inner = other
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = "another"
    return other


def test_256_hosts_agree_in_three_round_trips_and_five_seconds(facts):
    began = time.monotonic()
    errors, round_trips = compare([facts] * 256)
    assert errors == [None] * 256
    assert max(round_trips) == 3
    assert time.monotonic() - began < 5


@pytest.mark.parametrize(
    ("path", "told"),
    [
        (("config", "seed"), "seed: 0 -> 'another'"),
        (("config", "optimizer", "learning_rate"), "optimizer.learning_rate: 0.003 -> 'another'"),
        (("config", "model", "width"), "model.width: "),
        (("config", "mesh", "fsdp"), "mesh.fsdp: "),
        (("config", "tasks", "text", "batch_size"), "tasks.text.batch_size: "),
        (("config", "total_steps"), "total_steps: 12 -> 'another'"),
        (("workdir",), "workdir: 'gs://bucket/run' -> 'another'"),
        (("python",), "python: "),
        (("packages", "jax"), "packages.jax: "),
        (("packages", "orbax-checkpoint"), "packages.orbax-checkpoint: "),
        (("packages", "mmjax"), "packages.mmjax: "),
        (("code", "mmjax"), "code.mmjax: "),
        (("code", "config file"), "code.config file: "),
        (("data", "text"), "data.text: 'aaa"),
    ],
)  # fmt: skip
@pytest.mark.fault(
    "hosts with another config, code, package, data or workdir",
    "all end before they compile, the field is named; exit 2",
)
def test_the_field_in_which_a_host_differs_is_named_on_all(facts, path, told):
    errors, _ = compare([facts, facts, changed(facts, *path)])
    for error in errors:
        assert isinstance(error, ConfigError)
        assert "1 of 3 processes differ from process 0" in str(error)
        assert "process 2 (" in str(error)
        assert told in str(error)


def test_a_tokenizer_that_one_host_does_not_have_is_no_difference(facts):
    one, other = ({**facts, "tokenizers": {"tok_image": code}} for code in ("a", "b"))
    assert compare([one, {**facts, "tokenizers": {}}])[0] == [None, None]
    errors, _ = compare([one, other])
    assert all("tokenizers.tok_image: 'a' -> 'b'" in str(error) for error in errors)


def test_hosts_that_differ_alike_share_lines(facts):
    errors, _ = compare([facts, *[changed(facts, "packages", "jax")] * 9])
    assert "9 of 10 processes differ" in str(errors[5])
    assert "and 5 more:" in str(errors[5])
    assert str(errors[5]).count("packages.jax") == 1
