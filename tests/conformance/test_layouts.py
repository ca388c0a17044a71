"""What every layout must hold, one row each. A new layout is one more row."""

import dataclasses

import jax
import numpy as np
import pytest

from mmjax.data import layouts, prefix
from mmjax.data.masking import Policy
from mmjax.data.task import Sample, Streams
from mmjax.models import attention
from mmjax.typing import General, InOrder, OneSegment, Piece, TokenSpec, Vocabulary

WORDS = TokenSpec(
    name="words", kind="sequence", max_tokens=10, vocab_size=90, text=True,
    first_sentinel=70, num_sentinels=20, end_id=1,
)  # fmt: skip
PATCHES = TokenSpec(name="patches", kind="grid", max_tokens=12, width=5, grid=(1, 3, 4))
CODES = TokenSpec(name="codes", kind="grid", max_tokens=8, vocab_size=300, grid=(1, 2, 4))
BOXES = TokenSpec(name="boxes", kind="set", max_tokens=4, vocab_size=50)
VECTOR = TokenSpec(name="vector", kind="vector", max_tokens=1, width=7)
VOCABULARY = Vocabulary((CODES, WORDS, PATCHES, BOXES, VECTOR))
NAMES = tuple(s.name for s in VOCABULARY.specs)
EVERYTHING = Streams(NAMES, NAMES)
WIDTHS = tuple(Policy(input_alpha=a, target_alpha=a) for a in (0.01, 1.0, 10.0))

TABLE = {
    "masked": (layouts.Masked(input_tokens=16, target_tokens=12), EVERYTHING),
    "masked_defaults": (layouts.Masked(), EVERYTHING),
    "masked_tight": (layouts.Masked(input_tokens=5, target_tokens=3, room=1.0), EVERYTHING),
    "masked_drop": (
        layouts.Masked(input_tokens=16, target_tokens=12, drop={"words": 0.3}),
        EVERYTHING,
    ),
    "masked_text": (layouts.Masked(policies=WIDTHS), Streams(("words",), ("words",))),
    "masked_caption": (layouts.Masked(), Streams(("patches", "vector"), ("words",))),
    "masked_single_view": (
        layouts.Masked(input_tokens=9, target_tokens=9, single_view=True),
        EVERYTHING,
    ),
    "aligned": (layouts.Aligned(), Streams(NAMES, ())),
    "aligned_short": (layouts.Aligned(max_tokens={"words": 3}), Streams(("words", "patches"), ())),
    "aligned_drop": (
        layouts.Aligned(max_tokens={"codes": 7}, drop={"patches": 0.5, "codes": 0.3}),
        Streams(("patches", "codes", "words"), ()),
    ),
    "spans": (layouts.Spans(), Streams(("patches", "words"), ("words",))),
    "prefix": (prefix.Prefix(), Streams(("patches",), ("words", "codes"))),
    "prefix_two_views": (
        prefix.Prefix(two_views=True),
        Streams(("patches",), ("words", "codes", "patches")),
    ),
    "prefix_none": (prefix.Prefix(prefix_fraction=(0, 0)), Streams((), ("words", "codes"))),
    "prefix_one_target": (prefix.Prefix(two_views=True), Streams(("patches",), ("words",))),
    "prefix_short": (prefix.Prefix(length=15), Streams(("patches", "boxes"), ("words",))),
}
ROWS = 6


def piece(spec, rng):
    count = int(rng.integers(1, spec.max_tokens + 1)) if spec.kind != "grid" else spec.max_tokens
    position = rng.random((count, 3)).astype(np.float32)
    if spec.vocab_size:
        high = spec.first_sentinel if spec.num_sentinels else spec.vocab_size
        return Piece(position, ids_L=rng.integers(0, high, count).astype(np.int32))
    return Piece(position, values_LP=rng.normal(size=(count, spec.width)).astype(np.float32))


def samples(streams, seed, absent=0.25, rows=ROWS):
    made = []
    for i in range(rows):
        rng = np.random.default_rng([seed, i])
        used = dict.fromkeys((*streams.inputs, *streams.targets))
        pieces = {
            n: None if rng.random() < absent else piece(VOCABULARY.spec(n), rng) for n in used
        }
        weight = float(i != 2)
        made.append(Sample(pieces, i, (i, 0), 1000 * seed + i, weight))
    return made


def shapes(batch):
    return jax.tree.map(lambda x: (x.shape, x.dtype.name), batch)


@pytest.fixture(params=list(TABLE), name="row")
def _row(request):
    return TABLE[request.param]


@pytest.mark.parametrize("seed", range(3))
def test_shapes_do_not_depend_on_the_data(row, seed):
    layout, streams = row
    some, counts = layout.build(samples(streams, seed), streams, VOCABULARY)
    nothing, _ = layout.build(samples(streams, seed, absent=2.0), streams, VOCABULARY)
    assert jax.tree.structure(some) == jax.tree.structure(nothing)
    assert shapes(some) == shapes(nothing)
    assert set(some.targets) == set(streams.targets)
    assert all(isinstance(v, float) and v >= 0 for v in counts.values())
    assert counts["tokens"] <= counts["slots"]
    for leaf in jax.tree.leaves(some):
        assert leaf.dtype in (np.int32, np.uint32, np.float32, np.bool_)
        if leaf.dtype == np.float32:
            assert np.isfinite(leaf).all()
    assert some.present_BSM.shape == (ROWS, 1, len(NAMES))


