"""Contrast of three or more views at once (Symile, Saporta et al. 2024)."""

from __future__ import annotations

import dataclasses

from etils import epy

from mmjax.objectives import contrastive
from mmjax.typing import Array, Loss

with epy.lazy_imports():
    import jax
    import jax.numpy as jnp


@dataclasses.dataclass(frozen=True, kw_only=True)
class Symile(contrastive.Contrastive):
    """Contrast of the multilinear product of all views, each of them being the anchor in turn.

        s_ij = scale * sum_d z_a[i, d] prod_{m != a} z_m[pi_m(j), d],  l_i = -log softmax_j(s_i)[i]

    Negatives of an anchor are tuples of the others, each shuffled by itself (`pi_m`); the true
    tuple takes the place of the i-th. A sample that lacks a view is no anchor (its weight is 0),
    and a tuple with an absent view is no negative.

    It learns what only all views together say. Of two views alone their product says little, so
    `Retrieval` from one to another is for `InfoNCE`; candidates are ranked by the product of all.

    >>> from types import SimpleNamespace as Stub
    >>> import jax, jax.numpy as jnp
    >>> model = Stub(head=lambda name, z: (2.0, 0.0), vocabulary=Stub(number=" abc".index))
    >>> present_BSM, weight_BS = jnp.ones((2, 1, 3), bool), jnp.ones((2, 1))
    >>> batch = Stub(identity_BS=jnp.arange(2), present_BSM=present_BSM, weight_BS=weight_BS)
    >>> features = dict.fromkeys("abc", jnp.eye(2)[:, None])
    >>> losses, metrics, _ = Symile().losses(model, features, batch, jax.random.key(0), {})
    >>> sorted(losses), float(metrics["whole"])
    (['a', 'b', 'c'], 2.0)
    """

    def losses(self, model, features, batch, key, extra):
        views = sorted(features)
        scale = self.logit_scale(model, views)
        whole_N = contrastive.present(model, batch, views)
        rows = {v: contrastive.flat(features[v]) for v in views}
        there = {v: contrastive.present(model, batch, (v,)) for v in views}
        true = 1.0
        for view in views:
            true = true * rows[view]
        true_N, losses = scale * jnp.sum(true, axis=-1), {}
        for number, anchor in enumerate(views):
            negative: Array = 1.0
            exists: Array = 1.0
            keys = jax.random.split(jax.random.fold_in(key, number), len(views))
            for other, k in zip(views, keys, strict=True):
                if other != anchor:
                    order = jax.random.permutation(k, len(whole_N))
                    negative, exists = negative * rows[other][order], exists * there[other][order]
            logits_NN = jnp.where(exists[None, :] > 0, scale * rows[anchor] @ negative.T, -1e30)
            logits_NN = jnp.where(jnp.eye(len(whole_N), dtype=bool), true_N[:, None], logits_NN)
            value_N = jax.nn.logsumexp(logits_NN, axis=1) - true_N
            weight_N = whole_N / jnp.maximum(jnp.sum(whole_N), 1.0) / len(views)
            shape = batch.weight_BS.shape
            losses[anchor] = Loss(value_N.reshape(shape), weight_N.reshape(shape))
        return losses, {"whole": jnp.sum(whole_N)}, {}
