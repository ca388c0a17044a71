"""Critic: the part of an autoencoder that tells given values from decoded ones."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from mmjax.config import ranges


@dataclasses.dataclass(frozen=True, kw_only=True)
class Critic:
    """A discriminator of patches (Isola et al. 2017, arXiv 1611.07004), as in VQGAN.

    Convolutions with leaky ReLU on an array whose sides are halved again and again, and one logit
    for each place that is left; RMS norms, which couple no rows, in place of batch norms.

    Fields:
      width: of the first features; each level doubles it.
      levels: convolutions, with a halving before each. Two judge patches of about 16 values a side,
        each further one about doubles that.
    """

    width: ranges.Count = 32
    levels: ranges.Count = 3

    def __post_init__(self):
        ranges.check(self)

    def make(self, model: Any, shape: Sequence[int], rngs):
        """The NNX module of an autoencoder, for arrays of this shape, channels last."""
        from mmjax.models import critic_module

        del model
        return critic_module.CriticModule(self, shape, rngs)
