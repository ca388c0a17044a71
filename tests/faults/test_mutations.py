"""Every file of a workdir damaged in every way: noticed, or harmless; never a traceback."""

from __future__ import annotations

import os
import random
import shutil
from pathlib import Path

import damage
import jax
import mini
import pytest
import small

import mmjax
from mmjax import checkpoint, cli, errors, load, report, train
from mmjax.run import metrics, program

ONE = jax.devices()[:1]
MINE = ("checkpoints/my_backup/weights", "checkpoints/.DS_Store", "mine.txt")
IGNORED = ("lock",)  # its content is for people
EXPERIMENT = mini.get_config(total_steps=16, checkpoint=checkpoint.Checkpointing(every=4, keep=3))


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A workdir with the steps 8 and 12 of 16, reported on, and the run to its end in memory."""
    workdir = tmp_path_factory.mktemp("runs") / "whole"
    result = mmjax.train(EXPERIMENT, workdir, devices=ONE)
    shutil.rmtree(workdir / "checkpoints" / "16")
    assert checkpoint.steps(workdir / "checkpoints") == [8, 12]
    for name in MINE:
        (workdir / name).parent.mkdir(exist_ok=True)
        (workdir / name).write_text("mine")
    (workdir / "evals" / "losses").mkdir(parents=True)
    (workdir / "evals" / "losses" / "12.json").write_text('{"text_loss": 2.5}')
    (workdir / "scores.json").write_text('{"text_loss": {"value": 2.5, "chance": null}}')
    report.report(str(workdir))
    return workdir, result


@pytest.fixture
def again(whole, monkeypatch):
    """`train` without compiling: the executables of the run before, of the same shapes."""
    result = whole[1]
    compiled = train.program.compile_all(result.program, False)

    def build(experiment, devices=None, folder=None):
        del experiment, devices
        return program.dataclasses.replace(result.program, folder=folder)

    monkeypatch.setattr(program, "build", build)
    monkeypatch.setattr(train.program, "compile_all", lambda *a: compiled)
    return lambda workdir: mmjax.train(EXPERIMENT, workdir, devices=ONE)


def paths(workdir: Path) -> list[Path]:
    """Files that a mutation may hit."""
    skipped = {workdir / name for name in (*MINE, *IGNORED)}
    return sorted(p for p in workdir.rglob("*") if p.is_file() and p not in skipped)


def outcome(call):
    """What a call gives; None where it ends with an error that is told to the user."""
    try:
        return call()
    except (errors.RunError, ValueError) as error:
        code, message = cli._judge(error, ["train"])
        if not code or len(message) < 20:
            raise
        return None


def check(whole, again, workdir: Path, seed: int) -> str:
    """Damages one file of a copy, then reads and resumes it; what happened."""
    shutil.copytree(whole[0], workdir)
    rng = random.Random(seed)
    there = paths(workdir)
    texts = [p for p in there if p.suffix in (".json", ".jsonl")]
    target = rng.choice(rng.choice([there, texts]))
    said = damage.apply(target, rng)
    view = outcome(lambda: load.load(str(workdir), devices=ONE))
    if view is not None:
        assert checkpoint.damaged(workdir, view.step) == []
    outcome(lambda: checkpoint.info(str(workdir), verify=True))
    outcome(lambda: report.report(str(workdir)))
    before = [p.name for p in paths(workdir) if "checkpoints" in p.parts]
    result = outcome(lambda: again(workdir))
    if result is not None:
        mini.assert_same(result.state, whole[1].state)
        assert metrics.read_rows(workdir / "metrics.jsonl")[1] == []  # written on, and whole
        assert checkpoint.damaged(workdir, 16) == []
    assert [(workdir / name).read_text() for name in MINE] == ["mine"] * 3
    there = {p.name for p in workdir.rglob("*")}
    assert there.issuperset(before)  # where they were, or in quarantine
    return f"{said}: {'goes on' if result is not None else 'is refused'}"


def run(whole, again, folder: Path, seeds: range) -> list[str]:
    told = []
    for seed in seeds:
        try:
            told.append(check(whole, again, folder / str(seed), seed))
        except BaseException as error:
            error.add_note(f"seed {seed}")
            raise
        shutil.rmtree(folder / str(seed))
    return told


@pytest.mark.ci
@pytest.mark.parametrize("part", small.in_turns(range(4), [0]))
@pytest.mark.fault(
    "any file of a workdir changed, cut, deleted, or replaced by a link, a pipe or a folder",
    "noticed, or the run ends with the same state; nothing else is touched",
)
def test_damage_anywhere_is_noticed_or_harmless(whole, again, tmp_path, part):
    told = run(whole, again, tmp_path, range(50 * part, 50 * part + 50))
    assert len(told) == 50
    assert sum("goes on" in line for line in told) > 25, told


@pytest.mark.nightly
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("part", range(8))
@pytest.mark.fault("the same, 2,000 times", "the same")
def test_damage_anywhere_is_noticed_or_harmless_2000(whole, again, tmp_path, part):
    told = run(whole, again, tmp_path, range(1000 + 250 * part, 1000 + 250 * part + 250))
    assert len(told) == 250
    if folder := os.environ.get("MMJAX_DAMAGE_LOG"):
        (Path(folder) / f"damage_{part}.txt").write_text("\n".join(told))
