"""Contrast of three or more views at once: Symile (Saporta et al. 2024)."""

import dataclasses

import jax
import jax.numpy as jnp

from mmjax.objectives import Contrastive, contrastive
from mmjax.typing import Loss


@dataclasses.dataclass(frozen=True, kw_only=True)
class Symile(Contrastive):
    """Contrast of the multilinear product of all views.

    Negatives of an anchor are tuples of the others, each shuffled by itself. A sample that lacks a
    part is no anchor (its weight is 0), and a tuple with an absent part is no negative.
    """

    def losses(self, model, features, batch, key, extra):
        views = sorted(features)
        scale = self.logit_scale(model, views)
        present = {v: contrastive.present(model, batch, (v,)) for v in views}
        flat = {v: contrastive.flat(features[v]) for v in views}
        whole_N = contrastive.present(model, batch, views)
        true = 1.0
        for view in views:
            true = true * flat[view]
        true_N, out = scale * jnp.sum(true, axis=-1), {}
        for number, anchor in enumerate(views):
            negative, exists = 1.0, 1.0
            keys = jax.random.split(jax.random.fold_in(key, number), len(views))
            for other, k in zip(views, keys, strict=True):
                if other != anchor:
                    order = jax.random.permutation(k, len(whole_N))
                    negative, exists = negative * flat[other][order], exists * present[other][order]
            logits_NN = jnp.where(exists[None, :] > 0, scale * flat[anchor] @ negative.T, -1e30)
            logits_NN = jnp.where(jnp.eye(len(whole_N), dtype=bool), true_N[:, None], logits_NN)
            value_N = jax.nn.logsumexp(logits_NN, axis=1) - true_N
            weight_N = whole_N / jnp.maximum(jnp.sum(whole_N), 1.0) / len(views)
            shape = batch.weight_BS.shape
            out[anchor] = Loss(value_N.reshape(shape), weight_N.reshape(shape))
        return out, {"whole": jnp.sum(whole_N)}, {}
