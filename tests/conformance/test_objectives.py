"""One row added to small.OBJECTIVES gives an objective all of these tests."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small

from mmjax import step as step_lib
from mmjax.objectives import CoCa, InfoNCE, MaskedTokens, NextToken, coca
from mmjax.parallel import MeshConfig

MESHES = {
    "1": (1, MeshConfig()),
    "2_data": (2, MeshConfig()),
    "8_fsdp": (8, MeshConfig(data=1, fsdp=-1)),
    "8_tensor": (8, MeshConfig(tensor=2, fsdp=2)),
    "8_expert": (8, MeshConfig(expert=4, data=2)),
    "8_replica": (8, MeshConfig(replica=2, data=1, fsdp=2, expert=2)),
}


def gradients(name, mesh_name, dtype="float32"):
    """Loss and gradients of the sum of losses on a mesh, as host arrays."""
    objective, make = small.OBJECTIVES[name]
    count, mesh_config = MESHES[mesh_name]
    mesh = mesh_config.make(jax.devices()[:count])
    parts, _, _shardings, state = small.setup(small.config(), [objective], mesh)
    batch_sharding = jax.sharding.NamedSharding(mesh, small.step_lib.rules_lib.batch_spec())
    batch = jax.device_put(make(), batch_sharding)

    def loss(params, model_state, batch):
        losses, metrics, _ = step_lib.eval_step(
            parts, objective, params, model_state, {}, batch, group_rows=small.GROUP, dtype=dtype
        )
        return sum(losses.values()), metrics

    with jax.set_mesh(mesh):
        run = jax.jit(jax.value_and_grad(loss, has_aux=True))
        (value, metrics), grads = run(state.params, state.model_state, batch)
    return float(value), jax.device_get(metrics), jax.device_get(grads)


@pytest.fixture(scope="module")
def unsharded():
    """Loss and gradients on one device, by objective, computed when asked for."""

    class Found(dict):
        def __missing__(self, name):
            self[name] = gradients(name, "1")
            return self[name]

    return Found()


# Three take the same way as `info_nce`: `make test` leaves their longest tests to nightly runs.
NAMES = [
    pytest.param(
        n, marks=[pytest.mark.slow] if n in ("info_nce_three", "sigmoid", "symile") else []
    )
    for n in small.OBJECTIVES
]


# The mixed mesh has every batch axis; the ones with one axis alone are for finding out which.
@pytest.mark.parametrize(
    "mesh",
    [
        "2_data",
        pytest.param("8_tensor", marks=pytest.mark.ci),
        pytest.param("8_replica", marks=pytest.mark.slow),
        pytest.param("8_fsdp", marks=pytest.mark.slow),
        pytest.param("8_expert", marks=pytest.mark.slow),
    ],
)
@pytest.mark.parametrize("name", NAMES)
def test_sharded_equals_unsharded(unsharded, name, mesh):
    value, _, grads = gradients(name, mesh)
    want, _, want_grads = unsharded[name]
    assert abs(value - want) < 1e-5
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), grads, want_grads)


@pytest.mark.parametrize("name", small.OBJECTIVES)
def test_finite_and_gradient_reaches_what_it_claims(unsharded, name):
    value, metrics, grads = unsharded[name]
    assert np.isfinite(value)
    assert value > 0
    assert all(np.isfinite(v).all() for v in metrics.values())
    flat = {step_lib.path_name(p): g for p, g in jax.tree_util.tree_leaves_with_path(grads)}
    silent = [k for k, g in flat.items() if np.abs(g).max() == 0]
    decoder = [k for k in silent if k.startswith("runs/1/") or k.startswith("memory")]
    if name in ("masked", "coca"):
        assert not decoder
    if name == "masked":
        assert all("pieces" not in k for k in silent)
    encoder = [k for k in silent if k.startswith("runs/0/")]
    assert not encoder


# Symile draws its negatives by their places in the batch, so that order is a part of its draw.
@pytest.mark.parametrize("name", [n for n in small.OBJECTIVES if n != "symile"])
@pytest.mark.slow
def test_order_of_the_groups_does_not_matter(unsharded, name):
    objective, make = small.OBJECTIVES[name]
    parts, _, _, state = small.setup(small.config(), [objective])
    batch = make()
    groups = small.ROWS // small.GROUP

    def flip(x):
        if x.shape[0] == groups:
            return x[::-1]
        return x.reshape(groups, small.GROUP, *x.shape[1:])[::-1].reshape(x.shape)

    losses, _, _ = step_lib.eval_step(
        parts, objective, state.params, state.model_state, {}, jax.tree.map(flip, batch),
        group_rows=small.GROUP,
    )  # fmt: skip
    assert abs(float(sum(losses.values())) - unsharded[name][0]) < 1e-5


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.slow
def test_bfloat16_is_close(unsharded, name):
    value, _, _ = gradients(name, "1", dtype="bfloat16")
    assert abs(value - unsharded[name][0]) < 0.05 * unsharded[name][0]


@pytest.mark.parametrize("name", small.OBJECTIVES)
@pytest.mark.slow
def test_the_record_of_every_model_call_survives(name):
    objective, make = small.OBJECTIVES[name]
    parts, _, _, state = small.setup(small.config(), [objective])
    model = step_lib.bind(parts, state.params, state.model_state, small.GROUP, "float32")
    batch = make()
    _, _, record, _ = objective(model, batch, jax.random.key(0), {})
    tokens = sum(float(np.sum(v.stream_BL > 0)) for v in batch.views.values())
    lanes = {"load/0/1": 0.0, "load/1/1": 0.0}
    for key in record:
        lanes[key] = float(jnp.sum(record[key][:, 1:]))
    assert sum(lanes.values()) == 2 * tokens  # two experts a token, one expert layer a lane


def test_masked_equals_a_numpy_oracle():
    objective, batch = MaskedTokens(vocab_chunk=32), small.masked_batch()
    parts, _, _, state = small.setup(small.config(), [objective])
    losses, metrics, _ = step_lib.eval_step(
        parts, objective, state.params, state.model_state, {}, batch, group_rows=small.GROUP
    )
    model = step_lib.bind(parts, state.params, state.model_state, small.GROUP, "float32")
    x = np.asarray(model.decode(batch.views["target"], model.encode(batch.views["input"])).x_BLD)
    groups = small.ROWS // small.GROUP
    x = x.reshape(groups, small.GROUP, 8, -1)
    start, _ = small.VOCABULARY.range("codes")
    table = np.asarray(state.params["table"])[start : start + 100]
    shared = np.asarray(state.params["levels"][f"s{small.VOCABULARY.number('codes')}"])
    for level, digit in zip(
        small.CODES.levels, np.unravel_index(range(100), small.CODES.levels, "F"), strict=True
    ):
        table, shared = table + shared[digit], shared[level:]
    t = batch.targets["codes"]
    terms, weights = [], []
    for w, u in np.ndindex(t.weight_WU.shape):
        logits = table @ x[w, t.row_WU[w, u], t.slot_WU[w, u]]
        top = logits.max()
        terms.append(np.log(np.exp(logits - top).sum()) + top - logits[t.label_WU[w, u]])
        weights.append(t.weight_WU[w, u])
    want = np.dot(terms, weights) / np.sum(weights)
    assert abs(float(metrics["codes/loss"]) - want) < 1e-5
    assert abs(float(losses["codes"]) - want / 2) < 1e-5  # two target streams share the loss


def test_chunked_cross_entropy_equals_the_whole():
    batch = small.masked_batch()
    values = []
    for chunk in (0, 32, 1000):
        objective = MaskedTokens(vocab_chunk=chunk)
        parts, _, _, state = small.setup(small.config(), [objective])
        losses, _, _ = step_lib.eval_step(
            parts, objective, state.params, state.model_state, {}, batch, group_rows=small.GROUP
        )
        values.append(float(losses["codes"]))
    assert max(values) - min(values) < 1e-5


def test_info_nce_equals_a_numpy_oracle_with_presence_and_several_positives():
    objective, batch = InfoNCE(), small.pair_batch()
    parts, _, _, state = small.setup(small.config(), [objective])
    losses, _, features = step_lib.eval_step(
        parts, objective, state.params, state.model_state, {}, batch, group_rows=small.GROUP
    )
    a, b = (np.asarray(features[k])[:, 0] for k in ("image", "text"))
    np.testing.assert_allclose(np.linalg.norm(a, axis=1), 1.0, atol=1e-5)
    keep = batch.present_BSM[:, 0, small.VOCABULARY.number("text") - 1]
    identity = batch.identity_BS[:, 0]
    total = []
    for x, y in ((a, b), (b, a)):
        logits = x @ y.T / 0.07
        for i in np.flatnonzero(keep):
            everything = np.log(np.sum(np.exp(logits[i, keep])))
            own = keep & (identity == identity[i])
            total.append(everything - np.log(np.sum(np.exp(logits[i, own]))))
    assert not keep.all()
    assert identity[0] == identity[1]
    assert abs(float(losses["image+text"]) - np.mean(total)) < 2e-5


def test_coca_is_its_parts_of_one_encoding():
    objective, batch = CoCa(caption_weight=3.0), small.caption_batch()
    parts, _, _, state = small.setup(small.config(), [objective])
    run = lambda objective, batch: step_lib.eval_step(
        parts, objective, state.params, state.model_state, {}, batch, group_rows=small.GROUP
    )
    losses, metrics, features = run(objective, batch)
    pairs = batch._replace(
        views={n: v for n, v in batch.views.items() if n != "target"}, targets={}
    )
    contrast, _, vectors = run(InfoNCE(), pairs)
    views = {"input": batch.views["image"], "target": batch.views["target"]}
    caption, told, _ = run(NextToken(), batch._replace(views=views))
    np.testing.assert_allclose(losses["image+text"], contrast["image+text"], rtol=1e-5)
    np.testing.assert_allclose(losses["text"], 3 * caption["text"], rtol=1e-5)
    np.testing.assert_allclose(features["text"], vectors["text"], atol=1e-6)
    for name in ("text/loss", "text/accuracy"):
        np.testing.assert_allclose(metrics[name], told[name], rtol=1e-5)


def test_coca_reads_one_of_the_views_that_a_sample_has():
    batch = small.pair_batch(names=("image", "codes"))
    batch.views["codes"].segment_BL[:8] = batch.views["codes"].stream_BL[:8] = 0  # absent
    parts, _, _, state = small.setup(small.config(), [CoCa()])
    model = step_lib.bind(parts, state.params, state.model_state, small.GROUP, "float32")
    encoded = {name: model.encode(tokens) for name, tokens in batch.views.items()}
    shown = []
    for seed in range(20):
        memory = coca.one_of(encoded, 1, jax.random.key(seed))
        assert memory.x_BLD.shape == (small.ROWS, 16, encoded["image"].x_BLD.shape[-1])
        halves = np.asarray(memory.tokens.segment_BL).reshape(small.ROWS, 2, 8).any(axis=2)
        assert (halves.sum(axis=1) == 1).all()
        assert ((np.asarray(memory.tokens.stream_BL) > 0) == (memory.tokens.segment_BL > 0)).all()
        shown.append(halves[:, 1])
    share = np.mean(shown, axis=0)
    assert (share[:8] == 0).all()
    assert (share[8:] > 0).all()
    assert 0.4 < share[8:].mean() < 0.6


@pytest.mark.slow
def test_an_absent_member_is_no_negative():
    objective, batch = InfoNCE(), small.pair_batch()
    parts, _, _, state = small.setup(small.config(), [objective])

    def loss(batch):
        losses, _, _ = step_lib.eval_step(
            parts, objective, state.params, state.model_state, {}, batch, group_rows=small.GROUP
        )
        return float(losses["image+text"])

    before = loss(batch)
    batch.views["text"].ids_BL[2] = 140  # the row that is declared absent
    assert loss(batch) == before
    empty = batch._replace(present_BSM=np.zeros_like(batch.present_BSM))
    assert loss(empty) == 0.0
