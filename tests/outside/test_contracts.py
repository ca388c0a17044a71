"""`mmjax.testing` on shipped parts, on those of strangers, and on parts that break a contract."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import letters
import numpy as np
import pytest

from mmjax import testing
from mmjax.data import layouts, prefix, schedules
from mmjax.data.pictures import Pictures
from mmjax.data.task import Streams
from mmjax.demo.numbers import Numbers
from mmjax.evaluate import Losses
from mmjax.modalities.image import Image
from mmjax.modalities.structured import Bins, Boxes, Metadata
from mmjax.models import Block, ExpertChoice, GatedCrossAttention, LoRA, Soft, TokenChoice
from mmjax.models.embed import Classify, Projection, Scale, ValueHead
from mmjax.objectives import CoCa, InfoNCE, MaskedTokens, NextToken, Sigmoid, Symile
from mmjax.optim import GradientRule, PCGrad
from mmjax.testing.data import random_piece
from mmjax.testing.model import IMAGE, SPECS, TEXT, small_model
from mmjax.typing import TokenSpec

sys.path.extend(
    str(Path(__file__).parent / name) for name in ("augments", "blocks", "objectives", "rules")
)
import between_tasks
import depthwise
import ema_teacher
import harmonize
import late_interaction
import matching
import queue_of_negatives
import solarize
import state_space

CODES = TokenSpec(name="codes", kind="grid", max_tokens=8, vocab_size=50, grid=(1, 2, 4))
AT_REST: dict[str, Any] = {
    "area": (1.0, 1.0), "aspect": (1.0, 1.0), "brightness": 0.0, "contrast": 0.0, "saturation": 0.0,
}  # fmt: skip
PIXELS = np.random.default_rng(0).random((8, 8, 3)).astype(np.float32)


def test_modalities():
    image = Image(size=(8, 8), patch=4)
    close = lambda a, b: np.allclose(a, b, atol=1e-6)
    testing.check_modality(image, [PIXELS], bad=[np.zeros(3)], alike=close)
    testing.check_modality(Metadata(schema={"age": Bins(num=9)}), [{"age": 3}, {}], bad=[{"a": 1}])
    testing.check_modality(Boxes(max_boxes=2), [np.zeros((0, 4))], bad=["box"])


@dataclasses.dataclass(frozen=True, kw_only=True)
class InPlace(solarize.Solarize):
    def __call__(self, value, modality, rng):
        value *= rng.random()
        return modality.encode(value)


def test_augmentations():
    image = Image(size=(8, 8), patch=4)
    testing.check_augment(Pictures(), image, [PIXELS])
    testing.check_augment(solarize.Solarize(), image, [PIXELS])
    with pytest.raises(testing.Broken, match=r"InPlace.*leave the prepared value alone"):
        testing.check_augment(InPlace(), image, [PIXELS])
    with pytest.raises(testing.Broken, match=r"Pictures.__call__\(\): other seeds give other"):
        testing.check_augment(Pictures(**AT_REST), image, [PIXELS])


def test_sources_layouts_and_schedules():
    testing.check_source(Numbers(train_size=50))
    both = Streams(("image", "codes"), ("codes",))
    masked = layouts.Masked(input_tokens=6, target_tokens=4)
    testing.check_layout(masked, (IMAGE, CODES), both)
    testing.check_layout(prefix.Prefix(), SPECS, Streams(("image",), ("text",)))
    testing.check_layout(layouts.Aligned(), SPECS, Streams(("image", "text"), ()))
    for schedule in (schedules.Permuted(), schedules.Blocked(), schedules.Intervals()):
        testing.check_schedule(schedule, {"a": 1.0, "b": 3.0})


def test_routers_and_heads():
    for router in (TokenChoice(), ExpertChoice(), Soft()):
        testing.check_router(router)
    x = jnp.ones((2, 3, 32))
    for head in (Projection(width=8), Classify(num_classes=3), Scale(), ValueHead(stream="image")):
        testing.check_head(head, x)


def test_rules():
    for rule in (PCGrad(), PCGrad(over=("output",)), between_tasks.BetweenTasks()):
        testing.check_rule(rule)
    testing.check_rule(harmonize.Harmonize())


@pytest.mark.ci
@pytest.mark.parametrize(
    "block",
    [
        depthwise.Depthwise(),
        state_space.StateSpace(),
        LoRA(block=Block(causal=True)),
        GatedCrossAttention(lane="dec", reads="enc", ffn_width=32),
    ],
    ids=lambda block: type(block).__name__,
)
def test_blocks(block):
    testing.check_block(block)


def test_the_ordinary_block():
    testing.check_block(Block(causal=True))


@pytest.mark.ci
@pytest.mark.parametrize(
    "objective",
    [
        late_interaction.LateInteraction(width=16),
        matching.Matching(),
        ema_teacher.EmaTeacher(),
        queue_of_negatives.Queue(names=("image", "text")),
        Symile(),
    ],
    ids=lambda objective: type(objective).__name__,
)
def test_objectives_of_strangers(objective):
    testing.check_objective(objective)


@pytest.mark.ci
def test_objectives():
    testing.check_objective(InfoNCE(width=8))


@pytest.mark.ci
def test_more_objectives():
    testing.check_objective(Sigmoid())
    streams = {"specs": (IMAGE, CODES), "inputs": ("image",), "targets": ("codes", "image")}
    testing.check_objective(MaskedTokens(), **streams)
    whole = dataclasses.replace(TEXT, first_sentinel=80, num_sentinels=4)
    captioned = {"layout": layouts.Aligned(), "inputs": ("image", "text"), "targets": ("text",)}
    testing.check_objective(CoCa(), specs=(whole, IMAGE), **captioned)
    prefixed = {"layout": prefix.Prefix(), "model": small_model(shape="decoder")}
    testing.check_objective(NextToken(), inputs=("image",), targets=("text",), **prefixed)


@pytest.mark.ci
def test_evaluators():
    view = letters.fresh(letters.get_config())
    testing.check_evaluator(Losses(num_batches=1), view)


# ------------------------------------------------------------------- what breaks a contract


@dataclasses.dataclass(frozen=True, kw_only=True)
class Wide(Image):
    """Its pieces are wider than its spec says."""

    def spec(self, name):
        return dataclasses.replace(super().spec(name), width=7, piece=())


@dataclasses.dataclass(frozen=True, kw_only=True)
class Careless(Image):
    """Takes anything."""

    def encode(self, value):
        return super().encode(PIXELS if np.ndim(value) < 2 and value is not None else value)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Forgetful(Numbers):
    """Other records each time."""

    def open(self, split):
        return [{"text": str(np.random.default_rng().integers(10**9))}]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Greedy(TokenChoice):
    """Routes padding too."""

    def route(self, x_WTD, logits_WTE, state, stream_WT, valid_WT, key):
        everything = jnp.ones_like(valid_WT)
        return super().route(x_WTD, logits_WTE, state, stream_WT, everything, key)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Mean(InfoNCE):
    """Returns one loss for all samples."""

    def losses(self, *args):
        losses, metrics, record = super().losses(*args)
        return (
            {n: x._replace(value_BS=jnp.mean(x.value_BS)) for n, x in losses.items()},
            metrics,
            record,
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Explodes(GradientRule):
    """Divides by zero."""

    def combine(self, losses, pullback, state, task, key):
        import jax

        grads = pullback(dict.fromkeys(losses, jnp.ones(())))
        return jax.tree.map(lambda g: g / jnp.sum(g), grads), state


BROKEN = {
    r"Wide.encode\(\): values are \[L, width=7\]": lambda: testing.check_modality(
        Wide(size=(8, 8), patch=4), [PIXELS]
    ),
    r"Careless.encode\(\): .* must raise ValueError": lambda: testing.check_modality(
        Careless(size=(8, 8), patch=4), [], bad=[np.zeros(3)]
    ),
    r"Forgetful.open\(\): records repeat": lambda: testing.check_source(Forgetful()),
    r"Greedy.route\(\): padding has weight 0": lambda: testing.check_router(Greedy()),
    r"Mean.losses\(\): loss 'image\+text' has a value and a weight a sample": lambda: (
        testing.check_objective(Mean())
    ),
    r"Explodes.combine\(\): gradients and state are finite": lambda: testing.check_rule(Explodes()),
}


@pytest.mark.parametrize("said", BROKEN)
def test_what_is_broken_is_told_by_class_method_and_rule(said):
    with pytest.raises(testing.Broken, match=said):
        BROKEN[said]()


def test_random_pieces_are_of_their_spec():
    rng = np.random.default_rng(0)
    assert random_piece(IMAGE, rng).values_LP.shape == (8, 6)
    assert 1 <= random_piece(TEXT, rng).length <= 8
