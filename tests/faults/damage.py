"""Seeded damage to the files of a workdir: bits, blocks, cuts, JSON values, links, deletions."""

from __future__ import annotations

import json
import os
import random
from collections.abc import Callable
from pathlib import Path

BLOCK = 4096


def flip(data: bytearray, rng: random.Random) -> bytes:
    """One bit."""
    data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    return bytes(data)


def cut(data: bytearray, rng: random.Random) -> bytes:
    """The end is missing."""
    return bytes(data[: rng.randrange(len(data))])


def zero(data: bytearray, rng: random.Random) -> bytes:
    """A block that was never written."""
    start = rng.randrange(len(data))
    stop = min(len(data), start + BLOCK)
    data[start:stop] = bytes(stop - start)
    return bytes(data)


def swap(data: bytearray, rng: random.Random) -> bytes:
    """Two parts in the wrong order."""
    at = rng.randrange(len(data))
    return bytes(data[at:] + data[:at])


def double(data: bytearray, rng: random.Random) -> bytes:
    """A part twice."""
    at = rng.randrange(len(data))
    return bytes(data[:at] + data[at // 2 :])


def append(data: bytearray, rng: random.Random) -> bytes:
    """Something behind the end."""
    return bytes(data) + rng.randbytes(rng.randrange(1, 64))


def empty(data: bytearray, rng: random.Random) -> bytes:
    """Nothing."""
    return b""


def edit(data: bytearray, rng: random.Random) -> bytes:
    """Another value, a key less or a key more in JSON; other files get a random byte."""
    try:
        tree = json.loads(data)
    except ValueError:
        data[rng.randrange(len(data))] = rng.randrange(256)
        return bytes(data)
    places: list = []

    def walk(value) -> None:
        items = list(value.items() if isinstance(value, dict) else enumerate(value))
        for key, inner in items:
            places.append((value, key))
            if isinstance(inner, (dict, list)) and inner:
                walk(inner)

    walk(tree)
    holder, key = rng.choice(places)
    choice = rng.randrange(4)
    if choice == 0:
        del holder[key]
    elif choice == 1:
        holder[key] = rng.choice([None, -1, 10**30, "", "../../x", [], {}, 99, 1.5, True])
    elif choice == 2 and isinstance(holder, dict):
        holder["added"] = 1
    elif holder[key] == []:
        holder[key] = [[0, {"weights": {"text": 9.0}}]]  # an event, in a journal without any
    elif isinstance(holder[key], (int, float)):
        holder[key] = holder[key] + 1
    else:
        holder[key] = "x"
    return json.dumps(tree).encode()


CONTENT: tuple[Callable[[bytearray, random.Random], bytes], ...] = (
    *(flip, flip, cut, zero, swap, double, append, empty, edit, edit),
)
KINDS = (*(f.__name__ for f in dict.fromkeys(CONTENT)), "delete", "link", "pipe", "folder")


def apply(path: Path, rng: random.Random) -> str:
    """Damages a file in some way; says how."""
    kind = rng.choice([*CONTENT, *CONTENT, "delete", "delete", "link", "pipe", "folder"])
    if callable(kind):
        before = path.read_bytes()
        if not before:
            after, kind = b"\0", append
        else:
            after = kind(bytearray(before), rng)
        path.unlink()  # the copy may share its content with the original
        path.write_bytes(after)
        return f"{kind.__name__} {path}"
    path.unlink()
    if kind == "link":
        elsewhere = path.parent / f"../{path.name}.elsewhere"
        elsewhere.write_bytes(rng.randbytes(100))
        path.symlink_to(os.path.abspath(elsewhere))
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    return f"{kind} {path}"
