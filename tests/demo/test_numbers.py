"""The numbers set: words, splits, galleries, voices, aligned extras, the speech pack."""

from __future__ import annotations

import pickle
from importlib import resources

import numpy as np
import pytest

from mmjax.demo import numbers
from mmjax.demo.numbers import LANGUAGES, UNSEEN, Numbers, words
from mmjax.modalities.audio import Audio

EVALUATION = ("val", "test", "val_new_voice", "test_new_voice")


@pytest.fixture(scope="module")
def examples() -> dict[str, list[dict]]:
    source = Numbers(train_size=2000)
    return {
        split: list(map(source.open(split).__getitem__, range(1000))) for split in EVALUATION
    } | {"train": list(map(source.open("train").__getitem__, range(2000)))}


def halves(split: list[dict]) -> set[bytes]:
    return {e["image"][:, s].tobytes() for e in split for s in (slice(0, 8), slice(8, 16))}


@pytest.mark.parametrize(
    ("number", "expected"),
    [
        (0, ("zero", "null", "z\u00e9ro", "cero")),
        (1, ("one", "eins", "un", "uno")),
        (12, ("twelve", "zw\u00f6lf", "douze", "doce")),
        (16, ("sixteen", "sechzehn", "seize", "diecis\u00e9is")),
        (17, ("seventeen", "siebzehn", "dix-sept", "diecisiete")),
        (20, ("twenty", "zwanzig", "vingt", "veinte")),
        (21, ("twenty-one", "einundzwanzig", "vingt et un", "veintiuno")),
        (23, ("twenty-three", "dreiundzwanzig", "vingt-trois", "veintitr\u00e9s")),
        (35, ("thirty-five", "f\u00fcnfunddrei\u00dfig", "trente-cinq", "treinta y cinco")),
        (44, ("forty-four", "vierundvierzig", "quarante-quatre", "cuarenta y cuatro")),
        (66, ("sixty-six", "sechsundsechzig", "soixante-six", "sesenta y seis")),
        (70, ("seventy", "siebzig", "soixante-dix", "setenta")),
        (71, ("seventy-one", "einundsiebzig", "soixante et onze", "setenta y uno")),
        (80, ("eighty", "achtzig", "quatre-vingts", "ochenta")),
        (81, ("eighty-one", "einundachtzig", "quatre-vingt-un", "ochenta y uno")),
        (91, ("ninety-one", "einundneunzig", "quatre-vingt-onze", "noventa y uno")),
        (97, ("ninety-seven", "siebenundneunzig", "quatre-vingt-dix-sept", "noventa y siete")),
    ],
)
def test_orthography(number, expected):
    assert tuple(words(number, language) for language in LANGUAGES) == expected
    assert Numbers().class_prompts()[number] == expected


def test_words_differ_inside_a_language():
    for language in LANGUAGES:
        assert len({words(n, language) for n in range(100)}) == 100
    for bad in ((100, "en"), (-1, "en"), (5, "it")):
        with pytest.raises(ValueError, match="words: number="):
            words(*bad)


