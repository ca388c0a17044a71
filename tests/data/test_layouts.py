import dataclasses
from collections import Counter

import jax
import numpy as np
import pytest

from mmjax.data import layouts, prefix, rows
from mmjax.data.masking import Policy
from mmjax.data.task import Sample, Streams
from mmjax.typing import InOrder, Piece, TokenSpec, Vocabulary

TEXT = TokenSpec(
    name="text", kind="sequence", max_tokens=12, vocab_size=100, text=True,
    first_sentinel=80, num_sentinels=20, end_id=1,
)  # fmt: skip
IMAGE = TokenSpec(name="image", kind="grid", max_tokens=16, width=4, grid=(1, 4, 4))
CODES = TokenSpec(name="codes", kind="grid", max_tokens=9, vocab_size=60, grid=(1, 3, 3))
PLAIN = TokenSpec(name="plain", kind="sequence", max_tokens=7, vocab_size=30)
VOCABULARY = Vocabulary((TEXT, IMAGE, CODES, PLAIN))
ALL = Streams(("text", "image", "codes"), ("text", "image", "codes"))


def piece(spec, rng, length=None):
    """Positions name the tokens; values and ids can be told apart."""
    count = spec.max_tokens if length is None else length
    position = np.repeat(np.arange(count, dtype=np.float32)[:, None], 3, axis=1)
    if spec.vocab_size:
        high = spec.first_sentinel if spec.num_sentinels else spec.vocab_size
        return Piece(position, ids_L=rng.integers(2, high, count).astype(np.int32))
    return Piece(position, values_LP=rng.normal(size=(count, spec.width)).astype(np.float32))


