"""Time series: patches, what is cut and filled up, missing samples, and files."""

from __future__ import annotations

import numpy as np
import pytest

from mmjax.modalities.time_series import TimeSeries

SERIES = TimeSeries(channels=2, rate=4.0, seconds=1.5, patch=3, mean=(1.0, 0.0), std=(2.0, 10.0))
GAPS = TimeSeries(rate=4.0, seconds=1.5, patch=3, mean=(1.0,), allow_missing=True)
RAMP = np.stack([np.arange(6.0), 10 * np.arange(6.0)], axis=1)


def test_a_token_holds_its_samples_in_order():
    piece = SERIES.encode(RAMP)
    np.testing.assert_allclose(piece.values_LP[0], [-0.5, 0, 0, 1, 0.5, 2])
    np.testing.assert_allclose(SERIES.decode(piece), RAMP)
    assert SERIES.spec("x").grid == (2, 1, 1)


def test_the_length_is_rounded_up_to_whole_patches():
    assert TimeSeries(rate=100.0, seconds=1.0, patch=16).spec("x").max_tokens == 7
    assert TimeSeries(rate=1.0, seconds=0.1, patch=16).spec("x").max_tokens == 1


def test_longer_series_are_cut_and_counted_and_shorter_ones_stay_short():
    long = np.concatenate([RAMP, RAMP[:4]])
    piece = SERIES.encode(long)
    assert (piece.length, piece.num_cut) == (2, 2)
    np.testing.assert_allclose(SERIES.decode(piece), RAMP)
    assert SERIES.adapted(long) == "10 samples are cut to 6"
    assert SERIES.measure(long) == {"seconds": 2.5}
    piece = SERIES.encode(RAMP[:2])
    assert (piece.length, piece.num_cut) == (1, 0)
    np.testing.assert_allclose(SERIES.decode(piece), RAMP[[0, 1, 1]])  # its last sample repeats


def test_missing_samples_are_told_from_zeros_and_from_the_mean():
    piece = GAPS.encode([3.0, np.nan, 1.0, 0.0])
    np.testing.assert_array_equal(piece.values_LP[0], [2, 1, 0, 0, 0, 1])
    np.testing.assert_array_equal(GAPS.decode(piece)[:, 0], [3, np.nan, 1, 0, np.nan, np.nan])
    with pytest.raises(ValueError, match=r"TimeSeries: samples hold NaN; .* allow_missing=True"):
        SERIES.encode(np.full((3, 2), np.nan))


def test_no_sample_is_a_value_where_samples_may_be_missing():
    piece = GAPS.encode([])
    assert piece.length == 1
    assert np.isnan(GAPS.decode(piece)).all()
    with pytest.raises(ValueError, match="TimeSeries: no sample; give one"):
        SERIES.encode([])


@pytest.mark.parametrize("modality", [SERIES, GAPS])
def test_any_numbers_decode(modality):
    width = modality.spec("x").width
    wild = np.array([np.nan, np.inf, -np.inf, 3e38, -3e38, 0], np.float32)
    values = np.resize(wild, (2, width))
    piece = modality.encode(RAMP[:, : modality.channels])
    assert modality.decode(piece._replace(values_LP=values)).shape == (6, modality.channels)
    with pytest.raises(ValueError, match="TimeSeries: decode needs values"):
        modality.decode(piece._replace(values_LP=values[:, 1:]))


def test_numbers_that_std_makes_infinite_are_told():
    with pytest.raises(ValueError, match="TimeSeries: numbers are too large for std="):
        TimeSeries(std=(1e-30,)).encode([1e20])
    with pytest.raises(ValueError, match=r"TimeSeries: mean=\(0.0, 0.0\) has 2 numbers for 1"):
        TimeSeries(mean=(0.0, 0.0))


def test_files_are_npy_and_csv(tmp_path):
    path = SERIES.write(RAMP, tmp_path / "a")
    np.testing.assert_array_equal(SERIES.read(str(path)), RAMP)
    table = tmp_path / "b.csv"
    table.write_text("\ufeffleft,right\n1,2\n,4.5\n\n")
    np.testing.assert_array_equal(SERIES.read(str(table)), [[1, 2], [np.nan, 4.5]])
    table.write_text("1,2\n3,4\n")
    np.testing.assert_array_equal(SERIES.read(str(table)), [[1, 2], [3, 4]])


def test_files_that_are_none_are_told(tmp_path):
    np.save(tmp_path / "c.npy", np.array([{}], object), allow_pickle=True)
    with pytest.raises(ValueError, match=r"TimeSeries: .* pickled objects"):
        SERIES.read(str(tmp_path / "c.npy"))
    for content in ("1,2\n3\n", "1,2\n3,x\n"):
        (tmp_path / "d.csv").write_text(content)
        with pytest.raises(ValueError, match=r"TimeSeries: .*d\.csv.* cannot be read"):
            SERIES.read(str(tmp_path / "d.csv"))
    (tmp_path / "e.npy").write_bytes(b"no array")
    with pytest.raises(ValueError, match=r"TimeSeries: .*e\.npy.* cannot be read"):
        SERIES.read(str(tmp_path / "e.npy"))
