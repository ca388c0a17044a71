"""ToyWorld: every stream is checked against another one by maths of its own."""

from __future__ import annotations

import doctest
import functools
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from mmjax import config, testing
from mmjax.data.reader import Reader
from mmjax.demo import toyworld, toyworld_render, toyworld_scene, toyworld_streams, toyworld_words
from mmjax.demo.toyworld import CLASSES, COLOURS, LANGUAGES, SHAPES, STREAMS, ToyWorld
from mmjax.demo.toyworld_sheet import COLUMNS, sheet
from mmjax.modalities.image import Image
from mmjax.modalities.structured import Boxes
from mmjax.testing.require import same
from mmjax.typing import Vocabulary

DOCS = Path(__file__).resolve().parents[2] / "docs" / "toyworld.md"
SIZE, SCENES = 64, 12
FRAME = 0.125


@functools.cache
def examples() -> list[dict]:
    source = ToyWorld(streams=STREAMS, size=SIZE, languages=("en",), levels=(2,))
    return [source.open("val")[i] for i in range(SCENES)]


def unprojected(depth: np.ndarray, camera: dict) -> np.ndarray:
    """Points (S, S, 3) in the frame of the camera, by a loop over pixels."""
    (fx, fy), (cx, cy) = camera["focal"].astype(float), camera["centre"].astype(float)
    points = np.zeros((*depth.shape, 3))
    for row, column in np.ndindex(*depth.shape):
        z = float(depth[row, column])
        u, v = (column + 0.5) / depth.shape[1], (row + 0.5) / depth.shape[0]
        points[row, column] = (u - cx) / fx * z, (v - cy) / fy * z, z
    return points


def inner(edges: np.ndarray, by: int = 2) -> np.ndarray:
    """Pixels that are `by` or more away from an edge and from the border."""
    wide = np.pad(edges, by, constant_values=True)
    steps = [(i, j) for i in range(2 * by + 1) for j in range(2 * by + 1)]
    height, width = edges.shape
    return ~np.logical_or.reduce([wide[i : i + height, j : j + width] for i, j in steps])


def project(points: np.ndarray, camera: dict) -> np.ndarray:
    (fx, fy), (cx, cy) = camera["focal"], camera["centre"]
    return points[..., :2] / points[..., 2:] * [fx, fy] + [cx, cy]


# ------------------------------------------------------------------------- the contract


def test_it_is_a_source():
    source = ToyWorld(streams=STREAMS, size=16, frames=3, noise=0.1, missing={"depth": 0.5})
    testing.check_source(source, 2)
    testing.check_source(ToyWorld(misaligned=0.5))


def test_the_example_of_the_class():
    result = doctest.testmod(toyworld, globs={"ToyWorld": ToyWorld})
    assert (result.attempted, result.failed) == (2, 0)


def test_it_is_a_config():
    source = ToyWorld(streams=("image", "sound"), missing={"image": 0.2}, levels=(1,), noise=0.1)
    copy = config.from_json(json.loads(json.dumps(config.to_json(source))), config.seam_classes())
    assert copy == source
    assert copy.fingerprint() == source.fingerprint()


def test_modalities_read_it():
    modalities = {"image": Image(size=(32, 32), patch=8), "boxes": Boxes(max_boxes=3)}
    vocabulary = Vocabulary(tuple(m.spec(name) for name, m in modalities.items()))
    source = ToyWorld(streams=("image", "boxes"), missing={"boxes": 0.5})
    reader = Reader(source=source, split="train", modalities=modalities, vocabulary=vocabulary)
    lacking = 0
    for index in range(12):
        pieces, identity = reader.read(index, ("image", "boxes"))
        assert identity == reader.records[index]["identity"]
        assert (pieces["boxes"] is None) == ("boxes" not in reader.records[index])
        assert pieces["image"] is not None
        lacking += pieces["boxes"] is None
    assert 0 < lacking < 12
    assert not reader.bad


