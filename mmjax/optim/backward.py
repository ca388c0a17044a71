"""The backward passes of a step that a gradient rule asks for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from etils import epy

from mmjax.optim import gradients
from mmjax.optim.taps import Taps
from mmjax.typing import Array, PyTree

with epy.lazy_imports():
    import jax
    import jax.numpy as jnp


def gradient(
    losses_of: Callable[[PyTree, Taps], tuple[dict[str, Array], Any]],
    params: PyTree,
    whole: Callable[[PyTree], PyTree],
    rule: gradients.GradientRule,
    state: PyTree,
    task: str,
    key: Array,
) -> tuple[dict[str, Array], PyTree, Any, PyTree]:
    """(losses, gradient, what `losses_of` returned beside them, state of the rule).

    Args:
      losses_of: trainable parameters and taps -> scalar losses by name, and anything else.
      whole: gradient of the trainable parameters -> of all, zero in the others.
    """
    over = rule.over

    def tapped(params, added):
        taps = Taps(over, added)
        losses, aux = losses_of(params, taps)
        return (losses, taps.values), aux

    shapes = jax.eval_shape(tapped, params, None)[0][1] if over else {}
    if over and not shapes:
        raise ValueError(
            f"{type(rule).__name__}: over={over}, but the objective of task {task!r} calls no model"
            " that has these activations; use over=() for its parameters."
        )
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
    (losses, values), pullback, aux = jax.vjp(tapped, params, zeros, has_aux=True)
    ones, none = jax.tree.map(jnp.ones_like, losses), jax.tree.map(jnp.zeros_like, values)

    def at_params(weights, cotangents=none):
        return whole(pullback((weights, cotangents))[0])

    pull = (lambda weights: pullback((weights, none))[1]) if over else at_params
    # Another key than the one that the objective draws with.
    grads, new = rule.combine(losses, pull, state, task, jax.random.fold_in(key, 1))
    gradients.check(rule, jax.eval_shape(pull, ones), grads, state, new)
    if over:
        # What the sum of the losses sends below the activations is replaced by what the rule says.
        change = jax.tree.map(lambda a, b: (a - b).astype(b.dtype), grads, pull(ones))
        grads = at_params(ones, change)
    return losses, grads, aux, new
