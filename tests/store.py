"""The store of the coordinator, in memory: for threads that stand for processes."""

from __future__ import annotations

import collections
import threading
import time


class Shared:
    """What all threads share."""

    def __init__(self, count: int):
        self.texts: dict[str, str] = {}
        self.changed = threading.Condition()
        self.barriers = collections.defaultdict(lambda: threading.Barrier(count))
        self.is_stopped = False  # then nothing answers


class Store:
    """`distributed.Store` of one thread, which counts its round trips."""

    def __init__(self, shared: Shared):
        self._shared, self.round_trips = shared, 0

    def _come(self) -> None:
        self.round_trips += 1
        while self._shared.is_stopped:
            time.sleep(0.01)

    def put(self, key: str, value: str) -> None:
        self._come()
        with self._shared.changed:
            self._shared.texts[key] = value
            self._shared.changed.notify_all()

    def get(self, key: str, seconds: float) -> str:
        self._come()
        with self._shared.changed:
            if not self._shared.changed.wait_for(lambda: key in self._shared.texts, seconds):
                raise TimeoutError(key)
            return self._shared.texts[key]

    def below(self, folder: str) -> dict[str, str]:
        self._come()
        start = f"{folder}/"
        with self._shared.changed:
            there = self._shared.texts.items()
            return {k.removeprefix(start): v for k, v in there if k.startswith(start)}

    def meet(self, name: str, seconds: float) -> None:
        self._come()
        with self._shared.changed:
            barrier = self._shared.barriers[name]
        try:
            barrier.wait(seconds)
        except threading.BrokenBarrierError:
            raise TimeoutError(name) from None
