"""Digests of the arrays of a state, over bits and positions, independent of the mesh.

Each 32-bit word is mixed with its index in the array (the finalizer of MurmurHash3, Appleby 2008),
and the results are added modulo 2^32, in any order. A flipped bit, a moved row or another dtype
changes the digest; file hashes cannot detect errors that happen after reading.
"""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
from etils import epy

from mmjax.parallel import together

with epy.lazy_imports():
    import jax
    import jax.numpy as jnp

__all__ = ["digest"]

STRIDE = np.uint32(0x9E3779B1)  # 2^32 / golden ratio: spreads neighbouring indices
BLOCK = 1 << 16  # words at a time on the host, so that they stay in a core's cache


def digest(tree: Any) -> str:
    """SHA-256 of the shapes, dtypes and mixed sums of all leaves, in order.

    Arrays on CPU are read in place; sums of others are computed on their devices, so that a save
    transfers nothing twice.
    """
    leaves = jax.tree.leaves(tree)
    told = hashlib.sha256()
    for leaf, sums in zip(leaves, _sums(leaves), strict=True):
        told.update(f"{leaf.dtype} {tuple(leaf.shape)} {int(sums[0])} {int(sums[1])}\n".encode())
    return told.hexdigest()


def _sums(leaves: list[Any]) -> list[Any]:
    if all(_is_on_host(leaf) for leaf in leaves):
        return [_host_sums(np.asarray(leaf)) for leaf in leaves]
    named = [x.sharding for x in leaves if isinstance(x.sharding, jax.sharding.NamedSharding)]
    whole = jax.sharding.NamedSharding(named[0].mesh, jax.sharding.PartitionSpec())
    return jax.device_get(together.jit(_device_sums, out_shardings=whole)(leaves))


def _is_on_host(leaf: Any) -> bool:
    if not isinstance(leaf, jax.Array):
        return True
    return leaf.is_fully_addressable and all(d.platform == "cpu" for d in leaf.devices())


def _host_sums(array: np.ndarray) -> tuple[int, int]:
    flat = np.ascontiguousarray(array).reshape(-1).view(f"u{min(array.dtype.itemsize, 4)}")
    one, two = 0, 0
    for start in range(0, len(flat), BLOCK):
        words = flat[start : start + BLOCK].astype(np.uint32)
        index = np.arange(start, start + len(words), dtype=np.uint64).astype(np.uint32)
        mixed = _mixed(words, index)
        one += int(mixed.sum(dtype=np.uint64))
        two += int((mixed * (index | np.uint32(1))).sum(dtype=np.uint64))
    return one % 2**32, two % 2**32


def _device_sums(leaves: list[jax.Array]) -> list[tuple[jax.Array, jax.Array]]:
    """The sums of `_host_sums`, computed where each element lies, so that nothing is gathered."""
    sums = []
    for x in leaves:
        bits = x.astype(jnp.uint8) if x.dtype == jnp.bool_ else x
        unsigned = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32}[bits.dtype.itemsize]
        words = jax.lax.bitcast_convert_type(bits, unsigned).astype(jnp.uint32)
        index, stride = jnp.zeros(x.shape, jnp.uint32), 1
        for axis in reversed(range(x.ndim)):
            place = jax.lax.broadcasted_iota(jnp.uint32, x.shape, axis)
            index, stride = index + place * np.uint32(stride % 2**32), stride * x.shape[axis]
        mixed = _mixed(words, index)
        again = mixed * (index | np.uint32(1))
        sums.append((mixed.sum(dtype=jnp.uint32), again.sum(dtype=jnp.uint32)))
    return sums


def _mixed(words: Any, index: Any) -> Any:
    mixed = words + index * STRIDE
    mixed = (mixed ^ (mixed >> np.uint32(16))) * np.uint32(0x85EBCA6B)
    mixed = (mixed ^ (mixed >> np.uint32(13))) * np.uint32(0xC2B2AE35)
    return mixed ^ (mixed >> np.uint32(16))
