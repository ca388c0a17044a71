"""The Source seam: random access to raw examples, with named splits."""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple, Protocol

from mmjax import console
from mmjax.typing import TokenSpec

HELD = "__tokens__"  # key of an example: stream -> list of its pieces, of the streams of `held`
MAX_NAME = 200  # characters of a record's name in messages


class BadRecord(Exception):
    """A record that cannot be used. `reason` is a short word for counts."""

    def __init__(self, reason: str, detail: str):
        # The message may quote the record's text, so it is kept to one line.
        detail = console.inline(detail)
        super().__init__(reason, detail)
        self.reason, self.detail = reason, detail


class Held(NamedTuple):
    """A stream whose tokens a source holds: its spec, and the folder of its tokenizer ("" = it has
    none)."""

    spec: TokenSpec
    tokenizer: str


class Records(Protocol):
    """An open split: random access to raw examples.

    `records[i]` raises BadRecord for a record that cannot be read. An optional method `key(i)`
    gives the name by which people can find the record.
    """

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> dict[str, Any]: ...


def key_of(records: Records, index: int) -> str:
    """The name of a record, or its number if records have no names."""
    key = getattr(records, "key", None)
    return str(index) if key is None else console.inline(key(index), MAX_NAME)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Source:
    """Base of all sources. Construction opens nothing.

    An example is a dict of raw values by field. Optional key `identity` (int): equal identities are
    positives of one another in contrastive tasks; without it every example has its own.
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

    def held(self) -> dict[str, Held]:
        """Streams of which examples hold the tokens themselves, under `HELD`, by name."""
        return {}

    def under(self, on_bad_shard: str) -> Source:
        """The source under `Guards.on_bad_shard` of a run; those without files are themselves."""
        del on_bad_shard
        return self

    def fingerprint(self) -> str:
        """Hash of everything that the examples depend on."""
        raise NotImplementedError(f"{type(self).__name__} must define fingerprint().")
