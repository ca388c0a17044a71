"""No process of ours runs what lies in the working folder."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import jax
import mini
import pytest
import small

import mmjax
from mmjax.processes import children

ROOT = Path(mmjax.__file__).parent.parent
TESTS = Path(__file__).parent.parent
PLANTED = (
    *("cloudpickle", "jax", "numpy", "random", "mmjax", "multiprocessing", "pickle", "grain"),
    *("sitecustomize", "usercustomize", "zstandard", "mini", "re"),
)
# What pip writes to bin/mmjax.
SCRIPT = "import sys\nfrom mmjax.cli import main\nif __name__ == '__main__': sys.exit(main())\n"
# Just over the size from which another process compiles; with a worker process that reads data.
CONFIG = """
import dataclasses
from mmjax import config
from mine import Cosine

def get_config():
    mini = config.load_module({mini!r})
    base = mini.get_config(total_steps=2, seed=1)
    return dataclasses.replace(
        base,
        tasks={{"text": base.tasks["text"]}},
        model=dataclasses.replace(base.model, width=320),
        optimizer=Cosine(learning_rate=1e-3),
        data=dataclasses.replace(base.data, num_workers=1),
    )
"""
MINE = """
import dataclasses
from mmjax.optim import AdamW

@dataclasses.dataclass(frozen=True, kw_only=True)
class Cosine(AdamW):
    pass
