"""Nothing of a user's is deleted: what goes is what mmjax can prove to be its own."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil

import jax
import mini
import pytest
from etils import epath

import mmjax
from mmjax import checkpoint, cli, errors
from mmjax.run import keeping

ONE = jax.devices()[:1]


def end(workdir, **checkpointing):
    """The state of a run that goes on to its end."""
    settings = dataclasses.replace(mini.get_config().checkpoint, **checkpointing)
    return mmjax.train(mini.get_config(checkpoint=settings), workdir, devices=ONE).state


def steps(workdir) -> list[int]:
    return checkpoint.steps(workdir / "checkpoints")


@pytest.mark.fault("a folder of one's own beside the checkpoints", "stays")
def test_what_is_not_ours_beside_the_checkpoints_stays(workdir):
    folder = workdir / "checkpoints"
    (folder / "my_backup").mkdir()
    (folder / "my_backup" / "weights").write_text("mine")
    (folder / ".DS_Store").write_text("mine")
    (folder / "notes.saving").write_text("mine")
    (folder / "4" / "notes.txt").write_text("mine")
    shutil.rmtree(folder / "12")
    end(workdir, keep=1)  # which also retires step 4
    assert steps(workdir) == [12]
    kept = ("my_backup/weights", ".DS_Store", "notes.saving", "4/notes.txt")
    assert [(folder / name).read_text() for name in kept] == ["mine"] * 4
    assert sorted(p.name for p in (folder / "4").rglob("*")) == ["notes.txt"]


@pytest.mark.fault("all manifests are gone", "exit 66 with a reason for each; nothing is touched")
def test_without_any_manifest_nothing_starts_from_scratch(workdir, capsys):
    for step in (4, 8, 12):
        (workdir / "checkpoints" / str(step) / "manifest.json").unlink()
    before = sorted(p for p in workdir.rglob("*") if p.name != "lock")
    assert cli.main(["train", mini.__file__, "--workdir", str(workdir)]) == 66
    said = capsys.readouterr().err
    assert said.count("it has no manifest.json") == 3
    assert "to start from scratch, move" in said
    assert sorted(p for p in workdir.rglob("*") if p.name != "lock") == before


@pytest.mark.fault(
    "one manifest is gone", "the older step is used; the other is moved to quarantine/"
)
@pytest.mark.slow
def test_a_step_that_lost_its_manifest_is_put_aside(unbroken, workdir, caplog):
    (workdir / "checkpoints" / "12" / "manifest.json").unlink()
    mini.assert_same(end(workdir), unbroken[1].state)
    assert "checkpoint 12" in caplog.text
    assert "has no manifest.json" in caplog.text
    (aside,) = (workdir / "quarantine").iterdir()
    assert aside.name.startswith("12-")
    assert (aside / "params").is_dir()


@pytest.mark.fault("a folder named as a step where a save goes", "it is moved to quarantine/")
def test_a_folder_in_the_way_of_a_save_is_put_aside(unbroken, tmp_path):
    saver = checkpoint.Saver(epath.Path(tmp_path), checkpoint.Checkpointing())
    mine = tmp_path / "checkpoints" / "12"
    mine.mkdir()
    (mine / "mine").write_text("mine")
    manifest = json.loads((unbroken[0] / "checkpoints" / "12" / "manifest.json").read_text())
    saver.save(unbroken[1].state, manifest)
    saver.close()
    assert steps(tmp_path) == [12]
    assert checkpoint.damaged(tmp_path, 12) == []
    (aside,) = (tmp_path / "quarantine").iterdir()
    assert (aside / "mine").read_text() == "mine"


@pytest.mark.fault("a save was cut off by a kill", "its half, which a note proves, is deleted")
def test_a_half_save_is_deleted_and_nothing_else(unbroken, workdir):
    folder = workdir / "checkpoints"
    (folder / "12" / "manifest.json").unlink()
    (folder / "12.saving").write_text("{}")
    (folder / "12.orbax-checkpoint-tmp-3").mkdir()
    (folder / "16.orbax-checkpoint-tmp-3").mkdir()  # no note says that this one is ours
    checkpoint.recover(folder)
    assert sorted(p.name for p in folder.iterdir()) == ["16.orbax-checkpoint-tmp-3", "4", "8"]
    mini.assert_same(end(workdir), unbroken[1].state)
    assert not (workdir / "quarantine").exists()


@pytest.mark.fault("a kill between the manifest and the end of its save", "the step is whole")
def test_a_note_beside_a_manifest_deletes_nothing(workdir):
    (workdir / "checkpoints" / "12.saving").write_text("{}")
    checkpoint.recover(workdir / "checkpoints")
    assert steps(workdir) == [4, 8, 12]
    assert not (workdir / "checkpoints" / "12.saving").exists()


@pytest.mark.fault("a kill while an old step was deleted", "it is not listed; the rest is deleted")
def test_a_retirement_that_was_cut_off_is_ended(workdir):
    folder = workdir / "checkpoints"
    (folder / "4" / "manifest.json").rename(folder / "4" / "retired.json")
    (folder / "4" / "_CHECKPOINT_METADATA").unlink()
    assert steps(workdir) == [8, 12]
    checkpoint.recover(folder)
    assert not (folder / "4").exists()
    assert steps(workdir) == [8, 12]


@pytest.mark.fault("an old step whose manifest cannot be read", "is left alone by retention")
def test_retention_leaves_alone_what_it_cannot_prove(workdir, caplog):
    file = workdir / "checkpoints" / "4" / "manifest.json"
    file.write_text(file.read_text().replace("step", "stop", 1))
    assert not keeping.retire(epath.Path(workdir / "checkpoints"), 4)
    assert "is left alone" in caplog.text
    assert (workdir / "checkpoints" / "4" / "params").is_dir()


@pytest.mark.fault("the newest step is damaged before old ones are retired", "it does not count")
def test_retention_counts_whole_steps_alone(unbroken, tmp_path):
    saver = checkpoint.Saver(epath.Path(tmp_path), checkpoint.Checkpointing(keep=1))
    manifest = json.loads((unbroken[0] / "checkpoints" / "12" / "manifest.json").read_text())
    for step in (1, 2):
        saver.save(unbroken[1].state, {**manifest, "step": step})
        saver.wait()
    assert steps(tmp_path) == [2]
    (tmp_path / "checkpoints" / "2" / "_CHECKPOINT_METADATA").write_text("{}")
    saver.save(unbroken[1].state, {**manifest, "step": 3})
    saver.wait()
    (tmp_path / "checkpoints" / "3" / "params" / "manifest.ocdbt").write_bytes(b"")
    saver._retain()  # as a save that ends now would: none but 2 and 3, both damaged, is there
    saver.close()
    assert steps(tmp_path) == [3]  # 2 was retired when 3 was whole; 3 stays though it is damaged


@pytest.mark.fault("--checkpoint.keep -1", "exit 2 before anything is written")
def test_a_negative_keep_is_refused(tmp_path, capsys):
    args = ["train", mini.__file__, "--workdir", str(tmp_path / "run"), "--checkpoint.keep", "-1"]
    assert cli.main(args) == 2
    assert "keep=-1" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


# ----------------------------------------------------------------------------- names of workdirs


@pytest.mark.fault("a workdir `lr@3` beside `lr`", "is a workdir of its own, whole and resumed")
@pytest.mark.slow
def test_a_workdir_is_never_read_as_a_step_of_another(unbroken, tmp_path):
    shutil.copytree(unbroken[0], tmp_path / "lr")
    own = shutil.copytree(unbroken[0], tmp_path / "lr@4")
    shutil.rmtree(own / "checkpoints" / "12")
    mini.assert_same(end(own), unbroken[1].state)
    assert steps(own) == [4, 8, 12]
    assert steps(tmp_path / "lr") == [4, 8, 12]
    assert checkpoint.choose_step(f"{tmp_path}/lr@4") == (epath.Path(own), 12)
    assert checkpoint.choose_step(f"{tmp_path}/lr@8") == (epath.Path(tmp_path / "lr"), 8)


@pytest.mark.parametrize("name", ["lr@3", "lr@best:loss"])
@pytest.mark.fault("a new workdir whose name reads as a step of another", "is refused (exit 2)")
def test_a_new_workdir_that_reads_as_a_path_is_refused(name, tmp_path, capsys):
    assert cli.main(["train", mini.__file__, "--workdir", f"{tmp_path}/{name}"]) == 2
    assert "choose a name that does not end in @STEP" in capsys.readouterr().err
    assert not (tmp_path / name).exists()


# ------------------------------------------------------------------------ other things that go


@pytest.mark.fault("tokenizers in a workdir without a checkpoint", "are moved to quarantine/")
@pytest.mark.slow
def test_tokenizers_without_a_checkpoint_are_put_aside(tmp_path):
    mine = tmp_path / "run" / "tokenizers" / "text@000000000000"
    mine.mkdir(parents=True)
    (mine / "mine").write_text("mine")
    mmjax.train(mini.get_config(), tmp_path / "run", devices=ONE)
    (aside,) = (tmp_path / "run" / "quarantine").iterdir()
    assert (aside / "text@000000000000" / "mine").read_text() == "mine"


@pytest.mark.fault("`checkpoints/12` is a link to a folder elsewhere", "it is not followed")
@pytest.mark.slow
def test_a_step_that_is_a_link_is_not_used(unbroken, workdir, tmp_path):
    elsewhere = tmp_path / "elsewhere"
    (workdir / "checkpoints" / "12").rename(elsewhere)
    os.symlink(elsewhere, workdir / "checkpoints" / "12")
    mini.assert_same(end(workdir, keep=1), unbroken[1].state)
    assert (elsewhere / "manifest.json").exists()
    assert steps(workdir) == [12]
    assert not (workdir / "checkpoints" / "12").is_symlink()


@pytest.mark.fault(
    "a samples.json that names files elsewhere", "`generate --overwrite` deletes none"
)
def test_overwriting_samples_deletes_no_file_elsewhere(tmp_path):
    from mmjax.generate import verbs

    (tmp_path / "mine").write_text("mine")
    out = tmp_path / "out"
    out.mkdir()
    sample = {"index": 0, "files": {"text": "../mine"}}
    (out / "samples.json").write_text(json.dumps({"request": {}, "samples": [sample]}))
    assert verbs._former(out, overwrite=True) is None
    with pytest.raises(mmjax.ConfigError, match="holds files that are no samples"):
        verbs._former(out, overwrite=False)
    assert (tmp_path / "mine").read_text() == "mine"


@pytest.mark.fault("a file of one's own in an export", "`export --overwrite` refuses and names it")
def test_overwriting_an_export_deletes_no_other_file(tmp_path):
    from mmjax.export import folder

    target, made = tmp_path / "out", tmp_path / "made"
    for place in (target, made):
        place.mkdir()
        (place / "parity.json").write_text('{"files": ["config.json"]}')
        (place / "config.json").write_text("{}")
    (target / "tuned.safetensors").write_text("mine")
    with pytest.raises(mmjax.ConfigError, match=r"tuned\.safetensors, which no export wrote"):
        folder._replace(target, made)
    assert (target / "tuned.safetensors").read_text() == "mine"
    (target / "tuned.safetensors").unlink()
    folder._replace(target, made)
    assert not made.exists()


def test_no_checkpoint_is_an_error_of_its_own(tmp_path):
    with pytest.raises(errors.NoCheckpoint):
        checkpoint.choose(str(tmp_path))
