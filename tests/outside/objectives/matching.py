"""Contrast and matching of the hardest pairs: ALBEF (Li et al. 2021)."""

import dataclasses

import jax
import jax.numpy as jnp

from mmjax.models.embed import Classify
from mmjax.objectives import InfoNCE, contrastive
from mmjax.typing import Loss


@dataclasses.dataclass(frozen=True, kw_only=True)
class Matching(InfoNCE):
    """InfoNCE, and whether a pair belongs together, for the true pairs and one hard negative of
    each sample, drawn in proportion to the similarity."""

    def heads(self, inputs, targets):
        return {**super().heads(inputs, targets), "match": Classify(num_classes=2)}

    def losses(self, model, features, batch, key, extra):
        losses, metrics, record = super().losses(model, features, batch, key, extra)
        a, b = sorted(features)
        a_ND, b_ND = contrastive.flat(features[a]), contrastive.flat(features[b])
        present_N = contrastive.present(model, batch, (a, b))
        identity_N = batch.identity_BS.reshape(-1)
        same_NN = identity_N[:, None] == identity_N[None, :]
        scale = self.logit_scale(model, (a, b))
        logits_NN = jax.lax.stop_gradient(scale * self.similarity(a_ND, b_ND))
        allowed_NN = ~same_NN & (present_N[None, :] > 0)
        hard_N = jax.random.categorical(key, jnp.where(allowed_NN, logits_NN, -1e30), axis=1)
        true = jax.nn.log_softmax(model.head("match", a_ND * b_ND))[:, 1]
        false = jax.nn.log_softmax(model.head("match", a_ND * b_ND[hard_N]))[:, 0]
        value_N = -0.5 * (true + false)
        weight_N = present_N / jnp.maximum(jnp.sum(present_N), 1.0)
        shape = batch.weight_BS.shape
        losses["match"] = Loss(value_N.reshape(shape), weight_N.reshape(shape))
        return losses, metrics, record
