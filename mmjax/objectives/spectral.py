"""Distance of sounds by their spectra at several resolutions: samples that are a little late are
far apart, but sound alike.

Letters here: I samples, J frames, W samples of a window, F frequencies.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from etils import epy

from mmjax.typing import Array

with epy.lazy_imports():
    import jax.numpy as jnp

FLOOR = 1e-3  # magnitude that adds to all: 60 dB below that of noise of variance 1


def distance(decoded_BI: Array, value_BI: Array, windows: Sequence[int]) -> Array:
    """[B]: mean over windows, frames and frequencies of |S - T| + |log S - log T|, with magnitudes
    S and T of the two (Engel et al. 2020, DDSP, arXiv 2001.04643; resolutions as of Yamamoto et al.
    2019, arXiv 1910.11480)."""
    total_B = jnp.zeros(len(value_BI))
    for window in windows:
        made, wanted = (magnitudes(x, window) for x in (decoded_BI, value_BI))
        error = jnp.abs(made - wanted) + jnp.abs(jnp.log(made) - jnp.log(wanted))
        total_B += jnp.mean(error, axis=(1, 2)) / len(windows)
    return total_B


def magnitudes(samples_BI: Array, window: int) -> Array:
    """[B, J, F] of Hann windows, each a quarter of its length after the one before; those of noise
    of variance 1 are about 1, whatever the window."""
    hop = window // 4
    samples_BI = samples_BI.astype(jnp.float32)
    rest = -samples_BI.shape[1] % hop
    padded = jnp.pad(samples_BI, ((0, 0), (window // 2, window // 2 + rest)))
    quarters = padded.reshape(len(padded), -1, hop)
    count = quarters.shape[1] - 3
    frames_BJW = jnp.concatenate([quarters[:, i : i + count] for i in range(4)], axis=-1)
    hann_W = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(window) / window)
    hann_W /= np.sqrt(np.sum(np.square(hann_W)))
    spectrum = jnp.fft.rfft(frames_BJW * jnp.asarray(hann_W, jnp.float32)[None, None])
    # The root of 0 has no gradient, but that of the floor has.
    return jnp.sqrt(jnp.square(spectrum.real) + jnp.square(spectrum.imag) + FLOOR**2)
