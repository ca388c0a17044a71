"""Reranks complete candidates with the model's own contrastive similarity.

DALL-E (Ramesh et al. 2021) sampled many images and kept the one that CLIP ranked nearest to the
text. A model with contrastive tasks ranks its own candidates. Letters: C candidates.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from mmjax.experiment import Experiment
from mmjax.generate import views
from mmjax.generate.plan import Decoding
from mmjax.objectives import contrastive
from mmjax.run import view as view_lib


def contrasts(experiment: Experiment, stream: str) -> dict[str, str]:
    """Streams contrasted with this one by some task -> the name of that task's scale head."""
    return {
        other: contrastive.scale_name(task.inputs)
        for task in experiment.tasks.values()
        if isinstance(task.objective, contrastive.Contrastive) and stream in task.inputs
        for other in task.inputs
        if other != stream
    }


def choose(
    view: view_lib.View,
    pieces: Sequence[views.Pieces],
    item: Decoding,
    ids_BCL: np.ndarray,
    score_BC: np.ndarray,
) -> np.ndarray:
    """Ids [B, L] of the candidate with the largest score + rerank * sum of scale * cosine.

    The sum is over the known streams that are contrasted with the wanted one; without any, the
    candidate with the largest score is kept.
    """
    rows, count = score_BC.shape
    spec = view.program.vocabulary.spec(item.stream)
    candidates = [views.piece(spec, ids_L) for ids_L in ids_BCL.reshape(rows * count, -1)]
    own_BCD = None
    for other, head in contrasts(view.program.experiment, item.stream).items():
        known = [p.get(other) for p in pieces]
        if all(p is None for p in known):
            continue
        if own_BCD is None:
            own_BCD = view.embed_pieces(item.stream, candidates).reshape(rows, count, -1)
        known_BD = view.embed_pieces(other, known)  # zero if not known
        cosine_BC = np.einsum("bcd,bd->bc", own_BCD, known_BD)
        score_BC = score_BC + item.rerank * view.scale(head) * cosine_BC
    return ids_BCL[np.arange(rows), np.argmax(score_BC, axis=1)]
