"""Masking budgets of many samples at once (4M-21, Bachmann et al. 2024).

A sample's random numbers come from its own generator in a fixed order (`draw`); everything else is
a pure function of these draws and of the lengths of the pieces. Array letters besides the legend of
`typing`: K masking policies, M streams of the plan, N flat tokens of a group.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np

from mmjax.config import ranges
from mmjax.data import spans
from mmjax.typing import TokenSpec

TINY = 1e-9  # share after a Dirichlet draw of 0: such a stream still takes leftover tokens
SIMULATED = 4096  # simulated samples, from which the room for targets is computed


@dataclasses.dataclass(frozen=True, kw_only=True)
class Policy:
    """One way to divide the token budgets over streams: Dirichlet shares.

    Fields:
      weight: how often the policy is drawn, relative to the others.
      input_alpha, target_alpha: concentration of every stream, or by stream name, where "*" is all
        others and a stream that is missing (or 0) gets nothing. Small = few streams.
      keep: how much of a sequence stays visible: with a `random` probability, `all`, or all or
        nothing (`binary`); lowered until the sequence fits its budget.
      one_input: only one stream, drawn uniformly, is visible, and it is not a target.
    """

    weight: ranges.NonNegative = 1.0
    input_alpha: ranges.NonNegative | dict[str, ranges.NonNegative] = 1.0
    target_alpha: ranges.NonNegative | dict[str, ranges.NonNegative] = 1.0
    keep: Literal["random", "all", "binary"] = "random"
    one_input: bool = False

    def __post_init__(self):
        ranges.check(self)
        if self.keep not in ("random", "all", "binary"):
            raise ValueError(f"Policy: keep={self.keep!r}; use 'random', 'all' or 'binary'.")

    def alpha(self, side: str, name: str) -> float:
        """Concentration of a stream as `input_alpha` or `target_alpha`."""
        alpha = getattr(self, side)
        return float(alpha.get(name, alpha.get("*", 0.0)) if isinstance(alpha, dict) else alpha)


class Masking(NamedTuple):
    """The static parameters of a task's masks; hashable, so that simulations are cached."""

    names: tuple[str, ...]  # inputs, then streams that are targets only
    lengths: tuple[int, ...]  # max_tokens of each stream
    sentinels: tuple[int, ...]  # number of sentinels of streams masked in spans; 0 = scattered
    share: tuple[float, ...]  # cumulative policy weights, last 1
    input_alpha: tuple[tuple[float, ...], ...]  # [K][M]
    target_alpha: tuple[tuple[float, ...], ...]
    keep: tuple[str, ...]  # [K]
    one_input: tuple[bool, ...]
    input_tokens: int
    target_tokens: int


class Draws(NamedTuple):
    """Random numbers of B samples; the position of each fixes its use."""

    uniform_BI: np.ndarray
    gamma_BZKM: np.ndarray  # Z = input, target; K = the shares, then M - 1 for leftover tokens


class Masks(NamedTuple):
    """Token counts by sample and stream, and the positions of kept tokens."""

    input_BM: np.ndarray
    target_BM: np.ndarray
    keep: dict[str, np.ndarray]  # [B, L] of streams masked in spans


def resolve(
    policies: Sequence[Policy],
    inputs: Sequence[TokenSpec],
    targets: Sequence[TokenSpec],
    input_tokens: int,
    target_tokens: int,
    in_runs: bool,
) -> Masking:
    """The masking of a task; `in_runs=False` scatters the masks of sequences too."""
    specs = {spec.name: spec for spec in (*inputs, *targets)}
    shown, wanted = {s.name for s in inputs}, {s.name for s in targets}
    total = sum(p.weight for p in policies)
    return Masking(
        names=tuple(specs),
        lengths=tuple(s.max_tokens for s in specs.values()),
        sentinels=tuple(
            s.num_sentinels if in_runs and spans.has_spans(s) else 0 for s in specs.values()
        ),
        share=tuple(np.cumsum([p.weight / total for p in policies]).tolist()),
        input_alpha=tuple(
            tuple(p.alpha("input_alpha", n) if n in shown else 0.0 for n in specs) for p in policies
        ),
        target_alpha=tuple(
            tuple(p.alpha("target_alpha", n) if n in wanted else 0.0 for n in specs)
            for p in policies
        ),
        keep=tuple(p.keep for p in policies),
        one_input=tuple(p.one_input for p in policies),
        input_tokens=input_tokens,
        target_tokens=target_tokens,
    )


