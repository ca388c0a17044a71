"""What `mmjax export` will not do; nothing here needs torch or a trained run."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import types

import mini
import numpy as np
import pytest

import mmjax
from mmjax import cli, config
from mmjax.errors import NoCheckpoint
from mmjax.export import card, describe, parity
from mmjax.modalities.audio import Audio
from mmjax.modalities.image import Image
from mmjax.models import MoE
from mmjax.models.routers import ExpertChoice, Soft, SoftmaxTopK
from mmjax.run.view import View


def test_what_is_exported():
    found = describe.model_config(mini.get_config(), {"image": 32, "text": 32})
    assert set(found["streams"]) == {"image", "text"}
    assert found["lanes"] == {"enc": [{"num_experts": 4, "width": 32, "num_experts_per_tok": 2}]}
    assert list(found["tables"]) == ["text"]
    assert json.loads(json.dumps(found)) == found


def changed(**modalities):
    base = mini.get_config()
    return dataclasses.replace(base, modalities={**base.modalities, **modalities})


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sepia(Image):
    """A modality whose preprocessing the exported code does not have."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Later(Image):
    crop: str = "none"


@pytest.mark.parametrize("router", [ExpertChoice(allow_unmixed=True), Soft(), SoftmaxTopK()])
def test_other_routers(router):
    base = mini.get_config()
    moe = MoE(num_experts=4, width=32, every=1, router=router)
    model = dataclasses.replace(base.model, shape="encoder", moe=moe)
    tasks = {"image_text": base.tasks["image_text"]}
    experiment = dataclasses.replace(base, model=model, tasks=tasks)
    with pytest.raises(mmjax.ConfigError, match=f"router {type(router).__name__} .* TokenChoice"):
        describe.exported(experiment)


def test_no_contrastive_task():
    base = mini.get_config()
    experiment = dataclasses.replace(base, tasks={"text": base.tasks["text"]}, evaluators={})
    with pytest.raises(mmjax.ConfigError, match=r"no task has a contrastive objective.*InfoNCE"):
        describe.exported(experiment)


def test_modalities_without_a_twin(monkeypatch):
    with pytest.raises(mmjax.ConfigError, match=r"'image' is a .*:Sepia, .*Image, Audio, Text"):
        describe.exported(changed(image=Sepia(size=(8, 16), patch=4, channels=1)))
    monkeypatch.setitem(describe.KNOWN, Later, describe.IMAGE_FIELDS)
    describe.exported(changed(image=Later(size=(8, 16), patch=4, channels=1)))
    with pytest.raises(mmjax.ConfigError, match=r"Later.crop='centre'.*use its default"):
        describe.exported(changed(image=Later(size=(8, 16), patch=4, channels=1, crop="centre")))


def test_examples_that_cannot_be_read_are_left_out_of_the_parity(tmp_path):
    experiment = mini.with_source(mini.Damaged(train_size=64))
    known = types.SimpleNamespace(experiment=experiment)
    view = View(program=known, params={}, model_state={}, extra={}, step=0, split="val")
    files = parity._write_examples(view, tmp_path)
    read = experiment.modalities["image"].read
    records = experiment.tasks["image_text"].source.open("val")
    for path, i in zip(files["image"], (0, 1, 2, 4, 6, 7, 8, 9), strict=True):
        np.testing.assert_array_equal(read(str(path)), records[i]["image"])
    assert len(files["text"]) == parity.EXAMPLES


@pytest.mark.parametrize(
    ("resize", "said"), [("stretch", "stretched"), ("crop", "cropped and scaled")]
)
def test_the_card_says_how_images_are_resized(resize, said):
    image = Image(size=(8, 16), patch=4, channels=1, resize=resize)
    assert card._say(image) == f"an image file, Pillow image or array; gray, {said} to 8 x 16"


def test_tokenizer_runs():
    path = mini.QUICKSTART.with_name("quickstart_tokenizers.py")
    with pytest.raises(mmjax.ConfigError, match=r"model .* has no PyTorch twin"):
        describe.exported(config.load(f"{path}:image"))


def test_audio_only_where_a_contrast_has_it():
    assert "audio" not in describe.exported(changed(audio=Audio(seconds=0.5)))


def refused(*args: str, capsys) -> tuple[int, str]:
    return cli.main(["export", *args]), capsys.readouterr().err


def test_command_line(tmp_path, capsys, monkeypatch):
    out, full = str(tmp_path / "out"), tmp_path / "full"
    full.mkdir()
    (full / "thesis.tex").touch()
    code, text = refused("runs/x", "--out", out, "--parts", "decoder", capsys=capsys)
    assert code == 2
    assert "--parts decoder: there is no such part; use encoder." in text
    for more in ((), ("--overwrite",)):  # nobody's thesis is deleted
        code, text = refused("runs/x", "--out", str(full), *more, capsys=capsys)
        assert code == 2
        assert "holds files that no export wrote" in text
    (full / "parity.json").touch()
    code, text = refused("runs/x", "--out", str(full), capsys=capsys)
    assert code == 2
    assert "--overwrite" in text
    (tmp_path / "link").symlink_to(full)
    code, text = refused("runs/x", "--out", f"{tmp_path}/link", "--overwrite", capsys=capsys)
    assert code == 2
    assert "is a link" in text
    assert refused("runs/x", "--out", "ftp://a/b", capsys=capsys)[0] == 2
    code, text = refused(str(tmp_path / "absent"), "--out", out, capsys=capsys)
    assert code == 66
    assert "holds no config.json" in text
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    code, text = refused("runs/x", "--out", out, "--verify", capsys=capsys)
    assert code == 2
    assert "torch" in text
    assert "pip install 'mmjax[hf]'" in text
    assert not (tmp_path / "out").exists()


def test_a_run_that_has_not_saved(tmp_path):
    (tmp_path / "config.json").write_text(config.dump(mini.get_config()))
    with pytest.raises(NoCheckpoint, match="no complete checkpoint"):
        mmjax.export(tmp_path, tmp_path / "out")
    assert not (tmp_path / "out").exists()
