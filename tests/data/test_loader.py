import collections
import contextlib
import copy
import dataclasses
import itertools
import types

import jax
import numpy as np
import pytest

from mmjax import config, errors
from mmjax.data import layouts, loader, mixture, reader, shuffle, task
from mmjax.data.source import BadRecord, Source
from mmjax.modalities.modality import Modality
from mmjax.typing import Piece, TokenSpec, Vocabulary


@dataclasses.dataclass(frozen=True, kw_only=True)
class Words(Modality):
    """Lists of ids; an end token (1) is added."""

    max_tokens: int = 10

    def spec(self, name):
        return TokenSpec(
            name=name, kind="sequence", max_tokens=self.max_tokens, vocab_size=64, end_id=1,
            first_sentinel=50, num_sentinels=10,
        )  # fmt: skip

    def encode(self, value):
        ids = np.asarray([*value, 1], np.int32)
        cut = max(len(ids) - self.max_tokens, 0)
        ids = ids[: self.max_tokens]
        position = np.repeat(np.arange(len(ids), dtype=np.float32)[:, None], 3, axis=1)
        return Piece(position, ids_L=ids, num_cut=cut)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Values(Modality):
    """Six pieces of width 4."""

    def spec(self, name):
        return TokenSpec(name=name, kind="grid", max_tokens=6, width=4)

    def encode(self, value):
        position = np.repeat(np.arange(6, dtype=np.float32)[:, None], 3, axis=1)
        return Piece(position, values_LP=np.asarray(value, np.float32))


class Records:
    def __init__(self, source):
        self.source, self.reads = source, collections.Counter()

    def __len__(self):
        return self.source.size

    def __getitem__(self, index):
        if index in self.source.broken:
            raise OSError(f"record {index} is torn")
        self.reads[index] += 1
        rng = np.random.default_rng(index)
        values = rng.random((6, 4))
        if index in self.source.nan:
            values[2, 3] = np.nan
        words = rng.integers(2, 50, rng.integers(0, 9)).tolist()
        if index in self.source.strange:
            words = [9999]
        return {"text": words, "sound": values if index % 5 else None, "identity": index % 7}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Toy(Source):
    size: int = 100
    broken: tuple[int, ...] = ()
    nan: tuple[int, ...] = ()
    strange: tuple[int, ...] = ()

    def open(self, split):
        del split
        return Records(self)


MODALITIES = {"text": Words(), "sound": Values()}
VOCABULARY = Vocabulary(tuple(m.spec(n) for n, m in MODALITIES.items()))


