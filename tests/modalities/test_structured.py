"""Boxes and metadata: ids, order, cutting, broken sequences, files, and masked spans."""

from __future__ import annotations

import numpy as np
import pytest

from mmjax.data.layouts import Masked, Policy
from mmjax.data.task import Sample, Streams
from mmjax.demo.numbers import Numbers
from mmjax.modalities.structured import Bins, Boxes, Metadata
from mmjax.typing import Vocabulary

BOXES = Boxes(max_boxes=2, bins=17, num_sentinels=8)
METADATA = Metadata(
    schema={"value": Bins(num=100), "parity": Bins(num=2), "strokes": Bins(num=32, low=0, high=128)}
)
FIRST = 9  # first id that says something, behind the end token and 8 sentinels


def decoded(modality, ids):
    ids_L = np.asarray(ids, np.int32)
    piece = modality.encode(modality.decode(modality.encode([] if modality is BOXES else {})))
    return modality.decode(piece._replace(ids_L=ids_L))


def test_a_box_is_four_ids_of_four_ranges():
    piece = BOXES.encode([[0.25, 0.5, 0.75, 1.0]])
    np.testing.assert_array_equal(piece.ids_L, [FIRST + 4, FIRST + 25, FIRST + 46, FIRST + 67, 0])
    spec = Boxes(max_boxes=2).spec("boxes")
    assert (spec.max_tokens, spec.vocab_size) == (9, 1 + 16 + 4000)


def test_boxes_come_nearest_to_the_origin_first_and_are_cut_whole():
    boxes = np.array([[0.5, 0.5, 1, 1], [0.25, 0, 0.5, 0.5], [0, 0.125, 1, 1]])
    piece = BOXES.encode(boxes)
    np.testing.assert_array_equal(BOXES.decode(piece), boxes[[2, 1]])
    assert (piece.length, piece.num_cut) == (9, 4)


def test_broken_boxes_are_left_out():
    a, b = BOXES.encode([[0, 0, 0.5, 0.5]]).ids_L[:4], BOXES.encode([[0.5, 0, 1, 1]]).ids_L[:4]
    good = [[0, 0, 0.5, 0.5], [0.5, 0, 1, 1]]
    np.testing.assert_array_equal(decoded(BOXES, [*a, *b]), good)  # without an end
    np.testing.assert_array_equal(decoded(BOXES, [*a[:2], *a, *a[1:], *b, 0, *a]), good)
    np.testing.assert_array_equal(decoded(BOXES, [*a, *b[:3]]), good[:1])
    np.testing.assert_array_equal(decoded(BOXES, [1, 2, *a, 3]), good[:1])  # sentinels
    assert decoded(BOXES, [b[0], a[1], a[2] - 2, a[3]]).shape == (0, 4)  # x1 < x0


def test_metadata_is_pairs_in_the_order_of_the_schema():
    ids = METADATA.encode({"strokes": 128, "value": 63}).ids_L
    np.testing.assert_array_equal(ids, [17, 20 + 63, 19, 20 + 100 + 2 + 31, 0])
    assert METADATA.decode(METADATA.encode({"strokes": 128})) == {"strokes": 126.0}


def test_broken_metadata_is_left_out():
    value, parity = METADATA.encode({"value": 63}).ids_L[:2], METADATA.encode({"parity": 1}).ids_L
    assert decoded(METADATA, [value[0], *value, *value[:1], *parity]) == {"value": 63, "parity": 1}
    assert decoded(METADATA, [value[0], parity[1], 3, value[1]]) == {}


def test_what_has_no_id_is_named_with_its_rule():
    with pytest.raises(ValueError, match=r"value=100 .* a whole number in 0\.\.99"):
        METADATA.encode({"value": 100})
    with pytest.raises(ValueError, match=r"strokes='many' .* a number in 0\.\.128"):
        METADATA.encode({"strokes": "many"})
    for value in (b"7", 10**400, 1j):
        with pytest.raises(ValueError, match=r"Metadata: value=.* a whole number in 0\.\.99"):
            METADATA.encode({"value": value})
    with pytest.raises(ValueError, match="'colour' is not in the schema; give some of value,"):
        METADATA.encode({"colour": 1})
    with pytest.raises(ValueError, match="Bins: low=0, high=None; give both"):
        Bins(num=3, low=0)


