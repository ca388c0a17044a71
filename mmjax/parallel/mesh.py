"""MeshConfig: how many devices lie along each named axis."""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Annotated, Any

import numpy as np
from etils import epy

from mmjax.config import ranges

with epy.lazy_imports():
    import jax

AXES = ("replica", "data", "fsdp", "expert", "tensor", "sequence")
# The expert axis is a batch axis outside MoE layers.
BATCH_AXES = ("replica", "data", "fsdp", "expert")
Size = Annotated[int, ranges.Range(1, also=(-1,))]


@dataclasses.dataclass(frozen=True, kw_only=True)
class MeshConfig:
    """Devices along each axis; one of them may be -1 and takes what is left.

    `replica` crosses slices and nodes (copies of everything), so that gradients alone are sent over
    the network of the data center; the other axes stay inside one, but see `slow_axes`. The batch
    is sharded over (replica, data, fsdp, expert).
    """

    replica: Size = 1
    data: Size = -1
    fsdp: Size = 1
    expert: Size = 1
    tensor: Size = 1
    sequence: Size = 1

    def __post_init__(self):
        ranges.check(self)
        sizes = self.as_dict()
        fills = [name for name, size in sizes.items() if size == -1]
        if len(fills) > 1:
            raise ValueError(f"MeshConfig: {' and '.join(fills)} are both -1; only one may fill.")
        if self.sequence != 1:
            raise ValueError(
                f"MeshConfig: sequence={self.sequence} is not supported yet; use sequence=1."
            )

    def as_dict(self) -> dict[str, int]:
        """Size by axis name."""
        return {name: getattr(self, name) for name in AXES}

    def resolve(self, num_devices: int) -> dict[str, int]:
        """Sizes with -1 filled in.

        Raises:
          ValueError: the axes do not multiply to the number of devices.
        """
        sizes = self.as_dict()
        known = math.prod(size for size in sizes.values() if size != -1)
        fill = [name for name, size in sizes.items() if size == -1]
        if num_devices % known or (not fill and known != num_devices):
            rule = (
                f": {known} does not divide the {num_devices} devices"
                if fill
                else f" asks for {known} devices, and there are {num_devices}"
            )
            raise ValueError(
                f"MeshConfig: {_shape(sizes)}{rule}; use {_nearest(sizes, num_devices)}"
                f"{'' if fill else ', or set one axis to -1'}."
            )
        if fill:
            sizes[fill[0]] = num_devices // known
        return sizes

    def slow_axes(self, num_devices: int, parts: int) -> tuple[str, ...]:
        """Axes whose collectives cross the network of the data center, which is slow.

        Args:
          parts: slices or nodes that the devices are in, of one size. `replica` alone crosses them
            where it is a multiple of them; on TPUs it must be.
        """
        sizes = self.resolve(num_devices)
        # As `make` lays them: the last axis is the innermost.
        part = np.arange(num_devices).reshape(*sizes.values()) * parts // num_devices
        return tuple(name for i, name in enumerate(sizes) if np.diff(part, axis=i).any())

    def make(self, devices: Sequence[Any] | None = None) -> jax.sharding.Mesh:
        """The mesh over all (or the given) devices, with automatic partitioning.

        Neighbours on an axis are neighbours on the network, so that the rows of a batch that the
        devices of a host hold need not be.

        Raises:
          ValueError: the devices cannot carry these axes.
        """
        devices = jax.devices() if devices is None else devices
        sizes = self.resolve(len(devices))
        # Explicit axis types are jax's default; automatic ones are asked for on purpose.
        types = (jax.sharding.AxisType.Auto,) * len(sizes)
        return jax.sharding.Mesh(_laid(sizes, devices), tuple(sizes), axis_types=types)


def parts(devices: Sequence[Any]) -> list[int]:
    """Slice or node of each device: what joins them is the network of the data center.

    jax tells GPUs of several machines apart as slices; where it does not, a process is a node.
    """
    slices = [getattr(device, "slice_index", None) or 0 for device in devices]
    if devices[0].platform == "tpu" or len(set(slices)) > 1:
        return slices
    return [device.process_index for device in devices]


def check_slices(sizes: dict[str, int], slices: int) -> None:
    """Raises ValueError where another axis than `replica` would cross slices of TPUs."""
    if sizes["replica"] % slices:
        raise ValueError(
            f"MeshConfig: replica={sizes['replica']} is no multiple of the {slices} slices, and no"
            f" other axis may cross them; use {_nearest(sizes, math.prod(sizes.values()), slices)}."
        )


