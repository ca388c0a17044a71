"""Routers that a stranger defines, one file each: trained, sharded, and told what is wrong."""

from __future__ import annotations

import dataclasses
import functools
import math
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small
from flax import nnx
from jax.sharding import NamedSharding

from mmjax import models
from mmjax import step as step_lib
from mmjax.models import blocks, contracts
from mmjax.models.module import ModelState
from mmjax.models.routers import Router, Routing
from mmjax.objectives import InfoNCE
from mmjax.optim import AdamW
from mmjax.parallel import MeshConfig, MeshRules

sys.path.insert(0, str(Path(__file__).parent / "routers"))
import cosine
import modality_bias
import modality_groups
import noisy

EXPERTS = 4
SHOWN = ("noisy", "modality_groups")  # run with every submission; the others take turns
OUTSIDE: dict[str, Router] = {
    "noisy": noisy.NoisyTopK(),
    "cosine": cosine.Cosine(),
    "modality_bias": modality_bias.ModalityBias(),
    "modality_groups": modality_groups.ModalityGroups(groups=((0,), (1, 2), (2, 3))),
}
SHIPPED: dict[str, Router] = {
    "token_choice": models.TokenChoice(bias_rate=0.01, z_loss_weight=0.001),
    "softmax_top_k": models.SoftmaxTopK(),
    "expert_choice": models.ExpertChoice(allow_unmixed=True),
    "soft": models.Soft(),
    "by_stream": models.ByStream(experts=(0, 1, 3)),
}
ROUTERS = {**OUTSIDE, **SHIPPED}
MESHES: dict[str, dict[str, int]] = {
    "one": {},
    "expert": {"expert": 2},
    "fsdp": {"fsdp": 2},
    "all": {"data": 2, "fsdp": 2, "expert": 2},
}
PARAMS = {
    "noisy": {"router", "noise"},
    "cosine": {"projection", "table", "log_temperature"},
}


def config(router: Router) -> models.Transformer:
    """A layer of experts over image and text."""
    moe = models.MoE(num_experts=EXPERTS, width=16, every=1, router=router, block_rows=8)
    return small.config("encoder", encoder_layers=1, moe=moe)


def on_mesh(name: str):
    sizes = {"data": 1, **MESHES[name]}
    return MeshConfig(**sizes).make(jax.devices()[: math.prod(sizes.values())])


@functools.cache
def trained(name: str, mesh: str = "one", steps: int = 4):
    """(parts, states after each step, their metrics) on a mesh."""
    model, on = config(ROUTERS[name]), on_mesh(mesh)
    parts, tx, shardings, state = small.setup(model, [InfoNCE()], on, AdamW(learning_rate=3e-3))
    step = small.train_step(model, parts, tx, InfoNCE(), shardings)
    batch = jax.device_put(small.pair_batch(), small.batch_sharding(on))
    states, rows = [jax.device_get(state)], []
    with jax.set_mesh(on):
        for _ in range(steps):
            state, metrics = step(state, batch)
            states.append(jax.device_get(state))
            rows.append(jax.device_get(metrics))
    return parts, states, rows


def experts_of(tree) -> dict:
    return tree["runs"][0]["blocks"][0].get("mlp", {}) if tree else {}


@pytest.mark.ci
@pytest.mark.parametrize("name", small.in_turns(OUTSIDE, SHOWN))
def test_it_trains(name):
    _, states, rows = trained(name)
    assert rows[-1]["loss"] < rows[0]["loss"]
    before, after = (experts_of(s.params) for s in (states[0], states[-1]))
    own = PARAMS.get(name, {"router"})
    assert set(before) == own | {"up", "gate", "down"}
    for param in own:
        assert np.any(before[param] != after[param]), param


@pytest.mark.ci
@pytest.mark.parametrize("name", small.in_turns(OUTSIDE, SHOWN))
def test_state_moves_by_the_load_of_a_step(name):
    _, states, rows = trained(name)
    router, load_NME = OUTSIDE[name], rows[0]["load/0/0"]
    assert load_NME.shape == (1, len(small.SPECS) + 1, EXPERTS)
    assert (load_NME[:, 0] == 0).all()  # padding
    first = router.init_state(EXPERTS, len(small.SPECS))
    want = router.update(first, {"load": jnp.asarray(load_NME[0])})
    old, new = (experts_of(s.model_state) for s in states[:2])
    assert set(old) == set(new) == set(first)
    for key, value in want.items():
        np.testing.assert_array_equal(old[key][0], first[key])
        np.testing.assert_allclose(new[key][0], value, atol=1e-7)


