"""The notebooks run from top to bottom, and are what their sources say."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import jupytext
import nbformat
import pytest

from mmjax import console

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.py"))


@pytest.mark.parametrize("source", NOTEBOOKS, ids=lambda path: path.stem)
def test_the_notebook_is_its_source_without_outputs(source):
    made, written = jupytext.read(source), nbformat.read(source.with_suffix(".ipynb"), 4)
    cells = [(cell.cell_type, cell.source) for cell in written.cells]
    assert cells == [(cell.cell_type, cell.source) for cell in made.cells], "run: make notebooks"
    assert not any(cell.get("outputs") or cell.get("execution_count") for cell in written.cells)


@pytest.mark.parametrize("source", NOTEBOOKS, ids=lambda path: path.stem)
def test_badges_open_the_notebook_in_colab(source):
    (url,) = re.findall(r'^Source = "https://github.com/(.+)"', _text("pyproject.toml"), re.M)
    colab = f"https://colab.research.google.com/github/{url}"
    link = f"({colab}/blob/main/notebooks/{source.stem}.ipynb)"
    assert link in source.read_text()
    assert link in _text("README.md")
    assert f'REPOSITORY, CLONE = "https://github.com/{url}"' in source.read_text()


@pytest.mark.parametrize("is_notebook", [False, True])
def test_a_notebook_gets_lines_where_a_terminal_gets_a_bar(is_notebook, monkeypatch, capsys):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.delenv(console.NOTEBOOK, raising=False)
    if is_notebook:
        monkeypatch.setenv(console.NOTEBOOK, "1")
    progress = console.Progress(10, 0, True)
    progress.log(3, "loss 1.0")
    progress.close()
    assert (capsys.readouterr().err == "step 3/10  loss 1.0\n") == is_notebook


@pytest.mark.hf
@pytest.mark.timeout(900)
def test_own_pictures_runs_and_retrieval_rises(tmp_path):
    notebook = shutil.copy(ROOT / "notebooks" / "own_pictures.ipynb", tmp_path)
    before = _status()
    environment = os.environ | {
        "MMJAX_TINY": "1",
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
        "XLA_FLAGS": "--xla_backend_optimization_level=0",  # one device; half the compile time
        "HF_HOME": str(tmp_path / "hf"),
        "HF_HUB_OFFLINE": "1",
        "IPYTHONDIR": str(tmp_path / "ipython"),
        "JUPYTER_RUNTIME_DIR": str(tmp_path / "jupyter"),
    }
    options = ["-q", "-p", "no:cacheprovider", "--nbmake-timeout=600", "--overwrite"]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "--nbmake", *options, "--rootdir", tmp_path, notebook],
        cwd=tmp_path, env=environment, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-6000:]
    scores = {s: _scores(tmp_path / "runs" / "own", s) for s in (0, 200)}
    for key in ("image_to_text_R@1", "text_to_image_R@1"):  # of 50: chance is 0.02
        assert scores[200][key] > scores[0][key] + 0.1
    assert (tmp_path / "caption" / "text_0.txt").exists()
    parity = json.loads((tmp_path / "own_hf" / "parity.json").read_text())
    assert parity["verified"]
    assert set(parity["modalities"]) == {"image", "text"}
    cells = nbformat.read(notebook, 4).cells
    assert any("nearest: " in str(cell.get("outputs")) for cell in cells)
    assert _status() == before  # nothing is left in the repository


def _scores(run: Path, step: int) -> dict[str, float]:
    return json.loads((run / "evals" / "own" / f"{step}.json").read_text())


def _status() -> str:
    command = ["git", "status", "--porcelain"]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True).stdout


def _text(name: str) -> str:
    return (ROOT / name).read_text()
