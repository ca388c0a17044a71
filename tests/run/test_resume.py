"""What may change between two starts of a run: refused, journalled or said."""

from __future__ import annotations

import dataclasses
import json
import shutil

import jax
import mini
import pytest
import toy_codes
from etils import epath

import mmjax
from mmjax import ConfigError, config, errors
from mmjax.data.folder import Folder
from mmjax.data.loss_driven import LossDriven
from mmjax.data.mixture import Journal, Mixture
from mmjax.experiment import Init
from mmjax.modalities.codes import Codes
from mmjax.parallel import MeshConfig
from mmjax.run import records, resume

ONE = jax.devices()[:1]
DRIVEN = Mixture(period=3, schedule=LossDriven(floor=0.34, ceiling=0.66, smoothing=0.0))


def journal(workdir, step: int) -> list:
    return json.loads((workdir / "checkpoints" / str(step) / "manifest.json").read_text())[
        "journal"
    ]


# --------------------------------------------------------------------------- whole runs


@pytest.mark.slow
def test_a_loss_driven_run_goes_on_in_the_middle_of_a_period(tmp_path):
    experiment = mini.get_config(mixture=DRIVEN)
    whole = mmjax.train(experiment, tmp_path / "whole", devices=ONE)
    stopped = dataclasses.replace(experiment, evaluators={"stop": mini.StopAt(every=6)})
    with pytest.raises(errors.Preempted, match="saved step 7"):
        mmjax.train(stopped, tmp_path / "run", devices=ONE)
    result = mmjax.train(experiment, tmp_path / "run", devices=ONE)
    mini.assert_same(result.state, whole.state)
    assert mini.rows(tmp_path / "run") == mini.rows(tmp_path / "whole")
    events = journal(tmp_path / "whole", 12)
    assert journal(tmp_path / "run", 12) == events
    begun, *revised = [(step, event["by"]) for step, event in events]
    assert begun == (0, "config")
    assert revised
    assert set(revised) <= {(step, "LossDriven") for step in (6, 9, 12)}
    shares = {step: event["weights"] for step, event in events}
    assert all(0.34 <= share <= 0.66 for share in shares[6].values())
    faster = max(shares[6], key=shares[6].__getitem__)
    rows = mini.rows(tmp_path / "whole")
    assert sum(f"train/{faster}/loss" in rows[step] for step in (7, 8, 9)) == 2
    logged = [json.loads(x) for x in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert any(row.get(f"mixture/{faster}") == shares[6][faster] for row in logged)


@pytest.mark.slow
def test_weights_that_have_changed_hold_from_the_resume_on(tmp_path, capfd):
    mmjax.train(mini.get_config(total_steps=4), tmp_path, devices=ONE)
    assert journal(tmp_path, 4) == [
        [0, {"weights": {"text": 1.0, "image_text": 1.0}, "by": "config"}]
    ]
    capfd.readouterr()
    more = mini.get_config(mixture=Mixture(weights={"text": 0.0}), total_steps=7)
    mmjax.train(more, tmp_path, devices=ONE)
    said = capfd.readouterr().err
    assert "weights of task 'text': 1 -> 0 from step 4 on" in said
    assert "total_steps: 4 -> 7; learning-rate schedules that depend on it" in said
    assert journal(tmp_path, 7)[1:] == [
        [4, {"weights": {"text": 0.0, "image_text": 1.0}, "by": "config"}]
    ]
    rows = mini.rows(tmp_path)
    assert all("train/image_text/loss" in rows[step] for step in (5, 6, 7))
    starts = json.loads((tmp_path / "run.json").read_text())["starts"]
    assert len(starts[1]["changed"]) == 2
    known = json.loads((tmp_path / "checkpoints" / "7" / "manifest.json").read_text())
    assert resume.course(more, known).journal.to_json() == known["journal"]


# ------------------------------------------------------------------------- checks alone


def manifest(experiment, *, step: int = 8, before: bool = False, **more) -> dict:
    """What a checkpoint of this experiment says; `before` = of an earlier version."""
    form = 1 if before else config.FORMAT
    known = {
        **{"identity": resume.identity(experiment, form, before=before), "config_format": form},
        **{"step": step, "mesh": {}, "tokenizers": {}, "journal": []},
    }
    if not before:
        known["journal"] = resume.course(experiment, None).journal.to_json()
    return known | more


def check(folder, old, new, **more) -> list[str]:
    """The lines of a resume of `old` with `new`."""
    folder = epath.Path(folder)
    records.write_config(folder, old)
    return resume.check(folder, new, manifest(old, **more), resume.fingerprints(new))


def test_a_run_of_an_earlier_version_goes_on_and_then_knows_its_weights(tmp_path):
    old = mini.get_config()
    known = manifest(old, before=True)
    assert known["identity"]["data"] != resume.identity(old)["data"]
    assert check(tmp_path, old, old, before=True) == []
    course = resume.course(old, known)
    assert course.journal == resume.course(old, None).journal
    changed = mini.get_config(mixture=Mixture(weights={"text": 2.0}))
    with pytest.raises(ConfigError, match="another experiment"):
        check(tmp_path, old, changed, before=True)


def test_weights_are_one_thing_wherever_they_are_written(tmp_path):
    old = mini.get_config(mixture=Mixture(weights={"text": 2.0}))
    tasks = {**old.tasks, "text": dataclasses.replace(old.tasks["text"], weight=2.0)}
    new = mini.get_config(tasks=tasks)
    assert check(tmp_path, old, new) == []
    assert resume.course(new, manifest(old)).journal == resume.course(old, None).journal


def test_an_interval_schedule_has_no_weights_to_change(tmp_path):
    base = mini.get_config()
    tasks = {n: dataclasses.replace(t, interval=1) for n, t in base.tasks.items()}
    old = mini.get_config(tasks=tasks, mixture=Mixture(schedule="interval"))
    weights = Mixture(schedule="interval", weights={"text": 2.0})
    with pytest.raises(ValueError, match="weights change at step 8, but schedule='interval'"):
        resume.course(dataclasses.replace(old, mixture=weights), manifest(old))
    more = {n: dataclasses.replace(t, interval=2) for n, t in tasks.items()}
    with pytest.raises(ConfigError, match=r"\(data differ\)(.|\n)*tasks.text.interval: 1 -> 2"):
        check(tmp_path, old, dataclasses.replace(old, tasks=more))


def test_what_may_change_is_said_with_what_follows(tmp_path):
    old = mini.get_config()
    new = mini.get_config(
        total_steps=20,
        init=Init(path="runs/other"),
        guards=dataclasses.replace(old.guards, max_skipped_steps=5),
        mesh=MeshConfig(data=1),
        logging=dataclasses.replace(old.logging, log_every=3),
    )
    lines = check(tmp_path, old, new)
    assert len(lines) == 4, lines
    said = dict(line.split(": ", 1) for line in lines)
    assert said["total_steps"].startswith("12 -> 20; learning-rate schedules that depend on it")
    assert said["init"].endswith("it is not read again, as parameters come from step 8")
    assert said["guards.max_skipped_steps"] == f"{old.guards.max_skipped_steps} -> 5"
    assert said["mesh.data"] == "-1 -> 1"


def test_another_mesh_is_said(tmp_path):
    one, eight = (MeshConfig().make(jax.devices()[:n]) for n in (1, 8))
    known = {"mesh": resume.mesh_of(eight)}
    assert resume.mesh_note(known, eight) == ""
    assert "the mesh was data 8 and is one device: numbers stay" in resume.mesh_note(known, one)


@pytest.mark.parametrize("split", ["val", "training"])
def test_another_train_split_is_refused(split, tmp_path):
    old = mini.get_config()
    new = mini.get_config(data=dataclasses.replace(old.data, train_split=split))
    with pytest.raises(ConfigError, match=r"\(data differ\):\n  data.train_split: 'train' -> "):
        check(tmp_path, old, new)


def test_a_refusal_names_items_that_are_gone_and_no_field_that_may_change(tmp_path):
    folder = Folder(path="there", fields={"image": "jpg"})
    old = mini.with_source(folder)
    new = mini.with_source(dataclasses.replace(folder, fields={}, path="here"), total_steps=99)
    records.write_config(epath.Path(tmp_path), old)
    with pytest.raises(ConfigError) as caught:
        resume.check(epath.Path(tmp_path), new, manifest(old), {})
    assert "tasks.text.source.fields.image: 'jpg' -> absent" in str(caught.value)
    for word in ("total_steps", "source.path"):
        assert word not in str(caught.value)


# ------------------------------------------------------------------------- fingerprints


def with_folder(path) -> mmjax.Experiment:
    return mini.with_source(Folder(path=str(path), files={}, shares={"train": 0.5, "val": 0.5}))


def test_data_that_were_moved_are_the_same_and_changed_ones_are_refused(tmp_path):
    first, second = tmp_path / "first", tmp_path / "second"
    first.mkdir()
    (first / "metadata.csv").write_text("text,image\none,1\ntwo,2\n")
    shutil.copytree(first, second)
    old, moved = with_folder(first), with_folder(second)
    data = resume.fingerprints(old)
    assert len(set(data.values())) == 1
    assert check(tmp_path, old, moved, data=data) == []
    (second / "metadata.csv").write_text("text,image\none,1\nTWO,2\n")
    with pytest.raises(ConfigError) as caught:
        check(tmp_path, old, moved, data=data)
    now = resume.fingerprints(moved)["text"]
    for word in ("task 'text'", data["text"][:12], now[:12], "restore the data"):
        assert word in str(caught.value)
    # A checkpoint of before has no fingerprints: its path must stay.
    with pytest.raises(ConfigError, match=r"\(data differ\)"):
        check(tmp_path, old, moved, before=True)
    assert check(tmp_path, old, old, before=True) == []


def test_a_tokenizer_that_was_moved_is_the_same_and_another_one_is_refused(tmp_path):
    paths = {
        name: toy_codes.write(tmp_path / name, seed=seed)
        for name, seed in (("first", 0), ("moved", 0), ("other", 1))
    }
    base = mini.get_config()

    def using(path) -> mmjax.Experiment:
        codes = Codes(base=toy_codes.BASE, path=path, field="image")
        return mini.get_config(modalities={**base.modalities, "codes": codes})

    prints = {n: using(p).modalities["codes"].given_fingerprint() for n, p in paths.items()}
    assert prints["first"] == prints["moved"] != prints["other"]
    known = {"tokenizers": {"codes": prints["first"]}}
    old = using(paths["first"])
    for path in (paths["moved"], str(tmp_path / "gone"), ""):
        assert check(tmp_path, old, using(path), **known) == []
    with pytest.raises(ConfigError) as caught:
        check(tmp_path, old, using(paths["other"]), **known)
    for word in ("stream 'codes'", prints["first"][:12], prints["other"][:12], "restore its path"):
        assert word in str(caught.value)


def test_a_source_without_a_fingerprint_is_not_compared(tmp_path):
    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Plain(mini.Numbers):
        def fingerprint(self):
            raise NotImplementedError

    old = mini.with_source(Plain())
    assert set(resume.fingerprints(old).values()) == {""}
    assert check(tmp_path, old, old, data=resume.fingerprints(old)) == []


def test_the_journal_of_a_checkpoint_decides_not_the_config_beside_it(tmp_path):
    old = mini.get_config()
    changed = mini.get_config(mixture=Mixture(weights={"text": 3.0}))
    later = resume.course(changed, manifest(old))
    assert [step for step, _ in later.journal.events] == [0, 8]
    known = manifest(changed, step=10, journal=later.journal.to_json())
    assert resume.course(changed, known).journal == later.journal
    back = resume.course(old, known)
    assert back.journal.events[2][0] == 10
    assert back.bound.weights_of(back.journal) == {"text": 1.0, "image_text": 1.0}
    assert Journal.from_json(json.loads(json.dumps(back.journal.to_json()))) == back.journal
