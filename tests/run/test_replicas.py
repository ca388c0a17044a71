"""What the first replica has read arrives in the others bit for bit."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmjax.parallel import MeshConfig
from mmjax.run import replicas

P = jax.sharding.PartitionSpec
NAN = np.uint32(0x7FC12345).view(np.float32)  # one with a payload


def abstract(x, sharding):
    return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)


@pytest.mark.parametrize("spec", [P(), P("fsdp"), P(None, "fsdp")])
@pytest.mark.parametrize(
    "values",
    [
        np.asarray([[-0.0, 0.0, NAN, -np.inf], [1e-45, -1e-45, 1.0, np.finfo(np.float32).max]]),
        np.asarray([[-(2**31), 2**31 - 1, 0, -1], [1, 2, 3, 4]], np.int32),
        np.asarray([[True, False, True, True], [False, False, True, False]]),
        np.asarray([[255, 0, 1, 128], [1, 2, 3, 4]], np.uint8),
        np.asarray([[-0.0, 1.5, -np.inf, 3e-41], [1, 2, 3, 4]], jnp.bfloat16),
    ],
    ids=["float32", "int32", "bool", "uint8", "bfloat16"],
)
def test_all_bits_arrive(values, spec):
    values = values.astype(np.float32) if values.dtype == np.float64 else values
    mesh = MeshConfig(replica=2, data=2, fsdp=2).make()
    like = abstract(values, jax.sharding.NamedSharding(mesh, spec))
    first = jax.device_put(values, replicas._in_first(like).sharding)
    assert first.sharding.device_set == set(mesh.devices[0].flat)
    there = replicas._spread(first, like)
    assert there.sharding.is_equivalent_to(like.sharding, there.ndim)
    for shard in there.addressable_shards:
        assert np.asarray(shard.data).tobytes() == values[shard.index].tobytes()


def test_processes_of_one_replica_read_for_themselves():
    """No process is outside of the first replica here."""
    for config in (MeshConfig(replica=2), MeshConfig(fsdp=2)):
        sharding = jax.sharding.NamedSharding(config.make(), P())
        assert replicas.readers({"x": abstract(np.zeros(4), sharding)}) == set()
    assert replicas.readers({"x": jax.ShapeDtypeStruct((4,), np.float32)}) == set()
