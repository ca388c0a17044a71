"""One stack: sizes, who sees whom, positions, and that how it is computed changes nothing."""

from __future__ import annotations

import dataclasses
import functools
import math
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small

from mmjax import step as step_lib
from mmjax.models import attention, fused, names, plan, positions
from mmjax.objectives import MaskedTokens, NextToken
from mmjax.optim import AdamW
from mmjax.parallel import MeshConfig
from mmjax.parallel import mesh as mesh_lib

DENSE = {"moe": None, "encoder_layers": 1, "decoder_layers": 1}


def taken_apart(config: plan.Transformer):
    """(parts, where each canonical name lies) of a model without heads."""
    parts = step_lib.split(functools.partial(config.make, small.VOCABULARY, {}, 0))
    paths = list(names.flatten(parts.params))
    return parts, names.canonical_parts(config, small.VOCABULARY, (), paths)


def arrays_of(config: plan.Transformer) -> dict[str, np.ndarray]:
    """Fresh parameters by canonical name; norms are not all ones."""
    parts, where = taken_apart(config)
    rng = np.random.default_rng(0)
    params = jax.tree.map(
        lambda x: (0.3 * rng.normal(size=x.shape)).astype(np.float32) + (x.ndim == 1), parts.params
    )
    return names.to_canonical(params, where)


def function(config: plan.Transformer, arrays, call):
    """Jitted `call(model, *tokens)` of the model with these parameters, and params -> outputs."""
    parts, where = taken_apart(config)
    zeros = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), parts.params)
    params, missing = names.from_canonical(arrays, zeros, where)
    assert not missing
    state = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), parts.model_state)

    def run(params, *tokens):
        return call(step_lib.bind(parts, params, state, 0, "float32"), *tokens)

    jitted = jax.jit(run)
    return functools.partial(jitted, params), (jitted, params, where)


def encode(model, tokens):
    return model.encode(tokens).x_BLD


def generate(model, tokens, target):
    return model.decode(target, model.encode(tokens)).x_BLD


def gradients(config, arrays, call, *tokens) -> dict[str, np.ndarray]:
    """Gradient of the sum of squares of the output, by canonical name."""
    _, (run, params, where) = function(config, arrays, call)
    loss = lambda p: jnp.sum(jnp.square(run(p, *tokens)))
    return names.to_canonical(jax.device_get(jax.grad(loss)(params)), where)


def assert_close(one, two, **kwargs):
    assert one.keys() == two.keys()
    for name in one:
        np.testing.assert_allclose(one[name], two[name], err_msg=name, **kwargs)


def both(first, second):
    """Two views side by side in one."""
    join = lambda a, b: np.concatenate([a, b], axis=1)
    return jax.tree.map(join, first._replace(values={}), second._replace(values={}))


# -------------------------------------------------------------------------------- sizes


@pytest.mark.parametrize(
    ("size", "millions"),
    [("tiny", 25), ("small", 59), ("base", 198.8), ("large", 705.6), ("xlarge", 2820)],
)
def test_the_4m_presets_have_the_published_sizes(size, millions):
    parts, where = taken_apart(plan.fourm(size))
    shapes = names.flatten(parts.params)
    blocks = {p.path for n, p in where.items() if not n.startswith("embed/")}
    count = sum(math.prod(shapes[path].shape) for path in blocks)
    assert count == pytest.approx(millions * 1e6, rel=0.003)


def test_feed_forward_widths_are_rounded_up_except_in_presets():
    assert plan.Transformer(width=512).ffn_width == 1408
    assert plan.fourm("small").ffn_width == 1365
    assert plan.fourm("xlarge").ffn_width == 5461


# --------------------------------------------------------------------------- who sees whom


