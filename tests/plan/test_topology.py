"""Names of slices and nodes, and what is known of their chips."""

from __future__ import annotations

import importlib.util
import math

import pytest

from mmjax.config import ConfigError
from mmjax.plan import chips, described, tiles, topology


@pytest.mark.parametrize(
    ("name", "devices", "hosts", "torus"),
    [
        ("v4-16", 8, 2, (2, 2, 2)),
        ("v5e-1", 1, 1, (1, 1)),
        ("v5e-8", 8, 1, (2, 4)),
        ("v5e-16", 16, 4, (4, 4)),
        ("v5litepod-16", 16, 4, (4, 4)),
        ("v5e-256", 256, 64, (16, 16)),
        ("2xv5e-256", 512, 128, (16, 16)),
        ("v5p-8", 4, 1, (2, 2, 1)),
        ("v5p-64", 32, 8, (2, 4, 4)),
        ("v5p-128", 64, 16, (4, 4, 4)),
        ("v5p-2048", 1024, 256, (8, 8, 16)),
        ("V6E-8", 8, 1, (2, 4)),
        ("tpu7x-128", 128, 16, (4, 4, 4)),
        ("h100x8", 8, 1, ()),
        ("2xh100x8", 16, 2, ()),
        ("a100-40gbx4", 4, 1, ()),
        ("t4", 1, 1, ()),
    ],
)
def test_names_are_those_of_the_clouds(name, devices, hosts, torus):
    made = topology.parse(name)
    assert (made.num_devices, made.num_hosts, made.torus) == (devices, hosts, torus)
    if torus:
        assert math.prod(torus) == made.chips
        how = described.tpu_description(made)
        assert how["topology_name"] == f"{made.chip.name}:{'x'.join(map(str, torus))}"


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("v5x-16", "did you mean 'v5"),
        ("h10x8", "did you mean 'h100'"),
        ("v5e-17", "use v5e-16 or v5e-32"),
        ("v5p-65", "use v5p-64 or v5p-128 (the number counts cores, two a chip)"),
        ("v5e-512", "use v5e-128 or v5e-256"),
        ("h100x16", "write 2xh100x8"),
        ("0xv5e-16", "Write v5e-16"),
        ("", "Write v5e-16"),
    ],
)
def test_the_nearest_is_offered(name, said):
    with pytest.raises(ConfigError) as caught:
        topology.parse(name)
    assert said in str(caught.value)


def test_a_clock_explains_the_peak():
    """Peak = 2 x 128 x 128 x units x clock, a whole number of units."""
    for chip in chips.CHIPS.values():
        if chip.platform == "tpu":
            units = chip.flops / (2 * 128 * 128 * chip.clock)
            assert abs(units - round(units)) < 0.03 * units, chip.name


def test_the_peak_of_a_device_is_found_by_its_kind():
    assert chips.peak_flops("TPU v5 lite", "bfloat16") == 197e12
    assert chips.peak_flops("Tesla T4", "float32") == 8.1e12
    assert chips.peak_flops("TPU v5 lite", "float32") is None  # nobody publishes that
    assert chips.peak_flops("cpu", "float32") is None


def test_a_gpu_gives_jax_three_quarters(monkeypatch):
    monkeypatch.delenv("XLA_PYTHON_CLIENT_MEM_FRACTION", raising=False)
    node = topology.parse("h100x8")
    assert node.hbm_limit == int(0.75 * node.chip.hbm_bytes)
    monkeypatch.setenv("XLA_PYTHON_CLIENT_MEM_FRACTION", "0.9")
    assert node.hbm_limit == int(0.9 * node.chip.hbm_bytes)


@pytest.mark.parametrize(
    ("name", "package"), [("v5e-4", "jax[tpu]=="), ("h100x8", "jax-cuda13-plugin==")]
)
def test_a_missing_compiler_is_named_with_the_command(name, package, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="pip install") as caught:
        described.devices(topology.parse(name))
    assert package in str(caught.value)


def test_every_gpu_has_a_description():
    gpus = {name for name, chip in chips.CHIPS.items() if chip.platform == "gpu"}
    assert gpus == set(described.GPUS)
    text = described.gpu_config(chips.CHIPS["h100"])
    assert "core_count: 132\n" in text
    assert "device_memory_size: 84978434048\n" in text


@pytest.mark.parametrize(
    ("shape", "itemsize", "padded"),
    [  # as XLA:TPU lays out the arguments of a step
        ((768,), 4, 4096),
        ((4, 768), 4, 4 * 768 * 4),
        ((16, 256, 3), 4, 16 * 256 * 3 * 4),
        ((16, 196), 4, 16 * 256 * 4),
        ((4, 56), 4, 4 * 128 * 4),
        ((768, 12, 64), 4, 768 * 12 * 64 * 4),
        ((0, 4), 4, 0),
    ],
)
def test_tiles_of_a_tpu(shape, itemsize, padded):
    assert tiles.size(shape, itemsize, "tpu") == padded
    assert tiles.size(shape, itemsize, "gpu") == math.prod(shape) * itemsize
