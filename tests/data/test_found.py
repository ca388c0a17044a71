"""One path says the source, the fields and the splits; or the error what to write."""

from __future__ import annotations

import own
import pytest

from mmjax.config.error import ConfigError
from mmjax.data.array_records import write_array_records
from mmjax.data.found import eval_split, source_of

ROWS = own.records(count=12)
KINDS = {"tar": "WebDataset", "csv": "Folder", "jsonl": "Folder", "stems": "Folder",
         "parquet": "Parquet", "array_records": "ArrayRecords", "tfds": "TFDS"}  # fmt: skip


@pytest.mark.parametrize("kind", own.FORMATS)
def test_a_folder_of_every_format(kind, tmp_path):
    own.write(tmp_path / "data", kind, own.records(count=24))
    source = source_of(str(tmp_path / "data"))
    assert type(source).__name__ == KINDS[kind]
    records = source.open("train")
    keys = {key for i in range(len(records)) for key in records[i]}
    assert keys == {"image", "text", "audio"}
    assert eval_split(source) == "val"


@pytest.mark.parametrize(("names", "splits"), [
    (("train-00000-of-00002.tar", "train-00001-of-00002.tar", "val-00000-of-00001.tar"),
     {"train": 24, "val": 12}),
    (("set_training.tar", "set_test.tar"), {"train": 12, "test": 12}),
    (("a-0.tar", "a-1.tar", "validation.tar"), {"train": 24, "val": 12}),
])  # fmt: skip
def test_names_of_shards_are_their_splits(names, splits, tmp_path):
    for i, name in enumerate(names):
        own.write_tar(tmp_path / name, [{**r, "id": f"{i}-{r['id']}"} for r in ROWS])
    (tmp_path / "README.md").write_text("about")
    for given in (tmp_path, tmp_path / "*.tar"):
        source = source_of(str(given))
        assert {split: len(source.open(split)) for split in source.splits()} == splits
    assert eval_split(source) == [*splits][-1]


def test_shards_without_names_of_splits_are_divided(tmp_path):
    for i in range(3):
        own.write_tar(tmp_path / f"a{i}.tar", [{**r, "id": f"{i}-{r['id']}"} for r in ROWS])
    source = source_of(str(tmp_path))
    assert source.path == f"{tmp_path}/*.tar"
    assert sum(len(source.open(split)) for split in ("train", "val")) == 36
    one = source_of(str(tmp_path / "a1.tar"))
    assert sum(len(one.open(split)) for split in ("train", "val")) == 12


def test_tables_by_split_whose_columns_have_other_names(tmp_path):
    for split in ("train", "dev"):
        lines = ["id,Path,english"]
        for row in ROWS:
            (tmp_path / f"{split}{row['id']}.png").write_bytes(row["image"])
            lines.append(f"{split}{row['id']},{split}{row['id']}.png,a word {row['id']}")
        (tmp_path / f"{split}.csv").write_text("\n".join(line.partition(",")[2] for line in lines))
    source = source_of(str(tmp_path))
    assert source.fields == {"image": "Path", "text": "english"}
    assert source.splits() == ("train", "val")
    assert source.open("val")[3]["image"][:4] == b"\x89PNG"


def test_a_table_of_sounds_by_file_name(tmp_path):
    lines = ["file_name,transcription"]
    for row in ROWS[1:5]:
        (tmp_path / f"{row['id']}.wav").write_bytes(row["audio"])
        lines.append(f"{row['id']}.wav,a word {row['id']}")
    (tmp_path / "metadata.csv").write_text("\n".join(lines))
    assert source_of(str(tmp_path)).fields == {"text": "transcription", "audio": "file_name"}


def test_columns_are_told_by_their_values(tmp_path):
    rows = [{"a": r["image"], "b": r["audio"] or ROWS[1]["audio"], "title": r["text"], "n": i}
            for i, r in enumerate(ROWS)]  # fmt: skip
    write_array_records(tmp_path / "x.array_record", rows)
    fields = source_of(str(tmp_path / "x.array_record")).fields
    assert fields == {"image": "a", "text": "title", "audio": "b"}


