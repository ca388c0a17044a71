"""Paths of a bucket: few round trips, and no answer is not the answer that nothing is there."""

from __future__ import annotations

import contextlib
import subprocess
import sys

import pytest

from mmjax import errors, files
from mmjax.files import bucket


def test_listings_longer_than_a_page(service, address):
    folder = files.given(address)
    for i in range(20):  # a page has seven
        service.put(f"{address}/many/{i:02}.txt", b"x")
    assert [p.name for p in files.children(folder / "many", "*.txt")] == [
        f"{i:02}.txt" for i in range(20)
    ]
    assert len(list(files.entries(folder))) == 20
    files.delete_tree(folder / "many")
    assert service.names(address) == []


def test_what_is_there(service, address):
    folder = files.given(address)
    assert not files.exists(folder)
    assert files.children(folder, "*") == []
    service.put(f"{address}/a/b.txt", b"1")
    service.put(f"{address}/ab.txt", b"2")
    assert files.exists(folder / "a")
    assert not files.exists(folder / "a" / "b")  # the start of a name is not a folder
    assert (files.kind(folder / "a"), files.kind(folder / "ab.txt")) == ("folder", "file")
    assert [p.name for p in files.children(folder, "*")] == ["a", "ab.txt"]
    assert [e.name for e in files.entries(folder)] == ["a/b.txt", "ab.txt"]
    with pytest.raises(FileNotFoundError):
        files.kind(folder / "c")


def test_a_file_is_replaced_by_one_upload(service, address):
    path = files.given(address) / "x.json"
    files.write_json(path, {"a": 1})
    with service.watched() as calls:
        files.write_json(path, {"a": 2})
    assert [call.method for call in calls] == ["POST"]
    assert files.read_json(path) == {"a": 2}
    with contextlib.suppress(RuntimeError), files.replacing(path) as partial:
        partial.write_text("half")
        raise RuntimeError
    assert files.read_json(path) == {"a": 2}
    assert service.names(address) == ["x.json"]


def test_reads_are_bounded(service, address):
    service.put(f"{address}/empty", b"")
    service.put(f"{address}/long", b"x" * 100)
    folder = files.given(address)
    assert files.read_bytes(folder / "empty", 10) == b""
    assert files.read_bytes(folder / "long", 100) == b"x" * 100
    with pytest.raises(files.DamagedFile, match="more than 99 bytes"):
        files.read_bytes(folder / "long", 99)
    with pytest.raises(files.DamagedFile, match="missing"):
        files.read_bytes(folder / "none", 99)


def test_quarantine_copies_then_deletes(service, address):
    folder = files.given(address)
    for i in range(9):
        service.put(f"{address}/4/{i}", b"%d" % i)
    files.quarantine(folder / "4", folder, "for a test")
    names = service.names(address)
    assert len(names) == 9
    assert all(name.startswith("quarantine/4-") for name in names)
    assert service.read(f"{address}/{names[3]}") == b"3"


@pytest.mark.fault(
    "a bucket does not answer when a run looks whether it has checkpoints",
    "exit 74; it is not taken for an empty one",
)
def test_no_answer_is_an_error_and_not_an_absence(service, address, monkeypatch):
    monkeypatch.setattr("gcsfs.retry.asyncio.sleep", _soon)
    service.put(f"{address}/checkpoints/4/manifest.json", b"{}")
    service.fail(503, times=float("inf"))
    folder = files.given(address)
    looks = (
        lambda: files.exists(folder),
        lambda: files.children(folder, "*"),
        lambda: list(files.entries(folder)),
        lambda: files.kind(folder),
        lambda: files.read_json(folder / "checkpoints" / "4" / "manifest.json"),
    )
    for look in looks:
        with pytest.raises(errors.StorageError, match="answers 503 after several tries"):
            look()


async def _soon(seconds):
    del seconds


@pytest.mark.parametrize("path", ["gcs://bucket/x", "http://host/x"])
def test_other_schemes_are_refused(path):
    with pytest.raises(errors.ConfigError, match=r"is no place.*gs://"):
        files.given(path)


def test_without_gcsfs_the_extra_is_named():
    program = (
        "import sys; sys.modules['gcsfs'] = None\n"
        "from mmjax import files\n"
        "try: files.exists(files.given('gs://bucket/x'))\n"
        "except Exception as error: print(type(error).__name__, error)"
    )
    said = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True).stdout
    assert said.startswith("ConfigError Path 'gs://bucket/x': ")
    assert "pip install 'mmjax[cloud]'" in said


@pytest.mark.parametrize(
    ("fault", "text"),
    [("read_only", "permission denied"), ("full", "is full"), ("closed", "no valid credentials")],
)
def test_writes_that_are_refused(service, address, fault, text):
    setattr(service, fault, True)
    with pytest.raises(errors.StorageError, match=f"x.json: .*{text}"):
        files.write_json(files.given(address) / "x.json", {})


def test_an_absent_bucket_is_asked_for_once(service, address):
    for look in (files.exists, lambda p: files.children(p, "*"), lambda p: list(files.entries(p))):
        with pytest.raises(errors.ConfigError, match="no bucket 'mmjax-none'"):
            look(files.given("gs://mmjax-none/run"))
    files.exists(files.given(address))
    with service.watched() as calls:
        files.exists(files.given(address))
    assert not [call for call in calls if call.path.endswith("mmjax-test/o") and not call.name]
    assert bucket._seen == {"gs://mmjax-test"}
