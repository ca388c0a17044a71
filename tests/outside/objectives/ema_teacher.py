"""Contrast with a slowly moving copy of the model: MoCo v3 (Chen et al. 2021)."""

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx

from mmjax.models.block import add_records
from mmjax.objectives import InfoNCE, contrastive
from mmjax.objectives.objective import Extra
from mmjax.typing import Loss


@dataclasses.dataclass(frozen=True, kw_only=True)
class EmaTeacher(InfoNCE):
    """Each view against the teacher's vectors of the other; the teacher gets no gradient."""

    decay: float = 0.9

    def extra(self):
        return {"ema_teacher": Extra(init=_copy, update=_Move(self.decay), clock="step")}

    def losses(self, model, features, batch, key, extra):
        graph, _, rest = nnx.split(model, nnx.Param, ...)
        teacher = nnx.merge(graph, jax.lax.stop_gradient(extra["ema_teacher"]), rest)
        slots, views = batch.identity_BS.shape[1], sorted(features)
        aims, record = {}, {}
        for view in views:
            z_BSD, more = self.represent(teacher, batch.views[view], view, slots)
            aims[view], record = contrastive.flat(z_BSD), add_records(record, more)
        present_N = contrastive.present(model, batch, views)
        identity_N = batch.identity_BS.reshape(-1)
        same_NN = identity_N[:, None] == identity_N[None, :]
        scale, shape, losses = self.logit_scale(model, views), batch.weight_BS.shape, {}
        for a, b in (views, views[::-1]):
            logits_NN = scale * self.similarity(contrastive.flat(features[a]), aims[b])
            value_N = contrastive.info_nce(logits_NN, same_NN, present_N)
            weight_N = present_N / jnp.maximum(jnp.sum(present_N), 1.0) / 2
            losses[f"{a}_to_{b}"] = Loss(value_N.reshape(shape), weight_N.reshape(shape))
        record = {n: x for n, x in record.items() if not n.startswith("aux_loss")}
        return losses, {}, jax.lax.stop_gradient(record)


def _copy(params):
    return jax.tree.map(jnp.asarray, params)


@dataclasses.dataclass(frozen=True)
class _Move:
    """Two tasks may share the teacher when they agree on its decay."""

    decay: float

    def __call__(self, teacher, params, features, batch):
        return jax.tree.map(lambda t, p: self.decay * t + (1 - self.decay) * p, teacher, params)
