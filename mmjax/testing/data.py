"""Contracts of the data side: modalities, augmentations, tokenizers, sources, layouts, ..."""

from __future__ import annotations

import collections
import pickle
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from mmjax.data import schedules
from mmjax.data.augment import Augment
from mmjax.data.source import BadRecord, Source
from mmjax.data.task import Layout, Sample, Streams
from mmjax.modalities.modality import Modality
from mmjax.testing.require import Broken, inert, require, same
from mmjax.tokenizers.tokenizer import Tokenizer
from mmjax.typing import NUM_AXES, Batch, Piece, TokenSpec, Vocabulary, positions


def check_modality(
    modality: Modality,
    values: Sequence[Any],
    bad: Sequence[Any] = (),
    alike: Callable[[Any, Any], bool] | None = None,
) -> None:
    """Encoding keeps the spec, repeats exactly, leaves the value alone, and decodes.

    Args:
      modality: ready (`fit`). values: raw ones. bad: such that `encode` must refuse.
      alike: (value, decoded) -> whether they are the same; None = decoding is not compared.
    """
    copy, spec = inert(modality, Modality), modality.spec("name")
    require(spec.name == "name", modality, "spec()", "it must carry the name that it was given")
    require(modality.encode(None) is None, modality, "encode()", "None (absent) gives None")
    for value in values:
        kept = pickle.dumps(value)
        piece = modality.encode(value)
        require(piece is not None, modality, "encode()", "a value must give a Piece")
        assert piece is not None
        _check_piece(modality, piece, spec)
        require(pickle.dumps(value) == kept, modality, "encode()", "it must leave the value alone")
        for other in (modality, copy):
            require(
                same(other.encode(value), piece), modality, "encode()", "it must repeat exactly"
            )
        if alike is not None:
            back = modality.decode(piece)
            require(alike(value, back), modality, "decode()", f"{back!r} is not the value")
        for seed in (1, 2):
            other = modality.augment(piece, np.random.default_rng(seed))
            _check_piece(modality, other, spec)
            if not modality.is_augmented:
                pairs = zip(other[:3], piece[:3], strict=True)
                close = all(
                    a is None if b is None else a is not None and np.allclose(a, b, atol=1e-6)
                    for a, b in pairs
                )
                require(close, modality, "augment()", "it changes a piece, so is_augmented is True")
    for value in bad:
        try:
            modality.encode(value)
        except ValueError:
            continue
        raise Broken(f"{type(modality).__name__}.encode(): {value!r} must raise ValueError.")


def check_augment(
    augment: Augment, modality: Modality, values: Sequence[Any], at_rest: bool = False
) -> None:
    """Variations keep the spec, repeat exactly by their seed, and leave what they are given alone.

    Args:
      modality: ready (`fit`). values: raw ones. at_rest: whether all its ranges are at rest, so
        that a variation is the piece of the value; otherwise seeds must make a difference.
    """
    copy, spec = inert(augment, Augment), modality.spec("name")
    told = lambda condition, rule: require(condition, augment, "__call__()", rule)
    for value in values:
        given = pickle.dumps(value)
        kept = augment.prepare(value, modality)
        told(pickle.dumps(value) == given, "prepare() must leave the value alone")
        told(kept is not None, "a value must not become absent in prepare()")
        plain, frozen, varied = modality.encode(value), pickle.dumps(kept), []
        if augment.of_pieces:
            told(same(kept, plain), "prepare() gives the piece of encode(), as of_pieces says")
        for seed in range(8):
            piece = augment(kept, modality, augment.generator("name", seed))
            told(piece is not None, "a value must not become absent")
            assert piece is not None
            _check_piece(modality, piece, spec)
            told(pickle.dumps(kept) == frozen, "it must leave the prepared value alone")
            again = copy(kept, modality, copy.generator("name", seed))
            told(same(again, piece), "the same seed gives the same bytes, also in a worker's copy")
            varied.append(piece)
        if at_rest:
            told(all(same(v, plain) for v in varied), "at rest it gives the piece of the value")
        else:
            told(not all(same(v, varied[0]) for v in varied), "other seeds give other variations")


