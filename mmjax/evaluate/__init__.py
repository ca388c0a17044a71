"""Evaluators, and the verbs `eval` and `embed`."""

from __future__ import annotations

from typing import Any

from mmjax.evaluate.generation import Generation
from mmjax.evaluate.judges import (
    BoxIoU,
    DigitReader,
    Judge,
    MaskIoU,
    SameMetadata,
    SpeechReader,
    Words,
)
from mmjax.evaluate.losses import Losses
from mmjax.evaluate.retrieval import Retrieval, ZeroShot
from mmjax.experiment import Evaluator

__all__ = [
    "BoxIoU",
    "DigitReader",
    "Evaluator",
    "Generation",
    "Judge",
    "Losses",
    "MaskIoU",
    "Retrieval",
    "SameMetadata",
    "SpeechReader",
    "Words",
    "ZeroShot",
    "embed",
    "evaluate",
]


def evaluate(path: str, *, split: str | None = None, code: str | None = None) -> dict[str, Any]:
    """Runs the evaluators of a run's config on a checkpoint; see `mmjax.evaluate.verbs`."""
    from mmjax.evaluate import verbs

    return verbs.evaluate(path, split=split, code=code)


def embed(path: str, given: dict[str, list[str]], *, code: str | None = None) -> dict[str, Any]:
    """Embeddings [N, D] of files or texts by modality; see `mmjax.evaluate.verbs`."""
    from mmjax.evaluate import verbs

    return verbs.embed(path, given, code=code)
