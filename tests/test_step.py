"""The step: one tree and one set of shardings, one executable a task, nothing unsharded."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import small

from mmjax import step as step_lib
from mmjax.objectives import Extra, InfoNCE, MaskedTokens
from mmjax.optim import AdamW, GradientRule, Muon, freezing
from mmjax.parallel import MeshConfig

MESH = MeshConfig(data=2, fsdp=2, tensor=2)


def put(batch, mesh):
    sharding = jax.sharding.NamedSharding(mesh, step_lib.rules_lib.batch_spec())
    return jax.device_put(batch, sharding)


@pytest.mark.parametrize("optimizer", [AdamW(), Muon()], ids=["adamw", "muon"])
def test_parameters_and_optimizer_state_are_made_sharded(optimizer):
    mesh = MESH.make()
    _, _, shardings, state = small.setup(small.config(), [MaskedTokens()], mesh, optimizer)
    for path, leaf in jax.tree_util.tree_leaves_with_path((state.params, state.opt_state)):
        name = step_lib.path_name(path)
        if name.split("/")[-1] in ("up", "down", "gate", "query", "out", "table"):
            if leaf.ndim < 2:  # a place that the other optimizer holds
                continue
            parts = leaf.size // leaf.addressable_shards[0].data.size
            assert parts == 4, f"{name} is cut into {parts}"
    assert jax.tree.map(lambda x: x.sharding, state) == shardings


def test_initialisation_is_the_same_on_every_mesh():
    _, _, _, one = small.setup(small.config(), [MaskedTokens()])
    _, _, _, eight = small.setup(small.config(), [MaskedTokens()], MESH.make())
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(one), jax.device_get(eight))


def test_no_full_copy_of_a_parameter_exists_in_the_compiled_initialisation():
    mesh = MeshConfig(data=1, fsdp=-1).make()
    parts, _tx, shardings, _ = small.setup(
        small.config(width=64, mlp_width=128), [MaskedTokens()], mesh
    )

    def init():
        _, params, _ = step_lib.nnx.split(parts.make(), step_lib.nnx.Param, step_lib.ModelState)
        return step_lib.nnx.as_pure(params)

    text = jax.jit(init, out_shardings=shardings.params).lower().compile().as_text()
    width = parts.params["runs"][0]["blocks"][0]["mlp"]["up"].shape  # (1, 64, 128)
    whole = f"f32[{','.join(map(str, width))}]"
    assert whole not in text.replace("{", "").replace(" ", ""), f"{whole} is materialised"


@pytest.mark.slow
def test_ten_alternating_steps_use_one_executable_a_task():
    mesh, model = MESH.make(), small.config()
    objectives = {
        "masked": (MaskedTokens(), small.masked_batch),
        "pair": (InfoNCE(), small.pair_batch),
    }
    parts, tx, shardings, state = small.setup(model, [o for o, _ in objectives.values()], mesh)
    steps = {
        name: small.train_step(model, parts, tx, objective, shardings)
        for name, (objective, _) in objectives.items()
    }
    before = jax.tree.map(lambda x: (x.shape, x.dtype, x.sharding), state)
    with jax.set_mesh(mesh):
        for i in range(10):
            name = ("masked", "pair")[i % 2]
            state, metrics = steps[name](state, put(objectives[name][1](i), mesh))
            assert float(metrics["skipped"]) == 0
    assert [step._cache_size() for step in steps.values()] == [1, 1]
    assert jax.tree.map(lambda x: (x.shape, x.dtype, x.sharding), state) == before
    assert int(state.step) == 10


@pytest.mark.parametrize(
    "optimizer",
    [
        pytest.param(AdamW(learning_rate=3e-3), id="adamw", marks=pytest.mark.slow),
        pytest.param(Muon(), id="muon"),
    ],
)
@pytest.mark.slow
def test_the_loss_falls(optimizer):
    model = small.config()
    parts, tx, shardings, state = small.setup(model, [MaskedTokens()], optimizer=optimizer)
    step = small.train_step(model, parts, tx, MaskedTokens(), shardings)
    losses = []
    for _ in range(30):
        state, metrics = step(state, small.masked_batch())
        losses.append(float(metrics["loss"]))
    assert losses[-1] < 0.7 * losses[0]


def test_a_batch_with_nan_changes_nothing_but_the_count():
    model = small.config()
    parts, tx, shardings, state = small.setup(model, [MaskedTokens()])
    step = small.train_step(model, parts, tx, MaskedTokens(), shardings)
    batch = small.masked_batch()
    batch.views["input"].values["image"].value_BJP[0, 0, 0] = np.nan
    before = jax.device_get(state)
    after, metrics = step(state, batch)
    assert float(metrics["skipped"]) == 1.0
    assert int(after.step) == 1
    same = jax.device_get(after._replace(step=before.step))
    jax.tree.map(np.testing.assert_array_equal, same, before)


def test_frozen_leaves_keep_weight_and_moments():
    model = small.config(moe=None)
    parts, tx, shardings, state = small.setup(model, [MaskedTokens()])
    mask = jax.tree_util.tree_map_with_path(
        lambda p, _: step_lib.path_name(p).startswith("heads"), parts.params
    )
    step = small.train_step(
        model, parts, tx, MaskedTokens(), shardings, trainable=mask, update_state=lambda s, r: s
    )
    before = jax.device_get(state)
    state, _ = step(state, small.masked_batch())
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(state.params)["runs"],
                 before.params["runs"])  # fmt: skip
    assert np.abs(jax.device_get(state.params)["heads"][1]["kernel"]
                  - before.params["heads"][1]["kernel"]).max() > 0  # fmt: skip
    moments = freezing.like_params(state.opt_state, parts.params, mask, None)
    for moves, new, old in zip(
        jax.tree.leaves(moments, is_leaf=lambda x: x is None),
        jax.tree.leaves(jax.device_get(state.opt_state)),
        jax.tree.leaves(before.opt_state),
        strict=True,
    ):
        if moves is False:
            np.testing.assert_array_equal(new, old)


@pytest.mark.slow
def test_router_state_moves_once_a_step_and_without_gradient():
    model = small.config()
    parts, tx, shardings, state = small.setup(model, [InfoNCE()])
    step = small.train_step(model, parts, tx, InfoNCE(), shardings)
    state, metrics = step(state, small.pair_batch())
    bias = np.asarray(state.model_state["runs"][0]["blocks"][1]["mlp"]["bias"])
    assert set(np.round(np.abs(bias).ravel(), 6)) <= {0.0, np.float32(0.01).round(6)}
    decoder = np.asarray(state.model_state["runs"][1]["blocks"][1]["mlp"]["bias"])
    assert (decoder == 0).all()  # contrast does not reach the decoder
    assert "load/0/1" in metrics


@pytest.mark.slow
def test_a_rule_over_two_losses_equal_to_the_sum_is_the_plain_step():
    import dataclasses

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class PlainSum(GradientRule):
        def combine(self, losses, pullback, state, task, key):
            parts = [
                pullback({k: jnp.ones(()) if k == name else jnp.zeros(()) for k in losses})
                for name in losses
            ]
            return jax.tree.map(lambda *g: sum(g[1:], g[0]), *parts), state

    model = small.config()
    parts, tx, shardings, state = small.setup(model, [MaskedTokens()], optimizer=AdamW())
    plain = small.train_step(model, parts, tx, MaskedTokens(), shardings)
    ruled = small.train_step(model, parts, tx, MaskedTokens(), shardings, rule=PlainSum())
    copy = jax.tree.map(jnp.copy, state)
    one, _ = plain(state, small.masked_batch())
    two, _ = ruled(copy, small.masked_batch())
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), one.params, two.params)


@pytest.mark.slow
def test_extras_are_carried_and_updated_by_their_clock():
    import dataclasses

    def ema(tree, params, features, batch):
        return jax.tree.map(lambda a, b: 0.5 * a + 0.5 * b, tree, {"table": params["table"]})

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Teacher(InfoNCE):
        def extra(self):
            return {"ema": Extra(init=lambda p: {"table": p["table"] * 1.0}, update=ema)}

    objective, model = Teacher(), small.config()
    extras = objective.extra()
    parts, tx, shardings, state = small.setup(model, [objective], MESH.make(), extras=extras)
    assert state.extra["ema"]["table"].sharding == state.params["table"].sharding
    step = small.train_step(model, parts, tx, objective, shardings, extras=extras)
    first = np.asarray(state.extra["ema"]["table"])
    with jax.set_mesh(shardings.step.mesh):
        state, _ = step(state, put(small.pair_batch(), shardings.step.mesh))
    want = 0.5 * first + 0.5 * np.asarray(state.params["table"])
    np.testing.assert_allclose(np.asarray(state.extra["ema"]["table"]), want, atol=1e-7)


def test_the_schedule_warms_up_and_decays():
    rate = AdamW(learning_rate=1.0).rate(1.0, 100)
    values = np.array([float(rate(i)) for i in range(101)])
    assert values[0] > 0
    assert values.argmax() == 8
    assert values[100] < 1e-3
    assert (np.diff(values[:9]) > 0).all()
    assert (np.diff(values[8:]) < 0).all()


def test_decay_leaves_embeddings_norms_and_heads_alone():
    parts, _, _, state = small.setup(small.config(), [MaskedTokens()])
    tx = AdamW(weight_decay=0.5, warmup_steps=0).make(parts.matrices, 10)
    zeros = jax.tree.map(jnp.zeros_like, state.params)
    with step_lib.standard_promotion():
        updates, _ = tx.update(zeros, tx.init(state.params), state.params)
    moved = {
        step_lib.path_name(p) for p, u in jax.tree_util.tree_leaves_with_path(updates)
        if np.abs(u).max() > 0
    }  # fmt: skip
    assert moved
    assert all(name.startswith(("runs", "memory")) for name in moved)
    assert not any("norm" in name or "router" in name for name in moved)
    assert optax.global_norm(updates) > 0
