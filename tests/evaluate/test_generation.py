"""The matrix of generation, with a generator whose answers are known."""

from __future__ import annotations

import dataclasses
import json
import types

import jax
import mini
import numpy as np
import pytest
from etils import epath

import mmjax
from mmjax import config, generate
from mmjax.data.layouts import Masked
from mmjax.demo.judges import NUMBERS_JUDGES, DigitReader, SpeechReader, Words
from mmjax.demo.numbers import UNSEEN, Numbers
from mmjax.evaluate import generation, judges, verbs
from mmjax.evaluate.generation import Generation
from mmjax.generate import Decoding
from mmjax.modalities.image import Image
from mmjax.modalities.modality import Modality
from mmjax.modalities.structured import Bins, Boxes, Metadata
from mmjax.typing import Piece, TokenSpec

SIZE = (8, 16)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pixels(Modality):
    """Each pixel is a code of four levels."""

    def spec(self, name):
        return TokenSpec(name=name, kind="grid", max_tokens=128, vocab_size=4, grid=(1, *SIZE))

    def encode(self, value):
        levels = np.asarray(value, np.float32) / (1 if np.asarray(value).dtype == bool else 255)
        return Piece(np.zeros((128, 3), np.float32), ids_L=np.round(levels.ravel() * 3).astype(int))

    def decode(self, piece):
        return (piece.ids_L / 3).reshape(*SIZE, 1).astype(np.float32)

    def write(self, value, stem):
        return Image(size=SIZE, patch=4, channels=1).write(value, stem)


MODALITIES = {
    "tok_image": Pixels(field="image"),
    "image": Image(size=SIZE, patch=4, channels=1),
    "tok_mask": Pixels(field="mask"),
    "boxes": Boxes(max_boxes=2, bins=17),
    "metadata": Metadata(
        schema={"value": Bins(num=100), "parity": Bins(num=2), "strokes": Bins(num=129)}
    ),
}
JUDGES = {
    "image": DigitReader(),
    "mask": judges.MaskIoU(),
    "boxes": judges.BoxIoU(),
    "metadata": judges.SameMetadata(),
}


class Fake:
    """A view of the numbers without a model."""

    split, step, source = "test", 7, Numbers()
    experiment = types.SimpleNamespace(modalities=MODALITIES)
    program = types.SimpleNamespace(experiment=experiment, compiled={})

    def __init__(self, folder=None):
        self.folder, self.asked = folder, []

    def examples(self, split, limit=None):
        self.asked.append(split)
        records = self.source.open(split)
        return [records[i] for i in range(limit or len(records))]

    def value(self, modality, example):
        return example.get(MODALITIES[modality].field or modality)

    def has(self, modality, example):
        return self.value(modality, example) is not None


@pytest.fixture
def answered(monkeypatch):
    """Answers are those of the real examples, and of the next one where a number was not seen."""
    plans = []

    def sample(view, pieces, plan, seeds):
        plans.append((tuple(pieces[0]), plan))
        assert len(seeds) == len(pieces)
        assert all(p is not None for given in pieces for p in given.values())
        records = view.source.open("test")
        rows = [i + (i in UNSEEN) for i in range(len(pieces))]
        values = [records[i] for i in rows]
        return [
            {d.stream: MODALITIES[d.stream].encode(view.value(d.stream, e)) for d in plan}
            for e in values
        ]

    monkeypatch.setattr(generate, "sample", sample)
    return plans


def test_every_pair_is_judged_and_split_by_slices(answered):
    found = Generation(judges=JUDGES).run(Fake())
    pairs = [n for n in found if n.split("_to_")[0] in JUDGES]
    assert len(pairs) == 12 * 3
    assert found["boxes_to_image_read_unseen"] == 0  # the answer is that of another number
    assert found["boxes_to_image_read_seen"] > 0.9
    assert found["boxes_to_image_read"] == pytest.approx(0.8 * found["boxes_to_image_read_seen"])
    assert found["image_to_metadata_right_seen"] == 1
    assert found["image_to_mask_iou_seen"] == 1 > found["image_to_mask_iou_unseen"] > 0
    np.testing.assert_allclose(found["image_to_boxes_iou_seen"], 1)
    assert len(answered) == 12


def test_real_values_codes_and_a_trivial_answer_are_judged(answered):
    evaluator = Generation(judges=JUDGES, cells=("boxes_to_image", "image_to_boxes"))
    found = evaluator.run(Fake())
    assert found["real_to_image_read"] > 0.93
    assert found["codes_to_image_read"] > 0.8  # four levels of gray
    assert found["trivial_to_image_read"] <= 0.01
    assert found["real_to_boxes_iou"] == found["codes_to_boxes_iou"] == 1
    assert 0.3 < found["trivial_to_boxes_iou"] < 0.9
    assert "real_to_mask_iou" not in found
    levels = evaluator.chance(Fake())
    assert levels["image_read"] == 0.01
    assert 0.3 < levels["boxes_iou"] < found["trivial_to_boxes_iou"]
    assert 0 < levels["mask_iou"] < 0.6


