"""Muon against optax's own, leaf by leaf, and its loops against the definition."""

from __future__ import annotations

import jax
import numpy as np
import optax.contrib
import pytest

from mmjax.optim import Muon, muon, optimizer
from mmjax.step import standard_promotion

MATRICES = {
    "heads": optimizer.Matrix((1,), (2, 3)),  # stacked over layers
    "out": optimizer.Matrix((1, 2), (3,)),
    "experts": optimizer.Matrix((2,), (3,)),
    "wide": optimizer.Matrix((0,), (1,)),
    "norm": None,
}
SHAPES = {
    "heads": (2, 8, 2, 4),
    "out": (2, 2, 4, 8),
    "experts": (2, 3, 12, 8),
    "wide": (8, 12),
    "norm": (8,),
}


def tree(seed: int) -> dict:
    rng = np.random.default_rng(seed)
    return {k: rng.normal(size=shape).astype(np.float32) for k, shape in SHAPES.items()}


def theirs(config: Muon) -> optax.GradientTransformation:
    """The same settings for optax's."""
    numbers = optax.contrib.MuonDimensionNumbers
    return optax.contrib.muon(
        config.rate(config.matrix_learning_rate, 10),
        ns_coeffs=muon.NEWTON_SCHULZ,
        ns_steps=config.ns_steps,
        beta=config.momentum,
        weight_decay=config.weight_decay,
        adam_b1=config.b1,
        adam_b2=config.b2,
        adam_learning_rate=config.rate(config.learning_rate, 10),
        muon_weight_dimension_numbers={
            k: m and numbers(m.inputs, m.outputs) for k, m in MATRICES.items()
        },
    )


def test_steps_are_those_of_optax():
    config = Muon(warmup_steps=2)
    ours, other = config.make(MATRICES, 10), theirs(config)
    params = [tree(0), tree(0)]
    states = [ours.init(params[0]), other.init(params[1])]
    with standard_promotion():
        for step in range(3):
            for i, tx in enumerate((ours, other)):
                updates, states[i] = tx.update(tree(step + 1), states[i], params[i])
                params[i] = optax.apply_updates(params[i], updates)
            for name in SHAPES:
                np.testing.assert_allclose(
                    params[0][name], params[1][name], rtol=2e-4, atol=2e-6, err_msg=name
                )


@pytest.mark.parametrize("shape", [(3, 8, 20), (2, 16, 40)])
def test_singular_values_come_near_one(shape):
    x = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    values = np.linalg.svd(muon.newton_schulz(x, 5), compute_uv=False)
    assert values.min() > 0.3
    assert values.max() < 1.3
    u, _, v = np.linalg.svd(x, full_matrices=False)
    aligned = np.einsum("nra,nac,nrc->n", u, v, muon.newton_schulz(x, 5))
    assert np.all(aligned > 0.6 * shape[1])


def test_only_what_is_no_matrix_has_second_moments():
    state = Muon().make(MATRICES, 10).init(tree(0))
    assert [x.shape for x in jax.tree.leaves(state.second)] == [SHAPES["norm"]]
    assert jax.tree.map(np.shape, state.first) == SHAPES
