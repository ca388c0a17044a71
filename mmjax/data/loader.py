"""The loader: the batch of any step as a pure function of (seed, journal, step), prefetched.

    stream = loader.open_stream(experiment, program, schedule, journal, step=start)
    place, batch, counts = next(stream)          # NumPy, the rows of this host
    batch = loader.to_global(batch, program.batch_sharding)

One grain MapDataset over step numbers, sliced at the start: all tasks share its workers and are
read in the order in which they are needed. A row of a task is a place in an endless row of epochs;
what it holds depends on (seed, task, epoch, record) alone, never on hosts, workers or mesh.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from mmjax.data import mixture, shuffle
from mmjax.data import rows as rows_lib
from mmjax.data.reader import BadRecord, Reader, encode_sample
from mmjax.data.task import Sample, Shape, Streams, Task
from mmjax.lifecycle import BadDataError
from mmjax.modalities.modality import Modality
from mmjax.typing import Batch, Vocabulary

__all__ = [
    "BadDataError",
    "BadRecord",
    "Batches",
    "Reader",
    "Stream",
    "encode_sample",
    "eval_batches",
    "example_batch",
    "host_groups",
    "open_stream",
    "to_global",
]

MAX_PROBES = 100  # records tried in place of a bad one
MAX_STEPS = 1 << 40

Groups = Mapping[tuple[str, str], range]  # (task, variant) -> groups of this host
Counts = dict[str, float]


class Batches:
    """Random access to the batches of a run by step number; picklable.

    Args:
      schedule: which task takes which step. journal: of the run.
      readers: encoded examples by task; tasks of one source share one.
      vocabulary, seed: of the run.
      groups: what this host reads of each (task, variant); None = all.
    """

    def __init__(
        self,
        schedule: mixture.Schedule,
        journal: mixture.Journal,
        readers: Mapping[str, Reader],
        vocabulary: Vocabulary,
        seed: int,
        groups: Groups | None = None,
    ):
        self.schedule, self.journal, self.readers = schedule, journal, dict(readers)
        self.vocabulary, self.seed, self.groups = vocabulary, seed, dict(groups or {})
        self.skips = {name: schedule.skips(name, journal) for name in schedule.tasks}
        self.keys = {name: _key(seed, name) for name in schedule.tasks}

    def __len__(self) -> int:
        return MAX_STEPS

    def __getitem__(self, step: int) -> tuple[mixture.Place, Batch, Counts]:
        """Place of a step, this host's rows of its batch, and counts summed over its groups."""
        place = self.schedule.locate(step, self.journal)
        shape = self.schedule.tasks[place.task].shape(place.variant)
        num_groups = shape.batch_size // shape.group_rows
        mine = self.groups.get((place.task, place.variant), range(num_groups))
        first = self.schedule.first_row(place.task, place.n) + mine.start * shape.group_rows
        rows = np.arange(first, first + len(mine) * shape.group_rows)
        rows = mixture.skip_rows(rows, self.skips[place.task])
        samples, counts = self._samples(place.task, rows)
        task = self.schedule.tasks[place.task]
        batch, more = build(samples, shape, task.streams(), self.vocabulary)
        return place, batch, rows_lib.add_counts(counts, more)

    def _samples(self, name: str, rows: np.ndarray) -> tuple[list[Sample], Counts]:
        reader, key = self.readers[name], self.keys[name]
        streams = used_streams(self.schedule.tasks[name])
        epochs, places = np.divmod(rows, len(reader))
        records = shuffle.permute(len(reader), key, epochs, places)
        samples, counts = [], {}
        for epoch, place, record in zip(
            epochs.tolist(), places.tolist(), records.tolist(), strict=True
        ):
            for probe in range(1, MAX_PROBES + 2):
                try:
                    encoded = reader.read(record, streams)
                    break
                except BadRecord as bad:
                    counts = rows_lib.add_counts(counts, {f"bad/{bad.reason}": 1.0})
                    last = f"record {record}: {bad.reason} ({bad.detail})"
                # Another bijection of the same place; independent of what others read.
                record = int(shuffle.permute(len(reader), key + probe, epoch, place)[0])
            else:
                raise BadDataError(
                    f"Source {type(reader.source).__name__}, split {reader.split!r}: {MAX_PROBES}"
                    f" records in a row were bad, the last being {last}."
                )
            rng = np.random.default_rng([key, epoch, record])
            samples.append(Sample(encoded.pieces, encoded.identity, (record, epoch), rng))
        return samples, counts


