"""Pictures, sounds and texts that would take too much memory or time, and what the largest take."""

from __future__ import annotations

import io
import re
import struct
import zlib

import numpy as np
import peak
import PIL.Image
import pytest
import soundfile

from mmjax.modalities import image, text
from mmjax.modalities import sound as sound_lib
from mmjax.modalities.audio import Audio
from mmjax.modalities.image import Image
from mmjax.modalities.modality import Unreadable
from mmjax.modalities.text import Text
from mmjax.tokenizers.sentencepiece import SentencePiece

NOISE = np.random.default_rng(0).integers(0, 256, (70, 90, 4)).astype(np.uint8)


def file(picture, kind="PNG", **options) -> bytes:
    if isinstance(picture, np.ndarray):
        picture = PIL.Image.fromarray(picture)
    out = io.BytesIO()
    picture.save(out, kind, **options)
    return out.getvalue()


def reason(modality, value) -> str:
    with pytest.raises(Unreadable) as caught:
        modality.encode(value)
    return caught.value.reason


# ---------------------------------------------------------------------------- pictures


def chunk(kind: bytes, content: bytes) -> bytes:
    return (
        struct.pack(">I", len(content)) + kind + content
        + struct.pack(">I", zlib.crc32(kind + content))
    )  # fmt: skip


def png(width: int, height: int, content: bytes | None = None) -> bytes:
    """A gray picture of one colour, whole, whatever its shape."""
    head = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    packer = zlib.compressobj(1)
    row = bytes(width + 1)
    rows = b"".join(packer.compress(row) for _ in range(height)) + packer.flush()
    body = rows if content is None else content
    return (b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", body)
            + chunk(b"IEND", b""))  # fmt: skip


@pytest.mark.fault(
    "an image of more than max_pixels", "the record is bad (image_too_large), by its header alone"
)
def test_images_of_too_many_pixels_are_refused():
    small = Image(size=(8, 8), patch=4, max_pixels=6300)
    assert small.encode(file(NOISE[:, :90])) is not None  # 70 x 90
    for kind in ("PNG", "WEBP", "TIFF", "BMP", "GIF"):
        picture = PIL.Image.fromarray(NOISE).convert("RGB").resize((91, 70))
        assert reason(small, file(picture, kind)) == "image_too_large"
    assert reason(small, np.zeros((70, 91, 3), np.uint8)) == "image_too_large"
    assert reason(small, np.zeros((70, 91), np.float32)) == "image_too_large"
    assert reason(Image(), png(6000, 6000, b"no pixel of it")) == "image_too_large"
    with pytest.raises(ValueError, match="max_pixels=0 must be a whole number from 1"):
        Image(max_pixels=0)


@pytest.mark.fault(
    "an image of extreme proportions, whose filter would take gigabytes",
    "the record is bad (image_too_large)",
)
@pytest.mark.parametrize("shape", [(1, 4_000_000), (4_000_000, 1), (1, 100_000)])
def test_images_of_extreme_proportions_are_refused(shape):
    assert reason(Image(), png(*shape)) == "image_too_large"
    assert reason(Image(), np.zeros(shape, np.uint8)) == "image_too_large"


def test_long_strips_are_read():
    for shape in ((1, 30_000), (30_000, 1), (65_536, 3)):
        assert np.isfinite(Image().encode(png(*shape)).values_LP).all()
    tall = Image(size=(1024, 1024), patch=16)
    assert reason(tall, png(3, 65_000)) == "image_too_large"  # would become 1024 columns wide


@pytest.mark.fault(
    "a JPEG of hundreds of scans, which takes minutes to decode",
    "the record is bad (image_too_large)",
)
def test_jpegs_of_many_scans_are_refused():
    content = file(NOISE[:, :, :3], "JPEG", progressive=True)
    last = [m.start() for m in re.finditer(rb"\xff\xda", content)][-1]
    scan = content[last:-2]
    many = content[:-2] + scan * 100 + content[-2:]
    assert image._scans(content) == 10
    assert Image().encode(content) is not None
    assert reason(Image(), many) == "image_too_large"
    # Markers in what a camera adds, before or behind the picture, are no scans.
    behind = content + b"\xff\xda" * 1000
    notes = content[:2] + b"\xff\xe5" + struct.pack(">H", 2002) + b"\xff\xda" * 1000 + content[2:]
    for good in (behind, notes):
        np.testing.assert_array_equal(Image()._pixels(good), Image()._pixels(content))


