"""The same step and hand-written programs, compiled by XLA:GPU for eight H100.

XLA:GPU tells no cycles, so what is read are kernels, collectives, arrays and memory.
"""

from __future__ import annotations

import pytest

from mmjax.plan import hlo

LONG = 1280  # as in programs.py; no other dimension has this size
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


@pytest.mark.parametrize("name", ["cudnn", "cudnn_causal"])
def test_attention_of_cudnn_in_both_passes_and_no_scores(for_gpu, name):
    text = for_gpu.texts[name]
    kernels = hlo.read(text).kernels
    assert {k for k in kernels if "cudnn" in k} == {
        "cudnn$fmhaSoftmax", "cudnn$fmhaSoftmaxBackward"
    }  # fmt: skip
    assert not [a for a in hlo.arrays(text, LONG * LONG) if a.shape.count(LONG) > 1]
