"""A tiny world for tests: three streams, random batches of every kind of task."""

from __future__ import annotations

import functools
from collections.abc import Collection, Iterable
from typing import Any

import jax
import numpy as np
import pytest

from mmjax import step as step_lib
from mmjax.models import MoE, TokenChoice, Transformer
from mmjax.objectives import CoCa, InfoNCE, MaskedTokens, Sigmoid, Symile
from mmjax.optim import Muon
from mmjax.parallel import MeshConfig, MeshRules, rules
from mmjax.typing import Batch, Targets, Tokens, TokenSpec, Values, Vocabulary

TEXT = TokenSpec(name="text", kind="sequence", max_tokens=8, vocab_size=200, text=True)
IMAGE = TokenSpec(name="image", kind="grid", max_tokens=8, width=6, grid=(1, 2, 4))
CODES = TokenSpec(
    name="codes", kind="grid", max_tokens=8, vocab_size=100, grid=(1, 2, 4), levels=(5, 5, 4)
)
SPECS = (TEXT, IMAGE, CODES)
VOCABULARY = Vocabulary(SPECS)
ROWS, GROUP = 16, 2


def in_turns(values: Iterable[Any], always: Collection[Any]) -> list[Any]:
    """Values for `parametrize`: all but those of `always` take turns, as slow tests do."""
    return [pytest.param(v, marks=[] if v in always else pytest.mark.slow) for v in values]


def config(shape="encoder_decoder", **kwargs) -> Transformer:
    """A transformer of width 32 with four heads, experts in every second block."""
    router = TokenChoice(bias_rate=0.01)
    fields = {
        "shape": shape,
        "width": 32,
        "num_heads": 4,
        "encoder_layers": 2,
        "decoder_layers": 2,
        "mlp_width": 64,
        "moe": MoE(num_experts=4, width=32, router=router, block_rows=8),
    }
    return Transformer(**{**fields, **kwargs})


def view(rng, name: str, rows: int = ROWS, length: int = 8, masked: bool = False) -> Tokens:
    """All tokens of one stream; the last row's second half is padding."""
    number = VOCABULARY.number(name)
    spec = VOCABULARY.spec(name)
    start = VOCABULARY.range(name)[0]
    ids = rng.integers(start, start + max(spec.vocab_size, 1), (rows, length)).astype(np.int32)
    values = {}
    if spec.width:
        ids = np.zeros_like(ids)
        slot = np.tile(np.arange(length, dtype=np.int32), (rows, 1))
        values[name] = Values(
            rng.normal(size=(rows, length, spec.width)).astype(np.float32), slot
        )  # fmt: skip
    valid = np.ones((rows, length), np.int32)
    valid[-1, length // 2 :] = 0
    place = np.arange(length, dtype=np.float32)
    order = np.tile(np.arange(length, dtype=np.int32), (rows, 1)) * (spec.kind == "sequence")
    return Tokens(
        ids_BL=(np.zeros_like(ids) if masked else ids) * valid,
        stream_BL=(number * valid).astype(np.int32),
        segment_BL=valid,
        order_BL=order.astype(np.int32),
        position_BLA=np.repeat(np.tile(place, (rows, 1))[:, :, None], 3, axis=2),
        values={} if masked else values,
    )


def base(rng, views, targets=None, rows: int = ROWS) -> Batch:
    """Presence all true, every sample its own positive."""
    return Batch(
        views=views,
        targets=targets or {},
        present_BSM=np.ones((rows, 1, len(SPECS)), bool),
        identity_BS=np.arange(rows, dtype=np.int32)[:, None],
        sample_BSI=np.zeros((rows, 1, 2), np.uint32),
        weight_BS=np.ones((rows, 1), np.float32),
    )


def targets(rng, name: str, length: int = 8, rows: int = ROWS, group: int = GROUP) -> Targets:
    """Every place of the target view, with a quarter of the room unused."""
    spec = VOCABULARY.spec(name)
    groups, room = rows // group, group * length
    row = np.tile(np.repeat(np.arange(group, dtype=np.int32), length), (groups, 1))
    slot = np.tile(np.tile(np.arange(length, dtype=np.int32), group), (groups, 1))
    weight = (rng.random((groups, room)) > 0.25).astype(np.float32)
    out = Targets(row_WU=row, slot_WU=slot, sample_WU=row, weight_WU=weight)
    if spec.vocab_size:
        label = rng.integers(0, spec.vocab_size, (groups, room)).astype(np.int32)
        return out._replace(label_WU=label)
    value = rng.normal(size=(groups, room, spec.width)).astype(np.float32)
    return out._replace(value_WUP=value)


def masked_batch(seed: int = 0) -> Batch:
    """Image in, codes out, continuous image out as a second stream."""
    rng = np.random.default_rng(seed)
    out = {"codes": targets(rng, "codes"), "image": targets(rng, "image")}
    views = {"input": view(rng, "image"), "target": view(rng, "codes", masked=True)}
    return base(rng, views, out)


def text_batch(seed: int = 0) -> Batch:
    """One view of text with labels, for decoder shapes."""
    rng = np.random.default_rng(seed)
    return base(rng, {"input": view(rng, "text")}, {"text": targets(rng, "text")})


def pair_batch(seed: int = 0, names=("image", "text")) -> Batch:
    """Views to contrast; two samples share an identity, one lacks the second view."""
    rng = np.random.default_rng(seed)
    batch = base(rng, {name: view(rng, name) for name in names})
    batch.identity_BS[1] = batch.identity_BS[0]
    batch.present_BSM[2, 0, VOCABULARY.number(names[1]) - 1] = False
    return batch


def caption_batch(seed: int = 0, names=("image", "text")) -> Batch:
    """The same, with text to predict."""
    rng, batch = np.random.default_rng(seed + 1), pair_batch(seed, names)
    views = {**batch.views, "target": view(rng, "text")}
    return batch._replace(views=views, targets={"text": targets(rng, "text")})


def setup(model: Transformer, objectives, mesh=None, optimizer=None, seed: int = 0, extras=None):
    """(parts, tx, shardings, state) of a model with the heads that the objectives need."""
    heads: dict = {}
    for objective in objectives:
        heads |= objective.heads(SPECS, SPECS) | objective.heads((IMAGE, TEXT), ())
    parts = step_lib.split(functools.partial(model.make, VOCABULARY, heads, seed))
    mesh = mesh if mesh is not None else MeshConfig().make(jax.devices()[:1])
    tx = (optimizer or Muon()).make(parts.matrices, 100)
    shardings = step_lib.state_shardings(parts, tx, extras or {}, mesh, MeshRules())
    return parts, tx, shardings, step_lib.init_state(parts, tx, extras or {}, shardings)


def train_step(model, parts, tx, objective, shardings, **kwargs):
    """A jitted step with group rows and router update of this world."""
    update = model.update_state
    fields = {"seed": 0, "group_rows": GROUP, "grad_clip_norm": 1.0, "update_state": update}
    return step_lib.make_train_step(parts, tx, objective, shardings, **{**fields, **kwargs})


def batch_sharding(mesh):
    """Rows over the batch axes of a mesh."""
    return rules.batch_sharding(mesh)


OBJECTIVES = {
    "masked": (MaskedTokens(), masked_batch),
    "info_nce": (InfoNCE(), pair_batch),
    "info_nce_three": (InfoNCE(), functools.partial(pair_batch, names=("image", "text", "codes"))),
    "sigmoid": (Sigmoid(), pair_batch),
    "coca": (CoCa(), caption_batch),
    "symile": (Symile(), functools.partial(pair_batch, names=("image", "text", "codes"))),
}
