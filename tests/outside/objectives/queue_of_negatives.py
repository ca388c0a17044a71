"""Contrast with vectors of earlier batches: a queue, as in MoCo (He et al. 2020)."""

import dataclasses

import jax
import jax.numpy as jnp

from mmjax.objectives import InfoNCE, contrastive
from mmjax.objectives.objective import Extra
from mmjax.typing import Loss


@dataclasses.dataclass(frozen=True, kw_only=True)
class Queue(InfoNCE):
    """InfoNCE of two views whose candidates are the batch and the `size` samples before it.

    Fields:
      names: of the two views, sorted. size: samples. width: of the shared space.
    """

    names: tuple[str, str]
    size: int = 64
    width: int = 16

    def extra(self):
        start = _Start(self.names, self.size, self.width)
        return {"queue": Extra(init=start, update=_push, clock="task")}

    def losses(self, model, features, batch, key, extra):
        queue, views = extra["queue"], self.names
        present_N = contrastive.present(model, batch, views)
        identity_N, shape = batch.identity_BS.reshape(-1), batch.weight_BS.shape
        same_NC = jnp.concatenate([
            identity_N[:, None] == identity_N[None, :],
            identity_N[:, None] == queue["identity"][None, :],
        ], axis=1)  # fmt: skip
        there_C = jnp.concatenate([present_N, queue["there"]])
        scale, losses = self.logit_scale(model, views), {}
        for a, b in (views, views[::-1]):
            old_QD = jax.lax.stop_gradient(queue[b])
            candidates_CD = jnp.concatenate([contrastive.flat(features[b]), old_QD])
            logits_NC = scale * self.similarity(contrastive.flat(features[a]), candidates_CD)
            logits_NC = jnp.where(there_C[None, :] > 0, logits_NC, -1e30)
            positive_NC = jnp.where(same_NC, logits_NC, -1e30)
            value_N = jax.nn.logsumexp(logits_NC, axis=1) - jax.nn.logsumexp(positive_NC, axis=1)
            value_N = jnp.where(present_N > 0, value_N, 0.0)
            weight_N = present_N / jnp.maximum(jnp.sum(present_N), 1.0) / 2
            losses[f"{a}_to_{b}"] = Loss(value_N.reshape(shape), weight_N.reshape(shape))
        return losses, {"queued": jnp.sum(queue["there"])}, {}


@dataclasses.dataclass(frozen=True)
class _Start:
    names: tuple[str, str]
    size: int
    width: int

    def __call__(self, params):
        del params
        empty = {name: jnp.zeros((self.size, self.width)) for name in self.names}
        none = {"identity": jnp.full((self.size,), -1, jnp.int32), "there": jnp.zeros(self.size)}
        return {**empty, **none}


def _push(queue, params, features, batch):
    del params
    there_N = (batch.weight_BS.reshape(-1) > 0).astype(jnp.float32)
    for z_BSD in features.values():  # an absent view is a zero vector
        there_N = jnp.where(jnp.any(contrastive.flat(z_BSD) != 0, axis=-1), there_N, 0.0)
    new = {name: contrastive.flat(z_BSD) for name, z_BSD in features.items()}
    new |= {"identity": batch.identity_BS.reshape(-1), "there": there_N}
    return {name: jnp.concatenate([x, queue[name]])[: len(queue[name])] for name, x in new.items()}
