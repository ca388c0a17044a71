"""Files that data names: what is refused, and that nothing waits or is opened for it."""

from __future__ import annotations

import contextlib
import os
import socket

import pytest

from mmjax.files import confined


@pytest.fixture(params=[True, False], ids=["by handle", "by name"])
def root(tmp_path, request, monkeypatch):
    """Both ways: that of Linux, and that of other systems."""
    assert confined.HAS_HANDLES, "this way is not tested here"
    monkeypatch.setattr(confined, "HAS_HANDLES", request.param)
    (tmp_path / "data" / "inner").mkdir(parents=True)
    (tmp_path / "secret.txt").write_bytes(b"secret")
    (tmp_path / "data" / "a.txt").write_bytes(b"ours")
    return tmp_path / "data"


def test_a_link_from_a_root_to_the_same_root_is_followed(root, tmp_path):
    (root / "inner" / "b.txt").symlink_to("../a.txt")
    assert confined.read(root / "inner" / "b.txt", 10, root) == b"ours"
    (tmp_path / "linked").symlink_to(root)  # the root itself, which the user names, may be a link
    assert (
        confined.read(tmp_path / "linked" / "inner" / "b.txt", 10, tmp_path / "linked") == b"ours"
    )


@pytest.mark.parametrize("name", ["file", "folder/secret.txt", "twice"])
def test_links_out_of_a_root_are_refused(name, root, tmp_path):
    (root / "file").symlink_to(tmp_path / "secret.txt")
    (root / "folder").symlink_to(tmp_path)
    (root / "twice").symlink_to("file")
    with pytest.raises(confined.Refused, match="leads out of") as caught:
        confined.read(root / name, 10, root)
    assert caught.value.reason == "outside"
    assert confined.read(root / name, 10) == b"secret"  # where the user names it


def test_a_folder_of_another_name_that_begins_alike_is_outside(root, tmp_path):
    (tmp_path / "data-2").mkdir()
    (tmp_path / "data-2" / "x").write_bytes(b"")
    with pytest.raises(confined.Refused, match="leads out of"):
        confined.read(root / ".." / "data-2" / "x", 10, root)


def test_no_descriptor_is_left_open(root, tmp_path):
    (root / "out").symlink_to(tmp_path / "secret.txt")
    before = os.listdir("/proc/self/fd")
    for _ in range(20):
        assert confined.read(root / "a.txt", 10, root) == b"ours"
        for name in ("out", "absent", "inner"):
            with pytest.raises((OSError, confined.Refused)):
                confined.read(root / name, 10, root)
        with pytest.raises((FileNotFoundError, confined.Refused)):
            confined.read(root / "a.txt", 10, tmp_path / "absent")
    assert len(os.listdir("/proc/self/fd")) == len(before)


@pytest.mark.fault(
    "a pipe, a socket or a device among the files of a data set",
    "it is not opened, so nothing waits; the record is bad (no_file)",
)
@pytest.mark.timeout(20)  # reading a pipe that nobody writes to would last for ever
@pytest.mark.parametrize("kind", ["pipe", "pipe behind a link", "socket", "device", "folder"])
def test_pipes_sockets_devices_and_folders_are_refused_unopened(kind, root, monkeypatch):
    path = root / "x"
    if kind.startswith("pipe"):
        os.mkfifo(root / "pipe")
        path.symlink_to("pipe")
        path = path if "link" in kind else root / "pipe"
    elif kind == "socket":
        server = socket.socket(socket.AF_UNIX)
        monkeypatch.chdir(root)  # the name of a socket is short
        server.bind("x")
    elif kind == "device":
        path = "/dev/zero"
    else:
        path.mkdir()
    with pytest.raises(confined.Refused, match=f"is a {kind.split()[0]}, no file") as caught:
        confined.read(path, 10, root if kind != "device" else None)
    assert caught.value.reason == "no_file"


def test_a_pipe_that_takes_the_place_of_a_file_is_not_waited_for(root, monkeypatch):
    os.mkfifo(root / "pipe")
    monkeypatch.setattr(confined.os, "lstat", lambda path: os.stat(root / "a.txt"))
    for _ in range(20):
        with pytest.raises(confined.Refused, match="is a pipe"):
            confined.read(root / "pipe", 10)
    opened = []
    for name in os.listdir("/proc/self/fd"):  # of this process, whose other threads open files too
        with contextlib.suppress(OSError):
            opened.append(os.readlink(f"/proc/self/fd/{name}"))
    assert str(root / "pipe") not in opened  # each was closed again


@pytest.mark.fault("a file of a terabyte in a data folder", "the record is bad (too_large), unread")
def test_files_that_are_too_large_are_not_read(root):
    os.truncate(root / "a.txt", 1 << 40)  # sparse
    with pytest.raises(confined.Refused, match="more than 1000") as caught:
        confined.read(root / "a.txt", 1000)
    assert caught.value.reason == "too_large"
    with pytest.raises(confined.Refused):
        confined.read("/proc/self/environ", 1)  # its size is said to be 0


def test_files_that_grow_or_say_no_size_are_read_whole(root):
    assert confined.read("/proc/self/status", 1 << 20).startswith(b"Name:")
    (root / "b").write_bytes(b"x" * 100_000)
    assert confined.read(root / "b", 100_000) == b"x" * 100_000
    (root / "b").write_bytes(b"")
    assert confined.read(root / "b", 0) == b""


def test_names_that_are_none_are_refused(root):
    with pytest.raises(confined.Refused, match="no name of a file"):
        confined.read(root / "a\0b", 10, root)
    (root / "loop").symlink_to("loop")
    with pytest.raises(confined.Refused, match="a link to itself"):
        confined.read(root / "loop", 10, root)
    with pytest.raises(FileNotFoundError):
        confined.read(root / "absent", 10, root)
    with pytest.raises(OSError, match="too long"):
        confined.read(root / ("a" * 5000), 10, root)
