"""Decoding: how one stream of a generation plan is decoded, and when, in what portions."""

from __future__ import annotations

import dataclasses
from typing import Annotated, Literal

import numpy as np

from mmjax.config import ranges
from mmjax.typing import TokenSpec

__all__ = ["Decoding"]

SAMPLED_STEPS = 8  # of a grid whose tokens are drawn and not told otherwise


@dataclasses.dataclass(frozen=True, kw_only=True)
class Decoding:
    """One item of a generation plan: a stream, and how it is decoded.

    Fields:
      stream: name of the stream.
      scheme: `maskgit` predicts all unknown tokens in each step and keeps the surest (Chang et al.
        2022); `roar` predicts random ones and keeps them (4M, Mizrahi et al. 2023);
        `autoregressive` goes left to right; `auto` = the last for sequences, else the first.
      steps: of a parallel scheme, at most one a token; 0 = one at temperature 0, else eight.
      schedule: share of the tokens that is still unknown after each step: falling as a `cosine`
        (few tokens first) or evenly (`linear`).
      temperature: 0 = the most probable token, 1 = as the model says.
      temperature_schedule: `constant`; `linear` in the share of unknown tokens; or
        `onex:MIN:POWER`, towards MIN in the share, times a power law x^-POWER over the steps (4M).
      top_k, top_p: only so many tokens, or the most probable ones that together reach top_p
        (Holtzman et al. 2020), are drawn from; 0 and 1 = all.
      guidance: logits are u + guidance (c - u), c with and u without the known streams
        (classifier-free guidance, Ho and Salimans 2022); 1 = off.
      beams: of a sequence at temperature 0, the beginnings that are followed at once; the most
        probable whole is kept (beam search). 1 = the most probable token each time.
      rerank: of the wholes of `beams`, the one with the largest log-probability + rerank * scale *
        cosine is kept, with the similarity of the contrastive tasks to the known streams (as
        DALL-E, Ramesh et al. 2021, by CLIP); 1 = logits of both objectives count alike, 0 = off.
    """

    stream: str
    scheme: Literal["auto", "maskgit", "roar", "autoregressive"] = "auto"
    steps: ranges.Natural = 0
    schedule: Literal["cosine", "linear"] = "cosine"
    temperature: ranges.NonNegative = 0.0
    temperature_schedule: str = "constant"
    top_k: ranges.Natural = 0
    top_p: Annotated[float, ranges.Range(0, 1, has_low=False)] = 1.0
    guidance: ranges.NonNegative = 1.0
    beams: ranges.Count = 1
    rerank: ranges.NonNegative = 0.0

    def __post_init__(self):
        ranges.check(self, f"Decoding of {self.stream!r}")
        choices = {
            "scheme": ("auto", "maskgit", "roar", "autoregressive"),
            "schedule": ("cosine", "linear"),
        }
        for name, allowed in choices.items():
            if getattr(self, name) not in allowed:
                self._refuse(name, f"is unknown; use {', '.join(allowed)}")
        if self.beams > 1 and self.temperature:
            self._refuse("beams", f"goes with temperature=0, not {self.temperature}")
        if self.rerank and self.beams == 1:
            self._refuse("rerank", "chooses among beams; use beams=4 or more")
        self._parse_schedule()

    def _refuse(self, field: str, rule: str):
        value = getattr(self, field)
        raise ValueError(f"Decoding of {self.stream!r}: {field}={value!r} {rule}.")

    def _parse_schedule(self) -> tuple[str, float, float]:
        """Kind, minimum and power of the temperature."""
        kind, *numbers = self.temperature_schedule.split(":")
        try:
            low, power = map(float, numbers) if kind == "onex" else (0.0, 0.0)
            good = kind in ("constant", "linear", "onex") and (kind == "onex" or not numbers)
        except ValueError:
            low, power, good = 0.0, 0.0, False
        if not good or not (low >= 0 and power >= 0):
            rule = "is unknown; use constant, linear or onex:MIN:POWER, such as onex:0.5:0.5"
            self._refuse("temperature_schedule", rule)
        return kind, low, power

    def resolved(self, spec: TokenSpec) -> Decoding:
        """With scheme and steps settled for a stream.

        Raises ValueError when the stream cannot be decoded in this way.
        """
        if not spec.vocab_size:
            raise ValueError(
                f"Decoding of {self.stream!r}: the stream is continuous (vocab_size=0), and only"
                " ids are decoded; want a stream of codes with the same content."
            )
        is_sequence = spec.kind == "sequence"
        scheme = self.scheme
        if scheme == "auto":
            scheme = "autoregressive" if is_sequence else "maskgit"
        if is_sequence != (scheme == "autoregressive"):
            fit = "autoregressive" if is_sequence else "maskgit or roar"
            self._refuse("scheme", f"does not fit kind={spec.kind!r}; use {fit}, or auto")
        if is_sequence:
            if self.steps or self.temperature_schedule != "constant":
                raise ValueError(
                    f"Decoding of {self.stream!r}: steps={self.steps} and temperature_schedule="
                    f"{self.temperature_schedule!r} are of parallel schemes, but a sequence is"
                    " decoded token by token; leave them out."
                )
            return dataclasses.replace(self, scheme=scheme)
        if self.beams > 1:
            self._refuse("beams", f"is for sequences, not kind={spec.kind!r}; leave it at 1")
        steps = self.steps or (SAMPLED_STEPS if self.temperature else 1)
        return dataclasses.replace(self, scheme=scheme, steps=min(steps, spec.max_tokens))

    def counts(self, total: int) -> np.ndarray:
        """Tokens of each step, all 1 or more, `total` in all; steps rounded to none are left out.

        Cosine: round(total * (share_i - share_i+1)), share_i = (1 + cos(pi i / steps)) / 2, the
        rest in the last step. Linear: equal parts, the larger first.
        """
        if self.schedule == "linear":
            base, more = divmod(total, self.steps)
            counts = [base + (i < more) for i in range(self.steps)]
        else:
            share = (1 + np.cos(np.pi * np.arange(self.steps) / self.steps)) / 2
            counts, left = [], total
            for part in share[:-1] - share[1:]:
                counts.append(min(round(total * float(part)), left))
                left -= counts[-1]
            counts.append(left)
        return np.asarray([c for c in counts if c], np.int32)

    def temperatures(self, counts_S: np.ndarray) -> np.ndarray:
        """Temperature of each step, float32."""
        kind, low, power = self._parse_schedule()
        left_S = 1 - (np.cumsum(counts_S) - counts_S) / max(counts_S.sum(), 1)  # before each step
        if kind == "constant":
            out_S = np.full(len(counts_S), self.temperature)
        elif kind == "linear":
            out_S = self.temperature * left_S
        else:
            y_S = np.linspace(1, 100, len(counts_S)) ** -power
            spread = y_S[0] - y_S[-1]
            y_S = (y_S - y_S[-1]) / spread if spread > 0 else np.ones_like(y_S)
            out_S = low + (self.temperature - low) * left_S * y_S
        return out_S.astype(np.float32)
