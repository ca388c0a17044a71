"""The embedded data set: numbers 00..99 handwritten, in words of four languages, and spoken.

Real and small, without any download: the handwriting is scikit-learn's bundled copy of the UCI
optical digits (Alpaydin and Kaynak, 1998), the speech a committed pack (`numbers_speech/`).
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import io
import json
from importlib import resources
from typing import Any

import numpy as np

from mmjax.config import ranges
from mmjax.data.source import Source

__all__ = ["LANGUAGES", "UNSEEN", "Numbers", "words"]

LANGUAGES = ("en", "de", "fr", "es")
GALLERY = 100  # consecutive examples of an evaluation split: one of each number
GALLERIES = 10
VERSION = 1  # of the examples: a change of any of them changes it
# Never in train. Every tens digit and every units digit occurs in other numbers that are.
UNSEEN = (24, 27, 31, 38, 39, 42, 45, 53, 56, 58, 61, 67, 72, 74, 79, 83, 86, 91, 95, 98)
SEEN = tuple(n for n in range(100) if n not in UNSEEN)
# split: (part of the handwriting, part of the voices)
_SPLITS = {
    "train": ("train", "train"),
    "val": ("val", "train"),
    "test": ("test", "train"),
    "val_new_voice": ("val", "val"),
    "test_new_voice": ("test", "test"),
}
# Words of the numbers that are not put together, and of the tens from twenty on.
_SMALL_TEXT = {
    "en": "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen"
    " fifteen sixteen seventeen eighteen nineteen",
    "de": "null eins zwei drei vier f\u00fcnf sechs sieben acht neun zehn elf zw\u00f6lf dreizehn"
    " vierzehn f\u00fcnfzehn sechzehn siebzehn achtzehn neunzehn",
    "fr": "z\u00e9ro un deux trois quatre cinq six sept huit neuf dix onze douze treize quatorze"
    " quinze seize dix-sept dix-huit dix-neuf",
    "es": "cero uno dos tres cuatro cinco seis siete ocho nueve diez once doce trece catorce quince"
    " diecis\u00e9is diecisiete dieciocho diecinueve veinte veintiuno veintid\u00f3s"
    " veintitr\u00e9s veinticuatro veinticinco veintis\u00e9is veintisiete veintiocho veintinueve",
}
_TENS_TEXT = {
    "en": "twenty thirty forty fifty sixty seventy eighty ninety",
    "de": "zwanzig drei\u00dfig vierzig f\u00fcnfzig sechzig siebzig achtzig neunzig",
    "fr": "vingt trente quarante cinquante soixante",
    "es": "veinte treinta cuarenta cincuenta sesenta setenta ochenta noventa",
}
_SMALL = {language: text.split() for language, text in _SMALL_TEXT.items()}
_TENS = {language: text.split() for language, text in _TENS_TEXT.items()}
_PARTS = {"train": (0.0, 0.7), "val": (0.7, 0.85), "test": (0.85, 1.0)}  # of each digit's images


@dataclasses.dataclass(frozen=True, kw_only=True)
class Numbers(Source):
    """Two handwritten digits side by side, the number in words, and the number spoken.

    Example: `image` uint8 (8, 16); `text` str, in one of four languages; `audio` float32 waveform
    at 16 kHz, in English, of 0.3 to 1.2 s; `number` and `identity` int; `voice`, `language` str;
    `slices` ("seen",) or ("unseen",). Aligned with the image: `mask` (8, 16) bool strokes; `boxes`
    (2, 4) float32, each digit's ink as x0, y0, x1, y1 in 0..1; `metadata` {value, parity, strokes}.

    Train holds the 80 seen numbers in turn. Every other split is 10 galleries of 100: example i
    shows number i % 100, in the language of its gallery. No image of a digit is in two of train,
    val and test (writers are not labelled, so a writer may be); the `_new_voice` splits are spoken
    by voices that occur nowhere else. An example depends on (split, index) alone.

    Fields:
      train_size: examples of the train split.
    """

    train_size: ranges.Count = 8000

    def __post_init__(self):
        ranges.check(self)

    def splits(self) -> tuple[str, ...]:
        """Names of the splits."""
        return tuple(_SPLITS)

    def keys(self) -> tuple[str, ...]:
        """Keys of every example."""
        aligned = ("mask", "boxes", "metadata")
        about = ("number", "identity", "voice", "language", "slices")
        return ("image", "text", "audio", *about, *aligned)

    def open(self, split: str) -> _NumbersRecords:
        """Random access to one split; ValueError when there is none of that name."""
        if split not in _SPLITS:
            raise ValueError(
                f"Numbers: split={split!r} does not exist; use one of {self.splits()}."
            )
        return _NumbersRecords(
            split=split, size=self.train_size if split == "train" else GALLERY * GALLERIES
        )

    def fingerprint(self) -> str:
        """SHA-256 of the version, the fields, the handwriting and the speech."""
        digest = hashlib.sha256(f"numbers {VERSION} train_size={self.train_size} ".encode())
        images, labels = _digits()
        digest.update(images.tobytes() + labels.tobytes())
        for file in ["index.json", *(voice["file"] for voice in _speech_index()["voices"])]:
            digest.update(hashlib.sha256(_pack().joinpath(file).read_bytes()).digest())
        return digest.hexdigest()

    def class_prompts(self) -> dict[int, tuple[str, ...]]:
        """The words of each number in all languages: prompts of zero-shot classification."""
        return {n: tuple(words(n, language) for language in LANGUAGES) for n in range(100)}


class _NumbersRecords:
    """One split. Images and voices are decoded at first use, once a process for all splits."""

    def __init__(self, *, split: str, size: int):
        self._split, self._size = split, size
        part, voices = _SPLITS[split]
        self._part = part
        self._voices = [v for v in _speech_index()["voices"] if v["part"] == voices]

    def __len__(self) -> int:
        return self._size

    def __getitem__(self, index: int) -> dict[str, Any]:
        if not 0 <= index < self._size:
            raise IndexError(f"Numbers: {self._split}[{index}] is outside 0..{self._size - 1}.")
        number, language, voice, rng = self._draw(int(index))
        image = self._image(number, rng)
        mask = image > 127
        return {
            "image": image,
            "text": words(number, language),
            "audio": _audio(voice, number),
            "number": number,
            "identity": number,
            "voice": voice["name"],
            "language": language,
            "slices": ("unseen",) if number in UNSEEN else ("seen",),
            "mask": mask,
            "boxes": _boxes(mask),
            "metadata": {"value": number, "parity": number % 2, "strokes": int(mask.sum())},
        }

    def _draw(self, index: int) -> tuple[int, str, dict[str, Any], np.random.Generator]:
        """Number, language and voice of an example, and the generator for its handwriting."""
        rng = np.random.default_rng([list(_SPLITS).index(self._split), index])
        if self._split == "train":
            number = SEEN[index % len(SEEN)]
            language, voice = rng.integers(len(LANGUAGES)), rng.integers(len(self._voices))
        else:
            gallery, number = divmod(index, GALLERY)
            language, voice = gallery % len(LANGUAGES), (number + gallery) % len(self._voices)
        return number, LANGUAGES[language], self._voices[voice], rng

    def _image(self, number: int, rng: np.random.Generator) -> np.ndarray:
        tens, units = (_handwriting(self._part)[digit] for digit in divmod(number, 10))
        return np.concatenate([tens[rng.integers(len(tens))], units[rng.integers(len(units))]], 1)


def words(number: int, language: str) -> str:
    """The number 0..99 in words: "en", "de", "fr" or "es"."""
    if not 0 <= number < 100 or language not in LANGUAGES:
        raise ValueError(
            f"words: number={number}, language={language!r}; use 0..99 and one of {LANGUAGES}."
        )
    small = _SMALL[language]
    if number < len(small):
        return small[number]
    tens, unit = divmod(number, 10)
    if language == "fr":
        return _french(number)
    if unit == 0:
        return _TENS[language][tens - 2]
    if language == "de":
        return f"{'ein' if unit == 1 else small[unit]}und{_TENS[language][tens - 2]}"
    joint = "-" if language == "en" else " y "
    return f"{_TENS[language][tens - 2]}{joint}{small[unit]}"


def _french(number: int) -> str:
    """French counts 60..79 and 80..99 by twenties; only 80 itself has a plural s."""
    small = _SMALL["fr"]
    if number >= 80:
        return "quatre-vingts" if number == 80 else f"quatre-vingt-{small[number - 80]}"
    tens = min(number // 10, 6)
    rest = number - 10 * tens
    name = _TENS["fr"][tens - 2]
    if rest == 0:
        return name
    return f"{name} et {small[rest]}" if rest in (1, 11) else f"{name}-{small[rest]}"


def _digits() -> tuple[np.ndarray, np.ndarray]:
    """All images, uint8 (1797, 8, 8), and their labels."""
    from sklearn import datasets

    images, labels = datasets.load_digits(return_X_y=True)
    return np.round(images * (255 / 16)).astype(np.uint8).reshape(-1, 8, 8), labels.astype(np.int64)


@functools.cache
def _handwriting(part: str) -> tuple[np.ndarray, ...]:
    """The images of each digit that belong to train, val or test: uint8 (count, 8, 8)."""
    images, labels = _digits()
    digits = []
    for digit in range(10):
        of_digit = images[labels == digit]
        order = np.random.default_rng([VERSION, digit]).permutation(len(of_digit))
        first, last = (round(share * len(order)) for share in _PARTS[part])
        digits.append(of_digit[order[first:last]])
    return tuple(digits)


def _pack():
    return resources.files("mmjax.demo.numbers_speech")


@functools.cache
def _speech_index() -> dict[str, Any]:
    return json.loads(_pack().joinpath("index.json").read_text())


def _audio(voice: dict[str, Any], number: int) -> np.ndarray:
    start = voice["starts"][number]
    return _read_voice(voice["file"])[start : start + voice["lengths"][number]]


@functools.cache
def _read_voice(file: str) -> np.ndarray:
    """All samples of a voice, float32; read-only, because examples are views of it."""
    import soundfile

    content = io.BytesIO(_pack().joinpath(file).read_bytes())
    samples, _ = soundfile.read(content, dtype="float32")
    samples.flags.writeable = False
    return samples


def _boxes(mask: np.ndarray) -> np.ndarray:
    """The ink of the left and the right half: float32 (2, 4), x0, y0, x1, y1 in 0..1."""
    height, width = mask.shape
    boxes = np.zeros((2, 4), np.float32)
    for half in range(2):
        start = half * (width // 2)
        ink = mask[:, start : start + width // 2]
        rows, columns = np.nonzero(ink)
        columns.sort()  # rows are in order already
        x0, x1 = start + columns[0], start + columns[-1] + 1
        boxes[half] = x0 / width, rows[0] / height, x1 / width, (rows[-1] + 1) / height
    return boxes
