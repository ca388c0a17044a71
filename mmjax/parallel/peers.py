"""Signs of life of the processes of a run, told through the coordinator.

Process 0 watches all others and they watch it: two round trips a process and beat, whatever their
number. A process that ends with an error tells why, and process 0 passes that on.
"""

from __future__ import annotations

import json
import time
from typing import NamedTuple

from mmjax.parallel import distributed

__all__ = ["End", "Peers"]


class End(NamedTuple):
    """How a process ended."""

    process: int
    code: int
    text: str


class Peers:
    """What a process knows about the others; `beat` runs in a thread, the rest anywhere."""

    def __init__(self, store: distributed.Store, process: int, count: int, name: str):
        self.process, self._store, self._count, self._name = process, store, count, name
        others = range(1, count) if process == 0 else (0,)
        now = time.monotonic()
        self._heard = dict.fromkeys(others, now)
        self._said = dict.fromkeys(others, "")
        self._beats, self._told = 0, now
        self.ended: End | None = None

    def beat(self) -> None:
        """Gives a sign and looks for those of the others. Raises what the store does."""
        self._sign()
        there = self._store.below(self._name if self.process == 0 else f"{self._name} main")
        now = self._told = time.monotonic()
        for process in self._heard:
            said = there.get(str(process), "")
            if said != self._said[process]:
                self._said[process], self._heard[process] = said, now
                end = json.loads(said)["end"]
                if end is not None and self.ended is None:
                    self.ended = End(*end)
                    self._sign()  # the others hear process 0 alone, which hears that this one knows

    def _sign(self) -> None:
        self._beats += 1
        own = {"beats": self._beats, "end": self.ended}
        where = f"{self._name} main" if self.process == 0 else self._name
        self._store.put(f"{where}/{self.process}", json.dumps(own))

    def end(self, code: int, text: str) -> None:
        """Tells the others at once that this process ends with an error."""
        if self.ended is None:
            self.ended = End(self.process, code, text)
        self.beat()

    @property
    def others(self) -> list[int]:
        """Processes that this one hears."""
        return list(self._heard)

    def silent(self, seconds: float) -> list[int]:
        """Processes without a sign for so long; the coordinator where it does not answer."""
        now = time.monotonic()
        if self.process and now - self._told > seconds:
            return [0]
        return [process for process, heard in self._heard.items() if now - heard > seconds]