def test_raw_streams_are_given_and_codes_are_wanted(answered):
    cells = ("image_to_boxes", "boxes_to_image", "image_to_metadata", "mask_to_boxes")
    evaluator = Generation(
        judges=JUDGES, cells=cells, num_examples={"*": 3, "mask_to_boxes": 2},
        splits={"mask": "{split}_new_voice"}, through={"image_to_metadata": ("mask",)},
        decodings={"image": Decoding(stream="", temperature=0.5)},
    )  # fmt: skip
    view = Fake()
    evaluator.run(view)
    asked = {given: [d.stream for d in plan] for (given,), plan in answered}
    assert asked == {
        "image": ["tok_mask", "metadata"],
        "boxes": ["tok_image"],
        "tok_mask": ["boxes"],
    }
    assert [given for (given,), _ in answered] == ["image", "image", "tok_mask", "boxes"]
    assert answered[3][1][0].temperature == 0.5
    assert view.asked.count("test_new_voice") == 1  # given the mask


def test_pairs_that_no_example_holds_are_left_out(answered):
    class Lacking(Fake):
        def examples(self, split, limit=None):
            return [e | {"boxes": None} for e in super().examples(split, limit)]

    evaluator = Generation(judges=JUDGES, num_examples={"*": 3})
    found = evaluator.run(Lacking())
    assert "image_to_mask_iou" in found
    assert not [name for name in found if "boxes" in name]
    assert evaluator.chance(Lacking())["boxes_iou"] == 0


def test_samples_are_written_with_their_list(answered, tmp_path):
    view = Fake(epath.Path(tmp_path))
    cells = ("image_to_mask", "mask_to_image", "metadata_to_boxes")
    Generation(judges=JUDGES, cells=cells, num_examples={"*": 50}, num_samples=2).run(view)
    folder = tmp_path / "samples" / "7"
    entries = json.loads((folder / "samples.json").read_text())["entries"]
    assert len(entries) == 6
    entry = entries[0]
    assert [*entry["given"], *entry["wanted"]] == ["image", "mask"]
    assert (entry["note"], entry["score"]) == ("seen", {"mask": 1.0})
    for entry in entries:
        for name in (*entry["given"].values(), *entry["wanted"].values()):
            assert (folder / name).stat().st_size > 0


def test_a_config_holds_it():
    evaluator = Generation(
        decodings={"image": Decoding(stream="", steps=4, temperature=1.0)},
        through={"image_to_audio": ("text",)},
        judges={"image": DigitReader(neighbours=3), "audio": SpeechReader(),
                "text": Words()},
    )  # fmt: skip
    tree = json.loads(json.dumps(config.to_json(evaluator)))
    assert config.from_json(tree, config.seam_classes()) == evaluator


def test_config_errors():
    with pytest.raises(ValueError, match="Generation: cells names 'image_to_image'"):
        Generation(judges=JUDGES, cells=("image_to_image",))
    with pytest.raises(ValueError, match=r"Generation: num_examples\['text_to_image'\]=0 must be"):
        Generation(judges=JUDGES, num_examples={"text_to_image": 0})
    for few in ({}, {"mask": judges.MaskIoU()}):
        with pytest.raises(ValueError, match=r"Generation: judges=.* fewer than two modalities"):
            Generation(judges=few)
    with pytest.raises(ValueError, match="Generation: modality 'smell' is not in the model"):
        generation.raw_stream(Fake(), "smell")


def test_samples_are_spread_over_the_examples_and_their_slices():
    plain = [{}] * 100
    assert generation.spread(plain, 4) == [12, 37, 62, 87]
    assert generation.spread(plain[:2], 4) == [0, 1]
    mixed = [{"slices": ("unseen",) if i < 20 else ("seen",)} for i in range(100)]
    assert generation.spread(mixed, 4) == [5, 15, 40, 80]
    again = [{"identity": i % 10} for i in range(100)]
    assert generation.spread(again, 4) == [1, 3, 5, 7]
    few = [{"identity": i % 3} for i in range(100)]
    assert generation.spread(few, 4) == [12, 37, 62, 87]


