"""Stems: the contract of the seam, the convolutions against XLA's, and what is refused."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmjax import testing
from mmjax.data.layouts import Aligned
from mmjax.data.task import Sample, Streams
from mmjax.modalities.audio import Audio
from mmjax.modalities.image import Image
from mmjax.models import Convolutions, Patches, names, stems
from mmjax.models.stems import Stem
from mmjax.objectives import InfoNCE
from mmjax.testing import data
from mmjax.testing.model import SPECS, small_model
from mmjax.typing import General, TokenSpec, Vocabulary

SPECS_READ = {
    "image": Image(size=(12, 8), patch=4).spec("image"),
    "odd": Image(size=(14, 7), patch=7, channels=1).spec("odd"),
    "audio": Audio(seconds=0.2, num_mels=16).spec("audio"),
    "video": TokenSpec(
        name="video", kind="grid", max_tokens=12, width=12, grid=(2, 2, 3), piece=(2, 2, 3)
    ),
}


@pytest.mark.parametrize("spec", SPECS_READ.values(), ids=SPECS_READ)
@pytest.mark.parametrize("stem", [Patches(), Convolutions(channels=(4, 6))], ids=repr)
def test_contract(stem, spec):
    testing.check_stem(stem, spec)


def view(spec: TokenSpec, keep: slice = slice(None), rows: int = 3):
    """(pictures, tokens of a view) that shows some of the pieces of each sample."""
    samples = data.samples([spec], rows=rows, absent=0.0)
    whole = np.stack([s.pieces[spec.name].values_LP for s in samples])
    shown = [
        Sample({n: p._replace(position_LA=p.position_LA[keep], values_LP=p.values_LP[keep])
                for n, p in s.pieces.items()}, s.identity, s.sample, seed=0)
        for s in samples
    ]  # fmt: skip
    batch, _ = Aligned().build(shown, Streams((spec.name,), ()), Vocabulary((spec,)))
    return whole, jax.tree.map(jnp.asarray, batch.views[spec.name])


def by_xla(params, pieces_BLP, spec: TokenSpec, strides) -> jax.Array:
    """The same by `jax.lax`, from the picture as such."""
    (t, h, w), (high, wide, channels) = spec.grid, spec.piece
    h, t = (t, 1) if h == 1 else (h, t)
    x = pieces_BLP.reshape(-1, h, w, high, wide, channels).transpose(0, 1, 3, 2, 4, 5)
    x = x.reshape(-1, h * high, w * wide, channels)
    for i, stride in enumerate(strides):
        kernel = params[f"kernel_{i}"].reshape(3, 3, x.shape[-1], -1)
        x = jax.lax.conv_general_dilated(
            x, kernel, stride, [(1, 1)] * 2, dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        mean, variance = x.mean(-1, keepdims=True), x.var(-1, keepdims=True)
        x = (x - mean) / jnp.sqrt(variance + 1e-6)
        scale, bias = (params[f"{n}_{i}"][None, None, None, :] for n in ("scale", "bias"))
        x = jax.nn.gelu(x * scale + bias)
    cells = x.reshape(len(x), h, x.shape[1] // h, w, x.shape[2] // w, -1)
    cells = cells.transpose(0, 1, 3, 2, 4, 5).reshape(len(pieces_BLP), t * h * w, -1)
    return cells @ params["piece"]


@pytest.mark.parametrize(
    ("name", "strides"),
    [("image", [(2, 2), (2, 2)]), ("odd", [(1, 1), (1, 1)]), ("audio", [(2, 2), (2, 2)]),
     ("video", [(2, 2), (1, 1)])],
)  # fmt: skip
def test_convolutions_are_those_of_xla(name, strides):
    spec, stem = SPECS_READ[name], Convolutions(channels=(4, 6))
    rng = np.random.default_rng(0)
    made = stem.init(jax.random.key(0), spec, 32)
    params = {n: jnp.asarray(rng.normal(size=x.shape), jnp.float32) for n, (x, _) in made.items()}
    quick = jax.jit(lambda p, seen: stem.apply(p, seen.values[name], seen, spec, jnp.float32))
    whole, tokens = view(spec)
    ours = quick(params, tokens)
    xla = jax.jit(lambda p, pieces: by_xla(p, pieces, spec, strides))
    np.testing.assert_allclose(ours, xla(params, whole), rtol=2e-4, atol=2e-4)
    # Pieces that are not shown are zeros in the picture, wherever the others lie in the row.
    hidden, tokens = view(spec, slice(1, None, 2))
    hidden[:, ::2] = 0
    ours = quick(params, tokens)
    theirs = xla(params, hidden)[:, 1::2]
    slots = [np.asarray(s)[np.asarray(s) < tokens.ids_BL.shape[1]] for s in tokens.values[name][1]]
    for row, shown in enumerate(slots):
        np.testing.assert_allclose(
            ours[row, : len(shown)], theirs[row], rtol=2e-4, atol=2e-4, err_msg=str(row)
        )


def products(jaxpr) -> int:
    """Multiplications of all matrix products in a program."""
    total = 0
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            total += equation.outvars[0].aval.size * equation.invars[1].aval.shape[0]
        total += sum(products(p.jaxpr) for p in equation.params.values() if hasattr(p, "jaxpr"))
    return total


def test_flops_are_those_of_the_products():
    spec, stem = SPECS_READ["image"], Convolutions(channels=(8, 16))
    _, tokens = view(spec)
    params = {n: x for n, (x, _) in stem.init(jax.random.key(0), spec, 32).items()}
    run = lambda p: stem.apply(p, tokens.values["image"], tokens, spec, jnp.float32)
    shape = tokens.values["image"].slot_BJ.shape
    assert stem.flops(spec, 32, *shape) == 2.0 * products(jax.make_jaxpr(run)(params).jaxpr)


def test_a_model_takes_its_stems_and_names_their_parameters():
    image = dataclasses.replace(SPECS[1], grid=(1, 2, 4), width=12, piece=(2, 2, 3))
    vocabulary = Vocabulary((SPECS[0], image))
    config = small_model(stems={"image": Convolutions(channels=(4,))})
    config.check({spec.name: spec for spec in vocabulary.specs})
    model = config.make(vocabulary, {}, 0)
    assert model.pieces.leaves == ("s2_kernel_0", "s2_scale_0", "s2_bias_0", "s2")
    paths = [f"pieces/{leaf}" for leaf in model.pieces.leaves]
    known = names.canonical_parts(config, vocabulary, (), paths)
    assert list(known) == [f"embed/image/{n}" for n in ("kernel_0", "scale_0", "bias_0", "piece")]
    _, tokens = view(image)
    out = model.embed(tokens._replace(stream_BL=tokens.stream_BL * 2))
    assert out.shape == (3, 8, 32)
    plain = small_model().make(vocabulary, {}, 0)
    assert plain.pieces.leaves == ("s2",)


@pytest.mark.slow  # the conformance of objectives has it for patches at each commit
def test_losses_are_the_same_on_one_device_and_on_all():
    image = dataclasses.replace(SPECS[1], width=12, piece=(2, 2, 3))
    model = small_model(stems={"image": Convolutions(channels=(4, 8))})
    testing.check_objective(InfoNCE(), (SPECS[0], image), model=model)


def test_rows_of_several_samples_are_refused():
    spec, stem = SPECS_READ["image"], Convolutions()
    _, tokens = view(spec)
    params = {n: x for n, (x, _) in stem.init(jax.random.key(0), spec, 32).items()}
    with pytest.raises(ValueError, match=r"several samples.*use Patches"):
        stem.apply(params, tokens.values["image"], tokens._replace(rule=General()), spec, "float32")


@pytest.mark.parametrize(
    ("stem_of", "message"),
    [
        ({"imag": Patches()}, "stems has 'imag'.*there are image"),
        ({"text": Patches()}, "stems has 'text'"),
        ({"image": Convolutions()}, "piece=\\(\\), so its pieces make no picture"),
    ],
)
def test_stems_that_do_not_suit_a_stream_are_refused(stem_of, message):
    with pytest.raises(ValueError, match=message):
        small_model(stems=stem_of).check({spec.name: spec for spec in SPECS})


def test_wrong_fields_are_refused():
    with pytest.raises(ValueError, match="channels=\\(\\) has no stage"):
        Convolutions(channels=())
    with pytest.raises(ValueError, match="piece=\\(2, 2\\) must be"):
        TokenSpec(name="a", kind="grid", max_tokens=1, width=4, piece=(2, 2))
    with pytest.raises(NotImplementedError, match="must define apply"):
        Stem().apply({}, None, None, SPECS[1], "float32")
    assert stems.leaf("s12_kernel_0") == (12, "kernel_0")
