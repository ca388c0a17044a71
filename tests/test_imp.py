"""The IMP recipe: the published sizes, tokens and shares; its own parts; a tiny run."""

from __future__ import annotations

import functools
import json
import math
import subprocess
import sys
import types

import jax.numpy as jnp
import numpy as np
import pytest

from mmjax import config
from mmjax import step as step_lib
from mmjax.data import loader, mixture
from mmjax.models import names
from mmjax.run import experts

IMP = "configs/alternating/imp.py"
FULL = ("base", "large", "moe_base", "moe_large")
WHERE = {"base": 64, "large": 256, "moe_base": 64, "moe_large": 256}  # chips of their docstrings


@pytest.fixture(scope="module")
def imp(root):
    return config.load_module(root / IMP)


def parts_of(experiment) -> dict[str, tuple[int, ...]]:
    """Shapes of the parameters by path."""
    make = functools.partial(experiment.model.make, experiment.vocabulary(), experiment.heads(), 0)
    return {name: x.shape for name, x in names.flatten(step_lib.split(make).params).items()}


@pytest.mark.parametrize(
    ("name", "active", "total"),
    [("base", 85e6, 85e6), ("large", 304e6, 304e6), ("moe_base", 85e6, 283e6),
     ("moe_large", 304e6, 659e6)],
)  # fmt: skip
def test_the_blocks_have_the_published_sizes(imp, name, active, total):
    """Published: 86 M and 306 M active, with the embeddings; 16 experts, of which two work."""
    experiment = getattr(imp, name)()
    shapes = {path: s for path, s in parts_of(experiment).items() if path.startswith("runs/")}
    sizes = {path: math.prod(shape) for path, shape in shapes.items()}
    assert sum(sizes.values()) == pytest.approx(total, rel=0.01)
    idle = sum(size * 14 / 16 for path, size in sizes.items() if len(shapes[path]) == 4 and
               path.split("/")[-1] in ("up", "gate", "down"))  # fmt: skip
    assert sum(sizes.values()) - idle == pytest.approx(active, rel=0.01)
    blocks = [b for run in experiment.model.layer_plan() for b in run.pattern * run.repeats]
    layers = 24 if "large" in name else 12
    assert [b.moe is not None for b in blocks] == [False] * (layers - 6) + ["moe" in name] * 6


@pytest.mark.parametrize("name", FULL)
def test_steps_see_the_published_tokens_and_batches_divide_over_the_named_chips(imp, name):
    experiment = getattr(imp, name)()
    experiment.check_mesh(WHERE[name])
    tokens, rows = {}, {}
    for task, t in experiment.tasks.items():
        for variant in t.variant_weights():
            small = t.shape(variant)._replace(batch_size=t.group_rows)
            alone = types.SimpleNamespace(shape=lambda v, s=small: s, streams=t.streams,
                                          inputs=t.inputs, targets=())  # fmt: skip
            batch = loader.example_batch(alone, variant, {}, experiment.vocabulary())  # type: ignore[arg-type]
            views = {n: view.stream_BL.shape[1] for n, view in batch.views.items()}
            tokens[task, variant] = {n: v for n, v in views.items() if not n.endswith("_class")}
            rows[task, variant] = t.shape(variant).batch_size
    assert tokens == {
        ("image_text", "default"): {"image": 256, "text": 16},
        ("image_classes", "default"): {"image": 256},
        ("video_text", "quarter"): {"video": 256, "text": 16},
        ("video_text", "half"): {"video": 512, "text": 16},
        ("video_classes", "default"): {"clip": 256},
        ("video_audio_text", "default"): {"video": 256, "audio": 64, "text": 16},
        ("audio_classes", "default"): {"audio": 64},
    }
    assert list(rows.values()) == [8192, 8192, 8192, 4096, 2048, 8192, 2048]


def test_tasks_have_the_published_shares(imp):
    experiment = imp.moe_base()
    bound = experiment.mixture.bind(experiment.tasks, experiment.seed)
    bound.check(experiment.total_steps)
    shares = {t: n / 120_000 for t, n in bound.steps_before(120_000, mixture.Journal()).items()}
    expected = {
        "image_text": 0.401, "image_classes": 0.401, "video_text": 0.033,
        "video_classes": 0.080, "video_audio_text": 0.033, "audio_classes": 0.050,
    }  # fmt: skip
    assert shares == pytest.approx(expected, abs=0.001)


