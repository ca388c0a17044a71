"""Bytes of a sound file to samples: to the end of the bytes, and never cut without a word.

WAV, FLAC, OGG (Vorbis, Opus), MP3, AIFF, AU and CAF by libsndfile; AAC, MP4, WebM and videos by
PyAV.
"""

# `mmjax export` copies this file into the folder that it writes: it imports only its neighbours.

from __future__ import annotations

import contextlib
import fractions
import io
import math
from collections.abc import Iterator
from typing import Any

import numpy as np

from mmjax.modalities.sound_headers import Part, SoundError, parts
from mmjax.modalities.sound_media import decode as decode_media
from mmjax.modalities.sound_media import format_of, seconds_of

RATES = range(1_000, 768_001)  # samples per second of a file
BLOCK = 1 << 20  # samples, over all channels, that are decoded at a time
SAMPLES_A_BYTE = 1 << 16  # a file that claims more is broken
PHASES = 20_000  # of the resampling filter, whose length grows with them
# First bytes of WAV, RF64, W64, FLAC, OGG, AIFF, AU, CAF and MP3; the decoder knows many more.
BEGINNINGS = tuple(b"RIFF RIFX RF64 riff fLaC OggS FORM .snd caff ID3".split())
MARGIN = 0.1  # extra seconds that are decoded, since the resampling filter looks ahead
# A sound may end earlier than announced by this share, or by so many seconds: encoders count
# frames of silence that decoders leave out, and a lost last frame is no lost sound.
SHORT_SHARE, SHORT_SECONDS = 0.05, 0.05


def decode(
    content: bytes, seconds: float = math.inf, most: int = 1 << 26
) -> tuple[np.ndarray, int, int]:
    """The first seconds of a sound file as float32, mixed to one channel; rate, samples in all.

    Raises SoundError, also for more than `most` samples over all channels, and for a sound that
    ends before it should.
    """
    if format_of(content):
        samples, rate, total, said = decode_media(content, seconds + MARGIN, most)
        if rate and rate not in RATES:
            raise SoundError("sample_rate", f"{rate} samples a second")
        if rate:
            _check_end(len(samples), _wanted(seconds, said, rate), rate, None)
    else:
        _check_kind(content)
        pieces, rate, total = [], 0, 0
        for part in parts(content):
            left = seconds - total / rate if rate else seconds
            if left <= 0:
                with _opened(part.content) as file:
                    total += file.frames
                continue
            piece, part_rate, count = _decoded(part, left, most, sum(map(len, pieces)))
            if rate not in (0, part_rate):
                raise SoundError("broken_sound", f"parts of {rate} and {part_rate} Hz, joined")
            pieces, rate, total = [*pieces, piece], part_rate, total + count
        samples = np.concatenate(pieces)
    if not len(samples):
        raise SoundError("empty_sound", "a sound of no samples")
    return samples, rate, total


def length(content: bytes) -> float:
    """Seconds of a sound file, from its headers."""
    if format_of(content):
        return seconds_of(content)
    _check_kind(content)
    total = 0.0
    for part in parts(content):
        with _opened(part.content) as file:
            total += file.frames / part.share / file.samplerate
    return total


def resampled(samples: np.ndarray, rate: int, to: int, most: int = 1 << 26) -> np.ndarray:
    """Samples at another rate. Odd rates are matched to 1e-5 only: the filter grows with them."""
    if rate == to:
        return samples
    if rate not in RATES:
        raise SoundError("sample_rate", f"{rate} samples a second")
    from scipy import signal

    ratio = fractions.Fraction(to, rate)
    if max(ratio.numerator, ratio.denominator) > PHASES:
        ratio = (1 / ratio).limit_denominator(max(1, PHASES * to // max(rate, to))) ** -1
    up, down = ratio.numerator, ratio.denominator
    if len(samples) * up // down > max(most, len(samples)):
        raise SoundError("sound_too_large", f"{len(samples)} samples at {rate} Hz")
    return signal.resample_poly(samples, up, down).astype(np.float32)


def _check_kind(content: bytes) -> None:
    is_mp3 = content[:1] == b"\xff" and content[1:2] >= b"\xe0"
    if not is_mp3 and not content.startswith(BEGINNINGS):
        raise SoundError("broken_sound", "bytes of no known sound format")


@contextlib.contextmanager
def _opened(content: bytes) -> Iterator[Any]:
    """An open sound file. Raises SoundError, also for errors inside the `with` block."""
    import soundfile

    try:
        with soundfile.SoundFile(io.BytesIO(content)) as file:
            if file.samplerate not in RATES:
                raise SoundError("sample_rate", f"{file.samplerate} samples a second")
            if file.frames > SAMPLES_A_BYTE * len(content):
                raise ValueError(f"it claims {file.frames} samples in {len(content)} bytes")
            yield file
    except SoundError:
        raise
    except Exception as error:  # decoders raise anything on broken bytes
        raise SoundError("broken_sound", str(error)) from error


def _decoded(part: Part, seconds: float, most: int, before: int) -> tuple[np.ndarray, int, int]:
    with _opened(part.content) as file:
        rate, channels = file.samplerate, file.channels
        total = round(file.frames / part.share) if part.share else file.frames
        count = min(file.frames, _wanted(seconds, file.frames, rate))
        if (before + count) * channels > most:
            raise SoundError("sound_too_large", f"{before + count} x {channels} samples")
        pieces, step, error = [], max(1, BLOCK // channels), None
        for start in range(0, count, step):
            piece, error = _block(file, min(step, count - start))
            pieces.append(piece.mean(axis=1))
            if len(piece) < min(step, count - start):
                break
    samples = np.concatenate(pieces) if pieces else np.zeros(0, np.float32)
    wanted = _wanted(seconds, total, rate)
    if part.is_cut and len(samples) < (seconds + MARGIN) * rate:
        raise SoundError("cut_sound", f"its bytes end in a frame, after {len(samples)} samples")
    _check_end(len(samples), wanted, rate, error)
    if len(samples) < count:
        total = len(samples)
    return samples, rate, total


def _wanted(seconds: float, total: int, rate: int) -> int:
    return total if seconds == math.inf else min(total, math.ceil((seconds + MARGIN) * rate))


def _block(file: Any, count: int) -> tuple[np.ndarray, Exception | None]:
    """The next samples, float32 [count, channels], and the error that ended them."""
    import soundfile

    out = np.full((count, file.channels), np.nan, np.float32)
    try:
        return file.read(out=out), None
    except soundfile.LibsndfileError as error:
        # FLAC raises at the end of cut bytes; what was decoded before is in `out`.
        missing = np.isnan(out).any(axis=1)
        return out[: int(missing.argmax()) if missing.any() else count], error


def _check_end(count: int, wanted: int, rate: int, error: Exception | None) -> None:
    """Raises SoundError if a sound has far fewer samples than it should."""
    if count and wanted - count <= max(SHORT_SHARE * wanted, SHORT_SECONDS * rate):
        return
    if error:
        raise SoundError("broken_sound", f"after {count} of {wanted} samples: {error}")
    if count < wanted:
        raise SoundError("cut_sound", f"it ends after {count} of {wanted} samples")
