"""Commands on a workdir of a disk and of a bucket: what is done and what is killed is the same."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import commands
import PIL.Image
import pytest

import mmjax
from mmjax import files
from mmjax.run import metrics, parts

CONFIG = str(Path(__file__).with_name("tiny.py"))
pytestmark = pytest.mark.timeout(1200)  # many processes, on machines that do other things too
KINDS = [pytest.param("local", marks=pytest.mark.slow), pytest.param("gs", marks=pytest.mark.ci)]


@pytest.fixture(scope="module")
def quick(tmp_path_factory) -> dict[str, str]:
    """One device, and programs that are compiled once for all of these tests."""
    return {
        "XLA_FLAGS": "--xla_force_host_platform_device_count=1 --xla_backend_optimization_level=0",
        "XDG_CACHE_HOME": str(tmp_path_factory.mktemp("cache")),
        "JAX_COMPILATION_CACHE_DIR": str(tmp_path_factory.mktemp("programs")),
    }


@pytest.fixture
def workdir(request, service, tmp_path) -> str:
    service.page = 100
    return str(tmp_path / "run") if request.param == "local" else service.make("mmjax-run") + "/a/b"


def start(quick, workdir: str, *words: str) -> subprocess.Popen:
    """`mmjax train` in the background."""
    root = os.path.dirname(os.path.dirname(mmjax.__file__))
    env = {**os.environ, **quick, "PYTHONPATH": root}
    command = [sys.executable, "-m", "mmjax", "train", CONFIG, "--workdir", workdir, *words]
    return subprocess.Popen(command, env=env, stderr=subprocess.PIPE, text=True)


def run(quick, *words: str) -> str:
    done = commands.run(*words, timeout=400, **quick)
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


def until(service, workdir: str, step: int, process: subprocess.Popen) -> None:
    """Waits for the manifest of a step."""
    end = time.monotonic() + 400
    name = f"checkpoints/{step}/manifest.json"
    while True:
        remote = files.is_remote(workdir)
        there = name in service.names(workdir) if remote else Path(workdir, name).exists()
        if there:
            return
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < end
        time.sleep(0.02)


@pytest.mark.fault(
    "kill -9 of a run in a bucket", "the same command goes on from the last save; no row is lost"
)
@pytest.mark.parametrize("workdir", KINDS, indirect=True)
def test_train_kill_resume_and_all_that_reads_a_run(service, workdir, quick, tmp_path):
    process = start(quick, workdir)
    until(service, workdir, 4, process)
    process.kill()
    process.communicate()
    said = run(quick, "train", CONFIG, "--workdir", workdir)
    assert f"resumed {workdir} at step " in said
    step = int(said.partition("at step ")[2].split()[0])
    assert step >= 4
    rows, bad = metrics.read(files.given(workdir))
    logged = [row["step"] for row in rows if "train/loss" in row]
    assert logged == list(range(1, 21))
    assert bad == []

    info = json.loads(run(quick, "info", workdir, "--verify", "--json"))
    assert info["checkpoints"] == [16, 20]
    assert info["step"] == 20
    assert info["damaged"] == {}
    assert len(info["run"]["starts"]) == 2
    run(quick, "eval", workdir)
    scores = files.read_json(files.given(workdir) / "scores.json")
    assert scores
    out = f"{workdir}/samples/own"
    picture = tmp_path / "seven.png"
    PIL.Image.new("L", (16, 8), 255).save(picture)
    run(quick, "generate", workdir, "--given", f"image={picture}", "--want", "text", "--out", out)
    samples = files.read_json(files.given(out) / "samples.json")
    assert files.exists(files.given(out) / samples["samples"][0]["files"]["text"])
    run(quick, "report", workdir)
    page = (files.given(workdir) / "report.html").read_text()
    assert "20 of 20 steps" in page
    if files.is_remote(workdir):
        names = service.names(workdir)
        assert not [n for n in names if n.endswith((".saving", ".partial", "lock"))]
        assert {n.split("/")[1] for n in names if n.startswith("checkpoints/")} == {"16", "20"}


@pytest.mark.slow
@pytest.mark.fault(
    "a run in a bucket slept while another one took its workdir over", "it commits no save; exit 76"
)
def test_a_run_that_slept_commits_nothing(service, quick):
    """This process takes over: it has a lock of its own, and looks at what the other one writes."""
    from mmjax.run import lock

    address = service.make("mmjax-sleep") + "/run"
    service.page = 100
    process = start(quick, address, "--total-steps", "4000")
    until(service, address, 4, process)
    os.kill(process.pid, signal.SIGSTOP)
    before = lock.LEASE, lock.socket.gethostname
    lock.LEASE, lock.socket.gethostname = 1.0, lambda: "another"
    try:
        with lock.lock(address) as held:
            assert held.fence == 2
            there = [n for n in service.names(address) if n.endswith("manifest.json")]
            os.kill(process.pid, signal.SIGCONT)
            _, said = process.communicate(timeout=120)
            assert process.returncode == 76, said
            assert "taken over by pid" in said
            now = [n for n in service.names(address) if n.endswith("manifest.json")]
            assert now == there
            held.check()
    finally:
        lock.LEASE, lock.socket.gethostname = before
        process.kill()


@pytest.mark.slow
def test_a_step_without_log_or_save_makes_no_round_trip(service, quick):
    """Between two logs that are fifty steps apart."""
    address = service.make("mmjax-quiet") + "/run"
    words = ("--checkpoint.every", "0", "--logging.log-every", "200", "--total-steps", "601")
    with service.watched() as calls:
        run(quick, "train", CONFIG, "--workdir", address, *words)
    rows = [c.time for c in calls if f"/{parts.FOLDER}/" in c.name and c.method == "POST"]
    assert len(rows) >= 3
    steps = [c for c in calls if rows[0] < c.time < rows[2] and not c.name.endswith("lock")]
    assert {c.name.split("/")[1] for c in steps} <= {parts.FOLDER, "experts.json"}
    assert len(steps) <= 3  # not one for each of four hundred steps


@pytest.mark.ci
@pytest.mark.parametrize(
    ("fault", "code", "text"),
    [
        ("absent", 2, "there is no bucket 'mmjax-absent'"),
        ("read_only", 74, "permission denied"),
    ],
)
def test_a_run_that_cannot_start_says_why(service, quick, fault, code, text):
    address = "gs://mmjax-absent/run"
    if fault != "absent":
        address = service.make("mmjax-refused") + "/run"
        setattr(service, fault, True)
    done = commands.run("train", CONFIG, "--workdir", address, **quick)
    assert done.returncode == code, done.stderr
    assert text in done.stderr
    assert "Traceback" not in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1, done.stderr
