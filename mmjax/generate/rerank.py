"""Reranks complete candidates with the similarity of the model's own objectives.

DALL-E (Ramesh et al. 2021) sampled many images and kept the one that CLIP ranked nearest to the
text. A model with contrastive tasks ranks its own candidates. Letters: C candidates.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from mmjax.experiment import Experiment
from mmjax.generate import views
from mmjax.generate.plan import Decoding
from mmjax.run import view as view_lib


def contrasts(experiment: Experiment, stream: str) -> dict[str, str]:
    """Streams compared with this one by the objective of some task -> the name of that task."""
    return {
        other: name
        for name, task in experiment.tasks.items()
        if stream in (views := task.objective.views(task))
        for other in views
        if other != stream
    }


def choose(
    view: view_lib.View,
    pieces: Sequence[views.Pieces],
    item: Decoding,
    ids_BCL: np.ndarray,
    score_BC: np.ndarray,
) -> np.ndarray:
    """Ids [B, L] of the candidate with the largest score + rerank * sum of scale * similarity.

    The sum is over the known streams that are contrasted with the wanted one; without any, the
    candidate with the largest score is kept.
    """
    (rows, count), score_BC = score_BC.shape, score_BC.copy()
    spec = view.program.vocabulary.spec(item.stream)
    candidates = [views.piece(spec, ids_L) for ids_L in ids_BCL.reshape(rows * count, -1)]
    own: dict[str, np.ndarray] = {}
    for other, task in contrasts(view.program.experiment, item.stream).items():
        known = [p.get(other) for p in pieces]
        if all(p is None for p in known):
            continue
        if task not in own:
            own[task] = view.embed_pieces(item.stream, candidates, task=task)
        known_BX, scale = view.embed_pieces(other, known, task=task), view.logit_scale(task)
        for row, piece in enumerate(known):
            if piece is not None:
                mine_CX = own[task][row * count : (row + 1) * count]
                near_C = view.similarity(task, mine_CX, known_BX[row : row + 1])[:, 0]
                score_BC[row] += item.rerank * scale * near_C
    return ids_BCL[np.arange(rows), np.argmax(score_BC, axis=1)]
