"""What a manifest, run.json, config.json and metrics.jsonl say is as safe as the arrays."""

from __future__ import annotations

import dataclasses
import errno
import json
import os
import shutil

import jax
import mini
import numpy as np
import pytest
from etils import epath

import mmjax
from mmjax import checkpoint, cli, errors, files, load
from mmjax.run import manifest as manifest_lib
from mmjax.run import records

ONE = jax.devices()[:1]


def go_on(workdir):
    return mmjax.train(mini.get_config(), workdir, devices=ONE).state


def edit(workdir, sealed: bool = False, **fields) -> None:
    """Other values in the newest manifest; `sealed` = with a digest that fits them."""
    file = workdir / "checkpoints" / "12" / "manifest.json"
    manifest = {**json.loads(file.read_text()), **fields}
    file.write_text(json.dumps(manifest_lib.sealed(manifest) if sealed else manifest))


# ---------------------------------------------------------------------------- the manifest


@pytest.mark.parametrize(
    "fields",
    [{"format": 99}, {"journal": [[0, {"weights": {"text": 9}}]]}, {"items": ["params"]}, {"x": 1}],
)
@pytest.mark.fault(
    "a manifest with another value", "the older step is used; the other is put aside"
)
@pytest.mark.slow
def test_a_manifest_that_was_edited_is_damaged(unbroken, workdir, fields, caplog):
    edit(workdir, **fields)
    assert checkpoint.choose_step(str(workdir))[1] == 8
    mini.assert_same(go_on(workdir), unbroken[1].state)
    assert "its content differs from its own digest" in caplog.text
    assert checkpoint.damaged(workdir, 12) == []


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"\0" * 999,
        b"[]",
        b"[" * 100_000,
        b'{"step": NaN}',
        b"\xff\xfe",
        b'{"a":1,"a":1}',
    ],
)
@pytest.mark.fault("a manifest that is no JSON object", "the older step is used")
def test_a_manifest_that_cannot_be_read_is_damaged(workdir, content):
    (workdir / "checkpoints" / "12" / "manifest.json").write_bytes(content)
    assert checkpoint.choose_step(str(workdir))[1] == 8
    (wrong,) = checkpoint.damaged(workdir, 12)
    assert wrong.startswith("manifest.json: it ")
    with pytest.raises(errors.NoCheckpoint, match="damaged"):
        checkpoint.choose(f"{workdir}@12")


@pytest.mark.fault(
    "a whole manifest of a later format", "exit 66, naming both formats; no fallback"
)
def test_a_checkpoint_of_a_later_version_is_not_put_aside(workdir):
    edit(workdir, sealed=True, format=99)
    with pytest.raises(errors.NoCheckpoint, match="has format 99 and this version"):
        go_on(workdir)
    assert not (workdir / "quarantine").exists()
    assert checkpoint.choose_step(f"{workdir}@8")[1] == 8


@pytest.mark.fault("a manifest of another step", "the older step is used")
def test_a_manifest_of_another_step_is_damaged(workdir):
    edit(workdir, sealed=True, step=8)
    assert checkpoint.choose_step(str(workdir))[1] == 8


@pytest.mark.fault("a manifest that names files outside of its folder", "the older step is used")
def test_a_manifest_names_files_of_its_folder_alone(workdir):
    edit(workdir, sealed=True, files={"../8/manifest.json": "0" * 64})
    assert "no file of a checkpoint" in checkpoint.damaged(workdir, 12)[0]


@pytest.mark.fault("`items` without opt_state", "exit 66, naming what is missing")
@pytest.mark.slow
def test_a_checkpoint_of_weights_alone_does_not_resume(workdir):
    edit(workdir, sealed=True, items=["params", "model_state"])
    with pytest.raises(errors.NoCheckpoint, match="holds no opt_state"):
        go_on(workdir)
    assert load.load(str(workdir), devices=ONE).step == 12  # weights are all that it needs


@pytest.mark.fault("arrays read are not those that were saved", "exit 66")
def test_arrays_that_differ_from_their_digest_are_refused(workdir):
    digests = dict.fromkeys(checkpoint.ITEMS, "0" * 64)
    edit(workdir, sealed=True, state=digests)
    for call in (go_on, lambda w: load.load(str(w), devices=ONE)):
        with pytest.raises(errors.NoCheckpoint, match="differ from what was saved"):
            call(workdir)


@pytest.mark.fault("a config that asks for narrower numbers than were saved", "exit 66, no cast")
def test_restoring_into_another_dtype_is_refused(unbroken, workdir):
    like = unbroken[1].program.abstract_state()._asdict()

    def narrow(x):
        return jax.ShapeDtypeStruct(x.shape, np.dtype("float16"), sharding=x.sharding)

    with pytest.raises(errors.NoCheckpoint, match="another type of number"):
        checkpoint.restore(workdir, 12, {"params": jax.tree.map(narrow, like["params"])})


