"""Whole runs: what a workdir holds, how a run ends, and that stopping one changes nothing."""

from __future__ import annotations

import dataclasses
import itertools
import json
import logging
import math
import os
import random
import shutil
import signal
import subprocess
import sys
import time
import types
from pathlib import Path

import jax
import mini
import numpy as np
import pytest
from etils import epath

import mmjax
from mmjax import checkpoint, cli, config, errors, train
from mmjax.data.source import BadRecord
from mmjax.data.task import Variant
from mmjax.run import evaluations, lifecycle, metrics

ONE = jax.devices()[:1]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """(workdir, result) of a run that nothing interrupts."""
    workdir = tmp_path_factory.mktemp("runs") / "whole"
    return workdir, mmjax.train(mini.get_config(), workdir, devices=ONE)


def states(result):
    return {name: getattr(result.state, name) for name in checkpoint.ITEMS}


# ------------------------------------------------------------------------ the unbroken run


def test_a_run_leaves_what_the_docs_say(whole):
    workdir, result = whole
    assert result.step == 12
    assert checkpoint.steps(workdir / "checkpoints") == [4, 8, 12]
    assert sorted(p.name.partition("@")[0] for p in (workdir / "tokenizers").iterdir()) == ["text"]
    run = json.loads((workdir / "run.json").read_text())
    assert run["starts"][0]["packages"]["jax"] == jax.__version__
    assert run["starts"][0]["seconds"]["compile"] > 0
    assert not list(workdir.rglob("*.partial"))
    mini.assert_same(states(result), mini.state(result.program, workdir, 12))


def test_every_step_is_logged_and_both_losses_fall(whole):
    rows = mini.rows(whole[0])
    assert sorted(rows) == list(range(1, 13))
    for task in ("text", "image_text"):
        losses = [r[f"train/{task}/loss"] for r in rows.values() if f"train/{task}/loss" in r]
        assert len(losses) >= 3
        assert losses[-1] < losses[0]


def test_both_experts_layers_report_their_load(whole):
    rows = mini.rows(whole[0])
    assert all("moe/layer_0/load_max" in row for row in rows.values())


def test_the_config_in_the_workdir_is_the_experiment(whole):
    text = json.loads((whole[0] / "config.json").read_text())
    assert config.from_json(text, config.seam_classes()) == mini.get_config()


def test_a_finished_run_does_nothing_more(whole, tmp_path, capfd):
    workdir = shutil.copytree(whole[0], tmp_path / "again")
    before = mini.rows(workdir)
    result = mmjax.train(mini.get_config(), workdir, devices=ONE)
    assert result.step == 12
    assert mini.rows(workdir) == before
    mini.assert_same(states(result), states(whole[1]))
    said = capfd.readouterr().err
    assert "resumed" in said
    assert f"done; mmjax report {workdir} makes a page" in said
    assert len(json.loads((workdir / "run.json").read_text())["starts"]) == 2
    assert f"{workdir}: at step 12 already, and total_steps=12: nothing to train" in said


# -------------------------------------------------------------------------- stop and go on


def test_a_run_that_was_stopped_and_resumed_is_the_same(whole, tmp_path, capfd):
    stopped = mini.get_config(evaluators={"stop": mini.StopAt(every=7)})
    with pytest.raises(errors.Preempted, match="SIGTERM: saved step 8"):
        mmjax.train(stopped, tmp_path / "run", devices=ONE)
    assert checkpoint.steps(tmp_path / "run" / "checkpoints")[-1] == 8
    assert max(mini.rows(tmp_path / "run")) == 8
    result = mmjax.train(mini.get_config(), tmp_path / "run", devices=ONE)
    assert f"resumed {tmp_path / 'run'} at step 8" in capfd.readouterr().err
    assert mini.rows(tmp_path / "run") == mini.rows(whole[0])
    mini.assert_same(states(result), states(whole[1]))