def make_tasks(source, batch_size=16):
    masked = task.Task(
        source=source,
        inputs=("text", "sound"),
        targets=("text", "sound"),
        layout=layouts.Masked(input_tokens=8, target_tokens=6),
        objective=None,
        batch_size=batch_size,
        group_rows=4,
        weight=2.0,
        variants={
            "wide": task.Variant(layout=layouts.Masked(input_tokens=12, target_tokens=4)),
            "small": task.Variant(batch_size=batch_size // 2, group_rows=2),
        },
    )
    pairs = task.Task(
        source=source,
        inputs=("text", "sound"),
        layout=layouts.Aligned(),
        objective=None,
        batch_size=batch_size,
        group_rows=2,
    )
    return {"masked": masked, "pairs": pairs}


def make(source, *, journal=None, groups=None, max_bad_fraction=1.0, seed=0, **kwargs):
    tasks = make_tasks(source)
    schedule = mixture.Mixture(period=10).bind(tasks, seed)
    readers = loader.readers(tasks, MODALITIES, VOCABULARY, "train", max_bad_fraction)
    for r in {id(r): r for r in readers.values()}.values():
        for name, value in kwargs.items():
            setattr(r, name, value)
    return loader.Batches(schedule, journal or mixture.Journal(), readers, VOCABULARY, seed, groups)


def same(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    jax.tree.map(np.testing.assert_array_equal, a, b)


def records(batch):
    return batch.sample_BSI[:, 0, 0].tolist()


@pytest.mark.parametrize("n", [1, 2, 3, 64, 100, 1000])
@pytest.mark.parametrize("block_rows", [7, 16, 1 << 14])
def test_permutation_is_a_bijection(n, block_rows):
    orders = [shuffle.permute(n, 5, epoch, np.arange(n), block_rows) for epoch in range(3)]
    for order in orders:
        assert sorted(order.tolist()) == list(range(n))
    if n >= 64:
        assert not np.array_equal(orders[0], orders[1])
        other = shuffle.permute(n, 6, 0, np.arange(n), block_rows)
        assert not np.array_equal(orders[0], other)
    one_by_one = [int(shuffle.permute(n, 5, 1, i, block_rows)[0]) for i in range(0, n, 37)]
    assert one_by_one == orders[1][::37].tolist()


def test_permutation_stays_in_blocks_and_takes_constant_memory():
    order = shuffle.permute(10**12, 0, 3, np.arange(1000))
    assert len(set(order.tolist())) == 1000
    near = shuffle.permute(1000, 0, 0, np.arange(1000), block_rows=100).reshape(10, 100) // 100
    assert (near == near[:, :1]).all()
    assert len(set(near[:, 0].tolist())) == 10
    with pytest.raises(ValueError, match="outside"):
        shuffle.permute(10, 0, 0, 10)


def test_an_epoch_reads_every_record_once():
    batches = make(Toy(size=100))
    read = [r for step in range(40) for p, b, _ in [batches[step]] if p.task == "pairs"
            for r in records(b)]  # fmt: skip
    assert sorted(read[:100]) == list(range(100))
    assert sorted(read[100:200]) == list(range(100))
    assert read[:100] != read[100:200]


def test_batches_do_not_depend_on_history():
    batches = make(Toy())
    there = [batches[step] for step in range(12)]
    assert {p.task for p, _, _ in there} == {"masked", "pairs"}
    assert {p.variant for p, _, _ in there if p.task == "masked"} == {"wide", "small"}
    fresh = make(Toy(), cache_bytes=0)
    for step in [11, 3, 0, 7]:
        assert fresh[step][0] == there[step][0]
        same(fresh[step][1], there[step][1])
        assert fresh[step][2] == there[step][2]
    other = make(Toy(), seed=1)[0][1]
    assert records(other) != records(there[0][1])


def test_absent_streams_are_not_present():
    _, batch, _ = next(b for b in map(make(Toy()).__getitem__, range(20)) if b[0].task == "pairs")
    absent = np.asarray(records(batch)) % 5 == 0
    assert absent.any()
    np.testing.assert_array_equal(batch.present_BSM[:, 0, 1], ~absent)
    assert batch.present_BSM[:, 0, 0].all()
    assert (batch.views["sound"].stream_BL[absent] == 0).all()
    np.testing.assert_array_equal(batch.identity_BS[:, 0], np.asarray(records(batch)) % 7)


def test_two_hosts_read_the_rows_of_one():
    whole = make(Toy())
    hosts = []
    for host in range(2):
        groups = {}
        for name, t in whole.schedule.tasks.items():
            for variant in t.variant_weights():
                shape = t.shape(variant)
                half = shape.batch_size // shape.group_rows // 2
                groups[name, variant] = range(host * half, (host + 1) * half)
        hosts.append(make(Toy(), groups=groups))
    for step in range(12):
        place, batch, _ = whole[step]
        parts = [h[step] for h in hosts]
        assert {p[0] for p in parts} == {place}
        joined = jax.tree.map(lambda *x: np.concatenate(x), *(p[1] for p in parts))
        same(joined, batch)


def test_one_example_is_encoded_once_for_all_tasks():
    batches = make(Toy())
    for step in range(30):
        batches[step]
    reads = batches.readers["masked"].records.reads
    assert batches.readers["masked"] is batches.readers["pairs"]
    assert set(reads.values()) == {1}


def test_shapes_are_known_without_data():
    batches = make(Toy())
    shapes = {}
    for step in range(12):
        place, batch, _ = batches[step]
        t = batches.schedule.tasks[place.task]
        example = loader.example_batch(t, place.variant, MODALITIES, VOCABULARY)
        said = loader.batch_shapes(t, place.variant, MODALITIES, VOCABULARY)
        assert said == jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), example)
        kinds = [jax.tree.map(lambda x: (x.shape, x.dtype.name), tree) for tree in (batch, example)]
        assert kinds[0] == kinds[1]
        assert jax.tree.structure(batch) == jax.tree.structure(example)
        assert not example.weight_BS.any()
        shapes[place.task, place.variant] = kinds[0]
    assert len(shapes) == 3


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"broken": (3, 40)}, "OSError"),
        ({"nan": (3, 41)}, "not_finite"),
        ({"strange": (3, 40)}, "id_out_of_range"),
    ],
)
def test_bad_records_are_replaced_and_counted(fields, reason):
    batches, total = make(Toy(**fields)), collections.Counter()
    excluded = frozenset(*fields.values())
    clean = make(Toy(), excluded=excluded)
    for step in range(20):
        place, batch, counts = batches[step]
        total.update({k: v for k, v in counts.items() if k.startswith("bad/")})
        assert not excluded & set(records(batch))
        # A run that knew it beforehand is equal bit for bit.
        place_too, batch_too, _ = clean[step]
        assert place == place_too
        same(batch, batch_too)
    assert set(total) == {f"bad/{reason}"}
    assert total[f"bad/{reason}"] >= 4


