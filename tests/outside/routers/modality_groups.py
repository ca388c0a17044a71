"""Groups of experts by modality, and a learned choice inside a group (MoMa, Lin et al. 2024)."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from mmjax.models.routers import Router, Routing


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModalityGroups(Router):
    """Each token takes the best expert of its stream; `groups` are the experts of each stream."""

    groups: tuple[tuple[int, ...], ...]

    def init_state(self, num_experts, num_streams):
        if len(self.groups) != num_streams:
            raise ValueError(
                f"ModalityGroups: groups={self.groups} must have an entry for each of the"
                f" {num_streams} streams."
            )
        return {}

    def route(self, x_WTD, logits_WTE, state, stream_WT, valid_WT, key):
        is_own_ME = np.zeros((len(self.groups) + 1, logits_WTE.shape[-1]), bool)
        is_own_ME[0] = True  # padding
        for stream, experts in enumerate(self.groups, start=1):
            is_own_ME[stream, list(experts)] = True
        own_WTE = jnp.where(jnp.asarray(is_own_ME)[stream_WT], logits_WTE, -1e30)
        score_WT1, expert_WT1 = jax.lax.top_k(own_WTE, 1)
        weight_WT1 = jnp.where(valid_WT[:, :, None], jax.nn.sigmoid(score_WT1), 0.0)
        return Routing(expert_WTX=expert_WT1, weight_WTX=weight_WT1)
