"""Log-mel spectrograms as the encoders of others take them: Whisper, AST."""

from __future__ import annotations

import dataclasses
import functools
import math
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import numpy as np

from mmjax.config import ranges
from mmjax.modalities import given, maps
from mmjax.modalities.audio import Audio, slaney_edges
from mmjax.modalities.modality import Modality
from mmjax.typing import Piece, TokenSpec, positions

__all__ = ["LogMel"]

RATE, WINDOW, HOP = 16_000, 400, 160  # of both: Hz, samples, samples
FFT = {"whisper": 400, "ast": 512}
FLOOR = {"whisper": 1e-10, "ast": 1.192092955078125e-07}  # least power of a band
DEPTH = 8.0  # powers of ten below its loudest band that Whisper looks at
LOWEST = 20.0  # Hz, the first edge of AST's bands
PREEMPHASIS = 0.97
MEAN, STD = -4.2677393, 4.5689974  # of AST's features over AudioSet


@dataclasses.dataclass(frozen=True, kw_only=True)
class LogMel(Modality):
    """One token per patch of a log-mel spectrogram, in the numbers of Whisper or of AST.

    To start from their weights; `Audio` is what to take otherwise.

    - `whisper` (Radford et al. 2022): 80 bands (128 from large-v3 on), powers of ten below the
      loudest band of the clip, at most 8, as (log10 + 4) / 4. Shorter clips are followed by
      silence before they are analysed.
    - `ast` (Gong et al. 2021): Kaldi's filter banks, 128 bands from 20 Hz on, each frame without
      its mean and with pre-emphasis, as (log + 4.27) / 9.14. Frames after the end are log 1.

    Both have frames of 25 ms each 10 ms. Longer clips are cut at the end, and the tokens counted.

    Fields:
      like: whose features they are.
      seconds: length, rounded up to whole patches; 30 of Whisper, 10.24 of AST.
      num_mels: bands; of AST's 128 some of the lowest are so narrow that they stay empty.
      patch: frames and bands of a token; 0 bands = all.
      max_samples: as of `Audio`.

    >>> import numpy as np
    >>> mel = LogMel(seconds=1.0, patch=(10, 0))
    >>> piece = mel.encode(np.sin(np.arange(8000, dtype=np.float32)))
    >>> mel.spec("audio").grid, piece.values_LP.shape, mel.decode(piece).shape
    ((10, 1, 1), (10, 800), (100, 80))
    """

    like: Literal["whisper", "ast"] = "whisper"
    seconds: ranges.Positive = 30.0
    num_mels: Annotated[int, ranges.Range(1, 200)] = 80
    patch: tuple[ranges.Count, ranges.Natural] = (4, 0)
    max_samples: Annotated[int, ranges.Range(1, 2**50)] = dataclasses.field(
        default=1 << 26, metadata={"identity": "none"}
    )
    is_finite: ClassVar[bool] = True

    def __post_init__(self):
        ranges.check(self)
        if self.like not in FFT:
            raise ValueError(f"LogMel: like={self.like!r} is none of {', '.join(FFT)}.")
        if self.num_mels % (self.patch[1] or self.num_mels):
            raise ValueError(
                f"LogMel: num_mels={self.num_mels} is not divisible by the bands of"
                f" patch={self.patch}; use a divisor, or 0 for all bands."
            )

    def spec(self, name: str) -> TokenSpec:
        """One continuous grid stream: along time, or, of parts of the bands, a picture of time by
        bands."""
        steps, parts = self._grid
        return TokenSpec(
            name=name,
            kind="grid",
            max_tokens=steps * parts,
            width=self.patch[0] * self._bands,
            grid=self._shape,
            piece=(self.patch[0], self._bands, 1),
        )

    def encode(self, value: Any) -> Piece | None:
        """Patches float32 (tokens, frames * bands), by frame, band; position (t, 0, 0), or
        (0, t, band) where a patch has a part of the bands.

        Args:
          value: as of `Audio.encode`. None, and a video without sound, are absent.

        Raises ValueError as `Audio.encode` does.
        """
        frames = self._frames
        with maps.said_by("LogMel", of="Audio"):
            heard = self._audio.heard(value, (frames * HOP + WINDOW) / RATE)
        if heard is None:
            return None
        samples, total = heard
        steps, parts = self._grid
        over = max(0, -(-(total - frames * HOP) // (HOP * self.patch[0])))
        level = self._whisper(samples) if self.like == "whisper" else self._ast(samples)
        values = level.reshape(steps, self.patch[0], parts, self._bands).transpose(0, 2, 1, 3)
        values_LP = np.ascontiguousarray(values.reshape(steps * parts, -1), np.float32)
        return Piece(positions(self._shape), values_LP=values_LP, num_cut=over * parts)

    def measure(self, value: Any) -> dict[str, float]:
        """As of `Audio`."""
        return self._audio.measure(value)

    def adapted(self, value: Any) -> str:
        """As of `Audio`."""
        return self._audio.adapted(value)

    def decode(self, piece: Piece) -> np.ndarray:
        """The features float32 (frames, num_mels), as the other model takes them."""
        steps, parts = self._grid
        shape = (steps * parts, self.patch[0] * self._bands)
        if piece.values_LP is None or np.shape(piece.values_LP) != shape:
            raise ValueError(
                f"LogMel: decode needs values of shape {shape}; this piece is not of this LogMel."
            )
        values = np.asarray(piece.values_LP, np.float32)
        values = values.reshape(steps, parts, self.patch[0], self._bands).transpose(0, 2, 1, 3)
        return values.reshape(self._frames, self.num_mels)

    def read(self, item: str) -> np.ndarray:
        """Waveform float32 of a sound file at 16 kHz. Raises ValueError."""
        with maps.said_by("LogMel", of="Audio"):
            return self._audio.read(item)

    def write(self, value: Any, stem: str | Path) -> Path:
        """An .npy file of features float32 (frames, num_mels)."""
        return given.write_array(value, stem)

    def _whisper(self, samples: np.ndarray) -> np.ndarray:
        """Features (frames, num_mels) of Whisper."""
        side, length = WINDOW // 2, self._frames * HOP
        whole = np.zeros(length + 2 * side)  # with a mirror image at each end
        kept = samples[:length]
        whole[side : side + len(kept)] = kept
        whole[:side] = whole[2 * side : side : -1]
        whole[side + length :] = whole[side + length - 2 : length - 2 : -1]
        level = np.log10(self._power(whole)[: self._frames])
        return (np.maximum(level, level.max() - DEPTH) + 4) / 4

    def _ast(self, samples: np.ndarray) -> np.ndarray:
        """Features (frames, num_mels) of AST."""
        level = np.zeros((self._frames, self.num_mels))
        if len(samples) >= WINDOW:
            found = np.log(self._power(samples.astype(np.float64), PREEMPHASIS))
            level[: len(found)] = found[: self._frames]
        return (level - MEAN) / (2 * STD)

    def _power(self, samples: np.ndarray, emphasis: float = 0.0) -> np.ndarray:
        """Power of bands (frames, num_mels) of all whole frames, at least that of the floor."""
        frames = np.lib.stride_tricks.sliding_window_view(samples, WINDOW)[::HOP]
        if emphasis:
            centred = frames - frames.mean(axis=1, keepdims=True)
            frames = centred * (1 - emphasis)  # of the first sample, which is its own predecessor
            np.subtract(centred[:, 1:], emphasis * centred[:, :-1], out=frames[:, 1:])
        spectrum = np.fft.rfft(frames * self._hann, FFT[self.like])
        power = spectrum.real**2 + spectrum.imag**2
        # One small product a frame, for the reason that `Audio` gives.
        band = (power[:, None, :] @ self._filters)[:, 0]
        return np.maximum(band, FLOOR[self.like])

    @functools.cached_property
    def _audio(self) -> Audio:
        return Audio(seconds=self._frames * HOP / RATE, max_samples=self.max_samples)

    @property
    def _frames(self) -> int:
        return self.patch[0] * math.ceil(round(self.seconds * RATE / HOP, 6) / self.patch[0])

    @property
    def _bands(self) -> int:
        return self.patch[1] or self.num_mels

    @property
    def _grid(self) -> tuple[int, int]:
        return self._frames // self.patch[0], self.num_mels // self._bands

    @property
    def _shape(self) -> tuple[int, int, int]:
        steps, parts = self._grid
        return (steps, 1, 1) if parts == 1 else (1, steps, parts)

    @functools.cached_property
    def _hann(self) -> np.ndarray:
        """The window of Whisper is periodic, that of AST symmetric."""
        period = WINDOW if self.like == "whisper" else WINDOW - 1
        return 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(WINDOW) / period)

    @functools.cached_property
    def _filters(self) -> np.ndarray:
        """Triangles over the bins of the transform, (bins, num_mels)."""
        bins = np.arange(FFT[self.like] // 2 + 1) * (RATE / FFT[self.like])
        if self.like == "whisper":  # of area 1, on Slaney's scale, straight in hertz
            edges = slaney_edges(self.num_mels, RATE / 2)
            return _triangles(bins, edges) * (2 / (edges[2:] - edges[:-2]))
        low, high = _kaldi(np.array([LOWEST, RATE / 2]))
        return _triangles(_kaldi(bins), np.linspace(low, high, self.num_mels + 2))


def _triangles(places: np.ndarray, edges: np.ndarray) -> np.ndarray:
    low, centre, high = edges[:-2], edges[1:-1], edges[2:]
    rise = (places[:, None] - low) / (centre - low)
    fall = (high - places[:, None]) / (high - centre)
    return np.maximum(0, np.minimum(rise, fall))


def _kaldi(hertz: np.ndarray) -> np.ndarray:
    return 1127 * np.log(1 + hertz / 700)
