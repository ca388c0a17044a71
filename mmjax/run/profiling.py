"""Traces of steps for xprof: of those that a span names, or of the next ones after SIGUSR1."""

from __future__ import annotations

import contextlib
import signal
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from etils import epy

from mmjax import console, files

with epy.lazy_imports():
    import jax

__all__ = ["Profiler"]

AT_ONCE = 10  # steps that are traced after a signal


class Profiler:
    """Writes traces of this process to `WORKDIR/profile/<first step>/`; open them with xprof or
    TensorBoard.

    Args:
      steps: those to trace; empty = none but after a signal.
    """

    def __init__(self, folder: Any, steps: range):
        self._folder, self._steps = folder, steps
        self._asked = False
        self._to: Path | None = None

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        """SIGUSR1 asks for a trace of the next steps; nothing outside of the main thread."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return

        def ask(number: int, frame: Any) -> None:
            del number, frame
            self._asked = True

        before = signal.signal(signal.SIGUSR1, ask)
        try:
            yield
        finally:
            signal.signal(signal.SIGUSR1, before or signal.SIG_DFL)
            self.close()

    def before(self, step: int, state: Any) -> None:
        """Called before a step: begins a trace, or ends it once `state` is computed."""
        if self._asked and self._to is None:
            self._asked, self._steps = False, range(step, step + AT_ONCE)
        if self._to is None and step in self._steps:
            jax.block_until_ready(state)
            self._to = Path(tempfile.mkdtemp(prefix="mmjax-profile-"))
            jax.profiler.start_trace(self._to)
            self._steps = range(step, self._steps.stop)
        elif self._to is not None and step not in self._steps:
            jax.block_until_ready(state)
            self.close()

    def close(self) -> None:
        """Ends a trace that is being made."""
        if self._to is None:
            return
        made, self._to = self._to, None
        jax.profiler.stop_trace()
        first, self._steps = self._steps.start, range(0)
        target = self._folder / "profile" / str(first)
        for entry in files.entries(made):
            path = target / entry.name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(entry.path.read_bytes())
            entry.path.unlink()
        console.say(f"trace of the steps from {first} on: {target} (xprof --logdir {target})")