def test_too_many_bad_records_stop_the_run():
    batches = make(Toy(broken=(3, 40)), max_bad_fraction=0.01)
    with pytest.raises(errors.BadDataError) as error:
        list(map(batches.__getitem__, range(20)))
    for part in ("Toy", "'train'", "OSError", "records", "is torn", "max_bad_fraction=0.01"):
        assert part in str(error.value)
    assert "3" in str(error.value) or "40" in str(error.value)
    patient = make(Toy(broken=(3, 40)), max_bad_fraction=0.05)
    for step in range(20):
        patient[step]
    alone = make(Toy(size=40, broken=(3,)), max_bad_fraction=0.001)  # one is no sign of trouble
    assert sum("bad/OSError" in alone[step][2] for step in range(20)) > 1
    with pytest.raises(errors.BadDataError, match="1 of 40 records are bad"):
        list(map(make(Toy(size=40, broken=(3,)), max_bad_fraction=0.0).__getitem__, range(20)))
    once = make(Toy(broken=(3,)), max_bad_fraction=0.01)  # of 100; it is met in every epoch
    assert sum("bad/OSError" in once[step][2] for step in range(60)) > 5
    hopeless = make(Toy(broken=tuple(range(100))))
    with pytest.raises(errors.BadDataError, match="in a row were bad"):
        hopeless[0]
    with pytest.raises(errors.BadDataError, match="no record"):
        make(Toy(size=0))[0]


def test_empty_and_overlong_text():
    example = {"text": [], "sound": None}
    pieces = loader.encode_sample(example, MODALITIES, ("text", "sound"), VOCABULARY)
    assert pieces["text"].ids_L.tolist() == [1]
    assert pieces["sound"] is None
    long = loader.encode_sample({"text": [5] * 20}, MODALITIES, ("text",), VOCABULARY)
    assert (long["text"].length, long["text"].num_cut) == (10, 11)
    # A modality that does not cut is cut here, and counted all the same.
    wide = {"text": Words(max_tokens=99)}
    longer = loader.encode_sample({"text": [5] * 20}, wide, ("text",), VOCABULARY)
    assert (longer["text"].length, longer["text"].num_cut) == (10, 11)
    sample = task.Sample(long, 0, (0, 0), seed=0)
    for layout in (layouts.Aligned(), layouts.Masked(input_tokens=4, target_tokens=4)):
        streams = task.Streams(("text",), ("text",))
        assert layout.build([sample], streams, VOCABULARY)[1]["cut/text"] == 11


def test_skipped_rows_are_not_read():
    plain = make(Toy(size=10_000))
    first = plain.schedule.steps_before(6, mixture.Journal())
    step = next(s for s in range(6, 99) if plain[s][0].task == "pairs")
    row = plain.schedule.first_row("pairs", first["pairs"])
    journal = mixture.Journal().append(6, {"skip": {"task": "pairs", "rows": [row, row + 16]}})
    skipping = make(Toy(size=10_000), journal=journal)
    later = next(s for s in range(step + 1, 99) if plain[s][0].task == "pairs")
    same(skipping[step][1], plain[later][1])
    assert skipping[step][0] == plain[step][0]