def test_a_token_of_video_is_a_box_of_pixels(imp):
    video = imp.Video(shape=(4, 8, 8), patch=(2, 4, 4))
    clip = np.random.default_rng(0).integers(0, 256, (9, 8, 8, 3)).astype(np.uint8)
    piece = video.encode(clip)
    assert piece.position_LA[5].tolist() == [1, 0, 1]
    box = clip[[4, 6], :4, 4:] / 127.5 - 1  # every second frame of nine
    np.testing.assert_allclose(piece.values_LP[5], box.reshape(-1), atol=1e-6)
    with pytest.raises(ValueError, match="is no clip of uint8"):
        video.encode(clip[:3])
    with pytest.raises(ValueError, match="not divisible by patch"):
        imp.Video(shape=(4, 8, 8), patch=(3, 4, 4))


def test_classes_are_scored_as_numpy_scores_them(imp):
    """Means over the tokens against vectors of the labels; a sample without a label is left out."""
    rng = np.random.default_rng(0)
    x_BLD, table_VD = rng.normal(size=(3, 4, 8)), rng.normal(size=(5, 8))
    x_BLD, table_VD = x_BLD.astype(np.float32), table_VD.astype(np.float32)
    stream_BL = np.ones((3, 4), np.int32)
    stream_BL[1, 2:] = 0
    label_B, there_B = np.array([2, 0, 4]), np.array([True, True, False])
    view = types.SimpleNamespace(stream_BL=stream_BL, segment_BL=stream_BL, ids_BL=None)
    label = types.SimpleNamespace(ids_BL=jnp.asarray(np.where(there_B, label_B + 128, 0)[:, None]))
    batch = types.SimpleNamespace(
        views={"image": view, "image_class": label}, weight_BS=jnp.ones((3, 1)),
        present_BSM=jnp.asarray(np.stack([np.ones(3, bool), there_B], -1)[:, None]),
    )  # fmt: skip
    encoded = types.SimpleNamespace(x_BLD=jnp.asarray(x_BLD), record={"load": 1})
    model = types.SimpleNamespace(
        encode=lambda tokens, key: encoded,
        head=lambda name, x, stream: types.SimpleNamespace(x=x, table_VD=jnp.asarray(table_VD)),
        vocabulary=types.SimpleNamespace(
            number=["", "image", "image_class"].index, range=lambda name: (128, 133)
        ),
    )
    objective = imp.Classify(label="image_class")
    features, record = objective.embed(model, batch, None)
    assert record == {"load": 1}
    losses, metrics, _ = objective.losses(model, features, batch, None, {})
    mean_BD = np.stack([x_BLD[0].mean(0), x_BLD[1, :2].mean(0), x_BLD[2].mean(0)])
    logits_BV = mean_BD @ table_VD.T
    want_B = np.log(np.exp(logits_BV).sum(-1)) - logits_BV[np.arange(3), label_B]
    found = losses["class"]
    np.testing.assert_allclose(found.value_BS[:2, 0], want_B[:2], rtol=1e-5)
    np.testing.assert_array_equal(found.weight_BS[:, 0], [0.5, 0.5, 0])
    hits = (logits_BV.argmax(-1) == label_B)[:2].mean()
    assert float(metrics["accuracy"]) == pytest.approx(hits)


@pytest.mark.slow
def test_tiny_trains_from_the_command_line(root, tmp_path):
    target = [f"{root / IMP}:tiny", "--workdir", str(tmp_path / "run")]
    done = subprocess.run(
        [sys.executable, "-m", "mmjax", "train", *target], cwd=root, text=True, capture_output=True
    )
    assert done.returncode == 0, done.stderr
    scores = json.loads((tmp_path / "run" / "evals" / "losses" / "60.json").read_text())
    assert scores["image_classes/accuracy"] > 0.9  # chance is 0.25
    assert scores["audio_classes/accuracy"] > 0.9
    assert scores["image_text/loss"] < 0.8 * math.log(32)
    table = json.loads((tmp_path / "run" / experts.FILE).read_text())
    load_ME = np.asarray(table["layers"][0]["load"])
    used = {name for name, row in zip(table["streams"], load_ME, strict=True) if row.any()}
    assert used == {"image", "video", "clip", "audio", "text"}  # labels are not encoded
