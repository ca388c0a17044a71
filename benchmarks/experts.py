"""A layer of experts on CPU: forward and backward pass, against a plain layer of few lines.

    python benchmarks/experts.py [--experts 8 32] [--rounds 15] [--out FILE]

The plain layer sorts choices into blocks of one expert each, gathers a matrix for each block, makes
batched products and leaves derivatives to jax. They take turns in one process on one core; the JSON
line holds medians of CPU milliseconds and the quartiles of the ratio inside each round.
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
from mmjax.models import MoE, moe  # noqa: E402


def plain(x, expert, weight, up, gate, down, rows=128):
    """The layer as one would write it."""
    choices, num = expert.shape[1], len(up)
    flat, blocks = expert.reshape(-1), expert.size // rows + num
    one = (flat[:, None] == jnp.arange(num)).astype(jnp.int32)
    count = one.sum(0)
    end = jnp.cumsum(-(-count // rows))
    start = (end + -count // rows) * rows
    slot = (one * (jnp.cumsum(one, 0) - one + start)).sum(1)
    choice = jnp.full(blocks * rows, flat.size).at[slot].set(jnp.arange(flat.size))
    e_N = jnp.minimum((jnp.arange(blocks)[:, None] >= end).sum(1), num - 1)
    x_NbD = x.at[choice // choices].get(mode="fill", fill_value=0).reshape(blocks, rows, -1)
    w_Nb = weight.reshape(-1).at[choice].get(mode="fill", fill_value=0).reshape(blocks, rows)
    inner = jax.nn.silu(x_NbD @ gate[e_N]) * (x_NbD @ up[e_N]) * w_Nb[..., None]
    y = (inner @ down[e_N]).reshape(-1, x.shape[1])
    return y[slot].reshape(*expert.shape, -1).sum(1)


def contenders(num: int, tokens: int, choices: int, width: int, inner: int):
    """Forward and backward pass of each, to call."""
    rng = np.random.default_rng(0)
    shapes = ((tokens, width), (num, width, inner), (num, width, inner), (num, inner, width))
    x, up, gate, down = (jnp.asarray(rng.normal(size=s) * 0.1, jnp.float32) for s in shapes)
    expert = jnp.asarray(np.argsort(rng.random((tokens, num)))[:, :choices], jnp.int32)
    weight = jnp.asarray(rng.random((tokens, choices)), jnp.float32)

    def ours(x, expert, weight, *matrices):
        routing = moe.Routing(expert_WTX=expert[None], weight_WTX=weight[None])
        return moe.expert_ffn(x[None], routing, *matrices, MoE(num_experts=num)).x_WTD[0]

    def passes(layer):
        @jax.jit
        def run(x, weight, matrices, d):
            out, back = jax.vjp(lambda x, w, m: layer(x, expert, w, *m), x, weight, matrices)
            return out, back(d)

        return functools.partial(run, x, weight, (up, gate, down), x)

    runs = {"mmjax": passes(ours), "plain": passes(plain)}
    first, second = (jax.tree.leaves(run()) for run in runs.values())
    for a, b in zip(first, second, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)
    return runs


def main() -> None:
    """Measures and prints one JSON line."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--experts", type=int, nargs="+", default=(8, 32))
    parser.add_argument("--tokens", type=int, default=2048)
    parser.add_argument("--choices", type=int, default=2)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--inner", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    shape = (options.tokens, options.choices, options.width, options.inner)
    made = lambda num: contenders(num, *shape)
    turns.on_one_core(vars(options), options.experts, made, ("mmjax", "plain"))


if __name__ == "__main__":
    main()
