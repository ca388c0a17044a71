"""Folders, tables and patterns of strangers: nothing outside is read, nothing is waited for."""

from __future__ import annotations

import itertools
import json
import os
import tarfile

import own
import peak
import pytest

from mmjax.data import fields, folder, index
from mmjax.data.array_records import ArrayRecords
from mmjax.data.folder import Folder
from mmjax.data.parquet import Parquet
from mmjax.data.source import BadRecord
from mmjax.data.tfds import TFDS
from mmjax.data.webdataset import WebDataset


@pytest.fixture
def data(tmp_path):
    (tmp_path / "secret.txt").write_bytes(b"secret")
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "good.txt").write_bytes(b"good")
    return tmp_path / "data"


def reason(records, row) -> str:
    with pytest.raises(BadRecord) as caught:
        records[row]
    assert "secret" not in str(caught.value).replace("secret.txt", "")
    return caught.value.reason


def table(data, *names, **fields) -> Folder:
    rows = "".join(f"{name},x\n" for name in names)
    (data / "metadata.csv").write_text(f"file_name,text\n{rows}")
    source = {"path": "", "files": {"train": str(data)}, "fields": {"text": "file_name"}}
    return Folder(**source | fields)


OUT = "a symbolic link in a data folder that leads out of it"
BAD = "the record is bad (outside); the run goes on"


@pytest.mark.fault(OUT, BAD)
def test_links_out_of_the_folder_of_a_table_are_refused(data):
    (data / "link.txt").symlink_to("../secret.txt")
    (data / "up").symlink_to("..")
    (data / "inside.txt").symlink_to("good.txt")
    records = table(data, "link.txt", "up/secret.txt", "inside.txt").open("train")
    assert [reason(records, row) for row in (0, 1)] == ["outside", "outside"]
    assert records[2] == {"text": b"good"}


def test_links_out_of_the_root_of_a_table_are_refused(data, tmp_path):
    (tmp_path / "root").mkdir()
    (tmp_path / "root" / "link.txt").symlink_to(data / "good.txt")
    records = table(data, "link.txt", root=str(tmp_path / "root")).open("train")
    assert reason(records, 0) == "outside"
    (tmp_path / "other").symlink_to(data)  # a root that is a link is the user's word
    assert table(data, "good.txt", root=str(tmp_path / "other")).open("train")[0]["text"] == b"good"


@pytest.mark.fault("a symbolic link out of a folder of pictures with captions beside them", BAD)
def test_links_out_of_a_folder_without_a_table_are_refused(data):
    (data / "link.txt").symlink_to("../secret.txt")
    (data / "dangling.txt").symlink_to("nowhere")
    (data / "sub").mkdir()
    (data / "sub" / "inside.txt").symlink_to("../good.txt")
    records = Folder(files={"train": str(data)}, fields={"text": "txt"}).open("train")
    keys = [records.key(row) for row in range(4)]
    assert keys == ["data/dangling", "data/good", "data/link", "data/sub/inside"]
    assert (reason(records, 0), reason(records, 2)) == ("no_file", "outside")
    assert records[1] == records[3] == {"text": b"good"}
    # And it has a fingerprint, though one of its files is not there.
    assert len(Folder(path=str(data), fields={"text": "txt"}).fingerprint()) == 64


@pytest.mark.fault(
    "a table in a data folder that is a link to another file",
    "refused at the start, with the name; path may name it",
)
@pytest.mark.parametrize("name", folder.TABLES)
def test_a_link_as_the_table_of_a_folder_is_refused(name, data, tmp_path):
    content = "file_name\nx\n" if name.endswith("csv") else '{"file_name": "x"}\n'
    (tmp_path / "private").write_text(content)
    (data / name).symlink_to(tmp_path / "private")
    with pytest.raises(ValueError, match=rf"^Folder: .*{name}.* leads out of .*path"):
        Folder(path=str(data)).open("train")
    named = Folder(files={"train": f"{tmp_path}/mine{name[8:]}"}, fields={"t": "file_name"})
    (tmp_path / f"mine{name[8:]}").symlink_to(data / name)
    assert len(named.open("train")) == 1


