"""How `mmjax train` ends, and what it refuses to begin, as commands."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path

import commands
import mini
import pytest

from mmjax.data.source import BadRecord
from mmjax.demo.numbers import Numbers
from mmjax.evaluate import Losses, Retrieval

TESTS = Path(__file__).resolve().parent.parent
QUICK = {
    "XLA_FLAGS": "--xla_backend_optimization_level=0",
    # This file is the config, and imports others of the tests.
    "PYTHONPATH": os.pathsep.join([str(TESTS.parent), str(TESTS)]),
}


class FewWithOneBad(Numbers):
    """Fifty records in `val`, of which the eighth cannot be read."""

    def open(self, split):
        records = super().open(split)
        return _Fifty(records) if split == "val" else records


class _Fifty:
    def __init__(self, records):
        self.records = records

    def __len__(self):
        return 50

    def __getitem__(self, index):
        if index == 7:
            raise BadRecord("lost", "the file is gone")
        return self.records[index]


def get_config():
    """Two steps of one small task; a gallery of the whole split."""
    made = mini.with_source(FewWithOneBad())
    model = dataclasses.replace(made.model, moe=None)
    evaluators = {
        "losses": Losses(num_batches=4),
        "retrieval": Retrieval(modalities=("image", "text"), gallery=49, num_train=200),
    }
    return dataclasses.replace(
        made,
        tasks={"image_text": made.tasks["image_text"]},
        model=model,
        evaluators=evaluators,
        total_steps=2,
    )


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_run_ends_with_its_scores_beside_those_of_simple_methods(tmp_path):
    workdir = str(tmp_path / "run")
    done = commands.run("train", __file__, "--workdir", workdir, timeout=600, **QUICK)
    assert done.returncode == 0, done.stderr
    said = done.stderr
    assert "retrieval (evals/retrieval/2.json)  this run  chance  nearest  ridge" in said
    assert said.count("a bad record of split 'val': 7 (lost: the file is gone)") == 1
    assert "not above ridge in" in said
    assert "what to do: train longer" in said
    shown = commands.run("info", workdir)
    assert "retrieval/image_to_text_MRR" in shown.stdout
    page = commands.run("report", workdir)
    assert "ridge" in page.stdout
    assert "Hits and misses" in (tmp_path / "run" / "report.html").read_text()
    scored = commands.run("eval", workdir, "--code", __file__, "--json", timeout=600, **QUICK)
    assert scored.returncode == 0, scored.stderr
    found = json.loads(scored.stdout)["image_to_text_MRR"]
    kept = json.loads((tmp_path / "run" / "evals" / "retrieval" / "baselines.json").read_text())
    assert found["ridge"] == round(kept["levels"]["ridge"]["image_to_text_MRR"], 4)


@pytest.mark.slow
def test_strict_guards_end_a_run_before_it_compiles(tmp_path):
    given = ("--workdir", str(tmp_path / "run"), "--guards.strict")
    strict = commands.run("train", __file__, *given, timeout=250, **QUICK)
    assert strict.returncode == 65, strict.stderr
    assert "1 of 50 records are bad" in strict.stderr
    assert "compiled" not in strict.stderr
