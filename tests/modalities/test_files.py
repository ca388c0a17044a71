"""Bytes of files at the border of modalities: pictures, sounds and texts of all kinds."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import PIL.Image
import pytest
import soundfile

from mmjax.modalities.audio import Audio
from mmjax.modalities.image import Image
from mmjax.modalities.modality import Unreadable
from mmjax.modalities.text import Text
from mmjax.tokenizers.sentencepiece import SentencePiece

RGB, GRAY = Image(size=(8, 8), patch=4), Image(size=(8, 8), patch=4, channels=1)
RAMP = np.arange(64, dtype=np.uint8).reshape(8, 8) * 4
NOISE = np.random.default_rng(0).integers(0, 256, (32, 32, 3)).astype(np.uint8)
COLOUR = np.stack([RAMP, RAMP.T, 255 - RAMP], 2)
AUDIO = Audio(seconds=0.2)


def file(image, kind="PNG", **options) -> bytes:
    if isinstance(image, np.ndarray):
        image = PIL.Image.fromarray(image)
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def pixels(image: Image, content: bytes) -> np.ndarray:
    return np.round(image.decode(image.encode(content)) * 255)


def test_a_file_is_what_its_pixels_are(tmp_path):
    np.testing.assert_array_equal(pixels(RGB, file(COLOUR)), COLOUR)
    a, b = RGB.encode(file(COLOUR)), RGB.encode(COLOUR)
    np.testing.assert_array_equal(a.values_LP, b.values_LP)
    (tmp_path / "x.png").write_bytes(file(COLOUR))
    np.testing.assert_array_equal(RGB.read(str(tmp_path / "x.png")), COLOUR)
    assert "stretched" in RGB.adapted(file(COLOUR[:4]))
    np.testing.assert_array_equal(PIL.Image.open(RGB.write(file(COLOUR), tmp_path / "y")), COLOUR)


def test_kinds_of_pictures_come_out_right():
    gray = np.repeat(RAMP[:, :, None], 3, 2)
    np.testing.assert_array_equal(pixels(RGB, file(RAMP)), gray)
    wide = RAMP.astype(np.uint16) * 257
    np.testing.assert_array_equal(pixels(RGB, file(wide)), gray)
    np.testing.assert_array_equal(pixels(GRAY, file(wide, "TIFF"))[:, :, 0], RAMP)
    palette = PIL.Image.fromarray(COLOUR).quantize(64)
    np.testing.assert_array_equal(pixels(RGB, file(palette)), np.asarray(palette.convert("RGB")))
    cmyk = PIL.Image.fromarray(COLOUR).convert("CMYK")
    np.testing.assert_array_equal(pixels(RGB, file(cmyk, "TIFF")), COLOUR)
    bits = PIL.Image.fromarray(RAMP > 100)
    np.testing.assert_array_equal(pixels(GRAY, file(bits))[:, :, 0], (RAMP > 100) * 255)
    clear = PIL.Image.fromarray(np.dstack([COLOUR, np.zeros((8, 8), np.uint8)]))
    assert (pixels(RGB, file(clear)) == 255).all()


def test_rotated_and_animated_pictures():
    exif = PIL.Image.Exif()
    exif[0x0112] = 6  # the camera was turned: rows are columns
    turned = file(np.rot90(COLOUR).copy(), exif=exif)
    np.testing.assert_array_equal(pixels(RGB, turned), COLOUR)
    frames = [PIL.Image.fromarray(np.full((8, 8, 3), v, np.uint8)) for v in (10, 200)]
    first = file(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert (pixels(RGB, first) == 10).all()


def chunk(kind: bytes, content: bytes) -> bytes:
    body = kind + content
    return struct.pack(">I", len(content)) + body + struct.pack(">I", zlib.crc32(body))


def claims(side: int) -> bytes:
    head = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", b"x")


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (claims(60_000), "image_too_large"),
        (claims(20_000), "image_too_large"),
        (claims(2_500), "image_too_large"),  # far more than its few bytes can say
        (claims(1_000), "broken_image"),
        (file(NOISE)[:900], "broken_image"),
        (file(np.zeros((64, 64, 3), np.uint8), "JPEG")[:400], "broken_image"),
        (b"", "no_image"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "no_image"),
        (b"\x80\x04\x95\x0b\x00\x00\x00\x00\x00\x00\x00cos\nsystem\n.", "no_image"),
        (file(PIL.Image.fromarray(np.zeros((8, 8), np.float32)), "TIFF"), "broken_image"),
    ],
)  # fmt: skip
def test_pictures_that_are_refused(content, reason):
    with pytest.raises(Unreadable) as caught:
        RGB.encode(content)
    assert caught.value.reason == reason
    assert str(caught.value).startswith("Image: ")


def test_crop_takes_the_middle():
    image = Image(size=(4, 4), patch=4, channels=1, resize="crop")
    wide = np.zeros((4, 12), np.uint8)
    wide[:, 4:8] = 255
    assert (image.decode(image.encode(wide)) == 1).all()
    tall = Image(size=(2, 4), patch=2, channels=1, resize="crop")
    assert tall.decode(tall.encode(wide.T)).shape == (2, 4, 1)
    with pytest.raises(ValueError, match="resize='pad' is no rule"):
        Image(resize="pad")


def sound(samples, rate=16000, kind="WAV", **options) -> bytes:
    out = io.BytesIO()
    soundfile.write(out, samples, rate, format=kind, **options)
    return out.getvalue()


def tone(rate, seconds=0.3, hertz=1000.0):
    return 0.5 * np.sin(2 * np.pi * hertz * np.arange(round(seconds * rate)) / rate)


def loudest(piece) -> int:
    return int(AUDIO.decode(piece)[4:16].mean(0).argmax())


def test_a_sound_file_is_what_its_samples_are(tmp_path):
    samples = np.round(tone(16000) * 32767) / 32768
    piece = AUDIO.encode(sound(samples, subtype="PCM_16"))
    same = AUDIO.encode(samples.astype(np.float32))
    np.testing.assert_allclose(piece.values_LP, same.values_LP, atol=1e-5)
    assert piece.num_cut == same.num_cut > 0
    (tmp_path / "x.wav").write_bytes(sound(samples))
    assert len(AUDIO.read(str(tmp_path / "x.wav"))) == len(samples)  # whole, for the ear
    assert "0.30 s are cut" in AUDIO.adapted(sound(samples))


@pytest.mark.parametrize("kind", ["WAV", "FLAC", "OGG", "MP3"])
@pytest.mark.parametrize("rate", [8000, 16000, 22050, 44100, 48000])
def test_formats_and_rates_sound_the_same(kind, rate):
    expected = loudest(AUDIO.encode(tone(16000).astype(np.float32)))
    assert loudest(AUDIO.encode(sound(tone(rate), rate, kind))) == expected


def test_channels_odd_rates_and_arrays_with_a_rate():
    expected = AUDIO.encode(tone(16000).astype(np.float32))
    eight = np.repeat(tone(16000)[:, None], 8, 1)
    found = AUDIO.encode(sound(eight, subtype="FLOAT"))
    np.testing.assert_allclose(found.values_LP, expected.values_LP, atol=1e-3)
    assert loudest(AUDIO.encode(sound(tone(11111), 11111))) == loudest(expected)
    assert loudest(AUDIO.encode((tone(44100).astype(np.float32), 44100))) == loudest(expected)
    beyond = AUDIO.encode(sound(tone(48000, seconds=30.0), 48000))  # only the start is decoded
    assert beyond.num_cut == AUDIO.encode(tone(16000, seconds=30.0)).num_cut


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (sound(np.zeros(0)), "empty_sound"),
        (sound(np.full(900, np.nan), subtype="FLOAT"), "not_finite"),
        (sound(np.full(900, np.inf), subtype="FLOAT"), "not_finite"),
        (sound(tone(16000), kind="FLAC")[:200], "broken_sound"),
        (b"", "broken_sound"),
        (b"ID3 no sound", "broken_sound"),
        (sound(tone(100), 100), "sample_rate"),
    ],
)
def test_sounds_that_are_refused(content, reason):
    with pytest.raises(Unreadable) as caught:
        AUDIO.encode(content)
    assert caught.value.reason == reason


def test_texts(tmp_path):
    text = Text(tokenizer=SentencePiece(vocab_size=300, num_sentinels=4), max_tokens=16)
    text = text.fit(lambda: ["two words", b"\xff", "\ud800", None, "three"], tmp_path)
    np.testing.assert_array_equal(text.encode(b"two words").ids_L, text.encode("two words").ids_L)
    assert text.encode(b"") is None
    long = text.encode(b"word " * 20_000)
    assert long.length == 16
    assert long.num_cut > 10_000
    for value in (b"\xff\xfe", "\ud800"):
        with pytest.raises(Unreadable) as caught:
            text.encode(value)
        assert caught.value.reason == "not_utf8"
