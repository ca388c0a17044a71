"""Portions, temperatures, and what a plan item refuses."""

from __future__ import annotations

import numpy as np
import pytest
import small

from mmjax.generate import Decoding


def item(**fields) -> Decoding:
    return Decoding(stream="codes", **fields)


@pytest.mark.parametrize(
    ("schedule", "steps", "total", "expected"),
    [
        ("linear", 4, 16, [4, 4, 4, 4]),
        ("linear", 3, 16, [6, 5, 5]),
        # 16 * (1, .854, .5, .146, 0), differences rounded
        ("cosine", 4, 16, [2, 6, 6, 2]),
        ("cosine", 1, 16, [16]),
        # round(8 * .038) = 0 tokens in the first, nothing left for the last: both left out
        ("cosine", 8, 8, [1, 1, 2, 2, 1, 1]),
        ("linear", 8, 3, [1, 1, 1]),
    ],
)
def test_portions(schedule, steps, total, expected):
    assert item(schedule=schedule, steps=steps).counts(total).tolist() == expected


@pytest.mark.parametrize("schedule", ["cosine", "linear"])
def test_portions_are_whole_whatever_the_size(schedule):
    for total in range(1, 60):
        for steps in range(1, total + 1):
            counts = item(schedule=schedule, steps=steps).counts(total)
            assert counts.sum() == total
            assert (counts > 0).all()


def test_temperatures_fall_as_told():
    counts = np.array([4, 4, 4, 4])
    constant = item(temperature=2.0).temperatures(counts)
    assert constant.tolist() == [2, 2, 2, 2]
    linear = item(temperature=2.0, temperature_schedule="linear").temperatures(counts)
    assert linear.tolist() == [2, 1.5, 1, 0.5]
    onex = item(temperature=5.0, temperature_schedule="onex:0.5:0.5").temperatures(counts)
    x = np.array([1, 34, 67, 100.0]) ** -0.5
    y = (x - x[-1]) / (x[0] - x[-1])
    expected = 0.5 + 4.5 * np.array([1, 0.75, 0.5, 0.25]) * y
    np.testing.assert_allclose(onex, expected, rtol=1e-6)
    once = item(temperature=5.0, temperature_schedule="onex:0.5:0.5").temperatures(np.array([16]))
    assert once.tolist() == [5.0]


def test_what_is_left_open_follows_the_stream():
    grid = item().resolved(small.CODES)
    assert (grid.scheme, grid.steps) == ("maskgit", 1)
    assert item(temperature=1.0).resolved(small.CODES).steps == 8
    assert item(steps=50).resolved(small.CODES).steps == small.CODES.max_tokens
    assert item().resolved(small.TEXT).scheme == "autoregressive"


@pytest.mark.parametrize(
    ("fields", "spec", "message"),
    [
        ({"scheme": "diffusion"}, None, "scheme='diffusion' is unknown; use auto, maskgit"),
        ({"schedule": "square"}, None, "schedule='square' is unknown; use cosine, linear"),
        ({"steps": -1}, None, "steps=-1 must be a whole number of 0 or more"),
        ({"temperature": -0.5}, None, "temperature=-0.5 must be a number of 0 or more"),
        ({"temperature": float("nan")}, None, "temperature=nan must be"),
        ({"guidance": -1.0}, None, r"guidance=-1.0 must be a number of 0 or more"),
        ({"rerank": -1.0}, None, "rerank=-1.0 must be a number of 0 or more"),
        ({"rerank": 1.0}, None, "rerank=1.0 chooses among beams; use beams=4"),
        ({"top_p": 0.0}, None, "top_p=0.0 must be a number above 0 and at most 1"),
        ({"temperature_schedule": "onex:1"}, None, "use constant, linear or onex:MIN:POWER"),
        ({"temperature_schedule": "onex:a:b"}, None, "use constant, linear or onex"),
        ({"temperature_schedule": "linear:1"}, None, "use constant, linear or onex"),
        ({}, small.IMAGE, "continuous"),
        ({"scheme": "autoregressive"}, small.CODES, "does not fit kind='grid'; use maskgit"),
        ({"scheme": "roar"}, small.TEXT, "does not fit kind='sequence'; use autoregressive"),
        ({"steps": 3}, small.TEXT, "steps=3 .* token by token"),
    ],
)
def test_bad_settings_are_told(fields, spec, message):
    with pytest.raises(ValueError, match=message):
        item(**fields).resolved(spec or small.CODES)
