"""The preprocessing that is exported, and that of the modalities: the same numbers."""

from __future__ import annotations

import importlib
import io
import sys
from pathlib import Path

import av
import numpy as np
import PIL.EpsImagePlugin
import PIL.Image
import pytest
import soundfile

from mmjax import export
from mmjax.export import describe, folder
from mmjax.modalities import image as image_lib
from mmjax.modalities.audio import Audio
from mmjax.modalities.image import Image
from mmjax.modalities.text import Text
from mmjax.tokenizers.sentencepiece import SentencePiece


@pytest.fixture(scope="module")
def template(tmp_path_factory):
    """The module of the exported folder, as a part of a package, as transformers loads it."""
    package = tmp_path_factory.mktemp("exported") / "exported_folder"
    package.mkdir()
    source = Path(export.__file__).parent / "template" / "preprocessing_mmjax.py"
    (package / source.name).write_text(source.read_text())
    folder.write_decoders(package)
    (package / "__init__.py").write_text("")
    sys.path.insert(0, str(package.parent))
    yield importlib.import_module("exported_folder.preprocessing_mmjax")
    sys.path.remove(str(package.parent))


def twin(template, modality, kind: str):
    return template.make(kind, **describe.known_fields(modality))


IMAGES = {
    "right size": lambda r: r.random((8, 16, 3), np.float32),
    "larger": lambda r: r.integers(0, 256, (37, 23, 3), np.uint8),
    "smaller": lambda r: r.integers(0, 256, (3, 5, 3), np.uint8),
    "gray": lambda r: r.integers(0, 256, (20, 20), np.uint8),
    "mask": lambda r: r.random((8, 16)) > 0.5,
    "double": lambda r: r.random((9, 9, 1)),
}


@pytest.mark.parametrize("name", IMAGES)
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("resize", ["stretch", "crop"])
def test_images(template, name, channels, resize):
    mean = (0.48, 0.45, 0.41)[:channels]
    size = {"size": (8, 16), "patch": 4, "resize": resize}
    image = Image(channels=channels, mean=mean, std=(0.27,), **size)
    value = IMAGES[name](np.random.default_rng(0))
    ours = image.encode(value).values_LP
    np.testing.assert_array_equal(twin(template, image, "image")(value), ours)


@pytest.mark.parametrize("mode", ["L", "RGB", "P", "CMYK", "RGBA", "1"])
def test_image_files(template, tmp_path, mode):
    pixels = np.random.default_rng(0).integers(0, 256, (12, 30, 3), np.uint8)
    exif = PIL.Image.Exif()
    exif[274] = 6  # lies on its side
    path = tmp_path / ("a.jpg" if mode in ("L", "RGB", "CMYK") else "a.png")
    PIL.Image.fromarray(pixels).convert(mode).save(path, exif=exif)
    check_image_file(template, path)


def check_image_file(template, path):
    for channels, resize in ((1, "stretch"), (3, "stretch"), (1, "crop"), (3, "crop")):
        image = Image(size=(8, 16), patch=4, channels=channels, resize=resize)
        ours = image.encode(image.read(str(path))).values_LP
        made = twin(template, image, "image")
        np.testing.assert_array_equal(image.encode(path.read_bytes()).values_LP, ours)
        np.testing.assert_array_equal(made(str(path)), ours)
        with PIL.Image.open(path) as opened:
            np.testing.assert_array_equal(made(opened), ours)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_transparent_image_files(template, tmp_path, mode):
    rng = np.random.default_rng(0)
    if mode == "P":
        made = PIL.Image.fromarray(rng.integers(0, 9, (12, 30), np.uint8), "P")
        made.putpalette(rng.integers(0, 256, 27, np.uint8).tolist())
        made.info["transparency"] = bytes(rng.integers(0, 256, 9, np.uint8))
    else:
        shape = (12, 30, len(mode))
        made = PIL.Image.fromarray(rng.integers(0, 256, shape, np.uint8), mode)
    made.save(tmp_path / "a.png")
    with PIL.Image.open(tmp_path / "a.png") as opened:
        assert opened.mode == mode
        assert opened.has_transparency_data
    check_image_file(template, tmp_path / "a.png")


