"""The recipe of ToyWorld: a matrix of 156 cells, and a tiny run that fills some of them."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from mmjax import config

RECIPE = "configs/anyany/toyworld.py"


def test_every_cell_has_its_judge_and_all_thirteen_are_asked_for(root):
    experiment = config.load(str(root / RECIPE))
    generation = experiment.evaluators["generation"]
    assert len(experiment.modalities) == 19
    assert len(generation.cells) == 13 * 12
    fields = {m.field or name for name, m in experiment.modalities.items()}
    assert set(generation.judges) <= fields
    wanted = {cell.partition("_to_")[2] for cell in generation.cells}
    masked = experiment.tasks["masked"]
    assert wanted <= {experiment.modalities[n].field or n for n in masked.targets}


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_tiny_run_generates_and_reports(root, tmp_path):
    command = [sys.executable, "-m", "mmjax"]
    run = lambda *args: subprocess.run(
        [*command, *args], cwd=root, capture_output=True, text=True, timeout=500
    )
    done = run("train", f"{RECIPE}:tiny", "--workdir", str(tmp_path / "run"))
    assert done.returncode == 0, done.stderr[-3000:]
    assert "no baselines" not in done.stderr
    found = json.loads((tmp_path / "run" / "evals" / "generation" / "8.json").read_text())
    for cell in ("image_to_semseg_miou", "caption_to_boxes_iou", "depth_to_caption_words"):
        assert 0 <= found[cell] <= 1
    for judged in ("semseg_miou", "boxes_iou", "caption_words", "graph_f1"):
        assert found[f"real_to_{judged}"] == pytest.approx(1, abs=1e-6)
        assert 0 < found[f"trivial_to_{judged}"] < found[f"codes_to_{judged}"] <= 1
    assert run("report", str(tmp_path / "run")).returncode == 0