@pytest.mark.ci
@pytest.mark.parametrize("mesh", small.in_turns(["expert", "all"], ["all"]))
@pytest.mark.parametrize("name", small.in_turns([*OUTSIDE, "expert_choice", "soft"], SHOWN))
def test_training_on_a_mesh_is_the_same(name, mesh):
    _, states, rows = trained(name)
    _, there, metrics = trained(name, mesh)
    for ours, other in zip(rows, metrics, strict=True):
        np.testing.assert_allclose(other["loss"], ours["loss"], rtol=2e-4)
    near = functools.partial(np.testing.assert_allclose, atol=1e-6)
    jax.tree.map(near, there[1].model_state, states[1].model_state)


@functools.cache
def layer_of(name: str, mesh: str = "one") -> dict:
    """Output, gradients, load and next state of one layer of experts, over mixed streams."""
    router, on = ROUTERS[name], on_mesh(mesh)
    moe = models.MoE(num_experts=EXPERTS, router=router, block_rows=8)
    layer = blocks.Experts(moe, small.config("encoder").stack(3), 16, nnx.Rngs(params=0))
    graph, params, state = nnx.split(layer, nnx.Param, ModelState)
    shardings = {
        path: NamedSharding(on, MeshRules().spec(str(path), leaf.axes, leaf.shape, on))
        for path, leaf in nnx.to_flat_state(params)
    }
    params = {path: leaf[...] for path, leaf in nnx.to_flat_state(params)}
    rng = np.random.default_rng(0)
    x_BLD = rng.normal(size=(small.ROWS, 8, 32)).astype(np.float32)
    stream_BL = rng.integers(0, 4, (small.ROWS, 8)).astype(np.int32)
    tokens = small.view(rng, "text")._replace(stream_BL=stream_BL)
    key = jax.random.key(3) if router.draws else None

    def loss(params, x_BLD, tokens):
        pure = nnx.from_flat_state({path: nnx.Param(x) for path, x in params.items()})
        out, record = nnx.merge(graph, pure, state)(x_BLD, tokens, small.GROUP, key)
        return jnp.sum(jnp.sin(out)) + record.get("aux_loss", 0.0), (out, record["load"])

    rows = small.batch_sharding(on)
    given = jax.device_put(params, shardings), *jax.device_put((x_BLD, tokens), rows)
    with jax.set_mesh(on):
        run = jax.jit(jax.value_and_grad(loss, (0, 1), has_aux=True))
        (value, (out, load_ME)), grads = jax.device_get(run(*given))
    state = contracts.updated(router, router.init_state(EXPERTS, 3), {"load": load_ME})
    return {"loss": value, "out": out, "load": load_ME, "grads": grads, "state": state}


@pytest.mark.ci
@pytest.mark.parametrize("mesh", small.in_turns(["expert", "fsdp", "all"], ["all"]))
@pytest.mark.parametrize("name", list(ROUTERS))
def test_a_layer_on_a_mesh_is_the_same(name, mesh):
    near = functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=2e-5)
    jax.tree.map(near, layer_of(name, mesh), layer_of(name))
    assert layer_of(name)["load"][1:].sum() > 0


@pytest.mark.ci
def test_a_bias_of_each_modality_moves_where_it_was_seen():
    _, states, _ = trained("modality_bias")
    bias_NME = experts_of(states[-1].model_state)["bias"]
    text, image, codes = range(len(small.SPECS))
    assert np.abs(bias_NME[:, [text, image]]).max(axis=(0, 2)).min() > 0
    assert (bias_NME[:, codes] == 0).all()
    assert np.any(bias_NME[:, text] != bias_NME[:, image])


# ------------------------------------------------------------------------ one call of route


def routed(router: Router, key=None, state=None):
    """(routing, streams) of random features, with the state before the first step."""
    rng = np.random.default_rng(0)
    x_WTD = jnp.asarray(rng.normal(size=(2, 16, 8)).astype(np.float32))
    stream_WT = jnp.asarray(rng.integers(0, 4, (2, 16)).astype(np.int32))
    made = router.init_params(jax.random.key(1), 8, EXPERTS)
    logits = router.logits(x_WTD, {name: value for name, (value, _) in made.items()})
    state = router.init_state(EXPERTS, 3) if state is None else state
    return router.route(x_WTD, logits, state, stream_WT, stream_WT > 0, key), stream_WT


