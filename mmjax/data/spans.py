"""Span masks of many sequences at once: masked runs become sentinels (T5, Raffel et al. 2020).

Pure functions of NumPy arrays; ids are local to the stream. L is the longest sequence, T = L + 2
the longest target, N the tokens of all rows, concatenated.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from mmjax.typing import TokenSpec

DECAY = 0.9  # of the keep probability, until the masked sequence fits its budget


def has_spans(spec: TokenSpec) -> bool:
    """Whether each masked run of the stream is replaced by a sentinel."""
    return spec.kind == "sequence" and spec.vocab_size > 0 and spec.num_sentinels > 1


def count_spans(keep_BL, length_B) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Kept tokens, masked tokens and masked runs of each sequence ([..., L] and [...])."""
    masked = ~keep_BL & (np.arange(keep_BL.shape[-1]) < length_B[..., None])
    start = run_starts(masked)
    return keep_BL.sum(axis=-1), masked.sum(axis=-1), start.sum(axis=-1)


def run_starts(masked_BL: np.ndarray) -> np.ndarray:
    """First token of each masked run."""
    start = masked_BL.copy()
    start[..., 1:] &= ~masked_BL[..., :-1]
    return start


def fit_keep(uniform_BL, prior_B, length_B, budget_B, max_runs: int) -> np.ndarray:
    """Kept tokens [B, L]: uniform < probability, which is lowered by 0.9 until the input fits.

    The input holds the kept tokens and a sentinel per masked run; nothing if the budget is 0.
    """
    valid_BL = np.arange(uniform_BL.shape[1]) < length_B[:, None]
    keep_BL = (uniform_BL < prior_B[:, None]) & valid_BL & (budget_B > 0)[:, None]
    kept_B, _, runs_B = count_spans(keep_BL, length_B)
    todo = np.flatnonzero((budget_B > 0) & ((kept_B + runs_B > budget_B) | (runs_B > max_runs)))
    power, many = 1, 16
    while len(todo) and power < 128:
        probability = prior_B[todo, None] * DECAY ** np.arange(power, power + many)
        trial = (uniform_BL[todo, None, :] < probability[:, :, None]) & valid_BL[todo, None, :]
        kept, _, runs = count_spans(trial, length_B[todo, None])
        fits = (kept + runs <= budget_B[todo, None]) & (runs <= max_runs)
        done = fits.any(axis=1)
        keep_BL[todo[done]] = trial[done, np.argmax(fits[done], axis=1)]
        todo, power = todo[~done], power + many
    keep_BL[todo] = False  # one sentinel always fits
    return keep_BL


class Split(NamedTuple):
    """Masked sequences, with sentinels: local ids."""

    input_ids_N: np.ndarray  # all rows, concatenated
    input_B: np.ndarray  # tokens of each row
    target_BT: np.ndarray  # sentinel, run, sentinel, run, ..., closing sentinel; T = L + 2
    sentinel_BT: np.ndarray  # bool: a sentinel that opens a run
    labels_B: np.ndarray  # tokens of the target after its first


def split_spans(token_BL, keep_BL, length_B, shown_B, first_sentinel: int) -> Split:
    """Input and target of masked sequences: each masked run is one sentinel in the input.

    `shown_B` False leaves the input empty; then every token is a target.
    """
    num_rows, width = token_BL.shape
    masked_BL = ~keep_BL & (np.arange(width) < length_B[:, None])
    start_BL = run_starts(masked_BL)
    run_BL = np.cumsum(start_BL, axis=1) - 1
    emit_BL = (keep_BL | start_BL) & shown_B[:, None]
    input_BL = np.where(keep_BL, token_BL, first_sentinel + run_BL)
    place_BL = np.cumsum(masked_BL, axis=1) + run_BL
    target_BT = np.zeros((num_rows, width + 2), np.int32)
    sentinel_BT = np.zeros((num_rows, width + 2), bool)
    row, at = np.nonzero(masked_BL)
    target_BT[row, place_BL[row, at]] = token_BL[row, at]
    row, at = np.nonzero(start_BL)
    target_BT[row, place_BL[row, at] - 1] = first_sentinel + run_BL[row, at]
    sentinel_BT[row, place_BL[row, at] - 1] = True
    runs_B = start_BL.sum(axis=1)
    labels_B = masked_BL.sum(axis=1) + runs_B
    target_BT[np.arange(num_rows), labels_B] = first_sentinel + runs_B
    return Split(input_BL[emit_BL], emit_BL.sum(axis=1), target_BT, sentinel_BT, labels_B)


def start_spans(split: Split, budget_B, uniform_B) -> np.ndarray:
    """Start of each target: a random sentinel that leaves enough tokens to fill the budget."""
    last_B1 = (split.labels_B - budget_B)[:, None]
    able_BT = split.sentinel_BT & (np.arange(split.target_BT.shape[1]) <= last_B1)
    count_B = able_BT.sum(axis=1)
    pick_B = np.minimum((uniform_B * count_B).astype(np.int64), np.maximum(count_B - 1, 0))
    chosen_BT = able_BT & (np.cumsum(able_BT, axis=1) - 1 == pick_B[:, None])
    return np.argmax(chosen_BT, axis=1)


def noise(uniform_BI, length_B, width: int, counts) -> np.ndarray:
    """Kept tokens [B, width] of T5 span corruption.

    Masked and kept tokens are both cut at random places; kept segments at the two ends may be
    empty, so that the end token is not always masked.

    Args:
      uniform_BI: I = 2 (width + 2) uniform numbers per row.
      counts: length -> (masked tokens, masked runs), such as `noise_counts`.
    """
    keep_BL, half = np.zeros((len(length_B), width), bool), width + 2
    for keep, uniform, length in zip(keep_BL, uniform_BI, length_B.tolist(), strict=True):
        masked, runs = counts(length)
        if not runs:
            keep[:length] = True
            continue
        hidden = _segments(masked, runs, uniform[:half])
        shown = _segments(length - masked + 2, runs + 1, uniform[half:])
        shown[0] -= 1
        shown[-1] -= 1
        lengths = np.stack([shown, np.append(hidden, 0)], axis=1).reshape(-1)
        keep[:length] = np.repeat(np.arange(len(lengths)) % 2 == 0, lengths)
    return keep_BL


def noise_counts(length: int, rate: float, mean_length: float, max_runs: int) -> tuple[int, int]:
    """Masked tokens and masked runs of a sequence; at least one of each unless it is empty."""
    masked = min(max(round(length * rate), 1), length)
    runs = min(max(round(masked / mean_length), 1), masked, length - masked + 1, max_runs)
    return masked, runs


def _segments(total: int, parts: int, uniform: np.ndarray) -> np.ndarray:
    """Random lengths of `parts` segments, each at least 1, that sum to `total`."""
    cuts = np.sort(np.argsort(uniform[: total - 1], kind="stable")[: parts - 1]) + 1
    return np.diff(np.concatenate([[0], cuts, [total]]))