@pytest.mark.fault("a path in a column of a Parquet file that is a link out of its folder", BAD)
def test_links_out_of_the_folder_of_a_parquet_file_are_refused(data):
    import pyarrow
    from pyarrow import parquet

    (data / "link.txt").symlink_to("../secret.txt")
    names = ["link.txt", "../secret.txt", "good.txt"]
    column = [{"bytes": None, "path": name} for name in names]
    parquet.write_table(pyarrow.table({"text": column}), data / "t.parquet")
    records = Parquet(files={"train": f"{data}/*.parquet"}, fields={"text": "text"}).open("train")
    assert [reason(records, row) for row in (0, 1)] == ["outside", "outside"]
    assert records[2] == {"text": b"good"}


@pytest.mark.timeout(30)
def test_a_pipe_in_a_data_folder_is_a_bad_record(data):
    os.mkfifo(data / "pipe.txt")
    stems = Folder(files={"train": str(data)}, fields={"text": "txt"}).open("train")
    assert reason(stems, 1) == "no_file"
    records = table(data, "pipe.txt", "good.txt").open("train")
    assert reason(records, 0) == "no_file"
    assert records[1] == {"text": b"good"}


SOURCES = {
    "tar": WebDataset, "csv": Folder, "jsonl": Folder, "parquet": Parquet,
    "array_record": ArrayRecords,
}  # fmt: skip


@pytest.mark.fault(
    "a pipe, a device or a folder where a pattern looks for data files",
    "refused at the start, with the name; exit 2",
)
@pytest.mark.timeout(30)
@pytest.mark.parametrize(
    ("suffix", "kind"),
    [
        *itertools.product(SOURCES, ("pipe", "device")),
        *((s, "folder") for s, source in SOURCES.items() if source is not Folder),
    ],
)
def test_pipes_devices_and_folders_as_data_files_are_refused(suffix, kind, data):
    path = data / f"x.{suffix}"
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "device":
        path.symlink_to("/dev/zero")
    else:
        path.mkdir()
    source = SOURCES[suffix]
    for pattern in (f"{data}/*.{suffix}", str(path)):
        with pytest.raises(ValueError, match=rf"^{source.__name__}: .*x\.{suffix}' is a {kind}"):
            source(path=pattern).open("train")
        with pytest.raises(ValueError, match=f"is a {kind}"):
            source(path=pattern).fingerprint()


def test_a_link_that_the_pattern_names_is_read(tmp_path):
    (tmp_path / "store").mkdir()
    own.write_tar(tmp_path / "store" / "blob", own.records(count=3, size=4))
    (tmp_path / "set.tar").symlink_to("store/blob")
    records = WebDataset(files={"train": f"{tmp_path}/*.tar"}, fields={"text": "txt"}).open("train")
    assert len(records) == 3


@pytest.fixture
def prepared(tmp_path):
    own.write(tmp_path / "tfds", "tfds", own.records(count=6, size=4))
    return tmp_path / "tfds"


@pytest.mark.fault(
    "a TFDS folder whose files are links out of it, or whose template leads out",
    "refused at the start, with the name",
)
@pytest.mark.parametrize("what", ["template", "link", "info", "features"])
def test_files_of_tfds_outside_of_their_folder_are_refused(what, prepared):
    shard = prepared / "own-train.array_record-00000-of-00001"
    outside = prepared.parent / "outside"
    info = json.loads((prepared / "dataset_info.json").read_text())
    if what == "template":
        shard.rename(outside)
        info["splits"][0]["filepathTemplate"] = "../outside"
        (prepared / "dataset_info.json").write_text(json.dumps(info))
    else:
        names = {"info": "dataset_info.json", "features": "features.json", "link": shard.name}
        (prepared / names[what]).rename(outside)
        (prepared / names[what]).symlink_to(outside)
    with pytest.raises(ValueError, match=r"^TFDS: .*leads out of"):
        TFDS(path=str(prepared)).open("train")


