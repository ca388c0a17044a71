"""Quantisers without a codebook: each dimension of a latent is rounded by itself.

Letters here: N vectors, K codes, D latent width.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Annotated

import numpy as np
from etils import epy

from mmjax.config import ranges
from mmjax.models.quantizer import Quantized, Quantizer, straight_through
from mmjax.typing import Array

with epy.lazy_imports():
    import jax
    import jax.numpy as jnp

EPSILON = 1e-3  # widens the bound of FSQ, so that the outermost levels are reached
FEW = 1e-9


@dataclasses.dataclass(frozen=True, kw_only=True)
class FSQ(Quantizer):
    """Finite scalar quantisation (Mentzer et al. 2023, arXiv 2309.15505).

    Each dimension is bounded by tanh to its number of levels and rounded; the codes are all
    combinations of levels, so nothing is learned and nothing can die.

        bounded = tanh(z + shift) (L - 1)(1 + eps) / 2 - offset,   offset = 1/2 for even L, else 0

    The levels are `round(bounded) / (L // 2)`: for an even L one more lies below 0 than above.
    `symmetric` ones lie evenly from -1 to 1 (Parker et al. 2024, arXiv 2411.19842):

        2 floor((L - 1)(tanh(z) + 1) / 2 + 1/2) / (L - 1) - 1

    Fields:
      levels: of each dimension; their product is the number of codes.
      symmetric: levels on both sides of 0 alike.
    """

    levels: tuple[Annotated[int, ranges.Range(2)], ...] = (8, 8, 8)
    symmetric: bool = False

    def __post_init__(self):
        super().__post_init__()
        if not self.levels:
            raise ValueError("FSQ: levels=() has no dimension; name 2 or more levels for each.")

    @property
    def num_codes(self):
        return math.prod(self.levels)

    @property
    def width(self):
        return len(self.levels)

    @property
    def digits(self):
        return self.levels

    def quantize(self, latent_ND, state, weight_N=None, key=None):
        del state, weight_N, key
        levels_D = np.asarray(self.levels, np.float32)
        if self.symmetric:
            middle_D = (levels_D - 1) / 2
            level = middle_D[None, :] * (jnp.tanh(latent_ND) + 1)
            level = straight_through(level, jnp.floor(level + 0.5))
            digit_ND, vector_ND = level, level / middle_D[None, :] - 1
        else:
            half_D = (levels_D - 1) * (1 + EPSILON) / 2
            offset_D = np.where(levels_D % 2 == 0, np.float32(0.5), np.float32(0))
            shift_D = np.arctanh(offset_D / half_D)
            bounded = jnp.tanh(latent_ND + shift_D[None, :]) * half_D[None, :] - offset_D[None, :]
            middle_D = levels_D // 2
            level = straight_through(bounded, jnp.round(bounded))
            digit_ND, vector_ND = level + middle_D[None, :], level / middle_D[None, :]
        digit_ND = jnp.round(jax.lax.stop_gradient(digit_ND)).astype(jnp.int32)
        ids_N = jnp.sum(digit_ND * worth(self.levels)[None, :], axis=-1)
        return Quantized(vector_ND, ids_N[:, None], jnp.zeros(ids_N.shape))

    def vectors(self, ids, state):
        del state
        digits = digits_of(ids[..., 0], self.levels).astype(jnp.float32)
        levels = np.asarray(self.levels).reshape((1,) * (ids.ndim - 1) + (-1,))
        middle = ((levels - 1) / 2 if self.symmetric else levels // 2).astype(np.float32)
        return (digits - middle) / middle


@dataclasses.dataclass(frozen=True, kw_only=True)
class LFQ(Quantizer):
    """Lookup-free quantisation: a bit a dimension, its sign (Yu et al. 2023, arXiv 2310.05737).

    With `spherical`, latents and codes have unit length: binary spherical quantisation (BSQ, Zhao
    et al. 2024, arXiv 2406.07548). A code is near with p(c | z) = softmax(2 z . c / temperature),
    in which the bits are independent:

        loss = commitment mean (z - c)^2
             + entropy_weight (mean H[p(c | z)] - diversity H[mean p(c | z)])

    so that each latent is sure of its code, and all codes are used. The mean is over the latents of
    a call: those of a microbatch where gradients are accumulated.

    Fields:
      bits: dimensions; there are 2^bits codes.
      spherical: unit length.
      commitment: weight of the squared distance between latents and their codes.
      entropy_weight: of both entropies. diversity: of the second.
      temperature: of p(c | z).
      group_bits: the second entropy is the sum over groups of so many bits, as if these were
        independent (BSQ): exact where it is `bits` or more, and 2^group_bits numbers a latent.
    """

    bits: Annotated[int, ranges.Range(1, 24)] = 10
    spherical: bool = False
    commitment: ranges.NonNegative = 0.25
    entropy_weight: ranges.NonNegative = 0.1
    diversity: ranges.NonNegative = 1.0
    temperature: ranges.Positive = 0.01
    group_bits: Annotated[int, ranges.Range(1, 12)] = 10

    @property
    def num_codes(self):
        return 2**self.bits

    @property
    def width(self):
        return self.bits

    @property
    def digits(self):
        return (2,) * self.bits

    @property
    def _scale(self) -> float:
        """Distance of a code from 0 in each dimension."""
        return self.bits**-0.5 if self.spherical else 1.0

    def quantize(self, latent_ND, state, weight_N=None, key=None):
        del state, key
        if self.spherical:
            latent_ND = unit(latent_ND)
        is_set_ND = latent_ND > 0
        vector_ND = jnp.where(is_set_ND, self._scale, -self._scale)
        ids_N = jnp.sum(is_set_ND.astype(jnp.int32) * worth(self.digits)[None, :], axis=-1)
        loss_N = self.commitment * jnp.mean(jnp.square(latent_ND - vector_ND), axis=-1)
        if self.entropy_weight:
            weight_N = jnp.ones(ids_N.shape) if weight_N is None else weight_N
            loss_N += self.entropy_weight * self._entropies(latent_ND, weight_N)
        return Quantized(straight_through(latent_ND, vector_ND), ids_N[:, None], loss_N)

    def _entropies(self, latent_ND: Array, weight_N: Array) -> Array:
        """The loss [N] of both entropies, in nats."""
        # Of two codes that differ in bit d alone, the logits differ by 2 z_d 2 scale / temperature.
        logit_ND = 4 * self._scale / self.temperature * latent_ND
        set_ND, unset_ND = jax.nn.sigmoid(logit_ND), jax.nn.sigmoid(-logit_ND)
        log = lambda x: jnp.log(jnp.maximum(x, FEW))
        sure_N = -jnp.sum(set_ND * log(set_ND) + unset_ND * log(unset_ND), axis=-1)
        share_N = weight_N / jnp.maximum(jnp.sum(weight_N), FEW)
        used = 0.0
        for start in range(0, self.bits, self.group_bits):
            p_NK = jnp.ones((len(share_N), 1))
            for d in range(start, min(start + self.group_bits, self.bits)):
                p_NK = jnp.concatenate([p_NK * unset_ND[:, d, None], p_NK * set_ND[:, d, None]], 1)
            mean_K = share_N @ p_NK
            used -= jnp.sum(mean_K * log(mean_K))
        return sure_N - self.diversity * used

    def vectors(self, ids, state):
        del state
        bits = digits_of(ids[..., 0], self.digits).astype(jnp.float32)
        return (2 * bits - 1) * self._scale


def unit(x: Array) -> Array:
    """Vectors of unit length along the last axis."""
    return x * jax.lax.rsqrt(jnp.maximum(jnp.sum(jnp.square(x), -1, keepdims=True), 1e-12))


def worth(digits: tuple[int, ...]) -> np.ndarray:
    """What one of each digit adds to an id, int32 [D]."""
    return np.cumprod([1, *digits[:-1]]).astype(np.int32)


def digits_of(ids: Array, digits: tuple[int, ...]) -> Array:
    """The digits [..., D] of ids [...]."""
    shape = (1,) * ids.ndim + (-1,)
    return ids[..., None] // worth(digits).reshape(shape) % np.asarray(digits).reshape(shape)
