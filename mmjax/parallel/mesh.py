"""MeshConfig: how many devices lie along each named axis."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Annotated, Any

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

    `replica` crosses slices (copies of everything), `data` and `fsdp` stay inside one; the batch is
    sharded over (replica, data, fsdp, expert).
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
            shape = ", ".join(f"{k}={v}" for k, v in sizes.items() if v != 1)
            raise ValueError(
                f"MeshConfig: {shape or 'all axes 1'} multiply to {known}, which does not fit"
                f" {num_devices} devices; set one axis to -1 or make the product"
                f" {'divide' if fill else 'equal'} {num_devices}."
            )
        if fill:
            sizes[fill[0]] = num_devices // known
        return sizes

    def make(self, devices: Sequence[Any] | None = None) -> jax.sharding.Mesh:
        """The mesh over all (or the given) devices, with automatic partitioning."""
        devices = jax.devices() if devices is None else devices
        sizes = self.resolve(len(devices))
        # Explicit axis types are jax's default; automatic ones are asked for on purpose.
        types = (jax.sharding.AxisType.Auto,) * len(sizes)
        if getattr(devices[0], "platform", "cpu") == "tpu":
            return jax.sharding.Mesh(_on_torus(sizes, devices), tuple(sizes), axis_types=types)
        return jax.make_mesh(tuple(sizes.values()), tuple(sizes), devices=devices, axis_types=types)


def _on_torus(sizes: dict[str, int], devices: Sequence[Any]) -> Any:
    """TPU devices in the order of a mesh: neighbours on an axis are neighbours on the torus.

    Other than `jax.make_mesh` it cuts an axis of the torus in two where a mesh asks for that, and
    lays `replica` across slices.

    Raises:
      ValueError: `replica` is no multiple of the slices.
    """
    from jax.experimental import mesh_utils

    shape = tuple(sizes.values())
    slices = len({getattr(d, "slice_index", None) or 0 for d in devices})
    if slices == 1:
        return mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=True)
    check_slices(sizes, slices)
    across = tuple(slices if name == "replica" else 1 for name in sizes)
    inside = tuple(n // m for n, m in zip(shape, across, strict=True))
    return mesh_utils.create_hybrid_device_mesh(
        inside, across, devices, allow_split_physical_axes=True
    )


def check_slices(sizes: dict[str, int], slices: int) -> None:
    """Raises ValueError where another axis than `replica` would cross slices of TPUs."""
    if sizes["replica"] % slices:
        raise ValueError(
            f"MeshConfig: replica={sizes['replica']} is no multiple of the {slices} slices, and no"
            f" other axis may cross them; set replica={slices}."
        )


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
