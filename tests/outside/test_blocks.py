"""Blocks that a stranger defines, one file each: everything that the ordinary block does."""

from __future__ import annotations

import dataclasses
import functools
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import mini
import numpy as np
import pytest
import small
from etils import epath

from mmjax import ConfigError, models
from mmjax import step as step_lib
from mmjax.experiment import Checkpointing
from mmjax.export import describe
from mmjax.models import Block, Run, cache, contracts, names, plan
from mmjax.models import lora as lora_lib
from mmjax.objectives import MaskedTokens, NextToken
from mmjax.optim import AdamW
from mmjax.parallel import MeshConfig
from mmjax.run import checkpoint, manifest

sys.path.insert(0, str(Path(__file__).parent / "blocks"))
import depthwise
import dropout
import feed_forwards
import gated
import low_rank
import prompt
import state_space

CAUSAL = Block(causal=True)
READING = Block(lane="dec", reads="enc", causal=True, isolate=True)
MOE = models.MoE(num_experts=2, width=16, block_rows=8)
# Shipped ones are strangers to the stack too.
BLOCKS: dict[str, models.BlockConfig] = {
    "gated_cross_attention": gated.Gated(lane="dec", reads="enc"),
    "low_rank": low_rank.LowRank(),
    "by_family": feed_forwards.ByFamily(),
    "shared_experts": feed_forwards.SharedExperts(),
    "state_space": state_space.StateSpace(),
    "depthwise": depthwise.Depthwise(),
    "prompt": prompt.Prompt(),
    "dropout": dropout.Dropout(causal=True),
    "shipped gated": models.GatedCrossAttention(lane="dec", reads="enc", ffn_width=32),
    "shipped lora": models.LoRA(block=CAUSAL, rank=2, target_modules=("*/query", "mlp/*")),
    "shipped adapter": models.Adapter(block=CAUSAL, width=8),
    "shipped queries": models.Queries(num=4),
    "shipped by stream": Block(
        causal=True,
        moe=dataclasses.replace(MOE, router=models.ByStream(experts=(0, 1, 1))),
    ),
    "shipped shared": Block(causal=True, moe=dataclasses.replace(MOE, shared_width=16)),
}
# What changes nothing where it is inserted, and what it is inserted around.
IDENTITIES = {
    "gated_cross_attention": None, "prompt": None, "shipped gated": None,
    "low_rank": CAUSAL, "shipped lora": CAUSAL, "shipped adapter": CAUSAL,
}  # fmt: skip
NAMES = list(BLOCKS)
# Every submission tries three kinds that differ most; the others take turns.
TURNS = small.in_turns(NAMES, ("gated_cross_attention", "state_space", "shipped shared"))


def config(name: str | None, block: models.BlockConfig | None = None) -> models.Transformer:
    """Three layers of an ordinary block and the one that is looked at; None = the ordinary one."""
    block = block or (BLOCKS[name] if name else CAUSAL)
    if block.reads:
        runs = (
            Run(pattern=(Block(lane="enc"),), repeats=1),
            Run(pattern=(READING, block), repeats=3),
        )
    else:
        runs = (Run(pattern=(CAUSAL, block), repeats=3),)
    return small.config("encoder_decoder" if block.reads else "decoder", moe=None, runs=runs)


def work(model: models.Transformer):
    """Objective and batch of a model."""
    if model.read_lanes():
        return MaskedTokens(), small.masked_batch()
    return NextToken(), small.text_batch()


@functools.cache
def trained(name: str, devices: int = 1, steps: int = 4):
    """(parts, state, losses) after some steps on a mesh."""
    model = config(name)
    objective, batch = work(model)
    sizes = {1: {}, 2: {"fsdp": 2}, 8: {"fsdp": 2, "tensor": 2, "data": 2}}[devices]
    mesh = MeshConfig(**sizes).make(jax.devices()[:devices])
    parts, tx, shardings, state = small.setup(model, [objective], mesh, AdamW(learning_rate=3e-3))
    step, losses = small.train_step(model, parts, tx, objective, shardings), []
    batch = jax.device_put(batch, small.batch_sharding(mesh))
    with jax.set_mesh(mesh):
        for _ in range(steps):
            state, metrics = step(state, batch)
            losses.append(float(metrics["loss"]))
    return parts, state, losses


