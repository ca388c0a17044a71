"""Cards that show values on a page: images, players, texts, boxes, named numbers."""

from __future__ import annotations

import base64
import contextlib
import io
import json
import struct
import wave
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from mmjax.files import confined
from mmjax.report import arrays, frame

MEDIA = {  # suffix -> media type of a data URL
    ".png": "image/png",
    ".jpg": "image/jpeg",
    ".jpeg": "image/jpeg",
    ".gif": "image/gif",
    ".webp": "image/webp",
    ".bmp": "image/bmp",
    ".avif": "image/avif",
    ".wav": "audio/wav",
    ".mp3": "audio/mpeg",
    ".flac": "audio/flac",
    ".ogg": "audio/ogg",
}
MAX_BYTES = 5_000_000  # of a file embedded in the page
BARS = 64  # of a drawn waveform
OPEN = 6  # pairs that are not collapsed


def gallery(entries: Sequence[dict[str, Any]]) -> str:
    """Cards by pair of modalities: inputs and outputs; further pairs are collapsed."""
    cells: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for entry in entries:
        pair = (" + ".join(entry["given"]) or "nothing", " + ".join(entry["wanted"]))
        cells.setdefault(pair, []).append(entry)
    shape = picture_shape(value for entry in entries for value in _values(entry))
    blocks = []
    for (given, wanted), some in cells.items():
        arrow = '<span aria-label="to">&rarr;</span>'
        title = f"{frame.escape(given)} {arrow} {frame.escape(wanted)}"
        blocks.append(cell(title, [_sample(e, picture_shape(_values(e), shape)) for e in some]))
    return _opened(blocks, "pair")


def is_retrieved(entry: dict[str, Any]) -> bool:
    """Whether a sample is of retrieval: what was found for a query, and the place of the right."""
    return type(entry.get("rank")) is int and type(entry.get("gallery")) is int


def hits(entries: Sequence[dict[str, Any]]) -> str:
    """Cards of retrieval by direction: query, what was found, and what was right."""
    cells: dict[tuple[str, str], list[str]] = {}
    for entry in filter(is_retrieved, entries):
        pair = (" + ".join(entry["given"]), " + ".join(entry["wanted"]))
        cells.setdefault(pair, []).append(_retrieved(entry))
    arrow = '<span aria-label="to">&rarr;</span>'
    blocks = [
        cell(f"{frame.escape(given)} {arrow} {frame.escape(wanted)}", cards)
        for (given, wanted), cards in cells.items()
    ]
    return _opened(blocks, "direction")


def _retrieved(entry: dict[str, Any]) -> str:
    shape = picture_shape([*_values(entry), *entry.get("right", {}).values()])
    side = lambda values: "".join(show(name, v, shape) for name, v in values.items())
    is_hit = entry["rank"] == 1
    arrow = '<div class="arrow" aria-hidden="true">&darr;</div>'
    content = f"{side(entry['given'])}{arrow}{side(entry['wanted'])}"
    if not is_hit:
        content += f'<p class="label">right was</p>{side(entry.get("right", {}))}'
    place = f"{entry['rank']:,} of {entry['gallery']:,}"
    more = f"first of {entry['gallery']:,}" if is_hit else f"the right one is {place}"
    return card(content, f"{_mark(float(is_hit))} &middot; {more}")


def _opened(blocks: Sequence[str], word: str) -> str:
    """Blocks, of which all but the first are collapsed; empty if there is none."""
    if not blocks:
        return ""
    first, more = "".join(blocks[:OPEN]), blocks[OPEN:]
    if more:
        count = f"{len(more)} more {word}{'s' if len(more) > 1 else ''}"
        first += f"<details><summary>{count}</summary>{''.join(more)}</details>"
    return f'<div class="gallery">{first}</div>'


def cell(title: str, cards: Iterable[str]) -> str:
    """Cards side by side under a title; all arguments are HTML."""
    shown = f'<div class="cards">{"".join(cards)}</div>'
    return f'<section class="cell"><h3>{title}</h3>{shown}</section>'


def card(content: str, foot: str) -> str:
    """A card with content and caption; both HTML."""
    shown = f'<div class="content">{content}</div><footer>{foot}</footer>'
    return f'<article class="sample card">{shown}</article>'


def _values(entry: dict[str, Any]) -> list[Any]:
    return [*entry["given"].values(), *entry["wanted"].values()]


def _sample(entry: dict[str, Any], shape: tuple[int, int]) -> str:
    given = "".join(show(name, v, shape) for name, v in entry["given"].items())
    wanted = "".join(show(name, v, shape) for name, v in entry["wanted"].items())
    foot = [_mark(v) for v in entry.get("score", {}).values() if isinstance(v, (int, float))]
    foot += [frame.escape(str(entry["note"]))] if entry.get("note") else []
    arrow = '<div class="arrow" aria-hidden="true">&darr;</div>'
    return card(f"{given}{arrow}{wanted}", " &middot; ".join(foot))


