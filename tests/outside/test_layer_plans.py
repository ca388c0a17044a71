"""The layer plans of nine published systems, of shipped blocks: made, named, told for people."""

from __future__ import annotations

import dataclasses
import functools

import pytest
import small

from mmjax import step as step_lib
from mmjax.models import (
    Adapter,
    Block,
    ByStream,
    ExpertChoice,
    GatedCrossAttention,
    LoRA,
    MoE,
    Queries,
    Run,
    TokenChoice,
    Transformer,
    names,
    plan,
)

FAMILIES = ByStream(experts=(0, 1, 1))  # text; images and their codes


def transformer(shape, *runs, **fields) -> Transformer:
    return small.config(shape, moe=None, runs=runs, **fields)


def uni_moe() -> Transformer:
    """Stage 3: experts that began as dense feed-forwards, and LoRA on attention."""
    moe = MoE(num_experts=4, width=64, router=TokenChoice(), block_rows=8)
    block = LoRA(block=Block(causal=True, moe=moe), rank=4, target_modules=("attention/*",))
    return transformer("decoder", Run(pattern=(Block(causal=True), block), repeats=2))


def albef() -> Transformer:
    """Two towers, and a lane that fuses text with what it reads of the image."""
    fusion = Block(lane="fusion", reads="image")
    towers = [Run(pattern=(Block(lane=lane),), repeats=2) for lane in ("image", "text")]
    return transformer("towers", *towers, Run(pattern=(fusion,), repeats=2))


def one_peace() -> Transformer:
    """Shared attention, a feed-forward for each family, an adapter."""
    moe = MoE(num_experts=2, width=64, router=FAMILIES, block_rows=8)
    return transformer("encoder", Run(pattern=(Adapter(block=Block(moe=moe), width=8),), repeats=2))


def towers(*lanes: str) -> Transformer:
    return small.config("towers", moe=None, lanes=lanes)


PLANS = {
    "4M-21": (functools.partial(small.config, moe=None), ["2 x enc: Block", "2 x dec: Block(rea"]),
    "CLIP": (functools.partial(towers, "image", "text"), ["2 x image: Block", "2 x text: Block"]),
    "IMP": (
        functools.partial(
            small.config, "encoder",
            moe=MoE(num_experts=4, width=32, every=1, router=ExpertChoice(allow_unmixed=True)),
        ),
        ["2 x main: Block(moe=MoE(num_experts=4, width=32, every=1, router=ExpertChoice("],
    ),
    "ONE-PEACE": (one_peace, ["2 x main: Adapter(block=Block(moe=MoE(num_experts=2"]),
    "ALBEF": (albef, ["2 x image: ", "2 x text: ", "2 x fusion: Block(reads='image')"]),
    "Symile": (functools.partial(towers, "image", "text", "codes"), ["2 x image", "2 x", "2 x"]),
    "Uni-MoE": (uni_moe, ["2 x main: Block(causal=True), LoRA(block=Block(causal=True, moe="]),
    "flow matching": (functools.partial(small.config, "encoder", moe=None), ["2 x main: Block"]),
    "gradient harmonization": (functools.partial(small.config, "encoder"), ["1 x main: Block, "]),
}  # fmt: skip


@pytest.mark.parametrize("name", PLANS)
def test_the_plan_is_made_named_and_told(name):
    make, told = PLANS[name]
    model = make()
    parts = step_lib.split(functools.partial(model.make, small.VOCABULARY, {}, 0))
    where = names.canonical_parts(model, small.VOCABULARY, (), list(names.flatten(parts.params)))
    for lane in model.lane_names():
        assert any(n.startswith(f"{lane}/blocks/") for n in where)
        assert plan.flops_per_token(model, lane, 8) > 0
    lines = plan.layer_lines(model.layer_plan())
    assert len(lines) == len(told)
    for line, start in zip(lines, told, strict=True):
        assert line.startswith(start)
        assert len(line) < 200


def test_a_query_reader_is_a_lane_of_queries():
    reader = (Queries(lane="query", num=4), Block(lane="query", reads="enc"))
    model = transformer(
        "towers", Run(pattern=(Block(lane="enc"),), repeats=2), Run(pattern=reader, repeats=1)
    )
    assert model.read_lanes() == {"query": "enc"}
    bridged = GatedCrossAttention(lane="enc", reads="query")
    pattern = (*model.runs[0].pattern, *reader, bridged)
    both = dataclasses.replace(model, runs=(Run(pattern=pattern),))
    assert both.lane_names() == ("enc", "query")
