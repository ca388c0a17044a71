"""Meshes on the devices of real slices and nodes: a conformance table, one row a topology.

The devices are described, so that their hosts and places on the torus are those of the clouds.
"""

from __future__ import annotations

import collections
import itertools
import json
import math

import pytest

# What clouds call them, chips in all, hosts.
SLICES = [
    ("v4-32", 16, 4),
    ("v5e-16", 16, 4),
    ("v5e-64", 64, 16),
    ("v5e-256", 256, 64),
    ("v6e-16", 16, 4),
    ("v6e-256", 256, 64),
    ("v5p-32", 16, 4),
    ("v5p-128", 64, 16),
    ("v5p-1024", 512, 128),
    ("tpu7x-8", 4, 1),
    ("tpu7x-128", 64, 16),
    ("2xv5e-256", 512, 128),
    ("4xv5e-256", 1024, 256),
    ("2xv5p-64", 64, 16),
    ("4xv5p-64", 128, 32),
]
NODES = [("h100x8", 8, 1), ("2xh100x8", 16, 2), ("8xh100x8", 64, 8)]

pytestmark = pytest.mark.timeout(900)


def rows(table, mark):
    return [pytest.param(*row, marks=mark, id=row[0]) for row in table]


@pytest.fixture(scope="session")
def tables(tmp_path_factory, scripts):
    """name -> what meshes.py says of a topology; all of a compiler in one process."""
    out, done = tmp_path_factory.mktemp("meshes"), set()

    def table(name: str) -> dict:
        own = next(t for t in (SLICES, NODES) if name in {row[0] for row in t})
        if own[0][0] not in done:
            scripts("tpu" if own is SLICES else "cuda", "meshes.py", out, *[row[0] for row in own])
            done.add(own[0][0])
        return json.loads((out / f"{name}.json").read_text())

    return table


@pytest.mark.parametrize(
    ("name", "chips", "hosts"),
    rows(SLICES, pytest.mark.compile) + rows(NODES, pytest.mark.cuda),
)
def test_a_topology_carries_every_mesh_and_each_process_reads_its_rows(name, chips, hosts, tables):
    table = tables(name)
    assert [table["devices"], table["hosts"]] == table["expected"]
    assert (table["chips"], table["hosts"]) == (chips, hosts)
    whole, count = table["whole"], table["devices"]
    group = len(whole) // count
    assert len(set(whole)) == len(whole) == 2 * count
    place, apart = {sample: i for i, sample in enumerate(whole)}, 0
    for mesh, said in table["meshes"].items():
        assert math.prod(said["sizes"].values()) == count, mesh
        readers, holders = collections.defaultdict(set), collections.defaultdict(set)
        for process, start, stop in said["held"]:
            read = said["read"][str(process)]
            # A device gets the rows that it holds, in the global order.
            assert read["size"] == len(whole)
            assert read["parts"][str(group * start)] == whole[group * start : group * stop], mesh
            for number in range(start, stop):
                holders[number].add(process)
        for process, read in said["read"].items():
            numbers = [place[sample] // group for sample in read["samples"]]
            # Whole groups in the global order, none twice.
            mine = sorted(set(numbers))
            assert read["samples"] == [s for n in mine for s in whole[group * n : group * (n + 1)]]
            for number in mine:
                readers[number].add(int(process))
            apart += any(b > a + 1 for a, b in itertools.pairwise(mine))
        assert readers == holders, mesh  # each process reads what its devices hold, and no more
        assert sorted(holders) == list(range(count)), mesh  # all rows
        assert said["slow"] == said["crossed"], mesh
        if "across nodes" not in mesh:
            assert set(said["slow"]) <= {"replica"}, mesh
    if hosts > 1 and "h100" not in name:
        assert apart  # rows of a host that are not neighbours
