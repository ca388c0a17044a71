"""Inertial sensors: units, resampling, gravity, and what is cut."""

from __future__ import annotations

import numpy as np
import pytest

from mmjax.modalities.imu import Imu

IMU = Imu(rate=50.0, seconds=2.0, patch=10, acceleration_scale=10.0, angular_scale=2.0)


def recording(rate, seconds=2.0, frequency=0.0):
    """A tilt in steady rotation, with shaking of so many Hz."""
    at = np.arange(round(seconds * rate)) / rate + 0.5 / rate  # in the middle of each sample
    shaking = np.sin(2 * np.pi * frequency * at)
    return {
        "acceleration": np.stack([at, shaking, np.full_like(at, 9.8)], axis=1),
        "angular_velocity": np.tile([0.5, 0, -1], (len(at), 1)),
        "rate": rate,
    }


def both(value):
    return np.concatenate([value["acceleration"], value["angular_velocity"]], axis=1)


def test_acceleration_and_angular_velocity_have_scales_of_their_own():
    piece = IMU.encode(np.tile([10.0, 20, 30, 2, 4, 6], (10, 1)))
    np.testing.assert_allclose(piece.values_LP[0, :6], [1, 2, 3, 1, 2, 3])
    value = recording(50.0)
    np.testing.assert_allclose(IMU.decode(IMU.encode(value)), both(value), atol=1e-5)
    np.testing.assert_array_equal(IMU.encode(both(value)).values_LP, IMU.encode(value).values_LP)


@pytest.mark.parametrize("rate", [12.5, 25.0, 30.0, 75.0, 100.0, 333.0])
def test_other_rates_are_resampled(rate):
    back, expected = IMU.decode(IMU.encode(recording(rate))), both(recording(50.0))
    assert back.shape == expected.shape
    inside = slice(3, -3)  # at the ends there is nothing to go between
    np.testing.assert_allclose(back[inside], expected[inside], atol=0.01)
    assert IMU.adapted(recording(rate)) == f"{rate:g} Hz are resampled to 50 Hz"


def test_fast_shaking_does_not_turn_up_as_slow_movement():
    value = recording(1000.0, frequency=51.0)  # every 20th sample would show 1 Hz
    assert np.abs(value["acceleration"][::20, 1]).max() > 0.99
    assert np.abs(IMU.decode(IMU.encode(value))[:, 1]).max() < 0.1


def test_gravity_is_taken_off_the_acceleration_alone():
    plain = Imu(rate=50.0, seconds=2.0, patch=10, remove_gravity=True, gravity_seconds=0.5)
    value = recording(50.0, frequency=10.0)
    back = plain.decode(plain.encode(value))
    np.testing.assert_allclose(back[:, 2], 0, atol=1e-5)
    np.testing.assert_allclose(back[20:-20, 1], value["acceleration"][20:-20, 1], atol=0.1)
    np.testing.assert_allclose(back[:, 3:], value["angular_velocity"], atol=1e-5)


def test_what_is_cut_is_counted_in_tokens_of_the_rate():
    long = recording(100.0, seconds=3.0)
    piece = IMU.encode(long)
    assert (piece.length, piece.num_cut) == (10, 5)
    assert IMU.adapted(long) == "100 Hz are resampled to 50 Hz; 3.00 s are cut to 2.00 s"
    assert IMU.measure(long) == {"seconds": 3.0}
    piece = IMU.encode(recording(100.0, seconds=0.3))
    assert (piece.length, piece.num_cut) == (2, 0)
    assert IMU.encode(recording(1e6, seconds=2e-6)).length == 1


def test_rates_are_told():
    for rate in (0, -1, np.nan, 1e7, "fast", None):
        with pytest.raises(ValueError, match=r"Imu: rate=.*; give samples a second"):
            IMU.encode({**recording(50.0), "rate": rate})


def test_files_are_npy_and_csv(tmp_path):
    value = both(recording(50.0)).astype(np.float32)
    np.testing.assert_array_equal(IMU.read(str(IMU.write(value, tmp_path / "a"))), value)
    (tmp_path / "b.csv").write_text("ax,ay,az,gx,gy,gz\n1,2,3,4,5,6\n")
    np.testing.assert_array_equal(IMU.read(str(tmp_path / "b.csv")), [[1, 2, 3, 4, 5, 6]])
