"""The loader: batches of successive steps, prefetched and put on devices.

    stream = loader.open_stream(experiment, program, schedule, journal, step=start)
    place, batch, counts = next(stream)  # global arrays

One grain MapDataset over step numbers, sliced at the start: all tasks share its workers, and
batches are read in the order of steps. The batch of a step is a pure function of (seed, journal,
step), for any number of hosts and workers (`data.batches`).
"""

from __future__ import annotations

import collections
import dataclasses
import functools
import itertools
import math
from collections.abc import Iterator, Mapping
from concurrent import futures
from typing import Any

import numpy as np

from mmjax.data import batches as batches_lib
from mmjax.data import mixture, shuffle, tokens
from mmjax.data import rows as rows_lib
from mmjax.data.augment import Visit
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
    "batch_shapes",
    "encode_sample",
    "eval_batches",
    "example_batch",
    "host_groups",
    "host_share",
    "open_stream",
    "parts",
    "to_global",
]

AHEAD = 2  # batches being put on devices, besides the one in use
EVALUATED = 4  # one part in so many of the memory for encoded examples is for those of evaluations


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
    cache_bytes: int = 1 << 29,
) -> dict[str, Reader]:
    """A reader for each task; tasks with equal sources share one, and different ones the memory.

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
    for reader in distinct:
        reader.cache_bytes = cache_bytes // len(distinct)
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
    settings = experiment.data
    room = settings.cache_bytes - settings.cache_bytes // EVALUATED
    batches = Batches(
        schedule.without_objectives(),
        journal,
        readers(
            experiment.tasks,
            experiment.modalities,
            program.vocabulary,
            settings.train_split,
            experiment.guards.allowed_bad,
            program.folder,
            room // max(1, settings.num_workers),  # each worker has a cache of its own
        ),
        program.vocabulary,
        experiment.seed,
        groups,
    )
    return Stream(
        batches,
        step,
        num_workers=settings.num_workers,
        prefetch=settings.prefetch,
        sharding=sharding,
    )


def host_groups(num_groups: int, sharding: Any, process: int | None = None) -> tuple[int, ...]:
    """Groups held by the devices of a host (by default this one) under a sharding of axis 0.

    The order of devices in a mesh follows the network, so that they need not be neighbours. A group
    that devices of several hosts hold is read by each of these.
    """
    return tuple(itertools.chain.from_iterable(_held(num_groups, sharding, process)))


@functools.lru_cache(maxsize=1024)  # asked for each array of a batch
def _held(size: int, sharding: Any, process: int | None) -> list[range]:
    """The parts of an axis 0 of this size that the devices of a process hold, each once."""
    import jax

    process = jax.process_index() if process is None else process
    places = sharding.devices_indices_map((size,)).items()
    held = {range(size)[place[0]] for device, place in places if device.process_index == process}
    return sorted(held, key=lambda part: part.start)


def parts(
    x: np.ndarray, sharding: Any, process: int | None = None
) -> tuple[int, dict[int, np.ndarray]]:
    """Size of the global axis 0, and the parts of a host's rows by the first global row of each.

    Args:
      x: the rows of `host_groups`, in their order.
    """
    shards = _shards(sharding)
    own = len(_held(shards, sharding, process))
    held = _held(len(x) // own * shards, sharding, process)
    cut = np.split(x, own)
    return len(x) // own * shards, {r.start: part for r, part in zip(held, cut, strict=True)}


def host_share(sharding: Any, process: int | None = None) -> float:
    """Share of a batch that a host (by default this one) reads; rows that several hosts hold count
    for each of them."""
    return len(_held(_shards(sharding), sharding, process)) / _shards(sharding)


def _shards(sharding: Any) -> int:
    """Parts that a sharding cuts axis 0 into."""
    axes = sharding.spec[0]
    return math.prod(sharding.mesh.shape[a] for a in (axes if isinstance(axes, tuple) else [axes]))


def to_global(batch: Batch, sharding: Any) -> Batch:
    """Global arrays, sharded on axis 0, from this host's rows of a batch (NumPy)."""
    import jax

    if jax.process_count() == 1:
        return jax.device_put(batch, sharding)

    def put(x: np.ndarray) -> jax.Array:
        size, mine = parts(x, sharding)
        of = lambda index: mine[index[0].start or 0]
        return jax.make_array_from_callback((size, *x.shape[1:]), sharding, of)

    return jax.tree.map(put, batch)


