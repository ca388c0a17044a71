"""Data of a bucket on a local disk: found, copied once, checked, bounded."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys

import own
import PIL.Image
import pyarrow
import pytest
from pyarrow import parquet

from mmjax.config import ConfigError
from mmjax.data import found, sizes, staging, started
from mmjax.data.array_records import ArrayRecords, write_array_records
from mmjax.data.folder import Folder
from mmjax.data.parquet import Parquet
from mmjax.data.webdataset import WebDataset
from mmjax.files.bucket import Stat

ROWS = [{"text": f"text {i}", "n": i} for i in range(6)]
ALL = {"shares": {"train": 1.0}}


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv(staging.VARIABLE, raising=False)
    staging._place.cache_clear()
    yield
    for number in staging._held.values():
        os.close(number)
    staging._held.clear()
    staging._folders.clear()
    staging._place.cache_clear()


def uploaded(service, address, folder) -> str:
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        service.put(f"{address}/{path.relative_to(folder).as_posix()}", path.read_bytes())
    return address


def texts(source) -> list[str]:
    records = source.open("train")
    found = sorted(str(records[i]["text"]) for i in range(len(records)))
    return [text.removeprefix("b'").removesuffix("'") for text in found]


def test_every_format_reads_a_bucket_as_a_disk(service, address, tmp_path):
    folder = tmp_path / "data"
    (folder / "pairs").mkdir(parents=True)
    write_array_records(folder / "a.array_record", ROWS)
    for i in range(2):
        table = pyarrow.Table.from_pylist(ROWS[3 * i : 3 * i + 3])
        parquet.write_table(table, folder / f"p-{i:03}.parquet")
    for i, row in enumerate(ROWS):
        (folder / "pairs" / f"{i}.text").write_text(row["text"])
        PIL.Image.new("L", (4, 4), i).save(folder / "pairs" / f"{i}.png")
    subprocess.run(
        ["tar", "-cf", folder / "w.tar", "--sort=name", "-C", folder / "pairs", "."], check=True
    )
    uploaded(service, address, folder)
    for make in (
        lambda top: ArrayRecords(path=f"{top}/*.array_record", **ALL),
        lambda top: Parquet(path=f"{top}/p-{{000..001}}.parquet", **ALL),
        lambda top: Folder(path=f"{top}/pairs", **ALL),
        lambda top: WebDataset(path=f"{top}/**/w.tar", **ALL),
    ):
        here, there = make(str(folder)), make(address)
        assert texts(there) == texts(here) == [row["text"] for row in ROWS]
        assert there.fingerprint() == here.fingerprint()


def test_a_table_of_a_bucket_brings_the_files_beside_it(service, address):
    service.put(f"{address}/d/metadata.csv", b"file_name,text\nx/1.txt,one\n")
    service.put(f"{address}/d/x/1.txt", b"content")
    for path in (f"{address}/d", f"{address}/d/metadata.csv"):
        records = Folder(path=path, **ALL).open("train")
        assert records[0]["file_name"] == b"content"


def test_copies_are_used_again_until_the_object_changes(service, address):
    service.put(f"{address}/a.bin", b"one")
    downloads = lambda calls: [c for c in calls if "/download/" in c.path]
    with service.watched() as calls:
        (path,) = staging.find(f"{address}/a.bin")
    assert len(downloads(calls)) == 1
    with service.watched() as calls:
        assert staging.find(f"{address}/*.bin") == [path]
    assert not downloads(calls)
    service.put(f"{address}/a.bin", b"two")  # of the same size
    staging.find(f"{address}/a.bin")
    assert path.read_bytes() == b"two"
    path.write_bytes(b"cut off"[:1])
    staging.find(f"{address}/a.bin")
    assert path.read_bytes() == b"two"


@pytest.mark.fault(
    "data in a bucket are larger than the room for their copies", "refused with the sizes; exit 2"
)
def test_more_than_the_room_is_refused(service, address, monkeypatch):
    monkeypatch.setenv(staging.VARIABLE, "100")
    service.put(f"{address}/a.bin", b"x" * 101)
    with pytest.raises(ConfigError, match=r"101 bytes are more than the 100.*MMJAX_STAGING_BYTES"):
        staging.find(f"{address}/a.bin")
    monkeypatch.setenv(staging.VARIABLE, "much")
    with pytest.raises(ConfigError, match="MMJAX_STAGING_BYTES='much' is no number"):
        staging.find(f"{address}/a.bin")


@pytest.mark.parametrize(
    ("kind", "pattern", "path"),
    [("tar", "/*.tar", "/*.tar"), ("tar", "", "/*.tar"), ("stems", "", ""), ("csv", "/", "")],
)
def test_sizes_come_from_the_data_where_they_are_read_anyway(
    kind, pattern, path, service, address, tmp_path, capfd
):
    own.write(tmp_path / "data", kind, own.records(count=40))
    data = uploaded(service, address, tmp_path / "data") + pattern
    assumed = sizes.of_source(found.source_of(data))
    assert assumed == sizes.Sizes()
    assert "default ones until `mmjax train`" in capfd.readouterr().err
    with started.making_config_for(""):
        source = found.source_of(data)
        measured = sizes.of_source(source)
    here = found.source_of(f"{tmp_path / 'data'}{pattern}")
    assert source.path == address + path
    assert dataclasses.replace(source, path=here.path) == here
    assert measured == sizes.of_source(here) != assumed
    assert set(measured.modalities) == {"image", "text", "audio"}


def test_data_of_a_bucket_that_are_not_there_get_default_sizes(service, address):
    with started.making_config_for(""):
        assert sizes.of_source(found.source_of(f"{address}/none/*.tar")) == sizes.Sizes()


COPY = "import sys; from mmjax.data import staging; print(staging.find(sys.argv[1])[0])"


@pytest.mark.slow
def test_what_was_used_least_lately_makes_room_unless_it_is_read(service, address, monkeypatch):
    monkeypatch.setenv(staging.VARIABLE, "250")
    paths = {}
    for name in "abc":
        service.put(f"{address}/{name}/x.bin", b"x" * 80)
    for name in "ab":  # of processes that have ended
        command = [sys.executable, "-c", COPY, f"{address}/{name}/x.bin"]
        said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        paths[name] = said.strip()
        folder = os.path.dirname(paths[name])
        os.utime(folder, (os.stat(folder).st_atime, {"a": 2e9, "b": 1e9}[name]))
    (paths["c"],) = staging.find(f"{address}/c/x.bin")
    assert os.path.exists(paths["a"])
    assert not os.path.exists(paths["b"])
    monkeypatch.setenv(staging.VARIABLE, "150")
    with pytest.raises(ConfigError, match=r"do not fit beside \d+ of copies"):
        staging.find(f"{address}/b/x.bin")
    assert os.path.exists(paths["c"])  # this process reads it


@pytest.mark.fault("an object of a bucket is named to lead out of its folder", "refused; exit 2")
def test_names_that_lead_out_are_refused(address, monkeypatch):
    # The emulator refuses such names; a real bucket takes them.
    names = {"a.txt": Stat(1, "1"), "../../out.txt": Stat(1, "1")}
    monkeypatch.setattr(staging.bucket, "listing", lambda folder: names)
    with pytest.raises(ValueError, match="is no name of a file"):
        staging.find(f"{address}/d")


def test_what_is_absent_is_named_as_it_was_given(service, address):
    for path in (f"{address}/none.tar", f"{address}/*.tar"):
        with pytest.raises(ValueError, match=r"gs://mmjax-test/runs/one/.*tar' does not exist"):
            WebDataset(path=path, **ALL).open("train")
