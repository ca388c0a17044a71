"""What a tokenizer makes of values: originals over reconstructions, in one picture."""

from __future__ import annotations

import io

import numpy as np
import PIL.Image

from mmjax.report import arrays

__all__ = ["drawn"]

WINDOW, COLUMNS, ROWS = 512, 160, 40  # of a spectrogram of samples
VIDEOS, FRAMES = 4, 4
LEAST = 96  # pixels of a row of pictures


def drawn(originals: np.ndarray, decoded: np.ndarray, is_over_time: bool) -> bytes:
    """A PNG file of originals over reconstructions, enlarged.

    Args:
      originals, decoded: pictures [N, H, W, C], maps [N, H, W] of numbers or ids, vectors [N, W],
        videos [N, T, H, W, C], of which some frames are shown; over time decibels [N, frames,
        bands] or samples [N, I].
    """
    if originals.ndim == 5:
        originals, decoded = (_some_frames(x) for x in (originals, decoded))
    if is_over_time and originals.ndim == 2:
        loudest = max(np.abs(originals).max(), 1e-6)
        originals, decoded = (_decibels(x / loudest) for x in (originals, decoded))
        most = originals.max()
        originals, decoded = originals - most, decoded - most
    shown = _colours(np.stack([originals, decoded]), is_over_time)
    columns = [
        np.concatenate([_framed(one), _framed(other)]) for one, other in zip(*shown, strict=True)
    ]
    pixels = np.concatenate(columns, axis=1)
    image = PIL.Image.fromarray((255 * np.clip(pixels, 0, 1)).astype(np.uint8))
    scale = max(1, LEAST // (pixels.shape[0] // 2))
    image = image.resize((image.width * scale, image.height * scale), PIL.Image.Resampling.NEAREST)
    content = io.BytesIO()
    image.save(content, format="PNG")
    return content.getvalue()


def _some_frames(videos: np.ndarray) -> np.ndarray:
    """Frames of the first few videos side by side, as pictures."""
    count = videos.shape[1]
    which = np.linspace(0, count - 1, min(FRAMES, count)).round().astype(int)
    return np.concatenate(list(np.moveaxis(videos[:VIDEOS, which], 1, 0)), axis=2)


def _decibels(samples_NI: np.ndarray) -> np.ndarray:
    """[N, frames, bands] of samples, bands of equal width up to half of their rate."""
    window = min(WINDOW, samples_NI.shape[1])
    hop = max(window // 4, samples_NI.shape[1] // COLUMNS)
    frames = np.lib.stride_tricks.sliding_window_view(samples_NI, window, axis=1)[:, ::hop]
    power = np.square(np.abs(np.fft.rfft(frames * np.hanning(window + 2)[1:-1])))
    of = max(1, power.shape[2] // ROWS)
    power = power[:, :, : power.shape[2] // of * of].reshape(*power.shape[:2], -1, of).mean(-1)
    return 10 * np.log10(power + 1e-10)


def _colours(values: np.ndarray, is_over_time: bool) -> np.ndarray:
    """RGB in 0..1 [2, N, H, W, 3] of values [2, N, H, W, C], [2, N, H, W] or vectors [2, N, W].

    Pictures are as they are, from -1 on where they are vectors; maps of numbers go from deep blue
    (least) over red to pale yellow, those of ids through hues; of decibels (frames, bands) the
    loudest 50 are shown, low bands at the bottom.
    """
    if values.ndim == 3:  # a stripe each
        values, is_over_time = np.repeat(values[:, :, None], max(values.shape[2] // 8, 1), 2), False
    if values.ndim == 4 and is_over_time:
        bands = np.swapaxes(values, 2, 3)[:, :, ::-1]
        return np.repeat(np.maximum(1 + bands / 50, 0)[..., None], 3, axis=-1)
    if values.ndim == 4 and values.dtype.kind in "iu":
        hue = 2 * np.pi * values / (values.max() + 1)
        return arrays.wheel(np.stack([np.cos(hue), np.sin(hue)], axis=-1), 1.0) / 255
    if values.ndim == 4:
        low, high = np.nanmin(values), np.nanmax(values)
        return arrays.heat((values - low) / max(high - low, 1e-12)) / 255
    values = (values + 1) / 2 if values.min() < 0 else values
    if values.shape[-1] not in (1, 3):
        values = values.mean(axis=-1, keepdims=True)
    return np.broadcast_to(values, (*values.shape[:-1], 3))


def _framed(picture: np.ndarray) -> np.ndarray:
    return np.pad(picture, ((1, 1), (1, 1), (0, 0)), constant_values=0.5)
