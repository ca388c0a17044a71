"""The autoencoder: convolutions against NumPy, gradients everywhere, any mesh alike."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toy_codes
from flax import nnx
from scipy import signal

from mmjax import step as step_lib
from mmjax.models import convolution, waveform_codec
from mmjax.objectives import Reconstruction
from mmjax.optim import AdamW
from mmjax.parallel import MeshConfig, MeshRules
from mmjax.typing import TokenSpec, Values, Vocabulary

SPEC = toy_codes.SPEC
SOUND = TokenSpec(name="sound", kind="grid", max_tokens=6, width=20, grid=(6, 1, 1))


def train(kind: str, devices: int, steps: int = 3, mesh_config=MeshConfig()):
    """Losses of a few steps, and the state after them."""
    model = toy_codes.model(kind)
    objective = Reconstruction(spectral=(16, 32) if kind == "strided" else ())
    mesh = mesh_config.make(jax.devices()[:devices])
    vocabulary = Vocabulary((toy_codes.base(kind).spec("image"),))
    parts = step_lib.split(lambda: model.make(vocabulary, {}, 0))
    tx = AdamW(learning_rate=1e-2, warmup_steps=0, schedule="constant").make(parts.matrices, 10)
    shardings = step_lib.state_shardings(parts, tx, {}, mesh, MeshRules())
    step = step_lib.make_train_step(
        parts, tx, objective, shardings, seed=0, group_rows=2, update_state=model.update_state
    )
    state, losses = step_lib.init_state(parts, tx, {}, shardings), []
    sharding = jax.sharding.NamedSharding(mesh, step_lib.rules_lib.batch_spec())
    given = jax.device_put(toy_codes.batch(), sharding)
    # A convolution waits for threads of a pool that all devices share; devices that wait for one
    # another in it hold them, and eight of them on two cores have hung. So each keeps to its own.
    own = {"xla_cpu_multi_thread_eigen": False}
    with jax.set_mesh(mesh):
        run = step.lower(state, given).compile(compiler_options=own)
        for _ in range(steps):
            state, out = run(state, given)
            jax.block_until_ready(state)  # one program in flight
            losses.append(float(out["loss"]))
    return losses, jax.device_get((state.params, state.model_state))


@pytest.mark.parametrize("kind", toy_codes.QUANTIZERS)
@pytest.mark.slow
def test_any_number_of_devices_does_the_same(kind):
    losses, state = train(kind, 1)
    for devices, mesh in ((2, MeshConfig()), (8, MeshConfig(data=2, fsdp=2, tensor=2))):
        other, other_state = train(kind, devices, mesh_config=mesh)
        np.testing.assert_allclose(other, losses, rtol=1e-4)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-3), state, other_state)


@pytest.mark.parametrize("kind", toy_codes.QUANTIZERS)
def test_training_lowers_the_loss_and_moves_the_codebook(kind):
    losses, (_, state) = train(kind, 1, steps=40)
    assert losses[-1] < 0.9 * losses[0]
    assert state["codebook"]["use"].sum() > 10


@pytest.mark.parametrize("kind", ["fsq", *toy_codes.FIELDS])
def test_bfloat16_gives_about_the_same_gradients(kind):
    found = {}
    for dtype in ("float32", "bfloat16"):
        spec = toy_codes.base(kind).spec("image")
        # Of two codes few latents take the other one for a small difference.
        model = toy_codes.model(kind, quantizer=toy_codes.VQ(num_codes=2, width=4))
        module = model.make(Vocabulary((spec,)), {}, 0)
        module.compute_dtype = dtype
        graph, params, state = nnx.split(module, nnx.Param, convolution.blocks.ModelState)

        def loss(params, graph=graph, state=state):
            losses, *_ = Reconstruction()(
                nnx.merge(graph, params, state), toy_codes.batch(), jax.random.key(0), {}
            )
            return sum(step_lib.objective_lib.total(losses).values())

        grads = jax.tree.leaves(jax.grad(loss)(nnx.as_pure(params)))
        found[dtype] = np.concatenate([np.ravel(g) for g in grads])
    a, b = found.values()
    assert np.isfinite(a).all()
    assert np.linalg.norm(a - b) < 0.2 * np.linalg.norm(a)


@pytest.mark.parametrize("kind", toy_codes.QUANTIZERS)
def test_every_parameter_gets_a_gradient_and_absent_rows_give_none(kind):
    spec = toy_codes.base(kind).spec("image")
    model = toy_codes.model(kind).make(Vocabulary((spec,)), {}, 0)
    graph, params, state = nnx.split(model, nnx.Param, convolution.blocks.ModelState)

    def loss(params, given):
        losses, _, record, _ = Reconstruction()(
            nnx.merge(graph, params, state), given, jax.random.key(0), {}
        )
        total = sum(step_lib.objective_lib.total(losses).values())
        return total, record

    given = toy_codes.batch()
    grads, record = jax.grad(loss, has_aux=True)(nnx.as_pure(params), given)
    silent = [
        step_lib.path_name(path)
        for path, g in jax.tree_util.tree_leaves_with_path(grads)
        if not np.abs(g).max() > 0
    ]
    assert not silent
    # A row of padding and one without the stream are no use of a code.
    uses = 14 * toy_codes.model(kind).num_tokens
    assert float(record["codebook/count"].sum()) == uses
    tokens = given.views["image"]
    values = tokens.values["image"].value_BJP.copy()
    values[-2:] = 7.0  # padding, absent
    other = given._replace(
        views={
            "image": tokens._replace(values={"image": Values(values, tokens.values["image"][1])})
        }
    )
    for a, b in zip(
        jax.tree.leaves(grads),
        jax.tree.leaves(jax.grad(loss, has_aux=True)(nnx.as_pure(params), other)[0]),
        strict=True,
    ):
        np.testing.assert_allclose(a, b, atol=1e-6)


@pytest.mark.parametrize("grid", [(4, 5), (7, 1), (3, 4, 5), (1, 4, 2)])
def test_shifted_products_are_a_convolution(grid):
    module = convolution.Convolution(grid, 3, 2, 3, nnx.Rngs(params=0))
    x = np.random.default_rng(0).normal(size=(2, *grid, 2)).astype(np.float32)
    got, kernel = module(jnp.asarray(x)), np.asarray(module.kernel[...])
    kernel = kernel.reshape(*(3 if size > 1 else 1 for size in grid), 2, 3)
    for b in range(2):
        for out in range(3):
            want = sum(
                signal.correlate(x[b, ..., c], kernel[..., c, out], mode="same", method="direct")
                for c in range(2)
            )
            np.testing.assert_allclose(got[b, ..., out], want, atol=1e-5)


@pytest.mark.parametrize(
    ("spec", "model"),
    [
        (SPEC, toy_codes.model()),
        (SOUND, toy_codes.model(piece=(4, 1, 5), code_grid=(8, 1))),
    ],
)
def test_the_array_is_put_together_and_taken_apart(spec, model):
    """Pieces to the array and back; cells of the array keep their place."""
    module = model.make(Vocabulary((spec,)), {}, 0)
    values = np.random.default_rng(0).normal(size=(2, spec.max_tokens, spec.width))
    array = np.asarray(module._array(jnp.asarray(values, jnp.float32)))
    assert array.shape == (2, *model.array_shape(spec))
    if spec is SPEC:
        image = np.clip(array[0] * 0.1 + 0.5, 0, 1)
        piece = toy_codes.BASE.encode(image)
        again = module._array(jnp.asarray(piece.values_LP)[None])
        np.testing.assert_allclose(np.asarray(again)[0], image * 2 - 1, atol=1e-6)

    class Same:
        """A decoder that returns the cells of the array it was given."""

        def __call__(self, x):
            y, z = model.code_grid
            rows, columns, channels = array.shape[1:]
            cells = array.reshape(2, y, rows // y, z, columns // z, channels)
            return jnp.asarray(cells.transpose(0, 1, 3, 2, 4, 5).reshape(2, y, z, -1))

    object.__setattr__(module, "decoder", Same())
    back = module._pieces(jnp.zeros((2, model.num_tokens, model.quantizer.width)))
    np.testing.assert_allclose(back, values, atol=1e-6)


def test_a_code_of_the_strided_codec_sees_the_samples_around_it():
    """And is seen by those: a codec of the first half and of the whole agree far from the cut."""
    spec = toy_codes.base("strided").spec("image")
    model = toy_codes.model("strided", encoder_layers=0, decoder_layers=0)
    module = model.make(Vocabulary((spec,)), {}, 0)
    values = np.random.default_rng(0).normal(size=(1, 8, 16)).astype(np.float32)
    other = values.copy()
    other[:, 4, 5] += 1.0  # sample 69, of code 8
    moved = np.abs(module._latents(jnp.asarray(values)) - module._latents(jnp.asarray(other)))
    assert moved.max(axis=1).argmax() in (7, 8, 9)
    vector = np.random.default_rng(0).normal(size=(1, 16, 4)).astype(np.float32)
    change = vector.copy()
    change[:, 8] += 1.0
    moved = module._pieces(jnp.asarray(vector)) - module._pieces(jnp.asarray(change))
    assert 56 <= np.abs(moved).argmax() < 80  # samples of codes 7 to 9


def test_snake_and_its_slope_are_their_formulas():
    x = np.linspace(-30, 30, 2001, dtype=np.float32)
    for log_rate in (-1.0, 0.0, 1.0):
        rate, of = np.exp(log_rate), lambda x, log_rate=log_rate: waveform_codec.snake(x, log_rate)
        got, slope = of(jnp.asarray(x)), jax.vmap(jax.grad(of))(jnp.asarray(x))
        np.testing.assert_allclose(got, x + np.sin(rate * x) ** 2 / rate, atol=3e-5)
        np.testing.assert_allclose(slope, 1 + np.sin(2 * rate * x), atol=1e-4)
    half = waveform_codec.snake(jnp.asarray(x, jnp.bfloat16), 0.0)
    assert half.dtype == jnp.bfloat16
    near = np.asarray(jnp.asarray(x, jnp.bfloat16), np.float32)
    np.testing.assert_allclose(np.float32(half), near + np.sin(near) ** 2, rtol=0.01, atol=0.01)


def test_the_array_of_a_video_is_its_frames():
    video = toy_codes.base("video")
    module = toy_codes.model("video").make(Vocabulary((video.spec("image"),)), {}, 0)
    frames = np.random.default_rng(0).random((4, 4, 4, 2)).astype(np.float32)
    values = jnp.asarray(video.encode(frames).values_LP)[None]
    array = module._array(values)
    np.testing.assert_allclose(array[0], frames * 2 - 1, atol=1e-6)
    cells = convolution.taken_apart(array, (4, 2, 2))
    np.testing.assert_array_equal(cells[0, 1, 0, 1], array[0, 1, :2, 2:].ravel())
    object.__setattr__(module, "decoder", lambda x: cells)
    np.testing.assert_allclose(module._pieces(jnp.zeros((1, 16, 3))), values, atol=1e-6)


def test_errors_of_reconstruction_are_their_formulas():
    value, decoded = jnp.asarray([-1.0, 1.0, 1.0, 0.0]), jnp.asarray([-1.0, 3.0, 0.5, -1.0])
    gap = np.asarray([0.0, 2.0, 0.5, 1.0])
    wanted = {
        "mse": gap**2,
        "l1": gap,
        "smooth_l1": np.where(gap < 1, gap**2 / 2, gap - 0.5),
        "bce": np.log1p(np.exp(-2 * np.asarray(value) * np.asarray(decoded))),
    }
    for error, want in wanted.items():
        got = Reconstruction(error=error)._error(decoded, value)
        np.testing.assert_allclose(got, want, atol=1e-6)


def test_what_does_not_fit_is_told():
    vocabulary = Vocabulary((SPEC,))
    for fields, message in (
        ({"piece": (4, 2, 1)}, r"piece=\(4, 2, 1\) has 8 values, but those of stream 'image' have"),
        ({"code_grid": (3, 8)}, r"code_grid=\(3, 8\) does not divide the 8 x 16 array"),
        ({"strides": (2,)}, r"strides=\(2,\) do not divide .* 16 of them side by side"),
    ):
        with pytest.raises(ValueError, match=message):
            toy_codes.model(**fields).make(vocabulary, {}, 0)
    text = TokenSpec(name="text", kind="sequence", max_tokens=8, vocab_size=200)
    with pytest.raises(ValueError, match="stream 'text' is no grid along"):
        toy_codes.model().make(Vocabulary((text,)), {}, 0)
    with pytest.raises(ValueError, match="modalities are image, text; a tokenizer is for one"):
        toy_codes.model().make(Vocabulary((SPEC, text)), {}, 0)
    with pytest.raises(ValueError, match="kernel=2 must be odd"):
        dataclasses.replace(toy_codes.model(), kernel=2)
    with pytest.raises(ValueError, match="num_heads=3 does not divide width=8"):
        dataclasses.replace(toy_codes.model(), num_heads=3)
    with pytest.raises(ValueError, match=r"width=8 cannot be halved .*; use a multiple of 16"):
        toy_codes.model(strides=(2, 2, 2, 2))
    with pytest.raises(ValueError, match=r"code_grid=\(4, 2\) are of no array; use \(rows"):
        toy_codes.model("video", code_grid=(4, 2))
    with pytest.raises(ValueError, match=r"takes all axes .* ProductVQ has 2 codebooks; use a"):
        toy_codes.model("video", quantizer=toy_codes.QUANTIZERS["product"])
    video = toy_codes.base("video").spec("image")
    with pytest.raises(ValueError, match=r"no grid along at most two axes.* of a video \(frames"):
        toy_codes.model().make(Vocabulary((video,)), {}, 0)
    with pytest.raises(ValueError, match=r"code_grid=\(3, 2, 2\) does not divide the 4 x 4 x 4"):
        toy_codes.model("video", code_grid=(3, 2, 2)).make(Vocabulary((video,)), {}, 0)
    spec = toy_codes.base("strided").spec("image")
    with pytest.raises(ValueError, match=r"strides=\(3,\) do not divide the 8 samples of a code"):
        toy_codes.model("strided", strides=(3,)).make(Vocabulary((spec,)), {}, 0)


@pytest.mark.parametrize(
    ("sides", "grid"), [((8, 6), (2, 2)), ((4, 1), (2, 1)), ((2, 4, 6), (1, 4, 2))]
)
def test_cells_keep_neighbours_together_and_are_put_together_again(sides, grid):
    x = np.random.default_rng(0).normal(size=(2, *sides, 3))
    cells = convolution.taken_apart(x, grid)
    first = x[(slice(None), *(slice(0, n // of) for n, of in zip(sides, grid, strict=True)))]
    np.testing.assert_array_equal(cells[(slice(None), *(0 for _ in grid))], first.reshape(2, -1))
    np.testing.assert_array_equal(convolution.put_together(cells, (*sides, 3)), x)
