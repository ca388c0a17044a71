"""Dense maps: what the numbers mean, how maps are cut and scaled, files, and what is refused."""

from __future__ import annotations

import io

import numpy as np
import PIL.Image
import pytest

from mmjax.modalities.bands import Bands
from mmjax.modalities.dense import Depth, Normals
from mmjax.modalities.edges import Edges
from mmjax.modalities.image import Image
from mmjax.modalities.modality import Unreadable
from mmjax.modalities.motion import Events, Flow
from mmjax.modalities.segmentation import Instances, Segmentation

RANDOM = np.random.default_rng(0)
NAMES = ("wall", "floor", "door", "lamp")
NAN = np.nan


def png(pixels: np.ndarray) -> bytes:
    out = io.BytesIO()
    PIL.Image.fromarray(pixels).save(out, "PNG")
    return out.getvalue()


def npy(array: np.ndarray) -> bytes:
    out = io.BytesIO()
    np.save(out, array, allow_pickle=True)
    return out.getvalue()


MODALITIES = [
    *(Depth(size=(8, 12), patch=4, mapping=m, missing=True) for m in ("linear", "log", "inverse")),
    Depth(size=(8, 12), patch=4),
    Normals(size=(8, 12), patch=4),
    Bands(size=(8, 12), patch=4, bands=4, low=(-3.0, 0.0, 1.0, 5.0), high=(9.0,), missing=True),
    Flow(size=(8, 12), patch=4, missing=True),
    Events(size=(8, 12), patch=4),
    Segmentation(names=NAMES, size=(8, 12), cell=4),
    Segmentation(names=NAMES, size=(8, 12), cell=1, ignore=-1),
    Instances(size=(8, 12), cell=2, max_instances=5),
    Edges(size=(8, 12), cell=4),
]


@pytest.mark.parametrize("modality", MODALITIES, ids=lambda m: type(m).__name__)
def test_any_tokens_decode_to_a_value_that_encodes_and_others_are_refused(modality):
    spec = modality.spec("name")
    piece = modality.encode(np.zeros((8, 12, 2), int) if isinstance(modality, Events) else None)
    for seed in range(5):
        rng = np.random.default_rng(seed)
        if spec.vocab_size:
            ids_L = rng.integers(0, spec.vocab_size, spec.max_tokens)
            piece = Image(size=(8, 12), patch=4).encode(np.zeros((8, 12, 3)))
            piece = piece._replace(ids_L=ids_L, values_LP=None)
            strange = piece._replace(ids_L=rng.integers(-(10**6), 10**6, spec.max_tokens))
        else:
            values = rng.normal(size=(spec.max_tokens, spec.width)) * 10.0 ** rng.integers(-3, 9)
            piece = Image(size=(8, 12), patch=4).encode(np.zeros((8, 12, 3)))
            piece = piece._replace(values_LP=values.astype(np.float32))
            strange = piece._replace(values_LP=np.full_like(values, [NAN, np.inf][seed % 2]))
        for one in (piece, strange):
            with np.errstate(all="raise"):
                back = modality.decode(one)
            assert back.shape[:2] == (8, 12)
            assert modality.encode(back) is not None
    for wrong in (piece._replace(ids_L=np.zeros(3, int), values_LP=None),
                  piece._replace(ids_L=None, values_LP=np.zeros((3, 3)))):  # fmt: skip
        with pytest.raises(ValueError, match=rf"^{type(modality).__name__}: decode needs"):
            modality.decode(wrong)


