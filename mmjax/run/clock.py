"""What the main thread of a run is doing, and the seconds that it has spent on each thing."""

from __future__ import annotations

import collections
import contextlib
import time
from collections.abc import Iterator

__all__ = ["Clock"]

RECENT = 100  # phases of a kind whose length is remembered


class Clock:
    """Phases of a run, one at a time: `start`, `compile`, `input`, `step`, `save`, `evaluate`.

    Fields:
      phase: the current one. since: when it began, by `time.monotonic`.
    """

    def __init__(self):
        self.phase, self.since = "start", time.monotonic()
        self._seconds: dict[str, float] = collections.defaultdict(float)
        self._recent: dict[str, collections.deque[float]] = {}

    @contextlib.contextmanager
    def during(self, phase: str) -> Iterator[None]:
        """A phase inside another one, which goes on afterwards."""
        before = self.phase
        self.enter(phase)
        try:
            yield
        finally:
            self.enter(before)

    def enter(self, phase: str) -> float:
        """Begins a phase, which ends the one before it; returns the seconds that this one took."""
        now = time.monotonic()
        spent = now - self.since
        self._seconds[self.phase] += spent
        if self.phase not in self._recent:
            self._recent[self.phase] = collections.deque(maxlen=RECENT)
        self._recent[self.phase].append(spent)
        self.phase, self.since = phase, now
        return spent

    def recent(self, phase: str) -> list[float]:
        """Seconds that the last phases of a kind took."""
        return list(self._recent.get(phase, ()))

    def seconds(self) -> dict[str, float]:
        """Seconds in each phase so far, the current one included."""
        out = dict(self._seconds)
        out[self.phase] = out.get(self.phase, 0.0) + time.monotonic() - self.since
        return out

    def metrics(self) -> dict[str, float]:
        """`seconds` by the names that rows of metrics have, which `run.goodput` reads."""
        return {f"time/{phase}": seconds for phase, seconds in self.seconds().items()}
