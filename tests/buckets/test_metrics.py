"""Metrics in a bucket: parts that grow, joined on reading."""

from __future__ import annotations

import time

import pytest

from mmjax import files
from mmjax.run import metrics, parts


@pytest.fixture(autouse=True)
def short(monkeypatch):
    monkeypatch.setattr(parts, "PAUSE", 0.01)


def write(workdir, after: int, steps) -> None:
    """What a start logs that resumes after a step."""
    writer = metrics.Writer(files.given(workdir), True)
    writer.rewind(after)
    for step in steps:
        writer.write(step, {"train/loss": float(step + 1000 * after)})
    writer.close()


def losses(workdir) -> dict[int, float]:
    rows, bad = metrics.read(files.given(workdir))
    assert bad == []
    assert len({row["step"] for row in rows}) == len(rows)
    return {row["step"]: row["train/loss"] for row in rows}


def test_many_rows_are_a_few_parts(service, address, monkeypatch):
    monkeypatch.setattr(parts, "ROWS", 10)
    writer = metrics.Writer(files.given(address), True)
    writer.rewind(0)
    for step in range(1, 36):
        writer.write(step, {"train/loss": float(step)})
        if step % 10 == 0:
            writer.flush()
    writer.close()
    assert len(service.names(f"{address}/metrics")) == 4
    assert losses(address) == {step: float(step) for step in range(1, 36)}


@pytest.mark.fault(
    "a run in a bucket was killed after rows that its resume computes again",
    "each step counts once",
)
def test_rows_of_steps_that_ran_again_are_those_of_the_later_start(address):
    write(address, 0, range(1, 12))
    write(address, 8, range(9, 14))
    assert losses(address) == {
        **{step: step for step in range(1, 9)},
        **{step: step + 8000 for step in range(9, 14)},
    }
    write(address, 4, range(5, 7))
    assert losses(address) == {
        **{step: step for step in range(1, 5)},
        **{step: step + 4000 for step in range(5, 7)},
    }


def test_a_start_that_logged_nothing_hides_nothing(address):
    write(address, 0, range(1, 12))
    write(address, 4, [])
    assert sorted(losses(address)) == list(range(1, 12))


def test_a_run_that_starts_anew_keeps_the_old_rows_apart(service, address):
    write(address, 0, [1, 2])
    write(address, 0, [1])
    assert losses(address) == {1: 1.0}
    assert [n for n in service.names(address) if n.startswith("quarantine/metrics-")]


@pytest.mark.fault(
    "a part of the metrics in a bucket is cut in the middle", "its last line is left out, and given"
)
def test_a_part_that_is_cut(service, address, caplog):
    write(address, 0, [1, 2, 3])
    (name,) = service.names(f"{address}/metrics")
    path = f"{address}/metrics/{name}"
    service.put(path, service.read(path)[:-20])
    write(address, 3, [4])
    rows, bad = metrics.read(files.given(address))
    assert [row["step"] for row in rows] == [1, 2, 4]
    assert len(bad) == 1
    assert bad[0].startswith(b'{"step": 3')
    assert f"1 line of {name} cannot be read and is left out" in caplog.text


def test_other_files_among_the_parts_are_no_rows(service, address):
    write(address, 0, [1])
    service.put(f"{address}/metrics/notes.txt", b"mine")
    service.put(f"{address}/metrics/0001-x.jsonl", b'{"step": 7}\n')
    assert sorted(losses(address)) == [1]
    assert files.exists(files.given(address) / "metrics" / "notes.txt")


@pytest.mark.fault("a bucket takes no metrics for a while", "no step waits; they are written later")
def test_a_bucket_that_does_not_answer_holds_no_step_up(service, address):
    writer = metrics.Writer(files.given(address), True)
    writer.rewind(0)
    service.fail(503, times=float("inf"), concerns=lambda method, name: method == "POST")
    began = time.monotonic()
    for step in range(1, 100):
        writer.write(step, {"train/loss": 1.0})
    assert time.monotonic() - began < 1
    service.mend()
    writer.flush()
    assert len(metrics.read(files.given(address))[0]) == 99
    writer.close()


def test_no_rows_are_missing_ones(address):
    with pytest.raises(files.DamagedFile, match="missing"):
        metrics.read(files.given(address))
