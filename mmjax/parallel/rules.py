"""MeshRules: from the logical axes of a parameter to its place on the mesh."""

from __future__ import annotations

import dataclasses
import math

from etils import epy

from mmjax.parallel import mesh as mesh_lib
from mmjax.typing import Array, PyTree

with epy.lazy_imports():
    import jax

LOGICAL_AXES = (
    *("embed", "heads", "kv", "head_dim", "mlp", "vocab", "expert"),
    *("layers", "stream", "piece", "level", "unsharded"),
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class MeshRules:
    """Mesh axis of each logical axis; what is not named is replicated."""

    embed: str | None = "fsdp"
    heads: str | None = "tensor"
    kv: str | None = "tensor"
    mlp: str | None = "tensor"
    vocab: str | None = "tensor"
    expert: str | None = "expert"

    def spec(
        self, name: str, axes: tuple[str, ...], shape: tuple[int, ...], mesh: jax.sharding.Mesh
    ) -> jax.sharding.PartitionSpec:
        """Partition spec of a parameter `name` whose last dims have these logical axes.

        Leading dims beyond `axes` (stacked layers) are replicated, and so are vectors along the
        axes of the batch: to gather one takes longer than to keep it.

        Raises:
          ValueError: a dim is not divisible by its mesh axis.
        """
        whole = mesh_lib.BATCH_AXES if len(axes) == 1 else ()
        axes = ("layers",) * (len(shape) - len(axes)) + axes
        out = []
        for axis, size in zip(axes, shape, strict=True):
            if axis not in LOGICAL_AXES:
                raise ValueError(
                    f"Parameter {name}: logical axis {axis!r} is unknown; use one of"
                    f" {', '.join(LOGICAL_AXES)}."
                )
            target = getattr(self, axis, None)
            target = None if target in whole else target
            parts = mesh.shape[target] if target else 1
            if size % parts:
                fits = [n for n in range(1, size + 1) if size % n == 0]
                fits.sort(key=lambda n: abs(math.log2(n / parts)))
                raise ValueError(
                    f"Parameter {name}: dim {axis}={size} is not divisible by mesh axis"
                    f" {target}={parts}; use {target} of {', '.join(map(str, sorted(fits[:4])))}."
                )
            out.append(target if parts > 1 else None)
        return jax.sharding.PartitionSpec(*out)


def batch_spec() -> jax.sharding.PartitionSpec:
    """Rows (or groups) of a batch over all batch axes."""
    return jax.sharding.PartitionSpec(mesh_lib.BATCH_AXES)


def batch_sharding(mesh: jax.sharding.Mesh) -> jax.sharding.NamedSharding:
    """Rows (or groups) of a batch on a mesh."""
    return jax.sharding.NamedSharding(mesh, batch_spec())


def is_one_device() -> bool:
    """Whether the mesh in context is of one device, or there is none."""
    mesh = jax.sharding.get_abstract_mesh()
    return mesh.empty or math.prod(mesh.axis_sizes) == 1


def constrain(x: Array, spec: jax.sharding.PartitionSpec | None) -> Array:
    """Keeps an array in these parts; as it is without a spec, or on one device."""
    if spec is None or is_one_device():
        return x
    return jax.lax.with_sharding_constraint(x, spec)


def constrain_batch(x: Array) -> Array:
    """Keeps dim 0 of an activation on the batch axes; nothing without a mesh in context."""
    return constrain(x, batch_spec())


def gathered(spec: jax.sharding.PartitionSpec | None) -> jax.sharding.PartitionSpec | None:
    """Spec of a weight in use: whole along batch axes; experts and tensor parts stay in place."""
    if spec is None:
        return None
    stay = {*mesh_lib.AXES} - {*mesh_lib.BATCH_AXES} | {"expert"}
    return jax.sharding.PartitionSpec(*(a if a in stay else None for a in spec))


def shardings(specs: PyTree, mesh: jax.sharding.Mesh) -> PyTree:
    """Tree of partition specs to tree of named shardings."""
    return jax.tree.map(
        lambda spec: jax.sharding.NamedSharding(mesh, spec),
        specs,
        is_leaf=lambda x: isinstance(x, jax.sharding.PartitionSpec),
    )
