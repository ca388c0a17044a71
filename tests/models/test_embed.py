"""Ids with digits: codes that differ in one digit share the vectors of the others."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small

from mmjax import step as step_lib
from mmjax.models import FSQ, embed, names
from mmjax.models.embed import VocabularyHead
from mmjax.typing import TokenSpec

LEVELS = small.CODES.levels
FIRST = small.VOCABULARY.range("codes")[0]
HEADS = {"ids": VocabularyHead()}


@pytest.fixture(scope="module")
def model():
    """(parts, random parameters, call of a function of the bound model)."""
    make = functools.partial(small.config(moe=None).make, small.VOCABULARY, HEADS, 0)
    parts = step_lib.split(make)
    rng = np.random.default_rng(0)
    params = jax.tree.map(
        lambda x: jnp.asarray(rng.normal(size=x.shape), jnp.float32), parts.params
    )

    def call(function, params=params):
        return function(step_lib.bind(parts, params, {}, 0, "float32"))

    return parts, params, call


def vectors(params) -> tuple[np.ndarray, np.ndarray]:
    """(rows of the codes [K, D], vectors of all digits [sum of levels, D])."""
    number = small.VOCABULARY.number("codes")
    return (
        np.asarray(params["table"][FIRST : FIRST + 100]),
        np.asarray(params["levels"][f"s{number}"]),
    )


def whole(rows, digit_vectors) -> np.ndarray:
    """Row + a vector for each digit, by hand."""
    out = rows.copy()
    for code in range(len(out)):
        rest, start = code, 0
        for level in LEVELS:
            out[code] += digit_vectors[start + rest % level]
            rest, start = rest // level, start + level
    return out


def test_digits_are_those_of_finite_scalar_codes():
    quantizer = FSQ(levels=(4, 3, 2))
    digits = embed.digits(quantizer.levels)
    assert digits.shape == (24, 9)
    vectors_KD = np.asarray(quantizer.vectors(jnp.arange(24)[:, None], {}))
    # Each dimension of a code's vector depends on its own digit alone, so this is exact.
    solved, *_ = np.linalg.lstsq(digits, vectors_KD, rcond=None)
    np.testing.assert_allclose(digits @ solved, vectors_KD, atol=1e-5)
    starts = np.cumsum([0, *quantizer.levels])
    for d in range(3):
        own = digits[:, starts[d] : starts[d + 1]]
        assert (own.sum(axis=1) == 1).all()
        assert len(np.unique(np.c_[own, vectors_KD[:, d]], axis=0)) == quantizer.levels[d]


def test_codes_go_in_as_row_and_digits(model):
    _, params, call = model
    tokens = small.view(np.random.default_rng(1), "codes", rows=2)
    found = call(lambda m: m.embed(tokens) - m._where(tokens) * m._valid(tokens, jnp.float32))
    expected = whole(*vectors(params))[np.maximum(tokens.ids_BL - FIRST, 0)] * 32**0.5
    expected *= (tokens.stream_BL > 0)[..., None]
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


def test_other_streams_have_rows_alone(model):
    _, params, call = model
    tokens = small.view(np.random.default_rng(1), "text", rows=2)
    found = call(lambda m: m.embed(tokens) - m._where(tokens) * m._valid(tokens, jnp.float32))
    expected = np.asarray(params["table"])[tokens.ids_BL] * 32**0.5
    expected *= (tokens.stream_BL > 0)[..., None]
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


def test_read_out_is_tied_to_the_same_vectors(model):
    _, params, call = model
    x = np.random.default_rng(2).normal(size=(5, 32)).astype(np.float32)
    linear = call(lambda m: m.head("ids", jnp.asarray(x), "codes"))
    np.testing.assert_allclose(
        linear.x @ linear.table_VD.T, x @ whole(*vectors(params)).T, rtol=1e-4, atol=1e-3
    )


def test_a_digit_learns_from_every_code_that_has_it(model):
    _, params, call = model
    x, wanted = jnp.ones((1, 32)), 37  # 37 = 2 + 5 * 2 + 25 * 1

    def logit(params):
        linear = call(lambda m: m.head("ids", x, "codes"), params)
        return (linear.x @ linear.table_VD.T)[0, wanted]

    rows, digit_vectors = vectors(jax.grad(logit)(params))
    assert np.flatnonzero(rows.any(axis=1)).tolist() == [wanted]
    assert np.flatnonzero(digit_vectors.any(axis=1)).tolist() == [2, 5 + 2, 10 + 1]
    np.testing.assert_allclose(digit_vectors[[2, 7, 11]], 1.0)


def test_names_of_digit_vectors_do_not_depend_on_other_streams(model):
    parts, params, _ = model
    paths = list(names.flatten(parts.params))
    where = names.canonical_parts(small.config(moe=None), small.VOCABULARY, tuple(HEADS), paths)
    arrays = names.to_canonical(jax.device_get(params), where)
    np.testing.assert_array_equal(arrays["embed/codes/levels"], vectors(params)[1])
    assert "embed/text/levels" not in arrays
    back, missing = names.from_canonical(arrays, jax.tree.map(np.zeros_like, params), where)
    assert not missing
    jax.tree.map(np.testing.assert_array_equal, back, jax.device_get(params))


def test_levels_make_all_ids():
    with pytest.raises(ValueError, match=r"levels=\(5, 5\) make 25 ids but vocab_size=24"):
        TokenSpec(name="codes", kind="grid", max_tokens=4, vocab_size=24, levels=(5, 5))
