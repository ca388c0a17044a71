"""A layer of experts on four devices of an axis, as XLA:TPU and XLA:GPU compile it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from mmjax.plan import hlo

pytestmark = pytest.mark.timeout(1800)  # with all programs

# As in programs.py: tokens of a device, choices of each, width, inner width; experts of a device.
TOKENS, CHOICES, WIDTH, INNER, EXPERTS = 256, 2, 256, 512, 2
DEVICES, FACTOR = 4, 2
ROOMS = DEVICES * (TOKENS * CHOICES * FACTOR // DEVICES)


@pytest.fixture(
    params=[
        pytest.param("for_tpu", marks=pytest.mark.compile),
        pytest.param("for_gpu", marks=pytest.mark.cuda),
    ]
)
def text(request):
    return request.getfixturevalue(request.param).texts["experts"]


def test_rows_go_to_their_experts_and_come_back_in_both_passes(text):
    sent = hlo.read(text).collectives["all-to-all"].by_dtype
    assert sent["bf16"] == 4 * ROOMS * WIDTH * 2
    assert sum(sent.values()) - sent["bf16"] <= 4 * ROOMS * 4  # weights, their gradients, numbers


def test_no_matrix_is_gathered_over_the_axis_of_experts(text):
    gathered = hlo.read(text).collectives["all-gather"]
    elements = 3 * EXPERTS * WIDTH * INNER  # of a device's own experts, whole along fsdp
    assert (
        sum(size // {"f32": 4, "bf16": 2}[k] for k, size in gathered.by_dtype.items()) == elements
    )
    assert not [
        a for a in hlo.arrays(text, 1) if a.shape[:1] == (DEVICES * EXPERTS,) and WIDTH in a.shape
    ]


def test_products_are_grouped_kernels(text):
    kernels = {name: kernel.count for name, kernel in hlo.read(text).kernels.items()}
    assert sorted(kernels.values()) == [3, 6]  # one made again in the backward pass of the loss
    assert set(kernels) in ({"gmm", "tgmm"}, {"mmjax_grouped", "mmjax_grouped_outer"})


@pytest.mark.compile
def test_devices_of_tpu_send_the_rows_that_are_used(for_tpu):
    text = for_tpu.texts["ragged_experts"]
    assert text.count("ragged-all-to-all(") >= 4
    equal = hlo.read(for_tpu.texts["experts"]).collectives["all-to-all"]
    ragged = hlo.read(text).collectives["all-to-all"]  # counted as if rooms were full
    assert ragged.by_dtype["bf16"] == equal.by_dtype["bf16"]


@pytest.mark.compile
@pytest.mark.nightly
def test_the_benchmark_of_a_layer_says_what_it_compiles(alone, for_tpu):
    root = Path(__file__).resolve().parents[2]
    command = [sys.executable, "benchmarks/expert_layer.py", "--topology", "v5e-8"]
    command += ["--tokens", "512", "--width", "256", "--inner", "256"]
    done = subprocess.run(
        [*command, "--layers", "dense", "megablox"],
        env=alone, cwd=root, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    dense, sparse = (json.loads(line) for line in done.stdout.splitlines())
    assert (dense["layer"], dense["kernel_flops"], dense["exchanged_mib"]) == ("dense", 0, 0)
    # There and back, in both passes; numbers and weights beside them. The output of the last
    # product reaches no gradient, so its way back is not taken.
    rows = 3 * (512 * 2 * 2) * 256 * 2 / 2**20
    assert rows <= sparse["exchanged_mib"] < 1.4 * rows
    assert sparse["with_kernels"] > sparse["cycles"] > 0
