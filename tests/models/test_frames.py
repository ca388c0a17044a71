"""Positions of a grid counted in the frame of another: resolutions agree on where things are."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmjax.data.layouts import Aligned
from mmjax.data.task import Streams
from mmjax.models import positions
from mmjax.testing import data
from mmjax.testing.model import small_model
from mmjax.typing import Tokens, TokenSpec, Vocabulary
from mmjax.typing import positions as places

COARSE = TokenSpec(name="coarse", kind="grid", max_tokens=4, width=6, grid=(1, 2, 2))
FINE = TokenSpec(name="fine", kind="grid", max_tokens=16, width=6, grid=(1, 4, 4))
WORDS = TokenSpec(name="words", kind="sequence", max_tokens=5, vocab_size=30)
VOCABULARY = Vocabulary((COARSE, FINE, WORDS))
FRAMES = {"coarse": (1.0, 4.0, 4.0)}


def tokens(spec: TokenSpec) -> Tokens:
    samples = data.samples([spec], rows=3, absent=0.0)
    batch, _ = Aligned().build(samples, Streams((spec.name,), ()), VOCABULARY)
    return jax.tree.map(jnp.asarray, batch.views[spec.name])


def test_a_coarse_grid_lies_in_the_middles_of_a_fine_one():
    seen = positions.placed(tokens(COARSE), FRAMES, VOCABULARY)
    fine_A = places((1, 4, 4)).reshape(2, 2, 2, 2, 3).mean((1, 3)).reshape(-1, 3)
    np.testing.assert_array_equal(seen.position_BLA[0], fine_A)
    for spec in (FINE, WORDS):
        own = tokens(spec)
        again = positions.placed(own, FRAMES, VOCABULARY)
        np.testing.assert_array_equal(own.position_BLA, again.position_BLA)


@pytest.mark.parametrize("position", ["sincos", "rotary", "vit_mae"])
def test_a_frame_is_what_the_model_sees(position):
    """A coarse stream in its frame gives what the same tokens give at those places."""
    framed = small_model(shape="encoder", position=position, frames=FRAMES)
    plain = dataclasses.replace(framed, frames={})
    own = tokens(COARSE)
    moved = own._replace(position_BLA=positions.placed(own, FRAMES, VOCABULARY).position_BLA)
    run = lambda config, view: jax.jit(config.make(VOCABULARY, {}, 0).encode)(view).x_BLD
    np.testing.assert_array_equal(run(framed, own), run(plain, moved))
    assert np.abs(run(framed, own) - run(plain, own)).max() > 1e-3
    same = dataclasses.replace(framed, frames={"coarse": (1.0, 2.0, 2.0)})
    np.testing.assert_array_equal(run(same, own), run(plain, own))


def test_a_memory_is_read_in_its_frame():
    config = small_model(shape="encoder_decoder", position="rotary", frames=FRAMES)
    plain = dataclasses.replace(config, frames={})
    words, seen = tokens(WORDS), tokens(COARSE)
    moved = seen._replace(position_BLA=positions.placed(seen, FRAMES, VOCABULARY).position_BLA)

    def run(config, view):
        model = config.make(VOCABULARY, {}, 0)
        return jax.jit(lambda a, b: model.decode(a, model.encode(b)).x_BLD)(words, view)

    np.testing.assert_array_equal(run(config, seen), run(plain, moved))
    assert np.abs(run(config, seen) - run(plain, seen)).max() > 1e-4


@pytest.mark.parametrize("name", ["words", "none"])
def test_what_is_no_grid_is_refused(name):
    model = small_model(frames={name: (1.0, 4.0, 4.0)})
    with pytest.raises(ValueError, match=rf"frames has '{name}'.*there are coarse, fine"):
        model.check({spec.name: spec for spec in VOCABULARY.specs})


def test_a_frame_of_nothing_is_refused():
    with pytest.raises(ValueError, match="frames"):
        small_model(frames={"coarse": (1.0, 0.0, 4.0)})
