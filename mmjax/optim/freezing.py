"""What an update must leave alone: frozen leaves and layers, and the bounds of a parameter."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mmjax.typing import PyTree, path_name


def like_params(tree: PyTree, params: PyTree, values: PyTree, default: Any) -> PyTree:
    """For each leaf of a tree that holds copies of params: the value of its parameter.

    A leaf is a copy when its path ends in a parameter's path and the shapes are equal.
    """
    is_leaf = lambda x: isinstance(x, jax.sharding.PartitionSpec)
    by_name = {}
    flat_values = jax.tree.leaves(values, is_leaf=is_leaf)
    flat_params = jax.tree_util.tree_flatten_with_path(params)[0]
    for (path, leaf), value in zip(flat_params, flat_values, strict=True):
        by_name[path_name(path)] = (leaf.shape, value)

    def find(path, leaf):
        for start in range(len(path)):
            shape, value = by_name.get(path_name(path[start:]), (None, None))
            if shape == leaf.shape:
                return value
        return default

    return jax.tree_util.tree_map_with_path(find, tree)


def partition(params: PyTree, mask: PyTree) -> tuple[list, list]:
    """Trainable and frozen leaves; None at the places of the other."""
    leaves, flags = jax.tree.leaves(params), jax.tree.leaves(mask)
    pairs = [(x, np.any(flag)) for x, flag in zip(leaves, flags, strict=True)]
    tree = jax.tree.structure(params)
    train = tree.unflatten([x if flag else None for x, flag in pairs])
    return train, tree.unflatten([None if flag else x for x, flag in pairs])


def join(first: PyTree, second: PyTree) -> PyTree:
    """One tree of two that have None where the other has a leaf."""
    none = lambda x: x is None
    return jax.tree.map(lambda a, b: b if a is None else a, first, second, is_leaf=none)


def whole(grads: PyTree, frozen: PyTree, mask: PyTree) -> PyTree:
    """Gradients of all parameters, zero in frozen ones and in frozen layers of a stack."""
    grads = join(grads, jax.tree.map(jnp.zeros_like, frozen))
    return jax.tree.map(lambda flag, g: _pick(flag, g, jnp.zeros_like(g)), mask, grads)


def within(bounds: dict[str, tuple[float, float]], params: PyTree) -> PyTree:
    """Parameters, those that have bounds clipped into them."""

    def clipped(path, x):
        return jnp.clip(x, *bounds[path_name(path)]) if path_name(path) in bounds else x

    return jax.tree_util.tree_map_with_path(clipped, params) if bounds else params


def keep(
    params: PyTree, opt_state: PyTree, old_params: PyTree, old_opt_state: PyTree, mask: PyTree
) -> tuple[PyTree, PyTree]:
    """Leaves outside `trainable` keep weight and moments."""
    if all(np.all(flag) for flag in jax.tree.leaves(mask)):
        return params, opt_state
    params = jax.tree.map(_pick, mask, params, old_params)
    moments = like_params(opt_state, old_params, mask, True)
    return params, jax.tree.map(_pick, moments, opt_state, old_opt_state)


def hold(model_state: PyTree, old: PyTree, mask: PyTree) -> PyTree:
    """Router state after a step: that of blocks in which nothing is trained stays as it was."""
    flags: dict[tuple[str, ...], Any] = {}
    for path, flag in jax.tree_util.tree_flatten_with_path(mask)[0]:
        flags[_block(path)] = flag | flags.get(_block(path), False)

    def held(path, new, before):
        return _pick(flags.get(_block(path), True), new, before)

    return jax.tree_util.tree_map_with_path(held, model_state, old)


def _block(path) -> tuple[str, ...]:
    """The place of a block in a layer plan, `runs/<r>/blocks/<p>`."""
    return tuple(path_name(path).split("/")[:4])


def _pick(flag: bool | np.ndarray, new, old):
    """`new` where a parameter is trained, else `old`; a flag [N] is of its first dim, such as
    the layers of a stack."""
    if not isinstance(flag, np.ndarray):
        return new if flag else old
    return jnp.where(flag.reshape(-1, *(1,) * (new.ndim - 1)), new, old)
