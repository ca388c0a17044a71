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
import io
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import numpy as np

from mmjax.config import ranges
from mmjax.files import confined
from mmjax.modalities.modality import Modality, Unreadable
from mmjax.typing import Piece, TokenSpec, positions

__all__ = ["Audio"]

RATES = range(1_000, 768_001)  # samples per second of a file
BLOCK = 1 << 20  # samples, over all channels, that are decoded at a time
SAMPLES_A_BYTE = 1 << 16  # a file that claims more is broken
PHASES = 20_000  # of the resampling filter, whose length grows with them
MAX_FILE = 1 << 30  # bytes of a file named on a command line
# First bytes of WAV, RF64, W64, FLAC, OGG, AIFF, AU, CAF and MP3; the decoder knows many more.
BEGINNINGS = tuple(b"RIFF RIFX RF64 riff fLaC OggS FORM .snd caff ID3".split())
MARGIN = 0.1  # extra seconds that are decoded, since the resampling filter looks ahead
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
        width = self.patch_frames * self.num_mels
        grid = (tokens, 1, 1)
        return TokenSpec(name=name, kind="grid", max_tokens=tokens, width=width, grid=grid)

    def encode(self, value: Any) -> Piece | None:
        """Patches float32 (tokens, patch_frames * num_mels), by frame, band; position (t, 0, 0).

        Args:
          value: waveform (samples,), or (samples, channels) or (channels, samples), whose shorter
            axis is averaged; float, or int16 or int32 of full scale. Or (waveform, its rate), or
            the bytes of a sound file: mixed to one channel by the mean, then resampled. None =
            absent.

        Raises ValueError for other types and shapes, NaN and infinity, and its subclass Unreadable
        for bytes that are not a sound file.
        """
        if value is None:
            return None
        frames, patch = self._num_tokens * self.patch_frames, self.hop * self.patch_frames
        samples, total = self._samples(value, frames * self.hop / self.sample_rate)
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
        """Changes the speed by a factor in 1 / (1 + speed_perturbation) .. 1 + speed_perturbation.

        Length and pitch change together, as on a turntable. Frames and bands of the piece are
        interpolated, which is cheaper than resampling the waveform; silence follows the end, and
        bands beyond the highest are as loud as it is.
        """
        speed = (1 + self.speed_perturbation) ** rng.uniform(-1, 1)
        values = np.asarray(piece.values_LP)
        level = values.reshape(-1, self.num_mels)
        level = np.concatenate([level, np.full((1, self.num_mels), -2, np.float32)])
        frames = np.minimum(np.arange(len(level) - 1) * speed, len(level) - 1)
        centres = self._edges[1:-1]
        bands = np.interp(centres / speed, centres, np.arange(self.num_mels))
        level = _between(_between(level, frames).T, bands).T
        return piece._replace(values_LP=level.reshape(values.shape))

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
            return self._samples(confined.read(item, MAX_FILE))[0]
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
        samples, _ = self._samples(value)
        path = Path(f"{stem}.wav")
        soundfile.write(path, samples.clip(-1, 1), self.sample_rate, subtype="PCM_16")
        return path

    def _samples(self, value: Any, seconds: float = math.inf) -> tuple[np.ndarray, int]:
        """At least the first `seconds`, at `sample_rate`, and the total number of samples."""
        if isinstance(value, bytes):
            samples, rate, total = _decoded(value, seconds, self.max_samples)
        elif isinstance(value, tuple):
            samples, rate = self._array(value[0]), int(value[1])
            total = len(samples)
            if rate not in RATES:
                raise Unreadable("sample_rate", f"Audio: {rate} samples a second")
            if seconds < math.inf:
                samples = samples[: math.ceil((seconds + MARGIN) * rate)]
        else:
            samples = self._array(value)
            return samples, len(samples)
        if rate != self.sample_rate:
            from scipy import signal

            # Odd rates are matched to 1e-5 only: the filter grows with these numbers.
            most = max(1, PHASES * self.sample_rate // max(rate, self.sample_rate))
            ratio = fractions.Fraction(self.sample_rate, rate)
            if max(ratio.numerator, ratio.denominator) > PHASES:
                ratio = (1 / ratio).limit_denominator(most) ** -1
            up, down = ratio.numerator, ratio.denominator
            if len(samples) * up // down > max(self.max_samples, len(samples)):
                raise Unreadable("sound_too_large", f"Audio: {len(samples)} samples at {rate} Hz")
            samples = signal.resample_poly(samples, up, down).astype(np.float32)
            total = -(-total * up // down)
        return samples, total

    def _array(self, value: Any) -> np.ndarray:
        """An array as a waveform. Raises ValueError if it is not one."""
        if np.size(value) > self.max_samples:
            raise Unreadable("sound_too_large", f"Audio: {np.size(value)} samples")
        return _checked(value)

    def _seconds(self, value: Any) -> float:
        """Length of a sound; that of a file comes from its header."""
        if isinstance(value, bytes):
            with _opened(value) as file:
                return file.frames / file.samplerate
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
        edges = self._edges
        low, centre, high = edges[:-2], edges[1:-1], edges[2:]
        rise, fall = (bins - low) / (centre - low), (high - bins) / (high - centre)
        bands = np.maximum(0, np.minimum(rise, fall)) * (2 / (high - low))
        return bands.astype(np.float32)

    @functools.cached_property
    def _edges(self) -> np.ndarray:
        """Band edges in Hz: band i starts at edge i, peaks at i + 1 and ends at i + 2."""
        top = _mel(self.sample_rate / 2)
        return np.array([_hertz(m) for m in np.linspace(0, top, self.num_mels + 2)])


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
def _opened(content: bytes) -> Iterator[Any]:
    """An open sound file. Raises Unreadable, also for errors inside the `with` block."""
    import soundfile

    is_mp3 = content[:1] == b"\xff" and content[1:2] >= b"\xe0"
    if not is_mp3 and not content.startswith(BEGINNINGS):
        raise Unreadable("broken_sound", "Audio: bytes of no known sound format")
    try:
        with soundfile.SoundFile(io.BytesIO(content)) as file:
            if file.samplerate not in RATES:
                raise Unreadable("sample_rate", f"Audio: {file.samplerate} samples a second")
            if file.frames > SAMPLES_A_BYTE * len(content):
                raise ValueError(f"it claims {file.frames} samples in {len(content)} bytes")
            yield file
    except Unreadable:
        raise
    except Exception as error:  # decoders raise anything on broken bytes
        raise Unreadable("broken_sound", f"Audio: {error}") from error


def _decoded(content: bytes, seconds: float, most: int) -> tuple[np.ndarray, int, int]:
    """The first seconds of a sound file, mixed to one channel; its rate and length in samples.

    Raises Unreadable, also for more than `most` samples over all channels.
    """
    with _opened(content) as file:
        rate, total = file.samplerate, file.frames
        wanted = total if seconds == math.inf else math.ceil((seconds + MARGIN) * rate)
        count = min(total, wanted)
        if count * file.channels > most:
            raise Unreadable("sound_too_large", f"Audio: {count} x {file.channels} samples")
        parts, step = [], max(1, BLOCK // file.channels)
        for start in range(0, count, step):
            part = file.read(min(step, count - start), dtype="float32", always_2d=True)
            parts.append(part.mean(axis=1))
            if len(part) < min(step, count - start):
                break
    samples = np.concatenate(parts) if parts else np.zeros(0, np.float32)
    if not len(samples):
        raise Unreadable("empty_sound", "Audio: a sound of no samples")
    if len(samples) < count:
        raise Unreadable("broken_sound", f"Audio: it ends after {len(samples)} of {count} samples")
    return _checked(samples), rate, total


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
