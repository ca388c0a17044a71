"""Attention on CPU: forward and backward pass, against that of jax, by length.

    python benchmarks/attention.py [--lengths 128 512 1024] [--rounds 15] [--out FILE]

Both compute all pairs of tokens that are no padding, with the same number of tokens at each length.
They take turns in one process on one core; the JSON line holds medians of CPU milliseconds and the
quartiles of the ratio inside each round.
"""

from __future__ import annotations

import argparse
import functools
import os
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from mmjax.cli import cpu  # noqa: E402

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = cpu.flags()["XLA_FLAGS"] + " --xla_cpu_multi_thread_eigen=false"

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402

from benchmarks import turns  # noqa: E402
from mmjax.models import attention  # noqa: E402


def contenders(length: int, tokens: int, heads: int, width: int):
    """Forward and backward pass of each, to call."""
    rng, shape = np.random.default_rng(0), (tokens // length, length, heads, width)
    q, k, v, d = (jnp.asarray(rng.normal(size=shape), jnp.float32) for _ in range(4))
    segment = jnp.asarray(rng.random(shape[:2]) < 0.9, jnp.int32)
    place = attention.Visibility(segment, segment, segment)

    def passes(attend):
        @jax.jit
        def run(q, k, v, d, place):
            out, back = jax.vjp(lambda *x: attend(*x, place), q, k, v)
            return out, back(d)

        return functools.partial(run, q, k, v, d, place)

    def ours(q, k, v, place):
        return attention.attend(q, k, v, place, place, causal=False, isolate=False)

    def jaxs(q, k, v, place):
        mask = attention.visible(place, place, causal=False, isolate=False)[:, None]
        return jax.nn.dot_product_attention(q, k, v, mask=mask, implementation="xla")

    return {"mmjax": passes(ours), "jax": passes(jaxs)}


def main() -> None:
    """Measures and prints one JSON line."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--lengths", type=int, nargs="+", default=(128, 512, 1024))
    parser.add_argument("--tokens", type=int, default=4096, help="in all rows")
    parser.add_argument("--heads", type=int, default=8)
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    made = lambda n: contenders(n, options.tokens, options.heads, options.width)
    turns.on_one_core(vars(options), options.lengths, made, ("mmjax", "jax"))


if __name__ == "__main__":
    main()