def test_shapes_and_dtypes():
    for e in examples():
        assert set(e) == {*STREAMS, "language", "aligned", "identity", "slices"}
        n, s = int(e["scalars"]["objects"]), SIZE
        shapes = {
            "image": ((s, s, 3), "uint8"), "depth": ((s, s), "float32"),
            "normals": ((s, s, 3), "float32"), "semseg": ((s, s), "uint8"),
            "instances": ((s, s), "uint8"), "edges": ((s, s), "bool"),
            "flow": ((s, s, 2), "float32"), "boxes": ((len(e["boxes"]), 4), "float32"),
            "box_labels": ((len(e["boxes"]),), "int64"), "keypoints": ((n, 5, 3), "float32"),
            "points": ((256, 3), "float32"), "palette": ((n, 3), "uint8"),
            "views": ((2, s, s, 3), "uint8"), "video": ((8, s, s, 3), "uint8"),
            "imu": ((8, 6), "float32"), "thermal": ((s, s), "float32"),
            "events": ((s, s, 2), "uint8"), "sound": ((2560 * n,), "float32"),
        }  # fmt: skip
        for name, (shape, dtype) in shapes.items():
            assert (e[name].shape, e[name].dtype.name) == (shape, dtype), name
            assert np.isfinite(e[name]).all(), name
        assert len(e["view_cameras"]) == 2
        np.testing.assert_array_equal(e["video"][0], e["image"])


def test_no_stream_depends_on_another_or_on_the_number_of_frames():
    options: dict[str, Any] = {"size": 16, "noise": 0.05, "misaligned": 0.5}
    whole = ToyWorld(streams=STREAMS, **options).open("train")[5]
    for name in STREAMS:
        alone = ToyWorld(streams=(name,), **options).open("train")[5]
        assert same(alone[name], whole[name]), name
    short = ToyWorld(streams=STREAMS, frames=3, num_views=1, **options).open("train")[5]
    np.testing.assert_array_equal(short["video"], whole["video"][:3])
    np.testing.assert_array_equal(short["imu"], whole["imu"][:3])
    np.testing.assert_array_equal(short["views"], whole["views"][:1])


def test_fields_are_checked():
    bad: tuple[dict[str, Any], ...] = (
        {"streams": ("image", "smell")}, {"streams": ()}, {"languages": ("it",)}, {"levels": ()},
        {"missing": {"smell": 0.1}}, {"missing": {"image": 1.5}}, {"size": 4}, {"held_out": 17},
        {"max_objects": 4}, {"levels": (3,)}, {"noise": float("nan")}, {"antialias": 0},
    )  # fmt: skip
    for wrong in bad:
        with pytest.raises(ValueError, match=f"ToyWorld: {next(iter(wrong))}"):
            ToyWorld(**wrong)
    with pytest.raises(ValueError, match="split='dev' does not exist"):
        ToyWorld().open("dev")
    for index in (-1, 10_000):
        with pytest.raises(IndexError, match="outside"):
            ToyWorld().open("train")[index]
    marks = {s.fingerprint() for s in (ToyWorld(), ToyWorld(noise=0.1), ToyWorld(levels=(1,)))}
    assert len(marks) == 3
    assert ToyWorld(missing={"depth": 0, "image": 1}).fingerprint() == ToyWorld(
        missing={"image": 1, "depth": 0}
    ).fingerprint()  # fmt: skip


# ---------------------------------------------------------------------------- alignment


def test_points_are_the_unprojected_depth():
    for e in examples()[:4]:
        cloud = unprojected(e["depth"], e["camera"]).reshape(-1, 3)
        gaps = np.linalg.norm(e["points"][:, None] - cloud, axis=-1).min(1)
        assert gaps.max() < 1e-5
        assert len(np.unique(e["points"], axis=0)) == 256  # of 4096 pixels, none twice
        mine = toyworld.as_point_cloud(e["depth"], e["camera"]).reshape(-1, 3)
        np.testing.assert_allclose(mine, cloud, atol=1e-5)