def test_files_and_text_are_json(tmp_path):
    boxes, about = np.array([[0, 0.125, 0.5, 1]]), {"value": 7, "strokes": 3.5}
    np.testing.assert_array_equal(BOXES.read(str(BOXES.write(boxes, tmp_path / "a"))), boxes)
    assert METADATA.read(str(METADATA.write(about, tmp_path / "b"))) == about
    assert METADATA.read(' {"value": 7}') == {"value": 7}
    with pytest.raises(ValueError, match=r"Boxes: 'absent\.json' cannot be read"):
        BOXES.read("absent.json")
    with pytest.raises(ValueError, match=r"Metadata: .* cannot be read"):
        METADATA.read("{value: 7}")


def test_masked_spans_of_real_examples_merge_to_the_original():
    modalities = {"boxes": BOXES, "metadata": METADATA}
    vocabulary = Vocabulary(tuple(m.spec(n) for n, m in modalities.items()))
    records = Numbers().open("val")
    samples = [
        Sample(
            {n: m.encode(records[i][n]) for n, m in modalities.items()},
            i, (i, 0), i,
        )
        for i in range(32)
    ]  # fmt: skip
    # Everything that is not seen is a target, so that both together are the original.
    layout = Masked(input_tokens=16, target_tokens=24, policies=(Policy(),), room=9.0)
    streams = Streams(tuple(modalities), tuple(modalities))
    batch, counts = layout.build(samples, streams, vocabulary)
    assert not any(value for name, value in counts.items() if name.startswith(("cut", "trimmed")))
    for row in range(len(samples)):
        for name, modality in modalities.items():
            merged = merge(batch, row, name, vocabulary)
            piece = samples[row].pieces[name]
            np.testing.assert_array_equal(merged, piece.ids_L)
            exact = records[row][name]
            back = modality.decode(piece)
            if name == "boxes":
                np.testing.assert_allclose(back, exact, atol=1e-6)  # 17 bins hold sixteenths
            else:
                assert back["value"] == exact["value"] == row
                assert abs(back["strokes"] - exact["strokes"]) <= 2


def merge(batch, row, name, vocabulary):
    """The sequence that input and target say together."""
    spec, start = vocabulary.spec(name), vocabulary.range(name)[0]

    def ids_of(view):
        return (view.ids_BL[row][view.stream_BL[row] == vocabulary.number(name)] - start).tolist()

    shown, fed = ids_of(batch.views["input"]), ids_of(batch.views["target"])
    t = batch.targets[name]
    labels = t.label_WU[0, (t.weight_WU[0] > 0) & (t.row_WU[0] == row)].tolist()
    assert fed[1:] == labels[:-1]  # teacher-forced
    runs: dict[int, list[int]] = {}
    for i in [*fed[:1], *labels]:
        if spec.first_sentinel <= i < spec.first_sentinel + spec.num_sentinels:
            runs[i] = run = []
        else:
            run.append(i)
    if not shown:
        return runs[spec.first_sentinel]
    return [token for i in shown for token in runs.get(i, [i])]


@pytest.mark.parametrize(("scale", "low", "high"), [("log", 0.5, 2000.0), ("mu_law", -3.0, 3.0)])
def test_bins_are_equal_on_their_scale(scale, low, high):
    """Against edges that NumPy puts there."""
    bins, share = Bins(num=40, low=low, high=high, scale=scale), np.linspace(0, 1, 41)
    if scale == "log":
        edges = np.geomspace(low, high, 41)
    else:
        side = 2 * share - 1
        edges = np.sign(side) * (256 ** np.abs(side) - 1) / 255 * high
    numbers = np.random.default_rng(0).uniform(low, high, 500)
    want = np.clip(np.searchsorted(edges, numbers, side="right") - 1, 0, 39)
    np.testing.assert_array_equal([bins.bin(x) for x in numbers], want)
    middles = np.array([bins.middle(i) for i in range(40)])
    assert ((edges[:-1] < middles) & (middles < edges[1:])).all()
    assert [bins.bin(x) for x in middles] == list(range(40))
    assert (bins.bin(low), bins.bin(high), bins.bin(high + 1)) == (0, 39, None)


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"scale": "cubic", "low": 0, "high": 1}, "scale='cubic' is none"),
        ({"scale": "log", "low": 0, "high": 1}, "scale='log' with low=0; low must be above 0"),
        ({"scale": "log"}, "scale='log' with low=None"),
        ({"scale": "mu_law", "low": 0, "high": 1}, "scale='mu_law' with low=0, high=1; use low=-h"),
    ],
)
def test_scales_that_do_not_fit_are_told(fields, told):
    with pytest.raises(ValueError, match=told):
        Bins(num=4, **fields)