@pytest.mark.parametrize("mode", ["L", "LA", "RGB", "RGBA", "P", "1", "I;16", "CMYK", "turned"])
@pytest.mark.parametrize("resize", ["stretch", "crop"])
def test_strips_give_what_the_whole_gives(mode, resize, monkeypatch):
    picture, options = PIL.Image.fromarray(NOISE), {}
    if mode == "I;16":
        picture = PIL.Image.fromarray(NOISE[:, :, 0].astype(np.uint16) * 251)
    elif mode == "turned":
        options["exif"] = PIL.Image.Exif()
        options["exif"][0x0112] = 6
    elif mode != "RGBA":
        picture = picture.convert("RGB").convert(mode)
    content = file(picture, "TIFF" if mode == "CMYK" else "PNG", **options)
    for size, channels in (((32, 48), 3), ((200, 40), 3), ((70, 90), 3), ((16, 16), 1)):
        modality = Image(size=size, patch=2, channels=channels, resize=resize)
        monkeypatch.setattr(image, "STRIP", 1 << 20)
        whole, pixels = modality.encode(content), modality._pixels(content)
        as_array = modality.encode(pixels)
        monkeypatch.setattr(image, "STRIP", 500)
        np.testing.assert_array_equal(modality.encode(content).values_LP, whole.values_LP)
        np.testing.assert_array_equal(modality._pixels(content), pixels)
        np.testing.assert_array_equal(modality.encode(pixels).values_LP, as_array.values_LP)
        np.testing.assert_array_equal(as_array.values_LP, whole.values_LP)


SIDE = 5792  # squared it is the default of max_pixels, nearly
# Kind of a file -> bytes a pixel that decoding takes, as the docstring of Image says.
PEAKS = {"PNG": 6, "JPEG": 6, "progressive": 10, "turned": 10, "WEBP": 18}


@pytest.mark.ci
@pytest.mark.parametrize("kind", PEAKS)
def test_the_largest_images_take_what_is_said(kind, tmp_path):
    small = PIL.Image.fromarray(NOISE)
    picture, options = small.resize((SIDE, SIDE)), {}
    if kind in ("JPEG", "progressive"):
        picture, options = picture.convert("RGB"), {"progressive": kind == "progressive"}
    elif kind == "turned":
        options = {"exif": PIL.Image.Exif(), "compress_level": 1}
        options["exif"][0x0112] = 6
    elif kind == "PNG":
        options = {"compress_level": 1}
    else:
        options = {"method": 0, "quality": 30}
    name = {"progressive": "JPEG", "turned": "PNG"}.get(kind, kind)
    picture.save(tmp_path / "large", name, **options)
    (tmp_path / "small").write_bytes(file(small, "PNG"))
    before = f"""
from mmjax.modalities.image import Image
content = open({str(tmp_path / "large")!r}, "rb").read()
Image().encode(open({str(tmp_path / "small")!r}, "rb").read())"""
    megabytes, seconds = peak.of(before, "Image().encode(content)")
    assert megabytes * 2**20 < 1.1 * PEAKS[kind] * SIDE * SIDE
    assert megabytes > SIDE * SIDE * 2 / 2**20, "it was not decoded"
    assert seconds < 60


@pytest.mark.ci
def test_a_huge_image_takes_no_memory(tmp_path):
    (tmp_path / "large").write_bytes(png(40_000, 40_000, b"x" * 1_000_000))
    before = f"""
from mmjax.modalities.image import Image
from mmjax.modalities.modality import Unreadable
import PIL.Image, numpy
content = open({str(tmp_path / "large")!r}, "rb").read()
Image().encode(numpy.zeros((50, 60, 3), numpy.uint8))"""
    code = """
try:
    Image().encode(content)
except Unreadable as error:
    assert error.reason == "image_too_large"
else:
    raise AssertionError"""
    megabytes, seconds = peak.of(before, code)
    assert megabytes < 30
    assert seconds < 2


