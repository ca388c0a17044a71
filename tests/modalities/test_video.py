"""Video: tubelets, which frames are taken, files."""

from __future__ import annotations

import io

import numpy as np
import PIL.Image
import pytest

from mmjax.modalities.image import Image
from mmjax.modalities.modality import Unreadable
from mmjax.modalities.video import Video

RANDOM = np.random.default_rng(0)
VIDEO = Video(num_frames=4, frames=2, size=(4, 6), patch=2)
PIXELS = RANDOM.integers(0, 256, (4, 4, 6, 3)).astype(np.uint8)


def numbered(count: int) -> np.ndarray:
    """Frames whose pixels are their numbers."""
    return np.broadcast_to(np.arange(count, dtype=np.uint8)[:, None, None, None], (count, 4, 6, 3))


def seen(value, video=VIDEO) -> list[int]:
    return np.round(video.decode(video.encode(value))[:, 0, 0, 0] * 255).astype(int).tolist()


def gif(frames: np.ndarray, kind="GIF") -> bytes:
    out = io.BytesIO()
    first, *rest = map(PIL.Image.fromarray, frames)
    first.save(out, kind, save_all=True, append_images=rest, duration=50)
    return out.getvalue()


def test_a_tubelet_is_flattened_by_row_column_frame_channel():
    piece = VIDEO.encode(PIXELS)
    assert VIDEO.spec("video").piece == (2, 2, 6)
    for token, (time, row, column) in enumerate(piece.position_LA.astype(int)):
        tubelet = PIXELS[
            2 * time : 2 * time + 2, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2
        ]
        expected = (tubelet.transpose(1, 2, 0, 3) / 255 - 0.5) / 0.5
        np.testing.assert_allclose(piece.values_LP[token], expected.ravel(), atol=1e-6)
    np.testing.assert_allclose(VIDEO.decode(piece) * 255, PIXELS, atol=1e-3)


def test_frames_are_those_of_an_image():
    larger = RANDOM.random((4, 9, 20, 3)).astype(np.float32)
    fields = {"size": (4, 6), "patch": 2, "resize": "crop", "mean": (0.1, 0.2, 0.3)}
    video, image = Video(num_frames=4, frames=1, **fields), Image(**fields)
    expected = [image.encode(frame).values_LP for frame in larger]
    np.testing.assert_array_equal(video.encode(larger).values_LP, np.concatenate(expected))
    assert video.adapted(larger) == "9 x 20 pixels are cropped and scaled to 4 x 6"


@pytest.mark.parametrize(
    ("count", "expected", "said"),
    [
        (1, [0, 0, 0, 0], "the last of 1 frames is repeated, up to 4"),
        (3, [0, 1, 2, 2], "the last of 3 frames is repeated, up to 4"),
        (4, [0, 1, 2, 3], ""),
        (8, [1, 3, 5, 7], "4 of 8 frames are taken"),
        (101, [12, 37, 63, 88], "4 of 101 frames are taken"),
    ],
)
def test_long_videos_are_sampled_evenly_and_of_short_ones_the_last_frame_repeats(
    count, expected, said
):
    assert seen(numbered(count)) == expected
    assert VIDEO.adapted(numbered(count)) == said
    assert seen(list(numbered(count))) == expected


def test_gray_and_other_channels():
    gray = Video(num_frames=4, frames=2, size=(4, 6), patch=2, channels=1)
    np.testing.assert_allclose(gray.decode(gray.encode(PIXELS[..., 0]))[..., 0] * 255,
                               PIXELS[..., 0], atol=1e-3)  # fmt: skip
    for channels in (2, 4, 5):
        with pytest.raises(ValueError, match=f"Video: {channels} channels do not become"):
            VIDEO.encode(np.zeros((4, 4, 6, channels)))
    with pytest.raises(ValueError, match=r"Video: an array of shape \(4, 6, 3\) is no video"):
        VIDEO.encode(PIXELS[0])


def test_a_frame_that_is_not_taken_is_looked_at_all_the_same():
    value = np.zeros((9, 4, 6, 3), np.float32)
    value[0] = np.nan
    with pytest.raises(Unreadable, match=r"Video: .*NaN"):
        VIDEO.encode(value)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"num_frames": 5}, "num_frames=5 is not divisible by frames=2"),
        ({"size": (10, 16)}, r"size=\(10, 16\) is not divisible by patch=16"),
        ({"mean": (0.1, 0.2)}, "2 numbers for channels=3"),
        ({"rate": 0.0}, "rate=0"),
        ({"resize": "zoom"}, "'zoom'"),
    ],
)
def test_config_errors(fields, message):
    with pytest.raises(ValueError, match=f"^Video: .*{message}"):
        Video(**fields)


@pytest.mark.parametrize("count", [1, 4, 7])
def test_what_is_written_is_read(tmp_path, count):
    value = RANDOM.integers(0, 256, (count, 4, 6, 3)).astype(np.uint8)
    value[count // 2 :] = value[-1]  # frames that do not differ stay frames
    path = VIDEO.write(value, tmp_path / "a")
    np.testing.assert_array_equal(VIDEO.read(str(path)), value)
    content = path.read_bytes()
    np.testing.assert_array_equal(VIDEO.encode(content).values_LP, VIDEO.encode(value).values_LP)
    assert VIDEO.adapted(content) == VIDEO.adapted(value)
    np.save(tmp_path / "b.npy", value)
    np.testing.assert_array_equal(VIDEO.read(str(tmp_path / "b.npy")), value)
    content = (tmp_path / "b.npy").read_bytes()
    np.testing.assert_array_equal(VIDEO.encode(content).values_LP, VIDEO.encode(value).values_LP)
    gray = Video(num_frames=4, frames=2, size=(4, 6), patch=2, channels=1)
    path = gray.write(value[..., 0], tmp_path / "c")
    np.testing.assert_array_equal(gray.read(str(path))[..., 0], value[..., 0])


@pytest.mark.parametrize("kind", ["GIF", "WEBP"])
def test_animations_are_read(kind):
    value = np.zeros((8, 4, 6, 3), np.uint8)
    for number, frame in enumerate(value):
        frame[:] = 30 * number
    found = seen(gif(value, kind))
    np.testing.assert_allclose(found, [30, 90, 150, 210], atol=3)


def test_hostile_files_are_refused():
    content = gif(30 * numbered(8))
    small = Video(num_frames=4, frames=2, size=(4, 6), patch=2, max_pixels=8 * 4 * 6 - 1)
    with pytest.raises(Unreadable, match=r"Video: 8 frames of 6 x 4 pixels") as told:
        small.encode(content)
    assert told.value.reason == "video_too_large"
    for broken in (content[:-40], b"", b"\x93NUMPY\1\0", content[:20]):
        with pytest.raises(Unreadable, match=r"^Video: .*give"):
            VIDEO.encode(broken)
    with pytest.raises(ValueError, match=r"Video: .*no_such"):
        VIDEO.read("no_such.gif")
    with pytest.raises(ValueError, match=r"Video: shape .* cannot be written as PNG"):
        VIDEO.write(np.zeros((1, 4, 6, 2)), "x")
    piece = VIDEO.encode(PIXELS)
    for scale in (np.nan, np.inf, 1e30):
        strange = piece._replace(values_LP=piece.values_LP * np.float32(scale))
        assert np.isfinite(VIDEO.decode(strange)).all()
    with pytest.raises(ValueError, match=r"Video: decode needs values of shape \(12, 24\)"):
        VIDEO.decode(piece._replace(values_LP=np.zeros((3, 3))))
