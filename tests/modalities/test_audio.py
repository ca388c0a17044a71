"""Audio against a log-mel spectrogram written naively, and its rules for odd waveforms."""

from __future__ import annotations

import math
import time

import numpy as np
import pytest

from mmjax.demo.numbers import Numbers
from mmjax.modalities.audio import Audio

MODALITY = Audio(seconds=0.2, num_mels=20, patch_frames=2)


def oracle(samples: np.ndarray, audio: Audio) -> np.ndarray:
    """(frames, bands) in -2..2 from sums over samples and bins."""
    frames = math.ceil(audio.seconds * audio.sample_rate / audio.hop)
    frames = math.ceil(frames / audio.patch_frames) * audio.patch_frames
    size = 2 ** math.ceil(math.log2(audio.window))
    sound = np.zeros(frames * audio.hop)
    sound[: len(samples)] = samples[: len(sound)]

    def mel(f):
        return f * 3 / 200 if f < 1000 else 15 + 27 * math.log(f / 1000) / math.log(6.4)

    def hertz(m):
        return m * 200 / 3 if m < 15 else 1000 * 6.4 ** ((m - 15) / 27)

    top = mel(audio.sample_rate / 2)
    edges = [hertz(top * i / (audio.num_mels + 1)) for i in range(audio.num_mels + 2)]
    n = np.arange(audio.window)
    hann = 0.5 - 0.5 * np.cos(2 * np.pi * n / audio.window)
    power = np.zeros((frames, audio.num_mels))
    for t in range(frames):
        start = t * audio.hop - (audio.window - audio.hop) // 2
        inside = [sound[start + i] if 0 <= start + i < len(sound) else 0.0 for i in n]
        frame = np.array(inside) * hann * 2 / hann.sum()
        for k in range(size // 2 + 1):
            f = k * audio.sample_rate / size
            energy = abs(np.sum(frame * np.exp(-2j * np.pi * k * n / size))) ** 2
            for b in range(audio.num_mels):
                low, centre, high = edges[b : b + 3]
                weight = min((f - low) / (centre - low), (high - f) / (high - centre))
                power[t, b] += max(0.0, weight) * 2 / (high - low) * energy
    decibels = 10 * np.log10(np.maximum(power / max(power.max(), 1e-8), 1e-30))
    decibels = np.maximum(decibels, -audio.dynamic_range)
    return 2 + 4 * decibels / audio.dynamic_range


@pytest.mark.parametrize("length", [0, 1, 1000, 1999, 3200, 5000])
def test_agrees_with_naive_sums(length):
    rng = np.random.default_rng(length)
    time = np.arange(length) / 16000
    samples = 0.3 * np.sin(2 * np.pi * 700 * time) + 0.01 * rng.normal(size=length)
    values = MODALITY.encode(samples).values_LP.reshape(-1, MODALITY.num_mels)
    np.testing.assert_allclose(values, oracle(samples, MODALITY), atol=2e-3)


def test_decode_gives_decibels_below_the_loudest_band():
    piece = MODALITY.encode(np.sin(np.arange(1600)))
    back = MODALITY.decode(piece)
    assert back.shape == (20, 20)
    assert (back.min(), back.max()) == (-50.0, 0.0)
    expected = (piece.values_LP.reshape(20, 20) - 2) * 12.5
    np.testing.assert_allclose(back, expected, atol=1e-4)


def test_gain_does_not_matter_but_silence_stays_silence():
    noise = np.random.default_rng(0).normal(size=3200) * 0.1
    loud, quiet = MODALITY.encode(noise).values_LP, MODALITY.encode(noise / 30).values_LP
    np.testing.assert_allclose(loud, quiet, atol=1e-3)
    assert (MODALITY.encode(np.zeros(3200)).values_LP == -2).all()
    assert MODALITY.encode(noise * 1e-5).values_LP.max() < 0


def test_short_clips_are_padded_with_silence():
    values = MODALITY.encode(np.ones(800) * 0.1).values_LP
    assert (values[4:] == -2).all()
    assert values[:3].max() == 2


def test_long_clips_are_cut_and_counted():
    noise = np.random.default_rng(0).normal(size=3200 + 641)
    piece = MODALITY.encode(noise)
    assert piece.num_cut == 3  # 640 samples are two tokens, one more begins a third
    np.testing.assert_array_equal(piece.values_LP, MODALITY.encode(noise[:3200]).values_LP)


def test_integers_and_channels():
    wave = (np.random.default_rng(0).normal(size=3200) * 3000).astype(np.int16)
    expected = MODALITY.encode(wave / 32768).values_LP
    for same in (
        wave,
        wave.astype(np.int32) * 65536,
        np.stack([wave, wave]),
        np.stack([wave] * 2, 1),
    ):
        np.testing.assert_allclose(MODALITY.encode(same).values_LP, expected, atol=1e-4)
    left, right = wave / 32768, np.roll(wave, 7) / 32768
    mixed = MODALITY.encode(np.stack([left, right], axis=1)).values_LP
    np.testing.assert_allclose(mixed, MODALITY.encode((left + right) / 2).values_LP, atol=1e-4)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"seconds": 0.0}, "seconds=0.0 must be a number above 0"),
        ({"hop": 500}, "hop=500 is more than window=400"),
        ({"num_mels": 128}, "num_mels=128 has bands narrower"),
    ],
)
def test_config_errors(fields, message):
    with pytest.raises(ValueError, match=f"Audio: {message}"):
        Audio(**fields)


