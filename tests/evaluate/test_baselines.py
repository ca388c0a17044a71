"""Nearest neighbours and ridge regression on raw features, against NumPy on a set made for them."""

import dataclasses
import types

import numpy as np
import pytest
from etils import epath

from mmjax.data.source import BadRecord, Source
from mmjax.errors import BadDataError
from mmjax.evaluate import Retrieval, ZeroShot, baselines
from mmjax.experiment import Guards
from mmjax.modalities.label import Label
from mmjax.modalities.modality import Modality
from mmjax.run import levels
from mmjax.run.view import View
from mmjax.typing import Piece, TokenSpec, positions

COUNTS = {"train": 120, "val": 40}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Row(Modality):
    """Six numbers."""

    def spec(self, name):
        return TokenSpec(name=name, kind="grid", max_tokens=1, width=6, grid=(1, 1, 1))

    def encode(self, value):
        return Piece(positions((1, 1, 1)), values_LP=np.asarray(value, np.float32)[None])

    def decode(self, piece):
        return piece.values_LP


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pairs(Source):
    """`a` are random numbers; `b` a linear map of them, or (`is_linear=False`) other ones.

    Record 3 of each split cannot be read; every fifth lacks `b`.
    """

    is_linear: bool = True

    def splits(self):
        return tuple(COUNTS)

    def open(self, split):
        rng = np.random.default_rng(len(split))
        a = rng.normal(size=(COUNTS[split], 6))
        turn = np.random.default_rng(0).normal(size=(6, 6))
        b = a @ turn if self.is_linear else rng.normal(size=a.shape)
        return Rows(a, b)

    def fingerprint(self):
        return f"pairs {self.is_linear}"


class Rows:
    def __init__(self, a, b):
        self.a, self.b = a, b

    def __len__(self):
        return len(self.a)

    def __getitem__(self, index):
        if index == 3:
            raise BadRecord("lost", "the file is gone")
        kind = ("warm", "cold")[int(self.a[index, 0] > 0)]
        there = {"b": self.b[index]} if index % 5 else {}
        return {"a": self.a[index], "kind": kind, **there}


def view_of(source, folder=None, split="val", strict=False, **evaluators):
    modalities = {"a": Row(), "b": Row(), "kind": Label(names=("cold", "warm"))}
    data = types.SimpleNamespace(train_split="train", eval_split="val")
    experiment = types.SimpleNamespace(
        modalities=modalities, data=data, evaluators=evaluators, guards=Guards(strict=strict)
    )
    program = types.SimpleNamespace(experiment=experiment, compiled={})
    return View(program=program, params=None, model_state=None, extra=None, step=7, split=split,
                folder=folder, data=source)  # fmt: skip


EVALUATOR = Retrieval(modalities=("a", "b"), gallery=20, ks=(1, 5))


def test_ridge_solves_a_linear_task_and_nothing_solves_a_random_one():
    found = EVALUATOR.baselines(view_of(Pairs()), {})
    assert found["ridge"]["a_to_b_R@1"] == found["ridge"]["b_to_a_MRR"] == 1.0
    assert 0.1 < found["nearest"]["a_to_b_R@1"] < 0.9  # a neighbour is like, not the same
    assert found["ridge"].keys() == {
        f"{d}_{m}" for d in ("a_to_b", "b_to_a") for m in ("R@1", "MRR")
    }
    chance = EVALUATOR.chance(view_of(Pairs()))
    random = EVALUATOR.baselines(view_of(Pairs(is_linear=False)), {})
    for method in ("ridge", "nearest"):
        assert abs(random[method]["a_to_b_MRR"] - chance["MRR"]) < 0.15


def test_nearest_neighbours_are_those_of_numpy():
    source = Pairs()
    found = EVALUATOR.baselines(view_of(source), {})
    read = lambda split: [
        r for i in range(COUNTS[split]) if i != 3 and "b" in (r := source.open(split)[i])
    ]
    train = read("train")
    everything = [source.open("train")[i] for i in range(COUNTS["train"]) if i != 3]
    mean = {k: np.mean([r[k] for r in everything if k in r], axis=0) for k in "ab"}
    unit = lambda x: x / np.linalg.norm(x, axis=-1, keepdims=True)
    rows = lambda some, k: unit(np.array([r[k] for r in some], np.float32) - mean[k])
    val = [source.open("val")[i] for i in range(COUNTS["val"]) if i != 3]
    hits = []
    for start in (0,):  # 39 records can be read: one whole gallery of 20
        gallery = val[start : start + 20]
        there = [r for r in gallery if "b" in r]
        like = np.argmax(rows(there, "a") @ rows(train, "a").T, axis=1)
        scores = rows(train, "b")[like] @ rows(there, "b").T
        hits += (scores.argmax(axis=1) == np.arange(len(there))).tolist()
    assert found["nearest"]["a_to_b_R@1"] == pytest.approx(np.mean(hits))