@pytest.mark.parametrize("prefetch", [0, 4])
def test_stream_starts_anywhere_and_ends(prefetch):
    batches = make(Toy())
    stream = loader.Stream(make(Toy()), 5, prefetch=prefetch)
    for step in range(5, 9):
        place, batch, counts = next(stream)
        assert place == batches[step][0]
        same(batch, batches[step][1])
        assert counts == batches[step][2]
    stream.close()


def test_stream_puts_batches_on_devices_ahead():
    mesh = jax.sharding.Mesh(np.asarray(jax.devices()[:2]), ("data",))
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
    batches = make(Toy())
    stream = loader.Stream(make(Toy()), 2, sharding=sharding)
    for step in range(2, 7):
        place, batch, _ = next(stream)
        assert place == batches[step][0]
        assert batch.weight_BS.sharding.is_equivalent_to(sharding, 2)
        same(jax.device_get(batch), batches[step][1])
    stream.close()
    broken = loader.Stream(
        make(Toy(broken=tuple(range(90))), max_bad_fraction=0.01), 0, sharding=sharding
    )
    with pytest.raises(errors.BadDataError, match="OSError"):
        next(broken)
    broken.close()


def test_an_error_reaches_the_reader_of_the_stream():
    stream = loader.Stream(make(Toy(broken=tuple(range(90))), max_bad_fraction=0.01), 0)
    with pytest.raises(errors.BadDataError, match="OSError"):
        next(stream)
    stream.close()


CONFIG = """
import dataclasses
import numpy as np
from mmjax.data import layouts, task
from mmjax.data.augment import Augment
from mmjax.data.source import BadRecord, Source
from mmjax.modalities.modality import Modality
from mmjax.typing import Piece, TokenSpec

@dataclasses.dataclass(frozen=True, kw_only=True)
class Number(Modality):
    def spec(self, name):
        return TokenSpec(name=name, kind="grid", max_tokens=3, vocab_size=10)
    def encode(self, value):
        ids = np.asarray([value // 100, value // 10 % 10, value % 10], np.int32)
        return Piece(np.zeros((3, 3), np.float32), ids_L=ids)

@dataclasses.dataclass(frozen=True, kw_only=True)
class Counting(Source):
    broken: int = -1
    def open(self, split):
        return [{"digits": i if i != self.broken else "x"} for i in range(50)]

@dataclasses.dataclass(frozen=True, kw_only=True)
class Nearby(Augment):
    most: int = 5
    def __call__(self, value, modality, rng):
        return modality.encode(value + int(rng.integers(self.most)))

def get_task(broken=-1):
    layout = layouts.Masked(input_tokens=2, target_tokens=1)
    return task.Task(source=Counting(broken=broken), inputs=("digits",), targets=("digits",),
                     layout=layout, objective=None, batch_size=8, group_rows=4,
                     augment={"digits": Nearby()})
"""


@pytest.mark.ci
def test_workers_change_nothing(tmp_path):
    """Also: classes of a config file reach the workers, which cannot import it."""
    (tmp_path / "mine.py").write_text(CONFIG)
    module = config.load_module(tmp_path / "mine.py")
    modalities = {"digits": module.Number()}
    vocabulary = Vocabulary((modalities["digits"].spec("digits"),))

    def batches(broken):
        tasks = {"t": module.get_task(broken)}
        schedule = mixture.Mixture().bind(tasks, 0)
        found = loader.readers(tasks, modalities, vocabulary, "train", 0.0)  # strict: not even one
        return loader.Batches(schedule, mixture.Journal(), found, vocabulary, 0)

    streams = [loader.Stream(batches(-1), 3, num_workers=n) for n in (0, 2)]
    for _ in range(7):
        (place_a, a, counts_a), (place_b, b, counts_b) = (next(s) for s in streams)
        assert place_a == place_b
        assert counts_a == counts_b
        same(a, b)
    # Another journal from step 10 on: rows that were prepared by the old one are not used.
    journal = mixture.Journal().append(10, {"skip": {"task": "t", "rows": [0, 10**6]}})
    streams, wanted = [s.again(10, journal) for s in streams], batches(-1).with_journal(journal)
    for step in range(10, 14):
        for stream in streams:
            same(next(stream)[1], wanted[step][1])
    for stream in streams:
        stream.close()
    bad = loader.Stream(batches(11), 0, num_workers=1)
    with pytest.raises(errors.BadDataError, match="records 11"):
        list(itertools.islice(bad, 20))
    bad.close()


