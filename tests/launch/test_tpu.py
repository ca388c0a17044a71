"""`mmjax launch tpu`: the commands, word for word, and that a launch runs them."""

from __future__ import annotations

import shlex
import stat
import subprocess
from pathlib import Path

import mini
import pytest

import mmjax
from mmjax import cli
from mmjax.launch import tpu

ROOT = Path(mmjax.__file__).parent.parent
GOLDEN = Path(__file__).parent / "golden"
SLICE = ("--topology", "v5e-64", "--name", "demo", "--zone", "us-west4-b")
CACHE = ("--compile-cache", "gs://bucket/compiled")
CASES = {  # golden file -> arguments
    "pod": (
        *(*SLICE, "--project", "lab", "--spot", *CACHE),
        *("--", "--optimizer.learning_rate", "3e-4"),
    ),
    "vm": ("--topology", "v6e-8", "--name", "one", "--zone", "us-east5-a"),
}

# Notes what it is asked, and is what the test says: its state, and the code of its commands.
FAKE = """#!/usr/bin/env bash
printf '%q ' gcloud "$@" >> "$NOTES"; echo >> "$NOTES"
case "$*" in
  *describe*) echo "$STATE" ;;
  *"tail -n"*) exit "$RUN_CODE" ;;
esac
"""


def arguments(name: str) -> list[str]:
    config = f"{mini.QUICKSTART}:tiny"
    return ["launch", "tpu", config, "--workdir", "gs://bucket/run", *CASES[name]]


def inserted(args: list[str], *more: str) -> list[str]:
    cut = args.index("--") if "--" in args else len(args)
    return [*args[:cut], *more, *args[cut:]]


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.mark.parametrize("name", CASES)
def test_the_script_is_the_golden_one(name, cache, capsys):
    assert cli.main(inserted(arguments(name), "--dry-run")) == 0
    script = capsys.readouterr().out.replace(str(ROOT), "/checkout").replace(str(cache), "~/.cache")
    assert script == (GOLDEN / f"{name}.sh").read_text()


@pytest.mark.fault("another user waits for the archive of the code", "it is packed where he cannot")
def test_the_archive_lies_where_only_the_user_may_write(cache, capsys):
    assert Path(job()._archive) == cache / "mmjax" / "launch" / "mmjax-demo.tar.gz"
    assert stat.S_IMODE((cache / "mmjax" / "launch").stat().st_mode) == 0o700
    (cache / "mmjax").chmod(0o777)
    assert cli.main(inserted(arguments("vm"), "--dry-run")) == 2
    assert "no place for the archive of the code: other users may" in capsys.readouterr().err


@pytest.fixture
def gcloud(tmp_path, monkeypatch):
    """The notes of a gcloud that does nothing."""
    path = tmp_path / "bin" / "gcloud"
    path.parent.mkdir()
    path.write_text(FAKE)
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{path.parent}:/usr/bin:/bin")
    monkeypatch.setenv("NOTES", str(tmp_path / "notes"))
    monkeypatch.setenv("STATE", "ACTIVE")
    monkeypatch.setenv("RUN_CODE", "0")
    return tmp_path / "notes"


def asked(notes: Path) -> list[list[str]]:
    return [shlex.split(line) for line in notes.read_text().splitlines()]


@pytest.mark.parametrize("name", CASES)
def test_a_launch_runs_what_the_script_says(name, gcloud, capfd):
    assert cli.main(arguments(name)) == 0
    cut = CASES[name].index("--") if "--" in CASES[name] else len(CASES[name])
    options = CASES[name][:cut]
    job = tpu.Job(
        config=f"{mini.QUICKSTART}:tiny",
        workdir="gs://bucket/run",
        overrides=CASES[name][cut + 1 :],
        compile_cache=CACHE[1] if name == "pod" else "",
        spot="--spot" in options,
        **{k: options[options.index(f"--{k}") + 1] for k in ("topology", "name", "zone")},
        project="lab" if "lab" in options else "",
    )
    wanted = [list(c) for _, c in job.steps() if c[0] == "gcloud"]
    wanted.insert(1, list(job._describe()))
    assert asked(gcloud) == wanted
    assert Path(job._archive).stat().st_size > 10_000
    said = capfd.readouterr().err
    assert "to delete: gcloud compute tpus queued-resources delete" in said
    assert "to resume: gcloud compute tpus tpu-vm ssh" in said


