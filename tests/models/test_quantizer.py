"""Quantisers against NumPy, and what every one of them promises."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmjax.models import FSQ, VQ

ROWS = {
    "fsq": FSQ(levels=(8, 5, 2)),
    "fsq even": FSQ(levels=(4, 4)),
    "vq": VQ(num_codes=24, width=5, dead_threshold=0.0),
    "vq plain": VQ(num_codes=24, width=5, cosine=False),
}


@pytest.fixture(params=ROWS)
def quantizer(request):
    return ROWS[request.param]


@pytest.fixture
def state(quantizer):
    return quantizer.init(jax.random.key(0))


def latents(quantizer, count=200, scale=2.0) -> jax.Array:
    return jax.random.normal(jax.random.key(1), (count, quantizer.width)) * scale


def test_every_code_is_its_own_nearest(quantizer, state):
    """Vectors of all ids are different, and quantising a latent gives the vector of its id."""
    ids_K = jnp.arange(quantizer.num_codes)
    vector_KD = np.asarray(quantizer.vectors(ids_K, state))
    assert len(np.unique(vector_KD.round(5), axis=0)) == quantizer.num_codes
    found = quantizer.quantize(latents(quantizer), state)
    assert found.ids_N.dtype == jnp.int32
    np.testing.assert_allclose(found.vector_ND, quantizer.vectors(found.ids_N, state), atol=1e-6)


def test_ids_come_back_from_their_vectors(quantizer, state):
    ids_K = jnp.arange(quantizer.num_codes)
    vector_KD = quantizer.vectors(ids_K, state)
    if isinstance(quantizer, FSQ):  # a latent that the bound maps to the vector
        levels = np.asarray(quantizer.levels)
        half, offset = (levels - 1) * 1.001 / 2, np.where(levels % 2, 0, 0.5)
        level = np.asarray(vector_KD) * (levels // 2)
        vector_KD = np.arctanh(np.clip((level + offset) / half, -0.9999, 0.9999))
        vector_KD = jnp.asarray(vector_KD - np.arctanh(offset / half), jnp.float32)
    np.testing.assert_array_equal(quantizer.quantize(vector_KD, state).ids_N, ids_K)


def test_fsq_is_the_formula_of_the_paper():
    quantizer, z = FSQ(levels=(8, 5)), np.random.default_rng(0).normal(size=(300, 2)) * 3
    levels = np.array([8, 5])
    half, offset = (levels - 1) * 1.001 / 2, np.array([0.5, 0.0])
    level = np.round(np.tanh(z + np.arctanh(offset / half)) * half - offset)
    found = quantizer.quantize(jnp.asarray(z, jnp.float32), {})
    np.testing.assert_allclose(found.vector_ND, level / (levels // 2), atol=1e-5)
    np.testing.assert_array_equal(found.ids_N, (level[:, 0] + 4) + 8 * (level[:, 1] + 2))
    assert set(level[:, 0]) == set(range(-4, 4))
    assert set(level[:, 1]) == set(range(-2, 3))


def test_gradients_go_straight_through(quantizer, state):
    """The gradient of the codes is that of the latents behind the smooth part."""
    z = latents(quantizer, 20, 0.5)
    weight = jax.random.normal(jax.random.key(2), z.shape)

    def smooth(z):
        if isinstance(quantizer, FSQ):
            levels = jnp.asarray(quantizer.levels, jnp.float32)[None, :]
            half = (levels - 1) * 1.001 / 2
            offset = jnp.where(levels % 2 == 0, 0.5, 0.0)
            return (jnp.tanh(z + jnp.arctanh(offset / half)) * half - offset) / (levels // 2)
        return z / jnp.linalg.norm(z, axis=-1, keepdims=True) if quantizer.cosine else z

    got = jax.grad(lambda z: jnp.sum(quantizer.quantize(z, state).vector_ND * weight))(z)
    want = jax.grad(lambda z: jnp.sum(smooth(z) * weight))(z)
    assert np.abs(want).max() > 0.1
    np.testing.assert_allclose(got, want, atol=1e-4)


@pytest.mark.parametrize("cosine", [True, False])
def test_the_codebook_follows_its_moving_averages(cosine):
    quantizer = VQ(num_codes=6, width=3, decay=0.9, cosine=cosine, dead_threshold=0.0)
    random = np.random.default_rng(0)
    codes, use, total = None, np.zeros(6), np.zeros((6, 3))
    state = quantizer.init(jax.random.key(0))
    unit = lambda x: x / np.linalg.norm(x, axis=-1, keepdims=True) if cosine else x
    codes = np.asarray(state["codes"])
    for step in range(4):
        z = random.normal(size=(50, 3)).astype(np.float32)
        weight = (random.random(50) > 0.3).astype(np.float32)
        ids = quantizer.quantize(jnp.asarray(z), state).ids_N
        want = np.square(unit(z)[:, None] - codes[None]).sum(-1).argmin(1)
        np.testing.assert_array_equal(ids, want)
        found = quantizer.statistics(jnp.asarray(z), ids, jnp.asarray(weight), jax.random.key(step))
        state = quantizer.update(state, found)
        for k in range(6):
            mine = (want == k) & (weight > 0)
            use[k] = 0.9 * use[k] + 0.1 * mine.sum()
            total[k] = 0.9 * total[k] + 0.1 * unit(z)[mine].sum(0)
        codes = np.where(use[:, None] > 0, unit(total / np.maximum(use, 1e-9)[:, None]), codes)
        np.testing.assert_allclose(state["codes"], codes, atol=1e-5)
        np.testing.assert_allclose(state["use"], use, atol=1e-5)


def test_dead_codes_take_the_place_of_latents_that_are_there():
    quantizer = VQ(num_codes=8, width=4, dead_threshold=1.0)
    state = quantizer.init(jax.random.key(0))
    z = jax.random.normal(jax.random.key(1), (40, 4))
    weight = jnp.asarray([1.0] * 10 + [0.0] * 30)
    ids = quantizer.quantize(z, state).ids_N
    new = quantizer.update(state, quantizer.statistics(z, ids, weight, jax.random.key(2)))
    there = np.asarray(z[:10] / jnp.linalg.norm(z[:10], axis=-1, keepdims=True))
    distance = np.abs(np.asarray(new["codes"])[:, None] - there[None]).max(-1)
    assert distance.min(axis=1).max() < 1e-5  # every code is one of the ten
    assert len(set(distance.argmin(axis=1))) > 3
    np.testing.assert_array_equal(new["use"], 1.0)
    # A batch without any value changes nothing.
    nothing = quantizer.statistics(z, ids, jnp.zeros(40), jax.random.key(2))
    for name, value in quantizer.update(new, nothing).items():
        np.testing.assert_array_equal(value, new[name])


def test_a_used_codebook_has_no_dead_codes_left():
    """Latents in twelve clusters, of which the first codes know only a few."""
    centres = jax.random.normal(jax.random.key(5), (12, 4)) * 3
    quantizer = VQ(num_codes=12, width=4, decay=0.8, dead_threshold=1.0)
    state = quantizer.init(jax.random.key(0))
    for step in range(60):
        key = jax.random.fold_in(jax.random.key(1), step)
        z = jnp.repeat(centres, 16, axis=0)
        z = z + 0.05 * jax.random.normal(key, z.shape)
        ids = quantizer.quantize(z, state).ids_N
        state = quantizer.update(state, quantizer.statistics(z, ids, jnp.ones(len(z)), key))
    assert len(np.unique(ids)) >= 10


def test_wrong_sizes_are_told():
    for make, message in (
        (lambda: FSQ(levels=(8, 1)), r"FSQ: levels\[1\]=1 must be a whole number of 2 or more"),
        (lambda: FSQ(levels=()), r"FSQ: levels=\(\) has no dimension"),
        (lambda: VQ(num_codes=1), "VQ: num_codes=1 must be a whole number of 2 or more"),
        (lambda: VQ(decay=1.0), "VQ: decay=1.0 must be a number of 0 or more and below 1"),
    ):
        with pytest.raises(ValueError, match=message):
            make()
