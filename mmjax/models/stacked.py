"""Parameters of the stack: those of a run, stacked over its repeats, and those with names."""

from __future__ import annotations

from collections.abc import Mapping

import jax
import jax.numpy as jnp
from flax import nnx

from mmjax.models import contracts, embed, plan
from mmjax.models.block import Stack
from mmjax.typing import Array


class RunModule(nnx.Module):
    """Blocks of a pattern; every leaf is stacked over the repeats of the run."""

    def __init__(self, run: plan.Run, stack: Stack, rngs: nnx.Rngs):
        def stacked(block):
            @nnx.vmap(in_axes=0, out_axes=0)
            def make(key):
                return contracts.made(block, stack, nnx.Rngs(params=key))

            return make(jax.random.split(rngs.params(), run.repeats))

        self.blocks = nnx.List([stacked(block) for block in run.pattern])


class Named(nnx.Module):
    """Parameters by leaf name."""

    def __init__(self, init: embed.Init, bounds: Mapping[str, tuple[float, float]] | None = None):
        self.leaves = tuple(init)
        for name, (value, axes) in init.items():
            limits = (bounds or {}).get(name)
            value = value.astype(jnp.float32)
            setattr(self, name, nnx.Param(value, axes=axes, reduce=(), bounds=limits))

    def arrays(self) -> dict[str, Array]:
        """Leaf name -> array."""
        return {name: getattr(self, name)[...] for name in self.leaves}
