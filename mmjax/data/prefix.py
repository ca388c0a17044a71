"""The Prefix layout: next-token prediction over one or several streams in order."""

from __future__ import annotations

import dataclasses

import numpy as np

from mmjax.config import ranges
from mmjax.data import rows
from mmjax.data.task import Layout
from mmjax.typing import InOrder, Targets


@dataclasses.dataclass(frozen=True, kw_only=True)
class Prefix(Layout):
    """Next-token prediction after a fully visible prefix (prefix LM, Raffel et al. 2020).

    A row holds the input streams, then the target streams, each after a begin token (sentinel 0, or
    the mask vector if the stream has no sentinels). Tokens of the prefix have order 0, later ones
    rising orders; the first predicted token is the first after the prefix.

    Fields:
      length: slots of a view; 0 = as many as full pieces need. Tokens that do not fit are cut from
        the end and counted.
      prefix_fraction: range of the random share of target tokens that joins the prefix.
      two_views: the prefix becomes the `input` view and the rest the `target` view, where each
        stream starts with its begin token and attends to no other stream (encoder-decoder).

    >>> import numpy as np
    >>> from mmjax.data.task import Sample, Streams
    >>> from mmjax.typing import Piece, TokenSpec, Vocabulary, positions
    >>> text = TokenSpec(name="text", kind="sequence", max_tokens=6, vocab_size=20)
    >>> piece = Piece(positions(5), ids_L=np.arange(10, 15, dtype=np.int32))
    >>> sample = Sample({"text": piece}, identity=0, sample=(0, 0), seed=0)
    >>> streams = Streams(inputs=(), targets=("text",))
    >>> layout = Prefix(prefix_fraction=(0.0, 0.0))
    >>> batch, counts = layout.build([sample], streams, Vocabulary((text,)))
    >>> batch.views["input"].ids_BL  # a begin token, then ids of text, which start at 128
    array([[  0, 138, 139, 140, 141,   0]], dtype=int32)
    >>> batch.targets["text"].label_WU
    array([[10, 11, 12, 13, 14,  0]], dtype=int32)
    """

    length: ranges.Natural = 0
    prefix_fraction: tuple[ranges.Fraction, ranges.Fraction] = (0.0, 0.5)
    two_views: bool = False

    def __post_init__(self):
        ranges.check(self)
        low, high = self.prefix_fraction
        if low > high:
            raise ValueError(
                f"Prefix: prefix_fraction={self.prefix_fraction} must rise within 0..1."
            )

    def build(self, samples, streams, vocabulary):
        return self.build_groups(samples, streams, vocabulary, 1)

    def build_groups(self, samples, streams, vocabulary, num_groups):
        context = [n for n in streams.inputs if n not in streams.targets]
        pieces_and_cuts = {
            n: rows.pieces(samples, n, vocabulary) for n in (*context, *streams.targets)
        }
        filling = _Filling(
            pieces_and_cuts, streams.targets, [s.rng.random() for s in samples], self
        )
        before = sum(pieces_and_cuts[n][0].spec.max_tokens for n in context)
        after = sum(pieces_and_cuts[n][0].spec.max_tokens for n in streams.targets)
        if self.two_views:
            visible = before + (after if self.prefix_fraction[1] > 0 else 0)
            views = {
                "input": rows.TokenArrays(len(samples), self._length(max(visible, 1))),
                "target": rows.TokenArrays(len(samples), self._length(after)),
            }
        else:
            length = self._length(before + after + len(streams.targets) - 1)
            views = {"input": rows.TokenArrays(len(samples), length)}
        if self.two_views and len(streams.targets) == 1:
            views["target"].rule = InOrder()
        elif not self.two_views and not context and self.prefix_fraction[1] == 0:
            views["input"].rule = InOrder()
        for name in (*context, *streams.targets):
            p = pieces_and_cuts[name][0]
            if p.values_NP is not None:
                for view in views.values() if name in streams.targets else [views["input"]]:
                    view.declare_values(p.spec)
        for name in context:
            filling.write_context(views["input"], name, vocabulary.number(name))
        groups, wanted = rows.groups(samples, num_groups), {}
        write = filling.write_apart if self.two_views else filling.write_behind
        for name in streams.targets:
            wanted[name] = write(views, name, vocabulary.number(name), groups)
        pieces = {n: p for n, (p, _) in pieces_and_cuts.items()}
        batch = rows.finish(samples, pieces, views, wanted, vocabulary)
        return batch, filling.counts | rows.fill(views)

    def _length(self, needed: int) -> int:
        return min(self.length, needed) if self.length else needed


