"""A run that compiles in seconds: text from pictures, a checkpoint every fourth step."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from mmjax import Experiment, config
from mmjax.evaluate import Losses
from mmjax.experiment import Checkpointing, Logging

QUICKSTART = Path(__file__).resolve().parents[2] / "configs" / "quickstart.py"


def get_config() -> Experiment:
    tiny = config.load(f"{QUICKSTART}:tiny")
    masked = dataclasses.replace(tiny.tasks["masked"], inputs=("image", "text"), targets=("text",))
    return dataclasses.replace(
        tiny,
        name="tiny",
        modalities={name: tiny.modalities[name] for name in ("text", "image")},
        tasks={"masked": masked},
        model=dataclasses.replace(tiny.model, encoder_layers=1, decoder_layers=1, moe=None),
        evaluators={"losses": Losses(num_batches=1, tasks=("masked",))},
        checkpoint=Checkpointing(every=4, keep=2),
        logging=Logging(log_every=1),
        total_steps=20,
    )