def test_records_that_are_read_again_do_not_hide_the_share_of_bad_ones():
    bad = tuple(range(0, 4000, 80))  # 1.25 %
    there = reader.Reader(
        source=Toy(size=4000, broken=bad), split="train", modalities=MODALITIES,
        vocabulary=VOCABULARY, max_bad_fraction=0.01,
    )  # fmt: skip

    def read_all():
        for index in range(4000):
            for _ in range(3):  # as several tasks do
                with contextlib.suppress(BadRecord):
                    there.read(index, ("text",))

    with pytest.raises(errors.BadDataError, match=r"of \d+ records are bad"):
        read_all()
    assert there.num_read < 1200


def test_readers_of_a_run_share_its_memory():
    small, large = Toy(size=10), Toy(size=20)
    tasks = {n: make_tasks(s)["pairs"] for n, s in (("a", small), ("b", large), ("c", large))}
    made = loader.readers(tasks, MODALITIES, VOCABULARY, "train", 0.0, cache_bytes=4001)
    assert {name: reader.cache_bytes for name, reader in made.items()} == dict.fromkeys("abc", 2000)
    assert made["b"] is made["c"] is not made["a"]


def test_a_copied_reader_starts_empty():
    there = reader.Reader(source=Toy(), split="train", modalities=MODALITIES, vocabulary=VOCABULARY)
    there.read(1, ("text",))
    other = copy.copy(there)  # by the same protocol as pickle
    assert there.num_read == 1
    assert other.num_read == 0
    assert other.source == there.source
    assert other.records is not there.records


def mesh_of(shape, names):
    return jax.sharding.Mesh(np.asarray(jax.devices()).reshape(shape), names)


def test_to_global_shards_axis_0():
    batch = make(Toy())[0][1]
    mesh = mesh_of((4, 2), ("data", "tensor"))
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(("data",)))
    there = loader.to_global(batch, sharding)
    same(jax.device_get(there), batch)
    for leaf in jax.tree.leaves(there):
        assert leaf.sharding.is_equivalent_to(sharding, leaf.ndim)
    assert loader.host_groups(8, sharding) == tuple(range(8))


class Device(types.SimpleNamespace):
    __hash__ = object.__hash__


class Placed:
    """A sharding of 8 groups over the devices of hosts: (host, what a device holds) each."""

    spec = (("data",),)

    def __init__(self, *held: tuple[int, slice]):
        self.held = held
        self.mesh = types.SimpleNamespace(shape={"data": len({part.start for _, part in held})})

    def devices_indices_map(self, shape):
        each = shape[0] // self.mesh.shape["data"]
        return {
            Device(process_index=host): (slice(part.start * each, part.stop * each),)
            for host, part in self.held
        }


def test_host_groups():
    """Groups of a host need not be neighbours; what two hosts hold both read."""
    parts = [slice(i, i + 1) for i in range(4)]
    turns = Placed((0, parts[0]), (1, parts[1]), (0, parts[2]), (1, parts[3]))
    assert loader.host_groups(8, turns) == (0, 1, 4, 5)  # this is host 0
    assert loader.host_groups(8, turns, 1) == (2, 3, 6, 7)
    both = Placed((0, parts[0]), (1, parts[0]), (1, parts[1]), (1, parts[1]))
    assert loader.host_groups(2, both, 0) == (0,)
    assert loader.host_groups(2, both, 1) == (0, 1)
    # So that what a host counts tells of the whole batch.
    assert [loader.host_share(turns, host) for host in (0, 1)] == [0.5, 0.5]
    assert [loader.host_share(both, host) for host in (0, 1)] == [0.5, 1.0]