def _key(seed: int, name: str) -> int:
    """63 bits for a task, equal on all hosts and versions of Python."""
    digest = hashlib.sha256(f"{seed} {name}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def used_streams(task: Task) -> tuple[str, ...]:
    """Inputs, then streams that are only targets."""
    return tuple(dict.fromkeys((*task.inputs, *task.targets)))


def build(
    samples: Sequence[Sample], shape: Shape, streams: Streams, vocabulary: Vocabulary
) -> tuple[Batch, Counts]:
    """Whole groups of samples to one batch."""
    batches, counts = [], {}
    for start in range(0, len(samples), shape.group_rows):
        group = samples[start : start + shape.group_rows]
        batch, more = shape.layout.build(group, streams, vocabulary)
        batches.append(batch)
        counts = rows_lib.add_counts(counts, more)
    return rows_lib.concatenate(batches), counts


class Stream:
    """Batches of successive steps, made ahead; `next` gives (place, batch, counts)."""

    def __init__(self, batches: Batches, start: int, *, num_workers: int = 0, prefetch: int = 4):
        import grain

        data = grain.MapDataset.source(batches)[start:]  # type: ignore[arg-type]
        options = grain.ReadOptions(num_threads=1, prefetch_buffer_size=max(prefetch, 1))
        data = data.to_iter_dataset(options)
        if num_workers:
            from absl import flags

            if not flags.FLAGS.is_parsed():
                flags.FLAGS.mark_as_parsed()  # grain's workers look at them
            data = data.mp_prefetch(
                grain.MultiprocessingOptions(
                    num_workers=num_workers,
                    per_worker_buffer_size=max(1, prefetch // num_workers),
                )
            )
        self._iterator = iter(data)

    def __iter__(self) -> Stream:
        return self

    def __next__(self) -> tuple[mixture.Place, Batch, Counts]:
        return next(self._iterator)

    def close(self) -> None:
        """Ends threads and worker processes."""
        self._iterator.close()


def readers(
    tasks: Mapping[str, Task],
    modalities: Mapping[str, Modality],
    vocabulary: Vocabulary,
    split: str,
    max_bad_fraction: float,
) -> dict[str, Reader]:
    """A reader for each task; tasks of equal sources share one."""
    found: list[Reader] = []
    out = {}
    for name, task in tasks.items():
        reader = next((r for r in found if r.source == task.source), None)
        if reader is None:
            reader = Reader(
                source=task.source,
                split=split,
                modalities=modalities,
                vocabulary=vocabulary,
                max_bad_fraction=max_bad_fraction,
            )
            found.append(reader)
        out[name] = reader
    return out


def open_stream(
    experiment: Any,
    program: Any,
    schedule: mixture.Schedule,
    journal: mixture.Journal,
    step: int,
) -> Stream:
    """The stream of a training run from a step on, with this host's rows.

    A change of the journal needs a new stream.
    """
    sharding, groups = program.batch_sharding, {}
    for name, task in experiment.tasks.items():
        for variant in task.variant_weights():
            shape = task.shape(variant)
            num_groups = shape.batch_size // shape.group_rows
            groups[name, variant] = host_groups(num_groups, sharding)
    batches = Batches(
        schedule.without_objectives(),
        journal,
        readers(
            experiment.tasks,
            experiment.modalities,
            program.vocabulary,
            experiment.data.train_split,
            experiment.guards.max_bad_fraction,
        ),
        program.vocabulary,
        experiment.seed,
        groups,
    )
    settings = experiment.data
    return Stream(batches, step, num_workers=settings.num_workers, prefetch=settings.prefetch)


def host_groups(num_groups: int, sharding: Any) -> range:
    """Groups that the devices of this host hold under a sharding of axis 0."""
    places = sharding.addressable_devices_indices_map((num_groups,)).values()
    found = sorted({range(num_groups)[place[0]] for place in places}, key=lambda r: r.start)
    for a, b in itertools.pairwise(found):
        if a.stop != b.start:
            raise ValueError(
                f"Mesh: this host holds groups {a} and {b} of {num_groups}, which are not"
                " neighbours; order the devices so that the batch axes run over hosts."
            )
    return range(found[0].start, found[-1].stop)


def to_global(batch: Batch, sharding: Any) -> Batch:
    """This host's rows of a batch (NumPy) to global arrays, sharded on axis 0."""
    import jax

    if jax.process_count() == 1:
        return jax.device_put(batch, sharding)
    return jax.tree.map(lambda x: jax.make_array_from_process_local_data(sharding, x), batch)


def example_batch(
    task: Task, variant: str, modalities: Mapping[str, Modality], vocabulary: Vocabulary
) -> Batch:
    """A global batch without any sample: the structure, shapes and types of the real ones."""
    del modalities  # the vocabulary holds their specs
    shape = task.shape(variant)
    samples = [_nothing(task)] * shape.group_rows
    batch, _ = shape.layout.build(samples, task.streams(), vocabulary)
    return rows_lib.concatenate([batch] * (shape.batch_size // shape.group_rows))


def _nothing(task: Task) -> Sample:
    """A sample without pieces, of weight 0."""
    pieces = dict.fromkeys(used_streams(task))
    return Sample(pieces, 0, (0, 0), np.random.default_rng(0), weight=0.0)


def eval_batches(
    program: Any, task: str, split: str, num_batches: int | None = None
) -> Iterator[Batch]:
    """This host's rows of the first batches of a split, in order, each record once.

    The last batch is filled with samples of weight 0, and so are places of bad records.
    """
    config, experiment = program.experiment.tasks[task], program.experiment
    key = ("readers", split)
    if key not in program.compiled:  # encoded once, however often the program is evaluated
        program.compiled[key] = readers(
            experiment.tasks,
            experiment.modalities,
            program.vocabulary,
            split,
            experiment.guards.max_bad_fraction,
        )
    reader = program.compiled[key][task]
    variant = next(iter(config.variant_weights()))
    shape, streams = config.shape(variant), used_streams(config)
    mine = host_groups(shape.batch_size // shape.group_rows, program.batch_sharding)
    key, total = _key(experiment.seed, f"eval {task}"), -(-len(reader) // shape.batch_size)
    for number in range(total if num_batches is None else min(total, num_batches)):
        samples = []
        first = number * shape.batch_size + mine.start * shape.group_rows
        for record in range(first, first + len(mine) * shape.group_rows):
            try:
                if record >= len(reader):
                    raise BadRecord("end", "the split ends here")
                encoded = reader.read(record, streams)
            except BadRecord:
                samples.append(_nothing(config))
                continue
            rng = np.random.default_rng([key, record])
            samples.append(Sample(encoded.pieces, encoded.identity, (record, 0), rng))
        yield build(samples, shape, config.streams(), program.vocabulary)[0]
