"""A selection bias for each modality and expert, carried across steps."""

import dataclasses

import jax
import jax.numpy as jnp

from mmjax.config import ranges
from mmjax.models.routers import Router, Routing


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModalityBias(Router):
    """Top-k of sigmoid scores, each modality balanced over the experts for itself."""

    num_experts_per_tok: ranges.Count = 2
    bias_rate: ranges.NonNegative = 0.01

    def __post_init__(self):
        ranges.check(self)

    def init_state(self, num_experts, num_streams):
        return {"bias": jnp.zeros((num_streams, num_experts))}

    def route(self, x_WTD, logits_WTE, state, stream_WT, valid_WT, key):
        scores_WTE = jax.nn.sigmoid(logits_WTE)
        bias_WTE = state["bias"][jnp.maximum(stream_WT - 1, 0)]
        select_WTE = jax.lax.stop_gradient(scores_WTE) + bias_WTE
        _, expert_WTX = jax.lax.top_k(select_WTE, self.num_experts_per_tok)
        weight_WTX = jnp.take_along_axis(scores_WTE, expert_WTX, axis=-1)
        weight_WTX = weight_WTX / jnp.sum(weight_WTX, axis=-1, keepdims=True)
        return Routing(
            expert_WTX=expert_WTX, weight_WTX=jnp.where(valid_WT[:, :, None], weight_WTX, 0.0)
        )

    def update(self, state, statistics):
        load_ME = statistics["load"][1:]  # row 0 is padding
        fair_M1 = jnp.mean(load_ME, axis=1, keepdims=True)
        return {"bias": state["bias"] + self.bias_rate * jnp.sign(fair_M1 - load_ME)}
