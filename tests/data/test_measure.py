"""What is measured of records, and the sizes that are proposed for it."""

from __future__ import annotations

import dataclasses
import re

import numpy as np
import own
import pytest

from mmjax.data import measure, proposal
from mmjax.data.measure import WHOLE, Lengths, Measuring
from mmjax.data.source import BadRecord
from mmjax.modalities.audio import Audio
from mmjax.modalities.image import Image
from mmjax.modalities.label import Label
from mmjax.modalities.text import Text

KINDS = {"image": Image(), "text": Text(), "audio": Audio()}


class Rows(list):
    """An open split in memory; None stands for a record that cannot be read."""

    def __getitem__(self, index):
        row = super().__getitem__(index)
        if row is None:
            raise BadRecord("cut", "it is cut")
        return row


def measured(rows, modalities=KINDS):
    records = Rows(rows)
    measuring = Measuring(modalities, len(records))
    for i in range(len(records)):
        try:
            measuring.add(i, records[i])
        except BadRecord:
            measuring.add(i, None)
    return measuring, measuring.result("train", records)


def pictures(count, height=40, width=40):
    rng = np.random.default_rng(count)
    return [own.png(rng.integers(0, 256, (height, width, 3), np.uint8)) for _ in range(count)]


def tone(seconds, pitch=300):
    return own.wav(0.3 * np.sin(np.arange(int(seconds * 16000)) * (pitch / 2500)))


def proposed(rows):
    return proposal.propose(measured(rows)[1])


def test_sizes_come_from_headers_and_one_outlier_moves_the_largest_alone():
    rows = [{"image": p, "text": f"a word {i}", "audio": tone(1 + i / 100)}
            for i, p in enumerate(pictures(20, 30, 50))]  # fmt: skip
    rows[3] = {"text": b"a\xc3\xa9", "audio": tone(60)}
    rows[4] = None
    rows[5]["audio"] = rows[6]["audio"][:10]  # no sound
    _, found = measured(rows)
    assert (found.records, found.read, found.bad) == (20, 20, 1)
    assert found.together == {"image+text+audio": 18, "text+audio": 1}
    image, text, audio = (found.streams[n] for n in KINDS)
    assert (image.sizes["height"].median, image.sizes["width"].max) == (30, 50)
    assert image.sizes["aspect"].median == pytest.approx(5 / 3)
    assert text.sizes["characters"].min == 2
    assert audio.sizes["seconds"].p95 < 1.3 < audio.sizes["seconds"].max == 60
    assert (audio.unreadable, audio.present) == (1, 19)
    assert audio.why.startswith("Audio: ")
    assert found.complete(lambda there: "image" in there) == 18
    assert Lengths.of([3, 1, 2]).median == 2


def test_copies_and_leaks_are_found_by_content_whatever_the_format():
    first = pictures(6)
    rows = [{"image": p, "text": f"n {i}"} for i, p in enumerate(first)]
    rows += [dict(rows[2]), {"image": first[3], "text": "another"}]
    one, found = measured(rows)
    assert found.streams[WHOLE].copies == (("2", "6"),)
    assert (
        found.streams["image"].copies == (("2", "6"), ("3", "7"))
        or len(found.streams["image"].copies) == 2
    )
    other = [{"image": p, "text": b" x"} for p in pictures(7)] + [{"text": b"n 1 "}]
    two, _ = measured(other)
    pair = measure.shared(two, one, "text", Rows(other), Rows(rows))
    assert (pair.count, pair.of, pair.names) == (1, 8, (("7", "1"),))
    assert measure.shared(two, one, WHOLE, Rows(other), Rows(rows)).count == 0


def test_scripts_are_counted_and_classes_have_no_sizes():
    texts = ["the cat", "\u043a\u043e\u0448\u043a\u0430", "\u732b", "12 !", "a cat"]
    rows = [{"text": t, "label": i % 2} for i, t in enumerate(texts)]
    _, found = measured(rows, {"text": Text(), "label": Label(names=("a", "b"))})
    assert found.streams["text"].scripts == {"Latin": 2, "Cyrillic": 1, "Cjk": 1, "none": 1}
    assert found.streams["label"].present == 5
    assert found.streams["label"].sizes == {}


