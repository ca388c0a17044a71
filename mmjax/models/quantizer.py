"""Quantisers: latent vectors to codes and back, with gradients past the rounding.

Letters here: N vectors, Q codebooks, K codes of one codebook, D latent width.
"""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

from etils import epy

from mmjax.config import ranges
from mmjax.typing import Array

with epy.lazy_imports():
    import jax
    import jax.numpy as jnp


class Quantized(NamedTuple):
    """What a quantiser makes of N latent vectors."""

    vector_ND: Array  # of the codes; gradients reach the latents as the quantiser says
    ids_NQ: Array  # int32; codebook q has qK..(q + 1)K - 1; -1 = left out (`ResidualVQ.dropout`)
    loss_N: Array  # commitment and entropies, weighted; 0 for quantisers without them


@dataclasses.dataclass(frozen=True, kw_only=True)
class Quantizer:
    """Base of all quantisers.

    State (float32, without gradient) lives in `model_state` by leaf name: `use` [K] or [Q, K], a
    moving average of how often a step used each code, and `codes`, the codebook, when it is
    learned. Ids depend on nothing else.

    Fields:
      decay: of the moving averages, a step.
    """

    decay: ranges.BelowOne = 0.99

    def __post_init__(self):
        ranges.check(self)

    @property
    def num_codes(self) -> int:
        """Codes of all codebooks together."""
        raise NotImplementedError(f"{type(self).__name__} must define num_codes.")

    @property
    def width(self) -> int:
        """D."""
        raise NotImplementedError(f"{type(self).__name__} must define width.")

    @property
    def num_codebooks(self) -> int:
        """Q: ids of one latent."""
        return 1

    @property
    def digits(self) -> tuple[int, ...]:
        """Bases of the digits of an id, the least worth first; empty = an id has no digits."""
        return ()

    def init(self, key: Array) -> dict[str, Array]:
        """Fresh state by leaf name."""
        del key
        return {"use": jnp.zeros((self.num_codes,))}

    def quantize(
        self,
        latent_ND: Array,
        state: dict[str, Array],
        weight_N: Array | None = None,
        key: Array | None = None,
    ) -> Quantized:
        """Codes of float32 latents.

        Args:
          weight_N: 0 = not there, and outside of what is averaged over latents; None = all are.
          key: of what is drawn in training; None = nothing is.
        """
        raise NotImplementedError(f"{type(self).__name__} must define quantize().")

    def vectors(self, ids: Array, state: dict[str, Array]) -> Array:
        """Vectors [..., D] of ids [..., Q]."""
        raise NotImplementedError(f"{type(self).__name__} must define vectors().")

    def statistics(
        self, latent_ND: Array, ids_NQ: Array, weight_N: Array, state: dict[str, Array], key: Array
    ) -> dict[str, Array]:
        """What `update` needs of the latents of a step; weight 0 = not there.

        Asked once a step: counts and sums add up over calls, the candidates of `VQ` do not.
        """
        del latent_ND, state, key
        return {"count": jnp.zeros((self.num_codes,)).at[ids_NQ[:, 0]].add(weight_N)}

    def update(self, state: dict[str, Array], statistics: dict[str, Array]) -> dict[str, Array]:
        """State after one optimizer step."""
        return {**state, "use": self._average(state["use"], statistics["count"])}

    def _average(self, old: Array, new: Array) -> Array:
        return self.decay * old + (1 - self.decay) * new


def straight_through(latent: Array, vector: Array) -> Array:
    """The vector, whose gradient is that of the latent (Bengio et al. 2013)."""
    return latent + jax.lax.stop_gradient(vector - latent)
