"""Projection between alternating tasks, by what is remembered of the others' gradients."""

import dataclasses

import jax
import jax.numpy as jnp

from mmjax.optim import GradientRule, gradients


@dataclasses.dataclass(frozen=True, kw_only=True)
class BetweenTasks(GradientRule):
    """Takes from the gradient of a step what conflicts with the average gradients of other tasks.

    Fields:
      decay: of the averages.
    """

    decay: float = 0.9

    def init_state(self, params, tasks):
        return {task: jax.tree.map(jnp.zeros_like, params) for task in tasks}

    def combine(self, losses, pullback, state, task, key):
        own = grads = pullback(dict.fromkeys(losses, jnp.ones(())))
        for other, mean in state.items():
            if other != task:
                dot, square = gradients.inner(grads, mean), gradients.inner(mean, mean)
                share = jnp.minimum(dot, 0.0) / jnp.maximum(square, 1e-30)
                grads = jax.tree.map(lambda g, m, s=share: g - s * m, grads, mean)
        moved = jax.tree.map(lambda m, g: self.decay * m + (1 - self.decay) * g, state[task], own)
        return grads, {**state, task: moved}
