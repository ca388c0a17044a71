"""Sources of own files: every format gives the same batches; broken files are told apart."""

from __future__ import annotations

import dataclasses
import gzip
import io
import json
import pickle
import shutil
import tarfile

import jax
import numpy as np
import own
import pytest

from mmjax import config, errors
from mmjax.data import index, layouts, loader, mixture
from mmjax.data.array_records import ArrayRecords, decode_record, encode_record
from mmjax.data.folder import Folder
from mmjax.data.parquet import Parquet
from mmjax.data.reader import Reader, values_of
from mmjax.data.source import BadRecord
from mmjax.data.task import Task
from mmjax.data.tfds import TFDS
from mmjax.data.webdataset import WebDataset
from mmjax.modalities.audio import Audio
from mmjax.modalities.image import Image
from mmjax.modalities.text import Text
from mmjax.tokenizers.sentencepiece import SentencePiece
from mmjax.typing import Vocabulary

ROWS = own.records()


@pytest.fixture(scope="module")
def modalities(tmp_path_factory):
    text = Text(tokenizer=SentencePiece(vocab_size=300, num_sentinels=8), max_tokens=12)
    return {
        "image": Image(size=(16, 16), patch=8),
        "audio": Audio(seconds=0.3),
        "text": text.fit(lambda: [r["text"] for r in ROWS], tmp_path_factory.mktemp("text")),
    }


def batches(source, modalities, split="train", steps=6, **quota):
    vocabulary = Vocabulary(tuple(m.spec(n) for n, m in modalities.items()))
    names = tuple(modalities)
    tasks = {
        "masked": Task(source=source, inputs=names, targets=("text",), objective=None, group_rows=4,
                       layout=layouts.Masked(input_tokens=12, target_tokens=8), batch_size=8),
        "pairs": Task(source=source, inputs=("image", "text"), layout=layouts.Aligned(),
                      objective=None, batch_size=8, group_rows=4),
    }  # fmt: skip
    found = loader.readers(tasks, modalities, vocabulary, split, quota.pop("allowed", 0.0))
    schedule = mixture.Mixture().bind(tasks, 0)
    made = loader.Batches(schedule, mixture.Journal(), found, vocabulary, 0)
    return [made[step] for step in range(steps)]


def same(a, b):
    leaves_a, leaves_b = jax.tree.leaves(a), jax.tree.leaves(b)
    assert len(leaves_a) == len(leaves_b) > 0
    for x, y in zip(leaves_a, leaves_b, strict=True):
        np.testing.assert_array_equal(x, y)


@pytest.fixture(scope="module")
def expected(modalities, tmp_path_factory):
    source = own.write(tmp_path_factory.mktemp("tar"), "tar", ROWS)
    return {split: batches(source, modalities, split) for split in ("train", "val")}


@pytest.mark.parametrize("kind", own.FORMATS[1:])
def test_every_format_gives_the_same_batches(kind, modalities, expected, tmp_path):
    source = own.write(tmp_path, kind, ROWS)
    assert config.from_json(json.loads(config.dump(source)), config.seam_classes()) == source
    for split, wanted in expected.items():
        for (place, batch, counts), other in zip(
            batches(source, modalities, split), wanted, strict=True
        ):
            assert (place, counts) == (other[0], other[2])
            same(batch, other[1])
    records, again = source.open("train"), pickle.loads(pickle.dumps(source)).open("train")
    assert [records[i]["text"] for i in range(3)] == [again[i]["text"] for i in range(3)]


def test_what_a_config_holds_of_a_source_opens_nothing():
    source = WebDataset(path="absent-{000..999}.tar")
    assert source.splits() == ("train", "val")
    with pytest.raises(ValueError, match=r"absent-000.tar'.* 999 more.*does not exist"):
        source.open("train")
    with pytest.raises(ValueError, match="split='test' does not exist; there are train, val"):
        source.open("test")


def test_braces():
    assert index.braces("a-{08..11}.{tar,x}")[:3] == ["a-08.tar", "a-08.x", "a-09.tar"]
    with pytest.raises(ValueError, match="more than"):
        index.braces("{0..99999999}")


# ------------------------------------------------------------------------ splits


def tar_of(path, items):
    with tarfile.open(path, "w") as tar:
        for name, content in items:
            own.add(tar, name, content)
    return path


