"""Position vectors by the name of the model that has them (`Transformer.position`)."""

from __future__ import annotations

import jax.numpy as jnp

from mmjax.models import attention
from mmjax.typing import Array


def vectors(position_BLA: Array, width: int, max_wavelength: float, layout: str) -> Array:
    """Fixed position vectors [B, L, D] of `sincos` (ours), `vit_mae` or `whisper`.

    What does not divide into their parts is zero.
    """
    if layout == "sincos":
        return attention.sincos(position_BLA, width, max_wavelength)
    if layout == "vit_mae":  # sines and cosines of the column, then those of the row
        count, steps, axes = width // 4, width // 4, (2, 1)
    else:  # of time, down to the longest wave itself
        count, steps, axes = width // 2, width // 2 - 1, (0,)
    frequency = max_wavelength ** -(jnp.arange(count) / max(steps, 1))
    parts = []
    for axis in axes:
        angle = position_BLA[:, :, axis : axis + 1] * frequency[None, None, :]
        parts += [jnp.sin(angle), jnp.cos(angle)]
    out = jnp.concatenate(parts, axis=-1)
    return jnp.pad(out, ((0, 0), (0, 0), (0, width - out.shape[-1])))