class _Filling:
    """A batch being written into views, with each row split into prefix and rest."""

    def __init__(self, pieces_and_cuts, targets, uniform, layout: Prefix):
        self.pieces = {n: p for n, (p, _) in pieces_and_cuts.items()}
        self.counts = {f"cut/{n}": float(cut) for n, (_, cut) in pieces_and_cuts.items()}
        self.last = targets[-1]
        low, high = layout.prefix_fraction
        lengths = np.stack([self.pieces[n].length_B for n in targets], axis=1)
        total_B = lengths.sum(axis=1)
        share_B = low + (high - low) * np.asarray(uniform)
        known_B = np.minimum((share_B * total_B).astype(np.int64), np.maximum(total_B - 1, 0))
        known = np.clip(known_B[:, None] - (np.cumsum(lengths, axis=1) - lengths), 0, lengths)
        self.known_B = dict(zip(targets, known.T, strict=True))
        self.rank_B = np.zeros(len(total_B), np.int64)  # order of the slot written last

    def write_context(self, view: rows.TokenArrays, name: str, number: int) -> None:
        """Writes a whole input stream, of order 0."""
        p = self.pieces[name]
        count_B = np.minimum(p.length_B, view.room())
        self.counts[f"cut/{name}"] += float((p.length_B - count_B).sum())
        places = view.reserve(count_B)
        rows.write_pieces(view, p, places, p.start_B[places.row_N] + places.within_N, number)

    def write_behind(self, views, name: str, number: int, groups) -> Targets:
        """Writes begin token and tokens to one view; slots after the prefix predict the next."""
        view, p, known_B = views["input"], self.pieces[name], self.known_B[name]
        # The last token of the row predicts nothing; that of another stream is read by the next.
        wanted_B = np.where(p.length_B > 0, p.length_B + (name != self.last), 0)
        count_B = np.minimum(wanted_B, view.room())
        places = view.reserve(count_B)
        rank_N = places.within_N - known_B[places.row_N]
        whole_N = (known_B == p.length_B)[places.row_N]
        order_N = np.where(whole_N, 0, np.maximum(rank_N + self.rank_B[places.row_N], 0))
        self._write(view, p, places, number, places.within_N, order_N)
        self.rank_B = np.where(
            known_B == p.length_B, self.rank_B, self.rank_B + np.maximum(count_B - known_B, 0)
        )
        predicts_N = (places.within_N >= known_B[places.row_N]) & (
            places.within_N < p.length_B[places.row_N]
        )
        at = rows.Places(*(x[predicts_N] for x in places))
        self._count(name, (p.length_B - known_B).sum() - len(at.row_N))
        return self._targets(view, p, at, at.within_N, groups)

    def write_apart(self, views, name: str, number: int, groups) -> Targets:
        """Writes the prefix to `input`, begin token and rest to `target`."""
        p, known_B = self.pieces[name], self.known_B[name]
        count_B = np.minimum(known_B, views["input"].room())
        self.counts[f"cut/{name}"] += float((known_B - count_B).sum())
        places = views["input"].reserve(count_B)
        token_N = p.start_B[places.row_N] + places.within_N
        rows.write_pieces(views["input"], p, places, token_N, number)
        view, rest_B = views["target"], p.length_B - known_B
        count_B = np.minimum(rest_B, view.room())
        places = view.reserve(count_B)
        token_N = np.where(places.within_N > 0, places.within_N + known_B[places.row_N], 0)
        self._write(view, p, places, number, token_N, places.within_N)
        self._count(name, (rest_B - count_B).sum())
        label_N = places.within_N + known_B[places.row_N]
        return self._targets(view, p, places, label_N, groups)

    def _write(self, view, p: rows.StreamPieces, places, number: int, before_N, order_N) -> None:
        """Writes token `before_N` - 1 of its piece to each slot; 0 = the begin token."""
        token_N = p.start_B[places.row_N] + np.maximum(before_N - 1, 0)
        position = p.position_NA[token_N]
        if p.spec.kind == "sequence":
            position = places.within_N[:, None]
        is_begin = before_N == 0
        if p.ids_N is None:
            ids = 0
        else:
            begin = p.spec.first_sentinel + p.offset if p.spec.num_sentinels else 0
            ids = np.where(is_begin, begin, p.ids_N[token_N] + p.offset)
        view.write(places, number, ids, position, order_N)
        if p.values_NP is not None:
            at = rows.Places(*(x[~is_begin] for x in places))
            view.write_values(at, p.spec.name, p.values_NP[token_N[~is_begin]], at.within_N - 1)

    def _targets(self, view, p: rows.StreamPieces, places, label_N, groups) -> Targets:
        room = groups.num_rows * min(p.spec.max_tokens, view.length)
        token_N = p.start_B[places.row_N] + label_N
        return rows.targets(p, room, places, groups, token_N=token_N)

    def _count(self, name: str, trimmed) -> None:
        self.counts[f"trimmed/{name}"] = float(trimmed)