def damage(workdir: Path, step: int, item: str = "params") -> None:
    """Turns one byte of the largest file of an item."""
    files = [p for p in (workdir / "checkpoints" / str(step) / item).rglob("*") if p.is_file()]
    file = max(files, key=lambda p: p.stat().st_size)
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def test_a_damaged_checkpoint_is_not_used_and_is_written_anew(whole, tmp_path, caplog):
    workdir = shutil.copytree(whole[0], tmp_path / "damaged")
    damage(workdir, 12)
    assert checkpoint.choose_step(str(workdir))[1] == 8
    with pytest.raises(errors.NoCheckpoint, match="damaged"):
        checkpoint.choose_step(f"{workdir}@12")
    with caplog.at_level(logging.WARNING, "mmjax"):
        result = mmjax.train(mini.get_config(), workdir, devices=ONE)
    assert "12" in caplog.text
    assert "damaged" in caplog.text
    mini.assert_same(states(result), states(whole[1]))
    assert checkpoint.damaged(workdir, 12) == []
    assert mini.rows(workdir) == mini.rows(whole[0])


def test_a_save_that_was_cut_off_is_ignored_and_cleaned_up(whole, tmp_path):
    workdir = shutil.copytree(whole[0], tmp_path / "cut")
    (workdir / "checkpoints" / "12" / "manifest.json").unlink()
    assert checkpoint.choose_step(str(workdir))[1] == 8
    result = mmjax.train(mini.get_config(), workdir, devices=ONE)
    mini.assert_same(states(result), states(whole[1]))
    assert checkpoint.steps(workdir / "checkpoints") == [4, 8, 12]


def test_a_run_without_a_whole_checkpoint_says_so(whole, tmp_path):
    workdir = shutil.copytree(whole[0], tmp_path / "damaged")
    for step in (4, 8, 12):
        damage(workdir, step)
    with pytest.raises(errors.NoCheckpoint, match="damaged"):
        mmjax.train(mini.get_config(), workdir, devices=ONE)


# ---------------------------------------------------------------------------- being refused


def mmjax_train(workdir, *args: str) -> int:
    return cli.main(["train", mini.__file__, "--workdir", str(workdir), *args])


def test_a_second_run_in_a_workdir_exits_76(tmp_path, capsys):
    with lifecycle.lock(tmp_path):
        assert mmjax_train(tmp_path) == 76
    assert f"pid {os.getpid()}" in capsys.readouterr().err


def test_the_workdir_of_another_experiment_exits_2_and_shows_the_difference(whole, capsys):
    before = (whole[0] / "config.json").read_text()
    assert mmjax_train(whole[0], "--optimizer.learning-rate", "0.5", "--seed", "3") == 2
    said = capsys.readouterr().err
    assert "another experiment" in said
    assert "optimizer.learning_rate" in said
    assert "0.003" in said
    assert "0.5" in said
    assert "seed" in said
    assert "use another --workdir" in said
    assert (whole[0] / "config.json").read_text() == before


def test_a_refusal_lists_only_what_may_not_change(whole, capsys):
    changed = ("--optimizer.learning-rate", "0.5", "--logging.log-every", "7", "--total-steps", "9")
    assert mmjax_train(whole[0], *changed) == 2
    said = capsys.readouterr().err
    assert "optimizer.learning_rate" in said
    assert "log_every" not in said
    assert "total_steps" not in said


def test_a_workdir_that_cannot_be_written_exits_74(tmp_path, monkeypatch, capsys):
    opened = lifecycle.os.open

    def refuse(path, *args, **kwargs):
        if str(path).startswith(str(tmp_path)):
            raise PermissionError(13, "Permission denied", str(path))
        return opened(path, *args, **kwargs)

    monkeypatch.setattr(lifecycle.os, "open", refuse)
    assert mmjax_train(tmp_path) == 74
    said = capsys.readouterr().err
    assert str(tmp_path) in said
    assert "--workdir" in said


