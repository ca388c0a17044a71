"""Cosine routing on a low-dimensional hypersphere (X-MoE, Chi et al. 2022)."""

import dataclasses
import math

import jax
import jax.numpy as jnp

from mmjax.config import ranges
from mmjax.models import SoftmaxTopK


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cosine(SoftmaxTopK):
    """Top-k of softmax(cos(W x, e) / temperature), with a learned temperature."""

    num_experts_per_tok: ranges.Count = 1
    norm_topk_prob: bool = False
    z_loss_weight: ranges.NonNegative = 0.0
    dim: ranges.Count = 4
    temperature: ranges.Positive = 0.07

    def init_params(self, key, width, num_experts):
        first, second = jax.random.split(key)
        projection_DC = jax.random.normal(first, (width, self.dim)) * width**-0.5
        table_CE = jax.random.normal(second, (self.dim, num_experts))
        return {
            "projection": (projection_DC, ("embed", "unsharded")),
            "table": (table_CE, ("unsharded", "unsharded")),
            "log_temperature": (jnp.asarray(math.log(self.temperature)), ()),
        }

    def logits(self, x_WTD, params):
        y_WTC = unit(jnp.matmul(x_WTD, params["projection"]), axis=-1)
        cosine_WTE = jnp.matmul(y_WTC, unit(params["table"], axis=0))
        return cosine_WTE * jnp.exp(-params["log_temperature"])


def unit(x, axis):
    return x * jax.lax.rsqrt(jnp.sum(jnp.square(x), axis=axis, keepdims=True) + 1e-12)
