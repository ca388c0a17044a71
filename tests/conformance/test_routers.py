"""One row added to ROUTERS gives a router all of these tests."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmjax.models import ExpertChoice, Soft, SoftmaxTopK, TokenChoice, contracts

ROUTERS = {
    "token_choice": TokenChoice(),
    "token_choice_top1": TokenChoice(num_experts_per_tok=1),
    "token_choice_losses": TokenChoice(load_balance_loss_weight=0.01, z_loss_weight=0.001),
    "softmax_top_k": SoftmaxTopK(),
    "softmax_top_k_top1": SoftmaxTopK(num_experts_per_tok=1, load_balance_loss_weight=0.0),
    "softmax_top_k_not_normed": SoftmaxTopK(norm_topk_prob=False),
    "expert_choice": ExpertChoice(),
    "soft": Soft(),
}
GROUPS, TOKENS, EXPERTS = 2, 16, 4


def inputs(seed=0):
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(GROUPS, TOKENS, EXPERTS)).astype(np.float32)
    stream = rng.integers(0, 3, (GROUPS, TOKENS)).astype(np.int32)
    return jnp.asarray(logits), jnp.asarray(stream), jnp.asarray(stream > 0)


def route(router, logits, stream, valid, state=None):
    x_WTD, key = jnp.zeros((*stream.shape, 1)), jax.random.key(0) if router.draws else None
    state = router.init_state(EXPERTS, 3) if state is None else state
    return router.route(x_WTD, logits, state, stream, valid, key)


def token_weights(routing):
    """Total weight that each token gets, [W, T]."""
    if routing.expert_WTX is not None:
        return np.sum(routing.weight_WTX, axis=-1)
    if routing.token_WEC is not None:
        out = np.zeros((GROUPS, TOKENS), np.float32)
        for w, e, c in np.ndindex(routing.token_WEC.shape):
            out[w, routing.token_WEC[w, e, c]] += routing.weight_WEC[w, e, c]
        return out
    return np.sum(routing.combine_WTEC, axis=(2, 3))


@pytest.mark.parametrize("name", ROUTERS)
def test_padding_is_never_routed_and_weights_are_shares(name):
    logits, stream, valid = inputs()
    routing = route(ROUTERS[name], logits, stream, valid)
    total = token_weights(routing)
    assert (total[~np.asarray(valid)] == 0).all()
    assert (total <= 1 + 1e-5).all()
    if not ROUTERS[name].needs_whole_group and getattr(ROUTERS[name], "norm_topk_prob", True):
        np.testing.assert_allclose(total[np.asarray(valid)], 1.0, atol=1e-5)


@pytest.mark.parametrize("name", ROUTERS)
def test_exactly_one_form_is_set(name):
    routing = route(ROUTERS[name], *inputs())
    contracts.check_routing(ROUTERS[name], routing, (GROUPS, TOKENS, EXPERTS))
    for array in jax.tree.leaves(routing):
        assert np.isfinite(np.asarray(array)).all()


@pytest.mark.parametrize("name", ROUTERS)
def test_groups_do_not_touch_one_another(name):
    logits, stream, valid = inputs()
    both = route(ROUTERS[name], logits, stream, valid)
    one = route(ROUTERS[name], logits[:1], stream[:1], valid[:1])
    for a, b in zip(jax.tree.leaves(both), jax.tree.leaves(one), strict=True):
        if np.ndim(a):
            np.testing.assert_array_equal(np.asarray(a)[:1], b)


@pytest.mark.parametrize("name", ROUTERS)
def test_gradient_reaches_the_logits(name):
    logits, stream, valid = inputs()

    def loss(logits):
        routing = route(ROUTERS[name], logits, stream, valid)
        weights = [
            w
            for w in (routing.weight_WTX, routing.weight_WEC, routing.combine_WTEC)
            if w is not None
        ]
        # Weights over a bent scale: a sum of shares alone has no gradient.
        return jnp.sum(jnp.square(weights[0])) + routing.aux_loss

    grad = np.asarray(jax.grad(loss)(logits))
    assert np.isfinite(grad).all()
    if "top1" not in name:  # a lone share is 1, whatever its score
        assert np.abs(grad).max() > 0
    assert (grad[~np.asarray(valid)] == 0).all()


@pytest.mark.parametrize("name", ROUTERS)
def test_state_keeps_shape_and_type_over_an_update(name):
    state = ROUTERS[name].init_state(EXPERTS, 3)
    load = jnp.asarray(np.random.default_rng(0).random((3, EXPERTS)), jnp.float32)
    new = ROUTERS[name].update(state, {"load": load})
    same = lambda a, b: a.shape == b.shape and a.dtype == b.dtype
    assert jax.tree.all(jax.tree.map(same, new, state))


@pytest.mark.parametrize("name", [n for n in ROUTERS if hasattr(ROUTERS[n], "z_loss_weight")])
def test_losses_do_not_count_padding(name):
    router = dataclasses.replace(ROUTERS[name], load_balance_loss_weight=1.0, z_loss_weight=1.0)
    logits, stream, valid = inputs()
    loss = lambda logits: float(route(router, logits, stream, valid).aux_loss)
    other = jnp.where(valid[..., None], logits, 100.0)
    np.testing.assert_allclose(loss(other), loss(logits), rtol=1e-6)
    z = np.log(np.exp(np.asarray(logits)).sum(-1))[np.asarray(valid)]
    alone = dataclasses.replace(router, load_balance_loss_weight=0.0)
    np.testing.assert_allclose(
        route(alone, logits, stream, valid).aux_loss, np.mean(z**2), rtol=1e-5
    )


def test_the_selection_bias_evens_out_a_skewed_load():
    router = TokenChoice(bias_rate=0.05, num_experts_per_tok=1)
    rng = np.random.default_rng(0)
    skew = np.float32([1.0, 0.5, 0.0, -1.0])
    state, shares = router.init_state(EXPERTS, 1), []
    for _ in range(60):
        logits = jnp.asarray(rng.normal(size=(1, 64, EXPERTS)).astype(np.float32) * 0.5 + skew)
        ones = jnp.ones((1, 64), jnp.int32)
        routing = route(router, logits, ones, ones > 0, state)
        load = np.bincount(np.asarray(routing.expert_WTX).ravel(), minlength=EXPERTS)
        shares.append(load / load.mean())
        padded = np.stack([np.zeros(EXPERTS), load]).astype(np.float32)
        state = router.update(state, {"load": jnp.asarray(padded)})
    assert shares[0].max() > 2.0
    assert np.mean(shares[-20:], axis=0).max() < 1.3


def test_a_batch_of_one_stream_does_not_shift_the_weights_only_the_choice():
    router = TokenChoice()
    logits, stream, valid = inputs()
    bias = jnp.asarray([5.0, 5.0, 0.0, 0.0])
    routing = route(router, logits, stream, valid, {"bias": bias})
    assert set(np.unique(routing.expert_WTX)) <= {0, 1}
    score = np.asarray(jax.nn.sigmoid(logits))
    picked = np.take_along_axis(score, np.asarray(routing.expert_WTX), -1)
    want = picked / picked.sum(-1, keepdims=True)
    keep = np.asarray(valid)
    np.testing.assert_allclose(np.asarray(routing.weight_WTX)[keep], want[keep], atol=1e-5)
