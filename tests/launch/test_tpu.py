"""`mmjax launch tpu` against a gcloud that stands in: states, spot, codes, lost connections."""

from __future__ import annotations

import stat
import subprocess
from pathlib import Path

import mini
import pytest

import mmjax
from mmjax import cli
from mmjax.launch import job as job_lib
from mmjax.launch import running, tpu

PLACE = ("--topology", "v5e-64", "--name", "demo", "--zone", "us-west4-b")
QUEUE = ["gcloud", "compute", "tpus", "queued-resources"]


def launch(*more: str, force: bool = True) -> int:
    args = ["launch", "tpu", f"{mini.QUICKSTART}:tiny", "--workdir", "gs://b/r", *PLACE, *more]
    return cli.main([*args, *(["--force"] if force else [])])


def job(**fields) -> tpu.Job:
    base = {"config": str(mini.QUICKSTART), "workdir": "gs://b/r", "topology": "v5e-64"}
    return tpu.Job(**{**base, "name": "demo", "zone": "z", **fields})


@pytest.fixture
def cloud(commands, quick, monkeypatch):
    """No slice of that name at first; a small archive."""
    monkeypatch.setattr(job_lib, "checkout", lambda: None)
    commands.answer("describe", code=1, err="NOT_FOUND\n", times=1)
    return commands


def verbs(commands) -> list[str]:
    """create, describe, ... and of ssh what it is for."""
    words = {"uv pip install": "install", "nohup": "start", "tail": "follow"}
    found = []
    for call in commands.calls("gcloud"):
        said = [v for k, v in words.items() if call[4] == "ssh" and k in call[-1]]
        found.append(said[0] if said else call[4])
    return found


def test_the_whole_way(cloud, capfd):
    cloud.answer("describe", out="WAITING_FOR_RESOURCES\n", times=2)
    cloud.answer("describe", out="ACTIVE\n")
    cloud.answer("-F log", out="trained\n")
    assert launch("--project", "lab", "--spot") == 0
    first = ["describe", "create", "describe", "describe", "describe"]
    assert verbs(cloud) == [*first, "scp", "install", "start", "follow"]
    place = ["--zone", "us-west4-b", "--project", "lab"]
    asked = ["--accelerator-type", "v5litepod-64", "--runtime-version", "v2-alpha-tpuv5-lite"]
    wanted = [*QUEUE, "create", "demo", *place, "--node-id", "demo", "--spot", *asked]
    assert cloud.calls("create") == [wanted]
    out, err = capfd.readouterr()
    assert out == "trained\n"
    assert "to delete: bash" in err
    assert "to resume: bash" in err


def test_several_slices(cloud):
    cloud.answer("describe", out="ACTIVE\n")
    assert launch("--topology", "2xv5p-16") == 0
    (create,) = cloud.calls("create")
    at = create.index("--node-count")
    assert create[at : at + 4] == ["--node-count", "2", "--node-prefix", "demo"]
    assert create[create.index("--accelerator-type") + 1] == "v5p-16"
    assert sorted(c[5] for c in cloud.calls("nohup")) == ["demo-0", "demo-1"]
    assert [c[5] for c in cloud.calls("-F log")] == ["demo-0"]


@pytest.mark.fault("spot capacity is taken away", "it is asked for again, and the run goes on")
def test_spot_that_was_taken_is_asked_for_again(cloud):
    cloud.answer("describe", out="ACTIVE\n", times=1)
    cloud.answer("-F log", code=255, times=1)  # the host is gone
    cloud.answer("describe", out="SUSPENDING\n", times=2)
    cloud.answer("describe", out="ACTIVE\n")
    assert launch("--spot") == 0
    began = ["describe", "create", "describe", "scp", "install", "start", "follow"]
    again = ["delete", "create", "describe", "scp", "install", "start", "follow"]
    assert verbs(cloud) == [*began, "describe", "describe", *again]


def test_spot_that_is_taken_while_it_is_set_up_is_asked_for_again(cloud):
    cloud.answer("describe", out="ACTIVE\n", times=1)
    cloud.answer("scp", code=1, times=1)
    cloud.answer("describe", out="SUSPENDED\n", times=1)
    cloud.answer("describe", out="ACTIVE\n")
    assert launch("--spot") == 0
    assert verbs(cloud).count("create") == 2


def test_what_was_not_spot_is_not_asked_for_again(cloud, capfd):
    cloud.answer("describe", out="FAILED\n")
    assert launch() == 69
    assert verbs(cloud) == ["describe", "create", "describe"]
    assert "train ended with exit code 69" in capfd.readouterr().err


@pytest.mark.fault("gcloud says nothing of a slice for a while", "nothing is deleted")
def test_a_silent_cloud_deletes_nothing(cloud):
    cloud.answer("describe", out="ACTIVE\n", times=1)
    cloud.answer("-F log", code=255, times=2)
    cloud.answer("-F log", code=70)
    cloud.answer("describe", code=1, err="unavailable\n")
    assert launch("--spot") == 70
    assert "delete" not in verbs(cloud)
    assert verbs(cloud).count("start") == 1


