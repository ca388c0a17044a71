"""Alarms of a run: what wastes its time, with a remedy and the page that tells more."""

from __future__ import annotations

from collections.abc import Mapping

from mmjax.run import goodput

__all__ = ["Alarms"]

DOCS = "https://github.com/mmjax/mmjax/tree/main/docs"
ENOUGH = 60.0  # seconds of a run before its shares mean anything
WAIT, SAVE, EVALUATE, SKIPPED = 0.2, 0.1, 0.4, 0.1  # shares above which an alarm is given
REMEDIES = {
    "data wait": (
        "{:.0%} of the time went into waiting for data; raise data.num_workers or data.prefetch, or"
        " compute tokens ahead",
        "data.md#how-fast",
    ),
    "save": (
        "{:.0%} of the time went into saving; raise checkpoint.every, or save to a faster disk",
        "run_directory.md",
    ),
    "evaluate": (
        "{:.0%} of the time went into evaluation; raise `every` of the evaluators, or give them"
        " fewer examples",
        "evaluation.md",
    ),
    "skipped": (
        "{:.0%} of the steps of a task were skipped, as their loss or gradient was not finite;"
        " lower learning_rate or set grad_clip_norm",
        "errors.md",
    ),
}


class Alarms:
    """Gives each alarm once, and again when it had been silent for a log."""

    def __init__(self):
        self._given: set[str] = set()

    def lines(self, row: Mapping[str, float]) -> list[str]:
        """New alarms of a logged row, which holds the times of this start."""
        found = _found(row)
        new = [name for name in found if name not in self._given]
        self._given = set(found)
        return [
            f"warning: {REMEDIES[n][0].format(found[n])} ({DOCS}/{REMEDIES[n][1]})" for n in new
        ]


def _found(row: Mapping[str, float]) -> dict[str, float]:
    spent = {name: row.get(f"time/{phase}", 0.0) for name, phase in goodput.PARTS.items() if phase}
    worked = spent["productive"] + spent["data wait"] + spent["save"] + spent["evaluate"]
    out = {}
    if worked > ENOUGH:
        for name, most in (("save", SAVE), ("evaluate", EVALUATE)):
            if spent[name] / worked > most:
                out[name] = spent[name] / worked
        if row.get("data/wait_fraction", 0.0) > WAIT:
            out["data wait"] = row["data/wait_fraction"]
    skipped = [value for name, value in row.items() if name.endswith("/skipped")]
    if max(skipped, default=0.0) > SKIPPED:
        out["skipped"] = max(skipped)
    return out