@pytest.mark.fault(
    "a TFDS folder whose descriptions are of other types, or nested without end",
    "refused at the start, with the name",
)
@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("dataset_info.json", '{"splits": {"a": 1}}'),
        ("dataset_info.json", '{"splits": [7]}'),
        ("dataset_info.json", '{"splits": [{"name": 7, "shardLengths": []}]}'),
        ("dataset_info.json", '{"splits": [{"name": "train", "shardLengths": 1e9}]}'),
        ("dataset_info.json", "[" * 100_000),
        ("features.json", '{"featuresDict": {"features": {"a": 3}}}'),
        ("features.json", '{"featuresDict": 3}'),
        ("features.json", '{"audio": {"sampleRate": {}}}'),
        ("features.json", '{"featuresDict":{"features":{"a":' * 900 + "{}" + "}}}" * 900),
    ],
)
def test_descriptions_of_tfds_that_are_none_are_refused(name, content, prepared):
    info = json.loads((prepared / "dataset_info.json").read_text())
    (prepared / name).write_text(content)
    if name == "dataset_info.json" and content[0] == "{":
        (prepared / name).write_text(json.dumps(info | json.loads(content)))
    with pytest.raises(ValueError, match=r"^TFDS: "):
        TFDS(path=str(prepared)).open("train")


@pytest.mark.fault(
    "links that lead round in circles below a `**` of a pattern", "they are not gone into"
)
@pytest.mark.timeout(30)  # two links to their own folder make 2**40 paths
def test_circles_of_links_are_not_followed_by_a_pattern(tmp_path):
    (tmp_path / "a" / "b").mkdir(parents=True)
    for name in ("x", "y", "z"):
        (tmp_path / "a" / name).symlink_to(tmp_path)
    for name in ("1.tar", "a/2.tar", "a/b/3.tar", "a/.hidden.tar", "a/b/4.txt"):
        (tmp_path / name).write_bytes(b"")
    found = [str(path.relative_to(tmp_path)) for path in index.find(f"{tmp_path}/**/*.tar")]
    assert found == ["1.tar", "a/2.tar", "a/b/3.tar"]
    assert len(index.find(f"{tmp_path}/**/b/*")) == 2
    assert len(index.find(f"{tmp_path}/a/**")) == 3
    assert len(Folder(files={"train": f"{tmp_path}/a"}, fields={"t": "txt"}).open("train")) == 3


# ------------------------------------------------------------------------------- sizes


@pytest.mark.fault(
    "a record of more than max_record_bytes, in any format", "the record is bad (too_large)"
)
@pytest.mark.parametrize("kind", own.FORMATS)
def test_records_of_too_many_bytes_are_refused(kind, tmp_path):
    rows = own.records(count=12, size=4)
    rows[5]["text"] = "x" * 40_000
    source = own.write(tmp_path / kind, kind, rows)
    limit = 30_000 * (8 if kind == "tfds" else 1)
    records = type(source)(**{**vars(source), "max_record_bytes": limit}).open("train")
    found = []
    for row in range(len(records)):
        try:
            found.append(len(records[row]["text"]))
        except BadRecord as bad:
            found.append(bad.reason)
    splits = [source.open(s) for s in ("train", "val")]
    there = [len(r[i]["text"]) for r in splits for i in range(len(r))]
    assert max(there) == 40_000  # by the default limit it is read
    in_train = 40_000 in [len(splits[0][i]["text"]) for i in range(len(splits[0]))]
    assert found.count("too_large") == in_train
    assert in_train, "take another row: the key of this one is in val"


def test_the_limit_of_a_record_changes_no_fingerprint_and_must_let_something_in(tmp_path):
    source = own.write(tmp_path, "stems", own.records(count=3, size=4))
    other = type(source)(**{**vars(source), "max_record_bytes": 1000})
    assert source.fingerprint() == other.fingerprint()
    with pytest.raises(ValueError, match="max_record_bytes=0 must be a whole number from 1"):
        Folder(path="x", max_record_bytes=0)