@pytest.fixture(scope="module")
def decoder():
    """(run, input, target) of a decoder over a grid and a sequence in one view."""
    config, rng = small.config(**DENSE), np.random.default_rng(0)
    run, _ = function(config, arrays_of(config), generate)
    target = both(small.view(rng, "codes", rows=2), small.view(rng, "text", rows=2))
    return run, small.view(rng, "image", rows=2), target


def perturbed(tokens, slot: int):
    """Another id at a slot of the first row."""
    ids = tokens.ids_BL.copy()
    ids[0, slot] += 1 if ids[0, slot] % 2 else -1
    return tokens._replace(ids_BL=ids)


def moved(one, two) -> np.ndarray:
    """Slots of the first row whose features differ."""
    return np.flatnonzero(np.abs(np.asarray(one - two))[0].max(-1) > 1e-6)


@pytest.mark.parametrize("slot", [0, 3, 7])
def test_a_grid_sees_all_of_itself_and_no_other_stream(decoder, slot):
    run, tokens, target = decoder
    changed = moved(run(tokens, target), run(tokens, perturbed(target, slot)))
    assert changed.tolist() == list(range(8))


@pytest.mark.parametrize("slot", [8, 11, 15])
def test_a_sequence_sees_what_came_before_and_no_other_stream(decoder, slot):
    run, tokens, target = decoder
    changed = moved(run(tokens, target), run(tokens, perturbed(target, slot)))
    assert changed.tolist() == list(range(slot, 16))


def test_all_targets_see_all_of_the_input(decoder):
    run, tokens, target = decoder
    values = tokens.values["image"]
    other = values.value_BJP.copy()
    other[0, 5] += 1.0
    changed = tokens._replace(values={"image": values._replace(value_BJP=other)})
    assert moved(run(tokens, target), run(changed, target)).tolist() == list(range(16))


def test_an_encoder_sees_everything_but_padding():
    config, rng = small.config("encoder", **DENSE), np.random.default_rng(1)
    run, _ = function(config, arrays_of(config), encode)
    tokens = both(small.view(rng, "codes", rows=1), small.view(rng, "text", rows=1))
    tokens = tokens._replace(order_BL=np.zeros_like(tokens.order_BL))
    real = np.flatnonzero(tokens.segment_BL[0])
    assert len(real) == 8  # half of each stream is padding
    assert moved(run(tokens), run(perturbed(tokens, 0))).tolist() == real.tolist()
    ids = tokens.ids_BL.copy()
    ids[0, 5] = 140  # a padding slot
    np.testing.assert_array_equal(run(tokens)[:, real], run(tokens._replace(ids_BL=ids))[:, real])


@pytest.mark.parametrize("shape", ["encoder", "decoder"])
def test_packed_samples_are_alone(shape):
    config, rng = small.config(shape, **DENSE), np.random.default_rng(2)
    run, _ = function(config, arrays_of(config), encode)
    rows = small.view(rng, "text", rows=3)
    first, second = (jax.tree.map(lambda x, i=i: x[i : i + 1], rows) for i in range(2))
    packed = both(first, second._replace(segment_BL=2 * second.segment_BL))
    alone = np.concatenate([run(first), run(second)], axis=1)
    np.testing.assert_allclose(run(packed), alone, atol=1e-5)


def test_a_row_that_sees_nothing_gives_zero():
    rng = np.random.default_rng(0)
    q, k, v = (rng.normal(size=(2, 4, 2, 8)).astype(np.float32) for _ in range(3))
    place = attention.Visibility(*(np.ones((2, 4), np.int32) for _ in range(3)))
    nothing = place._replace(segment_BL=np.array([[1, 1, 1, 1], [0, 2, 1, 1]], np.int32))
    attend = functools.partial(attention.attend, causal=False, isolate=False)
    out = np.asarray(attend(q, k, v, nothing, place))
    assert (out[1, :2] == 0).all()
    assert (np.abs(out[0]).max(axis=(1, 2)) > 0).all()
    grads = jax.grad(lambda q: jnp.sum(jnp.square(attend(q, k, v, nothing, place))))(q)
    assert np.isfinite(grads).all()


