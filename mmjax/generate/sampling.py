"""sample(): generation of many samples at once, stream by stream, on the mesh of a view."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from mmjax import step as step_lib
from mmjax.config.error import nearest
from mmjax.experiment import Experiment
from mmjax.generate import decoders, rerank, views
from mmjax.generate.plan import Decoding
from mmjax.parallel import mesh as mesh_lib
from mmjax.parallel import together
from mmjax.run import view as view_lib
from mmjax.run.program import Program
from mmjax.typing import Piece, Tokens, positions

MAX_ROWS = 100  # of a device


def sample(
    view: view_lib.View,
    pieces: Sequence[views.Pieces],
    plan: Sequence[Decoding],
    seeds: Sequence[int],
) -> list[dict[str, Piece]]:
    """What the model makes of known pieces: the streams of `plan`, decoded in its order.

    Each finished stream joins what is known (where the run has it among the inputs of a generative
    task), so later items of the plan see it. A sample depends on its pieces and its seed alone.

    Args:
      view: from `mmjax.load(path)`.
      pieces: by sample and stream; streams that are absent or None are unknown.
      plan: one item for each stream.
      seeds: one integer in 0..2^32-1 for each sample.

    Raises:
      ValueError: a stream was never a target, is known already, or cannot be decoded so.
    """
    program, experiment = view.program, view.program.experiment
    if len(seeds) != len(pieces):
        raise ValueError(f"sample: {len(seeds)} seeds for {len(pieces)} samples; give one each.")
    items = checked(experiment, pieces, plan)
    shards = mesh_lib.batch_shards(program.mesh)
    joining = set(inputs(experiment))
    out: list[dict[str, Piece]] = []
    for start in range(0, len(pieces), MAX_ROWS * shards):
        part = [dict(p) for p in pieces[start : start + MAX_ROWS * shards]]
        rows = shards * _rows(-(-len(part) // shards))
        padding = rows - len(part)
        part += [{} for _ in range(padding)]
        seeds_B = np.asarray([*seeds[start : start + rows - padding]] + [0] * padding, np.uint32)
        made: list[dict[str, Piece]] = [{} for _ in part]
        for item in items:
            ids_BL = _decode(view, part, item, seeds_B)
            view.pause()
            spec = program.vocabulary.spec(item.stream)
            for row, ids_L in enumerate(ids_BL):
                made[row][item.stream] = views.piece(spec, ids_L)
                if item.stream in joining:
                    part[row][item.stream] = made[row][item.stream]
        out += made[: rows - padding]
    return out


def checked(
    experiment: Experiment, pieces: Sequence[views.Pieces], plan: Sequence[Decoding]
) -> list[Decoding]:
    """The plan with schemes and steps settled. Raises ValueError as `sample` says."""
    names = [item.stream for item in plan]
    if not names or len(set(names)) < len(names):
        raise ValueError(f"Generation: the plan's streams are {names}; want each of some once.")
    is_prefix = _is_prefix(experiment)
    known = {n for p in pieces for n, value in p.items() if value is not None}
    able_in, able_out = inputs(experiment), targets(experiment)
    for name in sorted(known - set(able_in)):
        raise ValueError(
            f"Generation: stream {name!r} is given, but is an input of no generative task"
            f"{nearest(name, able_in)}"
        )
    vocabulary, items = experiment.vocabulary(), []
    for item in plan:
        if item.stream not in able_out:
            raise ValueError(
                f"Generation: stream {item.stream!r} is wanted, but is a target of no generative"
                f" task, so the model has not learned it{nearest(item.stream, able_out)}"
            )
        if item.stream in known:
            raise ValueError(
                f"Generation: stream {item.stream!r} is wanted and given; leave one out."
            )
        items.append(item.resolved(vocabulary.spec(item.stream)))
        if item.rerank and not rerank.contrasts(experiment, item.stream):
            raise ValueError(
                f"Generation: rerank={item.rerank:g} of stream {item.stream!r}, but no contrastive"
                " task has it among its inputs; leave rerank at 0."
            )
        if is_prefix and items[-1].scheme != "autoregressive":
            raise ValueError(
                f"Generation: stream {item.stream!r} is no sequence, and a model without an"
                " encoder writes sequences only; use shape='encoder_decoder'."
            )
    return items


def targets(experiment: Experiment) -> tuple[str, ...]:
    """Streams of ids that some generative task predicts."""
    names = [n for task in _generative(experiment) for n in task.targets]
    vocabulary = experiment.vocabulary()
    return tuple(n for n in dict.fromkeys(names) if vocabulary.spec(n).vocab_size)


def inputs(experiment: Experiment) -> tuple[str, ...]:
    """Streams that some generative task reads."""
    return tuple(dict.fromkeys(n for task in _generative(experiment) for n in task.inputs))


def _is_prefix(experiment: Experiment) -> bool:
    """Whether what is known is a prefix (decoder), not a view of its own (encoder-decoder)."""
    model: Any = experiment.model
    runs = getattr(model, "layer_plan", tuple)()
    if not runs or not (model.read_lanes() or all(b.is_causal for r in runs for b in r.pattern)):
        raise ValueError(
            f"Generation: a {type(model).__name__} of shape={getattr(model, 'shape', '')!r} does"
            " not decode; use a Transformer of shape='encoder_decoder' or 'decoder'."
        )
    return not model.read_lanes()


def _generative(experiment: Experiment):
    return [t for t in experiment.tasks.values() if t.objective.generates]


def _rows(count: int) -> int:
    """Rows of a device: few different numbers, so that few shapes are compiled."""
    return min(MAX_ROWS, 1 << (count - 1).bit_length())


def _decode(view: view_lib.View, pieces, item: Decoding, seeds_B: np.ndarray) -> np.ndarray:
    """Local ids [B, L] of one stream."""
    program = view.program
    spec = program.vocabulary.spec(item.stream)
    style = decoders.Style(
        item.stream,
        item.scheme,
        item.top_k,
        item.top_p,
        is_guided=item.guidance != 1,
        is_drawn=item.temperature > 0 or item.temperature_schedule.startswith("onex"),
        beams=item.beams,
    )
    counts_S = np.ones(1, np.int32)
    if item.scheme != "autoregressive":
        counts_S = item.counts(spec.max_tokens)
    sampling = decoders.SamplingParams(
        counts_S, item.temperatures(counts_S), np.float32(item.guidance)
    )
    tokens = _known(program, pieces, item, room=spec.max_tokens if len(counts_S) > 1 else 0)
    put = lambda x: jax.device_put(x, program.batch_sharding)
    run = _compiled(program, style)
    with jax.set_mesh(program.mesh):
        found = run(view.params, view.model_state, sampling, put(tokens), put(seeds_B))
    if item.beams == 1:
        return view_lib.to_host(found)
    ids_BCL, score_BC = map(view_lib.to_host, found)
    if item.rerank:
        return rerank.choose(view, pieces, item, ids_BCL, score_BC)
    return ids_BCL[:, 0]


def _known(program: Program, pieces, item: Decoding, room: int) -> Tokens:
    """The view of what is known, doubled for guidance, with free slots for what is decided."""
    vocabulary, experiment = program.vocabulary, program.experiment
    there = {name for p in pieces for name, value in p.items() if value is not None}
    names = [s.name for s in vocabulary.specs if s.name in there]
    is_prefix = _is_prefix(experiment)
    if is_prefix:
        room = 1
    begun = [n for n in names if n in targets(experiment)] if is_prefix else []
    continuous = [n for n in inputs(experiment) if not vocabulary.spec(n).vocab_size]
    tokens = views.known(vocabulary, pieces, names, room=room, begun=begun, continuous=continuous)
    both = [tokens]
    if item.guidance != 1:
        both += [views.emptied(vocabulary, tokens, pieces, names, sentinels=not is_prefix)]
    if is_prefix:
        both = [views.begun(vocabulary, t, item.stream) for t in both]
    interleave = lambda *x: np.stack(x, axis=1).reshape(-1, *x[0].shape[1:])
    return jax.tree.map(interleave, *both)


def _compiled(program: Program, style: decoders.Style):
    """Jitted (params, model_state, sampling, tokens, seeds) -> ids [B, L], or those of all beams
    and their scores; made once a program."""
    if ("generate", style) in program.compiled:
        return program.compiled["generate", style]
    spec = program.vocabulary.spec(style.stream)

    def run(params, model_state, sampling, tokens, seeds_B):
        rows = tokens.ids_BL.shape[0] // mesh_lib.batch_shards(program.mesh)
        model = step_lib.bind(program, params, model_state, rows, program.dtype)
        key_B = jax.vmap(jax.random.key)(seeds_B)
        if style.beams > 1:
            return decoders.beam_search(model, style, sampling, tokens, spec.max_tokens)
        if style.scheme == "autoregressive":
            return decoders.autoregressive(model, style, sampling, tokens, spec.max_tokens, key_B)
        position_LA = positions(spec.grid or spec.max_tokens)
        return decoders.parallel(model, style, sampling, tokens, position_LA, key_B)

    return program.compiled.setdefault(("generate", style), together.jit(run))