def test_the_penalty_is_that_with_the_least_error_on_records_left_out():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(30, 8))
    y = x @ rng.normal(size=(8, 3)) + 3 * rng.normal(size=(30, 3))
    got = baselines.Ridge(x).fit(y)
    unit = np.trace(x.T @ x) / 8

    def solved(x, y, strength):
        return np.linalg.solve(x.T @ x + strength * np.eye(8), x.T @ y)

    errors = []
    for strength in baselines.STRENGTHS * unit:
        out = [np.delete(np.arange(30), i) for i in range(30)]
        left = [y[i] - x[i] @ solved(x[k], y[k], strength) for i, k in enumerate(out)]
        errors.append(np.mean(np.square(left)))
    best = baselines.STRENGTHS[int(np.argmin(errors))] * unit
    np.testing.assert_allclose(got, solved(x, y, best), rtol=1e-8)


def test_nothing_is_learned_from_the_split_that_is_scored():
    seen = []

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Watched(Pairs):
        def open(self, split):
            seen.append(split)
            return super().open(split)

    view = view_of(Watched())
    learned = baselines.learn(view, ("a", "b"), 1000)
    assert set(seen) == {"train"}
    assert len(learned.examples) == COUNTS["train"] - 1
    assert EVALUATOR.baselines(view_of(Pairs(), split="train"), {}) == {}


def test_the_records_are_bounded_and_spread():
    assert baselines.spread(7, 10) == list(range(7))
    some = baselines.spread(10_000, 2000)
    assert len(some) == len(set(some)) <= 2000
    assert some[-1] > 9700
    assert np.diff(some).max() < 300
    assert baselines.spread(100, 30)[-1] < 100


def test_classes_by_majority_nearest_and_ridge():
    evaluator = ZeroShot(modalities=("a",), classes="kind")
    found = evaluator.baselines(view_of(Pairs()), {})
    source = Pairs()
    right = [source.open("val")[i]["kind"] for i in range(COUNTS["val"]) if i != 3]
    train = [source.open("train")[i]["kind"] for i in range(COUNTS["train"]) if i != 3]
    most = max(set(train), key=train.count)
    assert found["majority"]["a_top1"] == pytest.approx(right.count(most) / len(right))
    assert found["ridge"]["a_top1"] > 0.8  # the class is the sign of a number
    assert found["nearest"]["a_top1"] > found["majority"]["a_top1"]


def test_pictures_sounds_and_texts_become_few_numbers():
    for shape in ((224, 224, 3), (500, 64), (40, 30, 20), (9000, 1)):
        value = np.random.default_rng(0).normal(size=shape)
        row = baselines.small(value)
        assert row.ndim == 1
        assert len(row) <= baselines.WIDTH
    frames = np.ones((500, 64))
    assert np.allclose(baselines.small(frames)[: 12 * 12], 1)
    same, other = (baselines.counted(t) for t in ("A red square", "a red, square!"))
    assert same @ other > 0.8 > same @ baselines.counted("nothing of the kind")
    assert np.linalg.norm(same) == pytest.approx(1)
    assert np.isfinite(baselines.counted("\ud800 " * 100_000)).all()
    assert baselines.counted("").shape == (baselines.WIDTH,)


def test_levels_are_computed_once_for_a_run_and_its_data(tmp_path, monkeypatch):
    view = view_of(Pairs(), epath.Path(tmp_path))
    scores = {"a_to_b_R@1": 0.2, "a_to_b_MRR": 0.4, "b_to_a_R@1": 0.3, "b_to_a_MRR": 0.4}
    first = levels.of(view, "retrieval", EVALUATOR, scores)
    assert levels.read(tmp_path / "evals" / "retrieval") == first
    learn = baselines.learn
    monkeypatch.setattr(baselines, "learn", lambda *_: pytest.fail("it was learned before"))
    assert levels.of(view, "retrieval", EVALUATOR, scores) == first
    monkeypatch.setattr(baselines, "learn", learn)
    other = levels.of(view_of(Pairs(is_linear=False), view.folder), "retrieval", EVALUATOR, scores)
    assert other != first
    none = dataclasses.replace(EVALUATOR, num_train=0)
    assert levels.of(view, "retrieval", none, scores).keys() == {"chance"}


