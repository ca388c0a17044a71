"""The module of a `Critic`: an array to one logit a patch."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from mmjax.models import blocks, convolution, critic
from mmjax.parallel import rules
from mmjax.typing import Array

SLOPE = 0.2  # of the ReLU below 0


class CriticModule(nnx.Module):
    """Matrix of patches of 2 x 2, then levels of convolution, norm and leaky ReLU."""

    def __init__(self, config: critic.Critic, shape: Sequence[int], rngs: nnx.Rngs):
        *sides, channels = shape
        self.grids, levels, width = [], [], channels
        for level in range(config.levels):
            fold = tuple(2 if size % 2 == 0 else 1 for size in sides)
            sides = [size // by for size, by in zip(sides, fold, strict=True)]
            self.grids.append(tuple(sides))
            width, out = width * int(np.prod(fold)), config.width * 2**level
            if not level:
                self.into = convolution.Affine(width, out, ("unsharded", "embed"), rngs)
                width = out
            levels.append(convolution.Convolution(sides, 3, width, out, rngs))
            width = out
        self.convolutions = nnx.List(levels)
        widths = [config.width * 2**level for level in range(config.levels)]
        self.norms = nnx.List([blocks.Norm(one, "rms", 1e-6) for one in widths])
        self.out = convolution.Affine(width, 1, ("embed", "unsharded"), rngs)

    def __call__(self, x: Array) -> Array:
        """Logits [B, patches], float32, of arrays [B, ..., C]; more = rather given."""
        for level, (one, norm) in enumerate(zip(self.convolutions, self.norms, strict=True)):
            x = convolution.taken_apart(x, self.grids[level])
            x = x if level else self.into(x)
            x = rules.constrain_batch(jax.nn.leaky_relu(norm(one(x)), SLOPE))
        return self.out(x).astype(jnp.float32).reshape(len(x), -1)


def fixed(module: nnx.Module) -> nnx.Module:
    """The same module, through whose parameters no gradient passes."""
    graph, arrays = nnx.split(module)
    return nnx.merge(graph, jax.tree.map(jax.lax.stop_gradient, arrays))