def test_the_offered_number_of_bands_works():
    with pytest.raises(ValueError, match=r"at most (\d+) bands") as error:
        Audio(num_mels=1000)
    most = int(str(error.value).split("at most ")[1].split()[0])
    bands = Audio(num_mels=most)._bands
    assert bands.max(axis=0).min() > 0
    with pytest.raises(ValueError, match="bands"):
        Audio(num_mels=most + 1)


def test_piece_of_another_audio_is_refused():
    with pytest.raises(ValueError, match="Audio: decode needs values of shape"):
        Audio().decode(MODALITY.encode(np.zeros(10)))


@pytest.mark.parametrize("index", [3, 40])
def test_a_waveform_has_the_spectrogram_that_it_was_made_from(index):
    audio = Audio(seconds=0.88)
    decibels = audio.decode(audio.encode(Numbers().open("val")[index]["audio"]))
    started = time.process_time()
    samples = audio.waveform(decibels)
    assert time.process_time() - started < 1.0
    assert samples.dtype == np.float32
    assert samples.shape == (88 * 160,)
    assert np.abs(samples).max() == pytest.approx(0.9)
    error = np.abs(audio.decode(audio.encode(samples)) - decibels)
    assert error[decibels > -30].mean() < 1.5
    assert error.mean() < 1.5
    np.testing.assert_array_equal(samples, audio.waveform(decibels))


def test_silence_and_noise_become_waveforms_too():
    audio = Audio(seconds=0.2)
    frames = audio.spec("audio").max_tokens * 4
    assert not audio.waveform(np.full((frames, 64), -50.0)).any()
    loud = audio.waveform(np.zeros((frames, 64)))
    assert np.isfinite(loud).all()
    assert loud.std() > 0.05
    with pytest.raises(ValueError, match=r"Audio: waveform needs decibels of shape \(frames, 64\)"):
        audio.waveform(np.zeros((64, 88)))


def test_a_waveform_is_written_as_16_bit_sound(tmp_path):
    samples = 0.5 * np.sin(np.arange(800, dtype=np.float32))
    samples[0] = 1.5  # louder than a file can be
    path = MODALITY.write(samples, tmp_path / "a")
    assert path == tmp_path / "a.wav"
    np.testing.assert_allclose(MODALITY.read(str(path)), samples.clip(-1, 1), atol=1e-4)
    with pytest.raises(ValueError, match="Audio: samples hold NaN"):
        MODALITY.write(np.full(3, np.nan), tmp_path / "b")


class Speed:
    """A generator that draws one number."""

    def __init__(self, drawn: float):
        self.drawn = drawn

    def uniform(self, low, high):
        assert (low, high) == (-1, 1)
        return self.drawn


@pytest.mark.parametrize("drawn", [-1.0, 0.0, 0.5, 1.0])
@pytest.mark.parametrize("index", [3, 40])
def test_another_speed_is_near_to_what_resampling_gives(index, drawn):
    audio = Audio(seconds=0.88, speed_perturbation=0.1)
    samples = Numbers().open("val")[index]["audio"]
    piece, speed = audio.encode(samples), 1.1**drawn
    played = np.interp(np.arange(0, len(samples) - 1, speed), np.arange(len(samples)), samples)
    expected = audio.encode(played.astype(np.float32)).values_LP
    found = audio.augment(piece, Speed(drawn)).values_LP
    if drawn == 0:
        np.testing.assert_allclose(found, piece.values_LP, atol=1e-5)
    else:  # much nearer than the sound as it was
        assert np.abs(found - expected).mean() < np.abs(piece.values_LP - expected).mean() / 2


def test_faster_sounds_end_in_silence():
    audio = Audio(seconds=0.5, speed_perturbation=0.25)
    noise = np.random.default_rng(0).normal(size=8000)
    found = audio.augment(audio.encode(noise), Speed(1.0)).values_LP.reshape(-1, 64)
    assert (found[:40] > -2).any(axis=1).all()  # 0.4 s of frames of 10 ms
    assert (found[42:] == -2).all()


@pytest.mark.parametrize("share", [-0.1, 1.0])
def test_a_share_of_speed_that_is_none_is_refused(share):
    with pytest.raises(ValueError, match=r"Audio: speed_perturbation=.* 0 or more and below 1"):
        Audio(speed_perturbation=share)