def test_a_slice_that_does_not_come(gcloud, monkeypatch, capfd):
    monkeypatch.setenv("STATE", "FAILED")
    assert cli.main(arguments("pod")) == 69
    assert [c[4] for c in asked(gcloud)] == ["create", "describe"]
    assert "wait ended with exit code 69" in capfd.readouterr().err


def test_the_code_of_the_run_comes_back(gcloud, monkeypatch):
    monkeypatch.setenv("RUN_CODE", "70")
    assert cli.main(arguments("vm")) == 70


def test_without_gcloud(monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert cli.main(arguments("vm")) == 2
    assert "there is no gcloud here; install the Google Cloud CLI" in capsys.readouterr().err


def job(**fields) -> tpu.Job:
    base = {
        "config": str(mini.QUICKSTART),
        "workdir": "gs://b/r",
        "topology": "v5e-64",
        "name": "demo",
        "zone": "z",
    }
    return tpu.Job(**{**base, **fields})


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"topology": "h100-8"}, "there is v4, v5e, v5p, v6e"),
        ({"topology": "v5e"}, "such as v5e-64"),
        ({"name": "Demo_1"}, "small letters"),
        ({"workdir": "runs/a"}, "use a bucket"),
        ({"config": "absent.py:tiny"}, "no file 'absent.py'"),
    ],
)
def test_what_is_refused(fields, message):
    with pytest.raises(mmjax.ConfigError, match=message):
        job(**fields)


def test_options_that_are_missing(capsys):
    args = ["launch", "tpu", str(mini.QUICKSTART), "--workdir", "gs://b/r", "--name", "a"]
    assert cli.main(args) == 2
    assert "launch tpu needs --topology --zone." in capsys.readouterr().err
    assert cli.main([*args, "-n", "2"]) == 2
    assert "--num-processes is for launch local" in capsys.readouterr().err
    assert cli.main([*args, "--", *CACHE]) == 2
    assert "is an option of launch; write it before --" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("topology", "hosts"),
    [("v5e-1", 1), ("v5e-8", 1), ("v5e-16", 4), ("v5p-8", 1), ("v5p-32", 4), ("v4-8", 1)],
)
def test_hosts(topology, hosts):
    assert job(topology=topology).hosts == hosts


def test_a_config_outside_the_checkout_and_an_installed_mmjax(tmp_path, monkeypatch):
    config = tmp_path / "mine.py"
    config.write_text("def get_config(): ...\n")
    steps = dict(job(config=f"{config}:get_config").steps())
    assert steps["pack"][-3:] == ("-C", str(tmp_path), "mine.py")
    assert "launch local -n 1 mine.py:get_config --workdir" in steps["start"][-1]
    monkeypatch.setattr(tpu, "_checkout", lambda: None)
    steps = dict(job(config=str(config)).steps())
    assert steps["pack"].count("-C") == 1
    assert f"'mmjax[tpu,cloud]=={mmjax.__version__}'" in steps["install"][-1]


def test_the_commands_of_the_hosts_work(tmp_path):
    """Start and tail in a shell, as ssh runs them, with another mmjax behind them."""
    program = tmp_path / "mmjax-demo" / ".venv" / "bin" / "mmjax"
    program.parent.mkdir(parents=True)
    program.write_text('#!/usr/bin/env bash\necho "$MMJAX_DISTRIBUTED $@"; sleep 0.5; exit 70\n')
    program.chmod(0o755)
    steps = dict(job(overrides=("--name", "two words")).steps())
    start = subprocess.run(["bash", "-c", steps["start"][-1]], cwd=tmp_path, timeout=10)
    tail = subprocess.run(
        ["bash", "-c", steps["tail"][-1]], cwd=tmp_path, timeout=20, capture_output=True, text=True
    )
    assert (start.returncode, tail.returncode) == (0, 70)
    assert tail.stdout.strip() == (
        "1 launch local -n 1 configs/quickstart.py --workdir gs://b/r -- --name two words"
    )
