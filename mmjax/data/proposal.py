"""Sizes that fit the data: proposed from what was measured, with the reason of each."""

from __future__ import annotations

import collections
import dataclasses
import math
import re
import tempfile
from collections.abc import Iterator, Sequence
from typing import Any

from mmjax.data.measure import WHOLE, Lengths, Measured, Stream
from mmjax.tokenizers.sentencepiece import SentencePiece

__all__ = ["Choice", "Proposal", "propose"]

GRIDS = ((8, 8), (6, 10), (10, 6), (4, 16), (16, 4), (2, 32), (32, 2))  # rows, columns of patches
PATCHES = (2, 4, 6, 8)
SPREAD = 1.5  # of the shapes of pictures, from which on a square is taken
ODD = 4.0  # times as wide, or as high, as what is kept
SECONDS, TOKENS = (0.2, 10.0), (8, 256)
PIECES = (512, 32_000)
BATCH, STEPS, VISITS = (8, 64), (300, 10_000), 50
FEW = 64  # records
ROOM = "room for 99 % of them, but for no more than twice what 90 % need"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Choice:
    """Proposed values of fields, and why."""

    fields: dict[str, Any]
    why: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Proposal:
    """By modality, and for the run; `warnings` say what no size mends, `constant` modalities have
    the same value in all records, and `problems` say so."""

    modalities: dict[str, Choice]
    run: Choice
    warnings: tuple[str, ...]
    constant: tuple[str, ...]
    problems: tuple[str, ...]


def propose(train: Measured) -> Proposal:
    """Sizes for what was measured of the split to train on."""
    choices, warnings = {}, []
    for name, stream in train.streams.items():
        if "aspect" in stream.sizes:
            choices[name] = _picture(stream)
            warnings += _odd_pictures(name, stream, choices[name])
        elif "seconds" in stream.sizes:
            choices[name] = _sound(stream)
            warnings += _odd_sounds(name, stream, choices[name])
        elif "characters" in stream.sizes:
            choices[name], longest = _text(train, name)
            warnings += _odd_texts(name, stream, choices[name], longest)
    warnings += [
        f"{name}: {stream.unreadable} values cannot be read, the first because: {stream.why}"
        for name, stream in train.streams.items()
        if stream.unreadable
    ]
    warnings += _copies(train)
    count = round(train.streams[WHOLE].present * train.records / max(train.read, 1))
    if count < FEW:
        warnings.append(f"{count} records are few: a model learns them by heart; find more")
    streams = [(name, train.streams[name]) for name in train.streams if name != WHOLE]
    constant = tuple(name for name, s in streams if s.present > 1 and s.different == 1)
    return Proposal(
        modalities=choices,
        run=_run(count),
        warnings=tuple(warnings),
        constant=constant,
        problems=tuple(_problem(name, train.streams[name]) for name in constant),
    )


# ----------------------------------------------------------------------------- the rules


def _reach(lengths: Lengths) -> float:
    """The length that slots are made for: 99 of 100 values fit, unless that is over twice what 9
    of 10 need: a few long ones would leave most slots empty."""
    return min(lengths.p99, 2 * lengths.p90)


def _picture(stream: Stream) -> Choice:
    """About 64 patches in the shape of the pictures; a patch of no more pixels than they have."""
    shape, height, width = (stream.sizes[n] for n in ("aspect", "height", "width"))
    is_alike = shape.p95 <= SPREAD * shape.p05
    aim = math.log(max(shape.median, 1e-6)) if is_alike else 0.0
    rows, columns = min(GRIDS, key=lambda g: abs(math.log(g[1] / g[0]) - aim))
    pixels = min(height.median / rows, width.median / columns)
    patch = next((p for p in PATCHES if p >= pixels), PATCHES[-1])
    size = (rows * patch, columns * patch)
    why = (
        f"all of one shape, to which {rows} x {columns} patches come nearest"
        if is_alike
        else "shapes differ, and the middle square keeps most of them"
    )
    seen = f"median {height.median:.0f} x {width.median:.0f} pixels"
    return Choice(
        fields={"size": size, "patch": patch, "resize": "stretch" if is_alike else "crop"},
        why=f"{seen}, {why}; at most 8 pixels a patch: larger pictures are scaled down",
    )


def _sound(stream: Stream) -> Choice:
    low, high = SECONDS
    wanted = _reach(stream.sizes["seconds"])
    step = 0.1 if wanted < 2 else 0.5
    seconds = min(max(round(math.ceil(wanted / step - 1e-6) * step, 2), low), high)
    lengths = stream.sizes["seconds"]
    seen = f"{lengths.median:.2f} s (median) to {lengths.max:.2f} s"
    return Choice(
        fields={"seconds": seconds},
        why=f"{seen}; {ROOM}, and at most {high:g} s, as a second takes 25 tokens",
    )


