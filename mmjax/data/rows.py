"""Samples to arrays: pieces concatenated, views filled slot by slot, batches assembled.

Layouts consist of these three steps; all work on whole groups at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from mmjax.typing import (
    NUM_AXES,
    Batch,
    General,
    InOrder,
    OneSegment,
    Targets,
    Tokens,
    TokenSpec,
    Values,
    Vocabulary,
)  # fmt: skip

if TYPE_CHECKING:
    from mmjax.data.task import Sample


class StreamPieces(NamedTuple):
    """The pieces of one stream of a group, concatenated (N tokens in all)."""

    spec: TokenSpec
    present_B: np.ndarray  # bool
    length_B: np.ndarray  # int64; 0 where absent
    start_B: np.ndarray  # int64: first token of each row
    position_NA: np.ndarray
    ids_N: np.ndarray | None  # local to the stream; None for continuous streams
    values_NP: np.ndarray | None
    offset: int  # of the vocabulary ids

    def padded(self) -> np.ndarray:
        """Local ids [B, max_tokens], 0 after the end."""
        assert self.ids_N is not None
        out = np.zeros((len(self.length_B), self.spec.max_tokens), np.int32)
        out[np.arange(out.shape[1]) < self.length_B[:, None]] = self.ids_N
        return out


def pieces(
    samples: Sequence[Sample], name: str, vocabulary: Vocabulary
) -> tuple[StreamPieces, int]:
    """The pieces of a stream, and the number of tokens that its modality cut.

    Raises ValueError for ids outside the stream's range and for pieces that contradict the spec.
    """
    spec = vocabulary.spec(name)
    sample_pieces = [s.pieces.get(name) for s in samples]
    there = [p for p in sample_pieces if p is not None]
    lengths = [0 if p is None else len(p.position_LA) for p in sample_pieces]
    if max(lengths, default=0) > spec.max_tokens:
        raise ValueError(
            f"Stream {name!r}: a piece of {max(lengths)} tokens exceeds"
            f" max_tokens={spec.max_tokens}; its modality must cut it (and count `num_cut`)."
        )
    length_B = np.asarray(lengths, np.int64)
    ids, values = None, None
    if spec.vocab_size:
        parts = [p.ids_L for p in there]
        _check(name, all(p is not None for p in parts), "ids_L", spec)
        ids = np.concatenate(parts, dtype=np.int32) if parts else np.zeros(0, np.int32)  # type: ignore[arg-type]
        vocabulary.check(name, ids)
    else:
        parts = [p.values_LP for p in there]
        good = all(p is not None and p.shape[1:] == (spec.width,) for p in parts)
        _check(name, good, f"values_LP of width {spec.width}", spec)
        values = np.concatenate(parts, dtype=np.float32) if parts else None  # type: ignore[arg-type]
        values = np.zeros((0, spec.width), np.float32) if values is None else values
    position = np.concatenate([p.position_LA for p in there]) if there else np.zeros((0, NUM_AXES))
    out = StreamPieces(
        spec=spec,
        present_B=np.asarray([p is not None for p in sample_pieces]),
        length_B=length_B,
        start_B=np.cumsum(length_B) - length_B,
        position_NA=position.astype(np.float32, copy=False),
        ids_N=ids,
        values_NP=values,
        offset=vocabulary.range(name)[0],
    )
    return out, sum(p.num_cut for p in there)


def _check(name: str, is_good: bool, wanted: str, spec: TokenSpec) -> None:
    if not is_good:
        kind = "discrete" if spec.vocab_size else "continuous"
        raise ValueError(
            f"Stream {name!r}: a piece lacks {wanted}, but the spec is {kind}"
            f" (vocab_size={spec.vocab_size}, width={spec.width}); make encode() and spec() agree."
        )


class Places(NamedTuple):
    """Slots of a view reserved for N tokens of one stream."""

    row_N: np.ndarray
    within_N: np.ndarray  # rank among the tokens of its row in this reservation
    slot_N: np.ndarray


class TokenArrays:
    """Tokens of a group, filled stream by stream; slots left over are padding.

    `rule` is what a layout promises of its batches.
    """

    def __init__(self, num_rows: int, length: int):
        self.rule: General | OneSegment | InOrder = OneSegment()
        self.length, self.filled_B = length, np.zeros(num_rows, np.int64)
        self.ids = np.zeros((num_rows, length), np.int32)
        self.stream = np.zeros((num_rows, length), np.int32)
        self.order = np.zeros((num_rows, length), np.int32)
        self.position = np.zeros((num_rows, length, NUM_AXES), np.float32)
        self.values: dict[str, Values] = {}
        self.rooms: dict[str, tuple[int, int]] = {}  # pieces per row, and their width

    def room(self) -> np.ndarray:
        """Free slots of each row."""
        return self.length - self.filled_B

    def reserve(self, count_B: np.ndarray) -> Places:
        """The next slots of each row; the counts must fit."""
        row_N = np.repeat(np.arange(len(count_B)), count_B)
        within_N = np.arange(len(row_N)) - np.repeat(np.cumsum(count_B) - count_B, count_B)
        places = Places(row_N, within_N, self.filled_B[row_N] + within_N)
        self.filled_B = self.filled_B + count_B
        return places

    def write(self, places: Places, stream: int, ids_N, position, order_N=None) -> None:
        """Fills slots. `ids_N` are vocabulary ids (0 = mask slot or continuous piece)."""
        at: Any = slice(None)  # all slots, in order
        if len(places.row_N) < self.ids.size:
            at = places.row_N * self.length + places.slot_N
        self.ids.reshape(-1)[at] = ids_N
        self.stream.reshape(-1)[at] = stream
        self.position.reshape(-1, NUM_AXES)[at] = position
        if order_N is not None:
            self.order.reshape(-1)[at] = order_N

    def declare_values(self, spec: TokenSpec) -> None:
        """Allocates space for the pieces of a continuous stream; no slot uses it yet."""
        self.rooms[spec.name] = (min(spec.max_tokens, self.length), spec.width)

    def write_values(self, places: Places, name: str, value_NP, rank_N=None) -> None:
        """Assigns continuous pieces to slots; `rank_N` is their index among the row's pieces.

        `value_NP` may become part of the batch, without a copy.
        """
        shape = (len(self.filled_B), *self.rooms[name])
        if rank_N is None and len(value_NP) == shape[0] * shape[1]:  # all pieces of all rows
            slot_BJ = places.slot_N.reshape(shape[:2]).astype(np.int32)
            self.values[name] = Values(value_NP.reshape(shape), slot_BJ)
            return
        values = self.values.setdefault(name, self._unused(name))
        at = (places.row_N, places.within_N if rank_N is None else rank_N)
        values.value_BJP[at] = value_NP
        values.slot_BJ[at] = places.slot_N

    def _unused(self, name: str) -> Values:
        room, width = self.rooms[name]
        shape = (len(self.filled_B), room)
        return Values(np.zeros((*shape, width), np.float32), np.full(shape, self.length, np.int32))

    def tokens(self) -> Tokens:
        """The filled view; one sample per row."""
        segment = (self.stream > 0).astype(np.int32)
        values = {name: self.values.get(name) or self._unused(name) for name in self.rooms}
        return Tokens(self.ids, self.stream, segment, self.order, self.position, values)


def write_pieces(
    view: TokenArrays, p: StreamPieces, places: Places, token_N, stream: int, order_N=None
):
    """Writes tokens (indices into the flat pieces, or a slice) unchanged."""
    ids = 0 if p.ids_N is None else p.ids_N[token_N] + p.offset
    view.write(places, stream, ids, p.position_NA[token_N], order_N)
    if p.values_NP is not None:
        view.write_values(places, p.spec.name, p.values_NP[token_N])


class RowGroups(NamedTuple):
    """W groups of successive rows, equal in size, and the data that their targets need."""

    num: int
    weight_B: np.ndarray  # of each sample

    @property
    def num_rows(self) -> int:
        """Rows of a group."""
        return len(self.weight_B) // self.num

    def trim(self, count_B: np.ndarray, room: int) -> np.ndarray:
        """Counts reduced to fit the room of their group; later rows lose first."""
        count_WR = count_B.reshape(self.num, -1)
        before_WR = np.cumsum(count_WR, axis=1) - count_WR
        return np.clip(room - before_WR, 0, count_WR).reshape(-1)


def groups(samples: Sequence[Sample], num: int) -> RowGroups:
    """The groups of a batch. Raises ValueError if the last would be incomplete."""
    if num < 1 or len(samples) % num:
        raise ValueError(f"Layout: {len(samples)} rows are not {num} whole groups.")
    return RowGroups(num, np.asarray([s.weight for s in samples], np.float32))


def targets(
    p: StreamPieces, room: int, places: Places, group: RowGroups, label_N=None, token_N=None
) -> Targets:
    """Targets of a stream, `room` in each group: labels, or the pieces `token_N`.

    `places` are the slots to predict at, row by row; they must fit.
    """
    group_N = places.row_N // group.num_rows
    first_W = np.searchsorted(group_N, np.arange(group.num))
    at = (group_N, np.arange(len(group_N)) - first_W[group_N])

    def padded(values, dtype, *width):
        out = np.zeros((group.num, room, *width), dtype)
        out[at] = values
        return out

    label, value = None, None
    if p.values_NP is None:
        label = padded(p.ids_N[token_N] if label_N is None else label_N, np.int32)  # type: ignore[index]
    else:
        value = padded(p.values_NP[token_N], np.float32, p.values_NP.shape[1])
    row = padded(places.row_N - group_N * group.num_rows, np.int32)
    weight = padded(group.weight_B[places.row_N], np.float32)
    return Targets(row, padded(places.slot_N, np.int32), row.copy(), weight, label, value)


def finish(
    samples: Sequence[Sample],
    all_pieces: dict[str, StreamPieces],
    views: dict[str, TokenArrays],
    wanted: dict[str, Targets],
    vocabulary: Vocabulary,
) -> Batch:
    """Assembles a batch of one sample per row."""
    present = np.zeros((len(samples), 1, len(vocabulary.specs)), bool)
    for name, p in all_pieces.items():
        present[:, 0, vocabulary.number(name) - 1] = p.present_B
    return Batch(
        views={role: v.tokens()._replace(rule=v.rule) for role, v in views.items()},
        targets=wanted,
        present_BSM=present,
        identity_BS=np.asarray([[s.identity] for s in samples], np.int32),
        sample_BSI=np.asarray([[s.sample] for s in samples], np.uint32),
        weight_BS=np.asarray([[s.weight] for s in samples], np.float32),
    )


def fill(views: dict[str, TokenArrays]) -> dict[str, float]:
    """Counts of used slots and of all slots, for throughput and padding."""
    used = sum(int(view.filled_B.sum()) for view in views.values())
    return {"tokens": float(used), "slots": float(sum(v.stream.size for v in views.values()))}


def of_groups(groups: Sequence[int], group_rows: int) -> np.ndarray:
    """Rows of groups, one group after the other.

    >>> of_groups([0, 3], 2).tolist()
    [0, 1, 6, 7]
    """
    return (np.asarray(groups, np.int64)[:, None] * group_rows + np.arange(group_rows)).ravel()


def add_counts(a: dict[str, float], b: dict[str, float]) -> dict[str, float]:
    """Sums by name."""
    return {name: a.get(name, 0.0) + b.get(name, 0.0) for name in (*a, *b)}


def concatenate(parts: Sequence[Any]) -> Any:
    """Batches (or parts of batches) joined on axis 0."""
    first = parts[0]
    if len(parts) == 1 or first is None:
        return first
    if isinstance(first, dict):
        return {name: concatenate([p[name] for p in parts]) for name in first}
    if isinstance(first, tuple):
        return type(first)(*(concatenate(group) for group in zip(*parts, strict=True)))
    return np.concatenate(parts)