# ------------------------------------------------------------------------------ positions


def test_rotary_text_is_ordinary_rotary():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2, 5, 3, 16)).astype(np.float32)
    position = np.arange(5, dtype=np.float32)
    angle = attention.angles(np.tile(position[None, :, None], (2, 1, 3)), 16, 10_000.0)
    found = np.asarray(attention.rotate(x, angle))
    # As in GPT-NeoX and Llama: x cos + rotate_half(x) sin.
    inverse = 10_000.0 ** (-np.arange(0, 16, 2) / 16)
    turn = np.concatenate([np.outer(position, inverse)] * 2, axis=-1)[None, :, None, :]
    half = np.concatenate([-x[..., 8:], x[..., :8]], axis=-1)
    np.testing.assert_allclose(found, x * np.cos(turn) + half * np.sin(turn), atol=1e-5)


def test_rotary_scores_depend_on_distances_alone():
    config = small.config("encoder", position="rotary", **DENSE)
    run, _ = function(config, arrays_of(config), encode)
    tokens = small.view(np.random.default_rng(0), "image", rows=2)
    shifted = tokens._replace(position_BLA=tokens.position_BLA + np.float32([3, 5, 7]))
    np.testing.assert_allclose(run(tokens), run(shifted), atol=1e-4)
    turned = tokens._replace(position_BLA=tokens.position_BLA[:, ::-1])
    assert np.abs(np.asarray(run(tokens) - run(turned))).max() > 1e-3


def test_each_axis_of_a_grid_has_frequencies_of_its_own():
    zero = np.zeros((1, 1, 3), np.float32)
    base = np.asarray(attention.sincos(zero, 32, 10_000.0))
    touched = [
        set(np.flatnonzero(np.asarray(attention.sincos(zero + axis, 32, 10_000.0)) != base))
        for axis in np.eye(3, dtype=np.float32)
    ]
    assert all(touched)
    assert not touched[0] & touched[1] | touched[1] & touched[2] | touched[0] & touched[2]


@pytest.mark.hf
def test_positions_are_those_of_vit_mae_and_whisper():
    transformers = pytest.importorskip("transformers")
    from transformers.models.vit_mae import modeling_vit_mae
    from transformers.models.whisper import modeling_whisper

    del transformers
    grid = np.stack(np.meshgrid(range(6), range(6), indexing="ij"), -1).reshape(-1, 2)
    place = np.concatenate([np.zeros((36, 1)), grid], axis=1)[None].astype(np.float32)
    have = np.asarray(positions.vectors(place, 64, 10_000.0, "vit_mae"))[0]
    want = modeling_vit_mae.build_2d_sinusoidal_position_embedding(6, 6, 64).numpy()
    # The published weights begin with columns, as the code that trained them does.
    np.testing.assert_allclose(have, np.roll(want, 32, axis=1), atol=1e-5)
    time = np.repeat(np.arange(1500, dtype=np.float32)[None, :, None], 3, axis=2)
    have = np.asarray(positions.vectors(time, 64, 10_000.0, "whisper"))[0]
    np.testing.assert_allclose(have, modeling_whisper.sinusoids(1500, 64).numpy(), atol=2e-4)


@pytest.mark.parametrize(("position", "axes"), [("vit_mae", (1, 2)), ("whisper", (0,))])
def test_positions_of_others_tell_their_axes_apart(position, axes):
    zero = np.zeros((1, 1, 3), np.float32)
    base = np.asarray(positions.vectors(zero, 32, 10_000.0, position))
    for axis, step in enumerate(np.eye(3, dtype=np.float32)):
        moved = np.asarray(positions.vectors(zero + step, 32, 10_000.0, position)) != base
        assert moved.any() == (axis in axes)
    config = small.config("encoder", position=position, **DENSE)
    run, _ = function(config, arrays_of(config), encode)
    tokens = small.view(np.random.default_rng(0), "image", rows=2)
    turned = tokens._replace(position_BLA=tokens.position_BLA[:, ::-1])
    assert np.abs(np.asarray(run(tokens) - run(turned))).max() > 1e-3
    odd = np.asarray(positions.vectors(zero + 5, 34, 10_000.0, position))
    assert odd.shape == (1, 1, 34)  # what does not divide is zero
    whole = 34 // (4 if position == "vit_mae" else 2) * (4 if position == "vit_mae" else 2)
    assert not odd[..., whole:].any()


