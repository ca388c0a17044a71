"""Training in bfloat16 stays near training in float32, whatever dtype gradients add up in."""

from __future__ import annotations

import functools

import jax
import numpy as np
import pytest
import small

from mmjax.objectives import MaskedTokens
from mmjax.optim import AdamW
from mmjax.parallel import MeshConfig

STEPS = 200
KINDS = {
    "float32": ("float32", ""),
    "bfloat16": ("bfloat16", ""),
    "summed": ("bfloat16", "float32"),
}


@functools.cache
def trained(kind: str) -> np.ndarray:
    """Losses of a run with experts on four devices, `fsdp` over two of them."""
    dtype, reduce_dtype = KINDS[kind]
    mesh = MeshConfig(data=2, fsdp=2).make(jax.devices()[:4])
    model, objective = small.config(), MaskedTokens()
    optimizer = AdamW(learning_rate=3e-3)
    parts, tx, shardings, state = small.setup(model, [objective], mesh, optimizer)
    how = {"dtype": dtype, "grad_reduce_dtype": reduce_dtype}
    step = small.train_step(model, parts, tx, objective, shardings, **how)
    batches = [jax.device_put(small.masked_batch(n), small.batch_sharding(mesh)) for n in range(8)]
    losses = []
    with jax.set_mesh(mesh):
        for n in range(STEPS):
            state, metrics = step(state, batches[n % len(batches)])
            losses.append(float(metrics["loss"]))
    return np.array(losses)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("kind", ["bfloat16", "summed"])
def test_two_hundred_steps_stay_near_float32(kind):
    exact, other = trained("float32"), trained(kind)
    assert exact[-8:].mean() < 0.8 * exact[:8].mean()  # it has learnt something to differ in
    distance = np.abs(other - exact) / exact
    assert distance[:20].max() < 0.005
    assert distance.mean() < 0.01
    assert abs(other[-8:].mean() / exact[-8:].mean() - 1) < 0.02


def gradients(dtype: str) -> dict[str, np.ndarray]:
    """By path, of one batch on one device."""
    from mmjax import step as step_lib

    model, objective = small.config(), MaskedTokens()
    parts, _, _, state = small.setup(model, [objective])
    batch = jax.device_put(small.masked_batch())

    def loss(params):
        how = {"group_rows": small.GROUP, "dtype": dtype}
        found, _, _ = step_lib.eval_step(
            parts, objective, params, state.model_state, {}, batch, **how
        )
        return sum(found.values())

    grads = jax.jit(jax.grad(loss))(state.params)
    flat = jax.tree_util.tree_flatten_with_path(grads)[0]
    return {jax.tree_util.keystr(path): np.asarray(x, np.float64) for path, x in flat}


@pytest.mark.slow
def test_gradients_of_bfloat16_point_where_those_of_float32_do():
    exact, other = gradients("float32"), gradients("bfloat16")
    for path, g in exact.items():
        size = np.linalg.norm(g)
        if size < 1e-6:
            continue
        cosine = (g * other[path]).sum() / (size * np.linalg.norm(other[path]))
        assert cosine > 0.99, (path, cosine)
