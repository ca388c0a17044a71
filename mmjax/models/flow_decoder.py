"""FlowDecoder: a decoder of codes that draws a likely value in place of the mean of all."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Annotated, Any, Literal

from mmjax.config import ranges


@dataclasses.dataclass(frozen=True, kw_only=True)
class FlowDecoder:
    """Velocities from noise to values, given the codes (Lipman et al. 2022, arXiv 2210.02747; Liu
    et al. 2022, arXiv 2209.03003).

    A side of the autoencoder like its decoder, with its kernel, heads and expansion, which reads
    the values of a cell at time t, the vector of its code and t. Decoding follows the velocities
    from noise at t = 0 to a value at t = 1. One draw of noise serves all values, so that what a
    value decodes to depends on no other.

    Fields:
      width: of features. layers: how many.
      steps: of decoding. solver: `euler`, or `heun`, which calls the network twice a step and whose
        error falls with the square of their number.
    """

    width: ranges.Count = 128
    layers: ranges.Natural = 4
    steps: Annotated[int, ranges.Range(1, 1000)] = 10
    solver: Literal["euler", "heun"] = "heun"

    def __post_init__(self):
        ranges.check(self)

    def make(self, model: Any, shape: Sequence[int], rngs):
        """The NNX module of an autoencoder, for arrays of this shape, channels last."""
        from mmjax.models import flow_module

        return flow_module.FlowModule(self, model, shape, rngs)