# --------------------------------------------------------------- how it is computed is all one


@pytest.fixture(scope="module")
def world():
    """(config, parameters, input, target) with experts, and the gradients."""
    config = small.config(encoder_layers=6, decoder_layers=1)  # three repeats: a loop
    rng = np.random.default_rng(3)
    tokens, target = small.view(rng, "image", rows=4), small.view(rng, "text", rows=4)
    arrays = arrays_of(config)
    return config, arrays, (tokens, target), gradients(config, arrays, generate, tokens, target)


@pytest.mark.parametrize("implementation", ["chunked", "full"])
def test_implementations_of_attention_are_the_same(world, implementation):
    config, arrays, tokens, expected = world
    # Of 8 queries: the last block is padded.
    other = dataclasses.replace(config, attention=implementation, query_block=3)
    assert_close(gradients(other, arrays, generate, *tokens), expected, rtol=2e-4, atol=2e-4)


@pytest.mark.parametrize("implementation", ["blocks", "ragged"])
def test_implementations_of_experts_are_the_same(world, implementation):
    config, arrays, tokens, expected = world
    other = dataclasses.replace(config.moe, implementation=implementation)
    other = dataclasses.replace(config, moe=other)
    assert_close(gradients(other, arrays, generate, *tokens), expected, rtol=2e-4, atol=2e-4)


def test_auto_follows_the_devices_of_the_mesh(monkeypatch):
    mesh = MeshConfig().make(jax.devices()[:1])
    with jax.set_mesh(mesh):
        monkeypatch.setattr(jax, "default_backend", lambda: "tpu")  # what compiles is not asked
        assert mesh_lib.platform() == "cpu"
    assert mesh_lib.platform() == "tpu"
    assert mesh_lib.compute_dtype("auto", mesh) == "float32"
    for said, platform in (("tpu", "tpu"), ("cuda", "gpu"), ("rocm", "gpu")):
        device = types.SimpleNamespace(platform=said)
        pod = types.SimpleNamespace(abstract_mesh=types.SimpleNamespace(abstract_device=device))
        assert mesh_lib.platform(pod) == platform
        assert mesh_lib.compute_dtype("auto", pod) == "bfloat16"


@pytest.mark.parametrize("policy", ["dots", "attention", "full"])
def test_rematerialisation_is_the_same(world, policy):
    config, arrays, tokens, expected = world
    saving = dataclasses.replace(config, remat_policy=policy)
    assert_close(gradients(saving, arrays, generate, *tokens), expected, rtol=2e-4, atol=2e-4)


def test_a_scan_is_the_same_as_layer_after_layer(world):
    config, arrays, tokens, expected = world
    assert [run.repeats for run in config.layer_plan()] == [3, 1]
    flat = tuple(
        plan.Run(pattern=(block,))
        for run in config.layer_plan()
        for _ in range(run.repeats)
        for block in run.pattern
    )
    unrolled = dataclasses.replace(config, runs=flat)
    assert len(unrolled.layer_plan()) == 7
    assert_close(gradients(unrolled, arrays, generate, *tokens), expected, rtol=2e-4, atol=2e-4)


