"""One row added to OBJECTIVES gives an objective of an autoencoder all of these tests."""

from __future__ import annotations

import functools

import jax
import numpy as np
import pytest
import toy_codes

from mmjax import step as step_lib
from mmjax.models import Critic, FlowDecoder, names
from mmjax.objectives import Adversary, FlowMatching, Reconstruction
from mmjax.optim import AdamW
from mmjax.parallel import MeshConfig, MeshRules
from mmjax.typing import Values, Vocabulary

FIRST = ("encoder/**", "decoder/**")
OBJECTIVES = {
    "reconstruction": (Reconstruction(), FIRST),
    "adversarial": (Reconstruction(adversarial=0.5), FIRST),
    "adversary": (Adversary(), ("critic/**",)),
    "flow": (FlowMatching(), ("flow/**",)),
}
# A convolution waits for threads that all devices share, so each keeps to its own.
OWN = {"xla_cpu_multi_thread_eigen": False}


def model(kind: str = "vq"):
    flow = FlowDecoder(width=8, layers=1)
    return toy_codes.model(kind, critic=Critic(width=8, levels=2), flow=flow)


def setup(devices: int = 1, mesh_config=MeshConfig()):
    """Parts, optimizer, shardings and fresh state on a mesh."""
    mesh = mesh_config.make(jax.devices()[:devices])
    parts = step_lib.split(lambda: model().make(Vocabulary((toy_codes.SPEC,)), {}, 0))
    tx = AdamW(learning_rate=1e-2, warmup_steps=0, schedule="constant").make(parts.matrices, 100)
    shardings = step_lib.state_shardings(parts, tx, {}, mesh, MeshRules())
    return mesh, parts, tx, shardings, step_lib.init_state(parts, tx, {}, shardings)


def gradients(name: str, devices: int = 1, mesh_config=MeshConfig(), batch=None):
    """Value and gradient of all parameters, none of them frozen, by name."""
    mesh, parts, _, _, state = setup(devices, mesh_config)

    def loss(params, model_state, batch):
        totals, _, _ = step_lib.eval_step(
            parts, OBJECTIVES[name][0], params, model_state, {}, batch, group_rows=2
        )
        return sum(totals.values())

    sharding = jax.sharding.NamedSharding(mesh, step_lib.rules_lib.batch_spec())
    batch = jax.device_put(toy_codes.batch() if batch is None else batch, sharding)
    with jax.set_mesh(mesh):
        run = jax.jit(jax.value_and_grad(loss), compiler_options=OWN)
        value, grads = run(state.params, state.model_state, batch)
    return float(value), names.flatten(jax.device_get(grads))


one = functools.cache(gradients)


def own(name: str, parameter: str) -> bool:
    return any(parameter.startswith(pattern[:-2]) for pattern in OBJECTIVES[name][1])


@pytest.mark.parametrize("name", OBJECTIVES)
def test_gradients_reach_all_of_its_own_parameters_and_no_others(name):
    value, grads = one(name)
    assert np.isfinite(value)
    reached = {parameter for parameter, g in grads.items() if np.abs(g).max() > 0}
    assert reached == {parameter for parameter in grads if own(name, parameter)}


@pytest.mark.parametrize(
    ("devices", "mesh"),
    [
        (2, MeshConfig()),
        pytest.param(8, MeshConfig(data=2, fsdp=2, tensor=2), marks=pytest.mark.slow),
    ],
    ids=["2_data", "8_tensor"],
)
@pytest.mark.parametrize("name", OBJECTIVES)
def test_sharded_equals_unsharded(name, devices, mesh):
    value, grads = gradients(name, devices, mesh)
    want, want_grads = one(name)
    assert value == pytest.approx(want, abs=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), grads, want_grads)


@pytest.mark.parametrize("name", OBJECTIVES)
@pytest.mark.slow
def test_rows_of_padding_and_absent_ones_count_for_nothing(name):
    given = toy_codes.batch()
    tokens = given.views["image"]
    values = tokens.values["image"].value_BJP.copy()
    values[-2:] = 7.0
    other = tokens._replace(values={"image": Values(values, tokens.values["image"][1])})
    value, grads = gradients(name, batch=given._replace(views={"image": other}))
    want, want_grads = one(name)
    assert value == pytest.approx(want, abs=1e-6)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), grads, want_grads)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_a_step_moves_its_own_part_and_the_codebook_moves_with_the_encoder(name):
    objective, trainable = OBJECTIVES[name]
    mesh, parts, tx, shardings, state = setup()
    before = jax.device_get((state.params, state.model_state))
    mask = names.trainable_mask(
        parts.params, trainable,
        model().canonical_parts(Vocabulary(()), (), list(names.flatten(parts.params))),
    )  # fmt: skip
    step = step_lib.make_train_step(
        parts, tx, objective, shardings, seed=0, group_rows=2, trainable=mask,
        update_state=model().update_state,
    )  # fmt: skip
    with jax.set_mesh(mesh):
        state, _ = step(state, toy_codes.batch())
    old, new = names.flatten(before[0]), names.flatten(jax.device_get(state.params))
    moved = {n for n in old if np.abs(old[n] - new[n]).max() > 0}
    assert moved == {n for n in old if own(name, n)}
    for leaf, value in jax.device_get(state.model_state)["codebook"].items():
        is_same = (value == before[1]["codebook"][leaf]).all()
        assert is_same == (trainable != FIRST), leaf


def test_what_the_critic_says_of_neighbours_far_apart_is_independent():
    """A logit sees a patch, so values at the other end of the array change nothing of it."""
    module = model().make(Vocabulary((toy_codes.SPEC,)), {}, 0)
    values = toy_codes.batch().views["image"].values["image"].value_BJP[:2]
    logits = np.asarray(module.judge(jax.numpy.asarray(values)))
    assert logits.shape == (2, 2 * 4)  # 8 x 16 values, halved twice
    changed = values.copy()
    changed[:, [3, 7]] += 1.0  # the rightmost four columns
    moved = np.abs(np.asarray(module.judge(jax.numpy.asarray(changed))) - logits) > 1e-6
    assert moved.reshape(2, 2, 4)[:, :, -1].all()
    assert not moved.reshape(2, 2, 4)[:, :, 0].any()


def test_the_hinge_is_its_formula():
    module = model().make(Vocabulary((toy_codes.SPEC,)), {}, 0)
    batch = toy_codes.batch()
    losses, metrics, _ = Adversary().losses(module, {}, batch, jax.random.key(0), {})
    rows = slice(0, 14)  # those that are there
    encoded = module.encode(batch.views["image"])
    given = np.asarray(module.judge(encoded.captured["given"]))[rows]
    decoded = np.asarray(module.judge(module.decode(batch.views["image"], encoded).x_BLD))[rows]
    want = (np.maximum(1 - given, 0) + np.maximum(1 + decoded, 0)).mean() / 2
    assert float(step_lib.objective_lib.total(losses)["critic"]) == pytest.approx(want, abs=1e-5)
    assert metrics["accuracy"] == pytest.approx((np.mean(given > 0) + np.mean(decoded < 0)) / 2)
    terms = Reconstruction(adversarial=0.5).losses(module, {}, batch, None, {})[0]
    term = float(step_lib.objective_lib.total(terms)["adversarial"])
    assert term == pytest.approx(-0.5 * decoded.mean(), abs=1e-5)
