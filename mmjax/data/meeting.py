"""Whether the modalities of a task meet in records: where they never do, its loss is 0 for ever."""

from __future__ import annotations

import collections
import contextlib
from collections.abc import Mapping

from mmjax.config.error import ConfigError
from mmjax.data import measure
from mmjax.data.source import HELD, BadRecord
from mmjax.data.task import Task
from mmjax.modalities.modality import Modality

__all__ = ["check", "check_all"]

MOST = 10_000  # records that are looked at, until one is complete
STRIDE = 101  # between those looked at one after the other, as sets are often sorted by kind


def check_all(tasks: Mapping[str, Task], modalities: Mapping[str, Modality], split: str) -> None:
    """`check` of every task that is trained on."""
    for name, task in tasks.items():
        if task.weight or task.interval:
            check(name, task, modalities, split)


def check(name: str, task: Task, modalities: Mapping[str, Modality], split: str) -> None:
    """Returns at the first complete sample. Raises ConfigError if there is none, with counts."""
    records = task.source.open(split)
    rows = measure.evenly(len(records), MOST)
    streams = dict.fromkeys((*task.inputs, *task.targets))
    found: collections.Counter[str] = collections.Counter()
    for start in range(min(STRIDE, len(rows))):
        for row in rows[start::STRIDE]:
            try:
                example = records[row]
            except BadRecord:  # is counted when it is read to train on
                found["bad"] += 1
                continue
            held = example.get(HELD, {})
            there = [
                n for n in streams
                if n in held or _is_present(example.get(modalities[n].field or n), modalities[n])
            ]  # fmt: skip
            if task.is_complete(there):
                return
            found["+".join(there) or "none of these"] += 1
    if set(found) - {"bad"}:
        counts = ", ".join(f"{count} with {what}" for what, count in found.most_common(8))
        raise ConfigError(
            f"Task {name!r}: no complete sample in {len(rows)} of {len(records)} records of split"
            f" {split!r}, so it would train on nothing: inputs={task.inputs},"
            f" targets={task.targets}, but there are {counts}. Bring them together in one record,"
            " or leave this task out."
        )


def _is_present(value: object, modality: Modality) -> bool:
    with contextlib.suppress(ValueError):  # what is unreadable is there, and counted later
        return modality.given(value) is not None
    return True