# ------------------------------------------------------------------------------ sounds


def sound(samples, rate=16000, kind="WAV", **options) -> bytes:
    out = io.BytesIO()
    soundfile.write(out, samples, rate, format=kind, **options)
    return out.getvalue()


CLIP = Audio(seconds=0.2)


@pytest.mark.fault("a sound of more than max_samples", "the record is bad (sound_too_large)")
def test_sounds_of_too_many_samples_are_refused():
    small = Audio(seconds=10.0, max_samples=30_000)
    assert small.encode(sound(np.zeros((15_000, 2)))) is not None
    assert reason(small, sound(np.zeros((15_001, 2)))) == "sound_too_large"
    assert reason(small, np.zeros(30_001, np.float32)) == "sound_too_large"
    assert reason(small, (np.zeros((2, 15_001), np.float32), 8000)) == "sound_too_large"
    with pytest.raises(ValueError, match="max_samples=0 must be a whole number from 1"):
        Audio(max_samples=0)


def test_long_sounds_are_decoded_only_as_far_as_they_are_used():
    small = Audio(seconds=0.2, max_samples=30_000)
    piece = small.encode(sound(np.zeros((200_000, 2))))
    assert piece.num_cut > 0
    assert "12.50 s are cut" in small.adapted(sound(np.zeros((200_000, 2))))  # by its header
    assert "25.00 s are cut" in small.adapted((np.zeros(25_000, np.float32), 1000))


def test_sounds_of_very_many_channels_are_decoded_in_parts(monkeypatch):
    many = np.random.default_rng(0).normal(0, 0.1, (4000, 200)).astype(np.float32)
    content = sound(many, subtype="FLOAT")
    whole = CLIP.encode(content)
    monkeypatch.setattr(sound_lib, "BLOCK", 1000)
    np.testing.assert_array_equal(CLIP.encode(content).values_LP, whole.values_LP)


def flac_claims(total: int) -> bytes:
    """A whole FLAC file whose header says another number of samples (36 bits)."""
    content = bytearray(sound(np.zeros(8000), kind="FLAC"))
    assert content[:4] == b"fLaC"
    at = 8 + 13  # behind the sizes and the rate
    content[at] = content[at] & 0xF0 | total >> 32
    content[at + 1 : at + 5] = (total & 0xFFFFFFFF).to_bytes(4, "big")
    return bytes(content)


@pytest.mark.fault(
    "a sound whose header claims hours that its bytes cannot hold",
    "the record is bad (broken_sound)",
)
def test_sounds_that_claim_more_than_they_can_hold_are_refused():
    assert CLIP.encode(flac_claims(8000)) is not None
    assert reason(CLIP, flac_claims((1 << 36) - 1)) == "broken_sound"
    wav = bytearray(sound(np.zeros(4000), subtype="PCM_16"))
    wav[40:44] = b"\xf0\xff\xff\x7f"  # of the samples; the decoder takes those that are there
    assert CLIP.encode(bytes(wav)) is not None
    wav[22:24] = b"\xff\xff"  # channels
    assert reason(CLIP, bytes(wav)) == "broken_sound"


@pytest.mark.fault(
    "a sound of an absurd rate, be it of a file or of features.json",
    "the record is bad (sample_rate)",
)
@pytest.mark.parametrize("rate", [0, -1, 1, 999, 768_001, 1 << 40])
def test_absurd_rates_are_refused(rate):
    assert reason(CLIP, (np.zeros(4000, np.float32), rate)) == "sample_rate"
    if 0 < rate < 1 << 31:
        wav = bytearray(sound(np.zeros(4000)))
        wav[24:28] = rate.to_bytes(4, "little")
        assert reason(CLIP, bytes(wav)) == "sample_rate"