def num_uniform(p: Masking) -> int:
    """Number of uniform draws of a sample: policy, one input, two a stream, one a token."""
    return 2 + 2 * len(p.names) + sum(p.lengths)


def token_draws(p: Masking, draws: Draws, stream: int) -> np.ndarray:
    """Uniform numbers [B, L] of the tokens of a stream."""
    start = 2 + 2 * len(p.names) + sum(p.lengths[:stream])
    return draws.uniform_BI[:, start : start + p.lengths[stream]]


def policy_of(p: Masking, uniform_BI: np.ndarray) -> np.ndarray:
    """Policy number of each sample."""
    policy_B = np.searchsorted(np.asarray(p.share), uniform_BI[:, 0], side="right")
    return np.minimum(policy_B, len(p.share) - 1)


@functools.lru_cache(maxsize=64)
def _gamma_shapes(p: Masking) -> np.ndarray:
    """Gamma shapes [policies, Z, K, M] of a sample's second draw."""
    alpha = np.asarray([p.input_alpha, p.target_alpha]).swapaxes(0, 1)
    return np.repeat(alpha[:, :, None, :], len(p.names), axis=2)


def draw(p: Masking, rngs: Sequence[np.random.Generator]) -> Draws:
    """Draws of one sample from each generator."""
    uniform_BI = np.empty((len(rngs), num_uniform(p)))
    for row, rng in zip(uniform_BI, rngs, strict=True):
        rng.random(out=row)
    shapes = _gamma_shapes(p)
    gamma = np.empty((len(rngs), *shapes.shape[1:]))
    for i, (rng, policy) in enumerate(zip(rngs, policy_of(p, uniform_BI).tolist(), strict=True)):
        gamma[i] = rng.standard_gamma(shapes[policy])
    return Draws(uniform_BI, gamma)


