"""What the real clients say of our files: sbatch of Debian's slurm-client, SkyPilot's own parser.

Neither reaches a cluster: sbatch reads all options and then finds no controller, and SkyPilot makes
a task of the file.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import mini
import pytest

from mmjax.launch import sky, slurm
from mmjax.launch.job import Job

CONTROLLER = """\
ClusterName=none
SlurmctldHost=localhost
SlurmctldPort=1
MessageTimeout=1
GresTypes=gpu
"""
READ = "Unable to contact slurm controller"  # said after the last option was read
PARSE = """
import json, sys, sky
told = {}
for path in sys.argv[1:]:
    try:
        task = sky.Task.from_yaml(path)
        (resources,) = task.resources
        told[path] = [task.name, task.num_nodes, resources.accelerators, resources.use_spot]
    except Exception as error:
        told[path] = f"{type(error).__name__}: {error}"
print(json.dumps(told))
"""


def job(**fields) -> Job:
    base = {"config": str(mini.QUICKSTART), "workdir": "gs://b/r", "topology": "2xh100x8"}
    return Job(**{**base, "name": "demo", **fields})


@pytest.fixture
def controller(tmp_path, monkeypatch):
    if shutil.which("sbatch") is None:
        pytest.skip("sbatch is not installed (apt-get install slurm-client)")
    (tmp_path / "slurm.conf").write_text(CONTROLLER)
    monkeypatch.setenv("SLURM_CONF", str(tmp_path / "slurm.conf"))


def said(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, timeout=60).stderr


@pytest.mark.nightly
def test_sbatch_reads_our_options(controller, tmp_path):
    made = job(workdir="/shared/run", partition="gpu", account="lab", time="1-00:00:00")
    script = tmp_path / "train.sbatch"
    script.write_text(slurm.files(made)["train.sbatch"])
    ((_, command),) = slurm.steps(made)
    assert READ in said(command[0], "--test-only", *command[1:-1], str(script))
    assert READ in said(*slurm.same_name(made).command)
    for _, later in slurm.later(made):
        assert READ in said(*later)


@pytest.mark.nightly
def test_sbatch_tells_options_that_are_wrong(controller, tmp_path):
    text = slurm.files(job(workdir="/shared/run"))["train.sbatch"]
    for good, bad in (("--requeue", "--requeues"), ("B:USR1@300", "B:USR9@@1"), ("=8", "=x:y:z")):
        script = tmp_path / "train.sbatch"
        script.write_text(text.replace(good, bad, 1))
        assert READ not in said("sbatch", "--test-only", str(script))


@pytest.mark.nightly
@pytest.mark.timeout(900)
def test_skypilot_makes_tasks_of_our_files(tmp_path):
    """In an environment of its own: it asks for other versions of packages than mmjax."""
    environment = tmp_path / "environment"
    subprocess.run([sys.executable, "-m", "venv", environment], check=True)
    pip = [
        environment / "bin" / "python",
        "-m",
        "pip",
        "install",
        "--quiet",
        "skypilot>=0.14,<0.15",
    ]
    if subprocess.run(pip, capture_output=True).returncode:
        pytest.skip("skypilot cannot be installed here")
    cases = {
        "gpu": (job(spot=True, processes=8), ["demo", 2, {"H100": 8}, True]),
        "tpu": (job(topology="v5e-16"), ["demo", 1, {"tpu-v5litepod-16": 1}, False]),
        "one": (job(topology="l4", cloud="gcp/us-central1"), ["demo", 1, {"L4": 1}, False]),
    }
    for name, (made, _) in cases.items():
        (tmp_path / f"{name}.yaml").write_text(sky.files(made)["train.yaml"])
    wrong = (tmp_path / "gpu.yaml").read_text().replace("use_spot:", "use_spots:")
    (tmp_path / "wrong.yaml").write_text(wrong)
    files = [str(tmp_path / f"{name}.yaml") for name in (*cases, "wrong")]
    program = [environment / "bin" / "python", "-c", PARSE, *files]
    env = {**os.environ, "HOME": str(tmp_path), "PYTHONPATH": ""}
    done = subprocess.run(program, capture_output=True, text=True, env=env)
    assert done.returncode == 0, done.stderr[-2000:]
    told = {Path(p).stem: v for p, v in json.loads(done.stdout.splitlines()[-1]).items()}
    assert "did you mean 'use_spot'" in told.pop("wrong")
    assert told == {name: expected for name, (_, expected) in cases.items()}
    for verb, options in (("launch", ("--name", "--yes")), ("queue", ("--skip-finished",)),
                          ("logs", ("--name",)), ("cancel", ("--name", "--yes"))):  # fmt: skip
        help_ = [environment / "bin" / "sky", "jobs", verb, "--help"]
        shown = subprocess.run(help_, capture_output=True, text=True, env=env).stdout
        assert [o for o in options if o not in shown] == []