def test_all_points_lie_in_the_room_and_the_ground_is_flat():
    for e in examples():
        world = unprojected(e["depth"], e["camera"]) - e["camera"]["translation"]
        world = world @ e["camera"]["rotation"]
        np.testing.assert_allclose(world[e["semseg"] == 1][:, 2], 0, atol=1e-5)
        np.testing.assert_allclose(world[e["semseg"] == 0][:, 1], 2.4, atol=1e-5)
        assert world[..., 2].min() > -1e-5


def test_normals_are_those_of_the_depth():
    for e in examples():
        points = unprojected(e["depth"], e["camera"])
        across, down = (np.gradient(points, axis=axis) for axis in (1, 0))
        expected = np.cross(down, across)
        expected /= np.linalg.norm(expected, axis=-1, keepdims=True)
        np.testing.assert_allclose(np.linalg.norm(e["normals"], axis=-1), 1, atol=1e-6)
        where = inner(e["edges"])
        alike = (expected * e["normals"]).sum(-1)
        flat = where & ((e["semseg"] < 2) | (e["semseg"] == 3))
        assert flat.sum() > 1000
        assert alike[flat].min() > 0.9999
        assert alike[where].min() > 0.96
        towards = (e["normals"] * points).sum(-1)
        assert (towards < 0).all()  # each faces the camera


def test_edges_are_where_depth_jumps_or_normals_turn():
    for e in examples():
        part = 10 * e["instances"].astype(int) + (e["semseg"] == 1)
        changes = np.zeros(part.shape, bool)
        changes[:, :-1] |= part[:, :-1] != part[:, 1:]
        changes[:-1] |= part[:-1] != part[1:]
        assert e["edges"][changes].all()
        creases = e["edges"] & ~changes
        assert np.isin(e["semseg"][creases], [3, 4]).all()  # corners of cubes, lids of cylinders
        turns = (e["normals"][:, :-1] * e["normals"][:, 1:]).sum(-1) < 0.5
        assert e["edges"][:, :-1][turns & (e["semseg"][:, :-1] == 3)].all()
        assert 0.01 < e["edges"].mean() < 0.3


def test_boxes_are_the_extents_of_the_masks():
    for e in examples():
        numbers = [i for i in range(1, 4) if (e["instances"] == i).any()]
        assert len(numbers) == len(e["boxes"]) == len(e["box_labels"])
        for i, box, label in zip(numbers, e["boxes"], e["box_labels"], strict=True):
            rows, columns = np.nonzero(e["instances"] == i)
            edges = columns.min(), rows.min(), columns.max() + 1, rows.max() + 1
            np.testing.assert_allclose(box * SIZE, edges, atol=1e-4)
            assert (e["semseg"][rows, columns] == label).all()
        np.testing.assert_array_equal(e["instances"] > 0, e["semseg"] > 1)


def test_nearly_all_bodies_are_seen_at_the_smallest_size():
    records = ToyWorld(streams=("boxes", "scalars"), size=32).open("train")
    made = [records[i] for i in range(200)]
    shown = sum(len(e["boxes"]) for e in made)
    assert shown == sum(e["scalars"]["objects"] for e in made)
    assert {e["scalars"]["objects"] for e in made} == {1, 2, 3}


def test_flow_carries_the_instances_to_the_next_frame():
    records, kept, counted = ToyWorld(streams=("image",), size=SIZE).open("val"), 0, 0
    for index, e in enumerate(examples()):
        scene = records.scene(index)
        later = toyworld_render.cast(scene.at(1), toyworld_scene.path(scene, 2)[0][1], SIZE)
        instances = np.maximum(later.part - 1, 0).reshape(SIZE, SIZE)
        rows, columns = np.nonzero(inner(e["edges"], 1))
        moved = e["flow"][rows, columns] + np.stack([columns, rows], 1) + 0.5
        column, row = np.floor(moved).astype(int).T
        inside = (column >= 0) & (column < SIZE) & (row >= 0) & (row < SIZE)
        kept_here = instances[row[inside], column[inside]] == e["instances"][rows, columns][inside]
        kept, counted = kept + kept_here.sum(), counted + len(kept_here)
        own = e["instances"][rows, columns][inside] > 0
        assert kept_here[own].mean() > 0.95 if own.any() else True
    assert kept > 0.99 * counted