def test_same_samples_give_the_same_batch(row):
    layout, streams = row
    a, b = (layout.build(samples(streams, 5), streams, VOCABULARY)[0] for _ in range(2))
    jax.tree.map(np.testing.assert_array_equal, a, b)
    again = dataclasses.replace(layout)
    c = again.build(samples(streams, 5), streams, VOCABULARY)[0]
    jax.tree.map(np.testing.assert_array_equal, a, c)


@pytest.mark.parametrize("seed", range(3))
def test_views_keep_the_rule_that_they_declare(row, seed):
    layout, streams = row
    batch, _ = layout.build(samples(streams, seed), streams, VOCABULARY)
    for view in batch.views.values():
        if isinstance(view.rule, General):
            continue
        slot_L = np.arange(view.segment_BL.shape[1])
        used_B = (view.segment_BL > 0).sum(axis=1)
        np.testing.assert_array_equal(view.segment_BL, slot_L < used_B[:, None])
        place, key = attention.visibility(view), attention.visibility(view)
        if isinstance(view.rule, InOrder):
            mask = attention.visible(place, key, causal=True, isolate=False)
            by_slot = attention.visible(place, key, causal=False, isolate=False)
            by_slot &= slot_L[None, None, :] <= slot_L[None, :, None]
            np.testing.assert_array_equal(mask, by_slot)


def test_rules_are_declared_where_they_hold():
    def rule(name, view):
        layout, streams = TABLE[name]
        return layout.build(samples(streams, 0), streams, VOCABULARY)[0].views[view].rule

    for name, view in (
        ("masked_caption", "target"), ("spans", "target"), ("prefix_none", "input"),
        ("prefix_one_target", "target"),
    ):  # fmt: skip
        assert isinstance(rule(name, view), InOrder), name
    for name, view in (("masked", "target"), ("prefix", "input"), ("aligned", "words")):
        assert isinstance(rule(name, view), OneSegment), name


@pytest.mark.parametrize("seed", range(3))
def test_views(row, seed):
    layout, streams = row
    there = samples(streams, seed)
    batch, _ = layout.build(there, streams, VOCABULARY)
    for view in batch.views.values():
        filled = view.stream_BL > 0
        np.testing.assert_array_equal(view.segment_BL, filled)
        assert (view.order_BL >= 0).all()
        assert not view.ids_BL[~filled].any()
        for number, spec in enumerate(VOCABULARY.specs, 1):
            ids = view.ids_BL[(view.stream_BL == number) & (view.ids_BL > 0)]
            start, stop = VOCABULARY.range(spec.name)
            assert ((ids >= start) & (ids < min(stop, start + max(spec.vocab_size, 1)))).all()
            absent = [i for i, s in enumerate(there) if s.pieces.get(spec.name) is None]
            assert not (view.stream_BL[absent] == number).any()
        for name, values in view.values.items():
            length = view.ids_BL.shape[1]
            used = values.slot_BJ < length
            assert ((values.slot_BJ >= 0) & (values.slot_BJ <= length)).all()
            at = np.nonzero(used)[0], values.slot_BJ[used]
            assert (view.stream_BL[at] == VOCABULARY.number(name)).all()
            assert (view.ids_BL[at] == 0).all()
            assert len(set(zip(*(x.tolist() for x in at), strict=True))) == used.sum()
    for i, sample in enumerate(there):
        for name in sample.pieces:
            present = batch.present_BSM[i, 0, VOCABULARY.number(name) - 1]
            assert present == (sample.pieces[name] is not None)


@pytest.mark.parametrize("seed", range(3))
def test_targets_point_at_slots_of_their_stream(row, seed):
    layout, streams = row
    there = samples(streams, seed)
    batch, _ = layout.build(there, streams, VOCABULARY)
    view = batch.views.get("target", batch.views.get("input"))
    for name, t in batch.targets.items():
        spec = VOCABULARY.spec(name)
        row_U, slot_U, weight_U = t.row_WU[0], t.slot_WU[0], t.weight_WU[0]
        stream = view.stream_BL[row_U, slot_U]
        number = VOCABULARY.number(name)
        used = weight_U > 0
        assert (stream[used] == number).all()
        assert set(weight_U.tolist()) <= {0.0, 1.0}
        assert not (row_U[used] == 2).any()  # the sample of weight 0
        np.testing.assert_array_equal(t.sample_WU, t.row_WU)
        places = list(zip(row_U[used].tolist(), slot_U[used].tolist(), strict=True))
        assert len(set(places)) == len(places)
        if spec.vocab_size:
            assert t.value_WUP is None
            assert ((t.label_WU >= 0) & (t.label_WU < spec.vocab_size)).all()
        else:
            assert t.label_WU is None
            assert t.value_WUP.shape[2] == spec.width
            sources = [s.pieces[name].values_LP for s in there if s.pieces[name] is not None]
            for value in t.value_WUP[0, used]:
                assert any((value == source).all(axis=1).any() for source in sources)


def test_something_is_predicted_where_targets_are_declared(row):
    layout, streams = row
    batch, _ = layout.build(samples(streams, 0, absent=0.0, rows=32), streams, VOCABULARY)
    for name, t in batch.targets.items():
        assert t.weight_WU.any(), name
