"""In which languages texts are, by shares: of one caption nobody can tell, of hundreds one can."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np

__all__ = ["shares"]

ROUNDS = 100
LEAST = 0.01  # a share below this is noise of the classifier
FEWEST = 20  # texts, below which nothing is said


def shares(texts: Sequence[str]) -> dict[str, float]:
    """Share of each language by its ISO 639 code, the largest first; empty for few texts.

    A classifier of 139 languages guesses each text as if all were equally likely, which for a few
    words is mostly wrong. The shares under which its guesses fit one another are found by
    expectation maximisation (Saerens, Latinne and Decaestecker 2002).
    """
    texts = [text for text in texts if any(map(str.isalpha, text))]
    if len(texts) < FEWEST:
        return {}
    names, rank = _classifier()
    place = {name: i for i, name in enumerate(names)}
    guess_TL = np.zeros((len(texts), len(names)))
    for row, text in enumerate(texts):
        for name, chance in rank(text):
            guess_TL[row, place[name]] = chance
    share_L = np.full(len(names), 1 / len(names))
    for _ in range(ROUNDS):
        post_TL = guess_TL * share_L
        post_TL /= np.maximum(post_TL.sum(axis=1, keepdims=True), 1e-300)
        share_L = post_TL.mean(axis=0)
    order = [i for i in np.argsort(-share_L, kind="stable").tolist() if share_L[i] >= LEAST]
    return {names[i]: round(float(share_L[i]), 3) for i in order}


@functools.cache
def _classifier() -> tuple[list[str], Any]:
    from py3langid import langid  # half a second, and of no use to a run that goes on

    made = langid.LanguageIdentifier.from_model_file(langid.MODEL_FILE, norm_probs=True)
    return list(made.labels), made.rank
