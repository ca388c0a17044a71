"""A seeded bijection of rows in constant time and memory: an epoch's order without a table.

Two levels: blocks of neighbouring records are permuted, then the records within each block, so that
reads stay close together on disk. Each level is a small Feistel network with cycle walking (Black
and Rogaway 2002) over 64-bit hashes.
"""

from __future__ import annotations

import numpy as np

BLOCK_ROWS = 1 << 14  # neighbours on disk, which are read close in time
ROUNDS = 6


def permute(n: int, seed: int, epoch, i, block_rows: int = BLOCK_ROWS) -> np.ndarray:
    """Record at position `i` (0..n-1) of an epoch's order; int64, broadcast over both.

    Args:
      n: records. seed: any int. epoch, i: ints or arrays of them.
    """
    i, epoch = np.broadcast_arrays(np.atleast_1d(i), np.atleast_1d(epoch))
    i = i.astype(np.uint64)
    if not n or (i >= np.uint64(n)).any():
        raise ValueError(f"permute: a position is outside 0..{n - 1}.")
    key = _hash(epoch.astype(np.uint64), np.uint64(seed % 2**64))
    blocks, rest = divmod(n, block_rows)
    if blocks < 2:
        return _feistel(n, key, i).astype(np.int64)
    # The last, shorter block may go between any two others.
    start = _hash(key, np.uint64(1)) % np.uint64(blocks + 1) * np.uint64(block_rows)
    is_rest = (i >= start) & (i < start + np.uint64(rest))
    j = np.where(i >= start + np.uint64(rest), i - np.uint64(rest), np.minimum(i, start))
    j = np.where(is_rest, np.uint64(0), j)
    block = _feistel(blocks, _hash(key, np.uint64(2)), j // np.uint64(block_rows))
    inside = _feistel(block_rows, _hash(key, block + np.uint64(3)), j % np.uint64(block_rows))
    out = block * np.uint64(block_rows) + inside
    if rest and is_rest.any():
        last = _feistel(rest, _hash(key, np.uint64(blocks + 3))[is_rest], (i - start)[is_rest])
        out[is_rest] = np.uint64(blocks * block_rows) + last
    return out.astype(np.int64)


def seeds(key: int, epoch: np.ndarray, record: np.ndarray) -> np.ndarray:
    """A seed for each (epoch, record), uint64, for the random numbers of a sample."""
    start = _hash(np.asarray(epoch, np.uint64), np.uint64(key % 2**64))
    return _hash(np.asarray(record, np.uint64), start)


def _hash(x: np.ndarray, key) -> np.ndarray:
    """64 hash bits of two numbers (the finalizer of splitmix64)."""
    x = x + (np.atleast_1d(key) + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def _feistel(n: int, key: np.ndarray, x: np.ndarray) -> np.ndarray:
    """A bijection of 0..n-1: one of the next power of two, repeated until in range."""
    bits = max((n - 1).bit_length(), 1)
    low = np.uint64(bits // 2)
    masks = np.uint64((1 << (bits // 2)) - 1), np.uint64((1 << (bits - bits // 2)) - 1)
    keys = [_hash(key, np.uint64(100 + r)) for r in range(ROUNDS)]
    x, todo = x.copy(), np.arange(len(x))
    while len(todo):
        right, left = x[todo] & masks[0], x[todo] >> low
        for r in range(0, ROUNDS, 2):
            left ^= _hash(right, keys[r][todo]) & masks[1]
            right ^= _hash(left, keys[r + 1][todo]) & masks[0]
        x[todo] = (left << low) | right
        todo = todo[x[todo] >= np.uint64(n)]
    return x
