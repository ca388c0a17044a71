"""Muon (Jordan et al. 2024) for matrices and Adam for everything else, as one transformation.

It takes the steps of `optax.contrib.muon`, which has a loop for every leaf: matrices of one shape
share a loop here, whatever leaf they are of, and that costs less (benchmarks/history.md).
"""

from __future__ import annotations

import itertools
import math
from collections import defaultdict
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from mmjax.parallel import rules
from mmjax.parallel.mesh import BATCH_AXES
from mmjax.typing import Array, PyTree

NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)  # of the quintic iteration


class MuonState(NamedTuple):
    """Steps done, first moments, and second moments of what is no matrix."""

    count: Array
    first: PyTree
    second: PyTree


def muon(
    matrices: PyTree,
    matrix_rate: Callable[[Array], Any],
    rate: Callable[[Array], Any],
    *,
    momentum: float,
    ns_steps: int,
    b1: float,
    b2: float,
    weight_decay: float,
    eps: float = 1e-8,
) -> optax.GradientTransformation:
    """Nesterov momentum of all leaves: made orthogonal, or divided by Adam's second moment.

    `matrices` has the structure of the parameters: a `Matrix` of `optimizer`, or None for Adam.
    """
    kinds = jax.tree.leaves(matrices, is_leaf=lambda m: m is None)
    none = optax.MaskedNode()

    def init(params):
        leaves, tree = jax.tree.flatten(params)
        second = [
            jnp.zeros_like(x) if m is None else none for x, m in zip(leaves, kinds, strict=True)
        ]
        return MuonState(
            jnp.zeros((), jnp.int32), jax.tree.map(jnp.zeros_like, params), tree.unflatten(second)
        )

    def update(updates, state, params=None):
        grads, tree = jax.tree.flatten(updates)
        count = state.count + 1
        first, second, ahead = [], [], []
        old = zip(tree.flatten_up_to(state.first), tree.flatten_up_to(state.second), strict=True)
        for matrix, g, (m, v) in zip(kinds, grads, old, strict=True):
            b = b1 if matrix is None else momentum
            m = b * m + (1 - b) * g
            first.append(m)
            second.append(b2 * v + (1 - b2) * jnp.square(g) if matrix is None else none)
            ahead.append(b * m / (1 - b ** (count + 1)) + (1 - b) * g / (1 - b**count))
        ahead = orthogonal(ahead, kinds, ns_steps)
        out = []
        for matrix, u, v, p in zip(kinds, ahead, second, tree.flatten_up_to(params), strict=True):
            if matrix is None:
                u = -rate(state.count) * u / (jnp.sqrt(v / (1 - b2**count)) + eps)
            else:
                u = -matrix_rate(state.count) * (u + weight_decay * p)
            out.append(u)
        return tree.unflatten(out), MuonState(count, *map(tree.unflatten, (first, second)))

    return optax.GradientTransformation(init, update)


def orthogonal(leaves: list[Array], kinds: list, steps: int) -> list[Array]:
    """Each matrix U S V^T becomes about U V^T * sqrt(max(1, outputs / inputs)); others stay."""
    groups: dict[Any, list[int]] = defaultdict(list)
    stacks = {i: _stack(leaves[i], m) for i, m in enumerate(kinds) if m is not None}
    for i, stack in stacks.items():
        # On several devices a leaf stays alone: joined to others it would lose its sharding.
        groups[stack.shape[1:] if rules.is_one_device() else i].append(i)
    out = list(leaves)
    for members in groups.values():
        done = _shared_out(jnp.concatenate([stacks[i] for i in members]), steps)
        ends = list(itertools.accumulate(len(stacks[i]) for i in members))
        for i, part in zip(members, jnp.split(done, ends[:-1]), strict=True):
            out[i] = _unstack(part, leaves[i].shape, kinds[i])
    return out


def _shared_out(x_NRC: Array, steps: int) -> Array:
    """`newton_schulz`, on several devices with whole matrices on each of them: an all-to-all takes
    the place of a gather of the stack. Slices (`replica`) do not exchange matrices."""
    if rules.is_one_device():
        return newton_schulz(x_NRC, steps)
    mesh = jax.sharding.get_abstract_mesh()
    axes = tuple(a for a in BATCH_AXES if a != "replica" and a in mesh.axis_names)
    padding = -len(x_NRC) % math.prod(mesh.shape[a] for a in axes)
    spec = jax.sharding.PartitionSpec(axes)
    padded = jnp.pad(x_NRC, ((0, padding), (0, 0), (0, 0)))  # zeros stay zeros
    done = newton_schulz(rules.constrain(padded, spec), steps)
    return rules.constrain(done, spec)[: len(x_NRC)]


def _order(shape: tuple[int, ...], matrix) -> tuple[tuple[int, ...], int, int, bool]:
    """Dims as (batch, inputs, outputs), sizes of the last two, and whether inputs are more."""
    rows, columns = (math.prod(shape[d] for d in dims) for dims in (matrix.inputs, matrix.outputs))
    batch = (d for d in range(len(shape)) if d not in matrix.inputs + matrix.outputs)
    return (*batch, *matrix.inputs, *matrix.outputs), rows, columns, rows > columns


def _stack(x: Array, matrix) -> Array:
    """[N, R, C] with R <= C."""
    order, rows, columns, tall = _order(x.shape, matrix)
    x_NRC = x.transpose(order).reshape(-1, rows, columns)
    return jnp.swapaxes(x_NRC, 1, 2) if tall else x_NRC


def _unstack(x_NRC: Array, shape: tuple[int, ...], matrix) -> Array:
    order, rows, columns, tall = _order(shape, matrix)
    x_NRC = jnp.swapaxes(x_NRC, 1, 2) if tall else x_NRC
    back = [order.index(d) for d in range(len(shape))]
    x = x_NRC.reshape([shape[d] for d in order]).transpose(back)
    return x * max(1.0, columns / rows) ** 0.5


def newton_schulz(x_NRC: Array, steps: int) -> Array:
    """Matrices with singular values near 1."""
    a, b, c = NEWTON_SCHULZ

    def step(_, x):
        gram = jnp.matmul(x, jnp.swapaxes(x, -1, -2))
        return a * x + jnp.matmul(b * gram + c * jnp.matmul(gram, gram), x)

    size = jnp.sqrt(jnp.sum(jnp.square(x_NRC), axis=(-2, -1), keepdims=True))
    return jax.lax.fori_loop(0, steps, step, x_NRC / (size + 1e-8))
