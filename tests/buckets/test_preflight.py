"""`mmjax doctor CONFIG` and the progress of a launch, on a workdir in a bucket."""

from __future__ import annotations

import mini
from etils import epath

from mmjax.cli import preflight
from mmjax.launch.progress import Progress


def looked(workdir: str) -> preflight.Row:
    rows = preflight.preflight(mini.get_config(), workdir)
    return next(row for row in rows if row.name == "workdir")


def test_a_bucket_is_written_to_read_and_left_as_it_was(address):
    row = looked(f"{address}/run")
    assert row.ok, row
    folder = epath.Path(f"{address}/run")
    assert not folder.exists() or [p for p in folder.iterdir() if ".doctor" in p.name] == []


def test_a_bucket_that_is_not_there_is_told(address):
    row = looked("gs://another-bucket-that-is-absent/run")
    assert not row.ok
    assert row.found


def test_progress_in_a_bucket(address):
    seen = Progress(f"{address}/progress")
    assert not seen.moved()
    metrics = epath.Path(f"{address}/progress/metrics/0001-000000000-0000-00000000.jsonl")
    metrics.write_text('{"step": 3}\n')
    assert seen.moved()
    assert not seen.moved()
    (epath.Path(f"{address}/progress/checkpoints/4") / "manifest.json").write_text("{}")
    assert seen.moved()