def test_image_files_of_16_bits(template, tmp_path):
    wide = np.random.default_rng(0).integers(0, 1 << 16, (12, 30), np.uint16)
    for name in ("a.png", "a.tiff"):
        PIL.Image.fromarray(wide).save(tmp_path / name)
        check_image_file(template, tmp_path / name)
    path = tmp_path / "wider.tiff"
    PIL.Image.fromarray(wide.astype(np.int32) * 2).save(path)
    image = Image(size=(8, 16), patch=4)
    for read in (lambda: image.read(str(path)), lambda: twin(template, image, "image")(str(path))):
        with pytest.raises(ValueError, match="not in 16 bits"):
            read()


SOUNDS = {
    "short": lambda r: r.normal(size=900) * 0.1,
    "long": lambda r: r.normal(size=16000).astype(np.float32),
    "empty": lambda r: np.zeros(0, np.float32),
    "silent": lambda r: np.zeros(4000, np.float32),
    "stereo": lambda r: r.normal(size=(5000, 2)).astype(np.float32),
    "16 bit": lambda r: r.integers(-(2**15), 2**15, 5000, np.int16),
}


@pytest.mark.parametrize("name", SOUNDS)
def test_sounds(template, name):
    value = SOUNDS[name](np.random.default_rng(0))
    for audio in (
        Audio(seconds=0.5),
        Audio(sample_rate=22050, seconds=0.3, num_mels=20, window=512, hop=200, patch_frames=3),
    ):
        ours = audio.encode(value).values_LP
        np.testing.assert_array_equal(twin(template, audio, "audio")(value), ours)


@pytest.mark.parametrize("rate", [8000, 11025, 16000, 44100, 96000])
@pytest.mark.parametrize("seconds", [0.4, 5.0])
def test_sound_files_at_other_rates(template, tmp_path, rate, seconds):
    samples = np.random.default_rng(0).normal(size=(round(seconds * rate), 2)) * 0.1
    path, audio = tmp_path / "a.flac", Audio(seconds=0.5)
    soundfile.write(path, samples, rate)
    ours = audio.encode(audio.read(str(path))).values_LP
    np.testing.assert_array_equal(twin(template, audio, "audio")(str(path)), ours)
    # Training decodes no more than it needs.
    np.testing.assert_array_equal(audio.encode(path.read_bytes()).values_LP, ours)


@pytest.mark.parametrize("kind", ["m4a", "opus", "joined", "piped"])
def test_sound_files_of_all_kinds(template, tmp_path, kind):
    samples = np.random.default_rng(0).uniform(-0.2, 0.2, 16000).astype(np.float32)
    path, audio = tmp_path / f"a.{kind}", Audio(seconds=2.5)
    if kind == "m4a":
        with av.open(str(path), "w", format="mp4") as out:
            track = out.add_stream("aac", rate=16000, layout="mono")
            frame = av.AudioFrame.from_ndarray(samples[None], "fltp", "mono")
            frame.sample_rate = 16000
            out.mux(track.encode(frame))
            out.mux(track.encode())
    else:
        format, subtype = {"opus": ("OGG", "OPUS"), "joined": ("MP3", None)}.get(
            kind, ("FLAC", None)
        )
        soundfile.write(path, samples, 16000, format=format, subtype=subtype)
    content = path.read_bytes()
    if kind == "joined":
        path.write_bytes(content * 2)
    elif kind == "piped":  # without a length
        path.write_bytes(content[:21] + bytes([content[21] & 0xF0, 0, 0, 0, 0]) + content[26:])
    ours = audio.encode(path.read_bytes()).values_LP
    assert ours[20:25].max() > 0
    assert (ours[30:45].max() > 0) == (kind == "joined")
    np.testing.assert_array_equal(twin(template, audio, "audio")(str(path)), ours)
    np.testing.assert_array_equal(audio.encode(audio.read(str(path))).values_LP, ours)
    (tmp_path / "cut.wav").write_bytes(_wav(samples)[:9000])
    with pytest.raises(ValueError, match="it ends after"):
        twin(template, audio, "audio")(str(tmp_path / "cut.wav"))


def _wav(samples) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, samples, 16000, format="WAV")
    return file.getvalue()