def canonical(model, parts):
    paths = list(names.flatten(parts.params))
    heads = tuple(NextToken().heads(small.SPECS, small.SPECS))
    return names.canonical_parts(model, small.VOCABULARY, heads, paths)


@pytest.mark.ci
@pytest.mark.parametrize("name", TURNS)
def test_it_trains_and_has_names_axes_and_flops(name):
    parts, state, losses = trained(name)
    assert losses[-1] < losses[0]
    model = config(name)
    where = canonical(model, parts)
    lane = BLOCKS[name].lane
    mine = [n for n in where if n.startswith(f"{lane}/blocks/1/")]
    assert mine
    assert len({where[n].path for n in mine}) == len(mine)
    fresh = names.to_canonical(trained(name, steps=0)[1].params, where)
    moved = names.to_canonical(state.params, where)
    assert any(np.any(np.asarray(fresh[n]) != np.asarray(moved[n])) for n in mine)
    ordinary = dataclasses.replace(model, runs=config(None).runs)
    if not model.read_lanes():
        ours, base = (plan.flops_per_token(m, lane, 8) for m in (model, ordinary))
        assert ours > base / 2  # three ordinary blocks and three of it


@pytest.mark.ci
@pytest.mark.parametrize("devices", small.in_turns([2, 8], [8]))
@pytest.mark.parametrize("name", TURNS)
def test_sharded_is_the_same(name, devices):
    _, _, losses = trained(name, devices)
    np.testing.assert_allclose(losses, trained(name)[2], rtol=2e-4)


@pytest.mark.ci
@pytest.mark.parametrize("name", TURNS)
def test_it_is_saved_and_restored_on_another_mesh(name, tmp_path):
    model = config(name)
    objective, _ = work(model)
    _, saved, _ = trained(name)
    saver = checkpoint.Saver(epath.Path(tmp_path), Checkpointing())
    empty = {key: kind() for key, kind in manifest.KEYS.items()}
    saver.save(saved, {**empty, "step": 4})
    saver.close()
    mesh = MeshConfig(fsdp=2, tensor=2, data=2).make()
    _, _, shardings, fresh = small.setup(model, [objective], mesh, AdamW(), seed=1)
    like = {
        item: jax.tree.map(
            lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
            getattr(fresh, item), getattr(shardings, item),
        )
        for item in checkpoint.ITEMS
    }  # fmt: skip
    items = checkpoint.restore(epath.Path(tmp_path), 4, like)
    for item, tree in items.items():
        jax.tree.map(np.testing.assert_array_equal, tree, jax.device_get(getattr(saved, item)))
        placed = jax.tree.map(
            lambda x, s: x.sharding.is_equivalent_to(s, x.ndim), tree, getattr(shardings, item)
        )
        assert jax.tree.all(placed)


@pytest.mark.parametrize("name", NAMES)
def test_it_is_exported_or_refused_by_name(name):
    base = mini.get_config()
    model = dataclasses.replace(base.model, shape="encoder", runs=config(name).runs)
    tasks = {"image_text": base.tasks["image_text"]}
    experiment = dataclasses.replace(base, model=model, tasks=tasks)
    block = BLOCKS[name]
    if block.reads:  # the embedding ends in the other lane
        assert set(describe.exported(experiment).values()) == {"enc"}
        return
    said = {"shipped by stream": "router ByStream", "shipped shared": "MoE.shared_width=16"}
    with pytest.raises(ConfigError, match=said.get(name, f"block {type(block).__name__} has no")):
        describe.exported(experiment)


