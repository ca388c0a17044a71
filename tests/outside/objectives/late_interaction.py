"""Token-wise contrast: FILIP (Yao et al. 2021)."""

import dataclasses

import jax.numpy as jnp

from mmjax.objectives import InfoNCE, objective


@dataclasses.dataclass(frozen=True, kw_only=True)
class LateInteraction(InfoNCE):
    """Each token is compared to the most similar one of the other view, in both directions.

    s(a, b) = mean over i of max over j of a_i . b_j,  averaged over s(a, b) and s(b, a)
    """

    def represent(self, model, tokens, view, num_slots, key=None):
        encoded = model.encode(tokens, lane=self.lane(view), key=key)
        z_BLD = objective.unit(model.head(f"project/{view}", encoded.x_BLD))
        slots = jnp.arange(1, num_slots + 1)[None, :, None]
        member_BSL = (tokens.segment_BL[:, None] == slots) & (tokens.stream_BL > 0)[:, None]
        return jnp.where(member_BSL[..., None], z_BLD[:, None], 0.0), encoded.record

    def similarity(self, a_NX, b_MX):
        a_NLD, b_MKD = jnp.asarray(a_NX), jnp.asarray(b_MX)
        is_a_NL, is_b_MK = jnp.any(a_NLD != 0, axis=-1), jnp.any(b_MKD != 0, axis=-1)
        s_NMLK = jnp.einsum("NLD,MKD->NMLK", a_NLD, b_MKD)
        there = is_a_NL[:, None, :, None] & is_b_MK[None, :, None, :]
        s_NMLK = jnp.where(there, s_NMLK, -1.0)
        forward = _mean(jnp.max(s_NMLK, axis=3), is_a_NL[:, None])
        return 0.5 * (forward + _mean(jnp.max(s_NMLK, axis=2), is_b_MK[None]))


def _mean(x, valid):
    valid = jnp.broadcast_to(valid, x.shape).astype(jnp.float32)
    return jnp.sum(x * valid, axis=-1) / jnp.maximum(jnp.sum(valid, axis=-1), 1.0)
