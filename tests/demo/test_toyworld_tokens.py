"""From raw shards to answers: the commands of docs/tokenize.md, with fewer scenes and steps."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys

import pytest

SHORTER = {
    "mmjax.demo.toyworld_shards": ("--scenes", "200", "--held-out", "40"),
    "train-tokenizer": ("--total-steps", "20", "--tasks.reconstruct.source.train-size", "200"),
    "train": (
        *("--total-steps", "6", "--model.encoder-layers", "1", "--model.decoder-layers", "1"),
        *("--evaluators.losses.num-batches", "1"),
    ),
    "generate": ("--steps", "4"),
}


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_documented_commands_end_in_a_picture(root, tmp_path):
    page = (root / "docs" / "tokenize.md").read_text()
    section = page.split("## From raw shards to answers")[1].split("```")[1]
    lines = [line for line in section.splitlines() if line]
    assert len(lines) == 5
    (tmp_path / "configs").symlink_to(root / "configs")
    for line in lines:
        program, *args = shlex.split(line)
        what = args[1] if args[0] == "-m" else args[0]
        command = (
            [sys.executable, *args]
            if program == "python"
            else [sys.executable, "-m", program, *args]
        )
        paths = os.pathsep.join([str(root), os.environ.get("PYTHONPATH", "")])
        done = subprocess.run(
            [*command, *SHORTER.get(what, ())], cwd=tmp_path, capture_output=True, text=True,
            timeout=400, env={**os.environ, "PYTHONPATH": paths},
        )  # fmt: skip
        assert done.returncode == 0, done.stderr[-3000:]
    card = (tmp_path / "runs" / "toyworld_tokens" / "README.md").read_text()
    assert "| tokens | train | 1 | 200 | 0 |" in card
    assert list((tmp_path / "answers").glob("*.png"))
    assert (tmp_path / "answers" / "index.html").exists()
