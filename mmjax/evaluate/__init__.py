"""Evaluators, and the verbs `eval` and `embed`."""

from __future__ import annotations

from typing import Any

import mmjax
from mmjax.config.code_file import Code
from mmjax.evaluate.conflicts import Conflicts
from mmjax.evaluate.generation import Generation
from mmjax.evaluate.judges import MOVED, BoxIoU, Judge, MaskIoU, SameMetadata
from mmjax.evaluate.kept import Kept
from mmjax.evaluate.losses import Losses
from mmjax.evaluate.retrieval import Retrieval
from mmjax.evaluate.zero_shot import ZeroShot
from mmjax.experiment import Evaluator

__all__ = [
    "BoxIoU",
    "Conflicts",
    "Evaluator",
    "Generation",
    "Judge",
    "Kept",
    "Losses",
    "MaskIoU",
    "Retrieval",
    "SameMetadata",
    "ZeroShot",
    "embed",
    "evaluate",
]


def evaluate(path: str, *, split: str | None = None, code: Code = None) -> dict[str, Any]:
    """Runs the evaluators of a run's config on a checkpoint; see `mmjax.evaluate.verbs`."""
    from mmjax.evaluate import verbs

    return verbs.evaluate(path, split=split, code=code)


def embed(path: str, given: dict[str, list[str]], *, code: Code = None) -> dict[str, Any]:
    """Embeddings [N, D] of files or texts by modality; see `mmjax.evaluate.verbs`."""
    from mmjax.evaluate import verbs

    return verbs.embed(path, given, code=code)


def __getattr__(name: str) -> Any:
    """What has moved, by its old name for one release."""
    return mmjax.moved_name(name, "mmjax.evaluate", "mmjax.demo.judges", MOVED)
