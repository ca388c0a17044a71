"""Each modality takes its stream of ToyWorld as it comes, and gives it back."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from mmjax import testing
from mmjax.data.layouts import Masked
from mmjax.demo.modality_cards import COLUMNS, MARKS, SCALARS
from mmjax.demo.toyworld import CLASSES, STREAMS, ToyWorld
from mmjax.modalities.audio import Audio
from mmjax.modalities.bands import Bands
from mmjax.modalities.camera import Camera
from mmjax.modalities.dense import Depth, Normals
from mmjax.modalities.edges import Edges
from mmjax.modalities.graph import Graph
from mmjax.modalities.image import Image
from mmjax.modalities.imu import Imu
from mmjax.modalities.keypoints import Keypoints
from mmjax.modalities.motion import Events, Flow
from mmjax.modalities.palette import Palette
from mmjax.modalities.points import Points
from mmjax.modalities.raw import Bytes
from mmjax.modalities.segmentation import Instances, Segmentation
from mmjax.modalities.structured import Boxes, Metadata
from mmjax.modalities.table import Table
from mmjax.modalities.time_series import TimeSeries
from mmjax.modalities.video import Video
from mmjax.objectives import MaskedTokens

SIZE = (32, 32)


def near(by: float):
    return lambda raw, back: np.abs(np.asarray(raw, float) - np.asarray(back, float)).max() <= by


def same(raw, back) -> bool:
    return np.array_equal(raw, back)


def as_pictures(by: float):
    return lambda raw, back: np.abs(raw / 255 - back).max() <= by


def same_marks(raw, back) -> bool:
    seen = raw[..., 2] >= 0.5
    order = np.argsort(
        [np.hypot(*p[s, :2].min(0)) if s.any() else 9 for p, s in zip(raw, seen, strict=True)]
    )
    raw, seen = raw[order], seen[order]
    return same(back[..., 2] >= 0.5, seen) and near(1e-3)(raw[seen][:, :2], back[seen][:, :2])


def same_points(raw, back) -> bool:
    order = lambda p: np.array(sorted(map(tuple, np.round(p, 3).tolist())))
    return raw.shape == back.shape and near(2e-3)(order(raw), order(back))


def same_camera(raw, back) -> bool:
    turned = Rotation.from_quat(np.roll(back["rotation"], -1)).as_matrix()
    parts = ("focal", "centre", "translation")
    return near(0.02)(raw["rotation"], turned) and all(near(0.02)(raw[p], back[p]) for p in parts)


def same_cells(raw, back) -> bool:
    words = [name for name, kind in COLUMNS.items() if isinstance(kind, tuple)]
    return all(raw[n] == back[n] for n in words) and all(
        abs(raw[n] - back[n]) <= (0.51 if n == "degrees" else 0.051) for n in set(raw) - set(words)
    )


def same_graph(raw, back) -> bool:
    return [CLASSES[n] if isinstance(n, int) else n for n in raw["nodes"]] == [
        CLASSES[n] if isinstance(n, int) else n for n in back["nodes"]
    ] and sorted(raw["edges"]) == sorted(map(tuple, back["edges"]))


ROWS: dict[str, tuple[str, Any, Any]] = {
    "Image": ("image", Image(size=SIZE, patch=8), as_pictures(1e-5)),
    "Video": ("video", Video(num_frames=8, frames=2, size=SIZE, patch=8), as_pictures(1e-5)),
    "Depth": ("depth", Depth(size=SIZE, patch=8, low=0.5, high=20), near(1e-3)),
    "Bands": (
        "thermal",
        Bands(size=SIZE, patch=8, low=(-10.0,), high=(60.0,)),
        lambda raw, back: np.abs(raw - back[:, :, 0]).max() < 1e-4,
    ),
    "Normals": ("normals", Normals(size=SIZE, patch=8), near(1e-5)),
    "Segmentation": ("semseg", Segmentation(names=CLASSES, size=SIZE, cell=1), same),
    "Instances": ("instances", Instances(size=SIZE, cell=1, max_instances=4), None),
    "Edges": ("edges", Edges(size=SIZE, cell=2), same),
    "Flow": ("flow", Flow(size=SIZE, patch=8), near(1e-4)),
    "Events": ("events", Events(size=SIZE, patch=8), same),
    "Boxes": ("boxes", Boxes(max_boxes=3), None),
    "Keypoints": ("keypoints", Keypoints(joints=MARKS, max_people=3), same_marks),
    "Points": ("points", Points(max_points=256, low=-20, high=20), same_points),
    "Palette": ("palette", Palette(), same),
    "Camera": ("camera", Camera(max_translation=20), same_camera),
    "Audio": ("sound", Audio(seconds=0.5), None),
    "Imu": ("imu", Imu(rate=8, seconds=1, patch=4), near(1e-4)),
    "TimeSeries": ("imu", TimeSeries(channels=6, rate=8, seconds=1, patch=4), near(1e-5)),
    "Table": ("table", Table(columns=COLUMNS), same_cells),
    "Graph": ("graph", Graph(classes=CLASSES, directed=True), same_graph),
    "Metadata": ("scalars", Metadata(schema=SCALARS), None),
    "Bytes": ("caption", Bytes(max_tokens=256), lambda raw, back: raw.encode() == back),
}


@functools.cache
def examples() -> list[dict]:
    source = ToyWorld(streams=STREAMS, size=SIZE[0])
    return [source.open("val")[i] for i in range(20)]


@pytest.mark.parametrize("name", ROWS)
def test_it_takes_its_stream_and_gives_it_back(name):
    stream, modality, is_same = ROWS[name]
    spec = modality.spec(stream)
    for example in examples():
        raw = example[stream]
        piece = modality.encode(raw)
        assert piece.num_cut == 0
        assert piece.length <= spec.max_tokens
        if is_same is not None:
            assert is_same(raw, modality.decode(piece)), raw


def test_what_is_put_into_an_order_is_the_same_set():
    instances, boxes, scalars = (ROWS[n][1] for n in ("Instances", "Boxes", "Metadata"))
    for example in examples():
        raw, back = example["instances"], instances.decode(instances.encode(example["instances"]))
        pairs = set(zip(raw.ravel().tolist(), back.ravel().tolist(), strict=True))
        assert len(pairs) == len({a for a, _ in pairs}) == len({b for _, b in pairs})
        ordered = lambda b: sorted(map(tuple, np.round(b, 2).tolist()))
        assert near(0.02)(
            ordered(example["boxes"]), ordered(boxes.decode(boxes.encode(example["boxes"])))
        )
        back = scalars.decode(scalars.encode(example["scalars"]))
        assert all(abs(back[n] - v) <= 0.051 for n, v in example["scalars"].items())


@pytest.mark.ci
@pytest.mark.timeout(600)
def test_one_model_masks_and_predicts_all_of_them_however_many_are_missing():
    modalities = {stream: modality for stream, modality, _ in ROWS.values()}
    specs = [modality.spec(name) for name, modality in modalities.items()]
    names = tuple(modalities)
    testing.check_objective(
        MaskedTokens(), specs=specs, inputs=names, targets=names,
        layout=Masked(input_tokens=96, target_tokens=96),
    )  # fmt: skip