@pytest.mark.ci
@pytest.mark.parametrize("name", TURNS)
def test_decoding_with_a_cache_is_a_pass_over_all_tokens(name):
    model = config(name)
    parts, state, _ = trained(name)
    rng = np.random.default_rng(0)
    source, target = small.view(rng, "image", rows=4), small.view(rng, "text", rows=4)

    @jax.jit
    def run(params, model_state, source, target):
        bound = step_lib.bind(parts, params, model_state, 4, "float32")
        memory = bound.encode(source) if model.read_lanes() else None
        whole = bound.decode(target, memory) if memory else bound.encode(target)
        kept, out = cache.init_cache(bound, rows=4, length=8, memory=memory), []
        for i in range(8):
            one = jax.tree.map(lambda x, i=i: x[:, i : i + 1], target)
            x, kept = cache.decode_step(bound, one, kept)
            out.append(x)
        return whole.x_BLD, jnp.concatenate(out, axis=1)

    whole, tokens = run(state.params, state.model_state, source, target)
    real = target.segment_BL > 0
    np.testing.assert_allclose(tokens[real], whole[real], atol=3e-5)


@pytest.mark.ci
@pytest.mark.parametrize("name", small.in_turns(IDENTITIES, ["gated_cross_attention"]))
def test_what_is_inserted_is_an_exact_identity(name):
    """Forward, to the bit, with the parameters of the model without it."""
    base_runs = {
        None: (Run(pattern=(Block(lane="enc"),)), Run(pattern=(READING,), repeats=3)),
        CAUSAL: (Run(pattern=(CAUSAL, CAUSAL), repeats=3),),
    }
    model = config(name)
    if IDENTITIES[name] is None and not model.read_lanes():
        runs: tuple[Run, ...] = (Run(pattern=(CAUSAL,), repeats=3),)
    else:
        runs = base_runs[IDENTITIES[name]]
    # The same depth, so that both have the same scales of initial parameters.
    base = dataclasses.replace(model, runs=runs)
    objective, batch = work(model)
    parts, _, _, state = small.setup(base, [objective])
    more, _, _, fresh = small.setup(model, [objective], seed=1)
    arrays = names.to_canonical(jax.device_get(state.params), canonical(base, parts))
    if IDENTITIES[name] is None:  # numbers of blocks count what is inserted too
        arrays = {renumbered(n, BLOCKS[name].lane): x for n, x in arrays.items()}
    params, new = names.from_canonical(arrays, jax.device_get(fresh.params), canonical(model, more))
    assert new
    losses = [
        step_lib.eval_step(p, objective, w, {}, {}, batch, group_rows=small.GROUP)[0]
        for p, w in ((parts, state.params), (more, params))
    ]
    for key, value in losses[0].items():
        assert float(value) == float(losses[1][key])


def renumbered(name: str, lane: str) -> str:
    start = f"{lane}/blocks/"
    if not name.startswith(start):
        return name
    number, _, rest = name.removeprefix(start).partition("/")
    return f"{start}{2 * int(number)}/{rest}"


@pytest.mark.ci
@pytest.mark.parametrize("name", TURNS)
def test_layers_are_frozen_by_name_inside_a_scanned_run(name):
    model = config(name)
    objective, batch = work(model)
    parts, tx, shardings, state = small.setup(model, [objective], optimizer=AdamW())
    where, lane = canonical(model, parts), BLOCKS[name].lane
    patterns = (f"{lane}/blocks/3/*",)  # the second repeat of the block that is looked at
    mask = names.trainable_mask(parts.params, patterns, where)
    step = small.train_step(model, parts, tx, objective, shardings, trainable=mask)
    before = names.to_canonical(jax.device_get(state.params), where)
    for _ in range(2):
        state, _ = step(state, batch)
    after = names.to_canonical(jax.device_get(state.params), where)
    moved = {n for n in where if np.any(np.asarray(before[n]) != np.asarray(after[n]))}
    assert moved
    assert all(n.startswith(f"{lane}/blocks/3/") for n in moved)