def test_flow_is_where_each_point_goes():
    records = ToyWorld(streams=("image",), size=SIZE).open("val")
    for index, e in enumerate(examples()):
        scene = records.scene(index)
        world = unprojected(e["depth"], e["camera"]) - e["camera"]["translation"]
        world = world @ e["camera"]["rotation"]
        for i, body in enumerate(scene.bodies, 1):
            here = e["instances"] == i
            turn = Rotation.from_euler("z", body.spin * FRAME)
            foot, move = np.array([body.x, body.y, 0]), FRAME * np.array([*body.velocity, 0])
            world[here] = turn.apply(world[here] - foot) + foot + move
        camera = toyworld_scene.path(scene, 2)[0][1].as_dict()
        seen = world @ camera["rotation"].T + camera["translation"]
        columns, rows = np.meshgrid(np.arange(SIZE) + 0.5, np.arange(SIZE) + 0.5)
        expected = project(seen, camera) * SIZE - np.stack([columns, rows], -1)
        np.testing.assert_allclose(e["flow"], expected, atol=2e-3)


def test_flow_explains_the_next_frame():
    before = after = 0.0
    for e in examples():
        rows, columns = np.nonzero(inner(e["edges"]))
        moved = np.rint(e["flow"][rows, columns]).astype(int) + np.stack([columns, rows], 1)
        column, row = moved.clip(0, SIZE - 1).T
        old, new = (e["video"][t].astype(float) for t in (0, 1))
        before += np.abs(new[rows, columns] - old[rows, columns]).mean()
        after += np.abs(new[row, column] - old[rows, columns]).mean()
    assert after < 0.7 * before
    assert max(np.abs(e["flow"]).max() for e in examples()) < 12


def test_views_show_the_same_points():
    records, near = ToyWorld(streams=("image",), size=SIZE).open("val"), []
    for index, e in enumerate(examples()[:6]):
        world = unprojected(e["depth"], e["camera"]) - e["camera"]["translation"]
        world = world @ e["camera"]["rotation"]
        scene = records.scene(index)
        for view, camera in zip(e["views"], e["view_cameras"], strict=True):
            pose = toyworld_scene.Camera(camera["rotation"], camera["translation"])
            depth = toyworld_render.cast(scene.bodies, pose, SIZE).depth.reshape(SIZE, SIZE)
            inside = world @ camera["rotation"].T + camera["translation"]
            column, row = np.floor(project(inside, camera) * SIZE).astype(int).reshape(-1, 2).T
            ok = (column >= 0) & (column < SIZE) & (row >= 0) & (row < SIZE)
            ok &= inner(e["edges"], 1).ravel()
            gap = np.abs(inside[..., 2].ravel()[ok] - depth[row[ok], column[ok]])
            seen = gap < 0.1
            assert seen.mean() > 0.6
            colours = e["image"].reshape(-1, 3)[ok][seen].astype(float)
            other = view[row[ok], column[ok]][seen]
            near.append(np.median(np.abs(colours - other)))
    assert np.mean(near) < 4  # of 255


def test_keypoints_lie_on_their_bodies():
    for e in examples():
        assert (np.diff(e["keypoints"][:, 0, 0]) > 0).all()  # from left to right
        for i, marks in enumerate(e["keypoints"]):
            x, y, kind = marks[0]
            if kind == 2:
                assert e["instances"][int(y * SIZE), int(x * SIZE)] == i + 1
            if (marks[:, 2] == 2).all() and len(e["keypoints"]) == len(e["boxes"]):
                left, right = marks[3:, 0]
                x0, y0, x1, y1 = e["boxes"][i]
                assert abs(left - x0) < 1 / SIZE + 0.15 * (x1 - x0)
                assert abs(right - x1) < 1 / SIZE + 0.15 * (x1 - x0)
                assert y0 - 2 / SIZE <= marks[1, 1] < marks[2, 1] <= y1 + 1 / SIZE  # tips are thin


