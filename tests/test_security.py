"""What SECURITY.md says of libraries that read files for us."""

from __future__ import annotations

import os
import pickle
import re
from pathlib import Path

import pyarrow
import pytest
from pyarrow import parquet

from mmjax.data.parquet import Parquet


@pytest.mark.fault("a Parquet file brings a type that is a pickle", "it is not unpickled")
def test_parquet_brings_no_code(tmp_path):
    class Evil:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "MARK"),)

    about = {
        "ARROW:extension:name": "arrow.py_extension_type",
        "ARROW:extension:metadata": pickle.dumps(Evil()),
    }
    field = pyarrow.field("text", pyarrow.binary(), metadata=about)
    table = pyarrow.table([[b"one"]], schema=pyarrow.schema([field]))
    parquet.write_table(table, tmp_path / "t.parquet")
    written = parquet.read_schema(tmp_path / "t.parquet")
    assert b"mkdir" in written.field("text").metadata[b"ARROW:extension:metadata"]
    source = Parquet(files={"train": f"{tmp_path}/t.parquet"})
    assert source.open("train")[0] == {"text": b"one"}
    assert not (tmp_path / "MARK").exists()


def test_the_page_is_linked_and_says_how_to_report(root: Path):
    text = (root / "SECURITY.md").read_text()
    for name in ("README.md", "docs/index.md", "docs/run_directory.md"):
        assert "SECURITY.md" in (root / name).read_text()
    headings = re.findall(r"^## (.+)$", text, re.M)
    assert headings[:2] == ["What is trusted", "What is not"]
    assert headings[-1] == "Reporting"
