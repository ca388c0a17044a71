"""Quantisers: latent vectors to codes and back, with gradients straight through.

Letters here: N vectors, K codes, D latent width.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Annotated, NamedTuple

import numpy as np
from etils import epy

from mmjax.config import ranges
from mmjax.typing import Array

with epy.lazy_imports():
    import jax
    import jax.numpy as jnp

EPSILON = 1e-3  # widens the bound of FSQ, so that the outermost levels are reached


class Quantized(NamedTuple):
    """What a quantiser makes of N latent vectors."""

    vector_ND: Array  # of the codes; the gradient goes straight through to the latents
    ids_N: Array  # int32 0..K-1
    loss_N: Array  # commitment, weighted; 0 for quantisers without one


@dataclasses.dataclass(frozen=True, kw_only=True)
class Quantizer:
    """Base of all quantisers.

    State (float32, without gradient) lives in `model_state` by leaf name: `use`, a moving average
    of how often a step used each code, and `codes`, the codebook, when it is learned. Ids depend
    on nothing else.

    Fields:
      decay: of the moving averages, a step.
    """

    decay: ranges.BelowOne = 0.99

    def __post_init__(self):
        ranges.check(self)

    @property
    def num_codes(self) -> int:
        """K."""
        raise NotImplementedError(f"{type(self).__name__} must define num_codes.")

    @property
    def width(self) -> int:
        """D."""
        raise NotImplementedError(f"{type(self).__name__} must define width.")

    def init(self, key: Array) -> dict[str, Array]:
        """Fresh state by leaf name."""
        del key
        return {"use": jnp.zeros((self.num_codes,))}

    def quantize(self, latent_ND: Array, state: dict[str, Array]) -> Quantized:
        """Codes of float32 latents."""
        raise NotImplementedError(f"{type(self).__name__} must define quantize().")

    def vectors(self, ids: Array, state: dict[str, Array]) -> Array:
        """Vectors [..., D] of ids [...]."""
        raise NotImplementedError(f"{type(self).__name__} must define vectors().")

    def statistics(
        self, latent_ND: Array, ids_N: Array, weight_N: Array, key: Array
    ) -> dict[str, Array]:
        """What `update` needs of the latents of a step; weight 0 = not there.

        Asked once a step: counts and sums add up over calls, the candidates of `VQ` do not.
        """
        del latent_ND, key
        return {"count": jnp.zeros((self.num_codes,)).at[ids_N].add(weight_N)}

    def update(self, state: dict[str, Array], statistics: dict[str, Array]) -> dict[str, Array]:
        """State after one optimizer step."""
        return {**state, "use": self._average(state["use"], statistics["count"])}

    def _average(self, old: Array, new: Array) -> Array:
        return self.decay * old + (1 - self.decay) * new


@dataclasses.dataclass(frozen=True, kw_only=True)
class FSQ(Quantizer):
    """Finite scalar quantisation (Mentzer et al. 2023, arXiv 2309.15505).

    Each dimension is bounded by tanh to its number of levels and rounded; the codes are all
    combinations of levels, so nothing is learned and nothing can die.

        bounded = tanh(z + shift) (L - 1)(1 + eps) / 2 - offset,   offset = 1/2 for even L, else 0

    Fields:
      levels: of each dimension; their product is the number of codes.
    """

    levels: tuple[Annotated[int, ranges.Range(2)], ...] = (8, 8, 8)

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

    def quantize(self, latent_ND, state):
        del state
        levels_D = np.asarray(self.levels, np.float32)
        half_D = (levels_D - 1) * (1 + EPSILON) / 2
        offset_D = np.where(levels_D % 2 == 0, np.float32(0.5), np.float32(0))
        shift_D = np.arctanh(offset_D / half_D)
        bounded = jnp.tanh(latent_ND + shift_D[None, :]) * half_D[None, :] - offset_D[None, :]
        level = bounded + jax.lax.stop_gradient(jnp.round(bounded) - bounded)
        middle_D = levels_D // 2
        ids_N = jnp.sum(
            (jnp.round(bounded) + middle_D[None, :]).astype(jnp.int32) * self._base_D[None, :],
            axis=-1,
        )
        return Quantized(level / middle_D[None, :], ids_N, jnp.zeros(ids_N.shape))

    def vectors(self, ids, state):
        del state
        levels_D = np.asarray(self.levels, np.int32)
        shape = (1,) * ids.ndim + (-1,)
        digits = ids[..., None] // self._base_D.reshape(shape) % levels_D.reshape(shape)
        middle_D = (levels_D // 2).reshape(shape)
        return (digits - middle_D).astype(jnp.float32) / middle_D.astype(np.float32)

    @property
    def _base_D(self) -> np.ndarray:
        """Worth of one level of each dimension in an id."""
        return np.cumprod([1, *self.levels[:-1]]).astype(np.int32)


@dataclasses.dataclass(frozen=True, kw_only=True)
class VQ(Quantizer):
    """Vector quantisation (van den Oord et al. 2017) with a codebook of moving averages.

    A latent takes its nearest code; the codebook follows the mean of the latents that took it.
    Codes used less than `dead_threshold` times a step take the place of latents of the batch, the
    first step included, so the codebook starts from data.

    Fields:
      num_codes: K. width: D.
      cosine: codes and latents have unit length (Yu et al. 2021).
      commitment: weight of the squared distance between latents and their codes.
      dead_threshold: average uses a step below which a code is replaced; 0 = never.
    """

    num_codes: Annotated[int, ranges.Range(2)] = 512  # type: ignore[assignment]
    width: ranges.Count = 16  # type: ignore[assignment]
    cosine: bool = True
    commitment: ranges.NonNegative = 1.0
    dead_threshold: ranges.NonNegative = 1.0

    def init(self, key):
        codes_KD = self._scaled(jax.random.normal(key, (self.num_codes, self.width)))
        # Of copies: two leaves must not share a buffer that the step donates.
        return {**super().init(key), "codes": codes_KD, "sum": jnp.zeros_like(codes_KD)}

    def quantize(self, latent_ND, state):
        latent_ND = self._scaled(latent_ND)
        codes_KD = jax.lax.stop_gradient(state["codes"])
        fixed_ND = jax.lax.stop_gradient(latent_ND)
        # |z - c|^2 without |z|^2, which is the same for all codes.
        distance_NK = jnp.sum(jnp.square(codes_KD), axis=-1)[None, :] - 2 * fixed_ND @ codes_KD.T
        ids_N = jnp.argmin(distance_NK, axis=-1).astype(jnp.int32)
        code_ND = codes_KD[ids_N]
        loss_N = self.commitment * jnp.mean(jnp.square(latent_ND - code_ND), axis=-1)
        return Quantized(latent_ND + jax.lax.stop_gradient(code_ND - latent_ND), ids_N, loss_N)

    def vectors(self, ids, state):
        return state["codes"][ids]

    def statistics(self, latent_ND, ids_N, weight_N, key):
        latent_ND = self._scaled(latent_ND)
        zeros = jnp.zeros((self.num_codes, self.width))
        # Candidates: latents drawn evenly from those that are there.
        there_N = jnp.cumsum((weight_N > 0).astype(jnp.int32))
        rank_K = jax.random.randint(key, (self.num_codes,), 1, jnp.maximum(there_N[-1], 1) + 1)
        chosen_K = jnp.searchsorted(there_N, rank_K)
        return {
            **super().statistics(latent_ND, ids_N, weight_N, key),
            "sum": zeros.at[ids_N].add(latent_ND * weight_N[:, None]),
            "candidate": latent_ND[jnp.minimum(chosen_K, len(ids_N) - 1)],
        }

    def update(self, state, statistics):
        use_K = self._average(state["use"], statistics["count"])
        sum_KD = self._average(state["sum"], statistics["sum"])
        is_dead_K = use_K < self.dead_threshold
        candidate_KD = self._scaled(statistics["candidate"])
        use_K = jnp.where(is_dead_K, self.dead_threshold, use_K)
        sum_KD = jnp.where(is_dead_K[:, None], candidate_KD * self.dead_threshold, sum_KD)
        mean_KD = sum_KD / jnp.maximum(use_K, 1e-9)[:, None]
        unused = (use_K <= 0)[:, None]  # only without a threshold
        codes_KD = jnp.where(unused, state["codes"], self._scaled(mean_KD))
        there = jnp.sum(statistics["count"]) > 0
        new = {"use": use_K, "sum": sum_KD, "codes": codes_KD}
        return {name: jnp.where(there, new[name], state[name]) for name in state}

    def _scaled(self, x: Array) -> Array:
        if not self.cosine:
            return x
        return x * jax.lax.rsqrt(jnp.maximum(jnp.sum(jnp.square(x), -1, keepdims=True), 1e-12))
