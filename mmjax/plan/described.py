"""Devices that are described and not there: what XLA's compilers compile for.

`devices(topology)` asks libtpu or jax's CUDA plug-in, which run on any Linux machine; nothing is
executed on what they describe.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
from collections.abc import Iterator
from typing import Any, NamedTuple

from mmjax.config.error import ConfigError
from mmjax.plan.chips import Chip
from mmjax.plan.topology import Topology


class Gpu(NamedTuple):
    """What XLA's compiler for GPUs wants to know of one, beside memory and bandwidth."""

    capability: tuple[int, int]
    cores: int
    fpus: int  # a core
    threads: int  # a core
    shared: int  # bytes a core
    shared_optin: int  # bytes a block
    cache: int  # bytes, second level
    clock: float  # GHz


# NVIDIA's tuning guides and data sheets, as `cudaGetDeviceProperties` tells them.
GPUS = {
    "t4": Gpu((7, 5), 40, 64, 1024, 65536, 65536, 4 << 20, 1.59),
    "v100": Gpu((7, 0), 80, 64, 2048, 98304, 98304, 6 << 20, 1.53),
    "a100": Gpu((8, 0), 108, 64, 2048, 167936, 166912, 40 << 20, 1.41),
    "a100-40gb": Gpu((8, 0), 108, 64, 2048, 167936, 166912, 40 << 20, 1.41),
    "l4": Gpu((8, 9), 58, 128, 1536, 102400, 101376, 48 << 20, 2.04),
    "h100": Gpu((9, 0), 132, 128, 2048, 233472, 232448, 50 << 20, 1.98),
    "h200": Gpu((9, 0), 132, 128, 2048, 233472, 232448, 50 << 20, 1.98),
    "b200": Gpu((10, 0), 148, 128, 2048, 233472, 232448, 126 << 20, 1.96),
}


def devices(topology: Topology) -> list[Any]:
    """The devices of a topology, described; initialises jax for CPU.

    Raises ConfigError when its compiler is not installed.
    """
    tpu = topology.chip.platform == "tpu"
    _require(topology)
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")  # there is no metadata server to ask
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")  # nobody holds a chip
    with _without_flags():
        from jax.experimental import topologies

        if tpu:
            how = tpu_description(topology)
            return topologies.get_topology_desc(platform="tpu", **how).devices
        return topologies.get_topology_desc(
            platform="cuda",
            topology_name="",
            topology=f"{topology.slices}x1x{topology.chips}",
            target_config=gpu_config(topology.chip),
        ).devices


def tpu_description(topology: Topology) -> dict[str, Any]:
    """What libtpu calls a slice."""
    chip, torus = topology.chip, topology.torus
    how: dict[str, Any] = {"topology_name": f"{chip.name}:{'x'.join(map(str, torus))}"}
    if topology.chips <= chip.one_host and chip.dims == 2:
        how["chips_per_host_bounds"] = [*torus, 1]  # eight chips are on one host, not on two
    if topology.slices > 1:
        how["num_slices"] = topology.slices
    if chip.name == "v4":
        how["chip_config_name"] = "megacore"  # one device a chip, as on real ones
    return how


def gpu_config(chip: Chip) -> str:
    """XLA's GpuTargetConfigProto of a GPU, in text form."""
    gpu = GPUS[chip.name]
    return f"""
platform_name: "CUDA"
dnn_version_info {{ major: 9 minor: 8 }}
device_description_str: "{chip.kind}"
gpu_device_info {{
  cuda_compute_capability {{ major: {gpu.capability[0]} minor: {gpu.capability[1]} }}
  core_count: {gpu.cores}
  fpus_per_core: {gpu.fpus}
  threads_per_warp: 32
  threads_per_block_limit: 1024
  threads_per_core_limit: {gpu.threads}
  registers_per_core_limit: 65536
  registers_per_block_limit: 65536
  shared_memory_per_block: 49152
  shared_memory_per_core: {gpu.shared}
  shared_memory_per_block_optin: {gpu.shared_optin}
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
  memory_bandwidth: {int(chip.hbm_bandwidth)}
  l2_cache_size: {gpu.cache}
  clock_rate_ghz: {gpu.clock}
  device_memory_size: {chip.hbm_bytes}
}}
"""


def _require(topology: Topology) -> None:
    """Raises ConfigError, with the command that mends it, where a compiler is missing."""
    import jax

    if topology.chip.platform == "tpu":
        if importlib.util.find_spec("libtpu") is None:
            raise ConfigError(
                f"--compile: the compiler for {topology.name} is libtpu, which is not installed;"
                f" pip install 'jax[tpu]=={jax.__version__}' (no TPU is needed; in a"
                " checkout `make setup-tpu` makes an environment with it), or leave --compile out."
            )
        return
    plugins = [f"jax_plugins.xla_cuda{n}" for n in (13, 12)]
    if all(_find(name) is None for name in plugins):
        names = " ".join(f"jax-cuda13-{part}=={jax.__version__}" for part in ("plugin", "pjrt"))
        raise ConfigError(
            f"--compile: the compiler for {topology.name} is jax's CUDA plug-in, which is not"
            f" installed; pip install {names} nvidia-cuda-nvcc nvidia-nvvm (no GPU is needed; in"
            " a checkout `make setup-cuda` makes an environment with it), or leave --compile out."
        )


def _find(name: str) -> Any:
    try:
        return importlib.util.find_spec(name)
    except ModuleNotFoundError:
        return None


@contextlib.contextmanager
def _without_flags() -> Iterator[None]:
    """XLA_FLAGS for CPU end a process that loads libtpu, which does not know them."""
    flags = os.environ.pop("XLA_FLAGS", None)
    try:
        yield
    finally:
        if flags is not None:
            os.environ["XLA_FLAGS"] = flags
