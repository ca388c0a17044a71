"""Batches: the batch of any step as a pure function of (seed, journal, step).

A row of a task is a position in an endless sequence of epochs. Its content depends only on (seed,
task, epoch, record), never on hosts, workers or mesh.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence

import numpy as np

from mmjax.data import mixture, shuffle
from mmjax.data import rows as rows_lib
from mmjax.data.augment import Visit
from mmjax.data.reader import Reader
from mmjax.data.source import BadRecord, key_of
from mmjax.data.task import Sample, Shape, Streams, Task
from mmjax.errors import BadDataError
from mmjax.typing import Batch, Vocabulary

MAX_PROBES = 100  # records tried in place of a bad one
MAX_STEPS = 1 << 40

# (task, variant) -> groups that this host reads, in order; they need not be neighbours.
HostGroups = Mapping[tuple[str, str], Sequence[int]]
Counts = dict[str, float]


class Batches:
    """Random access to the batches of a run by step number; picklable.

    Args:
      schedule: which task runs at which step. journal: that of the run.
      readers: encoded examples by task; tasks of one source share one.
      vocabulary, seed: those of the run.
      groups: groups that this host reads, by (task, variant); None = all.
    """

    def __init__(
        self,
        schedule: mixture.BoundMixture,
        journal: mixture.Journal,
        readers: Mapping[str, Reader],
        vocabulary: Vocabulary,
        seed: int,
        groups: HostGroups | None = None,
    ):
        self.schedule, self.journal, self.readers = schedule, journal, dict(readers)
        self.vocabulary, self.seed, self.groups = vocabulary, seed, dict(groups or {})
        self.skips = {name: schedule.skips(name, journal) for name in schedule.tasks}
        self.keys = {name: task_key(seed, name) for name in schedule.tasks}

    def __len__(self) -> int:
        return MAX_STEPS

    def with_journal(self, journal: mixture.Journal) -> Batches:
        """The same batches by another journal; readers, and what they have cached, are shared."""
        args = self.schedule, journal, self.readers, self.vocabulary, self.seed, self.groups
        return Batches(*args)

    def __getitem__(self, step: int) -> tuple[mixture.Place, Batch, Counts]:
        """Place of a step, this host's rows of its batch, and counts summed over those rows."""
        place = self.schedule.locate(step, self.journal)
        shape = self.schedule.tasks[place.task].shape(place.variant)
        num_groups = shape.batch_size // shape.group_rows
        mine = self.groups.get((place.task, place.variant), range(num_groups))
        first = self.schedule.first_row(place.task, place.n)
        rows = first + rows_lib.of_groups(mine, shape.group_rows)
        rows = mixture.skip_rows(rows, self.skips[place.task])
        samples, counts = self._samples(place.task, rows)
        task = self.schedule.tasks[place.task]
        batch, more = build(samples, shape, task.streams(), self.vocabulary)
        if place.n == 0 and (skipped := self.readers[place.task].num_skipped):
            counts = rows_lib.add_counts(counts, {"bad/shard": float(skipped)})
        return place, batch, rows_lib.add_counts(counts, more)

    def _samples(self, name: str, rows: np.ndarray) -> tuple[list[Sample], Counts]:
        reader, key, task = self.readers[name], self.keys[name], self.schedule.tasks[name]
        streams = used_streams(task)
        epochs, places = np.divmod(rows, len(reader))
        records = shuffle.permute(len(reader), key, epochs, places)
        seeds = shuffle.seeds(key, epochs, records)
        firsts = shuffle.seeds(key, np.zeros(1), records)
        encodings, counts = [], {}
        for i, (epoch, place) in enumerate(zip(epochs.tolist(), places.tolist(), strict=True)):
            record, last = int(records[i]), ""
            for probe in range(1, MAX_PROBES + 2):
                # Several values are taken in turns over the epochs, from a random one on.
                turn = int(firsts[i]) + epoch
                visit = Visit(task.augment, int(seeds[i]), turn, task.positives_by)
                try:
                    encodings.append(reader.read(record, streams, visit))
                    break
                except BadRecord as bad:
                    counts = rows_lib.add_counts(counts, {f"bad/{bad.reason}": 1.0})
                    last = f"record {key_of(reader.records, record)}: {bad.reason} ({bad.detail})"
                # Another bijection at the same place, independent of the other rows.
                record = int(shuffle.permute(len(reader), key + probe, epoch, place)[0])
                seeds[i : i + 1] = shuffle.seeds(key, epochs[i : i + 1], np.asarray([record]))
                firsts[i : i + 1] = shuffle.seeds(key, np.zeros(1), np.asarray([record]))
            else:
                raise BadDataError(
                    f"Source {type(reader.source).__name__}, split {reader.split!r}: {MAX_PROBES}"
                    f" records in a row were bad, the last being {last}."
                )
            records[i] = record
        ids = zip(records.tolist(), epochs.tolist(), strict=True)
        samples = [
            Sample(encoded.pieces, encoded.identity, sample, seed)
            for encoded, sample, seed in zip(encodings, ids, seeds.tolist(), strict=True)
        ]
        for stream in streams:
            if (modality := reader.modalities[stream]).is_augmented:
                for sample in samples:
                    if (piece := sample.pieces[stream]) is not None:
                        sample.pieces[stream] = modality.augment(piece, sample.rng)
        return samples, counts


def task_key(seed: int, name: str) -> int:
    """63 hash bits of a task, the same on all hosts and Python versions."""
    digest = hashlib.sha256(f"{seed} {name}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def used_streams(task: Task) -> tuple[str, ...]:
    """Inputs, then streams that are targets only."""
    return tuple(dict.fromkeys((*task.inputs, *task.targets)))


def build(
    samples: Sequence[Sample], shape: Shape, streams: Streams, vocabulary: Vocabulary
) -> tuple[Batch, Counts]:
    """Builds one batch from whole groups of samples, and sums counts over the groups."""
    num_groups = len(samples) // shape.group_rows
    return shape.layout.build_groups(samples, streams, vocabulary, num_groups)
