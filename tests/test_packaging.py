"""Set-up: metadata, pins, the wheel, make, CI."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tomllib
import zipfile
from pathlib import Path

import pytest

import mmjax
from mmjax import config
from mmjax.cli import cpu, doctor
from mmjax.modalities.codes import Codes

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
PINS = (ROOT / "constraints.txt").read_text().splitlines()


def package(requirement: str) -> str:
    return re.split(r"[^\w.-]", requirement)[0].lower().replace("_", "-")


def test_pins_are_names_and_versions_only():
    pattern = r"[\w.-]+==[\w.!+-]+( ; [\w .,<>=!'()]+)?"
    assert [line for line in PINS if not re.fullmatch(pattern, line)] == []
    assert len(PINS) > 100


def test_everything_that_is_asked_for_is_pinned():
    pinned = {package(line) for line in PINS}
    wanted = list(PROJECT["dependencies"])
    for extra, requirements in PROJECT["optional-dependencies"].items():
        wanted += [] if extra == "beam" else requirements
    assert {package(r) for r in wanted} - pinned == set()
    makefile = (ROOT / "Makefile").read_text()
    compiled = re.search(r"^PINNED := (.*)$", makefile, re.M)
    assert compiled
    assert {*compiled[1].split(), "beam"} == set(PROJECT["optional-dependencies"])


def test_tests_run_with_the_allocator_settings_of_the_commands():
    makefile = (ROOT / "Makefile").read_text().replace("\\\n", " ")
    settings = re.search(r"^TEST_ENV := (.*)$", makefile, re.M)
    assert settings
    assert settings[1].split() == [f"{k}={v}" for k, v in cpu.SETTINGS.items()]


def test_doctor_knows_every_extra():
    assert list(doctor.EXTRAS) == list(PROJECT["optional-dependencies"])


def test_versions_have_both_ends_where_interfaces_move():
    for name in ("jax", "flax", "optax", "orbax-checkpoint", "grain", "tyro"):
        (requirement,) = [r for r in PROJECT["dependencies"] if package(r) == name]
        assert ">=" in requirement
        assert "<" in requirement.partition(">=")[2]
    assert PROJECT["requires-python"] == ">=3.11"
    (kernels,) = PROJECT["optional-dependencies"]["kernels"]
    assert "python_version >= '3.12'" in kernels


def test_the_changelog_has_this_version():
    text = (ROOT / "CHANGELOG.md").read_text()
    assert "## Unreleased" in text or f"## {mmjax.__version__}" in text


@pytest.fixture
def copy(tmp_path) -> Path:
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, tmp_path / name)
    return tmp_path


def make(folder: Path, *args: str) -> subprocess.CompletedProcess:
    env = {k: v for k, v in os.environ.items() if not k.startswith("MAKE")}
    return subprocess.run(["make", *args], cwd=folder, capture_output=True, text=True, env=env)


def test_an_old_python_is_told_in_one_line(copy):
    old = copy / "old_python"
    old.write_text("#!/bin/sh\nexit 1\n")
    old.chmod(0o755)
    done = make(copy, "-s", "test", f"PYTHON={old}")
    assert done.returncode
    ours = [line for line in done.stderr.splitlines() if not line.startswith("make")]
    assert ours == ["mmjax needs Python 3.11 or later; name one: make PYTHON=python3.12 ..."]
    assert not (copy / ".venv").exists()


def test_setup_runs_again_only_when_requirements_change(copy):
    (copy / ".venv").mkdir()
    (copy / ".venv" / ".installed").touch()
    assert make(copy, "-q", "setup").returncode == 0
    later = (copy / ".venv" / ".installed").stat().st_mtime + 10
    os.utime(copy / "constraints.txt", (later, later))
    assert make(copy, "-q", "setup").returncode == 1


def test_the_two_commands_are_what_the_readme_says(copy):
    (copy / ".venv").mkdir()
    (copy / ".venv" / ".installed").touch()
    demo = make(copy, "-n", "demo").stdout
    assert "mmjax train configs/quickstart.py --workdir runs/demo" in demo
    assert "mmjax eval runs/demo --split test" in demo
    assert demo.count("train-tokenizer") == 1
    assert "quickstart_tokenizers.py:image \\\n\t--workdir runs/demo_tokenizers/image " in demo
    assert 'pytest -n 2 -m "not slow' in make(copy, "-n", "test").stdout


def test_the_full_demo_keeps_to_folders_of_its_own(copy):
    (copy / ".venv").mkdir()
    (copy / ".venv" / ".installed").touch()
    said = make(copy, "-n", "demo-full").stdout
    assert "mmjax train configs/quickstart.py:full --workdir runs/demo_full" in said
    for name in ("image", "audio", "mask"):
        place = f"quickstart_tokenizers.py:{name} \\\n\t--workdir runs/demo_full_tokenizers/{name} "
        assert place in said
    assert "runs/demo " not in said
    assert "runs/demo_tokenizers" not in said


def test_the_tokenizers_that_make_trains_are_those_that_the_demo_reads(copy):
    (copy / ".venv").mkdir()
    (copy / ".venv" / ".installed").touch()
    for name in ("get_config", "short", "full"):
        target = "configs/quickstart.py" + f":{name}" * (name != "get_config")
        said = make(copy, "-n", "demo", f"CONFIG={target}").stdout
        modalities = config.load(str(ROOT / target)).modalities.values()
        read = {m.path for m in modalities if isinstance(m, Codes)}
        assert set(re.findall(r"--workdir (runs/\w+_tokenizers/\w+)", said)) == read


def test_ci_runs_the_readme_commands():
    script = ROOT / ".ci" / "run"
    assert os.access(script, os.X_OK)
    subprocess.run(["bash", "-n", script], check=True)
    text = script.read_text()
    assert "set -euo pipefail" in text
    assert [c in text for c in ("make test\n", "make demo ", "make test-ci\n")] == [True] * 3


def templates() -> list[Path]:
    return [p for p in (ROOT / "launch").rglob("*") if p.is_file()]


@pytest.mark.ci
def test_a_wheel_installs_the_command_and_its_data(tmp_path):
    pip = [sys.executable, "-m", "pip", "-q", "--disable-pip-version-check"]
    source = tmp_path / "source"  # a build leaves folders behind
    ignore = shutil.ignore_patterns(".*", "runs", "build", "*.egg-info", "__pycache__")
    shutil.copytree(ROOT, source, ignore=ignore, symlinks=True)
    wheels = tmp_path / "wheels"
    subprocess.run([*pip, "wheel", "--no-deps", "-w", wheels, source], check=True)
    (wheel,) = wheels.glob("mmjax-*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    data = {
        f"mmjax/demo/numbers_speech/{p.name}"
        for p in (ROOT / "mmjax/demo/numbers_speech").iterdir()
        if p.is_file()
    }
    template = [n for n in names if n.startswith("mmjax/export/template/")]
    assert len(template) == 4  # what an export copies into its folder
    configs = (ROOT / "configs").rglob("*.py")
    recipes = {f"mmjax/recipes/{p.relative_to(ROOT / 'configs')}" for p in configs}
    launch = {f"mmjax/launch/templates/{p.relative_to(ROOT / 'launch')}" for p in templates()}
    assert data | recipes | launch | {"mmjax/py.typed"} <= set(names)
    assert all(n.startswith(("mmjax/", "mmjax-")) for n in names)

    fresh = tmp_path / "fresh"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", fresh], check=True)
    python = fresh / "bin" / "python"
    install = [*pip, "--python", str(python), "install", "--no-deps", "--no-index", str(wheel)]
    subprocess.run(install, check=True)
    # Packages that mmjax needs are those of this environment, without what is editable there.
    (packages,) = (fresh / "lib").glob("python*/site-packages")
    (packages / "needed.pth").write_text(f"{sysconfig.get_path('purelib')}\n")
    env = {**os.environ, "PATH": f"{fresh / 'bin'}:{os.environ['PATH']}", "PYTHONPATH": ""}
    empty = tmp_path / "empty"
    empty.mkdir()

    def run(*args: str) -> str:
        done = subprocess.run(["mmjax", *args], capture_output=True, text=True, env=env, cwd=empty)
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert run("--version") == f"mmjax {mmjax.__version__}\n"
    assert f"  {packages / 'mmjax' / 'recipes' / 'quickstart.py'} " in run("list", "recipes")
    assert "\n  mmjax train configs/quickstart.py " in run("recipes", "copy", "quickstart")
    assert "configs/quickstart.py  " in run("list", "recipes")
    assert "--tasks.masked.batch_size" in run("train", "configs/quickstart.py", "--help")
    job = ["--workdir", "/shared/a", "--hosts", "a,b", "--dry-run"]
    script = run("launch", "ssh", "configs/quickstart.py", *job)
    assert f"REQUIREMENT='mmjax=={mmjax.__version__}'" in script or (
        f"REQUIREMENT=mmjax=={mmjax.__version__}" in script
    )


@pytest.mark.parametrize(("target", "what"), [("test-compile", "libtpu"), ("test-cuda", "jax")])
def test_where_no_compiler_can_be_installed_one_line_says_so(copy, target, what):
    done = make(copy, target, "PYTHON=false")
    assert done.returncode == 0
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"skipped: {what}")
    assert "cannot be installed here; make setup-" in line