@pytest.mark.ci
@pytest.mark.fault(
    "a sound of a rate that shares no factor with ours, whose filter would take a gigabyte",
    "it is resampled by a near ratio, to a hundred-thousandth",
)
@pytest.mark.parametrize("rate", [767_957, 44_101, 1009])
def test_odd_rates_take_little_memory(rate):
    before = f"""
import numpy
from mmjax.modalities.audio import Audio
clip = Audio(seconds=4.0)
clip.encode((numpy.zeros(8000, numpy.float32), 8000))
tone = numpy.sin(2 * numpy.pi * 440 * numpy.arange(4 * {rate}) / {rate}).astype(numpy.float32)"""
    megabytes, seconds = peak.of(before, f"clip.encode((tone, {rate}))")
    assert megabytes < 150
    assert seconds < 10


def test_odd_rates_sound_the_same():
    clip = Audio(seconds=0.5)

    def loudest(rate):
        tone = np.sin(2 * np.pi * 440 * np.arange(rate) / rate).astype(np.float32)
        return clip.decode(clip.encode((tone, rate)))[10:30].mean(0).argmax()

    assert len({loudest(rate) for rate in (16_000, 44_101, 191_999, 767_957, 22_051)}) == 1


@pytest.mark.fault(
    "a file of one of the formats that the decoder of sounds knows but nobody asked for",
    "the record is bad (broken_sound), unopened",
)
@pytest.mark.parametrize("kind", ["MAT5", "VOC", "IRCAM", "PVF", "SDS", "SVX", "NIST", "HTK"])
def test_formats_that_nobody_asked_for_are_refused(kind, monkeypatch):
    content = sound(np.zeros(400), kind=kind, subtype="PCM_16")
    if kind == "SVX":  # an IFF file like AIFF, whose first bytes it shares
        assert CLIP.encode(content) is not None
        return
    opened = []
    monkeypatch.setattr(soundfile, "SoundFile", opened.append)
    assert reason(CLIP, content) == "broken_sound"
    assert not opened


@pytest.mark.parametrize("kind", ["WAV", "RF64", "W64", "FLAC", "OGG", "MP3", "AIFF", "AU", "CAF"])
def test_formats_that_are_said_are_read(kind):
    assert CLIP.encode(sound(np.zeros(4000), kind=kind)) is not None


# ------------------------------------------------------------------------------- texts


@pytest.fixture(scope="module")
def words(tmp_path_factory):
    corpus = [f"the quick brown fox {i}" for i in range(50)]
    made = Text(tokenizer=SentencePiece(vocab_size=330, num_sentinels=4), max_tokens=16)
    return made.fit(lambda: corpus, tmp_path_factory.mktemp("text"))


@pytest.mark.fault(
    "a caption of a hundred megabytes, for which a tokenizer would take ten gigabytes",
    "its first million characters are looked at; what is cut is counted",
)
@pytest.mark.parametrize("unit", ["the fox ", "\u00e9\u20ac", "\U0001f600"])
@pytest.mark.parametrize("as_bytes", [True, False])
def test_endless_texts_are_cut(unit, as_bytes, words, monkeypatch):
    monkeypatch.setattr(text, "MAX_TEXT", 5000)
    whole = unit * (40_000 // len(unit))
    full = len(words.tokenizer.encode(whole))
    seen, encode = [], SentencePiece.encode
    monkeypatch.setattr(SentencePiece, "encode", lambda s, x: seen.append(len(x)) or encode(s, x))
    piece = words.encode(whole.encode() if as_bytes else whole)
    np.testing.assert_array_equal(piece.ids_L, words.encode(whole[:200]).ids_L)
    assert max(seen) <= 4 * 5000
    assert piece.num_cut + piece.length == pytest.approx(full + 1, rel=0.01)


@pytest.mark.ci
def test_a_caption_of_fifty_megabytes_takes_little_memory(tmp_path):
    before = f"""
from pathlib import Path
from mmjax.modalities.text import Text
from mmjax.tokenizers.sentencepiece import SentencePiece
words = Text(tokenizer=SentencePiece(vocab_size=330, num_sentinels=4), max_tokens=16)
corpus = [f"the quick brown fox {{i}}" for i in range(50)]
words = words.fit(lambda: corpus, Path({str(tmp_path)!r}))
words.encode("the fox")
caption = b"word " * 10_000_000"""
    megabytes, seconds = peak.of(before, "words.encode(caption)")
    assert megabytes < 400
    assert seconds < 10
