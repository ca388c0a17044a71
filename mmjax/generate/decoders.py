"""The schemes as pure functions over a model: loops over its calls with static shapes.

With guidance the rows of the known view are doubled: each row is followed by its unconditional
twin, so a shard of the batch holds both.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from mmjax.generate import views
from mmjax.models import cache as cache_lib
from mmjax.typing import NUM_AXES, Array, General, Tokens


class Style(NamedTuple):
    """What is static of a plan item; hashable."""

    stream: str
    scheme: str
    top_k: int
    top_p: float
    is_guided: bool
    is_drawn: bool  # False = temperature 0 throughout: no noise is made
    beams: int = 1


class SamplingParams(NamedTuple):
    """What is not static of a plan item: changing it compiles nothing."""

    counts_S: Array  # int32: tokens of each step
    temperature_S: Array  # float32
    guidance: Array  # float32


def parallel(
    model, style: Style, sampling: SamplingParams, known: Tokens, position_LA, key_B
) -> Array:
    """MaskGIT or ROAR: local ids [B, L] of a grid.

    The last L slots of `known` are free where there is more than one step: what is decided joins
    them, and the input is encoded again.
    """
    rows, length = len(key_B), len(position_LA)
    number, (start, _) = model.vocabulary.number(style.stream), model.vocabulary.range(style.stream)
    key_B = _folded(key_B, number)
    order_BL = jax.vmap(lambda key: jax.random.permutation(key, length))(key_B)

    def tokens(ids_BL, shown_BL):
        return _twins(grid_tokens(number, position_LA, ids_BL, shown_BL), style)

    def step(carry, now):
        ids_BL, decided_BL, taken = carry
        i, count, temperature = now
        source = known
        if len(sampling.counts_S) > 1:
            source = _joined(known, tokens(ids_BL + start, decided_BL))
        chosen_BL = ~decided_BL
        if style.scheme == "roar":
            chosen_BL = (order_BL >= taken) & (order_BL < taken + count)
        target = tokens(jnp.zeros_like(ids_BL), chosen_BL)
        x = model.decode(target, model.encode(source)).x_BLD
        logits = _guided(logits_of(model, x, style), style, sampling)
        new_BL, surety_BL = draw(logits, style, temperature, _folded(key_B, i))
        if style.scheme == "maskgit":
            surety_BL = jnp.where(decided_BL, -jnp.inf, surety_BL)
            rank_BL = jnp.argsort(jnp.argsort(-surety_BL, axis=1), axis=1)
            chosen_BL &= rank_BL < count
        ids_BL = jnp.where(chosen_BL, new_BL, ids_BL)
        return (ids_BL, decided_BL | chosen_BL, taken + count), None

    nothing = jnp.zeros((rows, length), jnp.int32)
    steps = jnp.arange(len(sampling.counts_S))
    carry = (nothing, nothing > 0, jnp.zeros((), jnp.int32))
    carry, _ = jax.lax.scan(step, carry, (steps, sampling.counts_S, sampling.temperature_S))
    return carry[0]


def autoregressive(
    model, style: Style, sampling: SamplingParams, known: Tokens, length: int, key_B
) -> Array:
    """Left to right, with a cache: local ids [B, L] of a sequence, arbitrary behind its end.

    Where no lane reads another (decoder), `known` ends with the begin token and is the prefix.
    """
    spec, rows = model.vocabulary.spec(style.stream), len(key_B)
    number, (start, _) = model.vocabulary.number(style.stream), model.vocabulary.range(style.stream)
    key_B = _folded(key_B, number)
    x_BD, cache = _begun(model, style, known, length)

    def goes_on(carry):
        i, _, done_B, _, _ = carry
        return (i < length) & ~jnp.all(done_B)

    def step(carry):
        i, ids_BL, done_B, x_BD, cache = carry
        logits = _guided(logits_of(model, x_BD[:, None], style), style, sampling)
        new_B1, _ = draw(logits, style, sampling.temperature_S[0], _folded(key_B, i))
        ids_BL = jax.lax.dynamic_update_slice_in_dim(ids_BL, new_B1, i, axis=1)
        done_B |= views.is_end(spec, new_B1[:, 0])
        token = _twins(sequence_token(number, new_B1[:, 0] + start, i + 1), style)
        x, cache = cache_lib.decode_step(model, token, cache)
        return i + 1, ids_BL, done_B, x[:, 0], cache

    nothing = jnp.zeros((rows, length), jnp.int32)
    begin = (jnp.zeros((), jnp.int32), nothing, nothing[:, 0] > 0, x_BD, cache)
    return jax.lax.while_loop(goes_on, step, begin)[1]


def beam_search(
    model, style: Style, sampling: SamplingParams, known: Tokens, length: int
) -> tuple[Array, Array]:
    """Left to right, following the `beams` most probable beginnings of each row: local ids
    [B, C, L], arbitrary behind their ends, and log-probabilities [B, C], falling. Letters: C beams.
    """
    spec, beams, sides = model.vocabulary.spec(style.stream), style.beams, 1 + style.is_guided
    number, (start, _) = model.vocabulary.number(style.stream), model.vocabulary.range(style.stream)
    rows = known.ids_BL.shape[0] // sides
    x_BD, cache = _begun(model, style, known, length, copies=beams)

    def goes_on(carry):
        i, _, _, done_BC, _, _ = carry
        return (i < length) & ~jnp.all(done_BC)

    def step(carry):
        i, ids_BCL, score_BC, done_BC, x_BD, cache = carry
        logits = _guided(logits_of(model, x_BD[:, None], style), style, sampling)
        log_prob = jax.nn.log_softmax(logits, axis=-1).reshape(rows, beams, -1)
        vocab = log_prob.shape[-1]
        stays_V = jnp.where(jnp.arange(vocab) == 0, 0.0, -jnp.inf)  # an ended text has one future
        total = score_BC[..., None] + jnp.where(done_BC[..., None], stays_V[None, None], log_prob)
        score_BC, best_BC = jax.lax.top_k(total.reshape(rows, -1), beams)
        from_BC, new_BC = best_BC // vocab, (best_BC % vocab).astype(jnp.int32)
        ids_BCL = jnp.take_along_axis(ids_BCL, from_BC[..., None], axis=1).at[:, :, i].set(new_BC)
        done_BC = jnp.take_along_axis(done_BC, from_BC, axis=1)
        done_BC |= views.is_end(spec, new_BC)
        row_N = (jnp.arange(rows)[:, None] * beams + from_BC).reshape(-1)
        row_N = (row_N[:, None] * sides + jnp.arange(sides)[None]).reshape(-1)
        token = _twins(sequence_token(number, new_BC.reshape(-1) + start, i + 1), style)
        x, cache = cache_lib.decode_step(model, token, cache_lib.take_rows(cache, row_N))
        return i + 1, ids_BCL, score_BC, done_BC, x[:, 0], cache

    ids_BCL = jnp.zeros((rows, beams, length), jnp.int32)
    first_BC = jnp.where(jnp.arange(beams) == 0, 0.0, -jnp.inf)[None].repeat(rows, 0)
    begin = (jnp.zeros((), jnp.int32), ids_BCL, first_BC, ids_BCL[..., 0] > 0, x_BD, cache)
    return jax.lax.while_loop(goes_on, step, begin)[1:3]


def _begun(model, style: Style, known: Tokens, length: int, copies: int = 1):
    """Features [B, D] before the first token of a sequence, and the cache with room for `length`.

    Args:
      copies: of each row of `known`, one after another; with guidance a twin follows each copy.
    """
    rows, sides = known.ids_BL.shape[0] * copies, 1 + style.is_guided

    def repeated(tree):
        split = lambda x: jnp.repeat(x.reshape(-1, sides, *x.shape[1:]), copies, axis=0)
        return jax.tree.map(lambda x: split(x).reshape(-1, *x.shape[1:]), tree)

    if model.config.read_lanes():
        memory = model.encode(known)
        memory = memory._replace(x_BLD=repeated(memory.x_BLD), tokens=repeated(memory.tokens))
        begin = jnp.full((rows,), views.begin_id(model.vocabulary, style.stream), jnp.int32)
        number = model.vocabulary.number(style.stream)
        prefix = sequence_token(number, begin, jnp.zeros((), jnp.int32))
        cache = cache_lib.init_cache(model, rows=rows, length=length, memory=memory)
    else:
        prefix, slots = repeated(known), known.ids_BL.shape[1] + length
        cache = cache_lib.init_cache(model, rows=rows, length=slots)
    x_BQD, cache = cache_lib.decode_step(model, prefix, cache)
    return x_BQD[:, -1], cache


def grid_tokens(number: int, position_LA: Array, ids_BL: Array, shown_BL: Array) -> Tokens:
    """Tokens of a grid in their own slots (id 0 = mask slot), padding where not shown."""
    segment = shown_BL.astype(jnp.int32)
    position = jnp.broadcast_to(position_LA[None], (*ids_BL.shape, NUM_AXES))
    return Tokens(ids_BL * segment, segment * number, segment, jnp.zeros_like(segment), position)


def sequence_token(number: int, ids_B: Array, place: Array) -> Tokens:
    """One token a row of a sequence; place 0 is its begin token."""
    ids_B1 = ids_B[:, None]
    ones, position = jnp.ones_like(ids_B1), jnp.full((*ids_B1.shape, NUM_AXES), place, jnp.float32)
    return Tokens(ids_B1, ones * number, ones, ones * place, position)


def draw(logits_BLV: Array, style: Style, temperature, key_B) -> tuple[Array, Array]:
    """Ids [B, L] and the log-probability of each among what it was drawn from.

    At temperature 0 the most probable id, and its log-probability at temperature 1. Noise comes
    from the key of each row, so a row does not depend on its batch.
    """
    logits_BLV = filtered(logits_BLV, style.top_k, style.top_p)
    if style.is_drawn:
        logits_BLV = logits_BLV / jnp.where(temperature > 0, temperature, 1.0)
    log_prob = jax.nn.log_softmax(logits_BLV, axis=-1)
    noisy = log_prob
    if style.is_drawn:
        shape = logits_BLV.shape[1:]
        noise = jax.vmap(lambda key: jax.random.gumbel(key, shape))(key_B)
        noisy = log_prob + jnp.where(temperature > 0, noise, 0.0)
    ids_BL = jnp.argmax(noisy, axis=-1).astype(jnp.int32)
    return ids_BL, jnp.take_along_axis(log_prob, ids_BL[..., None], axis=-1)[..., 0]


def filtered(logits_BLV: Array, top_k: int, top_p: float) -> Array:
    """Logits, -inf outside the top k and outside the nucleus of mass p; the best one stays."""
    if not top_k and top_p >= 1:
        return logits_BLV
    falling = -jnp.sort(-logits_BLV, axis=-1)
    least = falling[..., -1:]
    if top_k:
        least = falling[..., min(top_k, falling.shape[-1]) - 1, None]
    if top_p < 1:
        prob = jax.nn.softmax(jnp.where(falling >= least, falling, -jnp.inf), axis=-1)
        before = jnp.cumsum(prob, axis=-1) - prob
        inside = (before < top_p) & (falling >= least)
        least = jnp.min(jnp.where(inside, falling, jnp.inf), axis=-1, keepdims=True)
    return jnp.where(logits_BLV >= least, logits_BLV, -jnp.inf)


def logits_of(model, x_BLD: Array, style: Style) -> Array:
    """Float32 logits [B, L, V] over the stream's own ids."""
    read = model.head("vocabulary", x_BLD, stream=style.stream)
    return jnp.einsum("BLD,VD->BLV", read.x, read.table_VD, preferred_element_type=jnp.float32)


def _guided(logits: Array, style: Style, sampling: SamplingParams) -> Array:
    if not style.is_guided:
        return logits
    pairs = logits.reshape(-1, 2, *logits.shape[1:])
    with_known, without = pairs[:, 0], pairs[:, 1]
    return without + sampling.guidance * (with_known - without)


def _twins(tokens: Tokens, style: Style) -> Tokens:
    """Every row twice with guidance."""
    return jax.tree.map(lambda x: jnp.repeat(x, 2, axis=0), tokens) if style.is_guided else tokens


def _joined(known: Tokens, own: Tokens) -> Tokens:
    """`own` in the last slots of `known`."""
    join = lambda a, b: a.at[:, a.shape[1] - b.shape[1] :].set(b)
    joined = jax.tree.map(join, known._replace(values={}, rule=General()), own)
    return joined._replace(values=known.values)


def _folded(key_B, i):
    return jax.vmap(jax.random.fold_in, (0, None))(key_B, i)