def _check_piece(modality: Modality, piece: Piece, spec: TokenSpec) -> None:
    told = lambda condition, rule: require(condition, modality, "encode()", rule)
    length = piece.length
    told(1 <= length <= spec.max_tokens, f"{length} tokens are not 1..max_tokens={spec.max_tokens}")
    told(piece.position_LA.shape == (length, NUM_AXES), f"positions are [L, {NUM_AXES}]")
    told(piece.position_LA.dtype == np.float32, "positions are float32")
    told(np.isfinite(piece.position_LA).all(), "positions are finite")
    told((piece.ids_L is None) != (piece.values_LP is None), "a piece has ids or values")
    if spec.vocab_size:
        told(piece.ids_L is not None, "a spec with vocab_size has ids")
        ids_L = np.asarray(piece.ids_L)
        told(ids_L.dtype == np.int32 and ids_L.shape == (length,), "ids are int32 [L]")
        told(((ids_L >= 0) & (ids_L < spec.vocab_size)).all(), "ids are 0..vocab_size - 1")
    else:
        told(piece.values_LP is not None, "a spec without vocab_size has values")
        values_LP = np.asarray(piece.values_LP)
        told(values_LP.dtype == np.float32, "values are float32")
        told(values_LP.shape == (length, spec.width), f"values are [L, width={spec.width}]")
        told(np.isfinite(values_LP).all(), "values are finite")
    if spec.grid is not None and length == spec.max_tokens:
        told(same(piece.position_LA, positions(spec.grid)), "positions run over the spec's grid")


def check_tokenizer(
    tokenizer: Tokenizer,
    values: Sequence[Any],
    alike: Callable[[Any, Any], bool] | None = None,
) -> None:
    """Ids are in range and repeat exactly, also in a worker's copy; a ready one has a fingerprint.

    Args:
      tokenizer: ready (`fit`). values, alike: as for `check_modality`.
    """
    copy = inert(tokenizer, Tokenizer)
    require(tokenizer.fingerprint, tokenizer, "fingerprint", "a ready tokenizer has one")
    require(
        copy.fingerprint == tokenizer.fingerprint, tokenizer, "fingerprint", "copies have it too"
    )
    for value in values:
        ids = np.asarray(tokenizer.encode(value))
        require(ids.ndim == 1 and ids.dtype == np.int32, tokenizer, "encode()", "ids are int32 [L]")
        inside = ((ids >= 0) & (ids < tokenizer.vocab_size)).all()
        require(
            inside, tokenizer, "encode()", f"ids are 0..vocab_size - 1={tokenizer.vocab_size - 1}"
        )
        for other in (tokenizer, copy):
            require(same(other.encode(value), ids), tokenizer, "encode()", "it must repeat exactly")
        if alike is not None:
            back = tokenizer.decode(ids)
            require(alike(value, back), tokenizer, "decode()", f"{back!r} is not the value")


def check_source(source: Source, limit: int = 16) -> None:
    """Splits open, examples hold known keys and repeat, also in a worker's copy."""
    copy = inert(source, Source)
    splits, keys = source.splits(), source.keys()
    require(splits and len(set(splits)) == len(splits), source, "splits()", "distinct names")
    mark = source.fingerprint()
    require(isinstance(mark, str) and mark, source, "fingerprint()", "a text that is not empty")
    require(mark == copy.fingerprint(), source, "fingerprint()", "equal sources have equal ones")
    for split in splits:
        records, again = source.open(split), pickle.loads(pickle.dumps(copy.open(split)))
        require(len(records) > 0, source, "open()", f"split {split!r} has records")
        require(len(records) == len(again), source, "open()", "a copy has as many records")
        for index in range(min(limit, len(records))):
            try:
                example = records[index]
            except BadRecord:
                continue
            extra = set(example) - set(keys) - {"identity", "slices"}
            require(not extra, source, "keys()", f"examples hold {sorted(extra)}, which it lacks")
            identity = example.get("identity", 0)
            require(isinstance(identity, (int, np.integer)), source, "open()", "identity is an int")
            require(same(dict(example), dict(again[index])), source, "open()", "records repeat")


def random_piece(spec: TokenSpec, rng: np.random.Generator) -> Piece:
    """Any tokens that a spec allows."""
    whole = spec.kind == "grid"
    length = spec.max_tokens if whole else int(rng.integers(1, spec.max_tokens + 1))
    place = positions(spec.grid)[:length] if spec.grid else positions(length)
    if spec.vocab_size:
        high = spec.first_sentinel if spec.num_sentinels else spec.vocab_size
        return Piece(place, ids_L=rng.integers(0, high, length).astype(np.int32))
    return Piece(place, values_LP=rng.normal(size=(length, spec.width)).astype(np.float32))


def samples(
    specs: Sequence[TokenSpec], rows: int, seed: int = 0, absent: float = 0.25
) -> list[Sample]:
    """Samples of random tokens, some of them absent."""
    made = []
    for row in range(rows):
        rng = np.random.default_rng([seed, row])
        pieces = {s.name: None if rng.random() < absent else random_piece(s, rng) for s in specs}
        made.append(Sample(pieces, row, (row, 0), seed=1000 * seed + row))
    return made


