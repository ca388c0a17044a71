"""Signals that stop a run."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterator
from typing import Any

from mmjax.errors import Interrupted, Preempted
from mmjax.run.lock import lock  # its old place

__all__ = ["Stop", "lock", "stop_on_signals"]


# --------------------------------------------------------------------------- signals


class Stop:
    """Whether a stop was requested, and by which signal."""

    def __init__(self):
        self.signal_name = ""

    @property
    def requested(self) -> bool:
        """True after the first SIGINT or SIGTERM."""
        return bool(self.signal_name)

    def check(self, step: int) -> None:
        """Raises Preempted if a stop was requested; call it after the save of `step`."""
        if self.requested:
            raise Preempted(f"{self.signal_name}: saved step {step}; the same command goes on.")


@contextlib.contextmanager
def stop_on_signals() -> Iterator[Stop]:
    """Turns the first SIGINT or SIGTERM into `stop.requested`; a second SIGINT interrupts.

    Enter it after `jax.distributed.initialize`, which installs its own SIGTERM handler. Outside of
    the main thread signals are left alone.
    """
    stop = Stop()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return

    def handle(number: int, frame: Any) -> None:
        del frame
        if stop.requested and number == signal.SIGINT:
            signal.signal(signal.SIGINT, lambda *_: os._exit(130))  # a third one: no cleanup
            raise Interrupted("interrupted twice")
        if not stop.requested:
            stop.signal_name = signal.Signals(number).name
            text = f"mmjax: {stop.signal_name}: saving after this step, then stopping"
            again = " (again to stop at once)" if number == signal.SIGINT else ""
            os.write(sys.__stderr__.fileno() if sys.__stderr__ else 2, f"{text}{again}\n".encode())

    before = {s: signal.signal(s, handle) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler or signal.SIG_DFL)