def make(count=8, *, names=("text", "image", "codes"), absent=0.0, seed=0, weight=1.0):
    samples = []
    for i in range(count):
        rng = np.random.default_rng([seed, i])
        pieces = {
            n: None if rng.random() < absent else piece(
                VOCABULARY.spec(n), rng, rng.integers(1, 13) if n == "text" else None
            )
            for n in names
        }  # fmt: skip
        samples.append(Sample(pieces, i // 2, (i, 3), 1000 * seed + i, weight))
    return samples


def same(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    jax.tree.map(np.testing.assert_array_equal, a, b)


def tokens_of(tokens, row, stream):
    """(slot, local id, position) of a row's tokens of a stream, in order."""
    slots = np.flatnonzero(tokens.stream_BL[row] == VOCABULARY.number(stream))
    local = tokens.ids_BL[row, slots] - VOCABULARY.range(stream)[0]
    return slots, local, tokens.position_BLA[row, slots, 0]


def targets_of(batch, row, stream):
    """(slot, label or value) of a row's targets."""
    t = batch.targets[stream]
    mine = np.flatnonzero((t.weight_WU[0] > 0) & (t.row_WU[0] == row))
    what = t.label_WU if t.label_WU is not None else t.value_WUP
    return t.slot_WU[0, mine], what[0, mine]


@pytest.mark.parametrize("single_view", [False, True])
def test_masked_grids_are_disjoint_and_labels_are_the_hidden_tokens(single_view):
    samples = make(16)
    layout = layouts.Masked(input_tokens=14, target_tokens=10, single_view=single_view)
    batch, _ = layout.build(samples, ALL, VOCABULARY)
    target = batch.views["input" if single_view else "target"]
    for row, sample in enumerate(samples):
        for name in ("image", "codes"):
            slots, what = targets_of(batch, row, name)
            assert (target.ids_BL[row, slots] == 0).all()
            assert (target.order_BL[row, slots] == 0).all()
            hidden = target.position_BLA[row, slots, 0].astype(int)
            there = sample.pieces[name]
            source = there.ids_L if there.ids_L is not None else there.values_LP
            np.testing.assert_array_equal(what, source[hidden])
            seen_slots, ids, places = tokens_of(batch.views["input"], row, name)
            seen = places.astype(int)
            if single_view:
                visible = ~np.isin(seen_slots, slots)
                seen, ids = seen[visible], ids[visible]
            assert not set(seen.tolist()) & set(hidden.tolist())
            assert len(set(seen.tolist())) == len(seen)
            if there.ids_L is not None:
                np.testing.assert_array_equal(ids, there.ids_L[seen])


def test_continuous_pieces_fill_their_slots():
    samples = make(12, absent=0.3)
    batch, _ = layouts.Masked(input_tokens=14, target_tokens=6).build(samples, ALL, VOCABULARY)
    view = batch.views["input"]
    values = view.values["image"]
    assert set(view.values) == {"image"}
    assert not batch.views["target"].values
    used = 0
    for row, sample in enumerate(samples):
        slots, _, places = tokens_of(view, row, "image")
        assert (view.ids_BL[row, slots] == 0).all()
        mine = values.slot_BJ[row] < view.ids_BL.shape[1]
        assert sorted(values.slot_BJ[row, mine]) == sorted(slots)
        for slot, value in zip(values.slot_BJ[row, mine], values.value_BJP[row, mine], strict=True):
            place = int(places[slots == slot][0])
            np.testing.assert_array_equal(value, sample.pieces["image"].values_LP[place])
        used += len(slots)
    assert used > 20


@pytest.mark.parametrize("target_tokens", [12, 4])
def test_masked_sequences_are_teacher_forced_and_merge_to_the_original(target_tokens):
    samples = make(200, names=("text",))
    layout = layouts.Masked(
        input_tokens=12, target_tokens=target_tokens, policies=(Policy(),), room=9.0
    )
    text = Streams(("text",), ("text",))
    batch, counts = layout.build(samples, text, VOCABULARY)
    assert counts["trimmed/text"] == 0
    whole, late = 0, 0
    for row, sample in enumerate(samples):
        _, shown, places = tokens_of(batch.views["input"], row, "text")
        np.testing.assert_array_equal(places, np.arange(len(shown)))
        slots, forced, places = tokens_of(batch.views["target"], row, "text")
        np.testing.assert_array_equal(places, np.arange(len(forced)))
        np.testing.assert_array_equal(
            batch.views["target"].order_BL[row, slots], np.arange(len(forced))
        )
        at, labels = targets_of(batch, row, "text")
        np.testing.assert_array_equal(at, slots)
        np.testing.assert_array_equal(labels[:-1], forced[1:])
        if not len(forced):
            continue
        assert forced[0] >= 80
        late += forced[0] > 80
        runs = int((shown >= 80).sum()) or 1  # an empty input hides one run
        if forced[0] == 80 and labels[-1] == 80 + runs:  # neither started late nor cut
            assert (
                merge(shown.tolist(), [80, *labels.tolist()])
                == sample.pieces["text"].ids_L.tolist()
            )
            whole += 1
    assert whole > 20
    assert (late > 20) == (target_tokens == 4)


def test_dropped_words_are_not_seen_but_are_predicted():
    policies = (Policy(keep="all", input_alpha={"image": 1.0}, target_alpha={"text": 1.0}),)
    plain = layouts.Masked(input_tokens=9, target_tokens=14, policies=policies, room=9.0)
    batch, whole = (
        layout.build(make(300), Streams(("image",), ("text",)), VOCABULARY)[0]
        for layout in (dataclasses.replace(plain, drop={"text": 0.25}), plain)
    )
    same(batch.targets, whole.targets)
    same(batch.views["input"], whole.views["input"])
    ids, all_ids = (b.views["target"].ids_BL for b in (batch, whole))
    first = VOCABULARY.range("text")[0]
    assert (ids[:, 0] == first + 80).all()  # the sentinel stays
    seen = ids[:, 1:][all_ids[:, 1:] > 0]
    np.testing.assert_array_equal(seen[seen > 0], all_ids[:, 1:][ids[:, 1:] > 0])
    assert 0.2 < (seen == 0).mean() < 0.3
    places = np.stack([ids[:, i] == 0 for i in (1, 2)], axis=1)[all_ids[:, 2] > 0]
    assert abs(np.corrcoef(places.T)[0, 1]) < 0.2
    np.testing.assert_array_equal(
        batch.views["target"].stream_BL, whole.views["target"].stream_BL
    )  # it is a mask slot, no padding


def test_only_words_of_sequences_can_be_dropped():
    layout = layouts.Masked(input_tokens=14, target_tokens=10, drop={"image": 0.5})
    with pytest.raises(ValueError, match=r"'image', which is not masked in spans.*text"):
        layout.build(make(4), ALL, VOCABULARY)


def merge(inputs, target):
    runs, name = {}, None
    for token in target:
        if token >= 80:
            runs[name := token] = []
        else:
            runs[name].append(token)
    if not inputs:
        return runs[80]
    return [t for token in inputs for t in (runs[token] if token >= 80 else [token])]


def test_a_sample_does_not_depend_on_its_neighbours():
    layout = layouts.Masked(input_tokens=14, target_tokens=8, room=9.0)  # so that none is trimmed
    together, _ = layout.build(make(9), ALL, VOCABULARY)
    alone, _ = layout.build(make(9)[4:5], ALL, VOCABULARY)
    for role in ("input", "target"):
        for name in ("ids_BL", "stream_BL", "order_BL", "position_BLA"):
            np.testing.assert_array_equal(
                getattr(together.views[role], name)[4], getattr(alone.views[role], name)[0]
            )


@pytest.mark.parametrize(
    "layout",
    [
        layouts.Masked(input_tokens=14, target_tokens=10),
        layouts.Masked(input_tokens=14, target_tokens=10, drop={"text": 0.5}),
        layouts.Masked(input_tokens=14, target_tokens=10, room=1.0, single_view=True),
        layouts.Aligned(),
        prefix.Prefix(),
    ],
)
def test_groups_built_together_are_the_groups_built_alone(layout):
    streams = ALL._replace(targets=("text",)) if isinstance(layout, layouts.Aligned) else ALL
    together = layout.build_groups(make(12, absent=0.2), streams, VOCABULARY, 3)
    parts = [layout.build(make(12, absent=0.2)[i : i + 4], streams, VOCABULARY) for i in (0, 4, 8)]
    same(together[0], rows.concatenate([batch for batch, _ in parts]))
    counts = parts[0][1]
    for _, more in parts[1:]:
        counts = rows.add_counts(counts, more)
    assert together[1] == counts
    with pytest.raises(ValueError, match="12 rows are not 5 whole groups"):
        layout.build_groups(make(12), streams, VOCABULARY, 5)


def test_what_exceeds_the_room_is_trimmed_and_counted():
    some = Policy(input_alpha={"text": 1.0}, target_alpha={"image": 1.0}, weight=0.2)
    other = Policy(input_alpha={"text": 1.0}, target_alpha={"codes": 1.0}, weight=0.8)
    layout = layouts.Masked(input_tokens=8, target_tokens=9, policies=(some, other), room=1.0)
    trimmed = 0
    for seed in range(10):
        batch, counts = layout.build(make(8, seed=seed), ALL, VOCABULARY)
        room = batch.targets["image"].row_WU.shape[1]
        assert room == 8 * 2  # ceil(0.2 * 9) a row
        used = int(batch.targets["image"].weight_WU.sum())
        in_view = int((batch.views["target"].stream_BL == VOCABULARY.number("image")).sum())
        assert used == in_view == min(used, room)
        if counts["trimmed/image"]:
            assert used == room
        trimmed += counts["trimmed/image"]
    assert trimmed > 0


def test_absent_streams_leave_their_budget_to_others():
    samples = make(6)
    samples = [
        dataclasses.replace(s, pieces={**s.pieces, "image": None, "codes": None}) for s in samples
    ]
    layout = layouts.Masked(input_tokens=4, target_tokens=4, policies=(Policy(keep="all"),))
    batch, _ = layout.build(samples, ALL, VOCABULARY)
    assert not batch.present_BSM[:, 0, [1, 2, 3]].any()
    assert batch.present_BSM[:, 0, 0].all()
    for view in batch.views.values():
        assert set(np.unique(view.stream_BL)) <= {0, VOCABULARY.number("text")}
    assert batch.targets["text"].weight_WU.sum() > 0
    assert batch.targets["image"].weight_WU.sum() == 0


def test_aligned_has_one_view_a_stream_and_padding_for_absent_ones():
    samples = make(8, absent=0.4, names=("text", "image"))
    streams = Streams(("text", "image"), ())
    batch, _ = layouts.Aligned().build(samples, streams, VOCABULARY)
    assert set(batch.views) == {"text", "image"}
    assert not batch.targets
    for row, sample in enumerate(samples):
        for name in streams.inputs:
            view, there = batch.views[name], sample.pieces[name]
            number = VOCABULARY.number(name)
            assert batch.present_BSM[row, 0, number - 1] == (there is not None)
            assert (view.order_BL == 0).all()
            count = 0 if there is None else there.length
            assert (view.stream_BL[row] == number).sum() == count
        there = sample.pieces["text"]
        if there is not None:
            np.testing.assert_array_equal(
                tokens_of(batch.views["text"], row, "text")[1], there.ids_L
            )
        there = sample.pieces["image"]
        if there is not None:
            np.testing.assert_array_equal(
                batch.views["image"].values["image"].value_BJP[row], there.values_LP
            )
    np.testing.assert_array_equal(batch.identity_BS[:, 0], np.arange(8) // 2)
    np.testing.assert_array_equal(batch.sample_BSI[:, 0], [[i, 3] for i in range(8)])


def test_aligned_predicts_whole_sequences_of_samples_that_have_something_else():
    samples = make(40, absent=0.4, names=("text", "image"))
    streams = Streams(("text", "image"), ("text",))
    batch, _ = layouts.Aligned(max_tokens={"text": 2}).build_groups(samples, streams, VOCABULARY, 4)
    spec, targets, view = VOCABULARY.spec("text"), batch.targets["text"], batch.views["target"]
    assert view.ids_BL.shape == (40, spec.max_tokens + 1)
    assert isinstance(view.rule, InOrder)
    assert set(batch.views) == {"text", "image", "target"}
    seen = 0
    for row, sample in enumerate(samples):
        text, image = (sample.pieces[name] for name in ("text", "image"))
        group, within = divmod(row, 10)
        own = (targets.row_WU[group] == within) & (targets.weight_WU[group] > 0)
        told, labels = tokens_of(view, row, "text")[1].tolist(), targets.label_WU[group][own]
        if text is None or image is None:
            assert not told
            assert not own.any()
            continue
        seen += 1
        ids = text.ids_L.tolist()  # whole, also where the input is cut
        assert told == [spec.first_sentinel, *ids]
        assert labels.tolist() == [*ids, spec.first_sentinel + 1]
        assert (np.diff(view.order_BL[row][: len(told)]) == 1).all()
    assert 5 < seen < 35

    alone = layouts.Aligned().build(samples, Streams(("text",), ("text",)), VOCABULARY)[0]
    assert not alone.targets["text"].weight_WU.any()
    with pytest.raises(ValueError, match=r"target 'image' .* is not a sequence with 2 or more"):
        layouts.Aligned().build(samples, Streams(("text",), ("image",)), VOCABULARY)


def test_aligned_may_be_shorter():
    samples = make(8, names=("text", "image"))
    layout = layouts.Aligned(max_tokens={"text": 4, "image": 5})
    batch, counts = layout.build(samples, Streams(("text", "image"), ()), VOCABULARY)
    assert batch.views["text"].ids_BL.shape == (8, 4)
    assert batch.views["image"].values["image"].value_BJP.shape == (8, 5, 4)
    lengths = [s.pieces["text"].length for s in samples]
    assert counts["cut/text"] == sum(max(n - 4, 0) for n in lengths)
    assert counts["cut/image"] == 8 * 11
    for row, sample in enumerate(samples):
        np.testing.assert_array_equal(
            batch.views["image"].values["image"].value_BJP[row],
            sample.pieces["image"].values_LP[:5],
        )


def test_aligned_drops_tokens_of_grids_at_random():
    samples = make(400, names=("text", "image"))
    layout = layouts.Aligned(drop={"image": 0.75})
    batch, counts = layout.build(samples, Streams(("text", "image"), ()), VOCABULARY)
    view = batch.views["image"]
    assert view.position_BLA.shape[:2] == (400, 4)  # of 16
    assert counts["cut/image"] == 0  # nothing was too long
    places = Counter()
    for row, sample in enumerate(samples):
        left = {tuple(place) for place in view.position_BLA[row].tolist()}
        whole = sample.pieces["image"].position_LA
        where = [i for i, place in enumerate(whole.tolist()) if tuple(place) in left]
        assert len(where) == len(left) == 4
        order = [whole.tolist().index(place) for place in view.position_BLA[row].tolist()]
        np.testing.assert_array_equal(
            view.values["image"].value_BJP[row], sample.pieces["image"].values_LP[order]
        )
        places.update(where)
    assert set(places) == set(range(16))
    assert all(60 < n < 140 for n in places.values())  # 100 each, 5 deviations

    with pytest.raises(ValueError, match="drop names 'text', which is a sequence"):
        layouts.Aligned(drop={"text": 0.5}).build(samples, Streams(("text",), ()), VOCABULARY)


def test_spans_merge_to_the_original_and_leave_context_whole():
    samples = make(50, names=("text", "codes"))
    layout = layouts.Spans(rate=0.4, mean_length=2.0)
    batch, _ = layout.build(samples, Streams(("text", "codes"), ("text",)), VOCABULARY)
    for row, sample in enumerate(samples):
        shown = tokens_of(batch.views["input"], row, "text")[1].tolist()
        _, labels = targets_of(batch, row, "text")
        original = sample.pieces["text"].ids_L.tolist()
        assert merge(shown, [80, *labels.tolist()]) == original
        masked = len(original) - sum(t < 80 for t in shown)
        assert masked == max(1, round(0.4 * len(original)))
        context = tokens_of(batch.views["input"], row, "codes")[1]
        np.testing.assert_array_equal(context, sample.pieces["codes"].ids_L)


@pytest.mark.parametrize("fraction", [(0.0, 0.0), (0.0, 0.5), (0.9, 1.0)])
@pytest.mark.parametrize("names", [("text",), ("text", "codes"), ("codes", "text")])
def test_prefix_predicts_the_next_token_of_what_it_shows(fraction, names):
    samples = make(20, names=("image", "text", "codes"))
    layout = prefix.Prefix(prefix_fraction=fraction)
    batch, counts = layout.build(samples, Streams(("image",), names), VOCABULARY)
    view = batch.views["input"]
    assert set(batch.views) == {"input"}
    assert not sum(v for k, v in counts.items() if k.startswith("trimmed"))
    for row, sample in enumerate(samples):
        assert (view.order_BL[row][view.stream_BL[row] == 2] == 0).all()
        predicted, first_slot = 0, None
        for name in names:
            ids = sample.pieces[name].ids_L
            slots, held, places = tokens_of(view, row, name)
            begin = 80 if name == "text" else -VOCABULARY.range(name)[0]
            tail = ids if name != names[-1] else ids[:-1]
            np.testing.assert_array_equal(held, [begin, *tail])
            if name == "text":
                np.testing.assert_array_equal(places, np.arange(len(held)))
            at, labels = targets_of(batch, row, name)
            np.testing.assert_array_equal(labels, ids[len(ids) - len(labels) :])
            np.testing.assert_array_equal(at, slots[len(ids) - len(labels) : len(ids)])
            if len(at) and first_slot is None:
                first_slot = at[0]
            predicted += len(labels)
        assert predicted >= 1
        total = sum(sample.pieces[n].length for n in names)
        known = total - predicted
        assert int(fraction[0] * total) - 1 <= known <= fraction[1] * total
        used = np.flatnonzero(view.stream_BL[row])
        expected = np.maximum(used - first_slot, 0)
        np.testing.assert_array_equal(view.order_BL[row, used], expected)


def test_prefix_of_an_encoder_decoder_has_two_views():
    samples = make(20, names=("image", "text"))
    layout = prefix.Prefix(prefix_fraction=(0.2, 0.6), two_views=True)
    batch, _ = layout.build(samples, Streams(("image",), ("text",)), VOCABULARY)
    for row, sample in enumerate(samples):
        ids = sample.pieces["text"].ids_L
        _, known, _ = tokens_of(batch.views["input"], row, "text")
        slots, forced, places = tokens_of(batch.views["target"], row, "text")
        np.testing.assert_array_equal(known, ids[: len(known)])
        np.testing.assert_array_equal(forced, [80, *ids[len(known) : -1]])
        np.testing.assert_array_equal(places, np.arange(len(forced)))
        at, labels = targets_of(batch, row, "text")
        np.testing.assert_array_equal(at, slots)
        np.testing.assert_array_equal(labels, ids[len(known) :])
        np.testing.assert_array_equal(batch.views["target"].order_BL[row, slots], slots - slots[0])
    assert (batch.views["input"].order_BL == 0).all()


def test_prefix_predicts_continuous_streams_from_their_pieces():
    samples = make(6, names=("image",))
    batch, _ = prefix.Prefix(prefix_fraction=(0.5, 0.5)).build(
        samples, Streams((), ("image",)), VOCABULARY
    )
    view = batch.views["input"]
    for row, sample in enumerate(samples):
        values = sample.pieces["image"].values_LP
        np.testing.assert_array_equal(view.values["image"].value_BJP[row, :15], values[:15])
        np.testing.assert_array_equal(view.values["image"].slot_BJ[row, :15], np.arange(1, 16))
        at, what = targets_of(batch, row, "image")
        np.testing.assert_array_equal(at, np.arange(8, 16))
        np.testing.assert_array_equal(what, values[8:])


def test_prefix_cuts_what_does_not_fit_and_counts_it():
    samples = make(6, names=("image", "text"))
    layout = prefix.Prefix(length=20, prefix_fraction=(0.0, 0.0))
    batch, counts = layout.build(samples, Streams(("image",), ("text",)), VOCABULARY)
    assert batch.views["input"].ids_BL.shape == (6, 20)
    lengths = [s.pieces["text"].length for s in samples]
    assert counts["trimmed/text"] == sum(max(n - 4, 0) for n in lengths) > 0
    assert batch.targets["text"].weight_WU.sum() == sum(min(n, 4) for n in lengths)
    assert batch.targets["text"].row_WU.shape == (1, 6 * 12)


def test_weight_zero_samples_have_no_weight_anywhere():
    samples = make(4) + make(4, weight=0.0)
    batch, _ = layouts.Masked(input_tokens=14, target_tokens=8).build(samples, ALL, VOCABULARY)
    assert batch.weight_BS[:, 0].tolist() == [1.0] * 4 + [0.0] * 4
    for t in batch.targets.values():
        assert set(t.row_WU[t.weight_WU > 0].tolist()) <= {0, 1, 2, 3}


@pytest.mark.parametrize("layout", [layouts.Masked(), layouts.Aligned(), prefix.Prefix()])
def test_wrong_pieces_are_refused(layout):
    streams = Streams(("codes",), ("codes",))
    position = np.zeros((3, 3), np.float32)

    def build(there):
        layout.build(
            [dataclasses.replace(make(1)[0], pieces={"codes": there})], streams, VOCABULARY
        )

    with pytest.raises(ValueError, match=r"token id=60 is outside 0\.\.59"):
        build(Piece(position, ids_L=np.asarray([1, 60, 3], np.int32)))
    with pytest.raises(ValueError, match="lacks ids_L, but the spec is discrete"):
        build(Piece(position, values_LP=np.zeros((3, 4), np.float32)))
    with pytest.raises(ValueError, match="piece of 10 tokens exceeds max_tokens=9"):
        build(Piece(np.zeros((10, 3), np.float32), ids_L=np.zeros(10, np.int32)))
    wide = Sample({"image": Piece(position, values_LP=np.zeros((3, 5), np.float32))}, 0, (0, 0),
                  seed=0)  # fmt: skip
    with pytest.raises(ValueError, match="lacks values_LP of width 4"):
        layout.build([wide], Streams(("image",), ("image",)), VOCABULARY)


@pytest.mark.parametrize(
    ("make_layout", "message"),
    [
        (lambda: layouts.Masked(input_tokens=0), "input_tokens=0"),
        (lambda: layouts.Masked(policies=()), "policies"),
        (lambda: layouts.Masked(room=0.5), "room=0.5"),
        (lambda: layouts.Masked(drop={"text": 1.0}), r"Masked: drop\['text'\]=1.0"),
        (lambda: layouts.Aligned(max_tokens={"text": 0}), r"max_tokens\['text'\]=0"),
        (lambda: layouts.Aligned(drop={"image": 1.0}), r"drop\['image'\]=1.0"),
        (lambda: layouts.Spans(rate=0.0), "rate=0.0"),
        (lambda: layouts.Spans(mean_length=0.5), "mean_length=0.5"),
        (lambda: prefix.Prefix(prefix_fraction=(0.6, 0.4)), "prefix_fraction="),
        (lambda: prefix.Prefix(length=-1), "length=-1"),
    ],
)
def test_wrong_fields(make_layout, message):
    with pytest.raises(ValueError, match=message):
        make_layout()


def test_sequences_without_sentinels_are_told():
    plain = Streams(("plain",), ("plain",))
    for layout in (layouts.Masked(), layouts.Spans()):
        with pytest.raises(ValueError, match="num_sentinels"):
            layout.build(make(2, names=("plain",)), plain, VOCABULARY)
    batch, _ = layouts.Masked(single_view=True).build(make(2, names=("plain",)), plain, VOCABULARY)
    assert batch.targets["plain"].weight_WU.sum() > 0
