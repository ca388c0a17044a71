"""The chips that people train on, and what is published of each."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

GIB = 2**30
TERA = 1e12
GIGA = 1e9


@dataclasses.dataclass(frozen=True, kw_only=True)
class Chip:
    """A kind of accelerator, with the figures of a *device*: what jax shows as one.

    Fields:
      name: as clouds call it. kind: jax's `device_kind`. platform: of jax.
      hbm_bytes: memory. usable: share of it that a program gets.
      dtype: what it computes in, unless the config says otherwise; flops: peak of that, dense.
      clock: Hz, for cycles that a compiler estimates; 0 = it estimates none.
      hbm_bandwidth, ici_bandwidth: bytes a second, of the memory and to other devices of its slice
        or node (one direction, all links).
      dcn_bandwidth: bytes a second of a *host* to others. host_memory: bytes of a host.
      devices_per_chip, chips_per_host. one_host: chips of the largest slice on one host.
      cores_per_chip: what the number in the name of a slice counts: 2 a chip, or chips.
      dims: axes of the torus; 0 = all devices of a node see one another alike.
      max_chips: of the largest slice.
    """

    name: str
    kind: str
    platform: Literal["tpu", "gpu"]
    hbm_bytes: int
    usable: float
    flops: float
    hbm_bandwidth: float
    ici_bandwidth: float
    dcn_bandwidth: float
    host_memory: int
    dtype: Literal["bfloat16", "float32"] = "bfloat16"
    clock: float = 0.0
    devices_per_chip: int = 1
    chips_per_host: int = 4
    one_host: int = 4
    cores_per_chip: int = 1
    dims: int = 0
    max_chips: int = 0


def _tpu(name: str, kind: str, **figures) -> Chip:
    # XLA keeps about 1.6 % for itself: it says "of 15.75G hbm" of a v5e.
    return Chip(name=name, kind=kind, platform="tpu", usable=0.984, **figures)


def _gpu(name: str, kind: str, **figures) -> Chip:
    # jax takes three quarters unless XLA_PYTHON_CLIENT_MEM_FRACTION says otherwise.
    node: dict[str, Any] = {"chips_per_host": 8, "one_host": 8, "max_chips": 8}
    return Chip(name=name, kind=kind, platform="gpu", usable=0.75, **(node | figures))


# Google's pages of system architecture (docs.cloud.google.com/tpu/docs/v4, v5e, v5p, v6e, tpu7x):
# peak, HBM, inter-chip bandwidth (there both directions together; here half of it), data center
# network, memory of a host. NVIDIA's data sheets: dense peak without sparsity, NVLink (half of both
# directions); network of the usual node (DGX A100: 8 x 200 Gbit/s, DGX H100: 8 x 400).
CHIPS: dict[str, Chip] = {
    chip.name: chip
    for chip in (
        _tpu(
            "v4", "TPU v4", hbm_bytes=32 * GIB, flops=275 * TERA, clock=1.05 * GIGA,
            hbm_bandwidth=1228 * GIGA, ici_bandwidth=150 * GIGA, dcn_bandwidth=6.25 * GIGA,
            host_memory=407 * GIB, cores_per_chip=2, dims=3, max_chips=4096,
        ),
        _tpu(
            "v5e", "TPU v5 lite", hbm_bytes=16 * GIB, flops=197 * TERA, clock=1.5 * GIGA,
            hbm_bandwidth=819 * GIGA, ici_bandwidth=200 * GIGA, dcn_bandwidth=12.5 * GIGA,
            host_memory=192 * GIB, one_host=8, dims=2, max_chips=256,
        ),
        _tpu(
            "v5p", "TPU v5", hbm_bytes=95 * GIB, flops=459 * TERA, clock=1.75 * GIGA,
            hbm_bandwidth=2765 * GIGA, ici_bandwidth=600 * GIGA, dcn_bandwidth=25 * GIGA,
            host_memory=448 * GIB, cores_per_chip=2, dims=3, max_chips=6144,
        ),
        _tpu(
            "v6e", "TPU v6 lite", hbm_bytes=32 * GIB, flops=918 * TERA, clock=1.75 * GIGA,
            hbm_bandwidth=1638 * GIGA, ici_bandwidth=400 * GIGA, dcn_bandwidth=50 * GIGA,
            host_memory=720 * GIB, one_host=8, dims=2, max_chips=256,
        ),
        _tpu(
            "tpu7x", "TPU7x", hbm_bytes=96 * GIB, flops=1153.5 * TERA, clock=2.2 * GIGA,
            hbm_bandwidth=3690 * GIGA, ici_bandwidth=300 * GIGA, dcn_bandwidth=50 * GIGA,
            host_memory=960 * GIB, devices_per_chip=2, cores_per_chip=2, dims=3, max_chips=9216,
        ),
        _gpu(
            "b200", "NVIDIA B200", hbm_bytes=180 * GIB, flops=2250 * TERA,
            hbm_bandwidth=7700 * GIGA, ici_bandwidth=900 * GIGA, dcn_bandwidth=400 * GIGA,
            host_memory=2048 * GIB,
        ),
        _gpu(
            "h200", "NVIDIA H200", hbm_bytes=141 * 10**9, flops=989 * TERA,
            hbm_bandwidth=4800 * GIGA, ici_bandwidth=450 * GIGA, dcn_bandwidth=400 * GIGA,
            host_memory=2048 * GIB,
        ),
        _gpu(
            "h100", "NVIDIA H100 80GB HBM3", hbm_bytes=84978434048, flops=989 * TERA,
            hbm_bandwidth=3352 * GIGA, ici_bandwidth=450 * GIGA, dcn_bandwidth=400 * GIGA,
            host_memory=2048 * GIB,
        ),
        _gpu(
            "a100", "NVIDIA A100-SXM4-80GB", hbm_bytes=80 * GIB, flops=312 * TERA,
            hbm_bandwidth=2039 * GIGA, ici_bandwidth=300 * GIGA, dcn_bandwidth=200 * GIGA,
            host_memory=1024 * GIB,
        ),
        _gpu(
            "a100-40gb", "NVIDIA A100-SXM4-40GB", hbm_bytes=40 * GIB, flops=312 * TERA,
            hbm_bandwidth=1555 * GIGA, ici_bandwidth=300 * GIGA, dcn_bandwidth=200 * GIGA,
            host_memory=1024 * GIB,
        ),
        _gpu(  # no NVLink: PCIe
            "l4", "NVIDIA L4", hbm_bytes=24 * GIB, flops=121 * TERA, hbm_bandwidth=300 * GIGA,
            ici_bandwidth=32 * GIGA, dcn_bandwidth=12.5 * GIGA, host_memory=384 * GIB,
        ),
        _gpu(  # its tensor cores know float16 alone, so that it computes in float32
            "v100", "Tesla V100-SXM2-16GB", hbm_bytes=16 * GIB, flops=15.7 * TERA, dtype="float32",
            hbm_bandwidth=900 * GIGA, ici_bandwidth=150 * GIGA, dcn_bandwidth=12.5 * GIGA,
            host_memory=488 * GIB,
        ),
        _gpu(  # as the V100; of its 16 GB error correction takes a part
            "t4", "Tesla T4", hbm_bytes=15 * GIB, flops=8.1 * TERA, dtype="float32",
            hbm_bandwidth=320 * GIGA, ici_bandwidth=16 * GIGA, dcn_bandwidth=4 * GIGA,
            host_memory=13 * GIB, chips_per_host=4, one_host=4, max_chips=4,
        ),
    )
}  # fmt: skip


def peak_flops(device_kind: str, dtype: str) -> float | None:
    """Peak of a device, as jax calls it, in a dtype; None = it is not in the table."""
    for chip in CHIPS.values():
        if chip.kind == device_kind and chip.dtype == dtype:
            return chip.flops
    return None