@pytest.mark.parametrize("resize", ["stretch", "crop"])
@pytest.mark.parametrize("kind", [Depth, Normals, Segmentation, Instances, Flow, Events, Edges])
def test_maps_show_the_part_that_the_picture_shows(kind, resize):
    """A map whose right half differs is cut where the picture of it is cut."""
    # A larger frame of events has gaps.
    shapes = ((16, 40), (40, 16), (5, 9))[: 2 if kind is Events else 3]
    for shape in shapes:
        half_HW = np.zeros(shape)
        half_HW[:, shape[1] // 2 :] = 1
        image = Image(size=(8, 8), patch=4, channels=1, resize=resize)
        expected = image.decode(image.encode(half_HW))[:, :, 0] > 0.5
        more, value, shown = {"patch": 4}, half_HW, lambda back: back > 0
        if kind is Depth:
            value, shown = half_HW + 1, lambda back: back > 1.5
        elif kind is Normals:
            value = np.stack([half_HW, 1 - half_HW, 0 * half_HW], 2)
            shown = lambda back: back[:, :, 0] > 0.5
        elif kind is Flow:
            value, shown = half_HW[:, :, None].repeat(2, 2), lambda back: back[:, :, 0] > 1e-3
        elif kind is Events:
            value, shown = half_HW[:, :, None].repeat(2, 2), lambda back: back[:, :, 0] > 0
        else:
            more = {"cell": 1, **({"names": NAMES} if kind is Segmentation else {})}
        modality = kind(size=(8, 8), resize=resize, **more)
        back = shown(modality.decode(modality.encode(value)))
        assert back[:, [0, 1, 6, 7]].tolist() == expected[:, [0, 1, 6, 7]].tolist(), shape
        assert modality.adapted(value)
    value = modality.decode(modality.encode(value))
    assert modality.adapted(value) == ""


@pytest.mark.parametrize(
    ("kind", "fields", "message"),
    [
        (Depth, {"size": (10, 16)}, r"size=\(10, 16\) is not divisible by patch=16"),
        (Depth, {"low": 0.0}, "low=0.0"),
        (Depth, {"low": 5.0, "high": 5.0}, "low must be below high"),
        (Depth, {"mapping": "sqrt"}, "'sqrt' is no rule"),
        (Depth, {"resize": "zoom"}, "'zoom' is no rule"),
        (Normals, {"tolerance": 0.9}, "tolerance=0.9"),
        (Flow, {"limit": 0.0}, "limit=0.0"),
        (Events, {"sensor": (0, 8)}, r"sensor=\(0, 8\)"),
        (Segmentation, {}, "0 names; give"),
        (Segmentation, {"names": ("a", "a")}, "'a' twice"),
        (Segmentation, {"names": NAMES, "ignore": 3}, "ignore=3 is the class 'lamp'"),
        (Segmentation, {"names": NAMES, "cell": 5}, "cell=5"),
        (Segmentation, {"names": NAMES, "resize": "zoom"}, "'zoom' is no rule"),
        (Instances, {"max_instances": 0}, "max_instances=0"),
        (Edges, {"cell": 5}, "cell=5"),
        (Edges, {"threshold": 0.0}, "threshold=0.0"),
    ],
)
def test_config_errors(kind, fields, message):
    with pytest.raises(ValueError, match=f"^{kind.__name__}: .*{message}"):
        kind(**fields)


# ----------------------------------------------------------------------------------- depth


@pytest.mark.parametrize(
    ("mapping", "middle"), [("linear", 5.05), ("log", 1.0), ("inverse", 2 / 10.1)]
)
def test_depth_runs_from_low_to_high_by_its_mapping(mapping, middle):
    depth = Depth(size=(1, 3), patch=1, mapping=mapping, low=0.1, high=10)
    values_LP = depth.encode([[0.1, middle, 10.0]]).values_LP
    np.testing.assert_allclose(values_LP[:, 0], [-1, 0, 1], atol=1e-6)
    beyond = np.array([[0.01, 1.0, 1e6]])
    np.testing.assert_allclose(depth.decode(depth.encode(beyond)), [[0.1, 1, 10]], rtol=1e-5)
    assert depth.adapted(beyond) == "2 pixels are clipped to 0.1..10 m"


def test_holes_of_depth_have_a_channel_and_are_never_blended():
    depth = Depth(size=(2, 2), patch=2, mapping="linear", low=0, high=4, missing=True)
    piece = depth.encode([[0.0, 4.0], [NAN, 1.0]])
    assert depth.spec("depth").piece == (2, 2, 2)
    np.testing.assert_allclose(piece.values_LP[0], [0, -1, 1, 1, 0, -1, -0.5, 1], atol=1e-6)
    near_and_far = np.where(RANDOM.random((7, 9)) < 0.5, 1.0, 3.0)
    near_and_far[RANDOM.random((7, 9)) < 0.3] = np.inf
    wide = Depth(size=(16, 24), patch=4, mapping="linear", low=0, high=4, missing=True)
    back = wide.decode(wide.encode(near_and_far))
    assert np.isnan(back).any()
    assert set(np.round(back[np.isfinite(back)], 5)) == {1.0, 3.0}
    assert np.isnan(depth.decode(depth.encode(np.zeros((3, 3))))).all()  # empty, not absent


@pytest.mark.parametrize("hole", [0.0, NAN, np.inf])
def test_holes_of_depth_are_errors_without_the_switch(hole):
    with pytest.raises(ValueError, match=r"Depth: .*set missing=True .* or repair"):
        Depth(size=(1, 2), patch=1).encode([[1.0, hole]])
    with pytest.raises(ValueError, match=r"Depth: distances down to -1 m"):
        Depth(size=(1, 2), patch=1, missing=True).encode([[1.0, -1.0]])


def test_depth_files(tmp_path):
    depth = Depth(size=(2, 3), patch=1, missing=True)
    steps = np.array([[1000, 0, 65535], [200, 300, 400]], np.uint16)
    (tmp_path / "a.png").write_bytes(png(steps))
    expected = np.where(steps, steps / 1000, NAN)
    for found in (depth.read(str(tmp_path / "a.png")), depth.given(png(steps)), depth.given(steps),
                  depth.decode(depth.encode(png(steps)))):  # fmt: skip
        np.testing.assert_allclose(found, expected, rtol=1e-5)
    path = depth.write(depth.given(steps), tmp_path / "b")
    assert path.suffix == ".npy"
    np.testing.assert_array_equal(depth.read(str(path)), depth.given(steps))
    with pytest.raises(ValueError, match=r"type uint8; give floats in metres, or uint16 .*0.001 m"):
        depth.encode(png(steps.astype(np.uint8)))
    with pytest.raises(ValueError, match=r"no_such"):
        depth.read(str(tmp_path / "no_such.npy"))


def test_hostile_bytes_are_refused_and_nothing_is_unpickled():
    depth = Depth(size=(2, 2), patch=1, max_pixels=100)
    whole = npy(np.ones((2, 2)))
    false = whole.replace(b"(2, 2)", b"(9**9,)"[:6])
    many = b"\x93NUMPY\x01\x00" + b"\x76\x00" + (
        b"{'descr': '<f8', 'fortran_order': False, 'shape': (999999999, 9999999), }".ljust(117)
        + b"\n"
    )  # fmt: skip
    for content in (npy(np.array([[{}]])), whole[:-1], whole[:20], false, many, b"PK\3\4", b""):
        with pytest.raises(Unreadable, match=r"^Depth: .*give"):
            depth.encode(content)
    with pytest.raises(Unreadable, match=r"Depth: .*20 x 20 pixels"):
        depth.encode(png(np.ones((20, 20), np.uint16)))
    with pytest.raises(Unreadable, match=r"^Depth: "):
        depth.encode(png(np.ones((9, 9), np.uint16))[:-30])


# ---------------------------------------------------------------------------------- normals


def test_normals_become_unit_vectors_again():
    normals = Normals(size=(1, 3), patch=1, tolerance=0.02)
    value = np.array([[[0, 0, 1.01], [0.6, -0.8, 0], [0, 0, 0]]])
    back = normals.decode(normals.encode(value))
    np.testing.assert_allclose(back, [[[0, 0, 1], [0.6, -0.8, 0], [0, 0, 0]]], atol=1e-6)
    piece = normals.encode(value)
    half = piece._replace(values_LP=piece.values_LP * 0.6)
    np.testing.assert_allclose(normals.decode(half), back, atol=1e-6)
    np.testing.assert_array_equal(normals.decode(half._replace(values_LP=piece.values_LP * 0.4)), 0)
    with pytest.raises(ValueError, match=r"1 vectors are 1.03\.\.1.03 long.*divide"):
        normals.encode([[[0, 0, 1.03], [0, 0, 1.0], [0, 0, 0]]])


def test_normals_of_8_bits(tmp_path):
    vectors_HWC = RANDOM.normal(size=(4, 4, 3))
    vectors_HWC /= np.linalg.norm(vectors_HWC, axis=2, keepdims=True)
    pixels = np.round(127.5 * (vectors_HWC + 1)).astype(np.uint8)
    pixels[0, 0], pixels[0, 1] = 0, (127, 128, 128)
    vectors_HWC[0, :2] = 0
    (tmp_path / "a.png").write_bytes(png(pixels))
    normals = Normals(size=(4, 4), patch=2)
    found = normals.read(str(tmp_path / "a.png"))
    np.testing.assert_allclose(found, vectors_HWC, atol=0.01)
    again = normals.read(str(normals.write(found, tmp_path / "b")))
    np.testing.assert_allclose(again, found, atol=1e-6)


# ------------------------------------------------------------------------------- maps of ids


def test_a_cell_has_the_class_of_most_pixels_and_the_lower_of_as_many():
    rooms = Segmentation(names=NAMES, size=(2, 6), cell=2)
    value = [[3, 3, 1, 2, 255, 255], [3, 0, 2, 1, 255, 0]]
    assert rooms.encode(value).ids_L.tolist() == [3, 1, 4]
    assert rooms.decode(rooms.encode(value)).tolist() == [[3, 3, 1, 1, 255, 255]] * 2
    tie = Segmentation(names=NAMES, size=(2, 2), cell=2)
    assert tie.encode([[255, 255], [3, 3]]).ids_L.tolist() == [3]
    counts = RANDOM.integers(0, 4, (12, 15))
    found = Segmentation(names=NAMES, size=(12, 15), cell=3).encode(counts).ids_L
    for at, best in enumerate(found):
        row, column = 3 * (at // 5), 3 * (at % 5)
        cell = counts[row : row + 3, column : column + 3]
        assert best == np.bincount(cell.ravel(), minlength=4).argmax()


def test_unknown_classes_are_named():
    rooms = Segmentation(names=NAMES, size=(1, 4), cell=1)
    with pytest.raises(Unreadable, match=r"7, 9 are no classes in 0..3 and not ignore=255") as told:
        rooms.encode([[0, 9, 7, 7]])
    assert told.value.reason == "no_class"
    assert rooms.spec("rooms").vocab_size == 5
    assert Segmentation(names=NAMES, ignore=-1).spec("rooms").vocab_size == 4


def test_numbers_of_a_palette_are_classes(tmp_path):
    rooms, value = Segmentation(names=NAMES, size=(2, 2), cell=1), np.array([[0, 3], [255, 1]])
    picture = PIL.Image.fromarray(value.astype(np.uint8), "L")
    picture.putpalette(RANDOM.integers(0, 256, 768).astype(np.uint8).tobytes())
    assert picture.mode == "P"
    picture.save(tmp_path / "a.png")
    np.testing.assert_array_equal(rooms.read(str(tmp_path / "a.png")), value)
    path = rooms.write(rooms.decode(rooms.encode(value)), tmp_path / "b")
    np.testing.assert_array_equal(rooms.read(str(path)), value)
    with pytest.raises(ValueError, match=r"Segmentation: an array of shape \(2, 2, 3\) is no map"):
        rooms.encode(png(np.zeros((2, 2, 3), np.uint8)))
    many = Segmentation(names=tuple(map(str, range(1000))), size=(1, 2), cell=1, ignore=-1)
    np.testing.assert_array_equal(
        many.read(str(many.write([[999, 2]], tmp_path / "c"))), [[999, 2]]
    )


def test_instances_are_numbered_by_their_first_pixels(tmp_path):
    instances = Instances(size=(3, 4), cell=1, max_instances=3)
    value = np.array([[0, 9, 9, 5], [70000, 9, 5, 5], [70000, 0, 0, 0]])
    expected = [[0, 1, 1, 2], [3, 1, 2, 2], [3, 0, 0, 0]]
    assert instances.decode(instances.encode(value)).tolist() == expected
    assert instances.given(value).tolist() == expected
    again = np.array([0, 44, 2, 17])[expected]
    np.testing.assert_array_equal(instances.encode(again).ids_L, instances.encode(value).ids_L)
    path = instances.write(value, tmp_path / "a")
    assert instances.read(str(path)).tolist() == expected
    red_green_blue = np.stack([value % 256, value // 256 % 256, value // 65536], 2).astype(np.uint8)
    np.testing.assert_array_equal(instances.encode(png(red_green_blue)).ids_L,
                                  instances.encode(value).ids_L)  # fmt: skip


def test_instances_beyond_the_most_become_background_and_are_counted():
    instances = Instances(size=(2, 4), cell=1, max_instances=2)
    value = [[5, 5, 9, 1], [8, 8, 9, 1]]
    piece = instances.encode(value)
    assert piece.ids_L.tolist() == [1, 1, 2, 0, 0, 0, 2, 0]
    assert piece.num_cut == 4
    assert instances.adapted(value) == "2 instances beyond 2 are left out"
    # One that fills most of no cell takes no number from those that do.
    coarse = Instances(size=(2, 6), cell=2, max_instances=2)
    piece = coarse.encode([[7, 0, 3, 3, 4, 4], [0, 0, 3, 3, 4, 4]])
    assert (piece.ids_L.tolist(), piece.num_cut) == ([0, 1, 2], 0)


@pytest.mark.parametrize("cell", [1, 2, 3, 4])
def test_edges_are_exact_and_each_id_is_another_pattern(cell):
    edges = Edges(size=(12, 24), cell=cell)
    value = RANDOM.random((12, 24)) < 0.4
    piece = edges.encode(value)
    back = edges.decode(piece)
    assert back.dtype == bool
    np.testing.assert_array_equal(back, value)
    spec = edges.spec("edges")
    assert spec.vocab_size == 2 ** (cell * cell)
    first = value[:cell, :cell].ravel()
    assert piece.ids_L[0] == sum(int(bit) << k for k, bit in enumerate(first))
    digits = piece.ids_L[0] // np.cumprod([1, *spec.levels[:-1]]) % 2
    np.testing.assert_array_equal(digits, first)


def test_lines_stay_whole_in_smaller_maps():
    edges = Edges(size=(8, 8), cell=2)
    line = np.zeros((50, 50), bool)
    line[:, 17] = True
    back = edges.decode(edges.encode(line))
    assert back.any(axis=1).all()
    assert back.sum() == 8
    assert edges.decode(edges.encode(np.ones((3, 5), bool))).all()


def test_edges_by_strength_and_files(tmp_path):
    edges = Edges(size=(1, 4), cell=1, threshold=0.25)
    expected = [[False, False, True, True]]
    assert edges.decode(edges.encode([[0.0, 0.2, 0.25, 1.0]])).tolist() == expected
    path = edges.write(expected, tmp_path / "a")
    assert edges.read(str(path)).tolist() == expected
    assert np.asarray(PIL.Image.open(path)).tolist() == [[0, 0, 255, 255]]
    assert edges.given(png(np.array([[0, 60, 70, 255]], np.uint8))).tolist() == expected
    assert edges.given(np.array([[0, 0, 255, 255]], np.uint8)).tolist() == expected
    with pytest.raises(ValueError, match=r"uint8 pixels lie in 0\.\.7; give"):
        edges.encode(np.array([[0, 0, 7, 7]], np.uint8))


# ------------------------------------------------------------------------------------ motion


def test_flow_scales_with_the_map_and_is_clipped():
    flow = Flow(size=(4, 8), patch=2, limit=10)
    value = np.broadcast_to([1.5, -2.0], (2, 16, 2))
    np.testing.assert_allclose(flow.decode(flow.encode(value)),
                               np.broadcast_to([0.75, -4.0], (4, 8, 2)), atol=1e-5)  # fmt: skip
    assert "stretched" in flow.adapted(value)
    fast = np.zeros((4, 8, 2))
    fast[0, 0] = 99, 1
    assert flow.adapted(fast) == "1 vectors are clipped to 10 pixels a frame"
    np.testing.assert_allclose(flow.decode(flow.encode(fast))[0, 0], [10, 1], atol=1e-5)
    crop = Flow(size=(4, 4), patch=2, limit=10, resize="crop")
    np.testing.assert_allclose(crop.decode(crop.encode(np.ones((8, 20, 2))))[0, 0], 0.5, atol=1e-5)


def test_unknown_vectors_are_missing_by_switch_or_errors():
    value = np.ones((2, 2, 2))
    value[0, 1, 1] = NAN
    flow = Flow(size=(2, 2), patch=1, missing=True)
    piece = flow.encode(value)
    np.testing.assert_allclose(piece.values_LP[1], [0, 0, -1], atol=1e-6)
    assert np.isnan(flow.decode(piece)).all(axis=2).tolist() == [[False, True], [False, False]]
    with pytest.raises(Unreadable, match=r"Flow: 1 numbers are NaN .*missing=True"):
        Flow(size=(2, 2), patch=1).encode(value)


def test_flo_files(tmp_path):
    flow = Flow(size=(2, 3), patch=1, missing=True)
    value = RANDOM.normal(size=(2, 3, 2)).astype(np.float32)
    value[1, 2] = NAN
    path = flow.write(value, tmp_path / "a")
    content = path.read_bytes()
    assert np.frombuffer(content, "<f4", 1)[0] == np.float32(202021.25)
    assert np.frombuffer(content[4:12], "<i4").tolist() == [3, 2]
    assert np.frombuffer(content, "<f4")[-1] > 1e9
    for found in (flow.read(str(path)), flow.given(npy(value))):
        np.testing.assert_array_equal(found, value)
    for broken in (content[:-1], content[:9], content[:4] + b"\xff" * 8 + content[12:]):
        with pytest.raises(Unreadable, match=r"Flow: a \.flo file of .* give"):
            flow.encode(broken)


def test_events_are_counted_clipped_and_kept_in_number(tmp_path):
    events = Events(size=(4, 4), patch=2, most=7)
    value = RANDOM.integers(0, 8, (4, 4, 2))
    piece = events.encode(value)
    assert piece.values_LP.min() >= -1
    np.testing.assert_array_equal(events.decode(piece), value)
    np.testing.assert_array_equal(events.read(str(events.write(value, tmp_path / "a"))), value)
    many = np.full((4, 4, 2), 9)
    assert events.adapted(many) == "32 counts are clipped to 7"
    assert (events.decode(events.encode(many)) == 7).all()
    sparse = np.zeros((12, 10, 2), int)
    sparse[5, 9, 1], sparse[4, 9, 1], sparse[0, 0, 0] = 2, 3, 1
    back = events.decode(events.encode(sparse))
    assert (back[1, 3, 1], back[0, 0, 0], back.sum()) == (5, 1, 6)
    larger = Events(size=(24, 20), patch=4, most=7)
    assert larger.decode(larger.encode(sparse)).sum() == 6


def test_lists_of_events_are_those_of_the_sensor():
    list_N4 = [[7, 1, 0.0, 1], [7, 1, 5.0, 0], [6, 0, 6.0, -1]]
    events = Events(size=(2, 4), patch=2, sensor=(4, 8))
    back = events.decode(events.encode(list_N4))
    assert back[0, 3].tolist() == [2, 1]
    assert back.sum() == 3
    assert events.decode(events.encode(np.zeros((0, 4)))).sum() == 0
    with pytest.raises(
        ValueError, match=r"Events: 1 events lie outside of 8 x 4 .*give the sensor"
    ):
        events.encode([[8, 0, 0, 1]])