@pytest.mark.fault(
    "a member of a tar file that is a terabyte of nothing (sparse)", "the record is bad (too_large)"
)
def test_a_huge_member_of_a_tar_file_is_refused(tmp_path):
    info = tarfile.TarInfo("a.txt")
    info.size = 1 << 40
    with (tmp_path / "x.tar").open("wb") as file:
        file.write(info.tobuf(tarfile.GNU_FORMAT))
        file.truncate(info.size + 3 * 512)
    records = WebDataset(files={"train": f"{tmp_path}/x.tar"}, fields={"t": "txt"}).open("train")
    assert reason(records, 0) == "too_large"


@pytest.mark.fault(
    "a JSON field of many megabytes, which would take gigabytes", "the record is bad"
)
def test_json_fields_that_are_too_large_are_refused():
    content = b"[" + b"[]," * (fields.MAX_JSON // 3) + b"[]]"
    with pytest.raises(BadRecord, match="bytes of JSON, more than") as caught:
        fields.decoded("json", content)
    assert caught.value.reason == "no_json"
    with pytest.raises(BadRecord):
        fields.decoded("cls", b"9" * 100_000)


@pytest.mark.fault(
    "a table of too many bytes or cells, or with a line without end",
    "refused at the start, or the row is bad",
)
def test_tables_that_are_too_large_are_refused(data, monkeypatch):
    for name in ("MAX_TABLE", "MAX_CELLS", "MAX_CELL", "MAX_JSON"):
        monkeypatch.setattr(folder, name, 100)
    (data / "m.jsonl").write_text('{"text": "a"}\n{"text": "' + "b" * 300 + '"}\n{"text": "c"}\n')
    with pytest.raises(ValueError, match="bytes, more than 100, and is kept in memory"):
        Folder(path=f"{data}/m.jsonl").open("train")
    monkeypatch.setattr(folder, "MAX_TABLE", 1 << 20)
    records = Folder(files={"train": f"{data}/m.jsonl"}, fields={"text": "text"}).open("train")
    assert [records[0], records[2]] == [{"text": "a"}, {"text": "c"}]
    assert reason(records, 1) == "row"
    (data / "m.csv").write_text("a,b\n" + "1,2\n" * 60)
    with pytest.raises(ValueError, match="more than 100 cells"):
        Folder(path=f"{data}/m.csv").open("train")
    (data / "m.csv").write_text("a,b\n" + "1" * 200 + ",2\n")
    with pytest.raises(ValueError, match="a line of more than 100 characters"):
        Folder(path=f"{data}/m.csv").open("train")


@pytest.mark.ci
def test_a_json_table_takes_no_more_memory_than_its_file(data):
    line = '{"a": [' + "[]," * 2000 + "[]]}\n"
    (data / "m.jsonl").write_text(line * 5000)  # 30 MB, a gigabyte of lists
    code = f"""
records = Folder(files={{"train": {str(data / "m.jsonl")!r}}}).open("train")
assert len(records[4999]["a"]) == 2001"""
    megabytes, _ = peak.of("from mmjax.data.folder import Folder", code)
    assert megabytes < 150


def test_names_that_are_endless_are_told_in_short(tmp_path):
    with tarfile.open(tmp_path / "x.tar", "w", format=tarfile.PAX_FORMAT) as tar:
        for i in range(2):
            own.add(tar, f"{i}\x1b[2J\n{'k' * 3000}.txt", b"\xff")
    source = WebDataset(path=f"{tmp_path}/x.tar", fields={"t": "txt"}, key="__key__",
                        shares={"train": 1.0})  # fmt: skip
    from mmjax.data.source import key_of

    records = source.open("train")
    assert len(records) == 2
    told = key_of(records, 0)
    assert len(told) <= 200
    assert told.isprintable()
    assert "\\x1b[2J\\n" in told
    bad = BadRecord("x", "caption\nmmjax: all is well\x1b[1A" + "y" * 10_000)
    assert bad.detail.startswith("caption\\nmmjax: all is well\\x1b[1A")
    assert len(bad.detail) <= 500
