"""Gradient harmonization at activations, sample by sample (Wu et al. 2022)."""

import dataclasses
import itertools

import jax.numpy as jnp

from mmjax.optim import GradientRule, gradients


@dataclasses.dataclass(frozen=True, kw_only=True)
class Harmonize(GradientRule):
    """Where two losses pull the features of a sample in opposite directions, each loses the part
    that opposes the other, and samples below a cosine are left out.

    Fields:
      threshold: least cosine of a sample that is kept.
    """

    over: tuple = ("output",)
    threshold: float = -1.0

    def combine(self, losses, pullback, state, task, key):
        grads = gradients.each(losses, pullback)
        if len(grads) == 1:
            return next(iter(grads.values())), state
        out = {}
        for name in next(iter(grads.values())):
            parts = [g[name].astype(jnp.float32) for g in grads.values()]
            total = jnp.zeros_like(parts[0])
            keep = jnp.ones((len(parts[0]), 1, 1))
            for a, b in itertools.permutations(parts, 2):
                dot = jnp.sum(a * b, axis=(1, 2), keepdims=True)
                size = jnp.sum(b * b, axis=(1, 2), keepdims=True)
                other = jnp.sum(a * a, axis=(1, 2), keepdims=True)
                cosine = dot / jnp.sqrt(jnp.maximum(size * other, 1e-30))
                keep = jnp.where(cosine < self.threshold, 0.0, keep)
                total = total + a - jnp.minimum(dot, 0.0) / jnp.maximum(size, 1e-30) * b
            out[name] = (keep * total / (len(parts) - 1)).astype(
                grads[next(iter(grads))][name].dtype
            )
        return out, state
