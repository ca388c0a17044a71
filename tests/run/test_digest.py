"""Digests of arrays: the same on any mesh, and of the bits and places of what they hold."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from mmjax.run import digest as digest_lib

RNG = np.random.default_rng(0)
TREE = {
    "matrix": RNG.normal(size=(16, 24)).astype(np.float32),
    "half": RNG.normal(size=(8, 3)).astype(jnp.bfloat16),
    "count": np.int32(7),
    "mask": RNG.integers(0, 2, (8, 5)).astype(bool),
    "small": RNG.integers(-128, 127, (7,)).astype(np.int8),
    "none": np.zeros((0, 4), np.float32),
    "long": np.arange(200_001, dtype=np.int32),
}


def oracle(x: np.ndarray) -> tuple[int, int]:
    """The two sums, element by element, in plain integers."""
    one = two = 0
    for i, raw in enumerate(np.asarray(x).reshape(-1)):
        word = int.from_bytes(raw.tobytes(), "little")
        h = (word + i * 0x9E3779B1) % 2**32
        h = ((h ^ (h >> 16)) * 0x85EBCA6B) % 2**32
        h = ((h ^ (h >> 13)) * 0xC2B2AE35) % 2**32
        h ^= h >> 16
        one, two = one + h, two + h * (i | 1)
    return one % 2**32, two % 2**32


@pytest.mark.parametrize("name", [n for n in TREE if n != "long"])
def test_sums_are_those_of_plain_integers(name):
    assert digest_lib._host_sums(np.asarray(TREE[name])) == oracle(TREE[name])
    (found,) = jax.jit(digest_lib._device_sums)([jnp.asarray(TREE[name])])
    assert tuple(map(int, found)) == oracle(TREE[name])


@pytest.mark.parametrize("shape", [(1, 1), (2, 1), (1, 2), (8, 1), (4, 2), (2, 4)])
def test_digests_are_the_same_on_every_mesh(shape, monkeypatch):
    mesh = jax.make_mesh(shape, ("a", "b"), devices=jax.devices()[: shape[0] * shape[1]])
    specs = {"matrix": PartitionSpec("a", "b"), "half": PartitionSpec("a"), "mask": ("a",)}
    placed = {
        name: jax.device_put(x, NamedSharding(mesh, PartitionSpec(*specs.get(name, ()))))
        for name, x in TREE.items()
    }
    expected = digest_lib.digest(TREE)
    assert digest_lib.digest(placed) == expected
    monkeypatch.setattr(digest_lib, "_is_on_host", lambda leaf: False)  # as on accelerators
    assert digest_lib.digest(placed) == expected


def test_every_changed_bit_and_moved_row_is_noticed():
    expected = digest_lib.digest(TREE)
    rng = np.random.default_rng(1)
    for _ in range(500):
        other = {name: np.array(x) for name, x in TREE.items()}
        name = rng.choice([n for n in TREE if n not in ("none", "count")])
        flat = other[name].reshape(-1).view(np.uint8)
        bit = np.uint8(1 if name == "mask" else 1 << rng.integers(8))
        flat[rng.integers(len(flat))] ^= bit
        assert digest_lib.digest(other) != expected
    for i in range(15):
        rows = TREE["matrix"].copy()
        rows[[i, i + 1]] = rows[[i + 1, i]]
        assert digest_lib.digest({**TREE, "matrix": rows}) != expected


def test_another_dtype_or_shape_of_the_same_bits_is_another_digest():
    x = TREE["matrix"]
    found = {digest_lib.digest(y) for y in (x, x.reshape(24, 16), x.view(np.int32), x[None])}
    assert len(found) == 4


def test_an_array_of_one_host_needs_no_mesh():
    assert digest_lib.digest([]) == digest_lib.digest({})
    assert digest_lib.digest(jnp.ones(3)) == digest_lib.digest(np.ones(3, np.float32))
