"""Gradient rules: PCGrad and those of strangers against NumPy, over parameters and activations."""

from __future__ import annotations

import dataclasses
import functools
import shutil
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import mini
import numpy as np
import pytest
import small

import mmjax
from mmjax.objectives import MaskedTokens
from mmjax.objectives.objective import Extra
from mmjax.optim import AdamW, GradientRule, PCGrad, gradients
from mmjax.parallel import MeshConfig

sys.path.insert(0, str(Path(__file__).parent / "rules"))
import between_tasks
import harmonize


def flat(tree) -> np.ndarray:
    return np.concatenate([np.ravel(x) for x in jax.tree.leaves(tree)])


def projected(rows: np.ndarray, orders) -> np.ndarray:
    """PCGrad in NumPy: the gradients [K, N] of K losses, and the order of the others for each."""
    total = np.zeros(rows.shape[1])
    for i, own in enumerate(rows):
        own, others = own.copy(), np.delete(rows, i, axis=0)
        for j in orders[i]:
            dot = own @ others[j]
            if dot < 0:
                own -= dot / (others[j] @ others[j]) * others[j]
        total += own
    return total


@pytest.mark.parametrize("num", [1, 2, 4])
def test_pcgrad_equals_numpy(num):
    rng = np.random.default_rng(num)
    table = {
        f"loss{i}": {
            "a": rng.normal(size=(3, 2)).astype(np.float32),
            "b": rng.normal(size=2).astype(np.float32),
        }
        for i in range(num)
    }
    key = jax.random.key(5)

    def pullback(weights):
        return jax.tree.map(
            lambda *g: sum(w * x for w, x in zip(weights.values(), g, strict=True)), *table.values()
        )

    losses = dict.fromkeys(table, jnp.zeros(()))
    grads, state = jax.jit(lambda k: PCGrad().combine(losses, pullback, {}, "task", k))(key)
    orders = [
        np.asarray(jax.random.permutation(jax.random.fold_in(key, i), num - 1)) for i in range(num)
    ]
    want = projected(np.stack([flat(t) for t in table.values()]).astype(np.float64), orders)
    np.testing.assert_allclose(flat(grads), want, atol=1e-5)
    assert state == {}


@functools.cache
def world(rule: GradientRule | None, devices: int = 1):
    """(parts, state, step) of masked modelling of two streams."""
    axes = {1: {}, 8: {"data": 2, "fsdp": 2, "tensor": 2}}[devices]
    mesh = MeshConfig(**axes).make(jax.devices()[:devices])
    model, objective, extras = small.config(moe=None), MaskedTokens(), {}
    name = ""
    if rule is not None:
        parts = small.setup(model, [objective])[0]
        init = functools.partial(rule.init_state, tasks=("task", "other"))
        if jax.tree.leaves(jax.eval_shape(init, parts.params)):
            name = "rule"
            extras = {name: Extra(init=init, update=lambda tree, *_: tree)}
    parts, tx, shardings, state = small.setup(model, [objective], mesh, AdamW(), extras=extras)
    step = small.train_step(
        model, parts, tx, objective, shardings, task="task", rule=rule, rule_state=name,
        extras=extras, grad_clip_norm=0.0,
    )  # fmt: skip
    batch = jax.device_put(small.masked_batch(), small.batch_sharding(mesh))
    return mesh, state, step, batch


def stepped(rule, devices: int = 1):
    mesh, state, step, batch = world(rule, devices)
    with jax.set_mesh(mesh):
        new, metrics = step(jax.tree.map(jnp.copy, state), batch)
    return jax.device_get(state), jax.device_get(new), jax.device_get(metrics)


@dataclasses.dataclass(frozen=True, kw_only=True)
class SumAtActivations(GradientRule):
    """The plain sum, taken at activations: the step must be the plain one."""

    def combine(self, losses, pullback, state, task, key):
        parts = gradients.each(losses, pullback).values()
        return jax.tree.map(lambda *g: sum(g[1:], g[0]), *parts), state


@pytest.mark.parametrize("over", [("output",), ("embed",)])
@pytest.mark.slow
def test_the_sum_at_activations_is_the_plain_step(over):
    _, plain, metrics = stepped(None)
    _, ruled, other = stepped(SumAtActivations(over=over))
    assert metrics["grad_norm"] == pytest.approx(other["grad_norm"], rel=1e-4)
    moments = lambda state: [x for x in jax.tree.leaves(state.opt_state) if np.ndim(x)]
    for a, b in zip(moments(plain), moments(ruled), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)


RULES = [PCGrad(), harmonize.Harmonize(), between_tasks.BetweenTasks()]


@pytest.mark.ci
@pytest.mark.parametrize("rule", small.in_turns(RULES, RULES[:1]))
def test_a_rule_on_a_mesh_is_the_same(rule):
    (_, one, metrics), (_, eight, others) = stepped(rule), stepped(rule, 8)
    assert metrics["grad_norm"] == pytest.approx(others["grad_norm"], rel=1e-3)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-3), one.params, eight.params)


