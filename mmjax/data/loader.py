"""The loader: batches of successive steps, prefetched and put on devices.

    stream = loader.open_stream(experiment, program, schedule, journal, step=start)
    place, batch, counts = next(stream)  # global arrays

One grain MapDataset over step numbers, sliced at the start: all tasks share its workers, and
batches are read in the order of steps. The batch of a step is a pure function of (seed, journal,
step), for any number of hosts and workers (`data.batches`).
"""

from __future__ import annotations

import collections
import itertools
from collections.abc import Iterator, Mapping
from concurrent import futures
from typing import Any

import numpy as np

from mmjax.data import batches as batches_lib
from mmjax.data import mixture, shuffle, tokens
from mmjax.data import rows as rows_lib
from mmjax.data.batches import Batches, Counts
from mmjax.data.reader import Reader, encode_sample
from mmjax.data.source import BadRecord
from mmjax.data.task import Sample, Task
from mmjax.errors import BadDataError
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

AHEAD = 2  # batches being put on devices, besides the one in use


class Stream:
    """Batches of successive steps, prefetched; `next` gives (place, batch, counts).

    Args:
      batches, start: what to read, and the first step.
      num_workers: processes; 0 = a thread. prefetch: batches made ahead; 0 = each on demand.
      sharding: of axis 0; if given, batches are global arrays, put on devices ahead by a thread.
    """

    def __init__(
        self,
        batches: Batches,
        start: int,
        *,
        num_workers: int = 0,
        prefetch: int = 4,
        sharding: Any = None,
    ):
        import grain

        data = grain.MapDataset.source(batches)[start:]  # type: ignore[arg-type]
        options = grain.ReadOptions(
            num_threads=min(prefetch, 1), prefetch_buffer_size=max(prefetch, 1)
        )
        data = data.to_iter_dataset(options)
        if num_workers:
            from absl import flags

            if not flags.FLAGS.is_parsed():
                flags.FLAGS.mark_as_parsed()  # grain's workers read them
            per_worker = max(1, prefetch // num_workers)
            data = data.mp_prefetch(
                grain.MultiprocessingOptions(
                    num_workers=num_workers, per_worker_buffer_size=per_worker
                )
            )
        how = {"num_workers": num_workers, "prefetch": prefetch, "sharding": sharding}
        self._opened = (batches, how)
        self._iterator, self._sharding = iter(data), sharding
        self._pool = futures.ThreadPoolExecutor(1) if sharding is not None else None
        self._ahead: collections.deque[futures.Future] = collections.deque()

    def __iter__(self) -> Stream:
        return self

    def __next__(self) -> tuple[mixture.Place, Batch, Counts]:
        if self._pool is None:
            return next(self._iterator)
        while len(self._ahead) < AHEAD:
            self._ahead.append(self._pool.submit(self._put))
        return self._ahead.popleft().result()

    def _put(self) -> tuple[mixture.Place, Batch, Counts]:
        place, batch, counts = next(self._iterator)
        return place, to_global(batch, self._sharding), counts

    def again(self, start: int, journal: mixture.Journal) -> Stream:
        """The stream from a step on, by another journal; this one ends."""
        self.close()
        batches, how = self._opened
        return Stream(batches.with_journal(journal), start, **how)

    def close(self) -> None:
        """Ends threads and worker processes."""
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)
        self._iterator.close()


def readers(
    tasks: Mapping[str, Task],
    modalities: Mapping[str, Modality],
    vocabulary: Vocabulary,
    split: str,
    max_bad_fraction: float,
    folder: Any = None,
) -> dict[str, Reader]:
    """A reader for each task; tasks with equal sources share one.

    Ids of learned codes are computed here, before any worker starts, and kept in `folder`.
    """
    distinct: list[Reader] = []
    out = {}
    for name, task in tasks.items():
        reader = next((r for r in distinct if r.source == task.source), None)
        if reader is None:
            used = [batches_lib.used_streams(t) for t in tasks.values() if t.source == task.source]
            streams = dict.fromkeys(itertools.chain.from_iterable(used))
            reader = Reader(
                source=task.source,
                split=split,
                modalities=modalities,
                vocabulary=vocabulary,
                max_bad_fraction=max_bad_fraction,
                tokens=tokens.prepare(modalities, streams, vocabulary, task.source, split, folder),
            )
            distinct.append(reader)
        out[name] = reader
    return out


