"""Codes: the tokenizer comes from its run, and only with the preprocessing it was trained with."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import toy_codes

from mmjax import config
from mmjax.modalities.codes import Codes
from mmjax.modalities.image import Image


def nothing():
    return iter(())


def test_the_tokenizer_is_copied_at_first_use_and_then_the_copy_is_used(tmp_path):
    path = toy_codes.write(tmp_path / "run")
    codes = Codes(base=toy_codes.BASE, path=path)
    first = codes.fit(nothing, tmp_path / "copy")
    toy_codes.write(tmp_path / "run", seed=1)  # trained again meanwhile
    second = codes.fit(nothing, tmp_path / "copy")
    fingerprint = toy_codes.learned().fingerprints["codes"]
    assert first.spec("c").fingerprint == second.spec("c").fingerprint == fingerprint
    assert first.spec("c").grid == (1, 2, 8)
    assert first == codes  # what was learned is no field


@pytest.mark.parametrize("path", ["", "absent"])
def test_no_tokenizer_is_told_with_the_remedy(path, tmp_path):
    where = str(tmp_path / path) if path else ""
    codes = Codes(base=toy_codes.BASE, path=where)
    for call in (lambda: codes.spec("c"), lambda: codes.fit(nothing, tmp_path / "copy")):
        with pytest.raises(ValueError, match=r"^Codes: .*mmjax train-tokenizer CONFIG --workdir"):
            call()
    assert not (tmp_path / "copy").exists()


def test_another_preprocessing_is_refused_by_field(tmp_path):
    path = toy_codes.write(tmp_path / "run")
    base = dataclasses.replace(toy_codes.BASE, mean=(0.25,))
    with pytest.raises(ValueError, match=r"trained with mean=\[0\.5\] of Image, .* \[0\.25\]"):
        Codes(base=base, path=path).fit(nothing, tmp_path / "copy")


def test_the_field_is_that_of_the_base_and_names_no_preprocessing(tmp_path):
    path = toy_codes.write(tmp_path / "run")
    codes = Codes(base=dataclasses.replace(toy_codes.BASE, field="mask"), path=path)
    assert codes.field == "mask"
    codes.fit(nothing, tmp_path / "copy")
    tree = config.to_json(codes)
    assert config.from_json(tree, config.seam_classes()) == codes


def test_batches_and_single_values_agree(tmp_path):
    codes = Codes(base=toy_codes.BASE, path=toy_codes.write(tmp_path / "run"))
    codes = codes.fit(nothing, tmp_path / "copy")
    random = np.random.default_rng(0)
    values = [random.random((8, 16)).astype(np.float32) for _ in range(3)]
    ids_NL = codes.encode_batch(values)
    for value, ids_L in zip(values, ids_NL, strict=True):
        piece = codes.encode(value)
        np.testing.assert_array_equal(piece.ids_L, ids_L)
        assert codes.decode(piece).shape == (8, 16, 1)
    with pytest.raises(ValueError, match="needs ids"):
        codes.decode(Image(size=(8, 16), patch=4, channels=1).encode(values[0]))
