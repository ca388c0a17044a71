"""Where the time of a run has gone, over all of its starts: productive steps, and the rest.

Each logged row holds the seconds that its start had spent on each phase by then (`time/<phase>`),
as does a row for each save. A resume drops rows after the checkpoint that it goes on from, so what
lies between the last row that is kept of one start and the beginning of the next was lost: steps
that ran again, and the time in which nothing ran. So all parts add up to the time since the first
start.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping
from typing import Any

__all__ = ["PARTS", "budget", "goodput"]

PREFIX = "time/"
PARTS = {  # what a phase is called here
    "productive": "step",
    "data wait": "input",
    "compile": "compile",
    "evaluate": "evaluate",
    "save": "save",
    "start": "start",
    "lost to restarts": "",
}
SAME = 2.0  # seconds by which the beginning of a start may differ between its rows: clocks drift


def budget(rows: Iterable[Mapping[str, Any]]) -> dict[str, float]:
    """Seconds by part; they add up to the time between the first start and the last row.

    Args:
      rows: of `metrics.jsonl`, in order. Without times (an older run) the result is empty.
    """
    starts: list[tuple[float, float, dict[str, float]]] = []  # begin, last row, seconds by phase
    for row in rows:
        spent = {
            name.removeprefix(PREFIX): float(value)
            for name, value in row.items()
            if name.startswith(PREFIX) and value is not None
        }
        if not spent or not isinstance(row.get("time"), (int, float)):
            continue
        end = float(row["time"])
        begin = end - sum(spent.values())
        if starts and abs(starts[-1][0] - begin) <= SAME:
            starts[-1] = (starts[-1][0], end, spent)
        else:
            starts.append((begin, end, spent))
    if not starts:
        return {}
    out = {
        part: sum(spent.get(phase, 0.0) for _, _, spent in starts) for part, phase in PARTS.items()
    }
    lost = [later[0] - earlier[1] for earlier, later in itertools.pairwise(starts)]
    out["lost to restarts"] = sum(max(0.0, seconds) for seconds in lost)
    return out


def goodput(parts: Mapping[str, float]) -> float:
    """Share of the time that went into steps; 0 where no time is known."""
    total = sum(parts.values())
    return parts.get("productive", 0.0) / total if total else 0.0