@pytest.mark.parametrize("name", list(OUTSIDE))
def test_padding_is_not_routed(name):
    routing, stream_WT = routed(OUTSIDE[name])
    contracts.check_routing(OUTSIDE[name], routing, (2, 16, EXPERTS))
    is_used = np.asarray(routing.weight_WTX).sum(-1) > 0
    np.testing.assert_array_equal(is_used, stream_WT > 0)


def test_noise_moves_the_choice_with_its_key_alone():
    one, two, none = (
        routed(OUTSIDE["noisy"], k)[0] for k in (*jax.random.split(jax.random.key(2)), None)
    )
    assert np.any(one.expert_WTX != two.expert_WTX)
    np.testing.assert_array_equal(none.expert_WTX, routed(OUTSIDE["noisy"])[0].expert_WTX)


def test_a_bias_shifts_the_choice_of_its_modality():
    bias_ME = jnp.zeros((3, EXPERTS)).at[1, :2].set(5.0)
    fresh, stream_WT = routed(OUTSIDE["modality_bias"])
    pushed, _ = routed(OUTSIDE["modality_bias"], state={"bias": bias_ME})
    is_second = np.asarray(stream_WT) == 2
    assert set(np.asarray(pushed.expert_WTX)[is_second].ravel()) == {0, 1}
    np.testing.assert_array_equal(pushed.expert_WTX[~is_second], fresh.expert_WTX[~is_second])


def test_cosine_ignores_the_scale_of_features():
    router, x_WTD = OUTSIDE["cosine"], jnp.ones((1, 2, 8)) * jnp.asarray([1.0, 9.0])[None, :, None]
    made = router.init_params(jax.random.key(1), 8, EXPERTS)
    logits = router.logits(x_WTD, {name: value for name, (value, _) in made.items()})
    np.testing.assert_allclose(logits[0, 0], logits[0, 1], rtol=1e-5)
    assert np.abs(logits).max() <= 1 / 0.07 + 1e-4


def test_tokens_stay_in_the_group_of_their_modality():
    routing, stream_WT = routed(OUTSIDE["modality_groups"])
    for stream, group in enumerate(OUTSIDE["modality_groups"].groups, start=1):
        assert set(np.asarray(routing.expert_WTX)[stream_WT == stream].ravel()) == set(group)


# --------------------------------------------------------------------- what breaks the contract


@dataclasses.dataclass(frozen=True, kw_only=True)
class Broken(Router):
    """Gives what it is told to."""

    given: tuple[tuple[str, tuple[int, ...], str], ...] = ()
    aux_loss: float | tuple[int, ...] = 0.0

    def route(self, x_WTD, logits_WTE, state, stream_WT, valid_WT, key):
        made = {name: jnp.zeros(shape, dtype) for name, shape, dtype in self.given}
        aux = self.aux_loss
        return Routing(**made, aux_loss=aux if isinstance(aux, float) else jnp.zeros(aux))


class Bare(Broken):
    def route(self, x_WTD, logits_WTE, state, stream_WT, valid_WT, key):
        return logits_WTE


class Taken(Broken):
    def init_state(self, num_experts, num_streams):
        return {"up": jnp.zeros((num_experts,))}


class TakenParam(Broken):
    def init_params(self, key, width, num_experts):
        return {"down": (jnp.zeros((width,)), ("embed",))}


class WrongUpdate(Broken):
    def update(self, state, statistics):
        return {"bias": state["bias"][None, :] + statistics["load"]}


class NoUpdate(Broken):
    def update(self, state, statistics):
        return None


class Half(Broken):
    def update(self, state, statistics):
        return {"bias": state["bias"].astype(jnp.bfloat16)}


EXPERT, WEIGHT = ("expert_WTX", (8, 16, 2), "int32"), ("weight_WTX", (8, 16, 2), "float32")
TOKEN, SHARE = ("token_WEC", (8, 4, 3), "int32"), ("weight_WEC", (8, 4, 3), "float32")
MIX = ("dispatch_WTEC", (8, 16, 4, 1), "float32"), ("combine_WTEC", (8, 16, 4, 1), "float32")
ONE_FORM = r"set the two of one form: expert_WTX and weight_WTX, or token_WEC and weight_WEC, or d"


