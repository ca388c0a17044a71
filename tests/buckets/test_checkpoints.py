"""Checkpoints in a bucket: saved, verified, retired, recovered, and fenced off."""

from __future__ import annotations

import json
import time
import types

import jax.numpy as jnp
import numpy as np
import pytest

from mmjax import errors, files
from mmjax.experiment import Checkpointing
from mmjax.run import checkpoint, choose, keeping, lock
from mmjax.run import manifest as manifest_lib


def state(step: int):
    """What a Saver takes of a TrainState."""
    params = {"w": jnp.full((4, 4), step, jnp.float32), "b": jnp.arange(3.0)}
    return types.SimpleNamespace(params=params, opt_state={}, model_state={}, extra={})


def manifest(step: int) -> dict:
    """What a run writes, as far as readers insist on it."""
    there = {**manifest_lib.KEYS, **manifest_lib.NEW_KEYS}
    return {**{k: kind() for k, kind in there.items() if k != "digest"}, "step": step}


def saved(address: str, steps, held=None, **settings) -> checkpoint.Saver:
    saver = checkpoint.Saver(files.given(address), Checkpointing(**settings), held)
    for step in steps:
        saver.save(state(step), manifest(step))
        saver.wait()
    return saver


@pytest.fixture(autouse=True)
def long_pages(service):
    service.page = 100


def test_retention_deletes_objects(service, address):
    saved(address, (1, 2, 3, 4), keep=2).close()
    folder = files.given(address) / "checkpoints"
    assert keeping.steps(folder) == [3, 4]
    names = service.names(f"{address}/checkpoints")
    assert {name.split("/")[0] for name in names} == {"3", "4"}
    assert choose.damaged(files.given(address), 4) == []
    restored = checkpoint.restore(files.given(address), 4, {"params": state(0).params})
    np.testing.assert_array_equal(restored["params"]["w"], state(4).params["w"])


@pytest.mark.fault(
    "a checkpoint in a bucket is damaged", "the newest whole one is used, the other moved away"
)
def test_a_damaged_one_is_passed_over_and_can_be_moved_away(service, address, caplog):
    saved(address, (1, 2)).close()
    (name, *_) = [n for n in service.names(address) if n.startswith("checkpoints/2/params/d/")]
    service.put(f"{address}/{name}", b"\0" * len(service.read(f"{address}/{name}")))
    chosen = choose.newest(files.given(address))
    assert chosen is not None
    assert chosen.step == 1
    assert "differs from its hash" in chosen.passed_over[2]
    workdir = files.given(address)
    files.quarantine(workdir / "checkpoints" / "2", workdir, chosen.passed_over[2])
    assert keeping.steps(workdir / "checkpoints") == [1]
    assert [n for n in service.names(address) if n.startswith("quarantine/2-")]


@pytest.mark.fault(
    "a save in a bucket was cut off", "its objects are deleted at the next start; nothing else is"
)
def test_a_half_save_is_deleted_and_nothing_else(service, address):
    saved(address, (1,)).close()
    service.put(f"{address}/checkpoints/2.saving", b"")
    service.put(f"{address}/checkpoints/2/params/d/x", b"half")
    service.put(f"{address}/checkpoints/20/notes.txt", b"of the user")
    before = set(service.names(address))
    keeping.recover(files.given(address) / "checkpoints")
    gone = before - set(service.names(address))
    assert gone == {"checkpoints/2.saving", "checkpoints/2/params/d/x"}


@pytest.mark.parametrize("left", [True, False])
def test_a_retirement_that_was_cut_off_is_completed(service, address, left):
    saved(address, (1, 2)).close()
    path = f"{address}/checkpoints/1"
    service.put(f"{path}/retired.json", service.read(f"{path}/manifest.json"))
    service.put(f"{path}/mine.txt", b"of the user")
    if not left:
        (files.given(path) / "manifest.json").unlink()
    keeping.recover(files.given(address) / "checkpoints")
    assert [n for n in service.names(address) if n.startswith("checkpoints/1/")] == [
        "checkpoints/1/mine.txt"
    ]


class Fenced(lock.Held):
    """A lock that was taken over between the question and the commit."""

    def __init__(self, fence: int, lost: bool = False):
        self.fence, self.lost = fence, lost

    def check(self):
        if self.lost:
            raise errors.WorkdirBusy("taken over")


def test_a_writer_that_lost_the_lock_commits_no_manifest(service, address):
    saver = checkpoint.Saver(files.given(address), Checkpointing(), Fenced(1, lost=True))
    saver.save(state(1), manifest(1))
    with pytest.raises(errors.WorkdirBusy, match="taken over"):
        saver.wait()
    saver.close()
    assert keeping.steps(files.given(address) / "checkpoints") == []


@pytest.mark.fault(
    "a run that was taken over commits a save just after it asked for the lock",
    "the commit of the run that took over stands",
)
def test_a_manifest_of_a_lower_fence_is_written_over_and_one_of_a_higher_is_not(service, address):
    path = files.given(address) / "checkpoints" / "3" / "manifest.json"
    old, new = (checkpoint.Saver(files.given(address), Checkpointing(), Fenced(n)) for n in (1, 2))
    old._commit(path, manifest(3))
    new._commit(path, manifest(3))
    assert json.loads(service.read(str(path)))["fence"] == 2
    with pytest.raises(errors.StorageError, match="another run has written it"):
        old._commit(path, manifest(3))
    assert json.loads(service.read(str(path)))["fence"] == 2


def test_looking_at_many_checkpoints_takes_few_round_trips(service, address):
    saved(address, (1, 2, 3)).close()
    service.page = 1000
    folder = files.given(address) / "checkpoints"
    with service.watched() as calls:
        assert keeping.steps(folder) == [1, 2, 3]
    assert len(calls) == 1
    with service.watched() as calls:
        checkpoint._stamps(folder / "3")
    assert len(calls) == 1


def test_rows_are_safe_before_a_manifest_is_written(address):
    order = []
    saver = checkpoint.Saver(
        files.given(address), Checkpointing(), None, lambda: order.append(time.monotonic())
    )
    saver._commit = lambda path, manifest: order.append("manifest")
    saver.save(state(1), manifest(1))
    saver.wait()
    saver.close()
    assert order[1:] == ["manifest"]