def test_hosts_whose_groups_are_in_turns_read_the_rows_of_one():
    """Each part of a batch is what its device holds of the whole."""
    whole = make(Toy())
    hosts = Placed(*((i % 2, slice(i, i + 1)) for i in range(4)))
    for host in range(2):
        groups = {}
        for name, t in whole.schedule.tasks.items():
            for variant in t.variant_weights():
                shape = t.shape(variant)
                number = shape.batch_size // shape.group_rows
                groups[name, variant] = loader.host_groups(number, hosts, host)
        mine = make(Toy(), groups=groups)
        for step in range(12):
            place, batch, _ = mine[step]
            assert place == whole[step][0]
            for leaf, all_of_it in zip(*map(jax.tree.leaves, (batch, whole[step][1])), strict=True):
                size, cut = loader.parts(leaf, hosts, host)
                assert size == len(all_of_it)
                for start, part in cut.items():
                    np.testing.assert_array_equal(part, all_of_it[start : start + size // 4])


def test_evaluation_reads_each_record_once_in_order():
    tasks = make_tasks(Toy(size=37, broken=(5,)))
    sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    program = types.SimpleNamespace(
        experiment=types.SimpleNamespace(
            tasks=tasks,
            modalities=MODALITIES,
            seed=0,
            guards=types.SimpleNamespace(allowed_bad=0.1),
            data=types.SimpleNamespace(cache_bytes=1 << 20),
        ),
        vocabulary=VOCABULARY,
        batch_sharding=sharding,
        folder=None,
        compiled={},
    )
    found = list(loader.eval_batches(program, "pairs", "val"))
    assert len(found) == 3
    weight = np.concatenate([b.weight_BS[:, 0] for b in found])
    assert weight.tolist() == [float(i != 5 and i < 37) for i in range(48)]
    read = np.concatenate([b.sample_BSI[:, 0, 0] for b in found])
    assert read[weight > 0].tolist() == [i for i in range(37) if i != 5]
    again = list(loader.eval_batches(program, "pairs", "val", 2))
    assert len(again) == 2
    same(again[1], found[1])
    example = loader.example_batch(tasks["pairs"], "default", MODALITIES, VOCABULARY)
    assert jax.tree.structure(example) == jax.tree.structure(found[0])


@dataclasses.dataclass(frozen=True, kw_only=True)
class Looks(Values):
    """Values of another size at each visit."""

    is_augmented = True

    def augment(self, piece, rng):
        return piece._replace(values_LP=piece.values_LP * np.float32(rng.uniform(2, 3)))


def test_training_alone_reads_augmented_pieces_and_each_visit_another():
    plain, looks = MODALITIES, {**MODALITIES, "sound": Looks()}
    tasks = {"pairs": make_tasks(Toy(size=16))["pairs"]}  # a batch is an epoch
    schedule = mixture.Mixture(period=10).bind(tasks, 0)

    def samples(modalities, step):
        readers = loader.readers(tasks, modalities, VOCABULARY, "train", 1.0)
        batches = loader.Batches(schedule, mixture.Journal(), readers, VOCABULARY, 0)
        found, _ = batches._samples("pairs", np.arange(16) + 16 * step)
        return {s.sample[0]: s.pieces["sound"] for s in found if s.pieces["sound"] is not None}

    given = samples(plain, 0)
    once, again, later = samples(looks, 0), samples(looks, 0), samples(looks, 1)
    assert once.keys() == later.keys() == given.keys()
    for record, piece in given.items():
        np.testing.assert_array_equal(once[record].values_LP, again[record].values_LP)
        first, second = (x[record].values_LP / piece.values_LP for x in (once, later))
        assert 2 < np.mean(first) < 3
        assert 2 < np.mean(second) < 3
        assert abs(np.mean(first) - np.mean(second)) > 1e-6
    reader = loader.readers(tasks, looks, VOCABULARY, "val", 1.0)["pairs"]
    read = reader.read(1, ("sound",)).pieces["sound"]
    np.testing.assert_array_equal(read.values_LP, given[1].values_LP)
