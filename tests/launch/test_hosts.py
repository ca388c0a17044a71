"""What each target does on its hosts: the templates run, with programs that stand in for clouds."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import mini
import pytest
import yaml

from mmjax.launch import gke, running, sky, slurm, ssh, tpu
from mmjax.launch import job as job_lib
from mmjax.launch.job import Job

NASTY = (
    *("--name", "a b; touch pwned", "$(touch pwned)", "`touch pwned`", "it's", 'say "no"', "$HOME"),
    *("*", "", "\\", "!!", "a=b&touch pwned", "--last", "#x", "{a,b}", "~", "$$(HOME)"),
)
BUCKET = "gs://b c/r'un; touch pwned"
PROBE = "one 'two' $HOME; touch pwned"


@pytest.fixture
def config(tmp_path, monkeypatch) -> Path:
    """Of an installed mmjax, in a folder of awkward name, with a released mmjax."""
    monkeypatch.setattr(job_lib, "checkout", lambda: None)  # which would be packed each time
    folder = tmp_path / "my $(touch pwned) 'configs'"
    folder.mkdir()
    monkeypatch.chdir(folder)
    shutil.copy(mini.QUICKSTART, folder / "mine.py")
    return folder / "mine.py"


def job(config: Path, **fields) -> Job:
    base = {
        "config": f"{config}:tiny",
        "workdir": BUCKET,
        "topology": "2xh100x8",
        "name": "demo",
        "overrides": NASTY,
        "env": (("PROBE", PROBE),),
        "retries": 5,
    }
    return Job(**{**base, **fields})


def expected(where: str, place: list[str], config: str, topology: str, kept: bool = True):
    """The two calls of a host."""
    base = [config, "--workdir", where, *(["--topology", topology] if topology else [])]
    cache = ["--compile-cache", "gs://b c/mmjax_compiled"] if kept else []
    counts = ["--retries", "5", "--restarts", "1000"]
    return [
        ["doctor", *base, *NASTY],
        ["launch", "local", *base, *place, *counts, *cache, "--", *NASTY],
    ]


def asked(commands) -> list[list[str]]:
    """What mmjax was asked on the hosts."""
    made = [call[1:] for call in commands.calls() if call[0] == "mmjax"]
    return [c[3:] if c[:3] == ["-P", "-m", "mmjax"] else c for c in made]


def untouched(commands, folder: Path) -> bool:
    made = (*folder.rglob("pwned*"), *commands.folder.rglob("pwned*"))
    return not [path for path in made if path.is_file()]


@pytest.mark.parametrize("topology", ["v5e-16", "2xv5e-16"])
def test_tpu(topology, commands, quick, config, tmp_path):
    commands.answer("describe", out="ACTIVE\n", times=3)
    commands.answer("tpu-vm", host=True)
    commands.answer("mmjax launch local", out="trained\n", code=70)
    nodes = ["demo"] if topology == "v5e-16" else ["demo-0", "demo-1"]
    for node in nodes:
        program = commands.host(node) / "mmjax-demo" / ".venv" / "bin" / "mmjax"
        program.parent.mkdir(parents=True)
        program.symlink_to(commands.folder / "bin" / "mmjax")
    made = job(config, topology=topology, zone="z", spot=True)
    running._write(made.folder, tpu.files(made))
    (step,) = tpu.steps(made)
    done = subprocess.run(step.command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 70, done.stderr
    assert done.stdout == "trained\n"
    wanted = expected(BUCKET, [], "mine.py:tiny", topology)
    assert sorted(asked(commands)) == sorted(wanted * len(nodes))
    assert commands.probes() == {PROBE}
    assert (commands.host(nodes[-1]) / "mmjax-demo" / "mine.py").is_file()
    assert untouched(commands, tmp_path)


def test_gke(commands, quick, config, tmp_path, monkeypatch):
    made = job(config, image="i@sha256:0", processes=8)
    spec = yaml.safe_load(gke.files(made)["jobset.yaml"])
    pod = spec["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    # As Kubernetes reads it: $$ is a dollar, and nothing of ours is $(NAME).
    literal = lambda text: text.replace("$$", "\0").replace("$(", "$EXPANDED(").replace("\0", "$")
    env = {e["name"]: literal(e["value"]) for e in container["env"] if "value" in e}
    env |= {"COORDINATOR": "demo-host-0-0.demo", "JOB_COMPLETION_INDEX": "1"}
    command = [literal(text) for text in (*container["command"], *container["args"])]
    done = subprocess.run(command, env={**os.environ, **env}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    place = ["-n", "8", "--devices-per-process", "1", "--nodes", "2", "--node-rank", "1"]
    place += ["--coordinator", "demo-host-0-0.demo:8476"]
    assert asked(commands) == expected(BUCKET, place, "mine.py:tiny", "2xh100x8")
    assert commands.probes() == {PROBE}
    assert untouched(commands, tmp_path)


def test_slurm(commands, config, tmp_path, monkeypatch):
    commands.answer("scontrol show", out="n1\nn2\n")
    commands.answer("srun", host=True)
    commands.answer("launch local", code=66)
    where = "runs/a b; touch pwned"
    made = job(config, workdir=where, python=str(commands.folder / "bin" / "mmjax"), processes=4)
    running._write(made.folder, slurm.files(made))
    for name, value in {"JOB_NODELIST": "n[1-2]", "JOB_ID": "7", "JOB_NUM_NODES": "2"}.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    script = str(made.folder / "train.sbatch")
    done = subprocess.run(["bash", script], capture_output=True, text=True, timeout=60)
    assert done.returncode == 66, done.stderr
    base = [f"{config}:tiny", "--workdir", where, "--topology", "2xh100x8"]
    run = ["launch", "local", *base, "-n", "4", "--devices-per-process", "2", "--retries", "5"]
    run += ["--restarts", "1000", "--nodes", "2", "--node-rank", "1", "--coordinator", "n1:20007"]
    assert asked(commands) == [["doctor", *base, *NASTY], [*run, "--", *NASTY]]
    assert commands.probes() == {PROBE}
    assert untouched(commands, tmp_path)


@pytest.mark.parametrize(("topology", "node"), [("2xh100x8", True), ("v5e-16", False)])
def test_sky(topology, node, commands, config, tmp_path, monkeypatch):
    monkeypatch.setattr(job_lib, "checkout", lambda: tmp_path / "checkout")
    (tmp_path / "mmjax_env" / "bin").mkdir(parents=True)
    (tmp_path / "mmjax_env" / "bin" / "mmjax").symlink_to(commands.folder / "bin" / "mmjax")
    overrides = tuple(o for o in NASTY if o)  # a line that is empty is none
    made = job(config, topology=topology, overrides=overrides)
    task = yaml.safe_load(sky.files(made)["train.yaml"])
    assert task["workdir"] == str(tmp_path / "checkout")
    assert task["file_mounts"] == {"~/mmjax_config/mine.py": str(config)}
    env = {"HOME": str(tmp_path), "SKYPILOT_NUM_NODES": "2", "SKYPILOT_NODE_RANK": "1"}
    env |= {**task["envs"], "SKYPILOT_NODE_IPS": "10.0.0.1\n10.0.0.2\n"}
    command = ["bash", "-c", task["run"]]
    done = subprocess.run(command, env={**os.environ, **env}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    place = ["-n", "1", "--nodes", "2", "--node-rank", "1", "--coordinator", "10.0.0.1:8476"]
    path = f"{tmp_path}/mmjax_config/mine.py:tiny"
    wanted = expected(BUCKET, place if node else [], path, topology)
    assert asked(commands) == [[a for a in call if a] for call in wanted]
    assert commands.probes() == {PROBE}
    assert untouched(commands, tmp_path)


def test_ssh(commands, config, tmp_path):
    commands.answer("ssh", host=True)
    commands.answer("scp", host=True)
    commands.answer("mmjax launch local", "--node-rank 1", code=66)
    commands.answer("mmjax launch local", out="trained\n")
    hosts = ("me@one", "two")
    python = str(commands.folder / "bin" / "mmjax")
    made = job(config, topology="", hosts=hosts, python=python, workdir="/a b")
    running._write(made.folder, ssh.files(made))
    (step,) = ssh.steps(made)
    done = subprocess.run(step.command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 66, done.stderr  # of the second host
    assert "two: exit code 66" in done.stderr
    assert done.stdout == "trained\n"
    wanted = []
    for rank in ("0", "1"):
        place = ["-n", "1", "--nodes", "2", "--node-rank", rank, "--coordinator", "one:8476"]
        wanted += expected("/a b", place, "mine.py:tiny", "", kept=False)
    assert sorted(asked(commands)) == sorted(wanted)
    assert commands.probes() == {PROBE}
    assert untouched(commands, tmp_path)