@pytest.mark.slow
def test_a_checkpoint_of_the_first_format_is_read(unbroken, workdir):
    for step in (4, 8, 12):
        file = workdir / "checkpoints" / str(step) / "manifest.json"
        old = json.loads(file.read_text())
        old = {k: v for k, v in old.items() if k not in ("state", "digest")} | {"format": 1}
        file.write_text(json.dumps(old))
    mini.assert_same(go_on(workdir), unbroken[1].state)
    # A digest that is there counts, whatever format is claimed.
    edit(workdir, format=1, digest="0" * 64)
    assert checkpoint.choose_step(str(workdir))[1] == 8


# ------------------------------------------------------------------------- run.json, config.json

DAMAGE = {
    "deleted": None,
    "empty": b"",
    "cut": b'{"identity": {"model": "3',
    "NUL": b"\0\0\0",
    "a list": b"[]",
    "without starts": b'{"identity": {}}',
}


def spoil(path, content: bytes | None) -> None:
    path.unlink() if content is None else path.write_bytes(content)


@pytest.mark.parametrize("content", DAMAGE.values(), ids=DAMAGE)
@pytest.mark.fault("run.json deleted, empty or cut", "written anew, and said; the run goes on")
@pytest.mark.slow
def test_a_damaged_run_json_is_written_anew(unbroken, workdir, content, capsys):
    spoil(workdir / "run.json", content)
    mini.assert_same(go_on(workdir), unbroken[1].state)
    assert "run.json: it " in (said := capsys.readouterr().err)
    assert "it is written anew" in said
    assert len(records.read_run(workdir)["starts"]) == 1
    assert (workdir / "quarantine").exists() == (content is not None)


@pytest.mark.parametrize("content", DAMAGE.values(), ids=DAMAGE)
@pytest.mark.fault("run.json damaged, and another experiment started", "exit 2: still refused")
def test_without_run_json_the_identity_is_still_checked(workdir, content):
    spoil(workdir / "run.json", content)
    with pytest.raises(mmjax.ConfigError, match="belongs to another experiment"):
        mmjax.train(mini.get_config(seed=7), workdir, devices=ONE)


@pytest.mark.fault("another identity written into run.json", "that of the checkpoint counts")
def test_the_identity_of_the_checkpoint_counts(workdir):
    run = records.read_run(workdir)
    other = mini.get_config(seed=7)
    identity = {
        k: mmjax.config.fingerprint(mmjax.config.identity(other, k)) for k in run["identity"]
    }
    records.write_run(workdir, {**run, "identity": identity})
    with pytest.raises(mmjax.ConfigError, match="belongs to another experiment"):
        mmjax.train(other, workdir, devices=ONE)


@pytest.mark.parametrize("content", [*DAMAGE.values(), b'{"config": {}}'])
@pytest.mark.fault("config.json deleted, empty or cut", "readers: exit 66 with the remedy")
@pytest.mark.slow
def test_a_damaged_config_json_is_told_to_readers(workdir, content, capsys):
    spoil(workdir / "config.json", content)
    given = ["--given", "text=a", "--out", f"{workdir}/e.npy"]
    for args in (["eval", str(workdir)], ["embed", str(workdir), *given]):
        assert cli.main(args) == 66
        assert "config.json" in capsys.readouterr().err
    go_on(workdir)
    assert "config.json: it" in (said := capsys.readouterr().err)
    assert "it is written anew" in said
    assert records.read_config(workdir)


@pytest.mark.fault("a value of config.json was changed", "readers: exit 66")
def test_a_config_json_that_was_edited_is_told_to_readers(workdir):
    file = workdir / "config.json"
    file.write_text(file.read_text().replace('"seed": 0', '"seed": 1', 1))
    with pytest.raises(errors.NoCheckpoint, match="damaged or edited"):
        load.load(str(workdir), devices=ONE)


@pytest.mark.fault("config.json damaged, and another experiment started", "exit 2: still refused")
def test_without_config_json_another_experiment_is_refused(workdir):
    (workdir / "config.json").write_text("")
    with pytest.raises(mmjax.ConfigError, match="which fields cannot be told"):
        mmjax.train(mini.get_config(seed=7), workdir, devices=ONE)


# --------------------------------------------------------------------------------- metrics.jsonl


