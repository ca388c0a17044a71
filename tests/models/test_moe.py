"""Dispatch to experts against a dense reference, for values and gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmjax.models import ExpertChoice, Soft, SoftmaxTopK, TokenChoice, moe
from mmjax.parallel import MeshConfig


def experts(rng, num=4, width=8, inner=12):
    shapes = [(num, width, inner), (num, width, inner), (num, inner, width)]
    return [rng.normal(size=s).astype(np.float32) * 0.3 for s in shapes]


def reference(x, expert, weight, up, gate, down):
    """Every token through each of its experts, in NumPy."""
    out = np.zeros_like(x)
    for w, t, c in np.ndindex(expert.shape):
        e = expert[w, t, c]
        a, b = x[w, t] @ up[e], x[w, t] @ gate[e]
        out[w, t] += weight[w, t, c] * ((b / (1 + np.exp(-b)) * a) @ down[e])
    return out


@pytest.mark.parametrize("form", [("blocks", 4), ("blocks", 16), ("blocks", 128), ("ragged", 1)])
@pytest.mark.parametrize("skew", [False, True])
def test_sorted_experts_equal_the_dense_reference(form, skew):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(3, 10, 8)).astype(np.float32)
    up, gate, down = experts(rng)
    logits = rng.normal(size=(3, 10, 4)).astype(np.float32) + skew * np.float32([9, 0, 0, 0])
    valid = rng.random((3, 10)) > 0.2
    routing = TokenChoice().route(
        x, logits, {"bias": jnp.zeros(4)}, valid.astype(np.int32), valid, None
    )
    run = jax.jit(lambda *a: moe.expert_ffn(*a, *form))
    out = run(x, routing, up, gate, down)
    want = reference(
        x, np.asarray(routing.expert_WTX), np.asarray(routing.weight_WTX), up, gate, down
    )
    np.testing.assert_allclose(out, want, atol=2e-6)
    assert (np.asarray(out)[~valid] == 0).all()


@pytest.mark.parametrize("implementation", ["blocks", "ragged"])
@pytest.mark.parametrize("share", [1.0, 0.3, 0.0])
def test_gradients_equal_those_of_plain_indexing(share, implementation):
    rng = np.random.default_rng(1)
    x = rng.normal(size=(2, 7, 8)).astype(np.float32)
    weights = experts(rng)
    logits = rng.normal(size=(2, 7, 4)).astype(np.float32)
    valid = rng.random((2, 7)) < share

    def plain(x, routing, up, gate, down):
        e = routing.expert_WTX
        h = jax.nn.silu(jnp.einsum("wtd,wtxdf->wtxf", x, gate[e])) * jnp.einsum(
            "wtd,wtxdf->wtxf", x, up[e]
        )
        y = jnp.einsum("wtxf,wtxfd->wtxd", h, down[e])
        return jnp.sum(y * routing.weight_WTX[..., None], axis=2)

    def loss(form, x, logits, weights):
        routing = TokenChoice().route(
            x, logits, {"bias": jnp.zeros(4)}, valid.astype(np.int32), valid, None
        )
        return jnp.sum(jnp.sin(form(x, routing, *weights)))

    ours = lambda *a: moe.expert_ffn(*a, implementation, 4)
    got = jax.jit(jax.grad(lambda *a: loss(ours, *a), (0, 1, 2)))(x, logits, weights)
    want = jax.grad(lambda *a: loss(plain, *a), (0, 1, 2))(x, logits, weights)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=3e-6), got, want)


@pytest.mark.parametrize("implementation", ["blocks", "ragged"])
def test_sharded_experts_are_the_same(implementation):
    rng = np.random.default_rng(2)
    x = rng.normal(size=(4, 6, 8)).astype(np.float32)
    logits = rng.normal(size=(4, 6, 4)).astype(np.float32)
    valid, weights = rng.random((4, 6)) > 0.2, experts(rng)

    def loss(x, weights):
        routing = TokenChoice().route(
            x, logits, {"bias": jnp.zeros(4)}, valid.astype(np.int32), valid, None
        )
        return jnp.sum(jnp.sin(moe.expert_ffn(x, routing, *weights, implementation, 4)))

    run = jax.jit(jax.value_and_grad(loss, (0, 1)))
    alone = run(x, weights)
    with jax.set_mesh(MeshConfig(data=2, fsdp=2, tensor=2).make()):
        mesh = run(x, weights)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=3e-6), alone, mesh)


def test_nothing_is_dropped_when_all_tokens_choose_one_expert():
    expert = np.zeros((50, 1), np.int32)
    slot, token, block_expert, used = moe.block_plan(jnp.asarray(expert), 4, 8)
    assert len(set(np.asarray(slot).ravel())) == 50
    assert sorted(int(t) for t in token if t < 50) == list(range(50))
    assert int(used) == -(-50 // 8)
    assert set(np.asarray(block_expert)[: int(used)]) == {0}
    assert len(block_expert) % moe.UNROLL == 0  # a turn of the loop takes so many


def test_blocks_without_tokens_are_not_computed():
    rng = np.random.default_rng(5)
    x = rng.normal(size=(8, 4, 8)).astype(np.float32)
    x[3:] = np.nan
    block_expert = np.zeros(8, np.int32)

    def run(used, x, *weights):
        return moe._block_ffn(x, block_expert, used, *weights)

    # Turns of four blocks: three used ones cost one turn, in which the fourth is computed too.
    for used, computed in ((0, 0), (3, 4), (5, 8)):
        y, pull = jax.vjp(jax.jit(lambda *a, n=used: run(jnp.int32(n), *a)), x, *experts(rng))
        assert np.isfinite(y[computed:]).all()
        assert (np.asarray(y[computed:]) == 0).all()
        assert np.isnan(y[3:computed]).all()
        assert np.isfinite(pull(jnp.ones_like(y))[0][computed:]).all()


def test_expert_choice_takes_exactly_its_capacity_and_follows_permutations():
    rng = np.random.default_rng(2)
    x = rng.normal(size=(2, 12, 8)).astype(np.float32)
    logits = rng.normal(size=(2, 12, 4)).astype(np.float32)
    weights = experts(rng)
    valid = np.ones((2, 12), bool)
    router = ExpertChoice(capacity_factor=1.0)

    def run(order):
        routing = router.route(x, logits[:, order], {}, valid.astype(np.int32), valid, None)
        assert routing.token_WEC.shape == (2, 4, 3)
        return np.asarray(moe.expert_ffn(x[:, order], routing, *weights, 8))

    order = rng.permutation(12)
    np.testing.assert_allclose(run(np.arange(12))[:, order], run(order), atol=1e-6)


def test_expert_choice_with_full_capacity_is_every_expert_on_every_token():
    rng = np.random.default_rng(3)
    x = rng.normal(size=(1, 6, 8)).astype(np.float32)
    logits = rng.normal(size=(1, 6, 4)).astype(np.float32)
    weights = experts(rng)
    valid = np.ones((1, 6), bool)
    routing = ExpertChoice(capacity_factor=4.0).route(
        x, logits, {}, valid.astype(np.int32), valid, None
    )
    prob = np.asarray(jax.nn.softmax(logits, axis=-1))
    every = np.tile(np.arange(4), (1, 6, 1))
    want = reference(x, every, prob, *weights)
    np.testing.assert_allclose(moe.expert_ffn(x, routing, *weights, 8), want, atol=2e-6)


def test_soft_routing_mixes_and_keeps_padding_out():
    rng = np.random.default_rng(4)
    x = rng.normal(size=(1, 6, 8)).astype(np.float32)
    logits = rng.normal(size=(1, 6, 4)).astype(np.float32)
    weights = experts(rng)
    valid = np.array([[True] * 4 + [False] * 2])
    routing = Soft().route(x, logits, {"bias": jnp.zeros(4)}, valid.astype(np.int32), valid, None)
    out = np.asarray(moe.expert_ffn(x, routing, *weights, 8))
    x[:, 4:] += 100.0
    np.testing.assert_allclose(moe.expert_ffn(x, routing, *weights, 8), out, atol=1e-5)
    np.testing.assert_allclose(np.sum(routing.dispatch_WTEC[..., 0], axis=1), 1.0, atol=1e-6)


def softmax(logits):
    e = np.exp(logits - logits.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


@pytest.mark.parametrize("normed", [True, False])
def test_softmax_top_k_gives_the_weights_of_mixtral_and_of_olmoe(normed):
    """Mixtral: softmax over the chosen logits. OLMoE: over all of them, not renormalised."""
    logits = np.random.default_rng(6).normal(size=(3, 10, 8)).astype(np.float32) * 3
    valid = np.ones((3, 10), bool)
    router = SoftmaxTopK(num_experts_per_tok=3, norm_topk_prob=normed)
    routing = router.route(logits, logits, {}, valid.astype(np.int32), valid, None)
    expert = np.argsort(-logits, axis=-1)[..., :3]
    np.testing.assert_array_equal(routing.expert_WTX, expert)
    mixtral = softmax(np.take_along_axis(logits, expert, -1))
    olmoe = np.take_along_axis(softmax(logits), expert, -1)
    np.testing.assert_allclose(routing.weight_WTX, mixtral if normed else olmoe, atol=1e-6)
    # As transformers computes Mixtral's.
    np.testing.assert_allclose(olmoe / olmoe.sum(-1, keepdims=True), mixtral, atol=1e-6)


def test_load_counts_tokens_by_stream():
    rng = np.random.default_rng(5)
    stream = np.array([[0, 1, 1, 2, 2, 2]], np.int32)
    logits = rng.normal(size=(1, 6, 4)).astype(np.float32)
    routing = TokenChoice().route(logits, logits, {"bias": jnp.zeros(4)}, stream, stream > 0, None)
    load = np.asarray(moe.load_by_stream(routing, jnp.asarray(stream), 2, 4))
    assert load.shape == (3, 4)
    assert load.sum(1).tolist() == [0, 4, 6]