def test_keypoints_know_what_hides_them():
    records, hidden = ToyWorld(streams=("keypoints", "instances"), size=SIZE).open("val"), 0
    for index in range(60):
        e = records[index]
        for i, marks in enumerate(e["keypoints"]):
            for x, y, kind in marks:
                rows, columns = (
                    slice(max(int(c * SIZE) - 2, 0), int(c * SIZE) + 3) for c in (y, x)
                )
                there = set(e["instances"][rows, columns].flat)
                assert kind in (1, 2)
                assert i + 1 in there if kind == 2 else there - {0, i + 1}
                hidden += kind == 1
    assert hidden > 5


def test_palette_names_the_colours_in_the_picture():
    source = ToyWorld(streams=("image", "palette", "instances"), size=SIZE, held_out=0)
    for index in range(8):
        e = source.open("val")[index]
        sizes = np.bincount(e["instances"].ravel(), minlength=4)[1:]
        largest = e["image"][e["instances"] == 1 + sizes.argmax()].astype(float)
        mean, true = largest.mean(0), e["palette"][0].astype(float)
        cosine = mean @ true / np.linalg.norm(mean) / np.linalg.norm(true)
        assert cosine > 0.97


# -------------------------------------------------------------------------------- time


def test_imu_integrates_to_the_path_of_the_camera():
    scene = ToyWorld().open("train").scene(3)
    cameras, told = toyworld_scene.path(scene, 12)
    at = np.stack([camera.position for camera in cameras])
    to_world = Rotation.from_matrix(cameras[0].rotation.T)
    gravity = np.array([0, 0, -9.81])
    first = to_world.apply(told[0, :3]) + gravity
    velocity, position = (at[1] - at[0]) / FRAME - first * FRAME / 2, at[0]
    for k in range(11):
        acceleration = to_world.apply(told[k, :3]) + gravity
        position = position + velocity * FRAME + acceleration * FRAME**2 / 2
        velocity = velocity + acceleration * FRAME
        to_world = to_world * Rotation.from_rotvec(told[k, 3:] * FRAME)
        np.testing.assert_allclose(position, at[k + 1], atol=1e-9)
        np.testing.assert_allclose(to_world.as_matrix().T, cameras[k + 1].rotation, atol=1e-9)
    assert np.ptp(at, axis=0).max() > 0.02
    np.testing.assert_array_equal(cameras[0].rotation, scene.camera.rotation)


def test_bodies_never_meet_while_the_video_lasts():
    records = ToyWorld().open("train")
    for index in range(200):
        scene = records.scene(index)
        for frame in range(0, 16, 3):
            bodies = scene.at(frame)
            for i, a in enumerate(bodies):
                assert a.y + a.foot < 2.4
                for b in bodies[:i]:
                    reach = a.radius + b.radius
                    assert np.hypot(a.x - b.x, a.y - b.y) > 1.1 * reach


def test_sound_tells_shape_and_size():
    records = ToyWorld(streams=("sound",)).open("val")
    for index in range(20):
        clip, bodies = records[index]["sound"], records.scene(index).bodies
        tones = clip.reshape(len(bodies), 2560)[:, :1920]
        for tone, body in zip(tones, bodies, strict=True):
            spectrum = np.abs(np.fft.rfft(tone, 16_000))  # a bin for each Hz
            assert abs(spectrum.argmax() - (262, 330, 392, 523)[body.shape]) <= 2
            assert np.abs(tone).max() == pytest.approx((0.2, 0.6)[body.size], rel=0.01)


def test_events_are_the_change_of_brightness():
    for e in examples():
        old, new = (np.log(e["video"][t].mean(-1) / 255 + 0.05) for t in (0, 1))
        change = (new - old) / 0.1
        counts = e["events"].astype(int)
        assert np.abs(counts[..., 1] - np.floor(change.clip(0))).max() <= 1
        assert np.abs(counts[..., 0] - np.floor((-change).clip(0))).max() <= 1
        assert not (counts[..., 0] * counts[..., 1]).any()
    assert any(e["events"].any() for e in examples())


# ------------------------------------------------------------------- words and numbers

PHRASE = re.compile(rf"(small|large) ({'|'.join(COLOURS)}) ({'|'.join(SHAPES)})")


