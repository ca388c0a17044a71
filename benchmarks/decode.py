"""Autoregressive decoding with and without the key/value cache, and without a scan over layers.

    python benchmarks/decode.py [--tokens 128] [--rows 8] [--width 256] [--rounds 5] [--no-whole]

All decode the same number of tokens greedily behind the same memory, in one jitted loop each, and
must give the same ids. Without the cache each token costs a pass of the decoder over all slots (a
static shape, as a compiled loop has it); `unrolled` has a cache, and a run of its own for each
layer. The memory is encoded once. Runs are interleaved; the JSON line holds medians of CPU seconds
(wall seconds elsewhere) and their ratios.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import json
import statistics
import time

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from mmjax import step as step_lib
from mmjax.generate import decoders
from mmjax.models import MoE, Run, Transformer, names
from mmjax.models.embed import VocabularyHead
from mmjax.typing import Tokens, TokenSpec, Vocabulary, positions

HEADS = {"vocabulary": VocabularyHead()}
SOURCE = TokenSpec(name="codes", kind="grid", max_tokens=64, vocab_size=512, grid=(1, 8, 8))


def world(tokens: int, width: int, experts: int):
    """Vocabulary over codes and text, and a model with scanned and one with separate layers."""
    # Without an end, so that every row has all its tokens.
    text = TokenSpec(name="text", kind="sequence", max_tokens=tokens, vocab_size=1024, text=True)
    scanned = Transformer(
        width=width, num_heads=4, encoder_layers=2, decoder_layers=4, dtype="float32",
        moe=MoE(num_experts=experts) if experts else None,
    )  # fmt: skip
    flat = tuple(
        Run(pattern=(block,))
        for run in scanned.layer_plan()
        for _ in range(run.repeats)
        for block in run.pattern
    )
    return Vocabulary((SOURCE, text)), scanned, dataclasses.replace(scanned, runs=flat)


def taken_apart(config: Transformer, vocabulary: Vocabulary):
    """Parts of a model, where its parameters lie by canonical name, and fresh arrays."""
    parts = step_lib.split(functools.partial(config.make, vocabulary, HEADS, 0))
    where = names.canonical_parts(
        config, vocabulary, tuple(HEADS), list(names.flatten(parts.params))
    )

    def fresh():
        model = nnx.as_pure(nnx.split(parts.make(), nnx.Param, ...)[1:])
        return model[0], model[1]

    return parts, where, jax.jit(fresh)()


def without_cache(model, style, known: Tokens, length: int) -> jax.Array:
    """Greedy ids [B, L]: a pass over all slots for each token."""
    number, (start, _) = model.vocabulary.number(style.stream), model.vocabulary.range(style.stream)
    memory, rows = model.encode(known), known.ids_BL.shape[0]
    begin = decoders.views.begin_id(model.vocabulary, style.stream)
    place_L = jnp.arange(length, dtype=jnp.int32)
    ones = jnp.ones((rows, length), jnp.int32)
    position = jnp.broadcast_to(place_L.astype(jnp.float32)[None, :, None], (rows, length, 3))

    def step(ids_BL, i):
        read = jnp.concatenate([ones[:, :1] * begin, ids_BL[:, :-1] + start], axis=1)
        tokens = Tokens(read, ones * number, ones, ones * place_L[None], position)
        x_BLD = model.decode(tokens, memory).x_BLD
        x_B1D = jax.lax.dynamic_slice_in_dim(x_BLD, i, 1, axis=1)
        best = jnp.argmax(decoders.logits_of(model, x_B1D, style), axis=-1).astype(jnp.int32)
        return jax.lax.dynamic_update_slice_in_dim(ids_BL, best, i, axis=1), None

    return jax.lax.scan(step, jnp.zeros((rows, length), jnp.int32), place_L)[0]


def main() -> None:
    """Measures and prints one JSON line."""
    parser = argparse.ArgumentParser()
    for name, default in (("tokens", 128), ("rows", 8), ("width", 256), ("rounds", 5)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--experts", type=int, default=0, help="0 = dense")
    parser.add_argument("--no-whole", dest="whole", action="store_false", help="only with a cache")
    options = parser.parse_args()
    vocabulary, scanned, flat = world(options.tokens, options.width, options.experts)
    parts, where, state = taken_apart(scanned, vocabulary)
    flat_parts, flat_where, (flat_params, flat_state) = taken_apart(flat, vocabulary)
    arrays = names.to_canonical(jax.device_get(state[0]), where)
    flat_params, new = names.from_canonical(arrays, jax.device_get(flat_params), flat_where)
    assert not new
    rng, rows = np.random.default_rng(0), options.rows
    start, stop = vocabulary.range("codes")
    one = np.ones((rows, SOURCE.max_tokens), np.int32)
    position = np.broadcast_to(positions(SOURCE.grid or SOURCE.max_tokens)[None], (*one.shape, 3))
    ids = rng.integers(start, stop, one.shape).astype(np.int32)
    known = Tokens(ids, one, one, 0 * one, position)
    style = decoders.Style("text", "autoregressive", 0, 1.0, is_guided=False, is_drawn=False)
    sampling = decoders.SamplingParams(np.ones(1, np.int32), np.zeros(1, np.float32), np.float32(1))

    def cached(parts, state, known):
        model = step_lib.bind(parts, *state, rows, "float32")
        keys = jax.vmap(jax.random.key)(jnp.arange(rows, dtype=jnp.uint32))
        return decoders.autoregressive(model, style, sampling, known, options.tokens, keys)

    def plain(state, known):
        model = step_lib.bind(parts, *state, rows, "float32")
        return without_cache(model, style, known, options.tokens)

    ways = {
        "with_cache": (jax.jit(functools.partial(cached, parts)), state),
        "unrolled": (jax.jit(functools.partial(cached, flat_parts)), (flat_params, flat_state)),
        "without_cache": (jax.jit(plain), state),
    }
    if not options.whole:
        del ways["without_cache"]
    found = {name: np.asarray(run(state, known)) for name, (run, state) in ways.items()}
    for ids in found.values():
        assert (ids == found["with_cache"]).all()
    # CPU time where the CPU computes: what else runs on the machine counts less.
    clock = time.process_time if jax.default_backend() == "cpu" else time.perf_counter
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(options.rounds):
        for name, (run, state) in ways.items():
            begin = clock()
            jax.block_until_ready(run(state, known))
            seconds[name].append(clock() - begin)
    median = {name: statistics.median(values) for name, values in seconds.items()}
    report = vars(options) | {"device": jax.devices()[0].device_kind}
    report |= {f"{name}_seconds": round(value, 4) for name, value in median.items()}
    report |= {
        f"{name}_over_with_cache": round(value / median["with_cache"], 3)
        for name, value in median.items()
        if name != "with_cache"
    }
    print(json.dumps(report))


if __name__ == "__main__":
    main()
