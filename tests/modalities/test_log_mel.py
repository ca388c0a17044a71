"""Log-mel features are those of the extractors that other models come with."""

from __future__ import annotations

import numpy as np
import pytest

from mmjax.modalities.log_mel import LogMel
from mmjax.typing import Piece

RATE = 16_000
random = np.random.default_rng(0)
CLIPS = {
    "noise": random.normal(size=2 * RATE).astype(np.float32) * 0.1,
    "tone": np.sin(0.3 * np.arange(3 * RATE)).astype(np.float32),
    "click": np.eye(1, RATE, 700, dtype=np.float32)[0],
    "silence": np.zeros(RATE, np.float32),
    "long": random.normal(size=12 * RATE).astype(np.float32),
}
AST = {"like": "ast", "seconds": 10.24, "num_mels": 128}


@pytest.mark.hf
@pytest.mark.parametrize("clip", CLIPS)
@pytest.mark.parametrize("num_mels", [80, 128])
def test_it_is_that_of_whisper(clip, num_mels):
    transformers = pytest.importorskip("transformers")
    extractor = transformers.WhisperFeatureExtractor(feature_size=num_mels)
    want = extractor(CLIPS[clip], sampling_rate=RATE, return_tensors="np").input_features[0].T
    mel = LogMel(num_mels=num_mels)
    have = mel.decode(mel.encode(CLIPS[clip]))
    assert have.shape == want.shape == (3000, num_mels)
    np.testing.assert_allclose(have, want, atol=1e-4)


@pytest.mark.hf
@pytest.mark.parametrize("clip", CLIPS)
def test_it_is_that_of_ast(clip):
    transformers = pytest.importorskip("transformers")
    extractor = transformers.ASTFeatureExtractor()
    want = extractor(CLIPS[clip], sampling_rate=RATE, return_tensors="np").input_values[0]
    mel = LogMel(**AST, patch=(16, 16))
    have = mel.decode(mel.encode(CLIPS[clip]))
    assert have.shape == want.shape == (1024, 128)
    np.testing.assert_allclose(have, want, atol=1e-4)


def test_a_tone_is_in_the_band_of_its_pitch_and_padding_is_silence():
    mel = LogMel(seconds=2.0, num_mels=40)
    tone = np.sin(2 * np.pi * 1000 / RATE * np.arange(RATE)).astype(np.float32)
    level = mel.decode(mel.encode(tone))
    assert level.shape == (200, 40)
    assert len(set(level[5:95].argmax(axis=1))) == 1
    assert level[110:].max() < level[5:95].max() - 1.9  # 8 powers of ten are 2
    ast = LogMel(like="ast", seconds=2.0, num_mels=40, patch=(8, 20))
    assert ast.spec("sound").grid == (1, 25, 2)
    level = ast.decode(ast.encode(tone))
    assert len(set(level[5:95].argmax(axis=1))) == 1
    np.testing.assert_allclose(level[100:], 4.2677393 / (2 * 4.5689974), atol=1e-6)


@pytest.mark.parametrize("like", ["whisper", "ast"])
def test_lengths(like):
    mel = LogMel(like=like, seconds=0.5, num_mels=20, patch=(10, 0))
    for samples in (0, 1, 399, 400, 8000):
        piece = mel.encode(np.ones(samples, np.float32))
        assert piece.values_LP.shape == (5, 200)
        assert piece.num_cut == 0
        assert np.isfinite(piece.values_LP).all()
    assert mel.encode(np.ones(8001, np.float32)).num_cut == 1
    assert mel.encode(np.ones(16_000, np.float32)).num_cut == 5
    assert mel.encode(None) is None
    stereo = (np.ones((2, 44_100), np.float32), 44_100)  # resampled
    assert mel.encode(stereo).num_cut == 5
    assert "cut to the first" in mel.adapted(np.ones(16_000, np.float32))


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"like": "clap"}, "like='clap' is none of whisper, ast"),
        ({"patch": (4, 7)}, "num_mels=80 is not divisible by the bands of patch"),
        ({"num_mels": 201}, "num_mels=201"),
        ({"seconds": 0.0}, "seconds=0"),
    ],
)
def test_what_cannot_be_is_told(fields, told):
    with pytest.raises(ValueError, match=told):
        LogMel(**fields)


def test_other_values_are_told():
    mel = LogMel(seconds=0.5)
    for bad in ("a.wav", 3, np.zeros((2, 2, 2)), np.array([np.nan]), b"no sound"):
        with pytest.raises(ValueError, match="LogMel"):
            mel.encode(bad)
    with pytest.raises(ValueError, match="not of this LogMel"):
        mel.decode(Piece(np.zeros((1, 3)), values_LP=np.zeros((1, 4))))
