"""Quantisers with learned codebooks: one, one after the other, or side by side.

Letters here: N vectors, Q codebooks, K codes of one codebook, D latent width.
"""

from __future__ import annotations

import dataclasses
from typing import Annotated, Literal

import numpy as np
from etils import epy

from mmjax.config import ranges
from mmjax.models.quantizer import Quantized, Quantizer, straight_through
from mmjax.models.scalar_quantizers import FEW, unit
from mmjax.typing import Array

with epy.lazy_imports():
    import jax
    import jax.numpy as jnp


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
      gradient: `straight` = that of the codes; `rotation` = turned and scaled as the latent is
        turned and scaled into its code (Fifty et al. 2024, arXiv 2410.06424).
      kmeans_steps: the codebook starts from so many steps of k-means over the latents of the first
        step, of which there should be several for each code; 0 = from latents themselves.
    """

    num_codes: Annotated[int, ranges.Range(2)] = 512  # type: ignore[assignment]
    width: ranges.Count = 16  # type: ignore[assignment]
    cosine: bool = True
    commitment: ranges.NonNegative = 1.0
    dead_threshold: ranges.NonNegative = 1.0
    gradient: Literal["straight", "rotation"] = "straight"
    kmeans_steps: ranges.Natural = 0

    def __post_init__(self):
        super().__post_init__()
        if self.gradient not in ("straight", "rotation"):
            raise ValueError(f"VQ: gradient={self.gradient!r} must be 'straight' or 'rotation'.")

    def init(self, key):
        codes_KD = self._scaled(jax.random.normal(key, (self.num_codes, self.width)))
        # Of copies: two leaves must not share a buffer that the step donates.
        return {**super().init(key), "codes": codes_KD, "sum": jnp.zeros_like(codes_KD)}

    def quantize(self, latent_ND, state, weight_N=None, key=None):
        del weight_N, key
        latent_ND = self._scaled(latent_ND)
        codes_KD = jax.lax.stop_gradient(state["codes"])
        ids_N = nearest(jax.lax.stop_gradient(latent_ND), codes_KD)
        code_ND = codes_KD[ids_N]
        loss_N = self.commitment * jnp.mean(jnp.square(latent_ND - code_ND), axis=-1)
        through = straight_through if self.gradient == "straight" else rotated
        return Quantized(through(latent_ND, code_ND), ids_N[:, None], loss_N)

    def vectors(self, ids, state):
        return state["codes"][ids[..., 0]]

    def statistics(self, latent_ND, ids_NQ, weight_N, state, key):
        latent_ND = self._scaled(latent_ND)
        zeros = jnp.zeros((self.num_codes, self.width))
        # Candidates: latents drawn evenly from those that are there.
        there_N = jnp.cumsum((weight_N > 0).astype(jnp.int32))
        rank_K = jax.random.randint(key, (self.num_codes,), 1, jnp.maximum(there_N[-1], 1) + 1)
        chosen_K = jnp.searchsorted(there_N, rank_K)
        candidate_KD = latent_ND[jnp.minimum(chosen_K, len(weight_N) - 1)]
        if self.kmeans_steps:
            means = lambda start_KD: self._means(latent_ND, weight_N, start_KD)
            candidate_KD = jax.lax.cond(_is_fresh(state), means, lambda x: x, candidate_KD)
        return {
            **super().statistics(latent_ND, ids_NQ, weight_N, state, key),
            "sum": zeros.at[ids_NQ[:, 0]].add(latent_ND * weight_N[:, None]),
            "candidate": candidate_KD,
        }

    def _means(self, latent_ND: Array, weight_N: Array, means_KD: Array) -> Array:
        """Means of the clusters that k-means finds from these; an empty one stays."""

        def step(_, means_KD):
            ids_N = nearest(latent_ND, means_KD)
            count_K = jnp.zeros((self.num_codes,)).at[ids_N].add(weight_N)
            sum_KD = jnp.zeros_like(means_KD).at[ids_N].add(latent_ND * weight_N[:, None])
            mean_KD = self._scaled(sum_KD / jnp.maximum(count_K, FEW)[:, None])
            return jnp.where(count_K[:, None] > 0, mean_KD, means_KD)

        return jax.lax.fori_loop(0, self.kmeans_steps, step, means_KD)

    def update(self, state, statistics):
        use_K = self._average(state["use"], statistics["count"])
        sum_KD = self._average(state["sum"], statistics["sum"])
        is_dead_K, weight = use_K < self.dead_threshold, self.dead_threshold
        if self.kmeans_steps:
            is_dead_K |= _is_fresh(state)
            weight = weight or 1.0
        candidate_KD = self._scaled(statistics["candidate"])
        use_K = jnp.where(is_dead_K, weight, use_K)
        sum_KD = jnp.where(is_dead_K[:, None], candidate_KD * weight, sum_KD)
        mean_KD = sum_KD / jnp.maximum(use_K, FEW)[:, None]
        unused = (use_K <= 0)[:, None]  # only without a threshold
        codes_KD = jnp.where(unused, state["codes"], self._scaled(mean_KD))
        there = jnp.sum(statistics["count"]) > 0
        new = {"use": use_K, "sum": sum_KD, "codes": codes_KD}
        return {name: jnp.where(there, new[name], state[name]) for name in state}

    def _scaled(self, x: Array) -> Array:
        return unit(x) if self.cosine else x


@dataclasses.dataclass(frozen=True, kw_only=True)
class ResidualVQ(Quantizer):
    """Residual quantisation: each codebook codes what is left (SoundStream, arXiv 2107.03312).

    Fields:
      of: each of the codebooks; not `cosine`, as what is left has no fixed length.
      num_codebooks: Q.
      dropout: probability that a step uses the first n codebooks alone, with n drawn evenly from
        1..Q (Defossez et al. 2022, EnCodec), so that a decoder learns from the first ids alone; in
        losses of evaluations, too. `vectors` leaves out ids of -1.
    """

    of: VQ = VQ(cosine=False)
    num_codebooks: ranges.Count = 4  # type: ignore[assignment]
    dropout: ranges.Fraction = 0.0

    def __post_init__(self):
        super().__post_init__()
        if self.of.cosine:
            raise ValueError(
                "ResidualVQ: of.cosine=True gives all codes the length 1, but what is left grows"
                " smaller from codebook to codebook; use VQ(cosine=False)."
            )

    @property
    def num_codes(self):
        return self.num_codebooks * self.of.num_codes

    @property
    def width(self):
        return self.of.width

    def init(self, key):
        return _stacked([self.of.init(k) for k in jax.random.split(key, self.num_codebooks)])

    def quantize(self, latent_ND, state, weight_N=None, key=None):
        kept = self.num_codebooks
        if key is not None and self.dropout:
            drawn, number = jax.random.split(key)
            fewer = jax.random.randint(number, (), 1, self.num_codebooks + 1)
            kept = jnp.where(jax.random.bernoulli(drawn, self.dropout), fewer, kept)
        vector_ND, ids, loss_N = jnp.zeros_like(latent_ND), [], jnp.zeros(len(latent_ND))
        for q in range(self.num_codebooks):
            left_ND = latent_ND - jax.lax.stop_gradient(vector_ND)
            found = self.of.quantize(left_ND, _nth(state, q), weight_N)
            is_kept = q < kept
            code_ND = jax.lax.stop_gradient(found.vector_ND)
            vector_ND += jnp.where(is_kept, code_ND, 0)
            loss_N += jnp.where(is_kept, found.loss_N, 0)
            ids.append(jnp.where(is_kept, found.ids_NQ[:, 0] + q * self.of.num_codes, -1))
        through = straight_through if self.of.gradient == "straight" else rotated
        return Quantized(through(latent_ND, vector_ND), jnp.stack(ids, axis=-1), loss_N)

    def vectors(self, ids, state):
        parts = _parts(self.of, ids, state)
        kept = [jnp.where(ids[..., q, None] >= 0, part, 0) for q, part in enumerate(parts)]
        return sum(kept[1:], kept[0])

    def statistics(self, latent_ND, ids_NQ, weight_N, state, key):
        found = []
        for q in range(self.num_codebooks):
            own, of = ids_NQ[:, q, None] % self.of.num_codes, _nth(state, q)
            weight = jnp.where(ids_NQ[:, q] >= 0, weight_N, 0)
            key, drawn = jax.random.split(key)
            found.append(self.of.statistics(latent_ND, own, weight, of, drawn))
            latent_ND = latent_ND - self.of.vectors(own, of)
        return _stacked(found)

    def update(self, state, statistics):
        return jax.vmap(self.of.update)(state, statistics)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ProductVQ(Quantizer):
    """Product quantisation: parts of a latent have codebooks of their own (Jegou et al. 2011).

    Fields:
      of: each of the codebooks; its width is that of a part.
      num_codebooks: Q; latents have Q times the width.
    """

    of: VQ = VQ()
    num_codebooks: ranges.Count = 4  # type: ignore[assignment]

    @property
    def num_codes(self):
        return self.num_codebooks * self.of.num_codes

    @property
    def width(self):
        return self.num_codebooks * self.of.width

    def init(self, key):
        return _stacked([self.of.init(k) for k in jax.random.split(key, self.num_codebooks)])

    def quantize(self, latent_ND, state, weight_N=None, key=None):
        del key
        parts = jnp.split(latent_ND, self.num_codebooks, axis=-1)
        found = [self.of.quantize(x, _nth(state, q), weight_N) for q, x in enumerate(parts)]
        ids = [f.ids_NQ[:, 0] + q * self.of.num_codes for q, f in enumerate(found)]
        vector_ND = jnp.concatenate([f.vector_ND for f in found], axis=-1)
        loss_N = sum((f.loss_N for f in found), jnp.zeros(len(latent_ND))) / len(found)
        return Quantized(vector_ND, jnp.stack(ids, axis=-1), loss_N)

    def vectors(self, ids, state):
        return jnp.concatenate(_parts(self.of, ids, state), axis=-1)

    def statistics(self, latent_ND, ids_NQ, weight_N, state, key):
        parts = jnp.split(latent_ND, self.num_codebooks, axis=-1)
        own_NQ = ids_NQ % self.of.num_codes
        keys = jax.random.split(key, self.num_codebooks)
        return _stacked([
            self.of.statistics(x, own_NQ[:, q, None], weight_N, _nth(state, q), keys[q])
            for q, x in enumerate(parts)
        ])  # fmt: skip

    def update(self, state, statistics):
        return jax.vmap(self.of.update)(state, statistics)


def nearest(latent_ND: Array, codes_KD: Array) -> Array:
    """Ids [N] of the codes at the smallest distance."""
    # |z - c|^2 without |z|^2, which is the same for all codes.
    distance_NK = jnp.sum(jnp.square(codes_KD), axis=-1)[None, :] - 2 * latent_ND @ codes_KD.T
    return jnp.argmin(distance_NK, axis=-1).astype(jnp.int32)


def rotated(latent: Array, vector: Array) -> Array:
    """The vector, as the latent turned and scaled; rotation and scale are constants for gradients
    (Fifty et al. 2024, equation 4)."""
    fixed = jax.lax.stop_gradient
    length = lambda x: jnp.linalg.norm(x, axis=-1, keepdims=True)
    along = lambda x, y: jnp.sum(x * y, axis=-1, keepdims=True)
    short = np.float32(1e-12)
    from_, to = fixed(unit(latent)), fixed(unit(vector))
    between = fixed(unit(from_ + to))
    turned = latent - 2 * along(latent, between) * between + 2 * along(latent, from_) * to
    return turned * fixed(length(vector) / jnp.maximum(length(latent), short))


def _parts(of: Quantizer, ids: Array, state: dict[str, Array]) -> list[Array]:
    """Vectors of ids [..., Q] by codebook, each as `of`."""
    own = ids % of.num_codes
    return [of.vectors(own[..., q, None], _nth(state, q)) for q in range(ids.shape[-1])]


def _is_fresh(state: dict[str, Array]) -> Array:
    """Whether no step has used a code yet."""
    return jnp.sum(state["use"]) == 0


def _stacked(states: list[dict[str, Array]]) -> dict[str, Array]:
    """One dict of arrays with a leading axis over those of the list."""
    return {name: jnp.stack([state[name] for state in states]) for name in states[0]}


def _nth(state: dict[str, Array], q: int) -> dict[str, Array]:
    return {name: value[q] for name, value in state.items()}