"""


@pytest.fixture
def planted(tmp_path) -> Path:
    """A working folder with modules of well-known names; each leaves a mark."""
    folder = tmp_path / "work"
    folder.mkdir()
    for name in PLANTED:
        (folder / f"{name}.py").write_text(
            f"open({str(folder / 'MARK')!r}, 'a').write('{name} ')\nraise SystemExit('planted')\n"
        )
    return folder


def environment(tmp_path: Path, **more: str) -> dict[str, str]:
    """The user has classes of his own on PYTHONPATH, and a cache of his own."""
    (tmp_path / "lib").mkdir(exist_ok=True)
    (tmp_path / "lib" / "mine.py").write_text(MINE)
    # (mmjax may be in a checkout that is not installed.)
    paths = os.pathsep.join([str(tmp_path / "lib"), str(ROOT)])
    return {**os.environ, "PYTHONPATH": paths, "JAX_PLATFORMS": "cpu", **more}


@pytest.mark.ci
@pytest.mark.timeout(600)
@pytest.mark.fault("modules with names of libraries lie in the working folder", "they are not run")
@pytest.mark.parametrize("verb", small.in_turns(["train", "launch"], ["train"]))
def test_the_command_runs_nothing_of_the_working_folder(verb, planted, tmp_path):
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "mmjax").write_text(SCRIPT)
    (tmp_path / "config.py").write_text(CONFIG.format(mini=str(TESTS / "mini.py")))
    env = environment(tmp_path, JAX_COMPILATION_CACHE_DIR=str(tmp_path / "cache"))
    verbs = {"train": ["train"], "launch": ["launch", "local"]}[verb]
    command = [sys.executable, str(tmp_path / "bin" / "mmjax"), *verbs]
    command += [str(tmp_path / "config.py"), "--workdir", str(tmp_path / "run")]
    done = subprocess.run(
        command, capture_output=True, text=True, env=env, cwd=planted, timeout=400
    )
    assert not (planted / "MARK").exists(), (planted / "MARK").read_text()
    assert done.returncode == 0, done.stderr[-3000:] + done.stdout[-3000:]
    said = done.stderr + done.stdout
    assert "compiling here" not in said  # the other process found everything, also `mine`
    assert "compiled text/default" in said
    assert len(list((tmp_path / "cache").glob("mmjax-*"))) == 1
    assert sorted(p.stem for p in planted.iterdir()) == sorted(PLANTED)


@pytest.mark.ci
@pytest.mark.timeout(600)
@pytest.mark.fault("a workdir holds modules, start-up files, compiled programs", "they are not run")
def test_a_workdir_runs_nothing_where_it_is_the_working_folder_too(planted, tmp_path):
    mmjax.train(mini.evaluated(), planted, devices=jax.devices()[:1])
    places = [planted, planted / "tokenizers", *(planted / "tokenizers").iterdir()]
    for folder in (*places, planted / "checkpoints" / "12"):
        for name in (*PLANTED, "config", "conftest", "__init__"):
            (folder / f"{name}.py").write_text(f"open({str(planted / 'MARK')!r}, 'a').write('!')")
        (folder / "evil.pth").write_text("import random\n")
    (planted / "compile_cache").mkdir()
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "mmjax").write_text(SCRIPT)
    env = environment(tmp_path)
    command = [sys.executable, str(tmp_path / "bin" / "mmjax"), "eval", "."]
    done = subprocess.run(
        command, capture_output=True, text=True, env=env, cwd=planted, timeout=400
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "image_to_text_R@1" in done.stdout
    assert "compile_cache in the workdir is no longer used" in done.stderr
    assert not (planted / "MARK").exists()
    assert not list((planted / "compile_cache").iterdir())


def run(program: str, cwd: Path, **env: str) -> str:
    """What a parent prints that looks for nothing in the working folder, and its children."""
    parent = "import subprocess, sys; from mmjax.processes import children; " + program
    done = subprocess.run(
        [sys.executable, "-P", "-c", parent], capture_output=True, text=True, cwd=cwd, env=env
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_child_looks_where_its_parent_looks(planted, tmp_path):
    env = environment(tmp_path)
    show = "import mmjax, cloudpickle, mine, json; print(mmjax.__file__, cloudpickle.__file__)"
    ask = f"subprocess.run(children.command({show!r}), check=True)"
    out = run(ask, planted, **env).split()
    assert out[0] == str(ROOT / "mmjax" / "__init__.py")
    assert Path(out[1]).parent.name == "cloudpickle"
    assert not (planted / "MARK").exists()


def test_the_working_folder_comes_last_where_python_has_put_it_first(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", ["", "/a", "b", "/a"])
    assert children.search_path() == ["/a", str(tmp_path / "b"), str(tmp_path)]
    monkeypatch.setattr(sys, "path", ["", str(tmp_path), "/a"])  # named by the user too
    assert children.search_path() == [str(tmp_path), "/a"]
    monkeypatch.setattr(sys, "path", ["/script", "/a"])
    assert children.search_path() == ["/script", "/a"]


def test_a_module_beside_a_checkout_that_is_not_installed_hides_nothing(tmp_path):
    """`python -m mmjax` in a checkout: mmjax itself is found there, and what hides others not."""
    (tmp_path / "mmjax").symlink_to(ROOT / "mmjax")
    (tmp_path / "cloudpickle.py").write_text("print('planted')")
    (tmp_path / "only_here.py").write_text("print('found')")
    (tmp_path / "start.py").write_text(
        "import subprocess; from mmjax.processes import children\n"
        "subprocess.run(children.command('import mmjax, cloudpickle, only_here; "
        "print(mmjax.__file__)'), check=True)"
    )
    env = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    command = [sys.executable, "-m", "start"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=env)
    assert done.stdout.split() == ["found", str(tmp_path / "mmjax" / "__init__.py")], done.stderr


def test_nothing_of_the_environment_runs_in_a_child(planted, tmp_path):
    env = environment(tmp_path)
    ask = (
        "import os; os.environ['PYTHONPATH'] = os.getcwd();"
        "subprocess.run(children.command('import random; print(random.randint(3, 3))'), check=True)"
    )
    assert run(ask, planted, **env) == "3\n"
    assert not (planted / "MARK").exists()


@pytest.mark.fault("the working folder holds compilers that XLA would start", "refused")
def test_compilers_of_the_working_folder_are_refused(tmp_path):
    (tmp_path / "cuda_sdk_lib" / "bin").mkdir(parents=True)
    (tmp_path / "show.py").write_text("raise ValueError('went on')")
    codes = []
    for platform, flags in (("cuda", ""), ("cpu", ""), ("cuda", "--xla_gpu_cuda_data_dir=/cuda")):
        env = environment(tmp_path, JAX_PLATFORMS=platform, XLA_FLAGS=flags)
        command = [sys.executable, "-m", "mmjax", "train", "show.py", "--workdir", "run"]
        done = subprocess.run(command, capture_output=True, text=True, env=env, cwd=tmp_path)
        codes.append((done.returncode, "went on" in done.stderr, "whose compilers" in done.stderr))
    assert codes == [(2, False, True), (2, True, False), (2, True, False)]