def example_batch(
    task: Task, variant: str, modalities: Mapping[str, Modality], vocabulary: Vocabulary
) -> Batch:
    """A global batch without samples, with the structure, shapes and types of real ones."""
    del modalities  # the vocabulary holds their specs
    shape = task.shape(variant)
    samples = [_nothing(task)] * shape.group_rows
    batch, _ = shape.layout.build(samples, task.streams(), vocabulary)
    return rows_lib.concatenate([batch] * (shape.batch_size // shape.group_rows))


def batch_shapes(
    task: Task, variant: str, modalities: Mapping[str, Modality], vocabulary: Vocabulary
) -> Batch:
    """Shapes and types of `example_batch`, which on a pod may be larger than a host's memory: those
    of one group, of which there are so many."""
    import jax

    layout, batch_size, rows = task.shape(variant)
    one = dataclasses.replace(task, layout=layout, batch_size=rows, group_rows=rows, variants={})
    group, groups = example_batch(one, "default", modalities, vocabulary), batch_size // rows
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct((x.shape[0] * groups, *x.shape[1:]), x.dtype), group
    )


def _nothing(task: Task) -> Sample:
    """A sample without pieces, of weight 0."""
    pieces = dict.fromkeys(batches_lib.used_streams(task))
    return Sample(pieces, 0, (0, 0), seed=0, weight=0.0)


def eval_reader(program: Any, task: str, split: str) -> Reader:
    """The reader of a task for a split under evaluation, kept with the program."""
    experiment, key = program.experiment, ("readers", split)
    if key not in program.compiled:  # encoded once, then reused by later evaluations
        program.compiled[key] = readers(
            experiment.tasks,
            experiment.modalities,
            program.vocabulary,
            split,
            experiment.guards.allowed_bad,
            program.folder,
            experiment.data.cache_bytes // EVALUATED,
        )
    return program.compiled[key][task]


def eval_batches(
    program: Any, task: str, split: str, num_batches: int | None = None
) -> Iterator[Batch]:
    """The first batches of a split as global arrays, in order, each record once.

    The last batch is filled up with samples of weight 0, which also replace bad records.
    """
    config, experiment = program.experiment.tasks[task], program.experiment
    reader = eval_reader(program, task, split)
    shape = config.shape(next(iter(config.variant_weights())))
    mine = host_groups(shape.batch_size // shape.group_rows, program.batch_sharding)
    seed = batches_lib.task_key(experiment.seed, f"eval {task}")
    total = -(-len(reader) // shape.batch_size)
    for number in range(total if num_batches is None else min(total, num_batches)):
        records = number * shape.batch_size + rows_lib.of_groups(mine, shape.group_rows)
        samples = [_eval_sample(reader, config, record, seed) for record in records.tolist()]
        batch, _ = batches_lib.build(samples, shape, config.streams(), program.vocabulary)
        yield to_global(batch, program.batch_sharding)


def _eval_sample(reader: Reader, task: Task, record: int, seed: int) -> Sample:
    if record >= len(reader):
        return _nothing(task)
    try:
        visit = Visit(alike=task.positives_by)
        encoded = reader.read(record, batches_lib.used_streams(task), visit)
    except BadRecord:
        return _nothing(task)
    draws = int(shuffle.seeds(seed, np.zeros(1), np.asarray([record]))[0])
    return Sample(encoded.pieces, encoded.identity, (record, 0), draws)
