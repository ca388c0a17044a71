"""Retrieval and zero-shot against brute force, with honest ties."""

import itertools
import types

import numpy as np
import pytest

from mmjax.evaluate import Retrieval, ZeroShot, ranking, verbs
from mmjax.objectives import InfoNCE


def brute_force(scores, same, k):
    """Share of all orders of equal candidates in which a positive is among the best k."""
    hits = []
    for order in itertools.permutations(range(len(scores))):
        ranked = sorted(order, key=lambda i: -scores[i])  # stable: ties stay in this order
        hits.append(any(same[i] for i in ranked[:k]))
    return np.mean(hits)


def brute_reciprocal(scores, same):
    """Mean over all orders of equal candidates of one over the rank of the first positive."""
    ranks = []
    for order in itertools.permutations(range(len(scores))):
        ranked = sorted(order, key=lambda i: -scores[i])
        ranks.append(1 + next(place for place, i in enumerate(ranked) if same[i]))
    return np.mean(1 / np.array(ranks))


def test_reciprocal_ranks_equal_the_mean_over_orders_of_ties():
    rng = np.random.default_rng(0)
    scores = rng.integers(0, 3, (30, 5)).astype(float)
    same = rng.random((30, 5)) < 0.4
    same[0] = False  # nothing is right
    found = ranking.reciprocal(scores, same)
    assert found[0] == 0
    for got, row, right in zip(found, scores, same, strict=True):
        if right.any():
            assert abs(got - brute_reciprocal(row, right)) < 1e-12


@pytest.mark.parametrize("k", [1, 2, 3])
def test_recall_equals_the_mean_over_orders_of_ties(k):
    rng = np.random.default_rng(0)
    for _ in range(30):
        scores = rng.integers(0, 3, (1, 5)).astype(float)
        same = rng.random((1, 5)) < 0.4
        if not same.any():
            continue
        got = ranking.recall(scores, same, k)[0]
        assert abs(got - brute_force(scores[0], same[0], k)) < 1e-12


class Fake:
    """A view whose embeddings are given."""

    split, folder = "val", None

    def __init__(self, features, identities, slices=None):
        self.features = features
        self.all = [
            {"identity": i, "row": r, "slices": slices[r] if slices else ()}
            for r, i in enumerate(identities)
        ]
        self.source = types.SimpleNamespace(class_prompts=lambda: {0: ("a",), 1: ("b", "c")})

    def on(self, source):
        return source or self  # here a source is the view that it gives

    def examples(self, split, limit=None):
        self.asked = split
        return self.all[:limit]

    def has(self, modality, example):
        return self.features[modality][example["row"]] is not None

    def value(self, modality, example):
        return example.get(modality)

    def example(self, modality, value):
        return {"prompt": value}

    def comparing(self, *modalities):
        return dict.fromkeys(modalities, "pair")

    def similarity(self, task, a, b):
        return InfoNCE().similarity(a, b)

    def prototype(self, task, z):
        return InfoNCE().prototype(z)

    def embed(self, modality, examples, task):
        width = 4
        rows = [
            {"a": [1, 0, 0, 0], "b": [0, 1, 0, 0], "c": [0, 1, 1, 0]}[e["prompt"]]
            if "prompt" in e
            else self.features[modality][e["row"]]
            for e in examples
        ]
        return np.array([np.zeros(width) if r is None else r for r in rows], np.float32)


def test_a_collapsed_model_scores_chance():
    same = [np.ones(4)] * 20
    view = Fake({"a": same, "b": same}, range(20))
    found = Retrieval(modalities=("a", "b"), gallery=10).run(view)
    assert found["a_to_b_R@1"] == pytest.approx(0.1)
    assert found["b_to_a_R@5"] == pytest.approx(0.5)
    levels = Retrieval(modalities=("a", "b"), gallery=10).chance(view)
    assert verbs.chance(levels, "a_to_b_R@1_new_voice_unseen") == 0.1
    assert verbs.chance(levels, "a_to_b_R@5") == 0.5
    assert verbs.chance(levels, "other") is None


