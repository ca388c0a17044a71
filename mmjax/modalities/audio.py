"""Sound as patches of a log-mel spectrogram.

Patches in time over all bands, as in Huang et al., "Masked Autoencoders that Listen"; bands on
Slaney's mel scale, as in Radford et al., "Robust Speech Recognition via Large-Scale Weak
Supervision" (Whisper).
"""

from __future__ import annotations

import contextlib
import dataclasses
import fractions
import functools
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import numpy as np

from mmjax.config import ranges
from mmjax.files import confined
from mmjax.modalities import sound
from mmjax.modalities.modality import Modality, Unreadable
from mmjax.typing import Piece, TokenSpec, positions

__all__ = ["Audio", "slaney_edges"]

MAX_FILE = 1 << 30  # bytes of a file named on a command line
PHASE_STEPS, MOMENTUM = 60, 0.99  # of the fast Griffin-Lim algorithm
FIT_STEPS = 30  # of the fit of FFT bins to bands
QUIET = 1e-8  # band power about 65 dB below a full-scale tone: quieter clips are not raised


@dataclasses.dataclass(frozen=True, kw_only=True)
class Audio(Modality):
    """One token per `patch_frames` frames of `num_mels` bands, in decibels below the clip's peak.

    Frame t is a Hann window centred on samples t * hop .. (t + 1) * hop. Band power is taken
    relative to the loudest band of the clip, so that the gain of a recording does not matter,
    clipped at `dynamic_range` dB below it, and mapped to -2..2. Shorter clips are padded with
    silence (-2); longer ones are cut at the end, and the tokens cut are counted.

    Fields:
      sample_rate: of the waveforms, in Hz. seconds: length, rounded up to whole patches.
      num_mels: bands from 0 Hz to half the sample rate.
      window, hop: length and distance of frames, in samples.
      patch_frames: frames of one token.
      dynamic_range: decibels.
      max_samples: limit over all channels of a decoded file or an array; a longer sound counts as
        bad. Only `seconds` of a file are decoded.
      speed_perturbation: largest share by which training slows down or speeds up clips (Ko et al.
        2015), so that few voices sound like many. Codes of the same sounds keep their speed.

    >>> import numpy as np
    >>> audio = Audio(seconds=0.1, num_mels=8)
    >>> piece = audio.encode(np.sin(np.arange(1600, dtype=np.float32)))
    >>> audio.spec("audio").grid, piece.values_LP.shape, audio.decode(piece).shape
    ((3, 1, 1), (3, 32), (12, 8))
    """

    sample_rate: ranges.Count = 16000
    seconds: ranges.Positive = 10.0
    num_mels: ranges.Count = 64
    window: ranges.Count = 400
    hop: ranges.Count = 160
    patch_frames: ranges.Count = 4
    dynamic_range: ranges.Positive = 50.0
    speed_perturbation: ranges.BelowOne = 0.0
    max_samples: Annotated[int, ranges.Range(1, 2**50)] = dataclasses.field(
        default=1 << 26, metadata={"identity": "none"}
    )

    def __post_init__(self):
        ranges.check(self)
        if self.hop > self.window:
            raise ValueError(
                f"Audio: hop={self.hop} is more than window={self.window}, so samples between"
                " frames would be lost; use a hop of at most the window."
            )
        narrowest = _hertz(_mel(self.sample_rate / 2) / (self.num_mels + 1))
        if narrowest < self.sample_rate / self._fft_size:
            most = int(_mel(self.sample_rate / 2) / _mel(self.sample_rate / self._fft_size)) - 1
            raise ValueError(
                f"Audio: num_mels={self.num_mels} has bands narrower than the resolution of"
                f" window={self.window}; use at most {most} bands, or a longer window."
            )

    def spec(self, name: str) -> TokenSpec:
        """One continuous grid stream, along time."""
        tokens = self._num_tokens
        return TokenSpec(
            name=name,
            kind="grid",
            max_tokens=tokens,
            width=self.patch_frames * self.num_mels,
            grid=(tokens, 1, 1),
            piece=(self.patch_frames, self.num_mels, 1),
        )

    def encode(self, value: Any) -> Piece | None:
        """Patches float32 (tokens, patch_frames * num_mels), by frame, band; position (t, 0, 0).

        Args:
          value: waveform (samples,), or (samples, channels) or (channels, samples), whose shorter
            axis is averaged; float, or int16 or int32 of full scale. Or (waveform, its rate), or
            the bytes of a sound file or a video: mixed to one channel by the mean, then resampled.
            None, and a video without sound, are absent.

        Raises ValueError for other types and shapes, NaN and infinity, and its subclass Unreadable
        for bytes that are not a sound file, or of a sound that ends before it should.
        """
        frames, patch = self._num_tokens * self.patch_frames, self.hop * self.patch_frames
        heard = self.heard(value, frames * self.hop / self.sample_rate)
        if heard is None:
            return None
        samples, total = heard
        num_cut = max(0, -(-(total - frames * self.hop) // patch))
        values = np.full((frames, self.num_mels), -2.0, np.float32)
        level = self._level(samples[: frames * self.hop])
        values[: len(level)] = level
        values_LP = values.reshape(self._num_tokens, -1)
        return Piece(positions((self._num_tokens, 1, 1)), values_LP=values_LP, num_cut=num_cut)

    @property
    def is_augmented(self) -> bool:
        """Whether training plays clips at several speeds."""
        return self.speed_perturbation > 0

    def augment(self, piece: Piece, rng: np.random.Generator) -> Piece:
        """Plays at 1 / (1 + speed_perturbation) .. 1 + speed_perturbation times the speed."""
        speed = (1 + self.speed_perturbation) ** rng.uniform(-1, 1)
        values = np.asarray(piece.values_LP)
        level = self.at_speed(values.reshape(-1, self.num_mels), speed)
        return piece._replace(values_LP=level.reshape(values.shape))

    def at_speed(self, level: np.ndarray, speed: float) -> np.ndarray:
        """Levels in -2..2 (frames, num_mels) of a clip that is played at this speed.

        Length and pitch change together, as on a turntable. Frames and bands are interpolated,
        which is cheaper than resampling the waveform; silence follows the end, and bands beyond the
        highest are as loud as it is.
        """
        level = np.concatenate([level, np.full((1, self.num_mels), -2, np.float32)])
        frames = np.minimum(np.arange(len(level) - 1) * speed, len(level) - 1)
        centres = self.edges[1:-1]
        bands = np.interp(centres / speed, centres, np.arange(self.num_mels))
        return _between(_between(level, frames).T, bands).T

    def measure(self, value: Any) -> dict[str, float]:
        """Length in seconds, and the share of the slots that it fills; nothing is decoded."""
        seconds = float(self._seconds(value))
        slots = self._num_tokens * self.patch_frames * self.hop / self.sample_rate
        return {"seconds": seconds, "filled": min(1.0, seconds / slots)}

    def adapted(self, value: Any) -> str:
        """The lengths before and after, if a sound is cut."""
        seconds = self._seconds(value)
        most = self._num_tokens * self.patch_frames * self.hop / self.sample_rate
        return f"{seconds:.2f} s are cut to the first {most:.2f} s" if seconds > most else ""

    def decode(self, piece: Piece) -> np.ndarray:
        """Decibels below the loudest band, float32 (frames, num_mels) in -dynamic_range..0."""
        shape = (self._num_tokens, self.patch_frames * self.num_mels)
        if piece.values_LP is None or np.shape(piece.values_LP) != shape:
            raise ValueError(
                f"Audio: decode needs values of shape {shape}; this piece is not of this Audio."
            )
        values = np.clip(np.asarray(piece.values_LP, np.float32), -2.0, 2.0)
        return ((values - 2) * np.float32(self.dynamic_range / 4)).reshape(-1, self.num_mels)

    def waveform(self, decibels: np.ndarray) -> np.ndarray:
        """Samples float32 with a peak of 0.9 that sound like a spectrogram from `decode`.

        Magnitudes of the FFT bins by non-negative least squares from the bands, then phases by the
        fast Griffin-Lim algorithm (Perraudin et al. 2013). Equal input gives equal samples.

        Args:
          decibels: below the loudest band, (frames, num_mels).
        """
        decibels = np.asarray(decibels, np.float32)
        if decibels.ndim != 2 or decibels.shape[1] != self.num_mels:
            raise ValueError(
                f"Audio: waveform needs decibels of shape (frames, {self.num_mels}), not"
                f" {decibels.shape}; give what decode returns."
            )
        magnitude = np.sqrt(self._spectrum(decibels))
        phase = np.exp(2j * np.pi * np.random.default_rng(0).random(magnitude.shape))
        fast = last = magnitude * phase.astype(np.complex64)
        for _ in range(PHASE_STEPS):
            spectrum = self._transform(self._overlap(fast))
            spectrum *= magnitude / np.maximum(np.abs(spectrum), 1e-9)
            fast, last = spectrum + MOMENTUM * (spectrum - last), spectrum
        samples = self._overlap(last)[(self.window - self.hop) // 2 :]
        samples = samples[: len(decibels) * self.hop]
        return (samples * (0.9 / max(np.abs(samples).max(initial=0.0), 1e-9))).astype(np.float32)

    def _spectrum(self, decibels: np.ndarray) -> np.ndarray:
        """Power of FFT bins that give these bands: (frames, fft_size // 2 + 1)."""
        power = np.power(10, decibels / 10)
        power[decibels <= -self.dynamic_range] = 0  # the lowest level stands for silence
        share = self._bands / np.maximum(self._bands.sum(axis=1, keepdims=True), 1e-12)
        spectrum = power @ share.T  # a first guess, refined by multiplicative updates
        top = power @ self._bands.T
        overlap = self._bands @ self._bands.T
        for _ in range(FIT_STEPS):  # Lee and Seung 2001: never negative, error never rises
            spectrum *= top / np.maximum(spectrum @ overlap, 1e-12)
        return spectrum.astype(np.float32)

    def _transform(self, samples: np.ndarray) -> np.ndarray:
        frames = np.lib.stride_tricks.sliding_window_view(samples, self.window)[:: self.hop]
        return np.fft.rfft(frames * self._hann, self._fft_size).astype(np.complex64)

    def _overlap(self, spectrum: np.ndarray) -> np.ndarray:
        """Samples whose frames are closest to these: the inverse of `_transform`."""
        frames = np.fft.irfft(spectrum, self._fft_size)[:, : self.window] * self._hann
        samples = np.zeros((len(frames) - 1) * self.hop + self.window)
        weight = np.zeros_like(samples)
        for i, frame in enumerate(frames):
            samples[i * self.hop :][: self.window] += frame
            weight[i * self.hop :][: self.window] += self._hann**2
        return samples / np.maximum(weight, 1e-3 * weight.max())

    def read(self, item: str) -> np.ndarray:
        """Waveform float32 of a sound file, mixed to one channel, at `sample_rate`.

        Raises ValueError if the file is missing or not a sound.
        """
        try:
            return self.samples(confined.read(item, MAX_FILE))[0]
        except (OSError, confined.Refused, Unreadable) as error:
            raise ValueError(
                f"Audio: {item!r} cannot be read: {error}; give a sound file."
            ) from error

    def write(self, value: Any, stem: str | Path) -> Path:
        """Writes a WAV file (16 bit, one channel) of decibels as `decode` gives, or a waveform.

        Raises ValueError for other arrays.
        """
        import soundfile

        if np.ndim(value) == 2 and np.shape(value)[1] == self.num_mels:
            value = self.waveform(value)
        samples, _ = self.samples(value)
        path = Path(f"{stem}.wav")
        soundfile.write(path, samples.clip(-1, 1), self.sample_rate, subtype="PCM_16")
        return path

    def heard(self, value: Any, seconds: float) -> tuple[np.ndarray, int] | None:
        """As `samples`; None where there is no sound: None, and a video without any."""
        if value is None:
            return None
        try:
            return self.samples(value, seconds)
        except Unreadable as error:
            if error.reason == "no_sound":
                return None
            raise

    def samples(self, value: Any, seconds: float = math.inf) -> tuple[np.ndarray, int]:
        """At least the first `seconds` of a raw value, float32 at `sample_rate`, and how many
        samples it has in all. Raises what `encode` does."""
        if isinstance(value, bytes):
            with _told():
                samples, rate, total = sound.decode(value, seconds, self.max_samples)
            samples = _checked(samples)
        elif isinstance(value, tuple):
            samples, rate = self._array(value[0]), int(value[1])
            total = len(samples)
            if rate not in sound.RATES:
                raise Unreadable("sample_rate", f"Audio: {rate} samples a second")
            if seconds < math.inf:
                samples = samples[: math.ceil((seconds + sound.MARGIN) * rate)]
        else:
            samples = self._array(value)
            return samples, len(samples)
        if rate != self.sample_rate:
            with _told():
                samples = sound.resampled(samples, rate, self.sample_rate, self.max_samples)
            ratio = fractions.Fraction(self.sample_rate, rate)
            total = math.ceil(total * ratio)
        return samples, total

    def _array(self, value: Any) -> np.ndarray:
        """An array as a waveform. Raises ValueError if it is not one."""
        if np.size(value) > self.max_samples:
            raise Unreadable("sound_too_large", f"Audio: {np.size(value)} samples")
        return _checked(value)

    def _seconds(self, value: Any) -> float:
        """Length of a sound; that of a file comes from its header."""
        if isinstance(value, bytes):
            with _told():
                return sound.length(value)
        samples, rate = value if isinstance(value, tuple) else (value, self.sample_rate)
        return len(self._array(samples)) / rate

    def _level(self, samples: np.ndarray) -> np.ndarray:
        """Bands in -2..2 of the frames that touch the samples: float32 (frames, num_mels)."""
        left = (self.window - self.hop) // 2
        count = min(-(-(len(samples) + left) // self.hop), self._num_tokens * self.patch_frames)
        padded = np.zeros(left + len(samples) + self.window, np.float32)
        padded[left : left + len(samples)] = samples
        frames = np.lib.stride_tricks.sliding_window_view(padded, self.window)[:: self.hop][:count]
        spectrum = np.fft.rfft(frames * self._hann, self._fft_size)
        power = spectrum.real**2 + spectrum.imag**2
        # One small product per frame: a large one starts BLAS threads, which compete with the
        # training step for the cores and made this thirty times slower on a busy machine.
        band = (power[:, None, :] @ self._bands)[:, 0]
        band *= np.float32(1 / max(band.max(initial=0.0), QUIET))
        scale = self.dynamic_range / 10  # powers of ten
        np.maximum(band, np.float32(10**-scale), out=band)
        level = np.log10(band) * np.float32(4 / scale) + np.float32(2)
        return np.maximum(level, np.float32(-2))  # the padding's value, despite rounding

    @property
    def _num_tokens(self) -> int:
        frames = math.ceil(round(self.seconds * self.sample_rate) / self.hop)
        return -(-frames // self.patch_frames)

    @property
    def _fft_size(self) -> int:
        return 1 << (self.window - 1).bit_length()

    @functools.cached_property
    def _hann(self) -> np.ndarray:
        """Window whose sum is 2, so that a full-scale tone on a bin has magnitude 1."""
        hann = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(self.window) / self.window)
        return (hann * (2 / hann.sum())).astype(np.float32)

    @functools.cached_property
    def _bands(self) -> np.ndarray:
        """Triangles over FFT bins, each of area 1 in Hz: float32 (fft_size // 2 + 1, num_mels)."""
        bins = np.arange(self._fft_size // 2 + 1)[:, None] * (self.sample_rate / self._fft_size)
        edges = self.edges
        low, centre, high = edges[:-2], edges[1:-1], edges[2:]
        rise, fall = (bins - low) / (centre - low), (high - bins) / (high - centre)
        bands = np.maximum(0, np.minimum(rise, fall)) * (2 / (high - low))
        return bands.astype(np.float32)

    @functools.cached_property
    def edges(self) -> np.ndarray:
        """Band edges in Hz: band i starts at edge i, peaks at i + 1 and ends at i + 2."""
        return slaney_edges(self.num_mels, self.sample_rate / 2)


def slaney_edges(num_mels: int, top: float) -> np.ndarray:
    """Edges in Hz of so many bands from 0 to `top`, evenly spaced on Slaney's scale."""
    return np.array([_hertz(m) for m in np.linspace(0, _mel(top), num_mels + 2)])


def _between(rows: np.ndarray, places: np.ndarray) -> np.ndarray:
    """Rows at fractional places 0 .. len(rows) - 1, interpolated linearly."""
    first = np.minimum(places.astype(np.intp), len(rows) - 2)
    share = (places - first).astype(rows.dtype)[:, None]
    low = rows[first]
    return low + share * (rows[first + 1] - low)


def _mel(hertz: float) -> float:
    """Slaney's scale: linear below 1 kHz, logarithmic above."""
    return 3 * hertz / 200 if hertz < 1000 else 15 + 27 * math.log(hertz / 1000) / math.log(6.4)


def _hertz(mel: float) -> float:
    return 200 * mel / 3 if mel < 15 else 1000 * math.exp((mel - 15) * math.log(6.4) / 27)


@contextlib.contextmanager
def _told() -> Iterator[None]:
    """Errors of the decoder as those of a modality."""
    try:
        yield
    except sound.SoundError as error:
        raise Unreadable(error.reason, f"Audio: {error}") from error


def _checked(value: Any) -> np.ndarray:
    """The waveform as finite float32 (samples,). Raises ValueError if it is not one."""
    samples = np.asarray(value)
    if samples.ndim not in (1, 2):
        raise ValueError(
            f"Audio: an array of shape {samples.shape} is no waveform; give (samples,), or"
            " (samples, channels)."
        )
    if samples.size == 0:
        return np.zeros(0, np.float32)
    if samples.dtype in (np.int16, np.int32):
        samples = samples * np.float32(1 / -float(np.iinfo(samples.dtype).min))
    elif not np.issubdtype(samples.dtype, np.floating):
        raise ValueError(f"Audio: samples of type {samples.dtype}; give float, int16 or int32.")
    if samples.ndim == 2:
        samples = samples.mean(axis=int(samples.shape[0] >= samples.shape[1]))
    samples = samples.astype(np.float32, copy=False)
    if not np.isfinite(samples).all():
        message = "Audio: samples hold NaN or infinity; repair or leave out this example."
        raise Unreadable("not_finite", message)
    return samples