def test_memory_is_sixteen_bytes_a_value():
    measuring = Measuring({"text": Text()}, 100_000)
    for i in range(5000):
        measuring.add(i, {"text": f"{i} " * 20})
    kept = sum(
        a.itemsize * len(a) for a in (*measuring._digests.values(), *measuring._rows.values())
    )
    assert kept == 5000 * 2 * 16  # the text and the whole record, each with its row
    assert sum(map(len, measuring._texts.values())) == 100  # one in fifty


def test_pictures_get_patches_in_their_shape_and_no_more_pixels_than_they_have():
    fields = lambda *a: (
        proposed([{"image": p} for p in pictures(12, *a)]).modalities["image"].fields
    )
    assert fields(28, 28) == {"size": (32, 32), "patch": 4, "resize": "stretch"}
    assert fields(300, 300)["size"] == (64, 64)
    assert fields(100, 400) == {"size": (32, 128), "patch": 8, "resize": "stretch"}
    both = [{"image": p} for p in (*pictures(9, 40, 80), *pictures(8, 80, 40))]
    assert proposed(both).modalities["image"].fields["resize"] == "crop"
    made = proposed(
        [{"image": p} for p in (*pictures(20), own.png(np.zeros((1, 4000, 3), np.uint8)))]
    )
    assert made.modalities["image"].fields["size"] == (48, 48)
    assert any("4,000 times as wide as high" in text for text in made.warnings)


def test_a_clip_of_600_s_and_one_of_0_s_are_told_and_do_not_size_the_rest():
    made = proposed([{"audio": tone(s)} for s in (*np.linspace(0.5, 1.5, 40), 600, 0)])
    assert made.modalities["audio"].fields == {"seconds": 1.5}
    assert any("up to 600.0 s are cut to their first 1.5 s" in text for text in made.warnings)
    assert any("length of 0 s" in text for text in made.warnings)
    long = proposed([{"audio": tone(s)} for s in (20, 21)])
    assert long.modalities["audio"].fields == {"seconds": 10.0}


def test_texts_get_room_for_their_pieces_and_a_vocabulary_for_their_words():
    short = proposed([{"text": f"a red square {i}"} for i in range(40)])
    assert short.modalities["text"].fields == {"max_tokens": 16, "vocab_size": 512}
    long = proposed([{"text": f"word{i} " * 16_000} for i in range(4)])  # 100 kB
    assert long.modalities["text"].fields["max_tokens"] == 256
    assert any("cut to their first 256 tokens" in text for text in long.warnings)
    letters = [chr(0x4E00 + i) for i in range(900)] + [chr(0x3B1 + i) for i in range(17)]
    many = proposed([{"text": "".join(letters[i : i + 6])} for i in range(0, 917, 3)])
    assert many.modalities["text"].fields["vocab_size"] >= 359 + 2 * 917
    words = [f"{chr(97 + i % 26)}{chr(97 + i // 26 % 26)}{chr(97 + i // 676)}" for i in range(3000)]
    rng = np.random.default_rng(0)
    _, found = measured([{"text": " ".join(rng.choice(words, 8))} for _ in range(1500)])
    closed = proposal.propose(dataclasses.replace(found, records=150_000))
    assert 2000 < closed.modalities["text"].fields["vocab_size"] < 20_000
    few = proposal.propose(measured([{"text": f"{words[i % 50]} {i % 50}"} for i in range(400)])[1])
    assert few.modalities["text"].fields["vocab_size"] == 512
    assert any("several scripts" in t for t in proposed(
        [{"text": t} for t in ("one cat", "\u0434\u0432\u0430", "\u4e09\u732b")]
    ).warnings)  # fmt: skip
    spoken = [
        {"text": f"{n} {w}"} for n in range(60) for w in ("dogs on the grass", "kleiner Hund")
    ]
    (told,) = [text for text in proposed(spoken).warnings if "languages" in text]
    assert re.match(
        r"text: about 2 languages \(.. 5\d%, .. \d\d%\): each language has a part", told
    )


@pytest.mark.parametrize(
    ("count", "batch", "steps"),
    [(10, 8, 300), (150, 32, 300), (1500, 64, 1200), (100_000, 64, 10_000)],
)
def test_batch_and_steps_go_with_the_number_of_records(count, batch, steps):
    assert proposal._run(count).fields == {"batch_size": batch, "total_steps": steps}


def test_equal_values_are_a_problem():
    rows = [{"image": p, "text": "a cat"} for p in pictures(8)]
    made = proposed(rows)
    assert made.constant == ("text",)
    assert "text is the same in all 8 records" in made.problems[0]
    assert any("8 records are few" in text for text in made.warnings)
