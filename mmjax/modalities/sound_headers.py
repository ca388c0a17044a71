"""How long a sound file is, where its header does not say it or is wrong.

libsndfile takes the length of an MP3 file without a Xing header from the bit rate of its first
frame, and of a joined one from its first part; it does not read a FLAC file of unknown length. Here
the frames are counted, which takes no decoding, and the header is set right.
"""

# `mmjax export` copies this file into the folder that it writes: it imports no mmjax.

from __future__ import annotations

import functools
import re
from typing import NamedTuple

BITRATES = {  # kbit/s by MPEG 1 or not and layer, from index 1 on
    (True, 1): (32, 64, 96, 128, 160, 192, 224, 256, 288, 320, 352, 384, 416, 448),
    (True, 2): (32, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384),
    (True, 3): (32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    (False, 1): (32, 48, 56, 64, 80, 96, 112, 128, 144, 160, 176, 192, 224, 256),
    (False, 2): (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
    (False, 3): (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
}
MPEG_RATES = (44100, 48000, 32000)  # of MPEG 1; halved by MPEG 2 and again by MPEG 2.5
FLAC_TAIL = 1 << 22  # bytes in which the last frame of a FLAC file must begin
STREAMED = 0x7FFFF000  # a size from here on, or 0, is what programs write that do not know it


class SoundError(ValueError):
    """A sound that cannot be decoded. `reason` is a short word for counts."""

    def __init__(self, reason: str, detail: str):
        super().__init__(reason, detail)
        self.reason, self.detail = reason, detail

    def __str__(self) -> str:
        return self.detail


class Part(NamedTuple):
    """A file for the decoder.

    `share` is that of the bytes of sound that its header announces and that are there.
    `is_cut`: it ends in the middle of a frame, though nothing says how long it should be.
    """

    content: bytes
    share: float = 1.0
    is_cut: bool = False


def parts(content: bytes) -> list[Part]:
    """The files to decode one after the other, with their lengths in the header."""
    content = content[_id3_end(content) :]
    if content.startswith(b"OggS"):
        return _ogg(content)
    if content.startswith(b"fLaC"):
        ends = [m.start() for m in re.finditer(rb"fLaC[\0\x80]\0\0\x22", content)][1:]
        starts = [0, *ends]
        return [Part(_flac(content[a:b])) for a, b in zip(starts, [*ends, None], strict=True)]
    if content.startswith((b"RIFF", b"RIFX", b"RF64", b"FORM", b".snd", b"caff", b"riff")):
        return [_chunks(content)]
    return [Part(_mpeg(content))]


def _id3_end(content: bytes, at: int = 0) -> int:
    """Where ID3 tags that begin at a place end; the place itself if there are none."""
    while content[at : at + 3] == b"ID3" and len(content) >= at + 10:
        a, b, c, d = (byte & 0x7F for byte in content[at + 6 : at + 10])
        footer = 10 if content[at + 5] & 0x10 else 0
        at += 10 + footer + (a << 21 | b << 14 | c << 7 | d)
    return min(at, len(content))


# ------------------------------------------------------------------------------------ MPEG


class _Frame(NamedTuple):
    """What a header of four bytes says."""

    length: int  # bytes
    samples: int
    kind: int  # the bits that all frames of a file share: version, layer, rate


@functools.lru_cache(4096)
def _frame(header: bytes) -> _Frame | None:
    if len(header) < 4 or header[0] != 0xFF or header[1] & 0xE0 != 0xE0:
        return None
    version, layer = header[1] >> 3 & 3, 4 - (header[1] >> 1 & 3)
    index, rate, padding = header[2] >> 4, header[2] >> 2 & 3, header[2] >> 1 & 1
    if version == 1 or layer == 4 or rate == 3 or not 0 < index < 15:
        return None
    is_first = version == 3
    bits = BITRATES[is_first, layer][index - 1] * 1000
    hertz = MPEG_RATES[rate] >> {3: 0, 2: 1, 0: 2}[version]
    kind = version << 8 | layer << 4 | rate
    if layer == 1:
        return _Frame((12 * bits // hertz + padding) * 4, 384, kind)
    samples = 576 if layer == 3 and not is_first else 1152
    return _Frame(samples // 8 * bits // hertz + padding, samples, kind)


def _mpeg(content: bytes) -> bytes:
    """An MP3 file whose header says at least as many frames as there are, with nothing between."""
    at, first = _next(content, 0, 0)
    if first is None or first.kind >> 4 & 15 != 3:  # layers I and II have one bit rate
        return content
    place = at + 4 + _side(content[at : at + 4])
    is_header = content[place : place + 4] in (b"Xing", b"Info")
    said = -1
    if is_header and content[place + 7] & 1:
        said = int.from_bytes(content[place + 8 : place + 12], "big")
    begin = at + first.length if is_header else at
    count, runs = _runs(content, begin, first.kind)
    if count <= said + 1 and len(runs) == 1:
        return content
    return _header(content[at : at + 4], count) + b"".join(content[a:b] for a, b in runs)


def _next(content: bytes, at: int, kind: int) -> tuple[int, _Frame | None]:
    """The next place where a frame begins that another one, or the end, follows."""
    while (at := content.find(b"\xff", at)) >= 0:
        frame = _frame(content[at : at + 4])
        if frame and frame.kind == (kind or frame.kind):
            end = at + frame.length
            after = _frame(content[end : end + 4])
            if end == len(content) or (after and after.kind == frame.kind):
                return at, frame
        at += 1
    return len(content), None


def _runs(content: bytes, at: int, kind: int) -> tuple[int, list[tuple[int, int]]]:
    """The number of whole frames, and where they lie: tags and rubbish may be between them."""
    count, size, begin, runs = 0, len(content), at, []
    while at < size:
        frame = _frame(content[at : at + 4])
        if frame is None or frame.kind != kind:
            runs.append((begin, at))
            begin = _id3_end(content, at)
            other = _frame(content[begin : begin + 4])
            if other and other.kind != kind and _next(content, begin, other.kind)[0] == begin:
                raise SoundError("broken_sound", f"its rate or layer changes after {count} frames")
            begin, frame = _next(content, begin, kind)
            at = begin
            if frame is None:
                return count, runs
        at += frame.length
        count += at <= size
    return count, [*runs, (begin, size)]


def _side(header: bytes) -> int:
    """Bytes of side information, behind which a Xing header lies."""
    is_first, is_mono = header[1] >> 3 & 3 == 3, header[3] >> 6 == 3
    return (17 if is_mono else 32) if is_first else (9 if is_mono else 17)


def _header(like: bytes, count: int) -> bytes:
    """A frame of silence with a Xing header that says the number of frames."""
    head = bytes([0xFF, like[1] | 1, 0xE0 | like[2] & 0x0C, like[3] & 0xF0])
    frame = _frame(head)
    assert frame is not None
    body = head + bytes(_side(head)) + b"Xing" + (1).to_bytes(4, "big") + count.to_bytes(4, "big")
    return body.ljust(frame.length, b"\0")


# ------------------------------------------------------------------------------------ FLAC


def _flac(content: bytes) -> bytes:
    """A FLAC file whose header says how many samples it has."""
    at = 8 + 13  # behind the sizes and the rate of STREAMINFO; 36 bits
    is_said = content[at] & 15 or any(content[at + 1 : at + 5]) if len(content) > at + 21 else True
    if is_said:
        return content
    content = content[:-128] if content[-128:-125] == b"TAG" else content
    total = _flac_total(content)
    if not total:
        raise SoundError("cut_sound", "its bytes end in a frame, and its header says no length")
    said = bytes([content[at] & 0xF0 | total >> 32 & 15]) + (total & 0xFFFFFFFF).to_bytes(4, "big")
    return content[:at] + said + content[at + 5 :]


def _flac_total(content: bytes) -> int:
    """Samples up to the end of the last frame; 0 = none ends where the bytes do."""
    block, low = int.from_bytes(content[8:10], "big"), max(0, len(content) - FLAC_TAIL)
    at = len(content)
    while (at := content.rfind(b"\xff", low, at)) >= 0:
        end = _flac_end(content[at : at + 17], block)
        if end and _crc16(content[at:]) == 0:
            return end
    return 0


def _flac_end(head: bytes, block: int) -> int:
    """The number of the sample after a frame; 0 if no frame begins here."""
    if len(head) < 6 or head[1] & 0xFE != 0xF8 or head[3] & 1 or head[3] >> 4 > 10:
        return 0
    size, rate = head[2] >> 4, head[2] & 15
    length = next((n for n in range(8) if not head[4] << n & 0x80), 8)  # as in UTF-8
    if length in (1, 8) or not size or rate == 15:
        return 0
    number = head[4] & (0x7F >> length) if length else head[4]
    at = 4 + max(1, length)
    for byte in head[5:at]:
        number = number << 6 | byte & 0x3F
    if size in (6, 7):
        samples = 1 + int.from_bytes(head[at : at + size - 5], "big")
        at += size - 5
    else:
        samples = 192 if size == 1 else 576 << size - 2 if size < 6 else 256 << size - 8
    at += {12: 1, 13: 2, 14: 2}.get(rate, 0)
    if at >= len(head) or _crc8(head[:at]) != head[at]:
        return 0
    return (number if head[1] & 1 else number * block) + samples


def _crc8(content: bytes) -> int:
    value = 0
    for byte in content:
        value ^= byte
        for _ in range(8):
            value = (value << 1 ^ 0x07 if value & 0x80 else value << 1) & 0xFF
    return value


@functools.cache
def _crc16_table() -> list[int]:
    table = []
    for byte in range(256):
        value = byte << 8
        for _ in range(8):
            value = (value << 1 ^ 0x8005 if value & 0x8000 else value << 1) & 0xFFFF
        table.append(value)
    return table


def _crc16(content: bytes) -> int:
    value, table = 0, _crc16_table()
    for byte in content:
        value = (value << 8 & 0xFFFF) ^ table[value >> 8 ^ byte]
    return value


# ------------------------------------------------------------------------------------- Ogg


def _ogg(content: bytes) -> list[Part]:
    """The streams of an Ogg file that follow one another, of which decoders take the first."""
    starts, at, is_head, is_cut = [], 0, False, False
    while at >= 0 and len(content) >= at + 27:
        count = content[at + 26]
        is_first = bool(content[at + 5] & 2)
        if is_first and not is_head:
            starts.append(at)
        is_head = is_first
        end = at + 27 + count + sum(content[at + 27 : at + 27 + count])
        is_cut = end > len(content) or len(content) < at + 27 + count
        at = end if content[end : end + 4] == b"OggS" else content.find(b"OggS", end)
    ends = [*starts[1:], len(content)]
    found = [Part(content[a:b]) for a, b in zip(starts, ends, strict=True)] or [Part(content)]
    return [*found[:-1], found[-1]._replace(is_cut=is_cut)]


# ----------------------------------------------------------------------------- uncompressed


def _chunks(content: bytes) -> Part:
    """A WAV, RF64, W64, AIFF, AU or CAF file, which says how many bytes of samples it has.

    libsndfile takes those that are there, without a word about the others.
    """
    number = functools.partial(int.from_bytes, byteorder="little")
    if content.startswith(b".snd"):
        size, begin = int.from_bytes(content[8:12], "big"), int.from_bytes(content[4:8], "big")
    elif content.startswith(b"riff"):
        size, begin = number(content[16:24]), 0
    else:
        begin, size, at = _data(content)
        is_unknown = size == 0 and content[:4] == b"RIFF" and number(content[4:8]) + 8 < begin
        if is_unknown and begin < len(content):
            return Part(content[:at] + b"\xff\xff\xff\xff" + content[at + 4 :])
    there = len(content) - begin
    if size <= there or size in (0xFFFFFFFF, 2**64 - 1) or STREAMED <= size < 2**32:
        return Part(content)
    return Part(content, share=max(there, 0) / size)


def _data(content: bytes) -> tuple[int, int, int]:
    """Where the samples begin, their bytes, and where that is said; nothing if it is not."""
    is_caf = content.startswith(b"caff")
    order = "little" if content.startswith((b"RIFF", b"RF64")) else "big"
    at, width, large = (8, 8, 0) if is_caf else (12, 4, 0)
    while 0 <= at + 4 + width <= len(content):
        name, size = content[at : at + 4], int.from_bytes(content[at + 4 : at + 4 + width], order)
        begin = at + 4 + width
        if name == b"ds64":
            large = int.from_bytes(content[begin + 8 : begin + 16], order)
        if name in (b"data", b"SSND"):
            return begin, large if large and size == 0xFFFFFFFF else size, at + 4
        at = begin + size + (0 if is_caf else size & 1)
    return 0, 0, 0
