"""Decodes changed files one after another, in a process with little room; told what to decode.

    python fuzz.py KIND FOLDER COUNT      prints one line `done COUNT GOOD` at the end

Each try may take SECONDS and, over all, BYTES of memory; what a decoder may raise is ValueError
(a file that is refused) or BadRecord.
"""

from __future__ import annotations

import faulthandler
import resource
import signal
import sys
from pathlib import Path

import numpy as np

from mmjax.data import folder, index, parquet, webdataset
from mmjax.data.array_records import ArrayFile, decode_record
from mmjax.data.fields import decoded as _decoded
from mmjax.data.source import BadRecord
from mmjax.modalities.audio import Audio
from mmjax.modalities.image import Image

SECONDS, BYTES = 5, 1 << 30
IMAGE, AUDIO = Image(size=(16, 16), patch=8), Audio(seconds=0.3)


def image(content: bytes, path: Path) -> None:
    piece = IMAGE.encode(content)
    assert piece is not None
    assert np.isfinite(piece.values_LP).all()


def audio(content: bytes, path: Path) -> None:
    piece = AUDIO.encode(content)
    if piece is not None:  # None: a container whose stream of sound was lost
        assert np.isfinite(piece.values_LP).all()


def tar(content: bytes, path: Path) -> None:
    path.write_bytes(content)
    table = webdataset._Tar(path, *webdataset._index(path))
    for row in range(len(table)):
        assert isinstance(table.key(row), str)
        table.read(row, table.names)


def rows(content: bytes, path: Path) -> None:
    path.write_bytes(content)
    table = parquet._Parquet(path, parquet._Groups(1 << 20))
    for row in range(min(len(table), 4)):
        table.read(row, table.names)


def record(content: bytes, path: Path) -> None:
    decode_record(content)


def array(content: bytes, path: Path) -> None:
    _decoded("npy", content)


def stored(content: bytes, path: Path) -> None:
    path.with_name("x.npz").write_bytes(content)
    index.load("x", [path.parent], 1 << 20, lambda notes, arrays: None)


def group(content: bytes, path: Path) -> None:
    path.write_bytes(content)
    table = ArrayFile(path)
    for row in range(min(len(table), 4)):
        table.raw(row)


def cells(content: bytes, path: Path) -> None:
    path.with_name("x.csv").write_bytes(content)
    table(path.with_name("x.csv"))


def lines(content: bytes, path: Path) -> None:
    path.with_name("x.jsonl").write_bytes(content)
    table(path.with_name("x.jsonl"))


def table(path: Path) -> None:
    read = folder._Rows(path, path.parent, ("image",))
    for row in range(len(read)):
        assert read.label(row)
        try:
            read.read(row, read.names)
        except BadRecord:
            continue


KINDS = {
    f.__name__: f
    for f in (image, audio, tar, rows, record, array, stored, group, cells, lines)
}  # fmt: skip


def changed(content: bytes, rng: np.random.Generator) -> bytes:
    """The bytes with a few of them changed, taken out, repeated, or cut."""
    data = bytearray(content)
    # Half of the changes go to the first bytes, where formats say what they are.
    for _ in range(rng.integers(1, 5)):
        reach = len(data) if rng.random() < 0.5 else min(len(data), 128)
        place = int(rng.integers(max(reach, 1)))
        kind = rng.integers(5)
        if kind == 0 and data:
            data[place] = int(rng.integers(256))
        elif kind == 1 and data:
            data[place] ^= 1 << int(rng.integers(8))
        elif kind == 2:
            data[place : place + 4] = rng.choice([b"\xff" * 4, b"\0" * 4, b"\x7f\xff\xff\xff"])
        elif kind == 3:
            del data[place : place + int(rng.integers(1, 32))]
        else:
            data[place:place] = data[place : place + int(rng.integers(1, 32))]
    return bytes(data[: int(rng.integers(len(data) + 1))] if rng.random() < 0.1 else data)


def main(kind: str, place: str, count: str) -> None:
    files = sorted(Path(place).glob("seed*"))
    contents = [file.read_bytes() for file in files]
    decode, path = KINDS[kind], Path(place) / "changed"
    for content in contents:
        decode(content, path)  # as they are, they are good; and everything is imported
    faulthandler.enable()
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + BYTES, used + BYTES))
    good = 0
    for i in range(int(count)):
        rng = np.random.default_rng([i, len(kind)])
        content = changed(contents[i % len(contents)], rng)
        Path(place, "last").write_bytes(content)  # what to look at after a crash
        signal.alarm(SECONDS)  # ends the process
        try:
            decode(content, path)
            good += 1
        except (ValueError, BadRecord):
            pass
        signal.alarm(0)
    print(f"done {count} {good}")


if __name__ == "__main__":
    main(*sys.argv[1:])
