"""Known and wanted tokens as views, lying as training lays them (`mmjax.data.layouts`).

Masked: known grids and sequences are whole in `input`; a stream that is wanted whole is absent
there and starts, in `target`, with mask slots (grids) or with its first sentinel (sequences).
Prefix: one view, known streams with order 0 before the begin token of the wanted one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from mmjax.data import rows, spans
from mmjax.data.task import Sample
from mmjax.typing import Piece, Tokens, TokenSpec, Vocabulary, positions

Pieces = Mapping[str, Piece | None]  # of one sample, by stream
MIN_SLOTS = 32  # of a view of known tokens


def known(
    vocabulary: Vocabulary,
    pieces: Sequence[Pieces],
    streams: Sequence[str],
    *,
    room: int = 0,
    begun: Sequence[str] = (),
    continuous: Sequence[str] = (),
) -> Tokens:
    """View of known tokens, one sample a row, and at least `room` free slots at its end.

    Its length is a power of two, so that many sets of known streams share one compiled program.

    Args:
      begun: streams that start with their begin token, as target streams of `Prefix` do.
      continuous: streams that get room for values even if they are not known.
    """
    samples = [Sample(dict(p), 0, (i, 0), seed=0) for i, p in enumerate(pieces)]
    sizes = [vocabulary.spec(n).max_tokens + (n in begun) for n in streams]
    slots = max(sum(sizes) + room, MIN_SLOTS)
    view = rows.TokenArrays(len(pieces), 1 << (slots - 1).bit_length())
    for name in dict.fromkeys((*continuous, *streams)):
        if vocabulary.spec(name).width and not vocabulary.spec(name).vocab_size:
            view.declare_values(vocabulary.spec(name))
    for name in streams:
        p, _ = rows.pieces(samples, name, vocabulary)
        number = vocabulary.number(name)
        if name in begun:
            places = view.reserve(p.present_B.astype(np.int64))
            view.write(places, number, begin_id(vocabulary, name), 0.0)
        places = view.reserve(p.length_B)
        rows.write_pieces(view, p, places, slice(None), number)
        if spans.has_spans(p.spec):  # a sequence counts its own slots
            view.position[places.row_N, places.slot_N] = places.within_N[:, None] + (name in begun)
    return view.tokens()


def emptied(
    vocabulary: Vocabulary,
    like: Tokens,
    pieces: Sequence[Pieces],
    streams: Sequence[str],
    *,
    sentinels: bool,
) -> Tokens:
    """A view of the shapes of `known` without what is known.

    With `sentinels` a sequence leaves its first one: what training shows when it is masked whole.
    """
    view = rows.TokenArrays(*like.ids_BL.shape)
    for name in like.values:
        view.declare_values(vocabulary.spec(name))
    for name in streams:
        if sentinels and spans.has_spans(vocabulary.spec(name)):
            there_B = np.asarray([p.get(name) is not None for p in pieces], np.int64)
            begin, places = begin_id(vocabulary, name), view.reserve(there_B)
            view.write(places, vocabulary.number(name), begin, 0.0)
    return view.tokens()


def begun(vocabulary: Vocabulary, view: Tokens, name: str) -> Tokens:
    """The view with the begin token of a stream in its last slot, of every row."""
    for array, value in (
        (view.ids_BL, begin_id(vocabulary, name)),
        (view.stream_BL, vocabulary.number(name)),
        (view.segment_BL, 1),
    ):
        array[:, -1] = value
    return view


def begin_id(vocabulary: Vocabulary, name: str) -> int:
    """Vocabulary id that a sequence starts with: its first sentinel; 0 = the mask vector."""
    spec = vocabulary.spec(name)
    return vocabulary.range(name)[0] + spec.first_sentinel if spec.num_sentinels else 0


def is_end(spec: TokenSpec, ids):
    """Which local ids end a sequence: its end token, and any sentinel."""
    past = ids - spec.first_sentinel
    return (ids == spec.end_id) | ((past >= 0) & (past < spec.num_sentinels))


def piece(spec: TokenSpec, ids_L: np.ndarray) -> Piece:
    """Decoded local ids as a piece; a sequence stops at its end and has an end token, if any."""
    if spec.kind == "sequence":
        ends = np.flatnonzero(is_end(spec, ids_L))
        ids_L = ids_L[: ends[0]] if len(ends) else ids_L
        if spec.end_id >= 0:
            ids_L = np.append(ids_L[: spec.max_tokens - 1], spec.end_id)
    return Piece(positions(spec.grid or len(ids_L)), ids_L=ids_L.astype(np.int32))
