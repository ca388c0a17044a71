"""Ends a run that would wait for ever: for a lost host, a hung device, or data that do not come.

A thread with a monotonic clock looks at the signs of the other processes, and at how long the main
thread has been in its phase. Where a sign is overdue it writes the stacks of all threads and exits
with 69, which launchers start again at once: nothing in Python gets a thread out of a collective.
"""

from __future__ import annotations

import contextlib
import faulthandler
import os
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from typing import Any

from mmjax import console, files
from mmjax.errors import EXIT_CODES, HostLost, Preempted, RunError
from mmjax.parallel import distributed
from mmjax.parallel.peers import End, Peers
from mmjax.run.clock import Clock

__all__ = ["Watch", "watching"]

TICK = 0.5  # seconds between looks
BEAT = 2.0  # seconds between signs to other processes
KNOWN = 3  # phases of a kind before their length is judged
TIMES = 5  # a phase may last so many times the longest of its kind
INPUTS = 6  # what comes over a network may take so many times longer than a step
TELLING = 3.0  # seconds in which another process may tell why it ended
PARTING = 1.0  # seconds in which the main thread may end by itself before the watch ends it
LAST = 10.0  # seconds for which process 0 stays, after an error, until the others have ended
LOST = 69


class Watch:
    """The threads that watch a run, and the clock of its main thread.

    Args:
      seconds: without a sign of another process or a step, after which the run ends; 0 = never.
      peers: what is known of the other processes; None = there are none.
      exits: whether a hung step ends this process; otherwise its stacks are written.
    """

    def __init__(self, folder: Any, seconds: float, peers: Peers | None, exits: bool):
        self.clock = Clock()
        self._folder, self._seconds, self._peers = folder, seconds, peers
        self._exits = exits or peers is not None
        self._closed = threading.Event()
        self._warned = False

    def start(self) -> None:
        """Starts the threads."""
        if self._peers is not None:
            threading.Thread(target=self._beat, daemon=True, name="mmjax peers").start()
        if self._seconds:
            threading.Thread(target=self._look, daemon=True, name="mmjax watch").start()

    def close(self) -> None:
        """Ends the threads; nothing is watched any more."""
        self._closed.set()

    # ---- the threads

    def _beat(self) -> None:
        assert self._peers is not None
        while not self._closed.is_set():
            with contextlib.suppress(Exception):  # its silence is what `_look` judges
                self._peers.beat()
            end = self._peers.ended
            if end is not None and end.process != self._peers.process:
                if self._closed.wait(PARTING):
                    return
                self._stay()
                self._exit(end.code, _told(end))
            self._closed.wait(BEAT)

    def _look(self) -> None:
        last, quiet_until = time.monotonic(), 0.0
        while not self._closed.wait(TICK):
            now = time.monotonic()
            if now - last > 2 * TICK + BEAT:  # this process was stopped itself, and all is old
                quiet_until = now + self._seconds
            last = now
            if now < quiet_until:
                continue
            self._judge_peers(self._seconds)
            self._judge_phase(now)

    def _judge_peers(self, seconds: float) -> None:
        silent = self._peers.silent(seconds) if self._peers else []
        if silent:
            named = ", ".join(map(str, silent[:8]))
            what = "process" if len(silent) == 1 else "processes"
            text = f"{what} {named} gave no sign for {seconds:g} s: a host was lost"
            self._tell(LOST, text, silent)
            self._exit(LOST, text, stacks=True)

    def _judge_phase(self, now: float) -> None:
        phase, since = self.clock.phase, self.clock.since
        limit = self.limit(phase)
        if now - since <= limit:
            self._warned = False
            return
        what = "batch came" if phase == "input" else "step ended"
        text = f"no {what} for {now - since:.0f} s, where {limit:.0f} s are allowed"
        if self._exits:
            # A step waits for a lost host from its last sign on, or up to a beat longer than that.
            self._judge_peers(self._seconds / 2)
            self._tell(LOST, text)
            self._exit(LOST, text, stacks=True)
        if not self._warned:
            self._warned = True
            console.say(f"mmjax: {text}; what each thread does:\n{_stacks()}")

    def limit(self, phase: str) -> float:
        """Seconds that a phase may last; infinite for those whose length cannot be foreseen."""
        recent = self.clock.recent(phase)
        if phase not in ("step", "input") or len(self.clock.recent("step")) < KNOWN:
            return float("inf")
        least = self._seconds * (INPUTS if phase == "input" else 1)
        return max(least, TIMES * max(recent, default=0.0))

    # ---- ends

    @contextlib.contextmanager
    def telling(self) -> Iterator[None]:
        """Tells the other processes of an error inside, before anything waits for them."""
        try:
            yield
        except BaseException as error:
            judged = self.failed(error)
            if judged is error:
                raise
            raise judged from error

    def failed(self, error: BaseException) -> BaseException:
        """Tells the others why this process ends; returns the error to raise.

        An error of a collective says only that another process is gone: what that one told counts.
        """
        if self._peers is None:
            return error
        if _is_of_a_collective(error):
            until = time.monotonic() + TELLING
            while self._peers.ended is None and time.monotonic() < until:
                with contextlib.suppress(Exception):
                    self._peers.beat()
                time.sleep(TICK / 5)
            end = self._peers.ended
            if end is not None and end.process != self._peers.process:
                self._stay()
                return _raised(end)
            error = HostLost(
                f"another process was lost ({_first_line(error)}); start the run again, which goes"
                " on from its last save."
            )
        if not isinstance(error, Preempted):
            self._tell(_code(error), str(error) or type(error).__name__)
        return error

    def _tell(self, code: int, text: str, silent: Sequence[int] = ()) -> None:
        """Tells the others why the run ends; nobody waits for those that are silent anyway."""
        if self._peers is None:
            return
        telling = threading.Thread(target=self._peers.end, args=(code, text), daemon=True)
        telling.start()  # a coordinator that is stopped would hold it for ever
        telling.join(TELLING)
        self._stay(silent)

    def _stay(self, silent: Sequence[int] = ()) -> None:
        """Process 0 ends last: its coordinator goes with it, and jax then aborts the others before
        they have told anything."""
        if self._peers is None or self._peers.process:
            return
        awaited, until = set(self._peers.others) - set(silent), time.monotonic() + LAST
        while awaited - distributed.gone() and time.monotonic() < until:
            with contextlib.suppress(Exception):
                self._peers.beat()  # they hear of the end from this process alone
            time.sleep(TICK / 5)

    def _exit(self, code: int, text: str, stacks: bool = False) -> None:
        if self._closed.is_set():
            return
        said = f"mmjax: {text}\n" + (f"What each thread was doing:\n{_stacks()}" if stacks else "")
        print(console.visible(said), file=sys.stderr, end="", flush=True)
        if stacks:
            process = self._peers.process if self._peers else 0
            with contextlib.suppress(Exception):
                path = self._folder / "logs" / f"host_{process}.log"
                path.parent.mkdir(parents=True, exist_ok=True)
                with files.replacing(path) as partial:
                    partial.write_text(said)
        os._exit(code)