def test_unseen_numbers_are_compounds_whose_parts_are_seen():
    assert len(set(UNSEEN)) == 20
    seen = [n for n in range(21, 100) if n % 10 and n not in UNSEEN]
    for number in UNSEEN:
        assert number >= 21
        assert number % 10
        assert any(n // 10 == number // 10 for n in seen)
        assert any(n % 10 == number % 10 for n in seen)


def test_train_never_holds_an_unseen_number(examples):
    counts = np.bincount([e["number"] for e in examples["train"]], minlength=100)
    assert not counts[list(UNSEEN)].any()
    assert set(np.delete(counts, UNSEEN)) == {25}
    for split, records in examples.items():
        for e in records:
            assert e["slices"] == (("unseen",) if e["number"] in UNSEEN else ("seen",)), split


def test_galleries_hold_every_number_once_in_one_language(examples):
    for split in EVALUATION:
        for gallery in range(10):
            records = examples[split][100 * gallery : 100 * gallery + 100]
            assert [e["number"] for e in records] == list(range(100))
            assert {e["language"] for e in records} == {LANGUAGES[gallery % 4]}
            assert [e["text"] for e in records] == [
                words(n, LANGUAGES[gallery % 4]) for n in range(100)
            ]


def test_handwriting_is_in_one_part_only(examples):
    train = halves(examples["train"])
    val = halves(examples["val"]) | halves(examples["val_new_voice"])
    test = halves(examples["test"]) | halves(examples["test_new_voice"])
    for one, other in ((train, val), (train, test), (val, test)):
        assert not one & other
    assert len(train) > 1000
    assert min(len(val), len(test)) > 250
    counts = [sum(map(len, numbers._handwriting(part))) for part in ("train", "val", "test")]
    assert sum(counts) == 1797


def test_images_show_the_number():
    images, labels = numbers._digits()
    label_of = {i.tobytes(): label for i, label in zip(images, labels, strict=True)}
    for split in Numbers().splits():
        records = Numbers().open(split)
        for index in range(0, 1000, 37):
            e = records[index]
            assert e["image"].dtype == np.uint8
            assert e["image"].shape == (8, 16)
            assert label_of[e["image"][:, :8].tobytes()] == e["number"] // 10
            assert label_of[e["image"][:, 8:].tobytes()] == e["number"] % 10
    assert (images.min(), images.max()) == (0, 255)


def test_voices(examples):
    voices = {split: {e["voice"] for e in records} for split, records in examples.items()}
    assert len(voices["train"]) == 13
    assert voices["val"] == voices["test"] == voices["train"]
    assert (len(voices["val_new_voice"]), len(voices["test_new_voice"])) == (1, 2)
    assert len(set().union(*voices.values())) == 16
    for gallery in range(10):
        records = examples["test"][100 * gallery : 100 * gallery + 100]
        assert len({e["voice"] for e in records}) == 13
    spoken = {e["voice"] for e in examples["test"] if e["number"] == 42}
    assert len(spoken) == 10  # one in each gallery


def test_aligned_extras(examples):
    for e in examples["val"]:
        np.testing.assert_array_equal(e["mask"], e["image"] >= 128)
        strokes = int(e["mask"].sum())
        assert e["metadata"] == {
            "value": e["number"],
            "parity": e["number"] % 2,
            "strokes": strokes,
        }
        assert e["boxes"].dtype == np.float32
        covered = np.zeros((8, 16), bool)
        for half, box in enumerate(e["boxes"]):
            x0, y0, x1, y1 = (box * [16, 8, 16, 8]).astype(int)
            assert 8 * half <= x0 < x1 <= 8 * half + 8
            assert 0 <= y0 < y1 <= 8
            inside = e["mask"][y0:y1, x0:x1]
            assert all(edge.any() for edge in (inside[0], inside[-1], inside[:, 0], inside[:, -1]))
            covered[y0:y1, x0:x1] = True
        assert not (e["mask"] & ~covered).any()


def test_examples_depend_on_split_and_index_alone():
    for split in Numbers().splits():
        records = Numbers().open(split)
        copy = pickle.loads(pickle.dumps(Numbers(train_size=9000).open(split)))
        assert len(pickle.dumps(records)) < 50_000
        order = (7, 999, 7, 0)
        assert [records[i]["text"] for i in order] == [records[i]["text"] for i in order]
        for index in order:
            for key, value in records[index].items():
                np.testing.assert_array_equal(value, copy[index][key], err_msg=f"{split} {key}")
    assert set(records[0]) == set(Numbers().keys())


def test_sizes_and_errors():
    assert [len(Numbers().open(s)) for s in Numbers().splits()] == [8000, 1000, 1000, 1000, 1000]
    with pytest.raises(ValueError, match="split='dev' does not exist"):
        Numbers().open("dev")
    with pytest.raises(ValueError, match="train_size=0"):
        Numbers(train_size=0)
    for index in (-1, 8000):
        with pytest.raises(IndexError, match="outside"):
            Numbers().open("train")[index]


def test_fingerprint_follows_what_examples_depend_on():
    assert Numbers().fingerprint() == Numbers().fingerprint() != Numbers(train_size=9).fingerprint()


def test_pack_is_small_and_even():
    folder = resources.files("mmjax.demo.numbers_speech")
    assert sum(len(f.read_bytes()) for f in folder.iterdir() if f.is_file()) <= 1_500_000
    index = numbers._speech_index()
    assert index["sample_rate"] == 16000
    for voice in index["voices"]:
        ends = np.add(voice["starts"], voice["lengths"])
        assert len(ends) == 100
        assert (np.array(voice["starts"][1:]) > ends[:-1]).all()
        for number in range(100):
            clip = numbers._audio(voice, number)
            assert clip.dtype == np.float32
            assert 0.2 <= len(clip) / 16000 <= 1.2
            assert 0.06 <= np.sqrt(np.mean(clip**2)) <= 0.12
            assert np.abs(clip).max() <= 1.0
            # Sound from the first 10 ms to the last: clips align.
            for edge in (clip[:160], clip[-160:]):
                assert np.sqrt(np.mean(edge**2)) > 0.02 * np.sqrt(np.mean(clip**2))


def test_a_new_voice_is_understood_through_the_known_ones():
    audio = Audio(seconds=1.0)
    index = numbers._speech_index()["voices"]
    known = [v for v in index if v["part"] == "train"]

    def listen(voice):
        clips = [audio.encode(numbers._audio(voice, n)).values_LP.ravel() for n in range(100)]
        return np.stack(clips).astype(np.float64)

    reference = np.concatenate([listen(voice) for voice in known])
    for voice in index:
        if voice["part"] != "train":
            heard = listen(voice)
            distance = (reference**2).sum(1) - 2 * heard @ reference.T
            assert (distance.argmin(1) % 100 == np.arange(100)).mean() > 0.85, voice["name"]
