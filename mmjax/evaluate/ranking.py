"""Ranks of the right answers among candidates, with ties in random order."""

from __future__ import annotations

import numpy as np

__all__ = ["recall", "reciprocal"]


def recall(scores_QC: np.ndarray, same_QC: np.ndarray, k: int) -> np.ndarray:
    """Probability [Q] that a positive is among the best k, with ties in random order."""
    above, tied, positives = _places(scores_QC, same_QC)
    free = k - above  # places left for the tied candidates
    out = np.zeros(len(scores_QC))
    for q in range(len(out)):
        miss = 1.0
        for i in range(min(max(free[q], 0), tied[q])):
            others = tied[q] - positives[q] - i
            miss *= max(others, 0) / (tied[q] - i)
        out[q] = 1.0 - miss if free[q] > 0 else 0.0
    return out


def reciprocal(scores_QC: np.ndarray, same_QC: np.ndarray) -> np.ndarray:
    """Expected reciprocal rank [Q] of the best positive, with ties in random order."""
    above, tied, positives = _places(scores_QC, same_QC)
    out = np.zeros(len(scores_QC))
    for q in range(len(out)):
        left = 1.0  # probability that no positive has come yet
        for i in range(tied[q] - positives[q] + 1 if positives[q] else 0):
            now = left * positives[q] / (tied[q] - i)
            out[q] += now / (above[q] + i + 1)
            left -= now
    return out


def _places(scores_QC, same_QC) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """For each query: candidates above the best positive, tied with it, and positives of these."""
    best = np.max(np.where(same_QC, scores_QC, -np.inf), axis=1, keepdims=True)
    equal = scores_QC == best
    return np.sum(scores_QC > best, axis=1), equal.sum(axis=1), (equal & same_QC).sum(axis=1)
