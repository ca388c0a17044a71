"""Quantisers against NumPy, and what every one of them promises."""

from __future__ import annotations

import collections
import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmjax.models import FSQ, LFQ, VQ, ProductVQ, ResidualVQ

ROWS = {
    "fsq": FSQ(levels=(8, 5, 2)),
    "fsq even": FSQ(levels=(4, 4)),
    "vq": VQ(num_codes=24, width=5, dead_threshold=0.0),
    "vq plain": VQ(num_codes=24, width=5, cosine=False),
    "vq rotation": VQ(num_codes=24, width=5, gradient="rotation"),
    "fsq symmetric": FSQ(levels=(4, 3, 2), symmetric=True),
    "lfq": LFQ(bits=6),
    "bsq": LFQ(bits=6, spherical=True),
}
MANY = {
    "residual": ResidualVQ(of=VQ(num_codes=9, width=5, cosine=False), num_codebooks=3),
    "product": ProductVQ(of=VQ(num_codes=9, width=2), num_codebooks=3),
}


@pytest.fixture(params=ROWS)
def quantizer(request):
    return ROWS[request.param]


@pytest.fixture
def state(quantizer):
    return quantizer.init(jax.random.key(0))


def latents(quantizer, count=200, scale=2.0) -> jax.Array:
    return jax.random.normal(jax.random.key(1), (count, quantizer.width)) * scale


@pytest.fixture(params=[*ROWS, *MANY])
def every(request):
    return {**ROWS, **MANY}[request.param]


def test_vectors_of_ids_are_those_of_latents(every):
    """Ids are in range, each codebook has its own, and they give back the quantised vectors."""
    state = every.init(jax.random.key(0))
    found, codebooks = every.quantize(latents(every), state), every.num_codebooks
    assert found.ids_NQ.dtype == jnp.int32
    assert found.ids_NQ.shape == (200, codebooks)
    of = np.asarray(found.ids_NQ) // (every.num_codes // codebooks)
    np.testing.assert_array_equal(of, np.broadcast_to(np.arange(codebooks), of.shape))
    np.testing.assert_allclose(found.vector_ND, every.vectors(found.ids_NQ, state), atol=1e-6)
    assert found.loss_N.shape == (200,)


def test_every_code_is_different(quantizer, state):
    ids_KQ = jnp.arange(quantizer.num_codes)[:, None]
    vector_KD = np.asarray(quantizer.vectors(ids_KQ, state))
    assert len(np.unique(vector_KD.round(5), axis=0)) == quantizer.num_codes


def test_the_digits_of_an_id_are_those_of_its_vector(every):
    if not every.digits:
        return
    ids_K = np.arange(every.num_codes)
    vector_KD = np.asarray(every.vectors(jnp.asarray(ids_K)[:, None], {}))
    for d, digit_K in enumerate(np.unravel_index(ids_K, every.digits, "F")):
        pairs = {*zip(digit_K.tolist(), vector_KD[:, d].round(5).tolist(), strict=True)}
        assert len(pairs) == every.digits[d]