def test_the_table_says_in_words_what_a_run_is_not_better_than():
    found = {"chance": {"a_R@1": 0.1, "b_R@1": 0.1}, "ridge": {"a_R@1": 0.5, "b_R@1": 0.2}}
    table = levels.rows({"a_R@1": 0.4, "b_R@1": 0.6, "a_R@1_new": 0.1}, found)
    said = levels.lines("retrieval", table)
    assert [line.split()[:4] for line in said[1:3]] == [
        ["a_R@1", "0.400", "0.100", "0.500"], ["b_R@1", "0.600", "0.100", "0.200"]
    ]  # fmt: skip
    assert said[1].endswith("not above ridge")
    assert said[3].startswith("not above ridge in 1 of 2 scores (a_R@1): no more has been learnt")
    better = levels.rows({"a_R@1": 0.9, "b_R@1": 0.6}, found)
    assert levels.verdict(better) == ["above chance, ridge in all 2 scores"]
    low = levels.rows({"text/loss": 1.0}, {"unigram": {"text/loss": 2.0}})
    assert levels.verdict(low) == ["above unigram in all 1 scores"]
    assert levels.verdict({}) == []
    (asked, _) = levels.verdict(levels.rows({"a_R@1": 1.0}, {"nearest": {"a_R@1": 0.98}}))
    assert "does the split repeat train?" in asked


# ---------------------------------------------------------------- before the first compile


@dataclasses.dataclass(frozen=True, kw_only=True)
class Comparing(View):
    """A view whose modalities all compare."""

    def comparing(self, *modalities):
        return dict.fromkeys(modalities, "pair")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Apart(Pairs):
    """No record has both `a` and `b`."""

    def open(self, split):
        rows = [{"a": np.ones(6)}, {"b": np.ones(6)}] * (COUNTS[split] // 2)
        return rows if split == "train" else rows[:30]


def checked(evaluator, source, split="val"):
    view = view_of(source, split=split)
    evaluator.check(Comparing(**{f.name: getattr(view, f.name) for f in dataclasses.fields(view)}))


def test_galleries_that_cannot_be_are_told_before_anything_is_compiled():
    checked(EVALUATOR, Pairs())
    with pytest.raises(ValueError, match="Pairs has no split 'test'; there are train, val"):
        checked(EVALUATOR, Pairs(), "test")
    with pytest.raises(ValueError, match=r"0 of 30 examples of split 'val' have 'a' and 'b'"):
        checked(EVALUATOR, Apart())
    far = dataclasses.replace(EVALUATOR, splits={"": "{split}", "far": "{split}_far"})
    with pytest.raises(ValueError, match="no split 'val_far'"):
        checked(far, Pairs())


def test_classes_that_are_absent_are_told_before_anything_is_compiled():
    checked(ZeroShot(modalities=("a",), classes="kind"), Pairs())
    with pytest.raises(ValueError, match="is no modality with names of classes"):
        checked(ZeroShot(modalities=("a",), classes="b"), Pairs())
    with pytest.raises(ValueError, match=r"none of the first 100 records.*has a class and 'a'"):
        checked(ZeroShot(modalities=("a",), classes="kind"), Apart())


def test_a_record_that_is_bad_is_left_out_and_counted():
    view = view_of(Pairs())
    assert len(view.examples("val")) == COUNTS["val"] - 1
    assert list(view.bad) == [("val", "3")]
    with pytest.raises(BadDataError, match=r"'val': 1 of 40 records are bad.*lost in records 3"):
        view_of(Pairs(), strict=True).examples("val")


def test_values_that_are_all_alike_teach_nothing_and_do_not_fail():
    same = [np.ones(6)] * 10
    raw = baselines.Raw.of("a", same, False)
    assert raw.rows_ND.shape == (10, 0)
    none = baselines.Raw.of("a", [None] * 10, False)
    assert not none.present_N.any()
    assert baselines.Ridge(raw.rows_ND).fit(np.ones((10, 3))).shape == (0, 3)
