"""What is known and what is wanted lie as training lays them."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import letters
import numpy as np
import pytest

from mmjax.data.layouts import Masked, Policy, Prefix
from mmjax.data.task import Sample, Streams
from mmjax.generate import decoders, views
from mmjax.typing import Tokens, positions

VOCABULARY = letters.get_config().vocabulary()
FIELDS = ("ids_BL", "stream_BL", "segment_BL", "order_BL", "position_BLA")


def samples(names=("text", "image", "levels"), without=()):
    """Encoded examples; those whose number is in `without` lack their image."""
    made = []
    for i, word in enumerate(letters.WORDS):
        example = letters.Spelling.example(word)
        pieces = {
            n: letters.MODALITIES[n].encode(example[letters.MODALITIES[n].field or n])
            for n in names
        }
        if i in without:
            pieces["image"] = None
        made.append(Sample(pieces, i, (i, 0), seed=i))
    return made


def masked(inputs, target, made):
    """A training batch where all of `inputs` is seen and all of `target` is predicted."""
    shown = dict.fromkeys(inputs, 100.0)
    policy = Policy(input_alpha=shown, target_alpha={target: 100.0}, keep="all")
    layout = Masked(input_tokens=99, target_tokens=99, policies=(policy,))
    batch, _ = layout.build(made, Streams((*inputs,), (target,)), VOCABULARY)
    return batch


def cut(tokens: Tokens, length: int) -> Tokens:
    return jax.tree.map(lambda x: x[:, :length], tokens._replace(values={}))


def in_order(tokens: Tokens) -> Tokens:
    """Tokens of each row by stream and position: training shuffles grids, which means nothing."""
    hidden, position = tokens.segment_BL == 0, tokens.position_BLA
    keys = (position[..., 2], position[..., 1], position[..., 0], tokens.stream_BL, hidden)
    order = np.lexsort(keys, axis=1)
    back = np.argsort(np.concatenate([order, np.full((len(order), 1), order.shape[1])], 1), axis=1)
    take = lambda x: np.take_along_axis(x, order[..., None] if x.ndim == 3 else order, axis=1)
    values = {
        name: v._replace(slot_BJ=np.take_along_axis(back, v.slot_BJ, axis=1))
        for name, v in tokens.values.items()
    }
    return jax.tree.map(take, tokens._replace(values={}))._replace(values=values)


def assert_same_input(found: Tokens, expected: Tokens):
    """Equal token by token; where views differ in length, the rest is padding."""
    found, expected = in_order(found), in_order(expected)
    length = min(found.ids_BL.shape[1], expected.ids_BL.shape[1])
    for tokens in (found, expected):
        assert not tokens.segment_BL[:, length:].any()
    for field in FIELDS:
        one, two = getattr(found, field)[:, :length], getattr(expected, field)[:, :length]
        np.testing.assert_array_equal(one, two, err_msg=field)
        assert one.dtype == two.dtype
    assert found.values.keys() == expected.values.keys()
    for name, values in expected.values.items():
        for row in range(len(values.slot_BJ)):
            at = {
                int(s): v for s, v in zip(values.slot_BJ[row], values.value_BJP[row], strict=True)
            }
            mine = found.values[name]
            own = {int(s): v for s, v in zip(mine.slot_BJ[row], mine.value_BJP[row], strict=True)}
            used = [s for s in at if s < expected.ids_BL.shape[1]]
            assert set(used) == {s for s in own if s < found.ids_BL.shape[1]}
            assert len(used) in (0, 8)
            for slot in used:
                np.testing.assert_array_equal(own[slot], at[slot])


@pytest.mark.parametrize("room", [0, 8])
def test_known_streams_of_an_encoder(room):
    made = samples(without=(2, 5))
    batch = masked(("text", "image"), "levels", made)
    assert batch.views["input"].segment_BL[0].sum() == 8 + len(letters.WORDS[0]) + 1
    found = views.known(VOCABULARY, [s.pieces for s in made], ("text", "image"), room=room)
    assert_same_input(found, batch.views["input"])
    assert not found.segment_BL[:, found.ids_BL.shape[1] - room :].any() or not room


def test_a_wanted_grid_is_mask_slots():
    made = samples()
    target = masked(("text",), "levels", made).views["target"]
    spec, number = VOCABULARY.spec("levels"), VOCABULARY.number("levels")
    shown = jnp.ones((len(made), 8), bool)
    found = decoders.grid_tokens(
        number, positions(spec.grid), jnp.zeros((len(made), 8), jnp.int32), shown
    )
    # Training has them in random order; the model sees positions, not slots.
    order = np.lexsort((target.position_BLA[..., 2], target.position_BLA[..., 1]))
    for field in FIELDS:
        trained = np.asarray(getattr(target, field))
        trained = np.stack([row[o] for row, o in zip(trained, order, strict=True)])
        np.testing.assert_array_equal(getattr(found, field), trained, err_msg=field)
        assert getattr(found, field).dtype == trained.dtype


def test_a_decided_part_of_a_grid_is_known_tokens():
    made = samples()
    spec, number, start = (
        VOCABULARY.spec("levels"),
        VOCABULARY.number("levels"),
        VOCABULARY.range("levels")[0],
    )
    shown = np.random.default_rng(0).random((len(made), 8)) < 0.5
    ids = np.stack([s.pieces["levels"].ids_L for s in made])
    own = decoders.grid_tokens(
        number, positions(spec.grid), jnp.asarray(ids) + start, jnp.asarray(shown)
    )
    whole = views.known(VOCABULARY, [s.pieces for s in made], ("levels",))
    for field in ("ids_BL", "stream_BL", "segment_BL"):
        np.testing.assert_array_equal(getattr(own, field), getattr(whole, field)[:, :8] * shown)
    np.testing.assert_array_equal(own.position_BLA, whole.position_BLA[:, :8])


def test_a_wanted_sequence_is_teacher_forced():
    made = samples()
    batch = masked(("image",), "text", made)
    target, wanted = batch.views["target"], batch.targets["text"]
    number, start = VOCABULARY.number("text"), VOCABULARY.range("text")[0]
    begin = jnp.full((len(made),), views.begin_id(VOCABULARY, "text"), jnp.int32)
    found = [decoders.sequence_token(number, begin, jnp.int32(0))]
    ids = np.zeros((len(made), 7), np.int32)
    for row, s in enumerate(made):
        ids[row, : s.pieces["text"].length] = s.pieces["text"].ids_L
    for i in range(6):
        found.append(
            decoders.sequence_token(number, jnp.asarray(ids[:, i]) + start, jnp.int32(i + 1))
        )
    joined = jax.tree.map(lambda *x: np.concatenate(x, axis=1), *found)
    used = np.asarray(target.segment_BL) > 0
    for field in FIELDS:
        np.testing.assert_array_equal(getattr(joined, field)[used], getattr(target, field)[used])
    # Each slot predicts the next token; the text's end, then the closing sentinel.
    real = np.asarray(wanted.weight_WU[0]) > 0
    places = (x[0][real] for x in (wanted.row_WU, wanted.slot_WU, wanted.label_WU))
    for row, slot, label in zip(*places, strict=True):
        text = made[row].pieces["text"]
        assert label == (text.ids_L[slot] if slot < text.length else 2)


def test_without_known_streams_a_sequence_leaves_its_sentinel():
    made = samples(without=(1,))
    pieces = [s.pieces for s in made]
    pieces[3]["text"] = None
    like = views.known(VOCABULARY, pieces, ("text", "image"), room=8)
    found = views.emptied(VOCABULARY, like, pieces, ("text", "image"), sentinels=True)
    assert jax.tree.map(np.shape, found) == jax.tree.map(np.shape, like)
    assert found.segment_BL.sum(axis=1).tolist() == [1, 1, 1, 0, 1, 1, 1, 1]
    # Training makes the same of a sequence that is masked whole within a budget.
    policy = Policy(input_alpha={"text": 1.0}, target_alpha={"text": 1.0}, keep="binary")
    layout = Masked(input_tokens=1, target_tokens=9, policies=(policy,))
    batch, _ = layout.build(made[:1], Streams(("text",), ("text",)), VOCABULARY)
    for field in FIELDS:
        expected = getattr(batch.views["input"], field)[0, 0]
        np.testing.assert_array_equal(getattr(found, field)[0, 0], expected)


def test_the_prefix_of_a_decoder():
    made = samples(("image", "text"))
    layout = Prefix(prefix_fraction=(0.0, 0.0))
    batch, _ = layout.build(made, Streams(("image",), ("text",)), VOCABULARY)
    known = views.known(VOCABULARY, [s.pieces for s in made], ("image",), room=1)
    found = views.begun(VOCABULARY, known, "text")
    expected = batch.views["input"]
    assert found.segment_BL[:, -1].all()  # the first prediction is made at the last slot
    found, expected = in_order(found), in_order(cut(expected, 9))
    for field in FIELDS:
        np.testing.assert_array_equal(getattr(found, field)[:, :9], getattr(expected, field))
    assert not found.segment_BL[:, 9:].any()


def test_a_finished_stream_of_a_decoder_is_whole_behind_its_begin_token():
    """The prefix may end inside the second target; then the first one is known whole."""
    made = samples(("levels", "text"))
    layout = Prefix(prefix_fraction=(0.999, 0.999))
    batch, _ = layout.build(made, Streams((), ("levels", "text")), VOCABULARY)
    found = views.known(VOCABULARY, [s.pieces for s in made], ("levels",), begun=("levels",))
    for field in FIELDS:
        expected = getattr(batch.views["input"], field)[:, :9]
        np.testing.assert_array_equal(getattr(found, field)[:, :9], expected, err_msg=field)


def test_decoded_ids_become_pieces_that_encode_would_make():
    for word in ("cab", "decade", "a"):
        expected = letters.Letters().encode(word)
        ids = np.concatenate([expected.ids_L, np.full(7 - expected.length, 9, np.int32)])
        for end in (0, 2):  # the end token, or a sentinel in its place
            ids[expected.length - 1] = end
            found = views.piece(VOCABULARY.spec("text"), ids)
            np.testing.assert_array_equal(found.ids_L, expected.ids_L)
            np.testing.assert_array_equal(found.position_LA, expected.position_LA)
    endless = views.piece(VOCABULARY.spec("text"), np.full(7, 9, np.int32))
    assert endless.ids_L.tolist() == [9] * 6 + [0]
    grid = letters.Levels().encode(np.zeros((8, 16)))
    found = views.piece(VOCABULARY.spec("levels"), np.zeros(8, np.int32))
    np.testing.assert_array_equal(found.position_LA, grid.position_LA)
