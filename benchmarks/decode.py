"""Autoregressive decoding with and without the key/value cache.

    python benchmarks/decode.py [--tokens 128] [--rows 8] [--width 256] [--rounds 5]

Both decode the same number of tokens greedily behind the same memory, in one jitted loop each, and
must give the same ids. Without the cache each token costs a pass of the decoder over all slots (a
static shape, as a compiled loop has it); the memory is encoded once in both. Runs are interleaved;
the JSON line holds medians in seconds and their ratio.
"""

from __future__ import annotations

import argparse
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
from mmjax.models import MoE, Transformer
from mmjax.models.embed import VocabularyHead
from mmjax.typing import Tokens, TokenSpec, Vocabulary, positions

SOURCE = TokenSpec(name="codes", kind="grid", max_tokens=64, vocab_size=512, grid=(1, 8, 8))


def world(tokens: int, width: int, experts: int):
    """(model taken apart, vocabulary) of a model over codes and text."""
    # Without an end, so that every row has all its tokens.
    text = TokenSpec(name="text", kind="sequence", max_tokens=tokens, vocab_size=1024, text=True)
    vocabulary = Vocabulary((SOURCE, text))
    config = Transformer(
        width=width, num_heads=4, encoder_layers=2, decoder_layers=4, dtype="float32",
        moe=MoE(num_experts=experts) if experts else None,
    )  # fmt: skip
    heads = {"vocabulary": VocabularyHead()}
    parts = step_lib.split(functools.partial(config.make, vocabulary, heads, 0))
    return parts, vocabulary


def fresh(parts):
    """Parameters and model state, as the model makes them."""
    model = nnx.as_pure(nnx.split(parts.make(), nnx.Param, ...)[1:])
    return model[0], model[1]


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
    options = parser.parse_args()
    parts, vocabulary = world(options.tokens, options.width, options.experts)
    state = jax.jit(lambda: fresh(parts))()
    rng, rows = np.random.default_rng(0), options.rows
    start, stop = vocabulary.range("codes")
    one = np.ones((rows, SOURCE.max_tokens), np.int32)
    position = np.broadcast_to(positions(SOURCE.grid or SOURCE.max_tokens)[None], (*one.shape, 3))
    ids = rng.integers(start, stop, one.shape).astype(np.int32)
    known = Tokens(ids, one, one, 0 * one, position)
    style = decoders.Style("text", "autoregressive", 0, 1.0, is_guided=False, is_drawn=False)
    sampling = decoders.SamplingParams(np.ones(1, np.int32), np.zeros(1, np.float32), np.float32(1))

    def cached(state, known):
        model = step_lib.bind(parts, *state, rows, "float32")
        keys = jax.vmap(jax.random.key)(jnp.arange(rows, dtype=jnp.uint32))
        return decoders.autoregressive(model, style, sampling, known, options.tokens, keys)

    def plain(state, known):
        model = step_lib.bind(parts, *state, rows, "float32")
        return without_cache(model, style, known, options.tokens)

    ways = {"with_cache": jax.jit(cached), "without_cache": jax.jit(plain)}
    found = {name: np.asarray(run(state, known)) for name, run in ways.items()}
    assert (found["with_cache"] == found["without_cache"]).all()
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(options.rounds):
        for name, run in ways.items():
            begin = time.perf_counter()
            jax.block_until_ready(run(state, known))
            seconds[name].append(time.perf_counter() - begin)
    median = {name: statistics.median(values) for name, values in seconds.items()}
    report = vars(options) | {"device": jax.devices()[0].device_kind}
    report |= {f"{name}_seconds": round(value, 4) for name, value in median.items()}
    report["ratio"] = round(median["without_cache"] / median["with_cache"], 2)
    print(json.dumps(report))


if __name__ == "__main__":
    main()
