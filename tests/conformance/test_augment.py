"""One row an augmentation: whatever it varies, it keeps these promises."""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Callable
from typing import Any

import numpy as np
import PIL.Image
import pytest

from mmjax import testing
from mmjax.data.augment import Augment
from mmjax.data.pictures import Pictures
from mmjax.data.sounds import Sounds
from mmjax.data.texts import Texts
from mmjax.modalities.audio import Audio
from mmjax.modalities.image import Image
from mmjax.modalities.modality import Modality
from mmjax.modalities.text import Text
from mmjax.tokenizers.sentencepiece import SentencePiece

STILL: dict[str, Any] = {"area": (1.0, 1.0), "aspect": (1.0, 1.0)}
DULL: dict[str, Any] = {"brightness": 0.0, "contrast": 0.0, "saturation": 0.0}
QUIET: dict[str, Any] = {
    "speed": 0.0, "shift": 0.0, "gain": 0.0, "noise": 0.0, "time_masks": 0, "band_masks": 0,
}  # fmt: skip
RNG = np.random.default_rng(0)
PHOTO = RNG.integers(0, 256, (40, 56, 3)).astype(np.uint8)


def file_of(pixels: np.ndarray, kind: str) -> bytes:
    file = io.BytesIO()
    PIL.Image.fromarray(pixels).save(file, kind)
    return file.getvalue()


PICTURES = (
    PHOTO, PHOTO[:16, :16], PHOTO[:, :, 0], PHOTO.astype(np.float32) / 255, PHOTO[:1, :],
    file_of(PHOTO, "PNG"), file_of(np.tile(PHOTO, (6, 6, 1)), "JPEG"), PHOTO[:5, :3],
)  # fmt: skip
SOUNDS = (
    RNG.standard_normal(16000).astype(np.float32),
    np.sin(np.arange(3000) * 0.3),
    np.ones(1, np.float32),
)
TEXTS = (
    "a red square on a blue floor",
    "two  words",
    "  a line\nand another one  ",
    "\u4e00 \u4e8c",
)


@dataclasses.dataclass(frozen=True)
class Row:
    augment: Augment
    modality: str
    values: tuple[Any, ...]
    at_rest: bool = False


IMAGES: dict[str, Modality] = {
    "image": Image(size=(16, 24), patch=8),
    "cropped": Image(size=(16, 16), patch=8, resize="crop"),
    "gray": Image(size=(16, 16), patch=8, channels=1),
    "maps": Image(size=(16, 16), patch=8, channels=5),
    "audio": Audio(seconds=0.5, num_mels=16),
}
FULL = Pictures(flip=0.5, shift=0.2, rotation=180.0, hue=0.5, grey=0.3, saturation=1.0)
MAPS = tuple(RNG.random((20, 30, 5)).astype(np.float32) for _ in range(2))
ROWS = {
    "crops": Row(Pictures(**DULL), "image", PICTURES),
    "all_of_pictures": Row(FULL, "image", PICTURES),
    "tiny_crops": Row(Pictures(area=(0.001, 0.01)), "cropped", PICTURES),
    "colours": Row(Pictures(**STILL), "cropped", PICTURES[:4]),
    "turns": Row(Pictures(**STILL, **DULL, rotation=20.0, shift=0.5), "cropped", PICTURES[:4]),
    "gray": Row(FULL, "gray", PICTURES),
    "maps": Row(FULL, "maps", MAPS),
    "pictures_at_rest": Row(Pictures(**STILL, **DULL), "cropped", PICTURES, at_rest=True),
    "sounds": Row(Sounds(), "audio", SOUNDS[:2]),
    "noise": Row(Sounds(**QUIET | {"noise": 1.0, "snr": (-20.0, 60.0)}), "audio", SOUNDS[:2]),
    "masks": Row(Sounds(**QUIET | {"time_masks": 9, "band_masks": 9}), "audio", SOUNDS[:2]),
    "far": Row(Sounds(**QUIET | {"shift": 60.0, "speed": 0.9}), "audio", SOUNDS[:2]),
    "sounds_at_rest": Row(Sounds(**QUIET), "audio", SOUNDS, at_rest=True),
    "words": Row(Texts(drop=0.5), "text", TEXTS),
    "words_at_rest": Row(Texts(drop=0.0), "text", TEXTS, at_rest=True),
}


@pytest.fixture(scope="module")
def modalities(tmp_path_factory):
    text = Text(tokenizer=SentencePiece(vocab_size=300, num_sentinels=4), max_tokens=32)
    folder = tmp_path_factory.mktemp("augment") / "text"
    return IMAGES | {"text": text.fit(lambda: [*TEXTS, "one two three"], folder)}