@pytest.mark.parametrize("rate", [8000, 44100, 44101, 16000])
def test_a_waveform_may_have_another_rate(template, rate):
    audio = Audio(seconds=0.5)
    samples = np.random.default_rng(0).normal(size=(rate, 2)).astype(np.float32) * 0.1
    found = twin(template, audio, "audio")(samples, sampling_rate=rate)
    np.testing.assert_array_equal(found, audio.encode((samples, rate)).values_LP)
    with pytest.raises(ValueError, match="0 samples a second"):
        twin(template, audio, "audio")(samples, sampling_rate=0)


@pytest.mark.parametrize(("count", "said"), [(9000, "NaN or infinity"), (0, "no samples")])
def test_a_sound_file_that_holds_no_numbers_is_refused(template, tmp_path, count, said):
    path, audio = str(tmp_path / "a.wav"), Audio(seconds=0.5)
    soundfile.write(path, np.full(count, np.nan, np.float32), 16000, subtype="FLOAT")
    for read in (audio.read, twin(template, audio, "audio")):
        with pytest.raises(ValueError, match=said):
            read(path)


def test_texts(template, tmp_path):
    texts = ["forty-two", "", "a b  c " * 20, "Ünïcode ﬁ 漢字 🙂", "two\nlines", "<s_0>"]
    texts += ["\ufeffmarked", "two\r\nlines\r\n", "a tail\n\n", b"\xef\xbb\xbfbytes\r\n", " b "]
    tokenizer = SentencePiece(vocab_size=400, num_sentinels=4).fit(lambda: texts, tmp_path)
    text = Text(tokenizer=tokenizer, max_tokens=12)
    (tmp_path / "copy").write_bytes(tokenizer.model)
    made = template.make("text", max_tokens=12, end_id=tokenizer.end_id, model_file="copy")
    made.load(tmp_path / "copy")
    for value in texts:
        piece = text.encode(value)
        assert (piece is None) == (value == "")  # absent in training; here its end token
        ids = [tokenizer.end_id] if piece is None else piece.ids_L
        np.testing.assert_array_equal(made(value), ids)
    padded = template.stack([made(value) for value in texts])
    assert padded.shape == (len(texts), 12)
    assert padded[1].tolist() == [tokenizer.end_id] + [-1] * 11


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        ("image", np.zeros(5, np.float32)),
        ("image", np.full((8, 16), 200.0)),
        ("image", np.full((8, 16), np.nan)),
        ("image", np.zeros((8, 16), np.int32)),
        ("audio", np.full(50, np.inf, np.float32)),
        ("audio", np.zeros(50, np.uint8)),
        ("audio", np.zeros((2, 2, 2), np.float32)),
    ],
)
def test_what_is_no_image_or_sound_is_refused(template, kind, value):
    modality = Image(size=(8, 16), patch=4) if kind == "image" else Audio(seconds=0.5)
    with pytest.raises(ValueError, match=r"Image|Audio"):
        modality.encode(value)
    with pytest.raises(ValueError, match=r"image|sound"):
        twin(template, modality, kind)(value)


PICTURE = b"""%!PS-Adobe-3.0 EPSF-3.0
%%BoundingBox: 0 0 16 8
%%EndComments
0 0 16 8 rectfill
showpage
"""


@pytest.mark.fault("a picture holds PostScript, for which Pillow starts Ghostscript", "refused")
def test_pictures_start_no_program(template, tmp_path, monkeypatch):
    (tmp_path / "gs").write_text(f"#!/bin/sh\ntouch {tmp_path}/MARK\n")
    (tmp_path / "gs").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.setattr(PIL.EpsImagePlugin, "gs_binary", None)
    file = tmp_path / "cat.png"
    file.write_bytes(PICTURE)
    with PIL.Image.open(file) as opened, pytest.raises(OSError, match="mage"):
        opened.load()  # what Pillow does by itself
    assert (tmp_path / "MARK").exists()
    (tmp_path / "MARK").unlink()
    modality = Image(size=(8, 16), patch=4)
    with pytest.raises(PIL.UnidentifiedImageError):
        twin(template, modality, "image")(file)
    with pytest.raises(ValueError, match="no known image format"):
        modality.encode(modality.read(str(file)))
    assert not (tmp_path / "MARK").exists()
    assert template.FORMATS == image_lib.FORMATS