def test_the_state_of_a_rule_is_kept_across_steps():
    old, new, _ = stepped(between_tasks.BetweenTasks())
    assert (flat(old.extra["rule"]) == 0).all()
    assert np.any(flat(new.extra["rule"]["task"]) != 0)
    assert (flat(new.extra["rule"]["other"]) == 0).all()


def test_conflicts_with_another_task_are_taken_out():
    rule = between_tasks.BetweenTasks()
    state = {"a": {"x": jnp.array([0.0, 0.0])}, "b": {"x": jnp.array([-2.0, 0.0])}}
    pullback = lambda w: {"x": jnp.array([1.0, 1.0])}
    grads, new = rule.combine({"l": jnp.zeros(())}, pullback, state, "a", jax.random.key(0))
    np.testing.assert_allclose(grads["x"], [0.0, 1.0])
    np.testing.assert_allclose(new["a"]["x"], [0.1, 0.1], rtol=1e-6)
    assert new["b"] is state["b"]


def flops(rule) -> float:
    mesh, state, step, batch = world(rule)
    with jax.set_mesh(mesh):
        return step.lower(state, batch).compile().cost_analysis()["flops"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Nothing(GradientRule):
    """No backward pass: what a step costs without one."""

    def combine(self, losses, pullback, state, task, key):
        return jax.tree.map(jnp.zeros_like, pullback(dict.fromkeys(losses, jnp.zeros(())))), state


@pytest.mark.ci
@pytest.mark.parametrize("rule", [PCGrad(), harmonize.Harmonize()])
def test_a_rule_costs_a_backward_pass_for_each_loss(rule):
    forward, plain = flops(Nothing()), flops(None)
    assert flops(rule) <= 1.1 * (forward + 2 * (plain - forward))


# --------------------------------------------------------------------- whole runs, bad rules


def run(tmp_path, steps: int, **fields):
    config = mini.get_config(total_steps=steps, **fields)
    return mmjax.train(config, tmp_path, devices=jax.devices()[:1])


@pytest.mark.ci
def test_a_run_with_a_rule_that_remembers_resumes_to_the_bit(tmp_path):
    rule = between_tasks.BetweenTasks()
    whole = run(tmp_path / "whole", 12, gradient_rule=rule)
    shutil.copytree(tmp_path / "whole", tmp_path / "cut")
    shutil.rmtree(tmp_path / "cut" / "checkpoints" / "12")  # it goes on from step 8
    cut = run(tmp_path / "cut", 12, gradient_rule=rule)
    jax.tree.map(np.testing.assert_array_equal, whole.state.params, cut.state.params)
    assert set(whole.state.extra["gradient_rule"]) == {"text", "image_text"}
    with pytest.raises(ValueError, match="gradient_rule"):
        run(tmp_path / "cut", 14)


@pytest.mark.ci
def test_a_task_has_a_rule_of_its_own(tmp_path):
    base = mini.get_config()
    tasks = dict(base.tasks)
    tasks["text"] = dataclasses.replace(tasks["text"], gradient_rule=between_tasks.BetweenTasks())
    result = run(tmp_path, 4, tasks=tasks)
    assert set(result.state.extra["gradient_rule_text"]) == {"text"}
    assert "gradient_rule" not in result.state.extra


@dataclasses.dataclass(frozen=True, kw_only=True)
class Short(GradientRule):
    """Returns a part of the gradient."""

    def combine(self, losses, pullback, state, task, key):
        grads = pullback(dict.fromkeys(losses, jnp.ones(())))
        return {"table": grads["table"]}, state


@dataclasses.dataclass(frozen=True, kw_only=True)
class Grows(GradientRule):
    """Its state grows."""

    def init_state(self, params, tasks):
        return {"count": jnp.zeros((2,))}

    def combine(self, losses, pullback, state, task, key):
        return pullback(dict.fromkeys(losses, jnp.ones(()))), {"count": jnp.zeros((3,))}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Lacks(GradientRule):
    """Has no combine()."""


@pytest.mark.parametrize(
    ("rule", "said"),
    [
        (Short(), r"Short: combine\(\) returned a gradient of another tree"),
        (
            Grows(),
            r"Grows: combine\(\) returned state with a leaf of shape \(3,\) and float32",
        ),
    ],
)
def test_what_a_rule_returns_is_checked(rule, said):
    mesh, state, step, batch = world(rule)
    with jax.set_mesh(mesh), pytest.raises(ValueError, match=said):
        step.lower(state, batch)


def test_a_rule_without_its_method_is_told():
    mesh, state, step, batch = world(Lacks())
    with jax.set_mesh(mesh), pytest.raises(NotImplementedError, match=r"Lacks must define combine"):
        step.lower(state, batch)