@pytest.mark.parametrize("name", ROWS)
def test_promises(modalities, name):
    row = ROWS[name]
    testing.check_augment(row.augment, modalities[row.modality], row.values, row.at_rest)


@pytest.mark.parametrize("name", [n for n, r in ROWS.items() if not r.at_rest])
def test_variations_lie_where_values_of_the_modality_do(modalities, name):
    row = ROWS[name]
    modality = modalities[row.modality]
    for value in row.values:
        kept, plain = row.augment.prepare(value, modality), modality.encode(value)
        for seed in range(20):
            piece = row.augment(kept, modality, np.random.default_rng(seed))
            if piece.values_LP is None:
                continue
            low, high = (-1, 1) if isinstance(modality, Image) else (-2, 2)
            assert piece.values_LP.min() >= low - 1e-6
            assert piece.values_LP.max() <= high + 1e-6
            assert piece.values_LP.dtype == plain.values_LP.dtype
            assert piece.values_LP.shape == plain.values_LP.shape


def drawn(augment: Augment, modality: Modality, value: Any, count: int = 200) -> list[Any]:
    """What people would see of variations."""
    kept = augment.prepare(value, modality)
    pieces = (augment(kept, modality, np.random.default_rng(s)) for s in range(count))
    return [modality.decode(piece) for piece in pieces]


def test_a_crop_is_a_part_of_the_picture_of_the_stated_size():
    """Of a picture whose colours say the place, what is seen tells the part."""
    image = Image(size=(16, 16), patch=8)
    down, right = np.mgrid[0:64, 0:64] / 64
    place_HWC = np.stack([down, right, 0 * down], axis=2).astype(np.float32)
    augment = Pictures(area=(0.25, 0.5), aspect=(0.8, 1.25), **DULL)
    areas, tops = [], []
    for seen in drawn(augment, image, place_HWC):
        high, wide = ((seen[-1, -1] - seen[0, 0]) * 16 / 15)[:2]
        areas.append(high * wide)
        tops.append(seen[0, 0, 0])
        assert 0.78 < wide / high < 1.28
    assert 0.23 < min(areas) < 0.28
    assert 0.46 < max(areas) < 0.54
    assert min(tops) < 0.05
    assert max(tops) > 0.3


def test_what_happens_by_chance_happens_as_often_as_stated():
    image = Image(size=(16, 16), patch=8)
    still = PHOTO[:16, :16]
    flips = drawn(Pictures(**STILL, **DULL, flip=0.25), image, still)
    turned = [np.allclose(seen, still[:, ::-1] / 255, atol=1e-5) for seen in flips]
    assert 0.15 < np.mean(turned) < 0.35
    assert all(
        t or np.allclose(s, still / 255, atol=1e-5) for t, s in zip(turned, flips, strict=True)
    )
    greys = drawn(Pictures(**STILL, **DULL, grey=0.5), image, still)
    assert 0.4 < np.mean([np.ptp(seen, axis=2).max() < 0.02 for seen in greys]) < 0.6


def test_a_shift_moves_the_picture_and_a_rotation_turns_it():
    image = Image(size=(32, 32), patch=8, channels=1)
    dot = np.zeros((32, 32), np.uint8)
    dot[8:11, 15:18] = 255
    places = lambda augment: np.array([
        np.array(np.nonzero(seen[:, :, 0] > 0.3)).mean(1) for seen in drawn(augment, image, dot)
    ])  # fmt: skip
    moved = places(Pictures(**STILL, **DULL, shift=0.2)) - (9, 16)
    assert (np.abs(moved).max(0) > 5.4).all()
    assert np.abs(moved).max() < 6.9
    turned = places(Pictures(**STILL, **DULL, rotation=90.0)) - 15.5
    angles = np.degrees(np.arctan2(turned[:, 1], -turned[:, 0]))
    assert np.abs(np.hypot(*turned.T) - 6.5).max() < 0.7
    assert -95 < angles.min() < -70
    assert 70 < angles.max() < 95


def test_hue_keeps_luma_and_contrast_keeps_the_mean():
    image = Image(size=(16, 16), patch=8)
    still = 0.35 + 0.3 * RNG.random((16, 16, 3)).astype(np.float32)
    luma = lambda x: x @ np.array([0.299, 0.587, 0.114])
    for seen in drawn(Pictures(**STILL, **DULL, hue=0.1), image, still, 20):
        assert np.abs(luma(seen) - luma(still)).max() < 1e-3
    for seen in drawn(Pictures(**STILL, **DULL | {"contrast": 0.5}), image, still, 20):
        assert abs(luma(seen).mean() - luma(still).mean()) < 1e-3
    rates = [s.mean() / still.mean() for s in drawn(
        Pictures(**STILL, **DULL | {"brightness": 0.3}), image, still
    )]  # fmt: skip
    assert 0.68 < min(rates) < 0.76
    assert 1.24 < max(rates) < 1.32


