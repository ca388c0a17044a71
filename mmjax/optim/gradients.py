"""The GradientRule seam: how several losses of one step become one gradient."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Literal

from etils import epy

from mmjax.typing import Array, PyTree

with epy.lazy_imports():
    import jax
    import jax.numpy as jnp


@dataclasses.dataclass(frozen=True, kw_only=True)
class GradientRule:
    """Base of all gradient rules. Without one a step has one backward pass over the sum.

    Fields:
      over: activations at which gradients are combined, of `embed` (input of the blocks of a lane)
        and `output` (of its final norm); () = the parameters. Below an activation there is one
        backward pass for all losses, above it each loss has its own.
    """

    over: tuple[Literal["embed", "output"], ...] = ()

    def init_state(self, params: PyTree, tasks: Sequence[str]) -> PyTree:
        """Arrays that it keeps across steps, for all tasks that it combines; {} = none.

        Copies of `params` are sharded as these, wherever they lie in the tree.
        """
        del params, tasks
        return {}

    def combine(
        self,
        losses: dict[str, Array],
        pullback: Callable[[dict[str, Array]], PyTree],
        state: PyTree,
        task: str,
        key: Array,
    ) -> tuple[PyTree, PyTree]:
        """(gradient, new state) from the scalar losses of a task's step.

        Args:
          pullback: weights by loss -> the gradient of their weighted sum, one backward pass: a tree
            like the parameters, zero where a task does not train them, or, with `over`, a dict of
            activations [B, L, D] by `<lane>/<activation>` and the number of the call.
          key: for random numbers, of this step.
        """
        raise NotImplementedError(f"{type(self).__name__} must define combine().")


@dataclasses.dataclass(frozen=True, kw_only=True)
class PCGrad(GradientRule):
    """Projects conflicting gradients off one another (Yu et al. 2020).

    For each loss i, with the others j in random order: where g_i . g_j < 0,

        g_i <- g_i - (g_i . g_j) / (g_j . g_j) g_j

    and the gradient is the sum of all g_i.

    >>> import jax, jax.numpy as jnp
    >>> table = {"a": jnp.array([1.0, 0.0]), "b": jnp.array([-1.0, 1.0])}
    >>> pullback = lambda w: {"x": sum(w[name] * g for name, g in table.items())}
    >>> losses = dict.fromkeys(table, jnp.zeros(()))
    >>> grads, _ = PCGrad().combine(losses, pullback, {}, "task", jax.random.key(0))
    >>> grads["x"].tolist()  # (1/2, 1/2) + (0, 1)
    [0.5, 1.5]
    """

    def combine(self, losses, pullback, state, task, key):
        del task
        grads = list(each(losses, pullback).values())
        projected = []
        for i, own in enumerate(grads):
            others = [g for j, g in enumerate(grads) if j != i]
            order = jax.random.permutation(jax.random.fold_in(key, i), len(others))
            for step in range(len(others)):
                # All others have the same tree: the random one is picked leaf by leaf.
                other = jax.tree.map(lambda *x, n=order[step]: _pick(x, n), *others)
                dot, square = inner(own, other), inner(other, other)
                share = jnp.minimum(dot, 0.0) / jnp.maximum(square, 1e-30)
                own = jax.tree.map(lambda a, b, s=share: a - s.astype(a.dtype) * b, own, other)
            projected.append(own)
        return jax.tree.map(lambda *g: sum(g[1:], g[0]), *projected), state


def each(losses: dict[str, Array], pullback: Callable[[dict[str, Array]], PyTree]) -> dict:
    """The gradient of each loss alone."""
    one_hot = lambda name: {k: jnp.full((), float(k == name), x.dtype) for k, x in losses.items()}
    return {name: pullback(one_hot(name)) for name in losses}


def inner(a: PyTree, b: PyTree) -> Array:
    """Inner product of two trees, float32."""
    products = jax.tree.map(lambda x, y: jnp.sum(x * y, dtype=jnp.float32), a, b)
    return sum(jax.tree.leaves(products), jnp.zeros(()))


def _pick(arrays: Sequence[Array], number: Array) -> Array:
    return arrays[0] if len(arrays) == 1 else jax.lax.select_n(number, *arrays)


def check(rule: GradientRule, plain: PyTree, grads: PyTree, old: PyTree, new: PyTree) -> None:
    """Raises ValueError where a rule returned other trees, shapes or dtypes than it was given."""
    for what, before, after in (("a gradient", plain, grads), ("state", old, new)):
        if jax.tree.structure(before) != jax.tree.structure(after):
            raise ValueError(
                f"{type(rule).__name__}: combine() returned {what} of another tree"
                f" ({jax.tree.structure(after)}); return one like it was given."
            )
        for a, b in zip(jax.tree.leaves(before), jax.tree.leaves(after), strict=True):
            if (jnp.shape(a), jnp.result_type(a)) != (jnp.shape(b), jnp.result_type(b)):
                raise ValueError(
                    f"{type(rule).__name__}: combine() returned {what} with a leaf of shape"
                    f" {jnp.shape(b)} and {jnp.result_type(b)}, not {jnp.shape(a)} and"
                    f" {jnp.result_type(a)}; return shapes and dtypes as they were given."
                )
