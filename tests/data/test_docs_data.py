"""The snippets of docs/data.md run, on files of the kinds that they name."""

from __future__ import annotations

import io
import json
import re
import tarfile

import numpy as np
import own


def test_the_snippets_read_what_they_say(root, tmp_path, monkeypatch):
    file = io.BytesIO()
    np.save(file, np.arange(4))
    npy = file.getvalue()
    rows = own.records(count=40, size=8, audio=False)
    for i, row in enumerate(rows):
        row["id"] = str(i)
    data = tmp_path / "data"
    for kind in ("stems", "parquet", "tfds"):
        own.write(data if kind == "parquet" else data / kind, kind, rows)
    own.write_tar(data / "set-000.tar", rows[:30])
    own.write_tar(data / "set-001.tar", rows[30:])
    (data / "table").mkdir()
    lines = [{"file_name": f"{i}.png", "caption": row["text"]} for i, row in enumerate(rows)]
    (data / "table" / "metadata.jsonl").write_text("\n".join(map(json.dumps, lines)))
    for i, row in enumerate(rows):
        (data / "table" / f"{i}.png").write_bytes(row["image"])
    columns = {"rgb": ("image", "png"), "caption": ("text", "txt"), "tok_depth": ("ids", "npy")}
    for name, (column, ending) in columns.items():
        (data / "4m" / name).mkdir(parents=True)
        with tarfile.open(data / "4m" / name / "00000.tar", "w") as tar:
            for row in rows:
                content = npy if column == "ids" else row[column]
                content = content.encode() if isinstance(content, str) else content
                own.add(tar, f"{row['id']}.{ending}", content)
    monkeypatch.chdir(tmp_path)
    page = (root / "docs" / "data.md").read_text()
    names: dict = {}
    exec("\n".join(re.findall(r"^```python\n(.*?)^```$", page, re.M | re.S)), names)
    for name in ("tar", "table", "stems", "parquet", "records", "tfds"):
        source = names[name]
        opened = [source.open(split) for split in source.splits()]
        assert sum(map(len, opened)) == 40, name
        assert set(opened[0][0]) == {"image", "text"}, name
    assert len(names["named"].open("val")) == 10
    assert sum(len(names["joined"].open(split)) for split in ("train", "val")) == 40
    assert set(names["example"]) == set(columns)
    assert names["example"]["tok_depth"].tolist() == [0, 1, 2, 3]
