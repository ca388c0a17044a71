"""The reader on programs that XLA:TPU compiled and whose bytes and FLOPs are known."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from mmjax.plan import hlo

pytestmark = [pytest.mark.compile, pytest.mark.timeout(1800)]  # with all programs

CLOCK, PEAK = 1.5e9, 197e12  # of a v5e chip


def test_gathers_in_async_fusions_and_scatters_of_gradients_count_once(for_tpu):
    text = for_tpu.texts["gradient"]
    assert text.count(" all-gather(") > 4, "no clones in async fusions any more: a weaker test"
    assert " reduce-scatter(" not in text, "it no longer prints as an all-reduce: a weaker test"
    layer = 1024 * 4096 * 2
    reading = hlo.read(text)
    gathers, scatters = reading.collectives["all-gather"], reading.collectives["reduce-scatter"]
    assert gathers == hlo.Collective(16, 16 * layer, {"bf16": 16 * layer})
    assert scatters.count == 8
    assert 8 * layer <= scatters.bytes <= 1.05 * 8 * layer  # padded to even parts
    assert "all-reduce" not in reading.collectives
    assert reading.unknown_loops == 0


def test_cycles_of_a_product_are_those_of_the_matrix_units(for_tpu):
    reading = hlo.read(for_tpu.texts["matmul"])
    share = 2 * 2 * 2048**3 / (reading.estimated_seconds(CLOCK, PEAK) * PEAK)
    assert 0.8 < share <= 1.0
    assert (reading.kernels, reading.collectives) == ({}, {})


def test_gradients_cost_what_their_products_cost(for_tpu):
    # Two products forward, the first again, four backward; 2,048 rows a chip.
    flops = 4 * 7 * 2 * 2048 * 1024 * 4096
    share = flops / (hlo.read(for_tpu.texts["gradient"]).estimated_seconds(CLOCK, PEAK) * PEAK)
    assert 0.5 < share <= 1.0


def test_a_kernel_and_its_cost_estimate(for_tpu):
    reading = hlo.read(for_tpu.texts["kernel"])
    assert reading.kernels == {"double_it": hlo.Kernel(7, 7 * 12345)}
    assert reading.estimated_seconds(CLOCK, PEAK) > 7 * 12345 / (hlo.EFFICIENCY * PEAK)


def test_arrays_of_a_program(for_tpu):
    found = hlo.arrays(for_tpu.texts["gradient"], 1024 * 4096 * 2)
    stacks = {(a.dtype, a.shape) for a in found}
    assert ("bf16", (4, 2048, 1024)) in stacks  # what the backward pass keeps of each layer
    assert found[0].bytes >= found[-1].bytes >= 1024 * 4096 * 2


def report(root, env, *args: str) -> dict:
    command = [sys.executable, "benchmarks/compiled.py", *args, "--json"]
    done = subprocess.run(command, cwd=root, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout)


def test_the_command_compiles_a_config_and_reads_what_it_saved(for_tpu, alone, root, tmp_path):
    target = ("configs/anyany/fourm.py:tiny", "--topology", "v5e-8", "--mesh.fsdp", "8")
    found = report(root, alone, *target, "--mesh.data", "1", "--save", str(tmp_path))["masked"]
    assert found["cycles"] > 0
    assert 0 < found["share_of_peak"] < 1
    assert found["collectives"]["all-gather"]["bytes"] > 0
    again = report(root, alone, "--read", str(tmp_path / "masked.txt"))["masked"]
    assert again == {key: found[key] for key in again}