@pytest.mark.parametrize(
    "last", [b'{"step": 12, "tra', b"\0" * 50, b"\xff", b"7", b'{"step": "x"}']
)
@pytest.mark.fault(
    "the last line of metrics.jsonl cut or NUL", "left out, and said; the file is kept"
)
@pytest.mark.slow
def test_a_line_of_metrics_that_was_cut_is_left_out(unbroken, workdir, last, caplog):
    file = workdir / "metrics.jsonl"
    rows = mini.rows(workdir)
    file.write_bytes(file.read_bytes() + last)
    mini.assert_same(go_on(workdir), unbroken[1].state)
    assert mini.rows(workdir) == rows
    assert "1 of its lines cannot be read" in caplog.text
    (aside,) = (workdir / "quarantine").iterdir()
    assert aside.read_bytes().endswith(last)


@pytest.mark.fault("checkpoints/ is gone as a whole", "starts anew, and says so; metrics are kept")
@pytest.mark.slow
def test_a_run_whose_checkpoints_are_gone_says_that_it_starts_anew(unbroken, workdir, caplog):
    shutil.rmtree(workdir / "checkpoints")
    before = (workdir / "metrics.jsonl").read_bytes()
    mini.assert_same(go_on(workdir), unbroken[1].state)
    assert "it reaches step 12 and no checkpoint was saved" in caplog.text
    (aside,) = (p for p in (workdir / "quarantine").iterdir() if p.name.startswith("metrics"))
    assert aside.read_bytes() == before


@pytest.mark.fault("another experiment started where a step is damaged", "nothing is moved")
def test_a_refused_experiment_moves_nothing(workdir):
    (workdir / "checkpoints" / "12" / "manifest.json").write_text("")
    with pytest.raises(mmjax.ConfigError, match="belongs to another experiment"):
        mmjax.train(mini.get_config(seed=7), workdir, devices=ONE)
    assert not (workdir / "quarantine").exists()


@pytest.mark.fault("a damaged file in evals/", "it is left out of WORKDIR@best:METRIC, and said")
def test_a_damaged_score_is_left_out(workdir, caplog):
    folder = workdir / "evals" / "losses"
    folder.mkdir(parents=True)
    (folder / "8.json").write_text('{"text_loss": 1.0}')
    (folder / "12.json").write_text('{"text_loss": 0.')
    assert checkpoint.choose_step(f"{workdir}@best:text_loss")[1] == 8
    assert "12.json is left out" in caplog.text


# ------------------------------------------------------------------------------------ tokenizers


@pytest.mark.fault("the tokenizers of a run are gone", "exit 66; nothing is learnt anew")
def test_a_run_does_not_learn_its_tokenizers_twice(workdir):
    shutil.rmtree(workdir / "tokenizers")
    with pytest.raises(errors.NoCheckpoint, match="the tokenizer of stream 'text' is not in"):
        go_on(workdir)
    assert not (workdir / "tokenizers").exists()


# ----------------------------------------------------------------------------- whole or not at all


def test_numbers_that_json_lacks_become_null(tmp_path):
    files.write_json(tmp_path / "a.json", {"x": [float("nan"), 1.0], "y": float("inf")})
    assert files.read_json(tmp_path / "a.json") == {"x": [None, 1.0], "y": None}


@pytest.mark.fault("the disk fails while a file is synced", "an error; the old file stays")
def test_a_file_that_the_disk_does_not_take_is_not_taken_for_written(tmp_path, monkeypatch):
    path = epath.Path(tmp_path) / "a.json"
    files.write_json(path, {"old": 1})

    def fail(descriptor):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="Input/output"):
        files.write_json(path, {"new": 2})
    assert files.read_json(path) == {"old": 1}


@pytest.mark.fault("a write that fails half-way", "the old file stays")
def test_a_file_is_written_whole_or_not_at_all(tmp_path):
    path = epath.Path(tmp_path) / "a.json"
    files.write_json(path, {"old": 1})
    with pytest.raises(TypeError):
        files.write_json(path, {"new": object()})
    assert files.read_json(path) == {"old": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]


@pytest.mark.fault("a JSON file of a workdir that is a pipe", "it is told, and not waited for")
def test_a_pipe_in_place_of_a_file_is_not_opened(workdir):
    (workdir / "config.json").unlink()
    os.mkfifo(workdir / "config.json")
    with pytest.raises(errors.NoCheckpoint, match="it is a pipe, not a file"):
        load.load(str(workdir), devices=ONE)


def test_seconds_of_verification_are_told(unbroken):
    seconds = records.read_run(unbroken[0])["starts"][-1]["seconds"]
    assert 0 < seconds["verify"] < seconds["compile"] + 60
    assert dataclasses.is_dataclass(checkpoint.Checkpointing)
