"""Decoding token by token behind kept keys is one pass over all tokens."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small

from mmjax import step as step_lib
from mmjax.models import cache as cache_lib
from mmjax.objectives import NextToken

ROWS, LENGTH = 8, 8


def bound(config, mesh=None, dtype="float32"):
    """(bind to parameters, parameters)."""
    parts, _, _, state = small.setup(config, [NextToken()], mesh)
    rows = ROWS // (mesh.size if mesh is not None else 1)
    bind = functools.partial(step_lib.bind, parts, group_rows=rows, dtype=dtype)
    return bind, (state.params, state.model_state)


def views(rows=ROWS):
    rng = np.random.default_rng(0)
    return small.view(rng, "image", rows=rows), small.view(rng, "text", rows=rows)


def cut(tokens, start, stop):
    return jax.tree.map(lambda x: x[:, start:stop], tokens)


def one_by_one(model, tokens, memory, cuts):
    """Features of tokens that are decoded in parts."""
    state = cache_lib.init_cache(model, rows=tokens.ids_BL.shape[0], length=LENGTH, memory=memory)
    out = []
    for start, stop in zip(cuts, [*cuts[1:], LENGTH], strict=True):
        x, state = cache_lib.decode_step(model, cut(tokens, start, stop), state)
        out.append(x)
    return jnp.concatenate(out, axis=1)


PLANS = {
    "experts": {},
    "rotary": {"position": "rotary", "num_kv_heads": 2, "frames": {"image": (1.0, 5.0, 7.0)}},
    "deep": {"decoder_layers": 5, "moe": None, "qk_norm": False},
}


@pytest.mark.parametrize("name", list(PLANS))
@pytest.mark.parametrize("cuts", [list(range(8)), pytest.param([0, 3, 4], marks=pytest.mark.slow)])
def test_the_cache_changes_nothing(name, cuts):
    bind, state = bound(small.config(**PLANS[name]))

    @jax.jit
    def run(state, source, target):
        model = bind(*state)
        memory = model.encode(source)
        whole = model.decode(target, memory).x_BLD
        return whole, one_by_one(model, target, memory, cuts)

    whole, parts = run(state, *views())
    real = views()[1].segment_BL > 0
    np.testing.assert_allclose(parts[real], whole[real], atol=2e-5)


@pytest.mark.parametrize("position", ["rotary", "sincos"])
@pytest.mark.slow
def test_a_decoder_starts_behind_its_prefix(position):
    bind, state = bound(small.config("decoder", position=position))
    _, tokens = views()
    tokens = tokens._replace(order_BL=np.maximum(tokens.order_BL - 3, 0))  # four see one another

    @jax.jit
    def run(state, tokens):
        model = bind(*state)
        return model.encode(tokens).x_BLD, one_by_one(model, tokens, None, [0, 4, 5, 6, 7])

    whole, parts = run(state, tokens)
    real = tokens.segment_BL > 0
    np.testing.assert_allclose(parts[real], whole[real], atol=2e-5)


@pytest.mark.slow
def test_a_later_token_leaves_earlier_features_alone():
    bind, state = bound(small.config())
    source, target = views()

    @jax.jit
    def run(state, source, target):
        model = bind(*state)
        return one_by_one(model, target, model.encode(source), list(range(8)))

    other = target._replace(ids_BL=np.where(np.arange(8) == 5, 130, target.ids_BL))
    moved = np.abs(np.asarray(run(state, source, target) - run(state, source, other))).max((0, 2))
    assert (moved > 1e-6).tolist() == [False] * 5 + [True] * 3