def test_ids_come_back_from_their_vectors(quantizer, state):
    ids_KQ = jnp.arange(quantizer.num_codes)[:, None]
    vector_KD = quantizer.vectors(ids_KQ, state)
    if isinstance(quantizer, FSQ):  # a latent that the bound maps to the vector
        levels = np.asarray(quantizer.levels)
        if quantizer.symmetric:
            vector_KD = jnp.arctanh(jnp.clip(vector_KD, -0.9999, 0.9999))
        else:
            half, offset = (levels - 1) * 1.001 / 2, np.where(levels % 2, 0, 0.5)
            level = np.asarray(vector_KD) * (levels // 2)
            vector_KD = np.arctanh(np.clip((level + offset) / half, -0.9999, 0.9999))
            vector_KD = jnp.asarray(vector_KD - np.arctanh(offset / half), jnp.float32)
    np.testing.assert_array_equal(quantizer.quantize(vector_KD, state).ids_NQ, ids_KQ)


def test_fsq_is_the_formula_of_the_paper():
    quantizer, z = FSQ(levels=(8, 5)), np.random.default_rng(0).normal(size=(300, 2)) * 3
    levels = np.array([8, 5])
    half, offset = (levels - 1) * 1.001 / 2, np.array([0.5, 0.0])
    level = np.round(np.tanh(z + np.arctanh(offset / half)) * half - offset)
    found = quantizer.quantize(jnp.asarray(z, jnp.float32), {})
    np.testing.assert_allclose(found.vector_ND, level / (levels // 2), atol=1e-5)
    np.testing.assert_array_equal(found.ids_NQ[:, 0], (level[:, 0] + 4) + 8 * (level[:, 1] + 2))
    assert set(level[:, 0]) == set(range(-4, 4))
    assert set(level[:, 1]) == set(range(-2, 3))


def test_gradients_go_straight_through(quantizer, state):
    """The gradient of the codes is that of the latents behind the smooth part."""
    if isinstance(quantizer, VQ) and quantizer.gradient == "rotation":
        return  # in a test of its own
    z = latents(quantizer, 20, 0.5)
    weight = jax.random.normal(jax.random.key(2), z.shape)

    def smooth(z):
        if isinstance(quantizer, LFQ):
            return z / jnp.linalg.norm(z, axis=-1, keepdims=True) if quantizer.spherical else z
        if isinstance(quantizer, FSQ) and quantizer.symmetric:
            return jnp.tanh(z)
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
        ids = quantizer.quantize(jnp.asarray(z), state).ids_NQ
        weighted = jnp.asarray(weight)
        want = np.square(unit(z)[:, None] - codes[None]).sum(-1).argmin(1)
        np.testing.assert_array_equal(ids[:, 0], want)
        key = jax.random.key(step)
        found = quantizer.statistics(jnp.asarray(z), ids, weighted, state, key)
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
    ids = quantizer.quantize(z, state).ids_NQ
    new = quantizer.update(state, quantizer.statistics(z, ids, weight, state, jax.random.key(2)))
    there = np.asarray(z[:10] / jnp.linalg.norm(z[:10], axis=-1, keepdims=True))
    distance = np.abs(np.asarray(new["codes"])[:, None] - there[None]).max(-1)
    assert distance.min(axis=1).max() < 1e-5  # every code is one of the ten
    assert len(set(distance.argmin(axis=1))) > 3
    np.testing.assert_array_equal(new["use"], 1.0)
    # A batch without any value changes nothing.
    nothing = quantizer.statistics(z, ids, jnp.zeros(40), new, jax.random.key(2))
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
        ids = quantizer.quantize(z, state).ids_NQ
        found = quantizer.statistics(z, ids, jnp.ones(len(z)), state, key)
        state = quantizer.update(state, found)
    assert len(np.unique(ids)) >= 10


def test_rotation_turns_the_gradient_as_the_latent_is_turned():
    """Against the matrix that turns the latent into its code within their plane."""
    quantizer = VQ(num_codes=7, width=3, cosine=False, gradient="rotation")
    state = quantizer.init(jax.random.key(0))
    z, weight = jax.random.normal(jax.random.key(1), (2, 20, 3))
    vector, pull = jax.vjp(lambda z: quantizer.quantize(z, state).vector_ND, z)
    (gradient,) = pull(weight)
    code = np.asarray(quantizer.vectors(quantizer.quantize(z, state).ids_NQ, state))
    np.testing.assert_allclose(vector, code, atol=1e-5)
    for latent, target, given, got in zip(
        *map(np.asarray, (z, code, weight, gradient)), strict=True
    ):
        e, q = latent / np.linalg.norm(latent), target / np.linalg.norm(target)
        across = q - (e @ q) * e
        across /= np.linalg.norm(across)
        cos, sin = e @ q, across @ q
        turn = np.eye(3) + sin * (np.outer(across, e) - np.outer(e, across))
        turn += (cos - 1) * (np.outer(e, e) + np.outer(across, across))
        scale = np.linalg.norm(target) / np.linalg.norm(latent)
        np.testing.assert_allclose(scale * turn.T @ given, got, atol=1e-4)


def test_a_codebook_may_start_from_the_means_of_clusters():
    """After k-means each code is the mean of the latents that take it; without, it is a latent."""
    z = jax.random.normal(jax.random.key(6), (120, 4))
    weight = jnp.ones(120).at[:20].set(0)  # these are not there
    for steps in (0, 30):
        quantizer = VQ(num_codes=10, width=4, cosine=False, kmeans_steps=steps)
        state = quantizer.init(jax.random.key(0))
        ids = quantizer.quantize(z, state).ids_NQ
        found = quantizer.statistics(z, ids, weight, state, jax.random.key(2))
        state = quantizer.update(state, found)
        ids = np.asarray(quantizer.quantize(z, state).ids_NQ)[20:, 0]
        used, z_ND = np.unique(ids), np.asarray(z)[20:]
        means = np.stack([z_ND[ids == k].mean(0) for k in used])
        assert np.allclose(state["codes"][used], means, atol=1e-4) == (steps > 0)
        later = quantizer.statistics(z[20:], ids[:, None], weight[20:], state, jax.random.key(2))
        assert np.isin(np.asarray(later["candidate"]), np.asarray(z)).all()  # once alone


def test_lfq_entropies_are_those_of_all_codes():
    """Against softmax over the whole codebook; in groups, against codebooks of each."""
    for spherical, group_bits in ((False, 10), (True, 10), (False, 2)):
        quantizer = LFQ(
            bits=5, spherical=spherical, temperature=0.7, diversity=0.3, entropy_weight=0.5,
            group_bits=group_bits,
        )  # fmt: skip
        z = np.asarray(jax.random.normal(jax.random.key(1), (30, 5))) * 0.5
        weight = (np.arange(30) < 20).astype(np.float32)
        found = quantizer.quantize(jnp.asarray(z), {}, jnp.asarray(weight))
        z = z / np.linalg.norm(z, axis=1, keepdims=True) if spherical else z
        scale = 5**-0.5 if spherical else 1.0

        def p(z, scale=scale):
            bits = np.array([*itertools.product((-1, 1), repeat=z.shape[1])]) * scale
            logits = 2 * z @ bits.T / 0.7
            p = np.exp(logits - logits.max(1, keepdims=True))
            return p / p.sum(1, keepdims=True)

        entropy = lambda p: -(p * np.log(p)).sum(-1)
        groups = [z[:, i : i + group_bits] for i in range(0, 5, group_bits)]
        used = sum(entropy(weight @ p(x) / 20) for x in groups)
        code = np.where(z > 0, scale, -scale)
        want = 0.25 * np.square(z - code).mean(1) + 0.5 * (entropy(p(z)) - 0.3 * used)
        np.testing.assert_allclose(found.loss_N, want, rtol=1e-4)


def test_each_codebook_of_residual_codes_what_is_left():
    quantizer = MANY["residual"]
    state = quantizer.init(jax.random.key(0))
    z = np.asarray(latents(quantizer))
    found, left, loss = quantizer.quantize(jnp.asarray(z), state), z, 0.0
    for q in range(3):
        codes = np.asarray(state["codes"])[q]
        ids = np.square(left[:, None] - codes[None]).sum(-1).argmin(1)
        np.testing.assert_array_equal(found.ids_NQ[:, q], ids + 9 * q)
        loss = loss + np.square(left - codes[ids]).mean(1)
        left = left - codes[ids]
    np.testing.assert_allclose(z - found.vector_ND, left, atol=1e-5)
    np.testing.assert_allclose(found.loss_N, loss, rtol=1e-4)


def test_dropout_leaves_out_the_last_codebooks():
    quantizer = ResidualVQ(of=VQ(num_codes=9, width=5, cosine=False), num_codebooks=3, dropout=0.5)
    state, z = quantizer.init(jax.random.key(0)), latents(MANY["residual"])
    whole = quantizer.quantize(z, state).ids_NQ
    kept = collections.Counter()
    for seed in range(200):
        found = quantizer.quantize(z, state, key=jax.random.key(seed))
        is_kept = np.asarray(found.ids_NQ >= 0)
        assert (is_kept == is_kept[:1]).all()
        number = is_kept[0].sum()
        assert is_kept[0, :number].all()
        np.testing.assert_array_equal(found.ids_NQ[:, :number], whole[:, :number])
        vector_ND = quantizer.vectors(found.ids_NQ, state)
        np.testing.assert_allclose(found.vector_ND, vector_ND, atol=1e-5)
        kept[number] += 1
        if seed == 0:  # what is left out counts nowhere
            statistics = quantizer.statistics(
                z, found.ids_NQ, jnp.ones(200), state, jax.random.key(1)
            )
            count = np.asarray(statistics["count"]).sum(-1)
            np.testing.assert_array_equal(count, [200 * (q < number) for q in range(3)])
    assert set(kept) == {1, 2, 3}
    assert 100 < kept[3] < 160  # a half, and a third of the other half


@pytest.mark.parametrize("kind", MANY)
def test_several_codebooks_learn_as_one_each(kind):
    """State after a step is that of each codebook with its own latents."""
    of = dataclasses.replace(MANY[kind].of, dead_threshold=0.0)
    quantizer = dataclasses.replace(MANY[kind], of=of)
    state, z = quantizer.init(jax.random.key(0)), latents(quantizer)
    ids_NQ = quantizer.quantize(z, state).ids_NQ
    step = lambda weight: quantizer.update(
        state, quantizer.statistics(z, ids_NQ, weight, state, jax.random.key(1))
    )
    new, nobody, left = step(jnp.ones(200)), step(jnp.zeros(200)), z
    for name in state:
        np.testing.assert_array_equal(nobody[name], state[name])
    for q in range(3):
        own = {name: value[q] for name, value in state.items()}
        x = z[:, 2 * q : 2 * q + 2] if kind == "product" else left
        found = of.quantize(x, own)
        np.testing.assert_array_equal(found.ids_NQ[:, 0] + 9 * q, ids_NQ[:, q])
        alone = of.statistics(x, found.ids_NQ, jnp.ones(200), own, jax.random.key(2))
        for name, value in of.update(own, alone).items():
            np.testing.assert_allclose(new[name][q], value, atol=1e-5)
        left = left - of.vectors(found.ids_NQ, own) if kind == "residual" else left


def test_wrong_sizes_are_told():
    for make, message in (
        (lambda: FSQ(levels=(8, 1)), r"FSQ: levels\[1\]=1 must be a whole number of 2 or more"),
        (lambda: FSQ(levels=()), r"FSQ: levels=\(\) has no dimension"),
        (lambda: VQ(num_codes=1), "VQ: num_codes=1 must be a whole number of 2 or more"),
        (lambda: VQ(gradient="none"), "VQ: gradient='none' must be 'straight' or 'rotation'"),
        (lambda: LFQ(bits=30), "LFQ: bits=30 must be"),
        (lambda: ResidualVQ(of=VQ()), "ResidualVQ: of.cosine=True .* use VQ.cosine=False"),
        (lambda: VQ(decay=1.0), "VQ: decay=1.0 must be a number of 0 or more and below 1"),
    ):
        with pytest.raises(ValueError, match=message):
            make()
