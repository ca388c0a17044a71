"""Arrays are drawn: what stands where, what is left out, and what is no map."""

from __future__ import annotations

import io

import numpy as np
import PIL.Image
import pytest

from mmjax.report import arrays, gallery


def saved(array) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def pixels(array) -> np.ndarray:
    content, _ = arrays.drawn(saved(array))
    return np.asarray(PIL.Image.open(io.BytesIO(content))).astype(int)


def test_a_map_runs_from_dark_to_bright_and_holes_are_transparent():
    depth = np.linspace(2, 9, 64 * 64).reshape(64, 64).astype(np.float32)
    depth[0, 0] = np.nan
    shown = pixels(depth)
    assert shown.shape == (64, 64, 4)
    assert shown[0, 0, 3] == 0
    assert (shown.reshape(-1, 4)[1:, 3] == 255).all()
    brightness = shown[:, :, :3].sum(axis=2)
    assert brightness[0, 1] < brightness[32, 0] < brightness[63, 63]
    assert arrays.drawn(saved(depth))[1] == "2 to 9"


def test_vectors_have_their_colours():
    flow = np.zeros((64, 64, 2))
    flow[:32, :, 0] = 3.0  # to the right
    shown = pixels(flow)
    assert shown[0, 0, :3].tolist() == pytest.approx([255, 63, 63], abs=2)
    assert shown[63, 0, :3].tolist() == [255, 255, 255]
    normals = np.broadcast_to([0.0, 0.0, -1.0], (64, 64, 3))
    assert pixels(normals)[5, 5, :3].tolist() == [127, 127, 0]


def test_small_ones_are_enlarged_and_lists_are_bars():
    assert pixels(np.arange(6.0)).shape == (11, 66, 4)
    assert pixels(np.arange(12).reshape(3, 4) > 5).shape == (48, 64, 4)


@pytest.mark.parametrize(
    "content",
    [saved(np.zeros((2, 3, 4, 5))), saved(np.full((4, 4), np.nan)), saved(np.zeros((0, 4))),
     saved(np.array(["a"])), b"\x93NUMPY\x01\x00", b"no array", saved(np.zeros((3, 3, 7)))],
    ids=["four axes", "nothing", "empty", "words", "cut", "other", "channels"],
)  # fmt: skip
def test_what_is_no_map_is_not_drawn(content, tmp_path):
    assert arrays.drawn(content) is None
    (tmp_path / "a.npy").write_bytes(content)
    assert "a.npy is not shown" in gallery.show("depth", tmp_path / "a.npy", (1, 1))


def test_a_page_shows_them(tmp_path):
    (tmp_path / "a.npy").write_bytes(saved(np.eye(4)))
    shown = gallery.show("depth", tmp_path / "a.npy", (1, 1))
    assert shown.startswith('<img src="data:image/png;base64,')
    assert 'alt="depth: a.npy"' in shown
    assert shown.endswith('<p class="soft">0 to 1</p>')