@contextlib.contextmanager
def watching(folder: Any, seconds: float, exits: bool) -> Iterator[Watch]:
    """A watch over this process, and over the others where there are some."""
    store, peers = distributed.store(), None
    if store is not None:
        name = distributed.fresh("signs")
        peers = Peers(store, distributed.process(), distributed.count(), name)
    watch = Watch(folder, seconds, peers, exits)
    watch.start()
    try:
        yield watch
    finally:
        watch.close()


def _code(error: BaseException) -> int:
    return next((code for kind, code in EXIT_CODES.items() if isinstance(error, kind)), 1)


def _raised(end: End) -> BaseException:
    kinds = [kind for kind, code in EXIT_CODES.items() if code == end.code]
    kind: Any = kinds[0] if kinds and issubclass(kinds[0], Exception) else RunError
    return kind(_told(end))


def _told(end: End) -> str:
    return f"process {end.process} ended: {end.text}"


def _is_of_a_collective(error: BaseException) -> bool:
    """Whether jax says that another process, or the coordinator, is gone."""
    if not type(error).__name__.endswith("JaxRuntimeError"):
        return False
    signs = ("UNAVAILABLE", "ABORTED", "DEADLINE_EXCEEDED", "Gloo", "NCCL", "peer", "heartbeat")
    return any(sign in str(error) for sign in signs)


def _first_line(error: BaseException) -> str:
    return console.inline(str(error).strip().splitlines()[0] if str(error).strip() else "no word")


def _stacks() -> str:
    with tempfile.TemporaryFile("w+") as file:
        faulthandler.dump_traceback(file, all_threads=True)
        file.seek(0)
        return file.read()
