"""Metrics in a bucket, which has no append: parts that are written again as they grow.

    WORKDIR/metrics/<start>-<step>-<number>-<random>.jsonl

`start` counts the starts that have written metrics, `step` is the one that this start resumed from.
A row counts unless a later start resumed from a step before it: that one has run its step again.
"""

from __future__ import annotations

import logging
import re
import threading
import time
import uuid
from typing import Any

from mmjax import files
from mmjax.files import bucket

__all__ = ["FOLDER", "Newest", "Parts", "join", "names"]

FOLDER = "metrics"
ROWS, BYTES = 64, 1 << 18  # of a part; then the next one begins
PAUSE = 1.0  # seconds between two writes: an object may be written about once a second
PATIENCE = 300.0  # seconds for which rows may not be written before a run is told
NAME = re.compile(r"(\d{4,})-(\d{9,})-(\d{4,})-[0-9a-f]{8}\.jsonl")
_log = logging.getLogger("mmjax")


def names(workdir: Any) -> list[str]:
    """Names of the parts of a run, in order."""
    return sorted(name for name in bucket.names(workdir / FOLDER) if NAME.fullmatch(name))


def join(rows_of: dict[str, list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """The rows of a run, from those of its parts by name."""
    keys = {name: tuple(map(int, _match(name).groups())) for name in rows_of}
    resumed: dict[int, int] = {}
    for start, step, _ in keys.values():
        resumed[start] = step
    joined = []
    for name in sorted(rows_of, key=lambda n: (keys[n], n)):
        start = keys[name][0]
        last = min((s for k, s in resumed.items() if k > start), default=None)
        joined += [row for row in rows_of[name] if last is None or row["step"] <= last]
    return joined


def _match(name: str) -> re.Match[str]:
    match = NAME.fullmatch(name)
    assert match, name
    return match


class Parts:
    """Writes the rows of one start in a thread, so that no step waits for the network."""

    def __init__(self, workdir: Any):
        self._workdir, self._prefix = workdir, ""
        self._name, self._lines, self._number = "", [], 0
        self._news, self._guard = threading.Event(), threading.Condition()
        self._written = self._added = 0  # rows
        self._error: BaseException | None = None
        self._since: float | None = None  # of the first write that failed
        self._ended = False
        self._thread: threading.Thread | None = None

    def rewind(self, step: int) -> None:
        """The rows that follow are of steps after this one; rows of such steps count no more."""
        starts = [int(_match(name)[1]) for name in names(self._workdir)]
        if step == 0 and starts:
            why = "no checkpoint was saved, so the run starts anew"
            files.quarantine(self._workdir / FOLDER, self._workdir, why)
        self._prefix = f"{max(starts, default=0) + 1:04}-{step:09}"

    def add(self, line: str) -> None:
        """Takes a row; raises what made writing fail for long."""
        self._raise()
        with self._guard:
            self._lines.append(line)
            self._added += 1
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, daemon=True, name="metrics")
                self._thread.start()
        self._news.set()

    def flush(self) -> None:
        """Waits until all rows that were added are in the bucket."""
        with self._guard:
            wanted = self._added
            while self._written < wanted and self._error is None:
                self._news.set()
                self._guard.wait(PAUSE)
        self._raise()

    def close(self) -> None:
        """Writes what is left and ends the thread."""
        self._ended = True
        self._news.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def _raise(self) -> None:
        if self._error is not None:
            error, self._error = self._error, None
            raise error

    def _run(self) -> None:
        while not (self._ended and self._written == self._added):
            self._news.wait()
            self._news.clear()
            try:
                self._write()
                self._since = None
            except Exception as error:
                self._since = self._since or time.monotonic()
                if self._ended or time.monotonic() - self._since > PATIENCE:
                    with self._guard:
                        self._error = error
                        self._guard.notify_all()
                    if self._ended:
                        _log.warning("the last rows of metrics are lost: %s", error)
                        return
                self._news.set()
            if not self._ended:
                time.sleep(PAUSE)

    def _write(self) -> None:
        with self._guard:
            count, added = len(self._lines), self._added
            content = "".join(self._lines).encode()
        if count and self._written < added:
            if not self._name:
                number = f"{self._number:04}-{uuid.uuid4().hex[:8]}"
                self._name = f"{self._prefix}-{number}.jsonl"
            bucket.write(self._workdir / FOLDER / self._name, content)
        with self._guard:
            self._written = added
            if count >= ROWS or len(content) >= BYTES:
                del self._lines[:count]
                self._name, self._number = "", self._number + 1
            self._guard.notify_all()


class Newest:
    """Writes what a file holds now; in a bucket by a thread, which may leave older contents out."""

    def __init__(self, path: Any):
        self._path, self._content = path, ""
        self._guard, self._is_writing = threading.Lock(), False

    def put(self, text: str) -> None:
        """Replaces the content. A failure in a bucket is said, and stops nothing."""
        if not files.is_remote(self._path):
            with files.replacing(self._path) as partial:
                partial.write_text(text)
            return
        with self._guard:
            self._content = text
            if not self._is_writing:
                self._is_writing = True
                threading.Thread(target=self._write, name="newest").start()

    def _write(self) -> None:
        while True:
            with self._guard:
                text, self._content = self._content, ""
                self._is_writing = bool(text)
            if not text:
                return
            try:
                bucket.write(self._path, text.encode())
            except Exception as error:
                _log.warning("%s was not written: %s", self._path, error)
