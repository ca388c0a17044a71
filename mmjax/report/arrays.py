"""Pictures of arrays in .npy files: maps, directions, motion, and what runs over time."""

from __future__ import annotations

import io

import numpy as np
import PIL.Image

from mmjax.files import npy

__all__ = ["drawn", "heat", "wheel"]

STOPS = np.array([(20, 16, 60), (106, 30, 110), (190, 55, 84), (243, 134, 46), (252, 245, 180)])
NOTHING = (128, 128, 128, 0)  # transparent, where there is no measurement
MOST = 1 << 22  # elements that are drawn
LEAST = 64  # pixels of the longer side


def drawn(content: bytes) -> tuple[bytes, str] | None:
    """A PNG file of an array, and its range in words; None for what is no map.

    Numbers (H, W), or (H,) as bars, are shown from deep blue (least) over red to pale yellow;
    vectors (H, W, 2), such as flow, by direction as hue and length as saturation; unit vectors
    (H, W, 3), such as normals, as red, green and blue from -1 to 1.
    """
    try:
        array = npy.parsed(content)
    except (ValueError, EOFError, OverflowError):
        return None
    if array.dtype.kind not in "fiub" or not 0 < array.size <= MOST or not 1 <= array.ndim <= 3:
        return None
    array = array.astype(np.float64)
    if array.ndim == 3 and array.shape[2] not in (1, 2, 3):
        return None
    array = array[:, :, 0] if array.ndim == 3 and array.shape[2] == 1 else array
    array = array[None] if array.ndim == 1 else array
    there = np.logical_and.reduce(np.isfinite(np.atleast_3d(array)), axis=2)
    if not there.any():
        return None
    paint = _scalars if array.ndim == 2 else _moves if array.shape[2] == 2 else _signed
    pixels, words = paint(np.where(np.isfinite(array), array, 0.0), there)
    pixels = np.concatenate([pixels, np.full((*there.shape, 1), 255)], 2).astype(np.uint8)
    pixels[~there] = NOTHING
    times = max(1, -(-LEAST // max(there.shape)))
    pixels = pixels.repeat(times, 0).repeat(times, 1)
    file = io.BytesIO()
    PIL.Image.fromarray(pixels, "RGBA").save(file, "PNG")
    return file.getvalue(), words


def heat(share: np.ndarray) -> np.ndarray:
    """Colours in 0..255 (H, W, 3) of shares (H, W), from deep blue over red to pale yellow."""
    place = np.linspace(0, 1, len(STOPS))
    return np.stack([np.interp(share, place, STOPS[:, c]) for c in range(3)], -1)


def wheel(vectors: np.ndarray, most: float) -> np.ndarray:
    """Colours in 0..255 (H, W, 3) of vectors (H, W, 2): direction as hue, of which red is to the
    right, and length as saturation, which is full at `most`."""
    length = np.hypot(vectors[..., 0], vectors[..., 1]) / max(most, 1e-12)
    hue = np.arctan2(vectors[..., 1], vectors[..., 0])[..., None]
    wave = 0.5 + 0.5 * np.cos(hue - 2 * np.pi / 3 * np.arange(3))
    return 255 * (1 - length[..., None] * (1 - wave))


def _scalars(values: np.ndarray, there: np.ndarray) -> tuple[np.ndarray, str]:
    low, high = values[there].min(), values[there].max()
    return heat((values - low) / max(high - low, 1e-12)), f"{low:.3g} to {high:.3g}"


def _moves(vectors: np.ndarray, there: np.ndarray) -> tuple[np.ndarray, str]:
    most = np.hypot(vectors[..., 0], vectors[..., 1])[there].max()
    return wheel(vectors, most), f"up to {most:.3g}"


def _signed(vectors: np.ndarray, there: np.ndarray) -> tuple[np.ndarray, str]:
    del there
    return (vectors.clip(-1, 1) + 1) * 127.5, "-1 to 1 as red, green, blue"