def test_a_split_by_key_is_kept_and_checked(tmp_path):
    items = [(f"{i:03}.txt", b"x") for i in range(200)]
    tar_of(tmp_path / "a.tar", items[:100])
    source = WebDataset(path=f"{tmp_path}/*.tar", fields={"text": "txt"}, key="__key__")
    train, val = (source.open(split) for split in ("train", "val"))
    keys = {s: {r.key(i) for i in range(len(r))} for s, r in (("train", train), ("val", val))}
    assert len(train) + len(val) == 100
    assert 2 < len(val) < 25
    assert not keys["train"] & keys["val"]
    assert list((tmp_path / ".mmjax").glob("splits-*.npz"))
    tar_of(tmp_path / "b.tar", items[100:])  # what is new moves nothing
    more = {r.key(i) for r in [source.open("train")] for i in range(len(r))}
    assert more & keys["train"] == keys["train"]
    assert not more & keys["val"]
    other = dataclasses.replace(source, shares={"train": 0.5, "val": 0.5})
    with pytest.raises(ValueError, match=r"shares=.*made with.*delete .*splits-"):
        other.open("train")


def test_a_table_without_names_may_not_change_under_its_split(tmp_path):
    table = tmp_path / "t.csv"
    table.write_text("text\n" + "\n".join(f"line {i}" for i in range(50)))
    source = Folder(path=str(table), fields={"text": "text"})
    count = len(source.open("train"))
    shutil.copy(table, tmp_path / "copy")
    (tmp_path / "copy").replace(table)  # the same bytes, another time
    assert len(source.open("train")) == count
    table.write_text("text\nfirst\n" + "\n".join(f"line {i}" for i in range(50)))
    with pytest.raises(ValueError, match="has changed since its splits were made"):
        source.open("train")


def test_named_splits_and_a_cache_folder(tmp_path):
    for split in ("train", "held"):
        tar_of(tmp_path / f"{split}.tar", [(f"{split}.{i}.txt", b"x") for i in range(3)])
    files = {"train": f"{tmp_path}/train.tar", "held": f"{tmp_path}/held.tar"}
    source = WebDataset(files=files, cache=str(tmp_path / "index"))
    assert source.splits() == ("train", "held")
    records = source.open("held")
    assert len(records) == 1
    assert sorted(records[0]) == ["0.txt", "1.txt", "2.txt"]
    assert not (tmp_path / ".mmjax").exists()
    first = source.fingerprint()
    tar_of(tmp_path / "held.tar", [("a.txt", b"y")])
    assert source.fingerprint() != first
    assert source.open("held")[0] == {"txt": b"y"}  # not the old index
    for file in (tmp_path / "index").iterdir():
        file.write_bytes(b"damaged")
    assert source.open("held")[0] == {"txt": b"y"}


def test_duplicate_and_missing_keys_of_a_table(tmp_path):
    table = tmp_path / "t.jsonl"
    table.write_text('{"id": 1, "text": "a"}\n{"id": 1, "text": "b"}\n')
    with pytest.raises(ValueError, match=r"key='id' has the value '1' twice"):
        Folder(path=str(table), fields={"text": "text"}, key="id").open("train")


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({}, "give one of the two"),
        ({"path": "a", "files": {"b": "c"}}, "give one of the two"),
        ({"path": "ftp://host/a.tar"}, "no local file and in no bucket"),
        ({"path": "a", "shares": {"train": 0.9}}, "sum to 1"),
        ({"path": "a", "fields": {"x": "pyd"}}, "pickle"),
        ({"path": "a", "fields": {"x": "npy;data.pkl"}}, "pickle"),
        ({"path": "a", "required": ("x",)}, "not among fields"),
    ],
)
def test_wrong_fields_of_the_config(fields, said):
    with pytest.raises(ValueError, match=f"^WebDataset: .*{said}"):
        WebDataset(**fields)


# ---------------------------------------------------------------- broken tar files


def cut(path):
    path.write_bytes(path.read_bytes()[:700])


def garbage(path):
    path.write_bytes(b"\x1f\x8c" + bytes(range(256)) * 8)


def packed(path):
    path.write_bytes(gzip.compress(path.read_bytes()))