def _text(train: Measured, name: str) -> tuple[Choice, Lengths | None]:
    """A vocabulary for the words that come again, and room for the texts in its pieces."""
    stream, texts = train.streams[name], train.texts.get(name, ())
    words, of_half = _words(texts), _words(texts[::2])
    again = sum(count > 1 for count in words.values())
    # Words grow as a power of the text (Heaps' law), which two halves of it tell.
    power = min(max(math.log2(len(words) / len(of_half)), 0.0), 0.7) if of_half else 0.0
    total = stream.present * train.records / max(train.read, 1)
    grown = again * max(1.0, total / max(len(texts), 1)) ** power
    fixed = 3 + SentencePiece().num_sentinels + 256
    pieces = fixed + max(grown, 2 * stream.characters)
    low, high = PIECES
    vocab_size = min(max(64 * math.ceil(pieces / 64), low), high)
    lengths = _tokens(texts, vocab_size)
    reach = _reach(lengths) + 1 if lengths else TOKENS[1]  # and the end token
    max_tokens = min(max(8 * math.ceil(reach / 8), TOKENS[0]), TOKENS[1])
    seen = f"{lengths.median:.0f} pieces (median) to {lengths.max:.0f}" if lengths else "no pieces"
    return Choice(
        fields={"max_tokens": max_tokens, "vocab_size": vocab_size},
        why=(
            f"{seen}; {ROOM}, and at most {TOKENS[1]}; a piece for each of the"
            f" {round(grown):,} words that come again, at least two for each of"
            f" {stream.characters:,} characters"
        ),
    ), lengths


def _words(texts: Sequence[str]) -> collections.Counter[str]:
    return collections.Counter(w for text in texts for w in re.findall(r"\w+", text.lower()))


def _tokens(texts: Sequence[str], vocab_size: int) -> Lengths | None:
    """Lengths in pieces of a trial tokenizer that learns from these texts; None if it cannot."""
    with tempfile.TemporaryDirectory(prefix="mmjax_pieces_") as folder:
        try:
            ready = SentencePiece(vocab_size=vocab_size).fit(lambda: texts, folder)  # pyright: ignore
        except ValueError:
            return None
        return Lengths.of([len(ready.encode(text)) for text in texts])


def _run(count: int) -> Choice:
    """A batch is at most a quarter of the records, as it is to differ from the next one; so many
    visits of each record as teach a small set by heart, within bounds."""
    batch = BATCH[0]
    while 2 * batch <= min(BATCH[1], count / 4):
        batch *= 2
    steps = min(max(100 * round(VISITS * count / batch / 100), STEPS[0]), STEPS[1])
    return Choice(
        fields={"batch_size": batch, "total_steps": steps},
        why=(
            f"{count:,} records: a batch is at most a quarter of them and at most {BATCH[1]} rows;"
            f" {VISITS} visits of each record, in {STEPS[0]} to {STEPS[1]:,} steps"
        ),
    )


# ------------------------------------------------------------- what no size mends


def _odd_pictures(name: str, stream: Stream, choice: Choice) -> Iterator[str]:
    shape, (height, width) = stream.sizes["aspect"], choice.fields["size"]
    own = width / height
    if shape.max > ODD * own or shape.min < own / ODD:
        odd = shape.max if shape.max / own > own / shape.min else shape.min
        said = f"{odd:,.0f} times as wide as high" if odd > 1 else f"{1 / odd:,.0f} times as high"
        done = "their middle is kept" if choice.fields["resize"] == "crop" else "they are squeezed"
        yield f"{name}: pictures up to {said} lose most of what they show: {done}; cut them up"


def _odd_sounds(name: str, stream: Stream, choice: Choice) -> Iterator[str]:
    lengths, seconds = stream.sizes["seconds"], choice.fields["seconds"]
    if lengths.min <= 0:
        yield f"{name}: some sounds have a length of 0 s: those records are bad; leave them out"
    if lengths.max > 2 * seconds:
        yield (
            f"{name}: sounds of up to {lengths.max:,.1f} s are cut to their first {seconds:g} s;"
            " cut them into pieces with texts of their own"
        )


def _odd_texts(name: str, stream: Stream, choice: Choice, lengths: Lengths | None) -> Iterator[str]:
    longest, most = stream.sizes["characters"].max, choice.fields["max_tokens"]
    if lengths and lengths.max > 2 * most:
        yield (
            f"{name}: texts of up to {longest:,.0f} characters are cut to their first {most} tokens"
        )
    counts = [*stream.scripts.values()]
    if max(stream.languages.values(), default=1) < 0.75:  # titles mislead by as much
        some = [f"{of} {share:.0%}" for of, share in stream.languages.items()]
        what = f"about {len(some)} languages"
    elif counts and counts[0] < 0.9 * sum(counts):
        some, what = [f"{of} {n}" for of, n in stream.scripts.items()], "several scripts"
    else:
        return
    shown = ", ".join(some[:8]) + (f" and {len(some) - 8} more" if len(some) > 8 else "")
    yield (
        f"{name}: {what} ({shown}): each language has a part of the"
        f" {choice.fields['vocab_size']:,} pieces, and of the pictures and sounds"
    )


def _copies(train: Measured) -> Iterator[str]:
    for name, stream in train.streams.items():
        count = stream.present - stream.different
        # Captions and classes may well repeat; pictures and sounds may not.
        is_told = name == WHOLE or {"aspect", "seconds"} & stream.sizes.keys()
        if is_told and count > 0.01 * stream.present:
            named = ", ".join(f"{a} = {b}" for a, b in stream.copies)
            yield f"{name}: {count} of {stream.present} are copies of others in train: {named}"


def _problem(name: str, stream: Stream) -> str:
    return (
        f"{name} is the same in all {stream.present} records that have it, so there is nothing to"
        " tell apart: give more than one class, or a value of its own to each record"
    )