@pytest.mark.slow
def test_a_run_is_evaluated_and_shown(tmp_path):
    base = mini.get_config()
    streams = {n: MODALITIES[n] for n in ("boxes", "metadata")}
    names = ("text", *streams)
    task = dataclasses.replace(
        base.tasks["text"], inputs=names, targets=names,
        layout=Masked(input_tokens=16, target_tokens=16),
    )  # fmt: skip
    evaluator = Generation(
        judges={n: NUMBERS_JUDGES[n] for n in names},
        num_examples={"*": 5},
        num_samples=2,
    )
    experiment = dataclasses.replace(
        base, modalities={"text": base.modalities["text"], **streams}, tasks={"masked": task},
        evaluators={"generation": evaluator}, total_steps=2,
    )  # fmt: skip
    mmjax.train(experiment, tmp_path / "run", devices=jax.devices()[:1])
    view = mmjax.load(str(tmp_path / "run"), devices=jax.devices()[:1])
    found = json.loads((tmp_path / "run" / "evals" / "generation" / "2.json").read_text())
    assert len([n for n in found if n.split("_to_")[0] in names]) == 6 * 2  # all are seen numbers
    assert all(0 <= value <= 1 for value in found.values())
    levels = evaluator.chance(view)
    assert verbs.chance(levels, "text_to_boxes_iou") > 0.3
    assert verbs.chance(levels, "boxes_to_text_exact_seen") == 0.01
    entries = json.loads((tmp_path / "run" / "samples" / "2" / "samples.json").read_text())
    assert len(entries["entries"]) == 6 * 2
    lines = mmjax.report(str(tmp_path / "run"))["summary"]
    assert any(line.startswith("Best cell") for line in lines)


# ---------------------------------------------------------------- before the first compile


def test_judges_and_cells_are_opened_before_anything_is_compiled():
    Generation(judges=JUDGES, num_examples={"*": 5}).check(Fake())
    view = Fake()
    with pytest.raises(ValueError, match="modality 'smell' is not in the model"):
        Generation(judges={**JUDGES, "smell": judges.MaskIoU()}).check(view)
    view.has = lambda modality, example: modality != "boxes"
    with pytest.raises(ValueError, match="cells names image_to_boxes, but none of the first 100"):
        Generation(judges=JUDGES, cells=("image_to_boxes",)).check(view)
    with pytest.raises(ValueError, match="judges names 'boxes', but none of the records"):
        Generation(judges=JUDGES, num_examples={"*": 5}).check(view)
    wrong = {"image": judges.SameMetadata(), "mask": judges.MaskIoU()}
    with pytest.raises(ValueError, match=r"SameMetadata: Image is no Metadata"):
        Generation(judges=wrong, num_examples={"*": 5}).check(Fake())


def test_a_judge_learns_once_for_a_program(monkeypatch):
    learned = []
    ready = judges.MaskIoU.ready
    monkeypatch.setattr(
        judges.MaskIoU, "ready", lambda self, *given: learned.append(1) or ready(self, *given)
    )
    evaluator = Generation(
        judges={"mask": judges.MaskIoU(), "boxes": judges.BoxIoU()}, num_examples={"*": 5}
    )
    view = Fake()
    view.program = types.SimpleNamespace(experiment=Fake.experiment, compiled={})
    evaluator.check(view)
    evaluator.check(view)
    evaluator.chance(view)
    assert learned == [1]


def test_the_best_constant_answer_is_what_a_run_is_compared_to():
    scores = {"image_to_mask_iou": 0.9, "trivial_to_mask_iou": 0.4, "real_to_mask_iou": 1.0}
    assert Generation(judges=JUDGES).baselines(Fake(), scores) == {
        "constant": {"image_to_mask_iou": 0.4}
    }


def test_constant_answers_suit_what_is_judged():
    assert generation.constants(["a", "b", "b"]) == ["b"]
    (mean,) = generation.constants([np.zeros(2), np.ones(2)])
    np.testing.assert_array_equal(mean, [0.5, 0.5])
    maps = [np.array([[1, 5]]), np.array([[1, 0]]), np.array([[2, 0]])]
    (most,) = generation.constants(maps)  # a mean of classes is another class
    np.testing.assert_array_equal(most, [[1, 0]])
    rows = [("cup", None), ("cup", 3), ("jar", None)]
    (row,) = generation.constants([{"kind": kind, "size": size} for kind, size in rows])
    assert row == {"kind": "cup", "size": None}
    boxes = [np.zeros((n % 3, 4)) for n in range(40)]  # of different numbers: some of them
    assert generation.constants(boxes) == boxes[: generation.GUESSES]
    graphs = [{"nodes": ["a"], "edges": []}, {"nodes": [], "edges": []}]
    assert generation.constants(graphs) == graphs
