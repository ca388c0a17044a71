"""Cosines between objectives: against NumPy, in the scores, and on the page."""

import itertools
import json

import jax
import mini
import numpy as np
import pytest

import mmjax
from mmjax.cli import report
from mmjax.evaluate import Conflicts
from mmjax.run.view import View


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """(folder, view) of a run that measures them at two steps."""
    folder = tmp_path_factory.mktemp("conflicts")
    config = mini.get_config(evaluators={"conflicts": Conflicts(num_batches=1, every=4)})
    result = mmjax.train(config, folder, devices=jax.devices()[:1])
    view = View(
        program=result.program, params=result.state.params, split="val", step=result.step,
        model_state=result.state.model_state, extra=result.state.extra,
    )  # fmt: skip
    return folder, view, result.metrics


def flat(tree) -> np.ndarray:
    return np.concatenate([np.ravel(x).astype(np.float64) for x in jax.tree.leaves(tree)])


@pytest.mark.slow
def test_cosines_equal_numpy(run):
    _, view, metrics = run
    rows = {task: flat(view.gradients(task, 1)[""]) for task in ("text", "image_text")}
    for a, b in itertools.combinations(rows, 2):
        want = rows[a] @ rows[b] / np.linalg.norm(rows[a]) / np.linalg.norm(rows[b])
        assert metrics[f"conflicts/{a}_against_{b}_cosine"] == pytest.approx(want, abs=1e-5)
    norm = metrics["conflicts/text_norm"]
    assert norm == pytest.approx(np.linalg.norm(rows["text"]), rel=1e-5)


@pytest.mark.slow
def test_losses_by_themselves_add_up_to_the_task(run):
    _, view, _ = run
    parts = view.gradients("text", 1, by_loss=True)
    whole = flat(view.gradients("text", 1)[""])
    np.testing.assert_allclose(sum(flat(g) for g in parts.values()), whole, atol=1e-5)
    found = Conflicts(num_batches=1, by_loss=True).run(view)
    assert any(name.startswith("text/text_against_image_text/") for name in found)


def test_it_is_on_the_page_and_in_the_metrics(run):
    folder, _, _ = run
    rows = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    name = "eval/conflicts/text_against_image_text_cosine"
    logged = [row["step"] for row in rows if name in row]
    assert logged == [4, 8, 12]
    report.run([str(folder)])
    page = (folder / "report.html").read_text()
    assert "Cosine between gradients" in page


def test_an_unknown_task_is_named(run):
    with pytest.raises(ValueError, match=r"Conflicts: tasks has 'smell'.*text, image_text"):
        Conflicts(tasks=("smell",)).run(run[1])