def empty(path):
    path.write_bytes(b"")


def no_member(path):
    tar_of(path, [])


def with_member(name="x.txt", kind=tarfile.REGTYPE):
    def make(path):
        with tarfile.open(path, "w") as tar:
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, "a.txt"
            tar.addfile(info)

    return make


def twice(path):
    tar_of(path, [("a.txt", b"x"), ("b.txt", b"x"), ("a.jpg", b"x")])


def same_member(path):
    tar_of(path, [("a.txt", b"x"), ("a.TXT", b"x")])


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (empty, "is empty"),
        (no_member, "holds no record"),
        (cut, "is cut"),
        (garbage, "damaged, compressed or no tar"),
        (packed, "is compressed by gzip"),
        (with_member("../x.txt"), "leads out of its folder"),
        (with_member("/etc/x.txt"), "leads out of its folder"),
        (with_member(kind=tarfile.SYMTYPE), "is a link"),
        (with_member(kind=tarfile.LNKTYPE), "is a link"),
        (with_member(kind=tarfile.FIFOTYPE), "is a pipe"),
        (twice, "has the key 'a' in two places"),
        (same_member, "twice"),
    ],
)
def test_tar_files_that_are_refused(spoil, said, tmp_path):
    path = tmp_path / "bad.tar"
    tar_of(path, [("a.txt", b"x" * 600)])
    spoil(path)
    with pytest.raises(ValueError, match=rf"^WebDataset: '.*bad.tar'.*{said}"):
        WebDataset(path=str(path)).open("train")


