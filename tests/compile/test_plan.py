"""What `mmjax plan` estimates of a step against what XLA:TPU says of it."""

from __future__ import annotations

import pytest

pytestmark = [pytest.mark.compile, pytest.mark.timeout(1800)]

# By experts, remat policy and mesh; see plans.py. One is CI's: each takes a minute or two of CPU.
PROGRAMS = [
    "dense_full_fsdp",
    *(
        pytest.param(name, marks=pytest.mark.nightly)
        for name in (
            *("dense_none_data", "dense_none_fsdp", "dense_full_data"),
            *("experts_none_fsdp", "experts_full_data"),
        )
    ),
]


@pytest.mark.parametrize("name", PROGRAMS)
def test_arguments_are_exact_and_memory_is_within_15_percent(name, planned_for_tpu):
    said = planned_for_tpu(name)
    estimated, compiled = said["estimated"], said["compiled"]
    assert estimated["arguments"] == compiled["arguments"]
    assert estimated["bytes"] == pytest.approx(compiled["bytes"], rel=0.15)