def named(e: dict, phrase: tuple[str, str, str]) -> int:
    """The body that a phrase means, by its class and the colour nearest to it."""
    _, colour, shape = phrase
    palette = toyworld_scene.DAY[-8:] * 255
    sizes = np.bincount(e["instances"].ravel(), minlength=4)[1:]
    order = np.argsort(-sizes[: len(e["keypoints"])], kind="stable")
    found = []
    for rank, i in enumerate(order):
        near = np.linalg.norm(palette - e["palette"][rank], axis=1).argmin()
        if CLASSES[e["graph"]["nodes"][i]] == shape and COLOURS[near] == colour:
            found.append(int(i))
    (only,) = found
    return only


def test_what_captions_say_is_so():
    relations = sized = 0
    for e in examples():
        phrases = PHRASE.findall(e["caption"])
        assert len(phrases) == e["scalars"]["objects"]
        bodies = [named(e, phrase) for phrase in phrases]
        assert sorted(bodies) == list(range(len(bodies)))
        told = re.findall("left of|right of|in front of|behind", e["caption"])
        depth = [e["depth"][e["instances"] == i + 1].mean() for i in range(len(bodies))]
        for relation, i, j in zip(told, bodies, bodies[1:], strict=False):
            relations += 1
            x = e["keypoints"][:, 0, 0]
            assert {
                "left of": x[i] < x[j], "right of": x[i] > x[j],
                "in front of": depth[i] < depth[j], "behind": depth[i] > depth[j],
            }[relation], e["caption"]  # fmt: skip
        assert len(told) == len(bodies) - 1
        for (size, _, shape), i in zip(phrases, bodies, strict=True):
            limit = {"sphere": 0.75, "cylinder": 0.58, "cone": 0.68}.get(shape)  # metres
            if limit and (e["keypoints"][i, :, 2] == 2).all():
                x0, _, x1, _ = e["boxes"][i]
                width = (x1 - x0) * e["depth"][e["instances"] == i + 1].mean() / 1.35
                sized += 1
                assert (width > limit) == (size == "large"), (e["caption"], width)
    assert relations > 6
    assert sized > 6


def scene_of(*bodies: tuple[int, int, int], whims: tuple[float, ...] = ()) -> toyworld_scene.Scene:
    made = [
        toyworld_scene.Body(
            shape, colour, size, 0, 0.3, i - 1.0, 0.0, 0.0, (0.0, 0.0), 0.0, np.zeros(3)
        )
        for i, (shape, colour, size) in enumerate(bodies)
    ]
    rest = np.array([*whims, *[0.9] * (8 - len(whims))])
    camera = toyworld_scene.look(0.0, 0.4, 4.0)
    return toyworld_scene.Scene(tuple(made), camera, toyworld_scene.DAY, rest, (0, 0, 0))


@pytest.mark.parametrize(
    ("language", "level", "expected"),
    [
        ("en", 0, "two spheres and a cone"),
        ("de", 0, "zwei Kugeln und ein Kegel"),
        ("fr", 0, "deux sph\u00e8res et un c\u00f4ne"),
        ("es", 0, "dos esferas y un cono"),
        ("en", 1, "an orange sphere, a blue cone and a green sphere"),
        ("de", 1, "eine orangefarbene Kugel, ein blauer Kegel und eine gr\u00fcne Kugel"),
        ("fr", 1, "une sph\u00e8re orange, un c\u00f4ne bleu et une sph\u00e8re verte"),
        ("es", 1, "una esfera naranja, un cono azul y una esfera verde"),
        (
            "en", 2,
            "a small orange sphere left of a large blue cone, which is left of a small green"
            " sphere",
        ),
        (
            "de", 2,
            "eine kleine orangefarbene Kugel links von einem gro\u00dfen blauen Kegel, der links"
            " von einer kleinen gr\u00fcnen Kugel steht",
        ),
        (
            "fr", 2,
            "une petite sph\u00e8re orange \u00e0 gauche d'un grand c\u00f4ne bleu, qui est \u00e0"
            " gauche d'une petite sph\u00e8re verte",
        ),
        (
            "es", 2,
            "una esfera naranja peque\u00f1a a la izquierda de un cono azul grande, que est\u00e1 a"
            " la izquierda de una esfera verde peque\u00f1a",
        ),
    ],
)  # fmt: skip
def test_grammar(language, level, expected):
    scene = scene_of((0, 1, 0), (3, 5, 1), (0, 3, 0), whims=(0.1, 0.2, 0.3))
    assert toyworld_words.caption(scene, language, level) == expected


