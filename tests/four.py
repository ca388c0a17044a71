"""A run of one small task for four processes, which compiles quickly."""

from __future__ import annotations

import dataclasses

import mini

from mmjax import Experiment


def get_config() -> Experiment:
    """Twenty steps of masked text; a checkpoint every fifth, each step logged."""
    base = mini.get_config()
    text = {"text": base.tasks["text"]}
    return dataclasses.replace(
        base,
        modalities={"text": base.modalities["text"]},
        tasks=text,
        model=dataclasses.replace(base.model, moe=None),
        mixture=dataclasses.replace(base.mixture, weights={"text": 1.0}),
        checkpoint=dataclasses.replace(base.checkpoint, every=5),
        total_steps=20,
    )
