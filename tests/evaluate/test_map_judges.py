"""Judges of maps, structures and words: right answers, wrong ones, and figures made by hand."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from mmjax.demo.toyworld import CLASSES, STREAMS, ToyWorld
from mmjax.evaluate import map_judges as judges
from mmjax.modalities.dense import Depth, Normals
from mmjax.modalities.edges import Edges
from mmjax.modalities.graph import Graph
from mmjax.modalities.keypoints import Keypoints
from mmjax.modalities.motion import Flow
from mmjax.modalities.palette import Palette
from mmjax.modalities.raw import Bytes
from mmjax.modalities.segmentation import Instances, Segmentation
from mmjax.modalities.time_series import TimeSeries

sys.path.insert(0, str(Path(__file__).parents[1] / "demo"))
import test_toyworld_modalities as toyworld

SOURCE = ToyWorld(streams=STREAMS)
JUDGES = {
    "semseg": ("Segmentation", judges.MeanIoU()),
    "instances": ("Instances", judges.Covering()),
    "depth": ("Depth", judges.DepthDelta()),
    "normals": ("Normals", judges.NormalsWithin()),
    "flow": ("Flow", judges.FlowWithin(pixels=0.25)),
    "edges": ("Edges", judges.EdgeF1()),
    "image": ("Image", judges.Within()),
    "sound": ("Audio", judges.Within(tolerance=1.0, field="sound")),
    "imu": ("TimeSeries", judges.Within(field="imu")),
    "keypoints": ("Keypoints", judges.PCK()),
    "palette": ("Palette", judges.PaletteF1()),
    "table": ("Table", judges.SameCells()),
    "graph": ("Graph", judges.GraphF1()),
}


@pytest.fixture(scope="module")
def examples():
    records = SOURCE.open("val")
    return [records[i] for i in range(30)]


@pytest.mark.parametrize("stream", JUDGES)
def test_what_comes_back_is_right_and_what_is_of_others_is_worse(stream, examples):
    kind, judge = JUDGES[stream]
    modality = toyworld.ROWS[kind][1]
    score = judge.ready(SOURCE, modality)
    back = [modality.decode(modality.encode(e[stream])) for e in examples]
    own = score(back, examples)
    assert own.shape == (30,)
    np.testing.assert_allclose(own, 1.0, atol=0.01)
    raw = score([e[stream] for e in examples], examples)  # as `real` of `Generation`
    np.testing.assert_allclose(raw, 1.0, atol=0.01)
    other = score([*back[1:], back[0]], examples)
    assert ((other >= 0) & (other <= 1)).all()
    assert other.mean() < 0.93
    random = np.random.default_rng(0)
    spec = modality.spec(stream)
    if spec.vocab_size:  # any ids can be judged
        piece = modality.encode(examples[0][stream])
        ids = random.integers(0, spec.vocab_size, piece.length).astype(np.int32)
        anything = score([modality.decode(piece._replace(ids_L=ids))], examples[:1])
        assert 0 <= anything[0] < 1


def one(judge, modality, field, answer, real) -> float:
    return float(judge.ready(SOURCE, modality)([answer], [{field: real}])[0])


def test_classes():
    modality = Segmentation(names=CLASSES, size=(2, 2), cell=1)
    real = np.array([[0, 0], [1, 255]])
    score = lambda answer: one(judges.MeanIoU(), modality, "semseg", np.array(answer), real)
    assert score([[0, 0], [1, 5]]) == 1  # what is ignored may be anything
    assert score([[0, 1], [1, 0]]) == pytest.approx((1 / 2 + 1 / 2) / 2)
    assert score([[2, 2], [2, 2]]) == 0
    with pytest.raises(ValueError, match="MeanIoU: Depth is no Segmentation"):
        judges.MeanIoU().ready(SOURCE, Depth())


def test_instances_by_any_number():
    modality = Instances(size=(2, 4), cell=1)
    real = np.array([[0, 0, 1, 1], [0, 0, 2, 2]])
    score = lambda answer: one(judges.Covering(), modality, "instances", np.array(answer), real)
    assert score([[0, 0, 2, 2], [0, 0, 1, 1]]) == 1
    # One body in place of two covers each by a half, and the ground wholly.
    assert score([[0, 0, 1, 1], [0, 0, 1, 1]]) == pytest.approx((4 * 1 + 2 * 0.5 + 2 * 0.5) / 8)
    assert score(np.zeros((2, 4))) == pytest.approx((4 * 0.5 + 4 * 0.25) / 8)


def test_depth_normals_and_flow():
    depth = Depth(size=(1, 4), patch=1, missing=True)
    real = np.array([[1.0, 2.0, 4.0, np.nan]], np.float32)
    answer = np.array([[1.2, 2.6, np.nan, 3.0]], np.float32)
    assert one(judges.DepthDelta(), depth, "depth", answer, real) == pytest.approx(1 / 3)
    assert one(judges.DepthDelta(factor=1.31), depth, "depth", answer, real) == pytest.approx(2 / 3)

    normals = Normals(size=(1, 3), patch=1)
    real = np.array([[[0, 0, 1], [0, 1, 0], [0, 0, 0]]], np.float32)
    tilted = np.deg2rad(20)
    answer = np.array([[[np.sin(tilted), 0, np.cos(tilted)], [1, 0, 0], [1, 0, 0]]])
    assert one(judges.NormalsWithin(), normals, "normals", answer, real) == 0.5
    assert one(judges.NormalsWithin(degrees=11.25), normals, "normals", answer, real) == 0

    flow = Flow(size=(1, 3), patch=1, missing=True)
    real = np.array([[[0, 0], [1, 1], [np.nan, 0]]], np.float32)
    answer = np.array([[[0.9, 0], [3, 1], [0, 0]]])
    assert one(judges.FlowWithin(), flow, "flow", answer, real) == 0.5
    assert one(judges.FlowWithin(pixels=2.5), flow, "flow", answer, real) == 1


def test_numbers_within_a_tolerance():
    series = TimeSeries(channels=1, rate=1, seconds=4, patch=1)
    real = np.array([[0.0], [1.0], [2.0], [3.0]])
    score = lambda answer, **f: one(judges.Within(**f), series, "image", np.array(answer), real)
    assert score([[0.05], [1.2], [2.0], [2.95]]) == 0.75
    assert score([[0.05], [1.2], [2.0], [2.95]], tolerance=0.2) == 1
    assert score([[0.0], [1.0]]) == 0.5  # the rest is missing
    with pytest.raises(ValueError, match="tolerance=0"):
        judges.Within(tolerance=0.0)


def test_edges_within_reach():
    modality = Edges(size=(8, 8), cell=2)
    real = np.zeros((8, 8), bool)
    real[:, 3] = True
    score = lambda answer, **f: one(judges.EdgeF1(**f), modality, "edges", answer, real)
    assert score(np.roll(real, 1, axis=1)) == 1
    assert score(np.roll(real, 1, axis=1), pixels=0) == 0
    assert score(np.roll(real, 2, axis=1)) == 0
    half = real.copy()
    half[4:] = False  # all of it is right, and five rows of the real ones are within reach
    assert score(half) == pytest.approx(2 * (5 / 8) / (1 + 5 / 8))
    assert score(np.zeros((8, 8))) == 0
    assert one(judges.EdgeF1(), modality, "edges", real * 0, real * 0) == 1


def test_joints_and_colours():
    people = Keypoints(joints=("head", "foot"), max_people=3)
    real = np.array([[[0.5, 0.1, 1], [0.5, 0.9, 1]], [[0.8, 0.2, 1], [0, 0, 0]]])
    near = real.copy()
    near[:, :, 0] += 0.04 * (real[:, :, 2] > 0)
    assert one(judges.PCK(), people, "keypoints", near, real) == 1
    near[0, 0, 0] += 0.1
    near[1, 1] = 0.3, 0.3, 1  # seen where none is
    assert one(judges.PCK(), people, "keypoints", near, real) == 0.5
    assert one(judges.PCK(), people, "keypoints", near[:1], real) == 0.25  # one of two is missing
    assert one(judges.PCK(), people, "keypoints", real[:0], real[:0]) == 1

    palette, colours = Palette(), np.array([[255, 0, 0], [0, 255, 0]], np.uint8)
    score = lambda answer: one(judges.PaletteF1(), palette, "palette", np.array(answer), colours)
    assert score([[0, 250, 0], [250, 9, 0]]) == 1  # in any order
    assert score([[255, 0, 0], [255, 0, 0]]) == 0.5  # each is taken once
    assert score(np.zeros((0, 3))) == 0


def test_graphs_and_words():
    graph = Graph(classes=("cup", "table"), directed=True)
    real = {"nodes": ["cup", "cup", "table"], "edges": [(0, 2), (1, 2)]}
    score = lambda answer: one(
        judges.GraphF1(), graph, "graph", graph.decode(graph.encode(answer)), real
    )
    assert score(real) == 1
    assert score({"nodes": ["cup", "table", "table"], "edges": [(0, 2)]}) == pytest.approx(
        0.5 * (2 / 3 + 2 * 1 / 3)
    )
    assert score({"nodes": [], "edges": []}) == 0

    text = Bytes(field="caption")
    several = ["a red  ball", "the ball is red"]
    exact = lambda answer: one(judges.SameText(), text, "caption", answer, several)
    assert exact("a red ball\n") == 1
    assert exact("a red box") == 0
    words = lambda answer: one(judges.WordF1(), text, "caption", answer, several)
    assert words("Red ball a") == 1
    assert words("a red box") == pytest.approx(2 / 3)
    assert words("") == 0


@pytest.mark.parametrize(
    ("judge", "fields", "told"),
    [
        (judges.DepthDelta, {"factor": 1.0}, "factor=1"),
        (judges.NormalsWithin, {"degrees": 0.0}, "degrees=0"),
        (judges.FlowWithin, {"pixels": -1.0}, "pixels=-1"),
        (judges.EdgeF1, {"pixels": -1}, "pixels=-1"),
        (judges.PCK, {"distance": 0.0}, "distance=0"),
        (judges.PaletteF1, {"distance": 0.0}, "distance=0"),
    ],
)
def test_limits_are_checked(judge, fields, told):
    with pytest.raises(ValueError, match=told):
        judge(**fields)
    with pytest.raises(ValueError, match="is no Table"):
        judges.SameCells().ready(SOURCE, Palette())
