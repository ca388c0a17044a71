"""The same step and hand-written programs, compiled by XLA:GPU for eight H100.

XLA:GPU tells no cycles, so what is read are kernels, collectives, arrays and memory.
"""

from __future__ import annotations

import pytest

from mmjax.plan import hlo

pytestmark = [pytest.mark.cuda, pytest.mark.timeout(1800)]  # with all programs


def test_a_kernel(for_gpu):
    (kernel,) = hlo.read(for_gpu.texts["kernel"]).kernels.items()
    assert kernel == ("double_it", hlo.Kernel(7, 0))


def test_the_step_compiles(for_gpu):
    reading = hlo.read(for_gpu.texts["step"])
    parameters = for_gpu.memory["step"]["parameters"]
    assert reading.unknown_loops == 0
    assert sum(c.bytes for c in reading.collectives.values()) > 2 * parameters
    assert for_gpu.memory["step"]["temporary"] < 64 * 2**20