def _mark(score: float) -> str:
    if score in (0, 1):
        kind, sign, word = ("good", "&#10003;", "right") if score else ("bad", "&#10007;", "wrong")
        return f'<span class="{kind}">{sign} {word}</span>'
    return f"<span>score {score:.2f}</span>"


def show(name: str, value: Any, shape: tuple[int, int]) -> str:
    """A value as HTML: a file by its suffix, or text. `shape`: (height, width) behind boxes."""
    if isinstance(value, str):
        return f'<p class="said">{frame.escape(value) or "<i>nothing</i>"}</p>'
    suffix, label = value.suffix.lower(), frame.escape(f"{name}: {value.name}")
    is_read = suffix in (".txt", ".json", ".npy", *MEDIA)
    content = _content(value, MAX_BYTES) if is_read else b""
    if suffix == ".txt" and content is not None:
        return show(name, content.decode("utf-8", "replace"), shape)
    if suffix == ".json" and content:
        with contextlib.suppress(ValueError, TypeError, RecursionError):
            return _json(name, json.loads(content), shape)
        content = b""
    if suffix == ".npy" and content:
        if (picture := arrays.drawn(content)) is not None:
            return _image("image/png", picture[0], label) + f'<p class="soft">{picture[1]}</p>'
        content = b""
    if not content:
        return f'<p class="soft">{frame.escape(value.name)} is not shown</p>'
    if MEDIA[suffix].startswith("image/"):
        return _image(MEDIA[suffix], content, label)
    address = _address(MEDIA[suffix], content)
    picture = waveform(content) if suffix == ".wav" else ""
    return (
        f'{picture}<audio controls preload="metadata" src="{address}" aria-label="{label}"></audio>'
    )


def _address(kind: str, content: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def _image(kind: str, content: bytes, label: str) -> str:
    return f'<img src="{_address(kind, content)}" alt="{label}">'


def _content(file: Any, limit: int) -> bytes | None:
    """The bytes of a file; None if it is larger than `limit` or unreadable."""
    with contextlib.suppress(OSError, confined.Refused):
        return confined.read(file, limit)
    return None


def _json(name: str, value: Any, shape: tuple[int, int]) -> str:
    if isinstance(value, dict):
        pairs = [(frame.escape(str(k)), frame.escape(_plain(v))) for k, v in value.items()]
        rows = "".join(f'<tr><th scope="row">{k}</th><td>{v}</td></tr>' for k, v in pairs)
        return f'<table class="named">{rows}</table>' if rows else show(name, "", shape)
    if isinstance(value, list) and all(_is_box(b) for b in value):
        return boxes(name, value, shape)
    return show(name, _plain(value), shape)


def _is_box(value: Any) -> bool:
    return (
        isinstance(value, list)
        and len(value) == 4
        and all(isinstance(x, (int, float)) and abs(x) < 1e6 for x in value)
    )


def _plain(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def boxes(name: str, corners: Sequence[Sequence[float]], shape: tuple[int, int]) -> str:
    """Boxes x0, y0, x1, y1 in 0..1, drawn on an empty image of that shape."""
    height, width = shape
    inside = "".join(
        f'<rect class="c{i % 8}" x="{x0 * width:.2f}" y="{y0 * height:.2f}"'
        f' width="{(x1 - x0) * width:.2f}" height="{(y1 - y0) * height:.2f}"/>'
        for i, (x0, y0, x1, y1) in enumerate(corners)
    )
    return (
        f'<svg class="boxes" viewBox="0 0 {width} {height}" role="img"'
        f' aria-label="{frame.escape(name)}: {len(corners)} boxes">{inside}</svg>'
    )


def waveform(content: bytes) -> str:
    """The waveform of a 16-bit WAV file as bars; empty for other files."""
    try:
        with wave.open(io.BytesIO(content)) as file:
            if file.getsampwidth() != 2:
                return ""
            samples = np.frombuffer(file.readframes(file.getnframes()), "<i2")
    except (wave.Error, EOFError, ValueError):
        return ""
    parts = np.array_split(np.abs(samples.astype(np.float32)), BARS)
    peaks = np.array([part.max(initial=0) for part in parts])
    tall = np.maximum(peaks / max(peaks.max(), 1) * 15, 0.5)
    path = "".join(f"M{2 * i + 1} {16 - t:.1f}v{2 * t:.1f}" for i, t in enumerate(tall))
    return (
        f'<svg class="wave" viewBox="0 0 {2 * BARS} 32" preserveAspectRatio="none"'
        f' aria-hidden="true"><path d="{path}"/></svg>'
    )


def picture_shape(values: Iterable[Any], other: tuple[int, int] = (1, 1)) -> tuple[int, int]:
    """(height, width) of the first PNG file among values; `other` if there is none."""
    for value in values:
        if not isinstance(value, str) and value.suffix.lower() == ".png":
            head = (_content(value, MAX_BYTES) or b"")[:24]
            if head.startswith(b"\x89PNG") and len(head) == 24:
                width, height = struct.unpack(">II", head[16:])
                return height, width
    return other
