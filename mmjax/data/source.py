"""The Source seam: random access to raw examples, with named splits."""

from __future__ import annotations

import dataclasses
from typing import Any, Protocol

from mmjax import console

MAX_NAME = 200  # characters of the name of a record, where it is told


class BadRecord(Exception):
    """One record that cannot be used. `reason` is a short word for counts."""

    def __init__(self, reason: str, detail: str):
        # What is said of a record may hold text of the record: it stays a part of one line.
        detail = console.inline(detail)
        super().__init__(reason, detail)
        self.reason, self.detail = reason, detail


class Records(Protocol):
    """An opened split: random access to raw examples.

    `records[i]` raises BadRecord for a record that cannot be read. An optional method `key(i)`
    gives the name by which a person finds the record.
    """

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> dict[str, Any]: ...


def key_of(records: Records, index: int) -> str:
    """The name of a record; its number, when the records have no names."""
    key = getattr(records, "key", None)
    return str(index) if key is None else console.inline(key(index), MAX_NAME)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Source:
    """Base of all sources. Constructing one opens nothing.

    An example is a dict of raw values by field. Optional key `identity` (int): equal identities
    are positives of one another in contrastive tasks; without it every example is its own.
    """

    def splits(self) -> tuple[str, ...]:
        """Names of the splits."""
        raise NotImplementedError(f"{type(self).__name__} must define splits().")

    def keys(self) -> tuple[str, ...]:
        """Keys that an example may hold."""
        raise NotImplementedError(f"{type(self).__name__} must define keys().")

    def open(self, split: str) -> Records:
        """Random access to one split; picklable, cheap to open again in a worker process."""
        raise NotImplementedError(f"{type(self).__name__} must define open(split).")

    def fingerprint(self) -> str:
        """Hash of what the examples depend on."""
        raise NotImplementedError(f"{type(self).__name__} must define fingerprint().")
