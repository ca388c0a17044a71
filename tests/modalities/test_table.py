"""Rows of tables: bins, missing cells, broken sequences, files, and configs."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from mmjax import config
from mmjax.modalities.structured import Bins
from mmjax.modalities.table import BinEdges, Table

COLUMNS = {"age": Bins(num=5), "sex": ("f", "m"), "pay": BinEdges(at=(0.0, 1.0, 10.0, 100.0))}
TABLE = Table(columns=COLUMNS, num_sentinels=2)
NONE = {"age": None, "sex": None, "pay": None}


def decoded(ids):
    return TABLE.decode(TABLE.encode({})._replace(ids_L=np.asarray(ids, np.int32)))


def test_a_cell_is_a_token_and_a_missing_one_has_its_own():
    np.testing.assert_array_equal(TABLE.encode({}).ids_L, [3, 9, 12, 0])
    full = TABLE.encode({"pay": 3, "age": 0, "sex": "m"})
    np.testing.assert_array_equal(full.ids_L, [4, 11, 14, 0])
    spec = TABLE.spec("row")
    assert (spec.max_tokens, spec.vocab_size) == (4, 1 + 2 + 6 + 3 + 4)


@pytest.mark.parametrize("cell", [None, math.nan, np.float32(np.nan), "", "  "])
def test_what_is_missing(cell):
    for name in COLUMNS:
        np.testing.assert_array_equal(TABLE.encode({name: cell}).ids_L, TABLE.encode({}).ids_L)


def test_numbers_beyond_the_edges_are_in_the_outer_bins():
    edges = COLUMNS["pay"]
    numbers = (-5, 0, 0.99, 1, 9.99, 10, 100, 1e9)
    assert [edges.bin(x) for x in numbers] == [0, 0, 0, 1, 1, 2, 2, 2]
    assert [edges.bin(edges.middle(i)) for i in range(edges.num)] == [0, 1, 2]
    for at in ((), (1.0,), (1.0, 1.0), (2.0, 1.0)):
        with pytest.raises(ValueError, match="BinEdges: at="):
            BinEdges(at=at)


def test_texts_of_numbers_are_numbers():
    row = {"age": " 4", "pay": "3e1", "sex": "f"}
    assert TABLE.decode(TABLE.encode(row)) == {"age": 4, "pay": 55.0, "sex": "f"}
    np.testing.assert_array_equal(TABLE.encode({"age": np.array(4)}).ids_L[:1], [8])


def test_other_columns_and_cells_are_named():
    with pytest.raises(ValueError, match=r"Table: no column aeg, size; give some of age, sex, pay"):
        TABLE.encode({"aeg": 1, "size": 2, "sex": "f"})
    with pytest.raises(ValueError, match=r"Table: age=5 is out of range; give a whole number in 0"):
        TABLE.encode({"age": 5})
    with pytest.raises(ValueError, match=r"Table: sex='w' is no category.*; give one of f, m"):
        TABLE.encode({"sex": "w"})


def test_broken_rows_hold_what_is_valid():
    assert decoded([]) == NONE
    assert decoded([4, 1, 2, 14]) == {"age": 0, "sex": None, "pay": 5.5}  # sentinels, no end
    assert decoded([14, 4, 5, 0, 11]) == {"age": 0, "sex": None, "pay": 5.5}  # another order
    assert decoded([3, 4]) == NONE  # the first one counts
    assert decoded([99, 10]) == {**NONE, "sex": "f"}


def test_files_are_json_and_csv(tmp_path):
    row = {"age": 4, "sex": "m", "pay": None}
    assert TABLE.read(str(TABLE.write(row, tmp_path / "a"))) == row
    table = tmp_path / "b.csv"
    table.write_text('\ufeffsex,age,pay\n"m",4,\nf,3,1\n')
    assert TABLE.decode(TABLE.encode(TABLE.read(str(table)))) == row
    for content in ("sex,age\n", "sex,age\nm,4,5\n", ""):
        table.write_text(content)
        with pytest.raises(ValueError, match=r"Table: .*b\.csv.*; give"):
            TABLE.read(str(table))


def test_columns_are_kinds_of_columns():
    for columns in ({}, {"a": ()}, {"a": ("b", "b")}, {"a": ("b", " ")}, {"a": 3}, {"a": (1, 2)}):
        with pytest.raises(ValueError, match="Table: columns"):
            Table(columns=columns)


def test_a_config_holds_every_kind_of_column():
    tree = json.loads(json.dumps(config.to_json(TABLE)))
    assert config.from_json(tree, config.seam_classes()) == TABLE