def classes(folder, *names):
    for name in names:
        (folder / name).mkdir(parents=True)
        for row in ROWS:
            (folder / name / f"{row['id']}.png").write_bytes(row["image"])


@pytest.mark.parametrize("top", ["", "train", "Training"])
def test_a_folder_a_class(top, tmp_path):
    classes(tmp_path / top, "cat", "test tube")  # a class, though it begins as a split
    source = source_of(str(tmp_path))
    assert source.fields == {"image": "png", "text": "__folder__"}
    assert source.identity == "__folder__"
    assert source.splits() == ("train", "val")
    records = source.open("train")
    assert {records[i]["text"] for i in range(len(records))} == {"cat", "test tube"}


@pytest.mark.parametrize("name", ["red", "7"])
def test_classes_in_members_are_captions_or_labels(name, tmp_path):
    for row in ROWS:
        (tmp_path / f"{row['id']}.png").write_bytes(row["image"])
        (tmp_path / f"{row['id']}.cls").write_text(name)
    source = source_of(str(tmp_path))
    key = "text" if name == "red" else "label"
    assert source.fields == {"image": "png", key: "cls"}
    assert source.identity == "cls"
    assert source.open("train")[0][key] == (name if name == "red" else 7)


def test_a_column_of_numbers_is_a_label(tmp_path):
    rows = [{"image": r["image"], "label": r["group"], "size": i} for i, r in enumerate(ROWS)]
    write_array_records(tmp_path / "x.array_record", rows)
    assert source_of(str(tmp_path)).fields == {"image": "image", "label": "label"}


@pytest.mark.parametrize(("make", "told"), [
    (lambda d: (d / "x.jpg").write_bytes(b"x") and "x.jpg", "is one picture: give the folder"),
    (lambda d: (d / "x.zip").write_bytes(b"x") and "x.zip", r"is packed \(zip\): unpack it"),
    (lambda d: (d / "x.tar.gz").write_bytes(b"x") and "x.tar.gz", r"packed \(gz\): unpack it"),
    (lambda d: (d / "x.doc").write_bytes(b"x") and "x.doc", r"a file of an unknown kind \(.doc\)"),
    (lambda d: (d / "README.md").write_bytes(b"x") and "", "is a folder without files"),
    (lambda d: (d / "only.zip").write_bytes(b"x") and "", r"only.zip' is packed \(zip\)"),
    (lambda d: classes(d, "a") or "", "has image alone .* two kinds are needed"),
    (lambda d: classes(d, "a") or "a/*.png", "12 files of .png: give their folder"),
    (lambda d: classes(d, "val/a", "test/a") or "", "val and test without train|test and val"),
    (lambda d: classes(d, "train/a", "val/a", "dev/a") or "", "dev and val are both val"),
    (lambda d: [own.write_tar(d / n, ROWS) for n in ("train.tar", "b.tar")] and "",
     "in splits, but for b.tar: move them"),
    (lambda d: [(d / n).write_text("a,b\n1,2\n") for n in ("a.csv", "b.csv")] and "",
     r"several tables \(a.csv, b.csv\): name one"),
    (lambda d: own.write_tar(d / "a.tar", ROWS) or ((d / "b.csv").write_text("a,b\n") and ""),
     r"of several kinds \(.csv, .tar\): name one"),
    (lambda d: (d / "t.csv").write_text("x,y\n1,2\n") and "t.csv", "neither pictures, texts nor"),
])  # fmt: skip
def test_a_wrong_kind_says_what_to_write(make, told, tmp_path):
    with pytest.raises(ConfigError, match=told) as error:
        source_of(str(tmp_path / make(tmp_path)))
    assert "1.jpg beside 1.txt" in str(error.value)


def test_a_table_whose_rows_are_all_bad_says_why(tmp_path):
    (tmp_path / "t.csv").write_text("file_name,text\na.png,one, two\nb.png,three, four\n")
    with pytest.raises(ConfigError, match=r"none of its first records can be read, row in t.csv/0"):
        source_of(str(tmp_path / "t.csv"))
