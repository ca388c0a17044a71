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

        Leading dims beyond `axes` (stacked layers) are replicated.

        Raises:
          ValueError: a dim is not divisible by its mesh axis.
        """
        axes = ("layers",) * (len(shape) - len(axes)) + axes
        out = []
        for axis, size in zip(axes, shape, strict=True):
            if axis not in LOGICAL_AXES:
                raise ValueError(
                    f"Parameter {name}: logical axis {axis!r} is unknown; use one of"
                    f" {', '.join(LOGICAL_AXES)}."
                )
            target = getattr(self, axis, None)
            parts = mesh.shape[target] if target else 1
            if size % parts:
                fits = [n for n in range(1, size + 1) if size % n == 0]
                raise ValueError(
                    f"Parameter {name}: dim {axis}={size} is not divisible by mesh axis"
                    f" {target}={parts}; use {target} of {', '.join(map(str, fits[:8]))}."
                )
            out.append(target if parts > 1 else None)
        return jax.sharding.PartitionSpec(*out)


def batch_spec() -> jax.sharding.PartitionSpec:
    """Rows (or groups) of a batch over all batch axes."""
    return jax.sharding.PartitionSpec(mesh_lib.BATCH_AXES)


def batch_sharding(mesh: jax.sharding.Mesh) -> jax.sharding.NamedSharding:
    """Rows (or groups) of a batch on a mesh."""
    return jax.sharding.NamedSharding(mesh, batch_spec())


def constrain_batch(x: Array) -> Array:
    """Keeps dim 0 of an activation on the batch axes; nothing without a mesh in context."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or math.prod(mesh.axis_sizes) == 1:
        return x
    return jax.lax.with_sharding_constraint(x, batch_spec())


def shardings(specs: PyTree, mesh: jax.sharding.Mesh) -> PyTree:
    """Tree of partition specs to tree of named shardings."""
    return jax.tree.map(
        lambda spec: jax.sharding.NamedSharding(mesh, spec),
        specs,
        is_leaf=lambda x: isinstance(x, jax.sharding.PartitionSpec),
    )
