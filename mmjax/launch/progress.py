"""How far a run has come, as its workdir tells: what decides whether another start makes sense."""

from __future__ import annotations

import json
import os
from typing import Any

from mmjax import files

__all__ = ["Progress"]

TAIL = 1 << 18  # bytes at the end of the metrics that are looked at: a part of a bucket's


class Progress:
    """The newest checkpoint and the last logged step of a workdir, seen again after each start."""

    def __init__(self, workdir: str):
        self._workdir = files.given(workdir)
        self._best = self._mark()

    def moved(self) -> bool:
        """Whether the run has come further than ever before."""
        now, best = self._mark(), self._best
        self._best = max(now[0], best[0]), max(now[1], best[1])
        return self._best != best

    def _mark(self) -> tuple[int, int]:
        """(newest checkpoint, last logged step); -1 where there is none."""
        try:
            saved = [int(n) for n in self._names("checkpoints") if n.isdecimal()]
            return max(saved, default=-1), self._logged()
        except Exception:  # storage that does not answer, in the words of any client, shows none
            return -1, -1

    def _names(self, folder: str) -> list[str]:
        try:
            found = (self._workdir / folder).iterdir()
            return [os.path.basename(str(path).rstrip("/")) for path in found]
        except (FileNotFoundError, NotADirectoryError):  # a bucket raises where nothing is
            return []

    def _logged(self) -> int:
        """Of `metrics.jsonl`, or of the newest part in a bucket: their names sort by time."""
        try:
            return _last_step(self._workdir / "metrics.jsonl")
        except FileNotFoundError:
            parts = sorted(self._names("metrics"))
            return _last_step(self._workdir / "metrics" / parts[-1]) if parts else -1


def _last_step(path: Any) -> int:
    with path.open("rb") as f:
        f.seek(max(0, f.seek(0, os.SEEK_END) - TAIL))
        lines = f.read(TAIL).splitlines()
    steps = [-1]
    for line in lines:
        try:
            steps.append(int(json.loads(line)["step"]))
        except (ValueError, KeyError, TypeError):  # cut by the window, or by a kill
            continue
    return max(steps)