@functools.lru_cache(maxsize=64)
def mean_targets(p: Masking) -> tuple[float, ...]:
    """Mean target tokens of each stream over simulated samples with full-length pieces."""
    rng, chunk = np.random.Generator(np.random.PCG64(0)), 512
    length_BM = np.broadcast_to(np.asarray(p.lengths), (chunk, len(p.names)))
    total_M = np.zeros(len(p.names))
    for _ in range(SIMULATED // chunk):
        uniform_BI = rng.random((chunk, num_uniform(p)))
        gamma = rng.standard_gamma(_gamma_shapes(p)[policy_of(p, uniform_BI)])
        total_M += mask(p, Draws(uniform_BI, gamma), length_BM).target_BM.sum(axis=0)
    return tuple((total_M / SIMULATED).tolist())


def mask(p: Masking, draws: Draws, length_BM: np.ndarray) -> Masks:
    """Budgets, and the span masks of sequences; inputs and targets of a grid are disjoint.

    Tokens that a stream cannot take are offered to the others, so budgets are filled while tokens
    remain; if inputs could take every token, targets keep their proportion.
    """
    policy_B = policy_of(p, draws.uniform_BI)
    shown_BM = (np.asarray(p.input_alpha)[policy_B] > 0) & (length_BM > 0)
    wanted_BM = (np.asarray(p.target_alpha)[policy_B] > 0) & (length_BM > 0)
    one_B = np.asarray(p.one_input)[policy_B]
    shown_BM, wanted_BM = _choose_one(one_B, draws.uniform_BI[:, 1], shown_BM, wanted_BM)
    tokens_B = _input_tokens(p, length_BM, shown_BM, wanted_BM)
    share_BM, input_BM = allocate(
        draws.gamma_BZKM[:, 0], shown_BM, np.where(shown_BM, length_BM, 0), tokens_B
    )
    keep, capacity_BM = {}, length_BM.copy()
    for m, name in enumerate(p.names):
        if not p.sentinels[m]:
            continue
        prior_B = _keep_prior(p, policy_B, draws.uniform_BI[:, 2 + m])
        keep[name] = spans.fit_keep(
            token_draws(p, draws, m), prior_B, length_BM[:, m], input_BM[:, m], p.sentinels[m] - 1
        )
        kept_B, masked_B, runs_B = spans.count_spans(keep[name], length_BM[:, m])
        input_BM[:, m] = np.where(input_BM[:, m] > 0, kept_B + runs_B, 0)
        capacity_BM[:, m] = np.minimum(masked_B + runs_B, p.lengths[m])
        share_BM[:, m] = 0  # a masked sequence has a fixed length; the rest goes to the others
    input_BM = refill(input_BM, share_BM, np.where(shown_BM, length_BM, 0), tokens_B)
    scattered_M = np.asarray(p.sentinels) == 0
    capacity_BM = np.where(scattered_M, length_BM - input_BM, capacity_BM)
    _, target_BM = allocate(
        draws.gamma_BZKM[:, 1],
        wanted_BM,
        np.where(wanted_BM, capacity_BM, 0),
        np.full(len(length_BM), p.target_tokens),
    )
    return Masks(input_BM, target_BM, keep)


def _choose_one(one_B, uniform_B, shown_BM, wanted_BM):
    """Keeps one input stream and removes it from the targets, if a target remains."""
    others_BM = wanted_BM.sum(axis=1, keepdims=True) - wanted_BM > 0
    able_BM = shown_BM & others_BM
    count_B = able_BM.sum(axis=1)
    pick_B = np.minimum((uniform_B * count_B).astype(np.int64), np.maximum(count_B - 1, 0))
    chosen_BM = able_BM & (np.cumsum(able_BM, axis=1) - 1 == pick_B[:, None])
    one_B1 = (one_B & (count_B > 0))[:, None]
    return np.where(one_B1, chosen_BM, shown_BM), wanted_BM & ~(one_B1 & chosen_BM)


def _input_tokens(p: Masking, length_BM, shown_BM, wanted_BM) -> np.ndarray:
    """Input budget [B]; of streams on both sides a proportion is left for targets."""
    both_B = (length_BM * (shown_BM & wanted_BM)).sum(axis=1)
    shown_B = (length_BM * shown_BM).sum(axis=1)
    only_B = (length_BM * (wanted_BM & ~shown_BM)).sum(axis=1)
    share = p.target_tokens / (p.input_tokens + p.target_tokens)
    left_B = np.clip(p.target_tokens - only_B, 0, (both_B * share).astype(np.int64))
    return np.minimum(p.input_tokens, shown_B - left_B)


def _keep_prior(p: Masking, policy_B, uniform_B) -> np.ndarray:
    kinds = np.asarray([("random", "all", "binary").index(k) for k in p.keep])[policy_B]
    return np.choose(kinds, [uniform_B, np.ones_like(uniform_B), np.round(uniform_B)])


def allocate(gamma_BKM, allowed_BM, capacity_BM, tokens_B) -> tuple[np.ndarray, np.ndarray]:
    """Dirichlet shares [B, M] and integer budgets [B, M] that sum to at most `tokens_B`.

    Each token lost to rounding down goes to the largest stream of a fresh Dirichlet draw, so that a
    stream with a tiny concentration is not favoured; tokens beyond the capacity are redistributed.
    """
    gamma = np.where(allowed_BM[:, None, :], np.maximum(gamma_BKM, 1e-300), 0.0)
    total_B1 = gamma[:, 0].sum(axis=1, keepdims=True)
    share_BM = gamma[:, 0] / np.where(total_B1 > 0, total_B1, 1.0)
    share_BM = np.where(allowed_BM, np.maximum(share_BM, TINY), 0.0)
    budget_BM = np.floor(share_BM * tokens_B[:, None] + TINY).astype(np.int64)
    missing_B = np.where(total_B1[:, 0] > 0, tokens_B - budget_BM.sum(axis=1), 0)
    winner_BK = np.argmax(gamma[:, 1:], axis=2)
    row, k = np.nonzero(np.arange(winner_BK.shape[1]) < missing_B[:, None])
    np.add.at(budget_BM, (row, winner_BK[row, k]), 1)
    return share_BM, refill(np.minimum(budget_BM, capacity_BM), share_BM, capacity_BM, tokens_B)


def refill(budget_BM, share_BM, capacity_BM, tokens_B) -> np.ndarray:
    """Offers leftover tokens to streams with a share and room, until either runs out."""
    budget_BM = budget_BM.copy()
    while True:
        left_B = tokens_B - budget_BM.sum(axis=1)
        room_BM = np.where(share_BM > 0, capacity_BM - budget_BM, 0)
        rows = np.flatnonzero((left_B > 0) & (room_BM > 0).any(axis=1))
        if not len(rows):
            return budget_BM
        left, room = left_B[rows, None], room_BM[rows]
        share = np.where(room > 0, share_BM[rows], 0.0)
        share /= share.sum(axis=1, keepdims=True)
        add = np.minimum(np.floor(share * left).astype(np.int64), room)
        rank = np.argsort(np.argsort(-share, axis=1, kind="stable"), axis=1)
        one = ((rank < left) & (room > 0)).astype(np.int64)  # too few left to split by share
        budget_BM[rows] += np.where(add.sum(axis=1, keepdims=True) > 0, add, one)