def _laid(sizes: dict[str, int], devices: Sequence[Any]) -> Any:
    """Devices in the order of a mesh.

    Other than `jax.make_mesh` it cuts an axis of the torus in two where a mesh asks for that, with
    which any mesh fits a slice, and lays `replica` across slices and nodes. CPUs stay as given.
    """
    from jax.experimental import mesh_utils

    kind, shape = devices[0].platform, tuple(sizes.values())
    if kind == "cpu":
        return np.asarray(devices, dtype=object).reshape(shape)
    places = parts(devices)
    counts = Counter(places)
    if kind == "tpu":
        check_slices(sizes, len(counts))
        _check_torus(devices, places)
    if len(counts) == 1:
        return mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=True)
    if sizes["replica"] % len(counts) or len(set(counts.values())) > 1:  # nodes of GPUs
        order = sorted(zip(places, devices, strict=True), key=lambda pair: (pair[0], pair[1].id))
        return np.asarray([device for _, device in order], dtype=object).reshape(shape)
    across = tuple(len(counts) if name == "replica" else 1 for name in sizes)
    inside = tuple(n // m for n, m in zip(shape, across, strict=True))
    slices = {getattr(device, "slice_index", None) or 0 for device in devices}
    return mesh_utils.create_hybrid_device_mesh(
        inside,
        across,
        devices,
        process_is_granule=len(slices) == 1,
        allow_split_physical_axes=True,
    )


def _check_torus(devices: Sequence[Any], places: Sequence[int]) -> None:
    """Raises ValueError where TPUs are no whole boxes of equal slices."""
    counts = Counter(places)
    if len(set(counts.values())) > 1:
        sizes = ", ".join(map(str, counts.values()))
        raise ValueError(
            f"MeshConfig: the slices have {sizes} of the devices, and a mesh wants as many of each;"
            f" give {min(counts.values())} of each."
        )
    if devices[0].device_kind == "TPU v4" and any(d.core_on_chip for d in devices):
        raise ValueError(
            "MeshConfig: each chip of this TPU v4 shows two devices, and a mesh wants one; start"
            " with megacore, the default of libtpu."
        )
    for place in counts:
        own = [d for d, p in zip(devices, places, strict=True) if p == place]
        if not _is_box(own):
            fit = [n for n in range(1, len(own)) if _is_box(own[:n])]
            raise ValueError(
                f"MeshConfig: the {len(own)} devices given are no box of the torus, so that it"
                f" cannot carry a mesh of them; the first {' or '.join(map(str, fit[-3:]))} are."
            )


def _is_box(devices: Sequence[Any]) -> bool:
    """Whether devices of a slice fill a box of its torus."""
    places = [(*d.coords, d.core_on_chip) for d in devices]
    lengths = [max(axis) - min(axis) + 1 for axis in zip(*places, strict=True)]
    return math.prod(lengths) == len(set(places)) == len(devices)


def _shape(sizes: dict[str, int]) -> str:
    return ", ".join(f"{k}={v}" for k, v in sizes.items() if v not in (1, -1)) or "all axes 1"


def _nearest(sizes: dict[str, int], num_devices: int, slices: int = 1) -> str:
    """The sizes nearest to those given that multiply to the devices: at most two choices."""
    fill = -1 in sizes.values()
    named = [name for name, size in sizes.items() if size not in (1, -1)]
    if slices > 1 and "replica" not in named:
        named.insert(0, "replica")
    named = named or ["data"]
    found: list[tuple[float, dict[str, int]]] = []
    for choice in _products(num_devices, len(named)):
        new = dict(zip(named, choice, strict=True))
        if (fill or math.prod(choice) == num_devices) and new.get("replica", slices) % slices == 0:
            off = sum(abs(math.log2(new[name] / sizes[name])) for name in named)
            found.append((off, new))
    best = [new for _, new in sorted(found, key=lambda pair: pair[0])[:2]]
    return " or ".join(", ".join(f"{k}={v}" for k, v in new.items()) for new in best)


def _products(number: int, count: int) -> Iterator[tuple[int, ...]]:
    """So many factors, in every way, whose product divides a number."""
    if not count:
        yield ()
        return
    for first in (n for n in range(1, number + 1) if number % n == 0):
        for rest in _products(number // first, count - 1):
            yield (first, *rest)


def platform(mesh: jax.sharding.Mesh | None = None) -> str:
    """`cpu`, `tpu` or `gpu`: the devices of a mesh, by default of the one in use.

    What is compiled for a described pod runs on that, not on the machine that compiles.
    """
    used = jax.sharding.get_abstract_mesh() if mesh is None else mesh.abstract_mesh
    device = used.abstract_device
    name = jax.default_backend() if device is None else device.platform
    return name if name in ("cpu", "tpu") else "gpu"


def compute_dtype(dtype: str, mesh: jax.sharding.Mesh) -> str:
    """Resolves "auto": bfloat16 where the devices of a mesh have it, which are TPUs and GPUs from
    compute capability 8.0 (Ampere) on: a T4 or V100 computes in float32."""
    if dtype != "auto":
        return dtype
    if platform(mesh) == "gpu":
        first = mesh.devices.flat[0] if isinstance(mesh, jax.sharding.Mesh) else None
        capability = str(getattr(first, "compute_capability", ""))  # "7.5", "gfx942"
        return "float32" if capability[:2] in ("5.", "6.", "7.") else "bfloat16"
    return "float32" if platform(mesh) == "cpu" else "bfloat16"


def compiler_options(mesh: jax.sharding.Mesh) -> dict[str, str]:
    """Options of XLA for a step on a mesh.

    On TPU no product is cut into steps of a ring along with the sum or gather of its weight: the
    slices of a training step are too thin to fill the matrix units.
    """
    if platform(mesh) != "tpu":
        return {}
    rings = ("reduce_scatter", "all_gather")
    return {f"xla_tpu_enable_windowed_einsum_for_{kind}": "false" for kind in rings}


def batch_shards(mesh: jax.sharding.Mesh) -> int:
    """Number of parts that the batch is cut into."""
    return math.prod(mesh.shape[name] for name in BATCH_AXES)
