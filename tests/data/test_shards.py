"""Whole files that cannot be read, notes and hidden files, files without a row, many files."""

from __future__ import annotations

import dataclasses
import gzip
import json
import os
import pickle
import tarfile

import mini
import own
import pytest

from mmjax import config, console
from mmjax.config import compare
from mmjax.data import array_records, layouts, loader, mixture, parquet
from mmjax.data import folder as folder_lib
from mmjax.data.array_records import ArrayRecords, write_array_records
from mmjax.data.folder import Folder
from mmjax.data.parquet import Parquet
from mmjax.data.task import Task
from mmjax.data.webdataset import WebDataset
from mmjax.experiment import Guards
from mmjax.modalities.text import Text
from mmjax.tokenizers.sentencepiece import SentencePiece
from mmjax.typing import Vocabulary


@pytest.fixture(autouse=True)
def _said_anew():
    console.say_once.cache_clear()
    folder_lib._looked_at.clear()


def tar_of(path, members, **options):
    with tarfile.open(path, "w", **options) as tar:
        for name, content in members:
            own.add(tar, name, content)


def shards(folder, count=4, each=3):
    for i in range(count):
        rows = [(f"{i}{j}.txt", f"text {i} {j}".encode()) for j in range(each)]
        tar_of(folder / f"{i}.tar", rows)
    return WebDataset(files={"train": f"{folder}/*.tar"}, fields={"text": "txt"})


# ------------------------------------------------------------------------ ends of tar files


