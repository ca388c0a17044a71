"""Sound of containers that libsndfile does not read (MP4, M4A, WebM, AAC, videos), by PyAV."""

# `mmjax export` copies this file into the folder that it writes: it imports no mmjax.

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator
from typing import Any

import numpy as np

from mmjax.modalities.sound_headers import SoundError
from mmjax.modalities.sound_headers import parts as parts_of

# The codecs of sound that are opened. FFmpeg knows hundreds, many of which few people look after.
CODECS = (
    "aac", "alac", "mp3", "mp3float", "mp2", "mp2float", "opus", "libopus", "vorbis", "flac", "ac3",
    "eac3", "pcm_u8", "pcm_s16le", "pcm_s16be", "pcm_s24le", "pcm_s32le", "pcm_f32le",
)  # fmt: skip
BLOCK = 1 << 16  # samples of one frame; more is no file of an encoder
LAST = 2048  # samples that the last frame of an encoder may add
EXACT = ("mov",)  # containers that say the length of each stream
FULL = {"u1": 128.0, "i2": 2.0**15, "i4": 2.0**31}  # full scale


def format_of(content: bytes) -> str:
    """The container, by FFmpeg's name; empty for all others.

    It is never guessed by FFmpeg, some of whose formats are lists of files and addresses to open.
    """
    if content[4:8] in (b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip"):
        return "mov"
    if content.startswith(b"\x1aE\xdf\xa3"):
        return "matroska"
    if content[:1] == b"\xff" and content[1:2] and content[1] & 0xF6 == 0xF0:
        return "aac"
    if content.startswith(b"RIFF") and content[8:12] == b"AVI ":
        return "avi"
    if content.startswith(b"G") and content[188:189] == b"G":
        return "mpegts"
    if content.startswith(b"OggS") and b"theora" in content[:512]:
        return "ogg"
    return "mpeg" if content.startswith(b"\0\0\x01\xba") else ""


def decode(content: bytes, seconds: float, most: int) -> tuple[np.ndarray, int, int, int]:
    """The first seconds, mixed to one channel; rate, samples in all, and samples that it announces.

    The last is 0 if it does not announce any.
    """
    parts, count, rate, end, error, is_damaged = [], 0, 0, 0.0, None, False
    with _opened(content) as container:
        stream, first = _stream(container)
        for packet in container.demux(stream):
            if packet.size:
                end = max(end, _end(packet))
                is_damaged |= error is not None
            if error or (rate and count >= seconds * rate):
                continue  # only to learn the length
            try:
                frames = packet.decode()
            except _library().FFmpegError as caught:
                error = caught
                continue
            for frame in frames:
                rate, channels = rate or frame.sample_rate, len(frame.layout.channels)
                if frame.sample_rate != rate:
                    raise SoundError("broken_sound", f"its rate changes at sample {count}")
                count += frame.samples
                if count * channels > most:
                    raise SoundError("sound_too_large", f"more than {most} samples")
                parts.append(_mixed(frame, channels))
        said = _announced(container, stream, rate) if rate else 0
    samples = np.concatenate(parts) if parts else np.zeros(0, np.float32)
    if is_damaged and not said:
        raise SoundError("broken_sound", f"it is damaged after sample {count}: {error}")
    if _is_cut(content) and not (rate and count >= seconds * rate):
        raise SoundError("cut_sound", f"its bytes end in the middle, after {count} samples")
    if 0 < said < len(samples) <= said + LAST:
        samples = samples[:said]  # what the encoder added to fill its last frame
    total = said or (round((end - first) * rate) if count >= seconds * rate else 0)
    return samples, rate, max(len(samples), total), said


def _is_cut(content: bytes) -> bool:
    """Whether bytes are missing at the end of a container that tells no length of the sound."""
    kind = format_of(content)
    if kind == "avi":
        return int.from_bytes(content[4:8], "little") + 8 > len(content)
    return kind == "ogg" and parts_of(content)[-1].is_cut


def seconds_of(content: bytes) -> float:
    """Length of the sound; for containers that do not say it, that of their packets."""
    with _opened(content) as container:
        stream, first = _stream(container)
        rate = stream.codec_context.sample_rate or 1
        if said := _announced(container, stream, rate):
            return said / rate
        ends = [_end(packet) for packet in container.demux(stream) if packet.size]
        return max(0.0, max(ends, default=first) - first)


def _end(packet: Any) -> float:
    """The second at which a packet ends; 0 if it does not say so."""
    if packet.pts is None or not packet.time_base:
        return 0.0
    return float((packet.pts + (packet.duration or 0)) * packet.time_base)


def _library() -> Any:
    try:
        import av
    except ImportError as error:
        raise SoundError(
            "needs_media", "this kind of sound needs PyAV: pip install 'mmjax[media]'"
        ) from error
    return av


@contextlib.contextmanager
def _opened(content: bytes) -> Iterator[Any]:
    """An open container. Raises SoundError, also for errors inside the `with` block."""
    av = _library()
    # No other file or address, whatever a container names.
    options = {"protocol_whitelist": "none", "codec_whitelist": ",".join(CODECS)}
    try:
        with av.open(io.BytesIO(content), format=format_of(content), options=options) as container:
            yield container
    except (SoundError, MemoryError):
        raise
    except Exception as error:  # parsers raise anything on broken bytes
        raise SoundError("broken_sound", f"{error}"[:200]) from error


def _stream(container: Any) -> tuple[Any, float]:
    """The stream of sound, and the second at which it starts."""
    if not container.streams.audio:
        raise SoundError("no_sound", "it holds no sound")
    stream = container.streams.audio[0]
    codec = stream.codec_context
    if codec is None or codec.name not in CODECS:
        name = codec.name if codec else "unknown"
        raise SoundError("broken_sound", f"its sound is coded as {name}, which is not read")
    if codec.name == "alac" and int.from_bytes((codec.extradata or b"")[12:16], "big") > BLOCK:
        raise SoundError("sound_too_large", f"frames of more than {BLOCK} samples")
    codec.thread_count = 1  # workers decode in parallel
    return stream, float((stream.start_time or 0) * stream.time_base)


def _announced(container: Any, stream: Any, rate: int) -> int:
    """Samples that the header says the stream has; 0 = it does not say it for this stream."""
    if stream.duration and container.format.name.split(",")[0] in EXACT:
        return round(float(stream.duration * stream.time_base) * rate)
    words = stream.metadata.get("DURATION", "").split(":")
    try:
        hours, minutes, seconds = map(float, words)
        return round((hours * 3600 + minutes * 60 + seconds) * rate)
    except (ValueError, OverflowError):
        return 0


def _mixed(frame: Any, channels: int) -> np.ndarray:
    """The mean of the channels of a frame, float32."""
    values = frame.to_ndarray()
    if not frame.format.is_planar:
        values = values.reshape(-1, channels).T
    scale = FULL.get(values.dtype.str[1:], 1.0)
    values = values.astype(np.float32) - np.float32(128.0 if values.dtype == np.uint8 else 0.0)
    return (values.mean(axis=0) / np.float32(scale)).astype(np.float32)
