"""Dispatch to experts against a dense reference, for values and gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmjax.models import (
    ExpertChoice,
    MoE,
    Soft,
    SoftmaxTopK,
    TokenChoice,
    dispatch,
    grouped,
    grouped_blocks,
    moe,
)
from mmjax.parallel import MeshConfig

IMPLEMENTATIONS = ["blocks", "ragged", "megablox", "triton", "capacity"]


def how(implementation="auto", block_rows=16, **fields):
    """Room for everything, so that nothing is dropped."""
    fields = {"capacity_factor": 8.0, **fields}
    return MoE(implementation=implementation, block_rows=block_rows, **fields)


def expert_ffn(*args, **fields):
    return moe.expert_ffn(*args, how(**fields)).x_WTD


def experts(rng, num=4, width=16, inner=16):
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


FORMS = [(name, 16) for name in IMPLEMENTATIONS] + [("blocks", 4), ("blocks", 128)]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("skew", [False, True])
def test_sorted_experts_equal_the_dense_reference(form, skew):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(3, 10, 16)).astype(np.float32)
    up, gate, down = experts(rng)
    logits = rng.normal(size=(3, 10, 4)).astype(np.float32) + skew * np.float32([9, 0, 0, 0])
    valid = rng.random((3, 10)) > 0.2
    routing = TokenChoice().route(
        x, logits, {"bias": jnp.zeros(4)}, valid.astype(np.int32), valid, None
    )
    run = jax.jit(lambda *a: expert_ffn(*a, implementation=form[0], block_rows=form[1]))
    out = run(x, routing, up, gate, down)
    want = reference(
        x, np.asarray(routing.expert_WTX), np.asarray(routing.weight_WTX), up, gate, down
    )
    np.testing.assert_allclose(out, want, atol=2e-6)
    assert (np.asarray(out)[~valid] == 0).all()


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("share", [1.0, 0.3, 0.0])
def test_gradients_equal_those_of_plain_indexing(share, implementation):
    rng = np.random.default_rng(1)
    x = rng.normal(size=(2, 7, 16)).astype(np.float32)
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

    ours = lambda *a: expert_ffn(*a, implementation=implementation)
    got = jax.jit(jax.grad(lambda *a: loss(ours, *a), (0, 1, 2)))(x, logits, weights)
    want = jax.grad(lambda *a: loss(plain, *a), (0, 1, 2))(x, logits, weights)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=3e-6, atol=3e-6), got, want)


MESHES = [
    {"data": 2, "fsdp": 2, "tensor": 2},
    {"expert": 2, "fsdp": 2, "tensor": 2},
    {"expert": 4, "fsdp": 2},
    {"expert": 8},
    {"expert": 2},
]
ROUTED = [
    *((TokenChoice(), name) for name in ("blocks", "ragged", "capacity")),
    (ExpertChoice(), "auto"),
    (Soft(), "auto"),
]
KERNELS = [(TokenChoice(), name) for name in ("megablox", "triton")]  # are interpreted, slowly
ON_DEVICES = [
    *((*routed, mesh) for routed in ROUTED for mesh in MESHES),
    *((*routed, mesh) for routed in KERNELS for mesh in MESHES[:2]),
]


def shown(x):
    if isinstance(x, dict):
        return "-".join(f"{axis}{size}" for axis, size in x.items())
    return x if isinstance(x, str) else type(x).__name__


@pytest.mark.parametrize(("router", "implementation", "mesh"), ON_DEVICES, ids=shown)
def test_experts_on_devices_are_those_on_one(router, implementation, mesh):
    """Values and the gradients of tokens, logits and matrices."""
    rng = np.random.default_rng(2)
    x = rng.normal(size=(8, 6, 16)).astype(np.float32)
    logits = rng.normal(size=(8, 6, 8)).astype(np.float32)
    valid, weights = rng.random((8, 6)) > 0.2, experts(rng, 8)

    def loss(x, logits, weights):
        routing = router.route(
            x, logits, {"bias": jnp.zeros(8)}, valid.astype(np.int32), valid, None
        )
        out = moe.expert_ffn(x, routing, *weights, how(implementation))
        return jnp.sum(jnp.sin(out.x_WTD)), out.overflow_2

    run = jax.jit(jax.value_and_grad(loss, (0, 1, 2), has_aux=True))
    (alone, _), gradients = run(x, logits, weights)
    devices = jax.devices()[: int(np.prod(list(mesh.values())))]
    with jax.set_mesh(MeshConfig(**{"data": 1, **mesh}).make(devices)):
        (value, overflow), others = run(x, logits, weights)
    np.testing.assert_allclose(value, alone, rtol=1e-5)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=5e-6), gradients, others
    )
    if isinstance(router, TokenChoice) and "expert" in mesh:
        assert overflow.tolist() == [0, 2 * valid.sum()]


@pytest.mark.parametrize("implementation", ["blocks", "capacity"])
def test_what_finds_its_room_full_is_dropped_and_counted(implementation):
    """All tokens of both devices choose experts 0 and 1, which lie on the first."""
    x, weights = np.ones((2, 40, 16), np.float32), experts(np.random.default_rng(7))
    expert = np.broadcast_to(np.int32([0, 1]), (2, 40, 2))
    weight = np.full((2, 40, 2), 0.5, np.float32)
    routing = moe.Routing(expert_WTX=expert, weight_WTX=weight)
    want = reference(x[:1, :1], expert[:1, :1], weight[:1, :1], *weights)[0, 0]
    with jax.set_mesh(MeshConfig(data=1, expert=2).make(jax.devices()[:2])):
        run = jax.jit(lambda *a: moe.expert_ffn(*a, how(implementation, capacity_factor=1.0)))
        out, overflow = run(x, routing, *weights)
    # A device has 80 choices and room for 40 of them on each: those of expert 0, that sort first.
    # With `capacity` an expert has room for 40 of the 80 that come.
    dropped = 80 if implementation == "blocks" else 120
    assert overflow.tolist() == [dropped, 160]
    assert (np.asarray(out) != 0).any()
    assert np.abs(np.asarray(out)).max() < np.abs(want).max() * 1.5


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.slow
def test_bfloat16_stays_near_float32(implementation):
    rng = np.random.default_rng(8)
    x, weights = rng.normal(size=(2, 20, 16)).astype(np.float32), experts(rng)
    valid, logits = np.ones((2, 20), bool), rng.normal(size=(2, 20, 4)).astype(np.float32)
    routing = TokenChoice().route(x, logits, {"bias": jnp.zeros(4)}, valid * 1, valid, None)

    def run(dtype):
        loss = lambda x, ws: jnp.sum(
            jnp.sin(expert_ffn(x.astype(dtype), routing, *ws, implementation=implementation))
        ).astype(jnp.float32)
        return jax.tree.leaves(jax.jit(jax.value_and_grad(loss, (0, 1)))(x, weights))

    for low, full in zip(run(jnp.bfloat16), run(jnp.float32), strict=True):
        assert low.dtype == jnp.float32
        np.testing.assert_allclose(low, full, atol=0.03 * np.abs(full).max())


@pytest.mark.parametrize(
    ("asked", "platform", "widths", "takes"),
    [
        ("auto", "tpu", (256, 512), "megablox"),
        ("auto", "tpu", (192, 512), "ragged"),
        ("auto", "gpu", (192, 512), "triton"),
        ("auto", "gpu", (192, 12), "ragged"),
        ("auto", "cpu", (256, 512), "blocks"),
        ("triton", "tpu", (256, 512), "megablox"),
        ("megablox", "gpu", (256, 512), "triton"),
        ("triton", "gpu", (256, 10), "ragged"),
        ("megablox", "tpu", (192, 512), "ragged"),
        ("capacity", "tpu", (256, 512), "capacity"),
    ],
)
def test_what_computes_experts(asked, platform, widths, takes):
    assert grouped.chosen(asked, platform, *widths) == takes
    assert bool(grouped.refusal(asked, platform, *widths)) == (asked not in ("auto", takes))


@pytest.mark.parametrize(
    ("asked", "choices", "takes"),
    [(128, 1000, 128), (100, 1000, 64), (128, 40, 32), (8, 1000, 16), (128, 3, 16)],
)
def test_blocks_of_triton_are_powers_of_two(asked, choices, takes):
    by = dispatch.sort(jnp.zeros(choices, jnp.int32), 4)
    slots, groups = grouped.lay("triton", by, asked, 1.0)
    assert len(slots.choice_S) == takes * len(groups.expert_N)
    assert sorted(int(c) for c in slots.choice_S if c < choices) == list(range(choices))


def test_an_implementation_that_does_not_exist_is_refused():
    with pytest.raises(ValueError, match="implementation='gmm' does not exist; use one of auto, b"):
        grouped.chosen("gmm", "cpu", 16, 16)


@pytest.mark.slow
def test_what_cannot_be_done_is_said_once(capsys):
    x, weights = np.ones((2, 4, 10), np.float32), experts(np.random.default_rng(0), width=10)
    routing = moe.Routing(
        expert_WTX=np.zeros((2, 4, 1), np.int32), weight_WTX=np.ones((2, 4, 1), np.float32)
    )
    odd = how("triton", exchange="ragged")
    with jax.set_mesh(MeshConfig(data=1, expert=2).make(jax.devices()[:2])):
        for _ in range(2):
            moe.expert_ffn(x, routing, *weights, odd)
    said = capsys.readouterr().err.splitlines()
    assert said == [
        "MoE.implementation='triton' is computed by 'blocks' here: widths of 10 and 16 are no"
        " multiples of 16",
        "MoE.exchange='ragged' is 'equal' here: cpu has no such collective",
    ]


def test_nothing_is_dropped_when_all_tokens_choose_one_expert():
    by = dispatch.sort(jnp.zeros(50, jnp.int32), 4)
    slots, groups = grouped.lay("blocks", by, 8, 1.0)
    assert len(set(np.asarray(slots.slot_C))) == 50
    assert sorted(int(c) for c in slots.choice_S if c < 50) == list(range(50))
    assert groups.end_E.tolist() == [7] * 4
    assert set(np.asarray(groups.expert_N)[:7]) == {0}


def test_blocks_without_tokens_are_not_computed():
    rng = np.random.default_rng(5)
    x = rng.normal(size=(8, 4, 16)).astype(np.float32)
    x[3:] = np.nan
    weight = np.ones((8, 4), np.float32)
    for end in ([0, 0, 0, 0], [1, 1, 3, 3], [2, 3, 5, 5]):
        run = jax.jit(lambda *a, end=end: grouped_blocks.ffn(a[0], weight, jnp.int32(end), *a[1:]))
        y, pull = jax.vjp(run, x, *experts(rng))
        used = end[-1]
        assert (np.asarray(y[used:]) == 0).all()
        assert np.isfinite(y[: min(used, 3)]).all()
        assert np.isnan(y[3:used]).all()
        assert (np.asarray(pull(jnp.ones_like(y))[0][used:]) == 0).all()


@pytest.mark.parametrize("implementation", ["ragged", "megablox", "triton"])
def test_what_is_behind_the_rows_in_use_reaches_no_result(implementation):
    """Kernels leave there what was in memory."""
    rng = np.random.default_rng(9)
    by = dispatch.sort(jnp.asarray(rng.choice([0, 2, 3, 4], 100), jnp.int32), 4)
    slots, groups = grouped.lay(implementation, by, 16, 1.0)
    x_CD, weight_C = rng.normal(size=(100, 16)).astype(np.float32), np.ones(100, np.float32)
    end = int(groups.end_E[-1]) * 16 if implementation == "triton" else int(by.count_G.sum())

    def loss(junk, x_CD, weight_C, matrices):
        x_SD, weight_S = dispatch.to_rows(x_CD, slots), dispatch.to_rows(weight_C, slots)
        behind = jnp.arange(len(x_SD))[:, None] >= end
        y_SD = grouped.ffn(
            implementation, jnp.where(behind, junk, x_SD), weight_S, groups, matrices
        )
        return jnp.sum(jnp.sin(dispatch.from_rows(jnp.where(behind, junk, y_SD), slots)))

    run = jax.jit(jax.value_and_grad(loss, (1, 2, 3)))
    given = (x_CD, weight_C, tuple(experts(rng)))
    clean, dirty = run(0.0, *given), run(np.nan, *given)
    jax.tree.map(np.testing.assert_array_equal, clean, dirty)


def test_expert_choice_takes_exactly_its_capacity_and_follows_permutations():
    rng = np.random.default_rng(2)
    x = rng.normal(size=(2, 12, 16)).astype(np.float32)
    logits = rng.normal(size=(2, 12, 4)).astype(np.float32)
    weights = experts(rng)
    valid = np.ones((2, 12), bool)
    router = ExpertChoice(capacity_factor=1.0)

    def run(order):
        routing = router.route(x, logits[:, order], {}, valid.astype(np.int32), valid, None)
        assert routing.token_WEC.shape == (2, 4, 3)
        return np.asarray(expert_ffn(x[:, order], routing, *weights))

    order = rng.permutation(12)
    np.testing.assert_allclose(run(np.arange(12))[:, order], run(order), atol=1e-6)


def test_expert_choice_with_full_capacity_is_every_expert_on_every_token():
    rng = np.random.default_rng(3)
    x = rng.normal(size=(1, 6, 16)).astype(np.float32)
    logits = rng.normal(size=(1, 6, 4)).astype(np.float32)
    weights = experts(rng)
    valid = np.ones((1, 6), bool)
    routing = ExpertChoice(capacity_factor=4.0).route(
        x, logits, {}, valid.astype(np.int32), valid, None
    )
    prob = np.asarray(jax.nn.softmax(logits, axis=-1))
    every = np.tile(np.arange(4), (1, 6, 1))
    want = reference(x, every, prob, *weights)
    np.testing.assert_allclose(expert_ffn(x, routing, *weights), want, atol=2e-6)


def test_soft_routing_mixes_and_keeps_padding_out():
    rng = np.random.default_rng(4)
    x = rng.normal(size=(1, 6, 16)).astype(np.float32)
    logits = rng.normal(size=(1, 6, 4)).astype(np.float32)
    weights = experts(rng)
    valid = np.array([[True] * 4 + [False] * 2])
    routing = Soft().route(x, logits, {"bias": jnp.zeros(4)}, valid.astype(np.int32), valid, None)
    out = np.asarray(expert_ffn(x, routing, *weights))
    x[:, 4:] += 100.0
    np.testing.assert_allclose(expert_ffn(x, routing, *weights), out, atol=1e-5)
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
