"""Weights in use: cast, then gathered a layer at a time; gradients in parts, in their dtype."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small
from jax.extend.core import DropVar
from jax.sharding import PartitionSpec as P

from mmjax.models import fused, weights
from mmjax.objectives import MaskedTokens
from mmjax.optim import AdamW
from mmjax.parallel import MeshConfig, MeshRules, rules

MESH = MeshConfig(data=2, fsdp=4)


def stack(policy: str, placement: weights.Placement):
    """A loss of three layers of one matrix each."""

    def layer(x, w):
        y = fused.project(x, placement.ready(w))
        return jnp.sin(y), None

    def loss(x, w_NDD):
        return jnp.sum(jax.lax.scan(weights.remat(layer, policy, placement), x, w_NDD)[0])

    return jax.grad(loss, argnums=1)


def residuals(policy: str, placement: weights.Placement) -> list[str]:
    """Types of what the scan over layers keeps for the backward pass."""
    x, w = jnp.ones((16, 64), jnp.bfloat16), jnp.ones((3, 64, 64))
    with jax.set_mesh(MESH.make()):
        jaxpr = jax.make_jaxpr(stack(policy, placement))(x, w)
    scan = next(e for e in jaxpr.eqns if e.primitive.name == "scan")
    return [v.aval.str_short() for v in scan.outvars[1:] if not isinstance(v, DropVar)]


BF16 = weights.Placement(P("fsdp", None), "bfloat16", "bfloat16")


def test_gathered_weights_are_not_kept():
    assert "bfloat16[3,64,64]" not in residuals("none", BF16)
    assert "bfloat16[3,16,64]" in residuals("none", BF16)  # inputs of the layers


@pytest.mark.parametrize("reduce_dtype", ["bfloat16", "float32"])
def test_gradients_come_in_parts_and_in_the_dtype_of_their_sum(reduce_dtype):
    placement = weights.Placement(P("fsdp", None), "bfloat16", reduce_dtype)
    seen = []
    with jax.set_mesh(MESH.make()):
        w = jnp.ones((64, 64))
        ready, pullback = jax.vjp(placement.ready, w)
        assert ready.dtype == reduce_dtype
        x = jnp.ones((16, 64), jnp.bfloat16)
        out, to_weight = jax.vjp(fused.project, x, ready)
        assert out.dtype == jnp.bfloat16
        seen = [to_weight(out)[1].dtype, pullback(ready)[0].dtype]
    assert seen == [reduce_dtype, jnp.float32]


def test_weights_are_cast_before_they_are_gathered():
    with jax.set_mesh(MESH.make()):
        jaxpr = jax.make_jaxpr(BF16.ready)(jnp.ones((64, 64)))
    (call,) = jaxpr.eqns
    (gather,) = (
        e for e in call.params["call_jaxpr"].eqns if e.primitive.name == "sharding_constraint"
    )
    assert gather.invars[0].aval.dtype == jnp.bfloat16
    assert gather.params["sharding"].spec == P(None, None)


def test_what_is_no_matrix_stays_in_float32():
    with jax.set_mesh(MESH.make()):
        assert BF16.ready(jnp.ones((64, 64)), is_matrix=False).dtype == jnp.float32


def test_weights_of_one_device_in_float32_are_used_as_they_are():
    w = jnp.ones((4, 4))
    assert weights.Placement().ready(w) is w


def test_tensor_and_expert_parts_stay_in_place():
    spec = P("expert", "fsdp", "tensor")
    assert rules.gathered(spec) == P("expert", None, "tensor")


def test_vectors_are_whole():
    mesh = MESH.make()
    assert MeshRules().spec("scale", ("embed",), (64,), mesh) == P(None)
    assert MeshRules().spec("scale", ("embed",), (3, 64), mesh) == P(None, None)
    assert MeshRules().spec("w", ("embed", "mlp"), (64, 8), mesh) == P("fsdp", None)


@pytest.mark.parametrize("reduce_dtype", ["", "float32"])
@pytest.mark.slow
def test_sharded_bfloat16_is_near_one_device(reduce_dtype):
    losses = []
    for sizes, devices in (({}, 1), ({"data": 2, "fsdp": 4}, 8)):
        mesh = MeshConfig(**sizes).make(jax.devices()[:devices])
        model, objective = small.config(moe=None), MaskedTokens()
        parts, tx, shardings, state = small.setup(model, [objective], mesh, AdamW())
        how = {"dtype": "bfloat16", "grad_reduce_dtype": reduce_dtype}
        step = small.train_step(model, parts, tx, objective, shardings, **how)
        batch = jax.device_put(small.masked_batch(), small.batch_sharding(mesh))
        with jax.set_mesh(mesh):
            for _ in range(3):
                state, metrics = step(state, batch)
        losses.append(float(metrics["loss"]))
    assert losses[0] == pytest.approx(losses[1], rel=2e-2)


def test_rows_add_up_in_float32():
    table, index = jnp.zeros((2, 4), jnp.bfloat16), jnp.zeros((1000,), jnp.int32)
    _, pullback = jax.vjp(lambda t: fused.rows(t, index), table)
    (grad,) = pullback(jnp.full((1000, 4), 0.01, jnp.bfloat16))
    np.testing.assert_allclose(np.asarray(grad[0], np.float32), 10.0, rtol=1e-2)