def test_modalities_that_share_random_numbers_are_moved_alike():
    image, depth = (
        Image(size=(16, 16), patch=8, channels=1),
        Image(size=(16, 16), patch=8, channels=1),
    )
    one, two = Pictures(**DULL), Pictures(like="image", brightness=0.5)
    value = PHOTO[:, :, 0] / np.float32(255)
    generators = (one.generator("image", 5), two.generator("depth", 5), two.generator("image", 6))
    a, b, c = (
        augment(augment.prepare(value, m), m, rng).values_LP
        for augment, m, rng in zip((one, two, two), (image, depth, depth), generators, strict=True)
    )
    assert np.corrcoef(a.ravel(), b.ravel())[0, 1] > 0.99
    assert np.corrcoef(a.ravel(), c.ravel())[0, 1] < 0.9


def audio_of(seconds: float) -> tuple[Audio, np.ndarray]:
    time = np.arange(round(seconds * 16000)) / 16000
    return Audio(seconds=1.0, num_mels=32), np.sin(2 * np.pi * 1000 * time).astype(np.float32)


def test_sounds_move_by_the_stated_seconds_and_stay_in_the_clip():
    audio, tone = audio_of(0.5)
    starts = []
    for seen in drawn(Sounds(**QUIET | {"shift": 0.2}), audio, tone):
        loud = np.flatnonzero(seen.max(1) > -10)
        starts.append(loud[0])
        assert len(loud) <= 52
    assert max(starts) in (19, 20, 21)
    assert min(starts) == 0


def test_noise_has_the_stated_power():
    """The waveform with noise of that power, encoded, is as loud between the tones."""
    audio, tone = audio_of(1.0)
    snr, found, wanted = 20.0, [], []
    for seed in range(10):
        augment = Sounds(**QUIET | {"noise": 1.0, "snr": (snr, snr)})
        rng = np.random.default_rng(seed)
        white = rng.standard_normal(len(tone)).astype(np.float32)
        white *= tone.std() / white.std() * 10 ** (-snr / 20)
        wanted.append(audio.decode(audio.encode(tone + white))[5:-5, 24:])
        piece = augment(audio.encode(tone), audio, Fixed(seed))
        found.append(audio.decode(piece)[5:-5, 24:])
    assert abs(np.mean(found) - np.mean(wanted)) < 1.0  # decibels
    assert abs(np.std(found) - np.std(wanted)) < 1.0


class Fixed:
    """Random numbers that choose white noise; the noise itself is random."""

    def __init__(self, seed: int):
        self._rng = np.random.default_rng(seed)
        self.standard_normal: Callable = self._rng.standard_normal
        self.uniform: Callable = self._rng.uniform

    def random(self, size):
        return np.zeros(size)


def test_masks_are_silent_and_at_most_as_wide_as_stated():
    audio, _ = audio_of(1.0)
    noise = RNG.standard_normal(16000).astype(np.float32)
    for masks, most, axis in (("time_mask", 10, 1), ("band_mask", 3, 0)):
        augment = Sounds(**QUIET | {f"{masks}s": 1, masks: 0.1})
        silent = [(s <= -50).all(axis).sum() for s in drawn(augment, audio, noise)]
        assert set(silent) >= set(range(most))
        assert max(silent) == most


def test_words_leave_at_the_stated_rate_and_one_stays(modalities):
    text = modalities["text"]
    caption = " ".join(["one", "two", "three"] * 4)
    seen = drawn(Texts(drop=0.25), text, caption)
    assert 0.2 < 1 - np.mean([len(s.split()) for s in seen]) / 12 < 0.3
    assert all(set(s.split()) <= {"one", "two", "three"} for s in seen)
    assert {len(s.split()) for s in drawn(Texts(drop=0.99), text, caption)} <= {1, 2}
    assert set(drawn(Texts(drop=0.99), text, "one")) == {"one"}
    # Of these two words the first shows nothing.
    assert all("one" in s for s in drawn(Texts(drop=0.6), text, "\u200b one"))


def test_a_very_long_text_is_varied_where_it_is_read(modalities):
    text = modalities["text"]
    piece = Texts(drop=0.5)("one two three " * 500_000, text, np.random.default_rng(0))
    assert piece.length == 32
    assert piece.num_cut > 1000
