"""Layouts: how the samples of a group become rows of static shape.

`Masked` (4M budgets), `Aligned` (pairs and n-tuples for contrast), `Spans` (T5 corruption);
`Prefix` (next token, from `data.prefix`). Shapes depend only on fields, streams, vocabulary and
number of rows, never on the data.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Annotated

import numpy as np

from mmjax.config import ranges
from mmjax.data import masking, rows, spans
from mmjax.data.masking import Policy
from mmjax.data.prefix import Prefix
from mmjax.data.task import Layout
from mmjax.typing import InOrder, TokenSpec

__all__ = ["Aligned", "Masked", "Policy", "Prefix", "Spans"]

# All-to-all at three concentrations, and one stream to the others, which is how models are used.
ANY_TO_ANY = (
    Policy(weight=0.15, input_alpha=0.1, target_alpha=0.1),
    Policy(weight=0.15, input_alpha=1.0, target_alpha=1.0),
    Policy(weight=0.1, input_alpha=10.0, target_alpha=10.0),
    Policy(weight=0.6, input_alpha=1.0, target_alpha=0.5, keep="all", one_input=True),
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Masked(Layout):
    """Shows a random part of the tokens and predicts another (4M-21, Bachmann et al. 2024).

    Views `input` and `target`: grids are predicted at mask slots, in parallel; masked runs of
    sequences are replaced by sentinels in the input and predicted left to right after them.

    Fields:
      input_tokens, target_tokens: budgets per sample, divided over its streams by `policies`.
      room: slots for the targets of a stream, as a multiple of their mean; targets beyond are
        trimmed and counted.
      drop: share of a sequence's tokens, by stream, replaced by mask slots in `target`: word
        dropout (Bowman et al. 2016), which makes predictions depend more on the input and less on
        the preceding tokens.
      single_view: a single view, `input`, with mask slots where tokens are predicted (for
        encoders); sequences are then masked token by token.

    >>> import numpy as np
    >>> from mmjax.data.task import Sample, Streams
    >>> from mmjax.typing import Piece, TokenSpec, Vocabulary, positions
    >>> text = TokenSpec(name="text", kind="sequence", max_tokens=6, vocab_size=20,
    ...                  first_sentinel=0, num_sentinels=4)
    >>> piece = Piece(positions(5), ids_L=np.arange(10, 15, dtype=np.int32))
    >>> sample = Sample({"text": piece}, identity=0, sample=(0, 0), seed=9)
    >>> streams = Streams(inputs=("text",), targets=("text",))
    >>> layout = Masked(input_tokens=4, target_tokens=4)
    >>> batch, counts = layout.build([sample], streams, Vocabulary((text,)))
    >>> batch.views["input"].ids_BL - 128  # ids of text start at 128; sentinel 0 hides a run
    array([[  10,    0,   14, -128]], dtype=int32)
    >>> batch.targets["text"].label_WU
    array([[11, 12, 13,  1]], dtype=int32)
    """

    input_tokens: ranges.Count = 128
    target_tokens: ranges.Count = 128
    policies: tuple[Policy, ...] = ANY_TO_ANY
    room: Annotated[float, ranges.Range(1)] = 1.5
    drop: dict[str, ranges.BelowOne] = dataclasses.field(default_factory=dict)
    single_view: bool = False

    def __post_init__(self):
        ranges.check(self)
        if not sum(p.weight for p in self.policies) > 0:
            raise ValueError("Masked: policies have no weight in all; give one a weight above 0.")

    def build(self, samples, streams, vocabulary):
        return self.build_groups(samples, streams, vocabulary, 1)

    def build_groups(self, samples, streams, vocabulary, num_groups):
        inputs = [vocabulary.spec(n) for n in streams.inputs]
        targets = [vocabulary.spec(n) for n in streams.targets]
        plan = self._plan(inputs, targets)
        pieces_and_cuts = {n: rows.pieces(samples, n, vocabulary) for n in plan.names}
        groups = rows.groups(samples, num_groups)
        draws = masking.draw(plan, [s.rng for s in samples])
        lengths = np.stack([pieces_and_cuts[n][0].length_B for n in plan.names], axis=1)
        filling = _MaskedFilling(plan, draws, masking.mask(plan, draws, lengths), pieces_and_cuts)
        for name, share in self.drop.items():
            filling.drop(name, share, [s.rng for s in samples])
        counts = {f"cut/{n}": float(cut) for n, (_, cut) in pieces_and_cuts.items()}
        rooms = self._rooms(plan, groups.num_rows)
        for spec in targets:
            wanted_B = filling.masks.target_BM[:, plan.names.index(spec.name)]
            kept_B = groups.trim(wanted_B, rooms[spec.name])
            counts[f"trimmed/{spec.name}"] = float((wanted_B - kept_B).sum())
            wanted_B[:] = kept_B
        lengths = self._lengths(inputs, targets)
        views = {role: rows.TokenArrays(len(samples), length) for role, length in lengths.items()}
        for spec in inputs:
            filling.write_input(views["input"], spec, vocabulary.number(spec.name))
        wanted = {}
        for spec in targets:
            view, number = views.get("target", views["input"]), vocabulary.number(spec.name)
            wanted[spec.name] = filling.write_target(view, spec, number, rooms[spec.name], groups)
        if "target" in views and len(targets) == 1 and targets[0].name in filling.splits:
            views["target"].rule = InOrder()
        pieces = {n: p for n, (p, _) in pieces_and_cuts.items()}
        batch = rows.finish(samples, pieces, views, wanted, vocabulary)
        return batch, counts | rows.fill(views)

    def _plan(self, inputs: list[TokenSpec], targets: list[TokenSpec]) -> masking.Masking:
        if not self.single_view:
            for spec in targets:
                _check_sentinels("Masked", spec)
        sizes = (self.input_tokens, self.target_tokens)
        return masking.resolve(self.policies, inputs, targets, *sizes, not self.single_view)

    def _lengths(self, inputs: list[TokenSpec], targets: list[TokenSpec]) -> dict[str, int]:
        """Slots of each view: the budget, or less if all streams together are shorter."""
        if self.single_view:
            whole = {s.name: s.max_tokens for s in (*inputs, *targets)}
            return {"input": min(self.input_tokens + self.target_tokens, sum(whole.values()))}
        return {
            "input": min(self.input_tokens, sum(s.max_tokens for s in inputs)),
            "target": min(self.target_tokens, sum(s.max_tokens for s in targets)),
        }

    def _rooms(self, plan: masking.Masking, num_rows: int) -> dict[str, int]:
        """Static room of each stream in the targets of a group."""
        means = dict(zip(plan.names, masking.mean_targets(plan), strict=True))
        return {
            n: num_rows * max(1, min(math.ceil(self.room * means[n]), size, plan.target_tokens))
            for n, size in zip(plan.names, plan.lengths, strict=True)
        }


class _MaskedFilling:
    """A batch being written into views: pieces, budgets, and the random order of grids."""

    def __init__(self, plan, draws, masks, pieces_and_cuts):
        self.plan, self.draws, self.masks = plan, draws, masks
        self.pieces = {n: p for n, (p, _) in pieces_and_cuts.items()}
        self.scattered, self.splits, self.dropped = {}, {}, {}
        for m, name in enumerate(plan.names):
            p, shown_B = self.pieces[name], masks.input_BM[:, m]
            if name in masks.keep:
                self.splits[name] = spans.split_spans(
                    p.padded(), masks.keep[name], p.length_B, shown_B > 0, p.spec.first_sentinel
                )
            else:
                uniform_BL = masking.token_draws(plan, draws, m)
                self.scattered[name] = _random_order(uniform_BL, p.length_B)

    def drop(self, name: str, share: float, rngs) -> None:
        """Chooses the tokens of a sequence that are hidden from later ones; sentinels stay."""
        if name not in self.splits:
            raise ValueError(
                f"Masked: drop names {name!r}, which is not masked in spans; name sequences of this"
                f" task, such as {', '.join(self.splits) or 'none'}."
            )
        split = self.splits[name]
        uniform_BT = np.stack([rng.random(split.target_BT.shape[1]) for rng in rngs])
        self.dropped[name] = (uniform_BT < share) & ~split.sentinel_BT

    def write_input(self, view: rows.TokenArrays, spec: TokenSpec, number: int) -> None:
        """Visible tokens: a prefix of the random order, or the sequence with sentinels."""
        p = self.pieces[spec.name]
        if p.values_NP is not None:
            view.declare_values(spec)
        count_B = self.masks.input_BM[:, self.plan.names.index(spec.name)]
        places = view.reserve(count_B)
        if spec.name in self.splits:
            ids = self.splits[spec.name].input_ids_N + p.offset
            view.write(places, number, ids, places.within_N[:, None])
        else:
            token_N = self._tokens(spec.name, places.row_N, places.within_N)
            rows.write_pieces(view, p, places, token_N, number)

    def write_target(self, view, spec: TokenSpec, number: int, room: int, groups):
        """Mask slots of the next tokens of the random order, or teacher-forced spans."""
        p, m = self.pieces[spec.name], self.plan.names.index(spec.name)
        count_B = self.masks.target_BM[:, m]
        places = view.reserve(count_B)
        if spec.name in self.splits:
            split = self.splits[spec.name]
            uniform_B = self.draws.uniform_BI[:, 2 + len(self.plan.names) + m]
            start_B = spans.start_spans(split, count_B, uniform_B)
            dropped_BT = self.dropped.get(spec.name)
            return _write_spans(
                view, p, places, split.target_BT, start_B, number, room, groups, dropped_BT
            )
        shown_B = self.masks.input_BM[:, m]
        token_N = self._tokens(spec.name, places.row_N, places.within_N + shown_B[places.row_N])
        view.write(places, number, 0, p.position_NA[token_N])
        return rows.targets(p, room, places, groups, token_N=token_N)

    def _tokens(self, name: str, row_N, rank_N):
        return self.pieces[name].start_B[row_N] + self.scattered[name][row_N, rank_N]


def _random_order(uniform_BL: np.ndarray, length_B: np.ndarray) -> np.ndarray:
    """Token indices of each sample in random order, then the indices beyond its length."""
    hidden_BL = np.arange(uniform_BL.shape[1]) >= length_B[:, None]
    return np.argsort(np.where(hidden_BL, 2.0, uniform_BL), axis=1)


def _write_spans(
    view, p: rows.StreamPieces, places, target_BT, start_B, number, room, groups, dropped_BT=None
):
    """Teacher-forced targets: tokens from `start_B` on, each predicting the next."""
    at = start_B[places.row_N] + places.within_N
    ids = target_BT[places.row_N, at] + p.offset
    if dropped_BT is not None:
        ids = np.where(dropped_BT[places.row_N, at], 0, ids)
    view.write(places, number, ids, places.within_N[:, None], places.within_N)
    return rows.targets(p, room, places, groups, label_N=target_BT[places.row_N, at + 1])


def _check_sentinels(who: str, spec: TokenSpec) -> None:
    if spec.kind == "sequence" and spec.vocab_size and spec.num_sentinels < 2:
        raise ValueError(
            f"{who}: stream {spec.name!r} is a sequence with num_sentinels={spec.num_sentinels},"
            " but masked runs need at least 2; add sentinels to its tokenizer or use Prefix."
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Aligned(Layout):
    """Pairs and n-tuples: one view per input stream, all tokens visible.

    A sample without a stream gets a padding row in that view and is marked as not present. Target
    streams, which are sequences, are predicted whole, left to right, in a view `target`; those of a
    sample without any other stream count nothing.

    Fields:
      max_tokens: length of a view, by stream, if shorter than the stream's; longer pieces are cut
        at the end and counted.
      drop: share of a grid's tokens that is left out at random, by stream: DropToken (Akbari et al.
        2023), which makes steps cheaper by that share and regularises.

    >>> import numpy as np
    >>> from mmjax.data.task import Sample, Streams
    >>> from mmjax.typing import Piece, TokenSpec, Vocabulary, positions
    >>> text = TokenSpec(name="text", kind="sequence", max_tokens=6, vocab_size=20)
    >>> piece = Piece(positions(5), ids_L=np.arange(10, 15, dtype=np.int32))
    >>> sample = Sample({"text": piece}, identity=0, sample=(0, 0), seed=0)
    >>> streams = Streams(inputs=("text",), targets=())
    >>> layout = Aligned(max_tokens={"text": 4})
    >>> batch, counts = layout.build([sample], streams, Vocabulary((text,)))
    >>> batch.views["text"].ids_BL, counts["cut/text"]  # ids of text start at 128
    (array([[138, 139, 140, 141]], dtype=int32), 1.0)
    """

    max_tokens: dict[str, ranges.Count] = dataclasses.field(default_factory=dict)
    drop: dict[str, ranges.BelowOne] = dataclasses.field(default_factory=dict)

    def __post_init__(self):
        ranges.check(self)

    def build(self, samples, streams, vocabulary):
        return self.build_groups(samples, streams, vocabulary, 1)

    def build_groups(self, samples, streams, vocabulary, num_groups):
        views, pieces, counts = {}, {}, {}
        groups = rows.groups(samples, num_groups)
        for name in streams.inputs:
            p, cut = rows.pieces(samples, name, vocabulary)
            length = min(self.max_tokens.get(name, p.spec.max_tokens), p.spec.max_tokens)
            count_B = np.minimum(p.length_B, length)
            counts[f"cut/{name}"] = float(cut + (p.length_B - count_B).sum())
            order_BL, share = None, self.drop.get(name, 0.0)
            if share:
                order_BL = self._order(samples, p, count_B)
                length -= int(share * length)
                count_B = count_B - (share * count_B).astype(count_B.dtype)
            view = rows.TokenArrays(len(samples), length)
            if p.values_NP is not None:
                view.declare_values(p.spec)
            places = view.reserve(count_B)
            token_N = slice(None)  # avoids a copy when all are taken
            if order_BL is not None:
                token_N = p.start_B[places.row_N] + order_BL[places.row_N, places.within_N]
            elif (count_B < p.length_B).any():
                token_N = p.start_B[places.row_N] + places.within_N
            rows.write_pieces(view, p, places, token_N, vocabulary.number(name))
            views[name], pieces[name] = view, p
        wanted = {}
        if streams.targets:
            there = [p.length_B > 0 for n, p in pieces.items() if n not in streams.targets]
            able_B = np.logical_or.reduce([np.zeros(len(samples), bool), *there])
            views["target"], wanted = self._targets(samples, streams, vocabulary, groups, able_B)
        batch = rows.finish(samples, pieces, views, wanted, vocabulary)
        return batch, counts | rows.fill(views)

    def _targets(self, samples, streams, vocabulary, groups, able_B: np.ndarray):
        """The view of whole sequences, teacher-forced, of those samples that are able."""
        specs = [vocabulary.spec(name) for name in streams.targets]
        for spec in specs:
            if not spans.has_spans(spec):
                raise ValueError(
                    f"Aligned: target {spec.name!r} (kind={spec.kind!r}, num_sentinels="
                    f"{spec.num_sentinels}) is not a sequence with 2 or more sentinels; name it in"
                    " inputs alone, or use Masked."
                )
        view, wanted = rows.TokenArrays(len(samples), sum(s.max_tokens + 1 for s in specs)), {}
        if len(specs) == 1:
            view.rule = InOrder()
        for spec in specs:
            p, _ = rows.pieces(samples, spec.name, vocabulary)
            none_BL, unseen_B = (
                np.zeros((len(samples), spec.max_tokens), bool),
                np.zeros_like(able_B),
            )
            split = spans.split_spans(
                p.padded(), none_BL, p.length_B, unseen_B, spec.first_sentinel
            )
            places = view.reserve(np.where(able_B, split.labels_B, 0))
            wanted[spec.name] = _write_spans(
                view, p, places, split.target_BT, np.zeros(len(samples), np.int64),
                vocabulary.number(spec.name), groups.num_rows * (spec.max_tokens + 1), groups,
            )  # fmt: skip
        return view, wanted

    def _order(self, samples, p: rows.StreamPieces, count_B: np.ndarray) -> np.ndarray:
        """The first `count_B` tokens of each sample in random order, [B, L]."""
        if p.spec.kind != "grid":
            raise ValueError(
                f"Aligned: drop names {p.spec.name!r}, which is a {p.spec.kind}; only the tokens of"
                " a grid say where they belong, so name grids alone."
            )
        uniform_BL = np.stack([s.rng.random(p.spec.max_tokens) for s in samples])
        return _random_order(uniform_BL, count_B)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Spans(Layout):
    """Span corruption of sequences (T5, Raffel et al. 2020).

    Views `input` (all input streams; target streams with runs replaced by sentinels) and `target`
    (the runs behind their sentinels, teacher-forced).

    Fields:
      rate: share of the tokens that is masked. mean_length: mean length of a masked run.

    >>> import numpy as np
    >>> from mmjax.data.task import Sample, Streams
    >>> from mmjax.typing import Piece, TokenSpec, Vocabulary, positions
    >>> text = TokenSpec(name="text", kind="sequence", max_tokens=6, vocab_size=20,
    ...                  first_sentinel=0, num_sentinels=4)
    >>> piece = Piece(positions(5), ids_L=np.arange(10, 15, dtype=np.int32))
    >>> sample = Sample({"text": piece}, identity=0, sample=(0, 0), seed=0)
    >>> streams = Streams(inputs=(), targets=("text",))
    >>> batch, counts = Spans(rate=0.4).build([sample], streams, Vocabulary((text,)))
    >>> batch.views["input"].ids_BL - 128  # ids of text start at 128; sentinel 0 hides a run
    array([[  10,   11,   12,    0, -128, -128]], dtype=int32)
    >>> batch.targets["text"].label_WU  # the run, then the closing sentinel
    array([[13, 14,  1]], dtype=int32)
    """

    rate: Annotated[float, ranges.Range(0, 1, has_low=False)] = 0.15
    mean_length: Annotated[float, ranges.Range(1)] = 3.0

    def __post_init__(self):
        ranges.check(self)

    def build(self, samples, streams, vocabulary):
        return self.build_groups(samples, streams, vocabulary, 1)

    def build_groups(self, samples, streams, vocabulary, num_groups):
        names = list(dict.fromkeys((*streams.inputs, *streams.targets)))
        pieces_and_cuts = {n: rows.pieces(samples, n, vocabulary) for n in names}
        specs = {n: vocabulary.spec(n) for n in names}
        room = {n: self._most(specs[n]) for n in streams.targets}
        view = rows.TokenArrays(len(samples), sum(s.max_tokens for s in specs.values()))
        target = rows.TokenArrays(len(samples), sum(room.values()))
        if len(room) == 1:
            target.rule = InOrder()
        groups, wanted = rows.groups(samples, num_groups), {}
        for name, (p, _) in pieces_and_cuts.items():
            number = vocabulary.number(name)
            if name not in room:
                if p.values_NP is not None:
                    view.declare_values(p.spec)
                places = view.reserve(p.length_B)
                token_N = p.start_B[places.row_N] + places.within_N
                rows.write_pieces(view, p, places, token_N, number)
                continue
            split = self._split(p, samples)
            places = view.reserve(split.input_B)
            ids = split.input_ids_N + p.offset
            view.write(places, number, ids, places.within_N[:, None])
            places, start_B = target.reserve(split.labels_B), np.zeros(len(samples), np.int64)
            wanted[name] = _write_spans(
                target, p, places, split.target_BT, start_B, number,
                room[name] * groups.num_rows, groups,
            )  # fmt: skip
        views, pieces = (
            {"input": view, "target": target},
            {n: p for n, (p, _) in pieces_and_cuts.items()},
        )
        counts = {f"cut/{n}": float(cut) for n, (_, cut) in pieces_and_cuts.items()}
        batch = rows.finish(samples, pieces, views, wanted, vocabulary)
        return batch, counts | rows.fill(views)

    def _counts(self, spec: TokenSpec, length: int) -> tuple[int, int]:
        return spans.noise_counts(length, self.rate, self.mean_length, spec.num_sentinels - 1)

    def _most(self, spec: TokenSpec) -> int:
        """Largest number of target tokens, over all lengths of the sequence."""
        if not spans.has_spans(spec):
            raise ValueError(
                f"Spans: target {spec.name!r} (kind={spec.kind!r}, num_sentinels="
                f"{spec.num_sentinels}) is not a sequence with 2 or more sentinels; name it in"
                " inputs alone, or use Masked."
            )
        return max(sum(self._counts(spec, n)) for n in range(1, spec.max_tokens + 1))

    def _split(self, p: rows.StreamPieces, samples) -> spans.Split:
        width = p.spec.max_tokens
        uniform_BI = np.stack([s.rng.random(2 * (width + 2)) for s in samples])
        keep = spans.noise(uniform_BI, p.length_B, width, lambda n: self._counts(p.spec, n))
        shown_B = np.ones(len(samples), bool)
        return spans.split_spans(p.padded(), keep, p.length_B, shown_B, p.spec.first_sentinel)
