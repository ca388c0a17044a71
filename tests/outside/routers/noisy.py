"""Noisy top-k gating (Shazeer et al. 2017): noise of a learned scale while it trains."""

import dataclasses

import jax
import jax.numpy as jnp

from mmjax.config import ranges
from mmjax.models.routers import Router, Routing


@dataclasses.dataclass(frozen=True, kw_only=True)
class NoisyTopK(Router):
    """Softmax over the top-k of x W + normal * softplus(x W_noise), and the importance loss."""

    num_experts_per_tok: ranges.Count = 2
    importance_loss_weight: ranges.NonNegative = 0.1

    def __post_init__(self):
        ranges.check(self)

    @property
    def draws(self):
        return True

    def init_params(self, key, width, num_experts):
        noise_DE = jnp.zeros((width, num_experts))
        made = super().init_params(key, width, num_experts)
        return {**made, "noise": (noise_DE, ("embed", "unsharded"))}

    def init_state(self, num_experts, num_streams):
        return {}

    def logits(self, x_WTD, params):
        """Clean logits and scales of noise side by side, [W, T, 2 E]."""
        return jnp.matmul(x_WTD, jnp.concatenate([params["router"], params["noise"]], axis=1))

    def route(self, x_WTD, logits_WTE, state, stream_WT, valid_WT, key):
        logits_WTE, scale_WTE = jnp.split(logits_WTE, 2, axis=-1)
        if key is not None:
            noise_WTE = jax.random.normal(key, logits_WTE.shape)
            logits_WTE = logits_WTE + noise_WTE * jax.nn.softplus(scale_WTE)
        chosen_WTX, expert_WTX = jax.lax.top_k(logits_WTE, self.num_experts_per_tok)
        weight_WTX = jnp.where(valid_WT[:, :, None], jax.nn.softmax(chosen_WTX), 0.0)
        is_chosen_WTXE = jax.nn.one_hot(expert_WTX, logits_WTE.shape[-1])
        importance_E = jnp.einsum("WTX,WTXE->E", weight_WTX, is_chosen_WTXE)
        uneven = jnp.var(importance_E) / (jnp.square(jnp.mean(importance_E)) + 1e-9)
        return Routing(
            expert_WTX=expert_WTX,
            weight_WTX=weight_WTX,
            aux_loss=self.importance_loss_weight * uneven,
        )