def test_grammar_of_what_is_feminine():
    scene = scene_of((0, 1, 0), (3, 5, 1), (0, 3, 0), whims=(0.2, 0.1, 0.3))
    assert toyworld_words.caption(scene, "de", 2) == (
        "ein gro\u00dfer blauer Kegel rechts von einer kleinen orangefarbenen Kugel, die links von"
        " einer kleinen gr\u00fcnen Kugel liegt"
    )
    assert toyworld_words.caption(scene, "fr", 2) == (
        "un grand c\u00f4ne bleu \u00e0 droite d'une petite sph\u00e8re orange, qui est \u00e0"
        " gauche d'une petite sph\u00e8re verte"
    )


def test_captions_of_a_split_are_many_and_in_all_languages():
    records = ToyWorld(streams=("caption",)).open("train")
    made = [records[i] for i in range(300)]
    assert {e["language"] for e in made} == set(LANGUAGES)
    assert all(e["aligned"] for e in made)
    assert len({e["caption"] for e in made}) > 150
    assert all(re.fullmatch(r"[\w',\- ]+", e["caption"]) for e in made)
    assert all("  " not in e["caption"] for e in made)


def test_table_graph_and_scalars():
    for e in examples():
        assert e["table"]["radius"] > 0
        assert CLASSES.index(e["table"]["shape"]) in e["graph"]["nodes"]
        assert (np.diff(e["keypoints"][:, 0, 0]) > 0).all()  # from left to right
        for i, j in e["graph"]["edges"]:
            depth = [e["depth"][e["instances"] == k + 1].mean() for k in (i, j)]
            assert depth[0] < depth[1]
        scalars = e["scalars"]
        assert scalars["mean_depth"] == pytest.approx(e["depth"].mean(), rel=1e-5)
        assert scalars["background"] == pytest.approx((e["instances"] == 0).mean())
        assert scalars["brightness"] == pytest.approx(e["image"].mean() / 255, abs=0.01)


def test_thermal_tells_the_material():
    records = ToyWorld(streams=("thermal", "instances"), size=SIZE).open("val")
    for index in range(SCENES):
        e, scene = records[index], records.scene(index)
        for i, body in enumerate(scene.bodies, 1):
            warmth = e["thermal"][e["instances"] == i]
            degrees = toyworld_streams.DEGREES[toyworld_scene.MATERIALS[body.material]]
            assert (warmth >= degrees).all()
            assert (warmth <= degrees + 1.5 * body.height + 1e-4).all()


# ------------------------------------------------------------------------------- knobs


def test_noise_is_as_asked_and_of_pictures_alone():
    clean, noisy = (
        ToyWorld(streams=("image", "views", "depth"), size=SIZE, noise=n).open("val")[1]
        for n in (0, 0.05)
    )
    for name in ("image", "views"):
        fit = (clean[name] > 60) & (clean[name] < 195)
        change = noisy[name].astype(float)[fit] - clean[name][fit]
        assert change.std() == pytest.approx(0.05 * 255, rel=0.05)
    np.testing.assert_array_equal(clean["depth"], noisy["depth"])


def test_missing_is_as_asked():
    source = ToyWorld(streams=("caption", "table", "graph"), missing={"caption": 0.3, "table": 1})
    made = [source.open("train")[i] for i in range(300)]
    lacking = np.mean(["caption" not in e for e in made])
    assert abs(lacking - 0.3) < 0.09
    assert not any("table" in e for e in made)
    assert all("graph" in e for e in made)
    assert all(("language" in e) == ("caption" in e) for e in made)