def test_a_tar_without_its_empty_blocks_is_whole(tmp_path):
    shards(tmp_path, 1)
    content = (tmp_path / "0.tar").read_bytes()
    end = content.rstrip(b"\0")
    size = -(-len(end) // 512) * 512
    for name, kept in {
        "none": content[:size],
        "one": content[: size + 512],
        "part": content[: size + 100],
        "more": content[:size] + bytes(10 * 512),
    }.items():
        (tmp_path / f"{name}.tar").write_bytes(kept)
        source = WebDataset(files={"train": f"{tmp_path}/{name}.tar"}, fields={"text": "txt"})
        records = source.open("train")
        assert [records[i]["text"] for i in range(3)] == [b"text 0 0", b"text 0 1", b"text 0 2"]
    for kept in (end, content[: size - 1], content[: size - 600]):  # inside of the last member
        (tmp_path / "cut.tar").write_bytes(kept)
        with pytest.raises(ValueError, match=r"cut\.tar' is cut"):
            WebDataset(files={"train": f"{tmp_path}/cut.tar"}, fields={"text": "txt"}).open("train")


# ------------------------------------------------------------------------ bad shards


def cut(path):
    path.write_bytes(path.read_bytes()[:800])


def linked(path):
    with tarfile.open(path, "a") as tar:
        info = tarfile.TarInfo("link.txt")
        info.type, info.linkname = tarfile.SYMTYPE, "00.txt"
        tar.addfile(info)


def doubled(path):
    tar_of(path, [("a.txt", b"1"), ("b.txt", b"2"), ("a.txt", b"3")])


def gzipped(path):
    path.write_bytes(gzip.compress(path.read_bytes()))


def emptied(path):
    path.write_bytes(b"")


def no_tar(path):
    path.write_bytes(b"<html>404</html>" * 100)


BAD = [cut, linked, doubled, gzipped, emptied, no_tar]


@pytest.mark.fault(
    "a tar shard among many that is cut, linked, doubled, compressed, empty or no tar",
    "refused with its name (exit 2); guards.on_bad_shard='skip' leaves it out, named and counted",
)
@pytest.mark.parametrize("spoil", BAD)
def test_a_bad_shard_is_refused_or_skipped_and_named(spoil, tmp_path, capsys):
    source = shards(tmp_path)
    spoil(tmp_path / "2.tar")
    with pytest.raises(ValueError, match=r"^WebDataset: '.*2\.tar'.*guards\.on_bad_shard='skip'"):
        source.open("train")
    records = source.under("skip").open("train")
    found = [records[i]["text"].decode() for i in range(len(records))]
    assert found == [f"text {i} {j}" for i in (0, 1, 3) for j in range(3)]
    assert records.num_skipped == 1
    assert records.key(6) == "3.tar/30"
    said = capsys.readouterr().err
    assert "1 of 4 files are skipped: WebDataset: " in said
    assert "2.tar" in said
    # A worker gets a copy that skips too; the fingerprint is that of the files.
    assert len(pickle.loads(pickle.dumps(source.under("skip"))).open("train")) == 9
    assert source.under("skip").fingerprint() == source.fingerprint()
    with pytest.raises(ValueError, match=r"2\.tar"):
        source.under("skip").under("refuse").open("train")


def test_shares_and_keys_go_by_the_shards_that_are_left(tmp_path):
    shards(tmp_path, each=8)
    source = WebDataset(path=f"{tmp_path}/*.tar", fields={"text": "txt"}, key="__key__")
    before = {s: keys(source.open(s)) for s in ("train", "val")}
    cut(tmp_path / "1.tar")
    after = {s: keys(source.under("skip").open(s)) for s in ("train", "val")}
    for split in before:
        assert after[split] == [key for key in before[split] if key[:5] != "1.tar"]


def keys(records):
    return [records.key(i) for i in range(len(records))]


def test_nothing_but_bad_shards_is_refused_whatever_the_guard(tmp_path):
    source = shards(tmp_path, 2).under("skip")
    cut(tmp_path / "0.tar")
    gzipped(tmp_path / "1.tar")
    with pytest.raises(ValueError, match=r"^WebDataset: none of 2 files can be read.*0\.tar"):
        source.open("train")
    alone = WebDataset(files={"train": f"{tmp_path}/0.tar"}).under("skip")
    with pytest.raises(ValueError, match=r"0\.tar' is cut"):
        alone.open("train")


@pytest.mark.parametrize("kind", ["parquet", "array_record"])
def test_other_formats_skip_their_bad_shards_too(kind, tmp_path):
    writer = {"parquet": own.write_parquet, "array_record": write_array_records}[kind]
    source = {"parquet": Parquet, "array_record": ArrayRecords}[kind]
    for i in range(3):
        writer(tmp_path / f"{i}.{kind}", own.records(count=4, size=4))
    path = tmp_path / f"1.{kind}"
    path.write_bytes(path.read_bytes()[: len(path.read_bytes()) // 2])
    made = source(files={"train": f"{tmp_path}/*.{kind}"}, fields={"text": "text"})
    with pytest.raises(ValueError, match=rf"1\.{kind}.*on_bad_shard"):
        made.open("train")
    records = made.under("skip").open("train")
    assert (len(records), records.num_skipped) == (8, 1)


def test_a_run_has_the_guard_and_counts_the_shards(tmp_path):
    """The guard of an experiment reaches its sources, and the first batch of a task counts."""
    source = shards(tmp_path)
    cut(tmp_path / "1.tar")
    plain = mini.get_config()
    tasks = {name: dataclasses.replace(t, source=source) for name, t in plain.tasks.items()}
    guarded = dataclasses.replace(plain, tasks=tasks, guards=Guards(on_bad_shard="skip"))
    for experiment in (guarded, config.from_json(config.to_json(guarded), config.seam_classes())):
        for task in experiment.tasks.values():
            assert len(task.source.open("train")) == 9
    assert "_on_bad_shard" not in json.dumps(config.to_json(guarded))
    with pytest.raises(ValueError, match=r"1\.tar"):
        next(iter(dataclasses.replace(guarded, tasks=tasks, guards=Guards()).tasks.values())
             ).source.open("train")  # fmt: skip
    # Runs of before have no such field.
    assert "guards.on_bad_shard" not in compare.identity(plain, "said")
    assert "guards.on_bad_shard" in compare.identity(guarded, "said")


def test_skipped_shards_are_counted_once_a_task(tmp_path):
    source = shards(tmp_path, each=8)
    cut(tmp_path / "1.tar")
    gzipped(tmp_path / "3.tar")
    text = Text(tokenizer=SentencePiece(vocab_size=300, num_sentinels=4), max_tokens=8)
    modalities = {"text": text.fit(lambda: ["text 1 2", "text 3 4"], tmp_path)}
    vocabulary = Vocabulary((modalities["text"].spec("text"),))
    task = Task(
        source=source.under("skip"), inputs=("text",), targets=("text",), objective=None,
        layout=layouts.Masked(input_tokens=8, target_tokens=8), batch_size=8, group_rows=4,
    )  # fmt: skip
    tasks = {"one": task, "two": task}
    schedule = mixture.Mixture().bind(tasks, 0)
    found = loader.readers(tasks, modalities, vocabulary, "train", 0.0)
    made, seen = loader.Batches(schedule, mixture.Journal(), found, vocabulary, 0), {}
    for step in range(8):
        place, _, counts = made[step]
        assert ("bad/shard" in counts) == (place.n == 0)
        seen[place.task] = seen.get(place.task, 0) + counts.get("bad/shard", 0)
    assert seen == {"one": 2, "two": 2}


# ------------------------------------------------------------------------ fields, notes, rows


def test_a_field_that_a_sample_lacks_may_be_in_the_rest(tmp_path, capsys):
    rows = [{"text": f"{i}"} for i in range(1000)]
    rows[501]["rare"] = "here"
    write_array_records(tmp_path / "x.array_record", rows)
    made = lambda **fields: ArrayRecords(files={"train": f"{tmp_path}/*"}, fields=fields)
    records = made(text="text", other="rare").open("train")
    assert "'rare' is in none of 100 records that were looked at; there are text." in (
        capsys.readouterr().err
    )
    assert records[501] == {"text": "501", "other": "here"}
    write_array_records(tmp_path / "x.array_record", rows[:100])  # all of them are looked at
    with pytest.raises(ValueError, match="'rare' is in no record"):
        made(text="text", other="rare").open("train")


NOTES = (
    "README.md", "readme", "LICENSE", "license.txt", ".DS_Store", ".hidden.txt", "__MACOSX/a.txt",
    ".git/b.txt",
)  # fmt: skip


def test_notes_and_hidden_files_are_no_records(tmp_path):
    members = [("a.txt", b"a"), ("sub/b.txt", b"b"), ("sub/readmes.txt", b"c")]
    notes = [(name, b"not data") for name in NOTES]
    tar_of(tmp_path / "x.tar", [*notes, *members])
    tar = WebDataset(files={"train": f"{tmp_path}/x.tar"}, fields={"t": "txt"}).open("train")
    assert keys(tar) == ["x.tar/a", "x.tar/sub/b", "x.tar/sub/readmes"]
    for name, content in (*members, *notes):
        (tmp_path / "stems" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "stems" / name).write_bytes(content)
    stems = Folder(files={"train": f"{tmp_path}/stems"}, fields={"t": "txt"}).open("train")
    assert keys(stems) == ["stems/a", "stems/sub/b", "stems/sub/readmes"]
    # A pattern passes over them as well.
    (tmp_path / "README.md").write_text("about")
    assert (
        len(WebDataset(files={"train": f"{tmp_path}/[xR]*"}, fields={"t": "txt"}).open("train"))
        == 3
    )


def test_files_without_a_row_are_said_once(tmp_path, capsys):
    for i in range(12):
        (tmp_path / f"{i:02}.jpg").write_bytes(b"x")
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "x.JPG").write_bytes(b"x")
    (tmp_path / "notes.txt").write_text("of another kind")
    rows = [{"file_name": f"{i:02}.jpg", "text": "a"} for i in range(6)]
    rows.append({"file_name": "./absent.jpg", "text": "b"})
    (tmp_path / "metadata.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    source = Folder(files={"train": str(tmp_path)}, fields={"image": "file_name"})
    for _ in range(2):
        source.open("train")
    said = [line for line in capsys.readouterr().err.splitlines() if "in no row" in line]
    (line,) = said
    assert line.startswith("Folder: 7 files of ")
    assert line.endswith("in no row: 06.jpg, 07.jpg, 08.jpg, 09.jpg, 10.jpg, ...")


def test_rows_of_other_splits_are_rows(tmp_path, capsys):
    for split, name in (("train", "a"), ("val", "b")):
        (tmp_path / f"{name}.png").write_bytes(b"x")
        (tmp_path / f"{split}.csv").write_text(f"file_name\n{name}.png\n")
    files = {s: f"{tmp_path}/{s}.csv" for s in ("train", "val")}
    Folder(files=files, fields={"image": "file_name"}).open("val")
    assert "in no row" not in capsys.readouterr().err


# ------------------------------------------------------------------------ many files


@pytest.mark.parametrize("kind", ["tar", "parquet", "array_record"])
def test_many_shards_need_few_descriptors(kind, tmp_path, monkeypatch):
    count = 300
    source = {"tar": WebDataset, "parquet": Parquet, "array_record": ArrayRecords}[kind]
    first = tmp_path / f"000.{kind}"
    if kind == "tar":
        tar_of(first, [("a.txt", b"a")])
    elif kind == "parquet":
        own.write_parquet(first, own.records(count=2, size=4))
    else:
        write_array_records(first, [{"text": "a"}])
    for i in range(1, count):
        os.link(first, tmp_path / f"{i:03}.{kind}")
    field = "txt" if kind == "tar" else "text"
    parquet._file.cache_clear()
    array_records._data.cache_clear()
    before = len(os.listdir("/proc/self/fd"))
    records = source(files={"train": f"{tmp_path}/*.{kind}"}, fields={"t": field}).open("train")
    assert len(os.listdir("/proc/self/fd")) <= before + 2 * 64 + 10
    for i in range(len(records)):
        assert records[i]["t"]
    assert len(os.listdir("/proc/self/fd")) <= before + 2 * 64 + 10
