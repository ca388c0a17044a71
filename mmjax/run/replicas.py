"""Reading a state once for all replicas: the first reads, the others get it over the network."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from etils import epy

from mmjax.errors import NoCheckpoint
from mmjax.parallel import distributed, together
from mmjax.typing import PyTree

with epy.lazy_imports():
    import jax
    import jax.numpy as jnp

__all__ = ["read_once", "readers"]

AXIS = "replica"  # the first of a mesh


def readers(like: PyTree) -> set[int]:
    """Processes of the first replica; none where every process should read for itself: there is one
    replica, or a process has devices of several."""
    shardings = [getattr(x, "sharding", None) for x in jax.tree.leaves(like)]
    named = [s for s in shardings if isinstance(s, jax.sharding.NamedSharding)]
    if len(named) < len(shardings) or len({s.mesh for s in named}) != 1:
        return set()
    mesh: Any = named[0].mesh
    if mesh.axis_names[0] != AXIS or mesh.shape[AXIS] == 1:
        return set()
    if any(AXIS in jax.tree.leaves(tuple(s.spec)) for s in named):
        return set()  # rules that cut parameters along it
    first, *others = ({d.process_index for d in replica.flat} for replica in mesh.devices)
    return set() if first & set().union(*others) else first


def read_once(read: Callable[[PyTree], PyTree], like: PyTree) -> PyTree:
    """Arrays sharded like the abstract ones in `like`, bit for bit as `read` gives them.

    All processes must call it.

    Args:
      read: arrays like abstract ones; called on the processes of the first replica (`readers`),
        with shardings over its devices.

    Raises:
      NoCheckpoint: `read` raised it, on this or another process.
    """
    arrays, failure = None, None
    if jax.process_index() in readers(like):
        try:
            arrays = read(jax.tree.map(_in_first, like))
        except NoCheckpoint as error:
            failure = error
    distributed.barrier("the first replica has read")
    if distributed.any_process(failure is not None):
        raise failure or NoCheckpoint(
            "The processes of the first replica could not read the checkpoint; see what they say."
        )
    if arrays is None:
        return jax.tree.map(lambda x: _spread(None, x), like)
    return jax.tree.map(_spread, arrays, like)


def _in_first(x: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
    """The same over the devices of the first replica."""
    sharding: Any = x.sharding
    mesh = sharding.mesh
    small = jax.sharding.Mesh(mesh.devices[:1], mesh.axis_names, axis_types=mesh.axis_types)
    return jax.ShapeDtypeStruct(
        x.shape, x.dtype, sharding=jax.sharding.NamedSharding(small, sharding.spec)
    )


def _spread(array: jax.Array | None, like: jax.ShapeDtypeStruct) -> jax.Array:
    """An array of the first replica in all of them: its bits and, from elsewhere, zeros, added up.

    Bits, because a sum of floats would turn -0 into 0. One array at a time, because each is there
    twice for a moment.
    """
    sharding: Any = like.sharding
    spec = jax.sharding.PartitionSpec(AXIS, *sharding.spec)
    stacked = jax.sharding.NamedSharding(sharding.mesh, spec)
    shape = (sharding.mesh.shape[AXIS], *like.shape)
    own = {s.device: s.data for s in array.addressable_shards} if array is not None else {}
    part = stacked.shard_shape(shape)
    buffers = [
        own[d].reshape(part) if d in own else jax.device_put(np.zeros(part, like.dtype), d)
        for d in stacked.addressable_devices_indices_map(shape)
    ]
    whole = jax.make_array_from_single_device_arrays(shape, stacked, buffers)
    return together.jit(_sum_of_bits, out_shardings=sharding)(whole)


def _sum_of_bits(x: jax.Array) -> jax.Array:
    if x.dtype == jnp.bool_:
        return x.any(0)
    unsigned = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32}[x.dtype.itemsize]
    bits = jax.lax.bitcast_convert_type(x, unsigned).astype(jnp.uint32).sum(0, dtype=jnp.uint32)
    return jax.lax.bitcast_convert_type(bits.astype(unsigned), x.dtype)
