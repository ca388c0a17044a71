"""A set of tokens in a bucket: written there, gone on with there, and read from there."""

from __future__ import annotations

import numpy as np
import pytest
import toy_codes
import toy_set

from mmjax import files
from mmjax.data.source import HELD
from mmjax.data.token_set import TokenSet
from mmjax.tokenize import run, shard, whole


def test_a_set_is_made_and_read_in_a_bucket(address, tmp_path):
    raw = toy_set.write_tars(tmp_path / "raw", shards=2, each=8)
    experiment = toy_set.get_config(str(raw), toy_codes.write(tmp_path / "codes"))
    run.tokenize(experiment, tmp_path / "disk")
    begun = run.begin(experiment, files.given(address))
    first, *_ = begun.units()
    shard.make(begun, first)
    about = whole.status(address)
    assert (about["finished"], about["parts"]["tokens"]["done"]) == (False, 1)
    with pytest.raises(ValueError, match="is not finished"):
        TokenSet(path=address).splits()
    run.tokenize(experiment, address)
    assert whole.status(address, verify=True)["finished"]
    there, here = TokenSet(path=address), TokenSet(path=str(tmp_path / "disk"))
    assert there.fingerprint() == here.fingerprint()
    for split in here.splits():
        one, other = there.open(split), here.open(split)
        assert len(one) == len(other)
        for i in range(len(one)):
            for name, pieces in other[i][HELD].items():
                for a, b in zip(one[i][HELD][name], pieces, strict=True):
                    np.testing.assert_array_equal(a.position_LA, b.position_LA)
                    kept = [x.values_LP if x.ids_L is None else x.ids_L for x in (a, b)]
                    np.testing.assert_array_equal(*kept)
    (files.given(address) / "tokens" / "train" / "00000.array_record").unlink()
    with pytest.raises(ValueError, match=r"00000\.array_record is missing"):
        there.open("train")
