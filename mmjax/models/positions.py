"""Position vectors by the name of the model that has them (`Transformer.position`)."""

from __future__ import annotations

from collections.abc import Mapping

import jax.numpy as jnp
import numpy as np

from mmjax.models import attention
from mmjax.typing import NUM_AXES, Array, Tokens, Vocabulary


def placed(
    tokens: Tokens, frames: Mapping[str, tuple[float, ...]], vocabulary: Vocabulary
) -> Tokens:
    """Tokens whose positions are counted in the frames of their streams (`Transformer.frames`).

    Place i of n is the middle of the i-th of n equal parts of the frame, as in resized pictures:
    (i + 1/2) frame / n - 1/2. Streams without a frame keep their positions.
    """
    if not frames:
        return tokens
    scale_SA = np.ones((len(vocabulary.specs) + 1, NUM_AXES), np.float32)
    for name, frame in frames.items():
        grid = vocabulary.spec(name).grid
        assert grid is not None  # `Transformer.check` has looked
        scale_SA[vocabulary.number(name)] = np.divide(frame, grid)
    scale_BLA = jnp.asarray(scale_SA)[tokens.stream_BL]
    return tokens._replace(position_BLA=(tokens.position_BLA + 0.5) * scale_BLA - 0.5)


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
