"""Image: patch order, normalisation, sizes, channels."""

from __future__ import annotations

import io

import numpy as np
import PIL.Image
import pytest

from mmjax.modalities.image import Image


def test_patches_are_flattened_by_row_column_channel():
    image_HWC = np.random.default_rng(0).random((4, 6, 3)).astype(np.float32)
    modality = Image(size=(4, 6), patch=2, mean=(0.1, 0.2, 0.3), std=(0.5, 0.6, 0.7))
    values_LP = modality.encode(image_HWC).values_LP
    for row in range(2):
        for column in range(3):
            patch = image_HWC[2 * row : 2 * row + 2, 2 * column : 2 * column + 2]
            expected = (patch - [0.1, 0.2, 0.3]) / [0.5, 0.6, 0.7]
            np.testing.assert_allclose(values_LP[3 * row + column], expected.ravel(), rtol=1e-5)


def test_uint8_and_float_agree():
    pixels = np.arange(64, dtype=np.uint8).reshape(8, 8) * 4
    modality = Image(size=(8, 8), patch=4, channels=1)
    np.testing.assert_allclose(
        modality.encode(pixels).values_LP, modality.encode(pixels / 255).values_LP, atol=1e-6
    )
    np.testing.assert_allclose(
        modality.decode(modality.encode(pixels))[..., 0] * 255, pixels, atol=1e-3
    )


def test_mask_counts_as_zero_and_one():
    modality = Image(size=(8, 8), patch=4, channels=1)
    mask = np.eye(8, dtype=bool)
    np.testing.assert_array_equal(modality.decode(modality.encode(mask))[..., 0], mask)


def test_gray_becomes_rgb_by_repetition_and_rgb_gray_by_luma():
    rgb = np.random.default_rng(0).random((8, 8, 3))
    luma = rgb @ [0.299, 0.587, 0.114]
    gray, colour = Image(size=(8, 8), patch=4, channels=1), Image(size=(8, 8), patch=4)
    np.testing.assert_allclose(gray.decode(gray.encode(rgb))[..., 0], luma, atol=1e-6)
    np.testing.assert_allclose(
        colour.decode(colour.encode(luma)), luma[..., None].repeat(3, 2), atol=1e-6
    )


def test_another_size_is_stretched():
    image = np.zeros((20, 40), np.float32)
    image[:, 20:] = 1.0
    modality = Image(size=(8, 16), patch=4, channels=1)
    back = modality.decode(modality.encode(image))[..., 0]
    assert back.shape == (8, 16)
    np.testing.assert_allclose(back[:, :6], 0, atol=1e-2)
    np.testing.assert_allclose(back[:, 10:], 1, atol=1e-2)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"size": (10, 16)}, r"size=\(10, 16\) is not divisible by patch=16"),
        ({"patch": 0}, "patch=0"),
        ({"channels": 0}, "channels=0"),
        ({"mean": (0.1, 0.2)}, "2 numbers for channels=3"),
        ({"std": (0.0,)}, r"std\[0\]=0.0 must be a number above 0"),
    ],
)
def test_config_errors(fields, message):
    with pytest.raises(ValueError, match=f"Image: .*{message}"):
        Image(**fields)


def test_alpha_is_refused_with_a_remedy():
    with pytest.raises(ValueError, match=r"4 channels .* convert\('RGB'\)"):
        Image().encode(np.zeros((16, 16, 4), np.uint8))


@pytest.mark.parametrize("channels", [2, 5])
def test_other_numbers_of_channels_are_refused_and_neither_repeated_nor_mixed(channels):
    modality = Image(size=(8, 8), patch=4, channels=channels)
    assert modality.encode(np.zeros((9, 8, channels))).values_LP.shape == (4, 16 * channels)
    for shape in ((8, 8), (9, 8), (8, 8, 1), (8, 8, 3), (8, 8, channels + 1)):
        with pytest.raises(ValueError, match=f"do not become channels={channels}"):
            modality.encode(np.zeros(shape))
    content = io.BytesIO()
    PIL.Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(content, "PNG")
    with pytest.raises(ValueError, match=f"does not have channels={channels}; give arrays"):
        modality.encode(content.getvalue())


def test_piece_of_another_image_is_refused():
    piece = Image(size=(8, 8), patch=4).encode(np.zeros((8, 8)))
    with pytest.raises(ValueError, match="Image: decode needs values of shape"):
        Image(size=(16, 16), patch=4).decode(piece)


@pytest.mark.parametrize("channels", [1, 3])
def test_what_is_written_is_read_again(tmp_path, channels):
    modality = Image(size=(8, 16), patch=4, channels=channels)
    pixels = np.random.default_rng(0).integers(0, 256, (8, 16, channels), np.uint8)
    path = modality.write(modality.decode(modality.encode(pixels)), tmp_path / "a.b")
    assert path == tmp_path / "a.b.png"
    np.testing.assert_array_equal(modality.read(str(path)), pixels.squeeze())


def test_two_channels_have_no_file_format(tmp_path):
    with pytest.raises(ValueError, match=r"Image: shape \(4, 4, 2\).*1 or 3 channels"):
        Image(size=(4, 4), patch=4, channels=2).write(np.zeros((4, 4, 2)), tmp_path / "a")