def test_chance_in_a_split_that_is_smaller_than_a_gallery():
    view = Fake({"a": [np.ones(4)] * 4, "b": [np.ones(4)] * 4}, range(4))
    evaluator = Retrieval(modalities=("a", "b"), splits={"": "{split}", "far": "{split}_far"})
    found, levels = evaluator.run(view), evaluator.chance(view)
    ranks = (1 + 1 / 2 + 1 / 3 + 1 / 4) / 4
    recalls = {"R@1": 0.25, "R@5": 1.0, "R@1_far": 0.25, "R@5_far": 1.0}
    assert levels == recalls | {"MRR": ranks, "MRR_far": ranks}
    for metric, value in found.items():  # the model knows nothing
        assert verbs.chance(levels, metric) == pytest.approx(value)


def test_galleries_slices_and_absent_members():
    eye = list(np.eye(4, dtype=np.float32))
    a, b = eye + eye, eye + eye[::-1]
    b[1] = None  # the query of number 1 in the first gallery has no answer
    slices = [("seen",)] * 4 + [("unseen",)] * 4
    view = Fake({"a": a, "b": b}, [0, 1, 2, 3] * 2, slices)
    found = Retrieval(modalities=("a", "b"), gallery=4, ks=(1,)).run(view)
    assert found["a_to_b_R@1_seen"] == 1.0
    assert found["a_to_b_R@1_unseen"] == 0.0
    assert found["a_to_b_R@1"] == pytest.approx(3 / 7)


def test_further_splits_get_their_suffix():
    eye = list(np.eye(4, dtype=np.float32))
    view = Fake({"a": eye, "b": eye}, range(4))
    splits = {"": "{split}", "new_voice": "{split}_new_voice"}
    found = Retrieval(modalities=("a", "b"), gallery=4, splits=splits).run(view)
    assert found["a_to_b_R@1_new_voice"] == 1.0
    assert view.asked == "val_new_voice"


def test_zero_shot_takes_the_mean_of_the_prompts():
    features = [[1, 0, 0, 0], [0, 1, 0.4, 0], [0, 0, 1, 0]]
    view = Fake({"a": features}, [0, 1, 1])
    evaluator = ZeroShot(modalities=("a",))
    assert evaluator.run(view) == {"a_top1": 1.0}
    assert evaluator.chance(view) == {"top1": 0.5}


def test_a_source_of_its_own_is_what_is_evaluated():
    eye = list(np.eye(4, dtype=np.float32))
    view, other = Fake({"a": eye, "b": eye[::-1]}, range(4)), Fake({"a": eye, "b": eye}, range(4))
    found = {s: Retrieval(modalities=("a", "b"), source=s).run(view) for s in (None, other)}
    assert (found[None]["a_to_b_R@1"], found[other]["a_to_b_R@1"]) == (0.0, 1.0)
    two = Fake({"a": eye[:2], "b": eye[:2]}, range(2))
    assert Retrieval(modalities=("a", "b"), ks=(1,), source=two).chance(view)["R@1"] == 0.5
    other.source = types.SimpleNamespace(class_prompts=lambda: dict.fromkeys(range(4), ("a",)))
    evaluator = ZeroShot(modalities=("a",), source=other)
    assert evaluator.chance(view) == {"top1": 0.25}
    assert evaluator.run(view) == {"a_top1": 0.25}


def test_bad_settings_are_told():
    with pytest.raises(ValueError, match="fewer than two"):
        Retrieval(modalities=("a",))
    with pytest.raises(ValueError, match="gallery=1"):
        Retrieval(modalities=("a", "b"), gallery=1)


def test_captions_that_repeat_are_one_answer():
    """The features of rows 0 and 1 are exchanged, which shows unless their captions are one."""
    eye = list(np.eye(4, dtype=np.float32))
    view = Fake({"a": eye, "b": [eye[1], eye[0], *eye[2:]]}, range(4))
    evaluator = Retrieval(modalities=("a", "b"), ks=(1,))
    first = lambda: {value for name, value in evaluator.run(view).items() if "R@1" in name}
    assert first() == {0.5}
    for example, caption in zip(view.all, ("a cat", "a cat", "a dog", None), strict=True):
        example["b"] = caption
    assert first() == {1.0}
    # An absent caption is no answer: row 0 has two right ones among three that score alike.
    view.features["b"][1], view.all[3]["b"] = None, "a cat"
    assert evaluator.run(view)["a_to_b_R@1"] == pytest.approx((2 / 3 + 1 + 1) / 3)
