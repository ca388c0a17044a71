"""The preprocessing that is exported, and that of the modalities: the same numbers."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import soundfile

from mmjax import export
from mmjax.export import describe
from mmjax.modalities.audio import Audio
from mmjax.modalities.image import Image
from mmjax.modalities.text import Text
from mmjax.tokenizers.sentencepiece import SentencePiece


@pytest.fixture(scope="module")
def template():
    path = Path(export.__file__).parent / "template" / "preprocessing_mmjax.py"
    spec = importlib.util.spec_from_file_location("preprocessing_mmjax", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


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
def test_images(template, name, channels):
    mean = (0.48, 0.45, 0.41)[:channels]
    image = Image(size=(8, 16), patch=4, channels=channels, mean=mean, std=(0.27,))
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
    for channels in (1, 3):
        image = Image(size=(8, 16), patch=4, channels=channels)
        ours = image.encode(image.read(str(path))).values_LP
        made = twin(template, image, "image")
        np.testing.assert_array_equal(made(str(path)), ours)
        with PIL.Image.open(path) as opened:
            np.testing.assert_array_equal(made(opened), ours)


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


def test_sound_files_at_other_rates(template, tmp_path):
    samples = np.random.default_rng(0).normal(size=(20000, 2)) * 0.1
    soundfile.write(tmp_path / "a.flac", samples, 44100)
    audio = Audio(seconds=0.5)
    path = str(tmp_path / "a.flac")
    ours = audio.encode(audio.read(path)).values_LP
    np.testing.assert_array_equal(twin(template, audio, "audio")(path), ours)


def test_texts(template, tmp_path):
    texts = ["forty-two", "", "a b  c " * 20, "Ünïcode ﬁ 漢字 🙂", "two\nlines", "<s_0>"]
    tokenizer = SentencePiece(vocab_size=400, num_sentinels=4).fit(lambda: texts, tmp_path)
    text = Text(tokenizer=tokenizer, max_tokens=12)
    (tmp_path / "copy").write_bytes(tokenizer.model)
    made = template.make("text", max_tokens=12, end_id=tokenizer.end_id, model_file="copy")
    made.load(tmp_path / "copy")
    for value in texts:
        np.testing.assert_array_equal(made(value), text.encode(value).ids_L)
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
