"""The same step and hand-written programs, compiled by XLA:GPU for eight H100.

XLA:GPU tells no cycles, so what is read are kernels, collectives, arrays and memory.
"""

from __future__ import annotations

import pytest

from mmjax.plan import hlo

pytestmark = [pytest.mark.cuda, pytest.mark.timeout(1800)]  # with all programs


def test_gathers_of_a_scan_count_with_their_turns(for_gpu):
    size = 6 * 1024 * 1024 * 2
    assert hlo.read(for_gpu.texts["gather"]).collectives == {
        "all-gather": hlo.Collective(6, size, {"bf16": size})
    }


def test_a_scatter_in_a_scan(for_gpu):
    size = 5 * 4096 * 1024 * 4
    assert hlo.read(for_gpu.texts["scatter"]).collectives == {
        "reduce-scatter": hlo.Collective(5, size, {"f32": size})
    }


def test_the_other_collectives(for_gpu):
    size = 512 * 1024 * 4
    kinds = ("all-reduce", "all-to-all", "collective-permute")
    assert hlo.read(for_gpu.texts["others"]).collectives == {
        kind: hlo.Collective(1, size, {"f32": size}) for kind in kinds
    }


def test_a_kernel(for_gpu):
    (kernel,) = hlo.read(for_gpu.texts["kernel"]).kernels.items()
    assert kernel == ("double_it", hlo.Kernel(7, 0))


def test_the_step_compiles(for_gpu):
    reading = hlo.read(for_gpu.texts["step"])
    parameters = for_gpu.memory["step"]["parameters"]
    assert reading.unknown_loops == 0
    assert sum(c.bytes for c in reading.collectives.values()) > 2 * parameters
    assert for_gpu.memory["step"]["temporary"] < 64 * 2**20