@pytest.mark.parametrize("code", [2, 3, 65, 69, 70, 76])
def test_the_code_of_the_run_comes_back(cloud, code):
    cloud.answer("describe", out="ACTIVE\n")
    cloud.answer("-F log", code=code)
    assert launch("--spot") == code
    assert "delete" not in verbs(cloud)


@pytest.mark.fault("a slice of that name is there", "exit 76 with the remedy; nothing is asked for")
def test_a_name_that_is_there_is_told(commands, capsys):
    commands.answer("describe", out="ACTIVE\n")
    assert launch() == 76
    said = capsys.readouterr().err
    assert "--name demo: there is a queued resource of that name. Go on with it: bash" in said
    assert "queued-resources delete demo --zone us-west4-b --force" in said
    assert len(commands.calls()) == 1


def test_without_gcloud(monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert launch() == 2
    assert "there is no gcloud here: install the Google Cloud CLI (https" in capsys.readouterr().err


@pytest.mark.fault("another user waits for the archive of the code", "it is packed where he cannot")
def test_the_archive_lies_where_only_the_user_may_write(cache, cloud, capsys):
    cloud.answer("describe", out="ACTIVE\n")
    assert launch() == 0
    archive = cache / "mmjax" / "launch" / "demo" / "mmjax-demo.tar.gz"
    assert cloud.calls("scp")[0][5] == str(archive)
    for folder in archive.parents[:2]:
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    (cache / "mmjax").chmod(0o777)
    assert launch("--dry-run", force=False) == 2
    assert "no place for the code that goes to the hosts: other us" in capsys.readouterr().err


def test_the_checkout_is_packed(tmp_path):
    args = job().packed
    subprocess.run(["tar", "-czf", tmp_path / "a", "--exclude", "__pycache__", *args], check=True)
    listed = subprocess.run(["tar", "-tzf", tmp_path / "a"], capture_output=True, text=True)
    names = set(listed.stdout.splitlines())
    assert {"configs/quickstart.py", "mmjax/step.py", "launch/tpu/pod.sh", "LICENSE"} <= names
    assert job().remote_config == "configs/quickstart.py"
    assert job().requirement == ".[tpu,cloud]"


def test_the_slice_can_be_gone_on_with_stopped_and_deleted(cloud):
    made = job()
    running._write(made.folder, tpu.files(made))
    for name, command in tpu.later(made):
        assert subprocess.run(command).returncode == 0, name
    assert verbs(cloud) == ["start", "follow", "follow", "delete"]
    assert "pkill -TERM -P $(cat pid)" in cloud.calls("tpu-vm")[2][-1]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"topology": "h100x8"}, "queued resources have v4, v5e, v5p, v6e; use launch gke"),
        ({"topology": "tpu7x-8"}, "queued resources have"),
        ({"topology": "v5e-5"}, "there is no such slice; use v5e-4 or v5e-8"),
        ({"workdir": "runs/a"}, "use a bucket"),
        ({"zone": ""}, "launch tpu needs --zone"),
        ({"processes": 4}, "all chips of a TPU host belong to one process"),
    ],
)
def test_what_is_refused(fields, message):
    with pytest.raises(mmjax.ConfigError, match=message):
        tpu.files(job(**fields))


def test_options_that_are_missing(capsys):
    args = ["launch", "tpu", str(mini.QUICKSTART), "--workdir", "gs://b/r", "--name", "a"]
    assert cli.main(args) == 2
    assert "launch tpu needs --topology --zone." in capsys.readouterr().err
    assert cli.main([*args, "-n", "2"]) == 2
    assert "--num-processes is for launch local, gke" in capsys.readouterr().err
    assert cli.main([*args, "--", "--compile-cache", "gs://b/c"]) == 2
    assert "is an option of launch; write it before --" in capsys.readouterr().err


def test_a_config_outside_the_checkout(tmp_path):
    config = tmp_path / "mine.py"
    config.write_text("def get_config(): ...\n")
    made = job(config=f"{config}:get_config")
    assert made.packed[-3:] == ("-C", str(tmp_path), "mine.py")
    assert made.remote_config == "mine.py:get_config"


@pytest.mark.parametrize(
    ("topology", "joined"), [("v5e-1", False), ("v5e-8", False), ("v5p-32", True), ("v4-8", False)]
)
def test_processes_of_several_hosts_are_joined(topology, joined):
    text = tpu.files(job(topology=topology))["pod.sh"]
    assert ("ENVIRONMENT=(MMJAX_DISTRIBUTED=1)\n" in text) == joined


def test_the_compile_cache(tmp_path):
    texts = [tpu.files(job(compile_cache=c))["pod.sh"] for c in ("", "off", "gs://mine/c")]
    caches = [line for t in texts for line in t.splitlines() if line.startswith("COMPILE_CACHE=")]
    assert [c.partition("=")[2] for c in caches] == ["gs://b/mmjax_compiled", "off", "gs://mine/c"]
    assert Path(job(workdir="/shared/run").kept) == Path(".")  # none: each user's own