def open_stream(
    experiment: Any,
    program: Any,
    schedule: mixture.BoundMixture,
    journal: mixture.Journal,
    step: int,
) -> Stream:
    """The stream of a training run from a step on: global batches; this host reads its part.

    A change of the journal needs a new stream: `Stream.again`.
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
            experiment.guards.allowed_bad,
            program.folder,
        ),
        program.vocabulary,
        experiment.seed,
        groups,
    )
    settings = experiment.data
    return Stream(
        batches,
        step,
        num_workers=settings.num_workers,
        prefetch=settings.prefetch,
        sharding=sharding,
    )


def host_groups(num_groups: int, sharding: Any) -> range:
    """Groups held by the devices of this host under a sharding of axis 0."""
    places = sharding.addressable_devices_indices_map((num_groups,)).values()
    held = sorted({range(num_groups)[place[0]] for place in places}, key=lambda r: r.start)
    for a, b in itertools.pairwise(held):
        if a.stop != b.start:
            raise ValueError(
                f"Mesh: this host holds groups {a} and {b} of {num_groups}, which are not"
                " neighbours; order the devices so that the batch axes run over hosts."
            )
    return range(held[0].start, held[-1].stop)


def to_global(batch: Batch, sharding: Any) -> Batch:
    """Global arrays, sharded on axis 0, from this host's rows of a batch (NumPy)."""
    import jax

    if jax.process_count() == 1:
        return jax.device_put(batch, sharding)
    return jax.tree.map(lambda x: jax.make_array_from_process_local_data(sharding, x), batch)


def example_batch(
    task: Task, variant: str, modalities: Mapping[str, Modality], vocabulary: Vocabulary
) -> Batch:
    """A global batch without samples, with the structure, shapes and types of real ones."""
    del modalities  # the vocabulary holds their specs
    shape = task.shape(variant)
    samples = [_nothing(task)] * shape.group_rows
    batch, _ = shape.layout.build(samples, task.streams(), vocabulary)
    return rows_lib.concatenate([batch] * (shape.batch_size // shape.group_rows))


def _nothing(task: Task) -> Sample:
    """A sample without pieces, of weight 0."""
    pieces = dict.fromkeys(batches_lib.used_streams(task))
    return Sample(pieces, 0, (0, 0), seed=0, weight=0.0)


def eval_batches(
    program: Any, task: str, split: str, num_batches: int | None = None
) -> Iterator[Batch]:
    """The first batches of a split as global arrays, in order, each record once.

    The last batch is filled up with samples of weight 0, which also replace bad records.
    """
    config, experiment = program.experiment.tasks[task], program.experiment
    key = ("readers", split)
    if key not in program.compiled:  # encoded once, then reused by later evaluations
        program.compiled[key] = readers(
            experiment.tasks,
            experiment.modalities,
            program.vocabulary,
            split,
            experiment.guards.allowed_bad,
            program.folder,
        )
    reader = program.compiled[key][task]
    shape = config.shape(next(iter(config.variant_weights())))
    mine = host_groups(shape.batch_size // shape.group_rows, program.batch_sharding)
    seed = batches_lib.task_key(experiment.seed, f"eval {task}")
    total = -(-len(reader) // shape.batch_size)
    for number in range(total if num_batches is None else min(total, num_batches)):
        first = number * shape.batch_size + mine.start * shape.group_rows
        records = range(first, first + len(mine) * shape.group_rows)
        samples = [_eval_sample(reader, config, record, seed) for record in records]
        batch, _ = batches_lib.build(samples, shape, config.streams(), program.vocabulary)
        yield to_global(batch, program.batch_sharding)


def _eval_sample(reader: Reader, task: Task, record: int, seed: int) -> Sample:
    if record >= len(reader):
        return _nothing(task)
    try:
        encoded = reader.read(record, batches_lib.used_streams(task))
    except BadRecord:
        return _nothing(task)
    draws = int(shuffle.seeds(seed, np.zeros(1), np.asarray([record]))[0])
    return Sample(encoded.pieces, encoded.identity, (record, 0), draws)