def test_a_workdir_that_is_a_file_is_the_users_mistake(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert mmjax_train(tmp_path / "file") == 2
    assert mmjax_train(tmp_path / "file" / "below") == 2
    assert str(tmp_path / "file") in capsys.readouterr().err


# ------------------------------------------------------------------------------- bad data


@pytest.mark.slow
def test_a_bad_record_is_replaced_and_counted(tmp_path):
    source = mini.Spoilt(every=97, image_nan=True)
    guards = dataclasses.replace(mini.get_config().guards, max_bad_fraction=0.1)
    result = mmjax.train(mini.with_source(source, guards=guards), tmp_path, devices=ONE)
    rows = mini.rows(tmp_path)
    bad = [
        value for row in rows.values() for name, value in row.items()
        if name.startswith("data/image_text/bad/")
    ]  # fmt: skip
    assert bad
    assert all(value >= 1 for value in bad)
    total = [row["data/bad/not_finite"] for row in rows.values() if "data/bad/not_finite" in row]
    assert sum(total) == sum(bad)
    assert not any(n.startswith("data/text/bad") for row in rows.values() for n in row)
    assert all(math.isfinite(row["train/loss"]) for row in rows.values())
    assert result.step == 12


def test_too_much_bad_data_exits_65_and_names_records(tmp_path):
    experiment = mini.with_source(mini.Spoilt(every=3, image_nan=True))
    with pytest.raises(errors.BadDataError) as caught:
        mmjax.train(experiment, tmp_path, devices=ONE)
    assert cli.EXIT_CODES[type(caught.value)] == 65
    for word in ("Spoilt", "train", "max_bad_fraction", "NaN", "records"):
        assert word in str(caught.value)


@pytest.mark.ci
def test_what_evaluators_lack_is_told_before_anything_is_compiled(tmp_path):
    experiment = mini.evaluated()
    gone = dataclasses.replace(experiment.data, eval_split="gone")
    with pytest.raises(errors.ConfigError, match=r"Evaluator 'losses': .*no split 'gone'.*val"):
        mmjax.train(
            dataclasses.replace(experiment, data=gone), tmp_path, devices=ONE,
            before_compile=lambda _: pytest.fail("it compiles"),
        )  # fmt: skip


def test_bad_records_are_told_of_and_counted_once_in_evaluation(tmp_path, capfd):
    clock, program = types.SimpleNamespace(), types.SimpleNamespace()
    program.experiment = types.SimpleNamespace(evaluators={})
    writer = metrics.Writer(epath.Path(tmp_path), True)
    made = evaluations.Evaluations(program, epath.Path(tmp_path), writer, clock, True)  # type: ignore[arg-type]
    made._bad["val", "7.jpg"] = BadRecord("broken_image", "it is cut")
    for _ in range(2):
        made._say_bad()
        made._count_bad(4)
    writer.close()
    said = capfd.readouterr().err
    assert said.count("a bad record of split 'val': 7.jpg (broken_image: it is cut)") == 1
    (row,) = metrics.read(tmp_path)[0]
    assert row["data/val/bad/broken_image"] == 1


@pytest.mark.parametrize("text", ["", "a caption that is far longer than " + "its budget " * 20])
@pytest.mark.slow
def test_empty_and_overlong_captions_train(text, tmp_path):
    source = mini.Spoilt(every=3, text=text)
    mmjax.train(mini.with_source(source), tmp_path, devices=ONE)
    rows = mini.rows(tmp_path).values()
    for task in ("text", "image_text"):
        cut = [row[f"data/{task}/cut/text"] for row in rows if f"data/{task}/cut/text" in row]
        assert (max(cut) > 0) == bool(text), (task, cut)
    assert all(math.isfinite(row["train/loss"]) for row in rows)
    assert all(row.get("train/text/skipped", 0) == 0 for row in rows)


# ------------------------------------------------------------------------------- the loop


@pytest.mark.slow
def test_there_is_one_executable_for_each_task_and_variant(tmp_path, caplog):
    base = mini.get_config()
    variants = {"default": Variant(), "small": Variant(batch_size=8, group_rows=1)}
    tasks = {**base.tasks, "text": dataclasses.replace(base.tasks["text"], variants=variants)}
    jax.config.update("jax_log_compiles", True)
    try:
        with caplog.at_level(logging.WARNING, "jax"):
            mmjax.train(mini.get_config(tasks=tasks), tmp_path, devices=ONE)
    finally:
        jax.config.update("jax_log_compiles", False)
    assert caplog.text.count("Finished XLA compilation of jit(step)") == 3
    rows = mini.rows(tmp_path).values()
    slots = {row["data/text/slots"] for row in rows if "data/text/slots" in row}
    assert len(slots) == 2  # both variants ran


def test_the_transfer_guard_is_on(tmp_path, monkeypatch):
    monkeypatch.setattr(train.loader, "to_global", lambda batch, sharding: jax.device_get(batch))
    with pytest.raises(Exception, match="Disallowed host-to-device transfer"):
        mmjax.train(mini.get_config(), tmp_path, devices=ONE)


@pytest.mark.slow
def test_losses_that_stay_not_finite_end_the_run(tmp_path, monkeypatch):
    def spoil(batch, sharding):
        weight = {k: t._replace(weight_WU=t.weight_WU * np.nan) for k, t in batch.targets.items()}
        return put(batch._replace(targets=weight), sharding)

    put = train.loader.to_global
    monkeypatch.setattr(train.loader, "to_global", spoil)
    guards = dataclasses.replace(mini.get_config().guards, max_skipped_steps=2)
    text = {"text": mini.get_config().tasks["text"]}
    with pytest.raises(errors.NumericsError, match="not finite for 3 steps in a row"):
        mmjax.train(mini.get_config(guards=guards, tasks=text), tmp_path, devices=ONE)


# ------------------------------------------------------------------- processes of their own


def start(workdir: Path, *args: str) -> subprocess.Popen:
    """`mmjax train` on one device."""
    flags = os.environ["XLA_FLAGS"].replace("device_count=8", "device_count=1")
    root = Path(mmjax.__file__).parent.parent
    env = {**os.environ, "XLA_FLAGS": flags, "PYTHONPATH": f"{root}:{root / 'tests'}"}
    command = [sys.executable, "-m", "mmjax", "train", mini.__file__, "--workdir", str(workdir)]
    with (workdir.parent / f"{workdir.name}.log").open("ab") as log:
        return subprocess.Popen([*command, *args], env=env, stdout=log, stderr=log)


def logged(workdir: Path) -> int:
    file = workdir / "metrics.jsonl"
    return len(file.read_text().splitlines()) if file.exists() else 0


@pytest.mark.ci
@pytest.mark.timeout(600)  # five processes one after another: 275 s on a machine at a load of 9
def test_killed_at_random_moments_a_run_ends_the_same(whole, tmp_path):
    workdir, rng = tmp_path / "killed", random.Random(0)
    kills, args = 0, ("--checkpoint.every", "1")
    for moment in range(3):
        process, before = start(workdir, *args), logged(workdir)
        if moment:  # a few logged steps later, anywhere in a step or in a save
            more = rng.randint(1, 4)
            while logged(workdir) < before + more and process.poll() is None:
                time.sleep(0.01)
            time.sleep(rng.uniform(0.0, 0.4))
        else:  # while it starts
            time.sleep(rng.uniform(0.5, 5.0))
        kills += process.poll() is None
        process.kill()
        process.wait()
    assert kills == 3, "the run ended before it could be killed"
    assert start(workdir, *args).wait() == 0, (tmp_path / "killed.log").read_text()
    assert mini.rows(workdir) == mini.rows(whole[0])
    mini.assert_same(mini.state(whole[1].program, workdir, 12), states(whole[1]))


@pytest.mark.ci
def test_sigterm_saves_and_exits_75(whole, tmp_path):
    workdir = tmp_path / "run"
    process = start(workdir, "--checkpoint.every", "0")
    while not logged(workdir) and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    assert process.wait() in (0, 75)
    assert checkpoint.steps(workdir / "checkpoints")
    result = mmjax.train(mini.get_config(), workdir, devices=ONE)
    assert mini.rows(workdir) == mini.rows(whole[0])
    mini.assert_same(states(result), states(whole[1]))


@pytest.mark.ci
def test_eight_devices_give_the_losses_of_one(whole, tmp_path):
    result = mmjax.train(mini.get_config(), tmp_path)
    assert result.program.mesh.size == 8
    one, eight = mini.rows(whole[0]), mini.rows(tmp_path)
    assert one.keys() == eight.keys()
    for step, row in one.items():
        for name, value in row.items():
            if not name.startswith("moe/"):
                np.testing.assert_allclose(eight[step][name], value, rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(eight[step]["train/loss"], row["train/loss"], atol=2e-5)


@pytest.mark.slow
def test_the_tiny_demo_trains_and_is_evaluated(tmp_path):
    experiment = config.load(f"{mini.QUICKSTART}:tiny")
    result = mmjax.train(experiment, tmp_path, devices=ONE)
    assert result.step == 12
    pairs = itertools.permutations(experiment.modalities, 2)
    assert {f"retrieval/{a}_to_{b}_R@1" for a, b in pairs} <= set(result.metrics)
    losses = mmjax.evaluate(str(tmp_path))
    assert losses["image_to_text_R@1"]["chance"] == 0.01