@pytest.mark.ci
@pytest.mark.parametrize("name", ["low_rank", "shipped lora"])
def test_merged_changes_are_the_same_model(name):
    model = config(name)
    parts, state, _ = trained(name)
    merge = {"low_rank": low_rank.merge, "shipped lora": lora_lib.merge}[name]
    arrays = names.to_canonical(jax.device_get(state.params), canonical(model, parts))
    plain = dataclasses.replace(model, runs=config(None).runs)
    objective, batch = work(plain)
    parts_plain, _, _, fresh = small.setup(plain, [objective])
    merged, missing = names.from_canonical(
        {n: np.asarray(x) for n, x in merge(arrays, BLOCKS[name]).items()},
        jax.device_get(fresh.params),
        canonical(plain, parts_plain),
    )
    assert not missing
    losses = [
        float(step_lib.eval_step(p, objective, w, {}, {}, batch, group_rows=small.GROUP)[0]["text"])
        for p, w in ((parts, state.params), (parts_plain, merged))
    ]
    assert abs(losses[0] - losses[1]) < 1e-5


def test_dropout_is_on_in_training_alone():
    model = config("dropout")
    parts, _, _, state = small.setup(model, [NextToken()])
    tokens = small.text_batch().views["input"]
    run = lambda key, training: (
        step_lib.bind(parts, state.params, {}, small.GROUP, "float32", training)
        .encode(tokens, key=key)
        .x_BLD
    )
    one, two = jax.random.key(1), jax.random.key(2)
    np.testing.assert_array_equal(run(one, False), run(two, False))
    assert np.any(run(one, True) != run(two, True))
    np.testing.assert_array_equal(run(one, True), run(one, True))


# --------------------------------------------------------------- what breaks the contract


class Wrong(depthwise.DepthwiseModule):
    def __call__(self, x_BLD, call):
        return x_BLD[:, :1], {}


class Cast(depthwise.DepthwiseModule):
    def __call__(self, x_BLD, call):
        return x_BLD.astype(jnp.bfloat16), {}


class NoAxes(depthwise.DepthwiseModule):
    def __init__(self, taps, width, rngs):
        super().__init__(taps, width, rngs)
        self.extra = contracts.nnx.Param(jnp.zeros((3,)))


class NoRecord(depthwise.DepthwiseModule):
    def __call__(self, x_BLD, call):
        return x_BLD, None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Broken(models.BlockConfig):
    module: str = ""

    def make(self, stack, rngs):
        return globals()[self.module](3, stack.width, rngs)

    def flops_per_token(self, stack, length, read_length=0):
        return 0.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Clashing(depthwise.Depthwise):
    def canonical(self, path):
        return "same"

    def make(self, stack, rngs):
        module = super().make(stack, rngs)
        module.other = contracts.nnx.Param(jnp.zeros((3,)), axes=("unsharded",), reduce=())
        return module


@dataclasses.dataclass(frozen=True, kw_only=True)
class Without(models.BlockConfig):
    """Has neither of the two methods."""


@pytest.mark.parametrize(
    ("block", "said"),
    [
        (Broken(module="Wrong"), r"Broken: __call__\(\) returned features of shape \(16, 1, 32\)"),
        (Broken(module="Cast"), r"dtype bfloat16, not \(16, 8, 32\) and float32 as it was given"),
        (Broken(module="NoAxes"), r"Broken: Param 'extra' of shape \(3,\) has axes=None; give one"),
        (Broken(module="NoRecord"), r"Broken: __call__\(\) returned a record of type NoneType"),
        (Clashing(), r"Clashing: canonical\(\) gives 'main/blocks/1/same' to"),
    ],
)
def test_a_broken_block_is_told_by_class_method_and_rule(block, said):
    model = config(None, block)
    objective, batch = work(model)

    def run():
        parts, _, _, state = small.setup(model, [objective])
        canonical(model, parts)
        return step_lib.eval_step(
            parts, objective, state.params, {}, {}, batch, group_rows=small.GROUP
        )

    with pytest.raises(ValueError, match=said):
        run()


def test_a_block_without_its_methods_is_told():
    with pytest.raises(NotImplementedError, match=r"Without must define make\(\)"):
        small.setup(config(None, Without()), [NextToken()])
    with pytest.raises(NotImplementedError, match=r"Without must define flops_per_token\(\)"):
        plan.flops_per_token(config(None, Without()), "main", 8)


