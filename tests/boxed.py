"""The mini run with one modality more, as `mmjax extend` takes it."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
import mini

from mmjax import Experiment
from mmjax.data.layouts import Masked
from mmjax.modalities.structured import Boxes
from mmjax.models.layers import LoRA
from mmjax.objectives import MaskedTokens


def get_config(**fields) -> Experiment:
    """Boxes, from pictures and text."""
    base = mini.get_config()
    text = base.tasks["text"]
    boxes = dataclasses.replace(
        text,
        inputs=("image", "text", "boxes"),
        targets=("boxes",),
        layout=Masked(input_tokens=24, target_tokens=10),
        objective=MaskedTokens(),
    )
    modalities = {**base.modalities, "boxes": Boxes(max_boxes=2, bins=17)}
    given = {"modalities": modalities, "tasks": {"boxes": boxes}, "total_steps": 4}
    return mini.get_config(**{**given, **fields})


def adapted() -> Experiment:
    """With low-rank changes of all blocks beside it."""
    base = get_config()
    runs = tuple(
        dataclasses.replace(run, pattern=tuple(LoRA(block=block, rank=2) for block in run.pattern))
        for run in base.model.layer_plan()
    )
    return dataclasses.replace(base, model=dataclasses.replace(base.model, runs=runs))