def test_misaligned_is_as_asked():
    options: dict[str, Any] = {"streams": ("caption",), "languages": ("en",)}
    own, other = (ToyWorld(**options, misaligned=share).open("train") for share in (0, 0.25))
    differ = []
    for index in range(300):
        a, b = own[index], other[index]
        assert b["aligned"] == (a["caption"] == b["caption"])
        assert a["identity"] == b["identity"]
        differ.append(a["caption"] != b["caption"])
    assert abs(np.mean(differ) - 0.25) < 0.08


def test_held_out_pairs_are_never_in_train():
    assert len(toyworld_scene.held_out(16)) == 16
    for count in (8, 16):
        pairs = toyworld_scene.held_out(count)
        for colour in range(len(COLOURS)):  # each colour, and each shape, is in train
            assert sum(c == colour for _, c in pairs) == count // 8
        for shape in range(len(SHAPES)):
            assert sum(s == shape for s, _ in pairs) == count // 4
    source, pairs = ToyWorld(streams=("caption",)), toyworld_scene.held_out(8)
    slices = {}
    for split in source.splits():
        records, seen = source.open(split), []
        for index in range(100):
            there = {(b.shape, b.colour) for b in records.scene(index).bodies}
            unseen = bool(there & pairs)
            assert records[index]["slices"] == (("unseen",) if unseen else ("seen",))
            seen.append(unseen)
        slices[split] = np.mean(seen)
    assert slices.pop("train") == 0
    assert all(0.2 < share < 0.7 for share in slices.values())


def test_equal_identities_are_equal_bodies():
    records = ToyWorld(streams=("caption",), max_objects=1).open("val")
    known: dict[int, tuple[int, int]] = {}
    for index in range(300):
        (body,) = records.scene(index).bodies
        identity = records[index]["identity"]
        assert known.setdefault(identity, (body.shape, body.colour)) == (body.shape, body.colour)
    assert len(known) == len(set(known.values())) == 32


def test_shift_changes_the_look_alone():
    def split(name: str, shift: float) -> list[dict]:
        source = ToyWorld(streams=("image", "depth", "caption"), shift=shift)
        return [source.open(name)[i] for i in range(6)]

    day, dusk = split("shifted", 0), split("shifted", 1)
    for a, b in zip(day, dusk, strict=True):
        np.testing.assert_array_equal(a["depth"], b["depth"])
        assert a["caption"] == b["caption"]
        assert b["image"].mean() < a["image"].mean() - 20
    for a, b in zip(split("val", 0), split("val", 1), strict=True):
        np.testing.assert_array_equal(a["image"], b["image"])


def test_antialiasing_changes_the_picture_alone():
    rough, fine = (ToyWorld(streams=("image", "depth"), antialias=k).open("val")[0] for k in (1, 3))
    np.testing.assert_array_equal(rough["depth"], fine["depth"])
    gap = np.abs(rough["image"].astype(float) - fine["image"])
    assert 0 < gap.mean() < 8


# -------------------------------------------------------------------------------- docs


def test_the_page_runs_and_lists_all_streams(tmp_path):
    text = DOCS.read_text()
    code = re.findall(r"^```python\n(.*?)^```$", text, re.M | re.S)
    (tmp_path / "page.py").write_text("\n".join(code))
    module = config.load_module(tmp_path / "page.py")
    assert isinstance(module.world, ToyWorld)
    listed = re.findall(r"^\| `(\w+)` \|", text.partition("## Fields")[0], re.M)
    assert sorted(listed) == sorted(STREAMS)
    fields = re.findall(r"^\| `(\w+)` \|", text.partition("## Fields")[2], re.M)
    assert sorted(fields) == sorted(ToyWorld.__dataclass_fields__)


def test_the_sheet_has_a_row_for_each_scene():
    drawn = sheet(ToyWorld(size=16), "val", range(2))
    assert drawn.shape == (2 * 18 - 2, len(COLUMNS) * 18 - 2, 3)
    first = ToyWorld(streams=("image",), size=16).open("val")[0]["image"]
    np.testing.assert_array_equal(drawn[:16, :16], first)