def test_a_block_that_cannot_decode_is_told():
    parts, _, _, state = small.setup(config(None, Broken(module="Wrong")), [NextToken()])
    model = step_lib.bind(parts, state.params, {}, 2, "float32")
    assert cache.init_cache(model, rows=2, length=4)  # it has one of its parent
    plain = type("Plain", (models.BlockConfig,), {})
    module = type("PlainModule", (contracts.BlockModule,), {})()
    with pytest.raises(ValueError, match=r"PlainModule: init_cache\(\) is not defined, so this"):
        module.init_cache(2, 4, jnp.float32, None)
    assert plain().reads == ""


def test_drawing_without_a_key_is_told():
    parts, _, _, state = small.setup(config("dropout"), [NextToken()])
    model = step_lib.bind(parts, state.params, {}, small.GROUP, "float32", training=True)
    with pytest.raises(ValueError, match=r"Dropout: draws=True needs random numbers, but"):
        model.encode(small.text_batch().views["input"])


# ------------------------------------------------------------------------------ lanes


def test_lanes_look_at_one_another_layer_by_layer():
    """Two lanes of one pattern: right when they run together, refused alone."""
    see = models.GatedCrossAttention
    pattern = (
        Block(lane="a"), Block(lane="b"), see(lane="a", reads="b"), see(lane="b", reads="a"),
    )  # fmt: skip
    model = small.config("towers", moe=None, runs=(Run(pattern=pattern, repeats=2),))
    parts, _, _, state = small.setup(model, [NextToken()])
    params = jax.tree_util.tree_map_with_path(
        lambda path, x: x + 0.5 if names.path_name(path).endswith("gate1") else x, state.params
    )
    bound = step_lib.bind(parts, params, {}, small.GROUP, "float32")
    rng = np.random.default_rng(0)
    views = {"a": small.view(rng, "image"), "b": small.view(rng, "text")}
    both = bound.run_lanes(views)
    other = {**views, "b": small.view(np.random.default_rng(9), "text")}
    assert np.any(bound.run_lanes(other)["a"].x_BLD != both["a"].x_BLD)
    with pytest.raises(ValueError, match="lane='a' reads lane 'b', which is not run"):
        bound.encode(views["a"], lane="a")


def test_every_lane_that_is_read_must_be_run():
    see = models.GatedCrossAttention
    runs = (
        Run(pattern=(Block(lane="a"), Block(lane="b"), Block(lane="c"))),
        Run(pattern=(see(lane="c", reads="a"), see(lane="c", reads="b"))),
    )
    model = small.config("towers", moe=None, runs=runs)
    parts, _, _, state = small.setup(model, [NextToken()])
    bound = step_lib.bind(parts, state.params, {}, small.GROUP, "float32")
    tokens = small.text_batch().views["input"]
    assert set(bound.run_lanes(dict.fromkeys("abc", tokens))) == set("abc")
    for alone, missing in (("bc", "a"), ("ac", "b")):
        with pytest.raises(ValueError, match=f"reads lane '{missing}', which is not run"):
            bound.run_lanes(dict.fromkeys(alone, tokens))


def test_a_pattern_that_mixes_lanes_runs_each_block_in_its_own():
    mixed = (Run(pattern=(Block(lane="a"), Block(lane="b")), repeats=2),)
    apart = (Run(pattern=(Block(lane="a"),), repeats=2), Run(pattern=(Block(lane="b"),), repeats=2))
    tokens = small.text_batch().views["input"]
    out = []
    arrays: dict = {}
    for runs in (mixed, apart):
        model = small.config("towers", moe=None, runs=runs)
        parts, _, _, state = small.setup(model, [NextToken()])
        where, params = canonical(model, parts), jax.device_get(state.params)
        arrays = arrays or names.to_canonical(params, where)
        params, missing = names.from_canonical(arrays, params, where)
        assert not missing
        bound = step_lib.bind(parts, params, {}, small.GROUP, "float32")
        out.append([bound.encode(tokens, lane=lane).x_BLD for lane in ("a", "b")])
    np.testing.assert_allclose(out[0], out[1], atol=1e-6)