@pytest.mark.parametrize(
    ("router", "said"),
    [
        (Bare(), r"Bare: route\(\) returned a \w+; return a mmjax.models.routers.Routing"),
        (Broken(), rf"Broken: route\(\) set no arrays of its Routing; {ONE_FORM}"),
        (Broken(given=(EXPERT, WEIGHT, TOKEN, SHARE)), r"set expert_WTX, weight_WTX, token_WEC, w"),
        (Broken(given=(EXPERT,)), rf"Broken: route\(\) set expert_WTX of its Routing; {ONE_FORM}"),
        (
            Broken(given=(("expert_WTX", (8, 16, 2), "float32"), WEIGHT)),
            r"Broken: route\(\) returned expert_WTX as float32\[8, 16, 2\]; here it must be int32",
        ),
        (
            Broken(given=(EXPERT, ("weight_WTX", (8, 16, 1), "float32"))),
            r"returned weight_WTX as float32\[8, 16, 1\]; here it must be float32\[8, 16, 2\]",
        ),
        (
            Broken(given=(EXPERT, ("weight_WTX", (8, 16, 2), "bfloat16"))),
            r"returned weight_WTX as bfloat16\[8, 16, 2\]; here it must be float32",
        ),
        (
            Broken(given=(("expert_WTX", (8, 16), "int32"), WEIGHT)),
            r"expert_WTX as int32\[8, 16\]; here it must be int32\[8, 16, 1\]",
        ),
        (
            Broken(given=(("token_WEC", (8, 3, 3), "int32"), SHARE)),
            r"token_WEC as int32\[8, 3, 3\]; here it must be int32\[8, 4, 3\]",
        ),
        (
            Broken(given=(MIX[0], ("combine_WTEC", (8, 16, 4, 2), "float32"))),
            r"combine_WTEC as float32\[8, 16, 4, 2\]; here it must be float32\[8, 16, 4, 1\]",
        ),
        (
            Broken(given=(EXPERT, WEIGHT), aux_loss=(8, 16)),
            r"Broken: route\(\) returned aux_loss as float32\[8, 16\]; it must be a float32 scalar",
        ),
        (Taken(), r"Taken: init_state\(\) has an array 'up', but experts have something of that"),
        (TakenParam(), r"TakenParam: init_params\(\) has an array 'down', but experts have"),
    ],
)
def test_what_route_returns_is_checked(router, said):
    moe = models.MoE(num_experts=EXPERTS, router=router, block_rows=8)
    tokens = small.text_batch().views["input"]
    stack = small.config("encoder").stack(3)

    def run(x_BLD):
        layer = blocks.Experts(moe, stack, 16, nnx.Rngs(params=0))
        return layer(x_BLD, tokens, small.GROUP, None)

    with pytest.raises(ValueError, match=said):
        jax.eval_shape(run, jnp.zeros((16, 8, 32)))


@pytest.mark.parametrize(
    ("router", "said"),
    [
        (WrongUpdate(), r"WrongUpdate: update\(\) returned .*float32\[4, 4\].* is .*float32\[4\]"),
        (NoUpdate(), r"NoUpdate: update\(\) returned \{\}, but the state is \{'bias': 'float32"),
        (Half(), r"Half: update\(\) returned .*bfloat16\[4\].*keep names, shapes and dtypes"),
    ],
)
def test_what_update_returns_is_checked(router, said):
    state = {"runs": {0: {"blocks": {0: {"mlp": {"bias": jnp.zeros((2, EXPERTS))}}}}}}
    record = {"load/0/0": jnp.zeros((2, 4, EXPERTS)), "aux_loss/0/0": jnp.zeros(())}
    with pytest.raises(ValueError, match=said):
        config(router).update_state(state, record)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Shrinking(models.BlockConfig):
    """A block that forgets its state."""

    def update_state(self, state, record):
        return {}


def test_what_a_block_makes_of_its_state_is_checked():
    model = small.config("encoder", moe=None, runs=(models.Run(pattern=(Shrinking(),)),))
    state = {"runs": {0: {"blocks": {0: {"count": jnp.zeros((1,))}}}}}
    said = (
        r"Shrinking: update_state\(\) returned \{\}, but the state is \{'count': 'float32\[1\]'\}"
    )
    with pytest.raises(ValueError, match=said):
        model.update_state(state, {"count/0/0": jnp.zeros((1,))})


def test_drawing_without_a_key_is_told():
    model = config(OUTSIDE["noisy"])
    parts = step_lib.split(functools.partial(model.make, small.VOCABULARY, {}, 0))

    def run(params):
        bound = step_lib.bind(parts, params, {}, small.GROUP, "float32", training=True)
        tokens = jax.tree.map(jnp.asarray, small.text_batch().views["input"])
        return bound.encode(tokens).x_BLD

    with pytest.raises(ValueError, match=r"NoisyTopK: draws=True needs random numbers, but"):
        jax.eval_shape(run, parts.params)