def check_layout(
    layout: Layout, specs: Sequence[TokenSpec], streams: Streams, rows: int = 4, groups: int = 2
) -> None:
    """Shapes are static, batches repeat, targets point inside, nothing absent is there.

    Args:
      specs: of the vocabulary. streams: those that a task reads and predicts.
    """
    inert(layout, Layout)
    vocabulary, names = Vocabulary(tuple(specs)), dict.fromkeys((*streams.inputs, *streams.targets))
    used = [vocabulary.spec(name) for name in names]
    told = lambda condition, rule: require(condition, layout, "build()", rule)
    build = lambda seed, absent: layout.build(
        samples(used, rows, seed, absent), streams, vocabulary
    )
    (full, counts), (none, _) = build(0, 0.25), build(0, 2.0)
    for other in (none, build(1, 0.0)[0]):
        told(_shapes(other) == _shapes(full), "shapes and types do not depend on the samples")
    told(same(build(0, 0.25)[0], full), "the same samples give the same batch")
    told({"tokens", "slots"} <= set(counts), "counts have tokens and slots")
    told(counts["tokens"] <= counts["slots"], "there are no more tokens than slots")
    told(set(full.targets) == set(streams.targets), "there are targets of each target stream")
    told(full.present_BSM.shape[::2] == (rows, len(specs)), "present is [B, S, M]")
    _check_views(layout, full, vocabulary)
    told(not any(t.weight_WU.any() for t in none.targets.values()), "nothing absent is a target")
    joined, _ = layout.build_groups(samples(used, rows * groups, 3), streams, vocabulary, groups)
    told(len(joined.weight_BS) == rows * groups, "build_groups() joins the rows of all groups")


def _shapes(batch: Any) -> Any:
    if isinstance(batch, dict):
        return {name: _shapes(value) for name, value in batch.items()}
    if isinstance(batch, tuple):
        return [_shapes(value) for value in batch]
    return None if batch is None else (batch.shape, batch.dtype.name)


def _check_views(layout: Layout, batch: Batch, vocabulary: Vocabulary) -> None:
    told = lambda condition, rule: require(condition, layout, "build()", rule)
    for name, view in batch.views.items():
        padding = view.stream_BL == 0
        told(((view.segment_BL == 0) == padding).all(), f"view {name!r}: padding has no segment")
        told(not view.ids_BL[padding].any(), f"view {name!r}: padding has id 0")
        for number, spec in enumerate(vocabulary.specs, 1):
            ids = view.ids_BL[(view.stream_BL == number) & (view.ids_BL > 0)]
            start, _ = vocabulary.range(spec.name)
            inside = (ids >= start) & (ids < start + max(spec.vocab_size, 1))
            told(inside.all(), f"view {name!r}: ids of {spec.name!r} are in its range")
    view = batch.views.get("target", batch.views.get("input"))
    for name, targets in batch.targets.items():
        used = targets.weight_WU > 0
        told((targets.weight_WU >= 0).all(), "weights of targets are not negative")
        told((targets.sample_WU[used] < batch.weight_BS.size).all(), "targets are of known samples")
        if view is not None:
            told((targets.slot_WU[used] < view.ids_BL.shape[1]).all(), "targets lie in the row")
        if targets.label_WU is not None:
            labels = targets.label_WU[used]
            size = vocabulary.spec(name).vocab_size
            told(((labels >= 0) & (labels < size)).all(), f"labels of {name!r} are its own ids")


def check_schedule(
    schedule: schedules.Schedule, weights: dict[str, float], period: int = 20, steps: int = 200
) -> None:
    """Places are found in any order, and counts are those of the places before.

    Args:
      weights: by task.
    """
    inert(schedule, schedules.Schedule)
    told = lambda condition, rule: require(condition, schedule, "order()", rule)
    segment = schedules.Segment(weights, dict.fromkeys(weights, 1), period, seed=0, start=0)
    order, seen = schedule.order(segment), collections.Counter()
    for step in range(steps):
        member, rank = order.locate(step)
        told(0 <= member < len(weights), f"locate() gives a task's number, not {member}")
        told(rank == seen[member], "the second of locate() counts the task's earlier steps")
        counts = list(order.counts(step))
        told(counts == [seen[i] for i in range(len(weights))], "counts() are the steps before")
        seen[member] += 1
    fresh = schedule.order(segment)
    told(fresh.locate(steps - 1) == order.locate(steps - 1), "a step is found without the others")
    for number, (name, weight) in enumerate(weights.items()):
        told(weight == 0 or seen[number], f"task {name!r} of weight {weight:g} has steps")
