"""The reader on programs of known bytes, compiled by XLA:TPU and by XLA:GPU."""

from __future__ import annotations

import pytest

from mmjax.plan import hlo

pytestmark = pytest.mark.timeout(1800)  # with all programs


@pytest.fixture(
    params=[
        pytest.param("for_tpu", marks=pytest.mark.compile),
        pytest.param("for_gpu", marks=pytest.mark.cuda),
    ]
)
def compiled(request):
    return request.getfixturevalue(request.param)


def test_gathers_of_a_scan_count_with_their_turns(compiled):
    size = 6 * 1024 * 1024 * 2
    assert hlo.read(compiled.texts["gather"]).collectives == {
        "all-gather": hlo.Collective(6, size, {"bf16": size})
    }


def test_a_scatter_in_a_scan(compiled):
    size = 5 * 4096 * 1024 * 4
    assert hlo.read(compiled.texts["scatter"]).collectives == {
        "reduce-scatter": hlo.Collective(5, size, {"f32": size})
    }


def test_the_other_collectives(compiled):
    size = 512 * 1024 * 4
    kinds = ("all-reduce", "all-to-all", "collective-permute")
    assert hlo.read(compiled.texts["others"]).collectives == {
        kind: hlo.Collective(1, size, {"f32": size}) for kind in kinds
    }