@pytest.mark.parametrize(("repeats", "loops"), [(1, 0), (2, 0), (3, 1), (12, 1)])
def test_long_runs_alone_are_loops(repeats, loops):
    config = small.config("encoder", moe=None, encoder_layers=repeats)
    _, (run, params, _) = function(config, arrays_of(config), encode)
    text = run.lower(params, small.view(np.random.default_rng(0), "codes")).as_text()
    assert text.count("stablehlo.while") == loops


@pytest.mark.parametrize("backend", ["cpu", "tpu"])
@pytest.mark.parametrize(
    ("x", "w", "inputs"), [((2, 3, 4), (4, 5, 6), 1), ((2, 3, 4), (3, 4, 5), 2)]
)
def test_a_projection_is_the_sum_over_its_inputs(x, w, inputs, backend, monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    rng = np.random.default_rng(0)
    x, w = (rng.normal(size=shape).astype(np.float32) for shape in (x, w))
    letters = "abc,cde->abde" if inputs == 1 else "abc,bcd->ad"
    plain = functools.partial(jnp.einsum, letters)
    ours, theirs = (
        jax.vjp(f, x, w) for f in (functools.partial(fused.project, inputs=inputs), plain)
    )
    np.testing.assert_allclose(ours[0], theirs[0], rtol=1e-5)
    for mine, other in zip(ours[1](ours[0]), theirs[1](ours[0]), strict=True):
        np.testing.assert_allclose(mine, other, rtol=1e-4)


def test_grouped_heads_are_full_ones_with_equal_keys():
    full, rng = small.config("encoder", **DENSE), np.random.default_rng(4)
    grouped = dataclasses.replace(full, num_kv_heads=2)
    arrays = arrays_of(grouped)
    repeated = {
        name: np.repeat(a, 2, axis=1) if name.endswith(("attention/key", "attention/value")) else a
        for name, a in arrays.items()
    }
    assert arrays["main/blocks/0/attention/key"].shape == (32, 2, 8)
    tokens = small.view(rng, "codes", rows=2)
    one, two = function(grouped, arrays, encode)[0], function(full, repeated, encode)[0]
    np.testing.assert_allclose(one(tokens), two(tokens), atol=1e-5)


# ------------------------------------------------------------------------------------ shapes


@pytest.mark.parametrize(
    ("shape", "objective"), [("decoder", NextToken()), ("encoder", MaskedTokens())]
)
def test_other_shapes_train(shape, objective):
    model = small.config(shape, encoder_layers=1, decoder_layers=1, num_kv_heads=2)
    optimizer = AdamW(learning_rate=1e-2, warmup_steps=0)
    mesh = MeshConfig(data=2, fsdp=2, tensor=2).make()
    parts, tx, shardings, state = small.setup(model, [objective], mesh, optimizer)
    step = small.train_step(model, parts, tx, objective, shardings)
    batch = jax.device_put(
        small.text_batch(), jax.sharding.NamedSharding(mesh, step_lib.rules_lib.batch_spec())
    )
    losses = []
    with jax.set_mesh(mesh):
        for _ in range(8):
            state, metrics = step(state, batch)
            losses.append(float(metrics["loss"]))
    assert losses[-1] < 0.8 * losses[0]


def test_calls_that_a_shape_cannot_answer_say_so():
    config = small.config("encoder", **DENSE)
    parts, _ = taken_apart(config)
    ones = jax.tree.map(lambda x: jnp.ones(x.shape, x.dtype), (parts.params, parts.model_state))
    model = step_lib.bind(parts, *ones, 0, "float32")
    tokens = small.view(np.random.default_rng(0), "codes", rows=1)
    with pytest.raises(ValueError, match="reads no other lane"):
        jax.eval_shape(lambda t: model.decode(t, model.encode(t)).x_BLD, tokens)
    with pytest.raises(ValueError, match="lane='vision' does not exist; use one of main"):
        model.encode(tokens, lane="vision")
    with pytest.raises(ValueError, match="no head 'flow'"):
        model.head("flow", None)
