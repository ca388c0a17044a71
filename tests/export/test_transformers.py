"""Exported folders in transformers, in processes that cannot import mmjax or jax."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import jax
import mini
import numpy as np
import pytest
from etils import epath

import mmjax
from mmjax import cli, config
from mmjax.errors import CheckFailed
from mmjax.export import folder, parity
from mmjax.models import Convolutions, MoE
from mmjax.run import program
from mmjax.run import workdir as workdir_lib
from mmjax.run.view import View

pytestmark = [pytest.mark.hf, pytest.mark.timeout(600)]

ROOT = Path(mmjax.__file__).parent.parent

# What a stranger writes, behind the example of the docs.
STRANGER = """
import json, sys
import torch
from transformers import AutoConfig, AutoModel, AutoProcessor
folder, copy = sys.argv[1:]
model, info = AutoModel.from_pretrained(folder, trust_remote_code=True, output_loading_info=True)
processor = AutoProcessor.from_pretrained(folder, trust_remote_code=True)
given = dict(image=[folder + "/../a.png"], text=["sixty-three", "two"])
with torch.no_grad():
    one = model(**processor(**given))
model.save_pretrained(copy)
processor.save_pretrained(copy)
again = AutoModel.from_pretrained(copy, trust_remote_code=True)
other = AutoProcessor.from_pretrained(copy, trust_remote_code=True)
with torch.no_grad():
    two = again(**other(**given))
print(json.dumps(dict(
    kinds=[type(model).__name__, type(processor).__name__],
    loaded={k: sorted(map(str, v)) for k, v in info.items()},
    ours=[m for m in sys.modules if m.split(".")[0] in ("mmjax", "jax", "flax")],
    text=one["text_embeds"].tolist(), image=one.image_embeds.tolist(),
    same=all(torch.equal(one[k], two[k]) for k in one),
)))
"""


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """(workdir, folder) of a short run, exported on the command line."""
    place = tmp_path_factory.mktemp("hf")
    mmjax.train(mini.get_config(total_steps=4), place / "run")
    args = ["export", f"{place / 'run'}@4", "--out", str(place / "demo_hf"), "--verify"]
    assert cli.main(args) == 0
    return place / "run", place / "demo_hf"


def test_the_report(exported):
    report = json.loads((exported[1] / "parity.json").read_text())
    assert report["verified"]
    assert set(report["modalities"]) == {"image", "text"}
    for row in report["modalities"].values():
        assert row["examples"] == parity.EXAMPLES
        assert row["max_abs"] <= 1e-4
        assert row["min_cosine"] > 0.9999
    assert report["weights"] == {"missing": [], "unexpected": [], "mismatched": []}
    card = (exported[1] / "README.md").read_text()
    assert f"{report['modalities']['image']['max_abs']:.2g}" in card
    assert "AutoModel.from_pretrained(folder, trust_remote_code=True)" in card


def test_a_stranger_loads_it(exported, tmp_path):
    workdir, made = exported
    view = mmjax.load(str(workdir), devices=jax.devices()[:1])
    value = view.value("image", view.examples("val", 1)[0])
    file = view.program.experiment.modalities["image"].write(value, made.parent / "a")
    clean = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "HF_HOME")}
    clean |= {"HF_MODULES_CACHE": str(tmp_path / "code"), "HF_HUB_OFFLINE": "1"}
    page = (ROOT / "docs" / "export.md").read_text()
    (block,) = re.findall(r"^```python\n(.*?)^```$", page, re.M | re.S)
    command = [sys.executable, "-P", "-c", block + STRANGER, str(made), str(tmp_path / "copy")]
    done = subprocess.run(command, capture_output=True, text=True, env=clean, cwd=made.parent)
    assert done.returncode == 0, done.stderr[-4000:]
    assert "the picture is nearest to" in done.stdout
    said = json.loads(done.stdout.splitlines()[-1])
    assert said["kinds"] == ["MMJaxModel", "MMJaxProcessor"]
    assert not any(said["loaded"].values()), said["loaded"]
    assert said["ours"] == []
    assert said["same"]
    read = view.program.experiment.modalities["image"].read(str(file))
    for name, values in {"image": [read], "text": ["sixty-three", "two"]}.items():
        ours = view.embed(name, [view.example(name, v) for v in values])
        np.testing.assert_allclose(said[name], ours, atol=1e-4)


def test_overwriting(exported, capsys):
    workdir, made = exported
    assert cli.main(["export", str(workdir), "--out", str(made)]) == 2
    assert cli.main(["export", str(workdir), "--out", str(made), "--overwrite"]) == 0
    assert "not compared" in capsys.readouterr().out
    assert not json.loads((made / "parity.json").read_text())["verified"]
    assert "Not compared with mmjax" in (made / "README.md").read_text()
    assert sorted(p.name for p in made.parent.iterdir() if p.name.startswith(".")) == []


def fresh(tmp_path, **model) -> View:
    """An untrained model of these fields over three modalities, with uneven router biases."""
    tiny = config.load(f"{mini.QUICKSTART}:tiny")
    experiment = dataclasses.replace(
        tiny,
        tasks={n: t for n, t in tiny.tasks.items() if "_" in n},
        model=dataclasses.replace(tiny.model, **model),
    )
    experiment = workdir_lib.ready_modalities(experiment, epath.Path(tmp_path), main=True)
    built = program.build(experiment, jax.devices()[:1])
    state = built.init_state()
    model_state = jax.tree.map(
        lambda x: jax.random.normal(jax.random.key(0), x.shape), state.model_state
    )
    return View(
        program=built,
        params=state.params,
        model_state=model_state,
        extra=state.extra,
        step=0,
        split="val",
    )


MODELS = {
    "dense, layer norm, rotary, shared keys": {
        "shape": "encoder",
        "moe": None,
        "norm": "layer",
        "position": "rotary",
        "num_kv_heads": 2,
        "encoder_layers": 2,
    },
    "experts in every second of three, no QK-norm, heads of own width, positions of Whisper": {
        "position": "whisper",
        "moe": MoE(num_experts=5, width=24, every=2),
        "encoder_layers": 3,
        "qk_norm": False,
        "head_dim": 6,
    },
    "convolutions over pictures and spectrograms, positions of ViT-MAE": {
        "position": "vit_mae",
        "moe": None,
        "encoder_layers": 1,
        "stems": {
            "image": Convolutions(channels=(4, 8)),
            "audio": Convolutions(channels=(4, 4, 6)),
        },
    },
}


@pytest.mark.parametrize("name", MODELS)
def test_kinds_of_models(tmp_path, name):
    view = fresh(tmp_path, **MODELS[name])
    folder.write(view, tmp_path / "folder")
    report = parity.verify(view, tmp_path / "folder")
    assert set(report["modalities"]) == {"image", "text", "audio"}


def test_a_wrong_folder_is_told(tmp_path):
    view = fresh(tmp_path, encoder_layers=1)
    folder.write(view, tmp_path / "folder")
    path = tmp_path / "folder" / "processor_config.json"
    path.write_text(path.read_text().replace('"dynamic_range": 50.0', '"dynamic_range": 49.0'))
    with pytest.raises(CheckFailed, match=r"audio: difference 0\.\d+, cosine .* allowed 0.0001"):
        parity.verify(view, tmp_path / "folder")
    config_path = tmp_path / "folder" / "config.json"
    config_path.write_text(config_path.read_text().replace('"qk_norm": true', '"qk_norm": false'))
    with pytest.raises(CheckFailed, match=r"unexpected weights \['lanes\.enc\.blocks\.0\.att"):
        parity.verify(view, tmp_path / "folder")