@pytest.mark.parametrize("kind", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_names_of_all_kinds_of_tar(kind, tmp_path):
    long = "deep/" * 18 + "name" * (10 if kind == tarfile.USTAR_FORMAT else 40)
    names = ["./a.JPG", f"{long}.Left.Png"] + (
        ["\u00fc.txt"] if kind != tarfile.USTAR_FORMAT else []
    )
    with tarfile.open(tmp_path / "x.tar", "w", format=kind) as tar:
        for name in names:
            own.add(tar, name, name.encode())
    records = WebDataset(files={"train": f"{tmp_path}/x.tar"}).open("train")
    assert len(records) == len(names)
    assert records[0] == {"jpg": b"./a.JPG"}
    assert records[1] == {"left.png": names[1].encode()}
    assert records.key(1) == f"x.tar/{long}"


# ---------------------------------------------------------------------- records


def test_a_record_without_a_needed_field_names_what_it_has(tmp_path):
    tar_of(tmp_path / "x.tar", [("a.txt", b"x"), ("a.json", b"{}"), ("b.jpg", b""), ("b.txt", b"")])
    fields = {"image": "png;jpg", "text": "txt"}
    files = {"train": f"{tmp_path}/x.tar"}
    records = WebDataset(files=files, fields=fields, required=("image",)).open("train")
    with pytest.raises(BadRecord, match=r"it has no png or jpg; it has json, txt") as caught:
        records[0]
    assert caught.value.reason == "no_field"
    assert records[1] == {"image": b"", "text": b""}
    with pytest.raises(ValueError, match=r"fields\['image'\]='jpeg' is in no record.*json, txt"):
        WebDataset(files=files, fields={"image": "jpeg"}).open("train")


def test_arrays_and_json_beside_files(tmp_path):
    npy, objects = io.BytesIO(), io.BytesIO()
    array = np.arange(6, dtype=np.float32).reshape(2, 3)
    np.save(npy, array)
    np.save(objects, np.array([{}], object), allow_pickle=True)
    huge = npy.getvalue().replace(b"(2, 3)", b"(2000000000, 3)")[: len(npy.getvalue())]
    items = [("a.npy", npy.getvalue()), ("a.json", b'{"x": 1}'), ("a.cls", b"7\n"),
             ("b.npy", objects.getvalue()), ("c.npy", huge), ("d.json", b"{"), ("e.npy", b"no"),
             ("f.json", b"[" * 100_000)]  # fmt: skip
    tar_of(tmp_path / "x.tar", items)
    records = WebDataset(files={"train": f"{tmp_path}/x.tar"}).open("train")
    np.testing.assert_array_equal(records[0]["npy"], array)
    assert records[0]["json"] == {"x": 1}
    assert records[0]["cls"] == 7
    for i, reason in ((1, "no_npy"), (2, "no_npy"), (3, "no_json"), (4, "no_npy"), (5, "no_json")):
        with pytest.raises(BadRecord) as caught:
            records[i]
        assert caught.value.reason == reason


def test_tables_with_bad_rows(tmp_path):
    (tmp_path / "a.png").write_bytes(b"x")
    (tmp_path / "m.csv").write_bytes(
        b'file_name,text\na.png,"one, two"\nb.png,absent\n../m.csv,out\n/etc/hosts,out\na.png\n,no'
        b"\na.png,\xff\n" + b'a.png,"' + b"long " * 20_000 + b'"\n'
    )
    fields = {"image": "file_name", "text": "text"}
    records = Folder(files={"train": f"{tmp_path}/m.csv"}, fields=fields).open("train")
    assert records[0] == {"image": b"x", "text": "one, two"}
    reasons = []
    for i in range(1, 5):
        with pytest.raises(BadRecord) as caught:
            records[i]
        reasons.append(caught.value.reason)
    assert reasons == ["no_file", "outside", "outside", "row"]
    assert records[5] == {"text": "no"}
    assert "\udcff" in records[6]["text"]  # the modality tells that it is no Unicode
    assert len(records[7]["text"]) == 100_000
    (tmp_path / "m.jsonl").write_text('{"text": "a"}\n{"text": \n[1]\n\n{"text": null}\n')
    lines = Folder(files={"train": f"{tmp_path}/m.jsonl"}, fields={"text": "text"}).open("train")
    assert lines[0] == {"text": "a"}
    assert len(lines) == 4
    for i in (1, 2, 3):
        with pytest.raises(BadRecord):
            lines[i]


def test_parquet_with_nulls_lists_and_paths(tmp_path):
    import pyarrow
    from pyarrow import parquet

    (tmp_path / "x.png").write_bytes(b"beside")
    table = pyarrow.table(
        {
            "image": [{"bytes": b"i", "path": "a"}, {"bytes": None, "path": "x.png"}, None],
            "audio": pyarrow.array([[0.5, 0.25], None, []], pyarrow.list_(pyarrow.float32())),
            "text": ["a", None, None],
            "number": [1, 2, 3],
        }
    )
    parquet.write_table(table, tmp_path / "t.parquet", row_group_size=2)
    source = Parquet(files={"train": f"{tmp_path}/t.parquet"}, cache_bytes=1)
    records = source.open("train")
    first = records[0]
    np.testing.assert_array_equal(first.pop("audio"), np.float32([0.5, 0.25]))
    assert first == {"image": b"i", "text": b"a", "number": 1}
    assert records[1] == {"image": b"beside", "number": 2}
    only = dataclasses.replace(source, fields={"image": "image"}).open("train")
    with pytest.raises(BadRecord, match="it has audio, number"):
        only[2]
    (tmp_path / "t.parquet").write_bytes(b"PAR1 no")
    with pytest.raises(ValueError, match=r"^Parquet: .*cannot be read"):
        source.open("train")


def test_array_records(tmp_path):
    example = {"image": b"\x00\n{", "text": "a\nb", "n": 3, "nothing": None}
    assert decode_record(encode_record(example)) == {"image": b"\x00\n{", "text": "a\nb", "n": 3}
    for content in (b"", b"{}\n", b'{"values": {}, "bytes": [["a", 9]]}\nabc', b"\xff\n", b"[]\n"):
        with pytest.raises(BadRecord):
            decode_record(content)
    (tmp_path / "x.array_record").write_bytes(b"no such thing" * 10)
    with pytest.raises(ValueError, match="ArrayRecord"):
        ArrayRecords(path=f"{tmp_path}/x.array_record").open("train")


def test_tfds_refuses_what_it_cannot_read(tmp_path):
    own.write_tfds(tmp_path, ROWS)
    source = TFDS(path=str(tmp_path))
    assert source.splits() == ("train", "val")
    info = json.loads((tmp_path / "dataset_info.json").read_text())
    (tmp_path / "dataset_info.json").write_text(json.dumps(info | {"fileFormat": "tfrecord"}))
    with pytest.raises(ValueError, match="tfrecord, which has no random access"):
        source.open("train")
    with pytest.raises(ValueError, match="give the folder of a prepared"):
        TFDS(path=str(tmp_path / "absent")).splits()
    with pytest.raises(ValueError, match="splits are its own"):
        TFDS(path="a", shares={"train": 1.0})


# ------------------------------------------------------------- bad records in batches


def spoilt(folder, bad):
    rows = [dict(row) for row in ROWS]
    for number, (key, content) in bad.items():
        rows[number][key] = content
    return own.write(folder, "array_records", rows)


def test_bad_records_are_counted_by_reason_and_never_in_a_batch(modalities, tmp_path):
    nan = io.BytesIO()
    own.soundfile.write(nan, np.full(800, np.nan), 16000, format="WAV", subtype="FLOAT")
    bad = {1: ("image", ROWS[1]["image"][:300]), 2: ("audio", nan.getvalue()), 3: ("image", b"x")}
    source = spoilt(tmp_path, bad)
    found = batches(source, modalities, allowed=0.5, steps=12)
    counts = {name for _, _, c in found for name in c if name.startswith("bad/")}
    good = source.open("train")
    there = {int(good[i]["text"].rsplit(" ", 1)[1]) for i in range(len(good))}
    reasons = {1: "broken_image", 2: "not_finite", 3: "no_image"}
    assert counts == {f"bad/{reasons[n]}" for n in reasons if n in there}
    assert len(counts) > 1
    for _, batch, _ in found:
        assert all(np.isfinite(x).all() for x in jax.tree.leaves(batch))
    again = batches(source, modalities, allowed=0.5, steps=12)
    for a, b in zip(found, again, strict=True):
        same(a[1], b[1])


def test_the_quota_names_source_reason_and_keys(modalities, tmp_path):
    source = spoilt(tmp_path, dict.fromkeys(range(24), ("image", b"x")))
    vocabulary = Vocabulary(tuple(m.spec(n) for n, m in modalities.items()))
    reader = Reader(source=source, split="train", modalities=modalities, vocabulary=vocabulary,
                    max_bad_fraction=0.0)  # fmt: skip
    with pytest.raises(
        errors.BadDataError,
        match=r"ArrayRecords, split 'train'.*no_image in records set.array_record/\d+ .*strict",
    ):
        reader.read(0, ["image"])


def test_a_table_whose_pictures_are_all_absent_says_so(tmp_path):
    rows = "file_name,caption\na.png,red\nb.png,blue\n"
    (tmp_path / "metadata.csv").write_text(rows)
    source = Folder(path=str(tmp_path), fields={"image": "file_name", "text": "caption"})
    records = source.open("train")
    with pytest.raises(errors.BadDataError) as caught:
        list(values_of(source, "train", "text", records, range(len(records))))
    for part in ("Source Folder", "'train'", "none of 2 records", "'text'", "no_file", "a.png"):
        assert part in str(caught.value)


def test_records_of_a_table_are_named_with_their_files(tmp_path):
    (tmp_path / "metadata.csv").write_text("file_name,caption\na.png,red\n,blue\n")
    records = Folder(path=str(tmp_path)).open("train")
    assert [records.key(i) for i in (0, 1)] == ["metadata.csv/0 (a.png)", "metadata.csv/1"]


def test_a_table_with_other_separators_says_so(tmp_path):
    (tmp_path / "metadata.csv").write_text("file_name;caption\na.png;red\n")
    with pytest.raises(ValueError, match=r"one column, 'file_name;caption'.*';'.*commas"):
        Folder(path=str(tmp_path)).open("train")


@pytest.mark.parametrize("beside", ["a.png", "pictures/a.png"])
def test_a_table_of_another_name_is_no_record(beside, tmp_path):
    (tmp_path / beside).parent.mkdir(exist_ok=True)
    (tmp_path / beside).write_bytes(b"x")
    (tmp_path / "captions.csv").write_text("file_name,caption\na.png,red\n")
    with pytest.raises(ValueError, match=r"no metadata.csv .*captions.csv.*rename"):
        Folder(path=str(tmp_path)).open("train")
    (tmp_path / "captions.png").write_bytes(b"x")  # now it is a field of a record
    assert len(Folder(path=str(tmp_path)).open("train")) == 2
