"""Distances of spectra: magnitudes against SciPy, what is far and what is near, gradients."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import signal

from mmjax.modalities.audio import Audio
from mmjax.modalities.waveform import Waveform
from mmjax.objectives import Reconstruction, spectral
from mmjax.typing import Vocabulary


def noise(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


@pytest.mark.parametrize("window", [16, 64])
def test_magnitudes_are_those_of_scipy(window):
    samples = noise(2, 200)
    got = np.asarray(spectral.magnitudes(jnp.asarray(samples), window))
    hann = signal.windows.hann(window, sym=False)
    transform = signal.ShortTimeFFT(hann / np.linalg.norm(hann), window // 4, fs=1)
    # Whole windows, of which the first begins with the first sample: two quarters of padding later.
    frames = (200 - window) // (window // 4) + 1
    want = np.abs(transform.stft(samples, p0=2, p1=2 + frames))
    np.testing.assert_allclose(got[:, 2 : 2 + frames], np.swapaxes(want, 1, 2), atol=2e-3)
    assert np.sqrt(np.mean(np.square(got[:, 4:-4]))) == pytest.approx(1, abs=0.2)


def test_a_late_sound_is_near_and_another_is_far():
    time = np.arange(2000) / 100
    tone, late, other = (np.sin(2 * np.pi * f * (time - d)) for f, d in ((5, 0), (5, 0.1), (9, 0)))
    sounds = jnp.asarray(np.stack([tone, late, other, 0 * tone]), jnp.float32)
    apart = spectral.distance(sounds, sounds[:1].repeat(4, 0), (64, 256))
    assert apart[0] == 0
    assert np.mean(np.square(tone - late)) > np.mean(np.square(tone - other)) * 0.9
    assert 5 * apart[1] < min(apart[2], apart[3])


def test_gradients_are_finite_where_there_is_silence():
    def far(x):
        return jnp.sum(spectral.distance(x, jnp.asarray(noise(1, 256)), (16, 64)))

    for dtype in (jnp.float32, jnp.bfloat16):
        grad = jax.grad(far)(jnp.zeros((1, 256), dtype))
        assert np.isfinite(np.asarray(grad, np.float32)).all()
        assert np.abs(np.asarray(jax.grad(far)(jnp.ones((1, 256), dtype)), np.float32)).max() > 0


@pytest.mark.parametrize(
    ("base", "windows", "message"),
    [
        (Audio(seconds=0.1), (64,), r"spectral=\(64,\), but the pieces of stream 'a' are no sampl"),
        (Waveform(seconds=0.1), (64, 2000), "has 2000, but a window is a multiple of 4 and no"),
        (Waveform(seconds=0.1), (66,), "has 66, but a window is a multiple of 4"),
    ],
)
def test_windows_that_do_not_fit_are_refused(base, windows, message):
    specs = {"a": Vocabulary((base.spec("a"),)).spec("a")}
    task = type("Task", (), {"inputs": ("a",), "targets": ()})
    with pytest.raises(ValueError, match=message):
        Reconstruction(spectral=windows).check(task, specs, ())
    Reconstruction(spectral=(64, 256)).check(task, {"a": Waveform(seconds=0.1).spec("a")}, ())
