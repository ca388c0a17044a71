"""The general configuration trains on a small set in every format."""

from __future__ import annotations

import dataclasses
import json

import own
import pytest

import mmjax
from mmjax import config
from mmjax.models import MoE
from mmjax.tokenizers.sentencepiece import SentencePiece


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def shrunk(root, **fields):
    """The config, with a model and batches that compile in seconds."""
    module = config.load_module(root / "configs" / "own_data.py")
    base = module.get_config(batch_size=16, **fields)
    model = dataclasses.replace(base.model, width=32, num_heads=2, encoder_layers=1,
                                decoder_layers=1, moe=MoE(num_experts=2, width=32))  # fmt: skip
    text = base.modalities["text"]
    tokenizer = SentencePiece(vocab_size=400, num_sentinels=16)
    modalities = {**base.modalities, "text": dataclasses.replace(text, tokenizer=tokenizer)}
    tasks = {  # groups for the eight devices of the tests
        n: dataclasses.replace(t, group_rows=t.batch_size // 8) for n, t in base.tasks.items()
    }
    return dataclasses.replace(base, model=model, modalities=modalities, tasks=tasks,
                               total_steps=4)  # fmt: skip


def test_what_is_not_there_makes_a_config_all_the_same(root, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    made = config.load(str(root / "configs" / "own_data.py"))
    assert list(made.modalities) == ["image", "text"]
    assert list(made.tasks) == ["contrast", "masked"]
    assert made.modalities["image"].size == (64, 64)
    assert capfd.readouterr().err == ""


def test_the_kinds_and_sizes_of_the_data_are_those_of_the_config(root, tmp_path):
    module = config.load_module(root / "configs" / "own_data.py")
    own.write(tmp_path / "data", "csv", own.records(count=100))
    made = module.get_config(data=str(tmp_path / "data"))
    assert made.tasks["contrast"].inputs == tuple(made.modalities) == ("image", "text", "audio")
    assert set(made.tasks["contrast"].augment) == {"image", "text", "audio"}
    assert set(made.tasks["masked"].augment) == {"image", "audio"}  # what is predicted stays
    assert made.evaluators["retrieval"].every == made.total_steps // 5
    assert made.modalities["image"].size == (48, 48)  # of pictures of 40 x 45 pixels
    assert made.modalities["audio"].seconds == made.sizes.seconds == 0.9
    assert made.modalities["text"].max_tokens == made.sizes.max_tokens == 32
    assert made.tasks["masked"].batch_size == made.sizes.batch_size == 16
    assert module.get_config(data=str(tmp_path / "data"), size=224).modalities["image"].patch == 16


def test_short_runs_take_values_as_they_are(root, tmp_path):
    module = config.load_module(root / "configs" / "own_data.py")
    own.write(tmp_path / "data", "csv", own.records(count=100))
    for steps, is_varied in ((100, False), (300, True)):  # 27 and 80 visits of each record
        made = module.get_config(data=str(tmp_path / "data"), most_steps=steps)
        assert made.total_steps == steps
        assert bool(made.tasks["contrast"].augment) == is_varied


def test_names_of_folders_are_captions(root, tmp_path):
    module = config.load_module(root / "configs" / "own_data.py")
    for split in ("train", "val"):
        for i, row in enumerate(own.records(count=16, audio=False)):
            folder = tmp_path / "data" / split / row["text"].split()[1]
            folder.mkdir(parents=True, exist_ok=True)
            (folder / f"{i}.png").write_bytes(row["image"])
    made = module.get_config(data=str(tmp_path / "data"))
    source = made.tasks["contrast"].source
    assert source.splits() == ("train", "val")
    examples = [source.open("val")[i] for i in range(16)]
    assert {e["text"] for e in examples} == set(own.COLOURS)
    assert len({e["identity"] for e in examples}) == len(own.COLOURS)  # equal names, one identity
    assert made.modalities["text"].max_tokens == 8


@pytest.mark.slow
@pytest.mark.parametrize("kind", own.FORMATS)
def test_it_trains_on_every_format(kind, root, tmp_path):
    source = own.write(tmp_path / "data", kind, own.records())
    result = mmjax.train(shrunk(root, source=source), tmp_path / "run")
    assert result.step == 4
    assert 0 <= result.metrics["retrieval/image_to_text_R@1"] <= 1
    rows = [json.loads(x) for x in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert all(r.get("train/loss", 1) is not None for r in rows)


@pytest.mark.parametrize("name", ["small", "large", "colab", "with_audio"])
def test_sizes_are_experiments(name, root, tmp_path, monkeypatch):
    own.write(tmp_path / "data" / "own", "stems", own.records(count=100))
    monkeypatch.chdir(tmp_path)
    experiment = config.load(f"{root / 'configs' / 'own_data.py'}:{name}")
    assert list(experiment.modalities) == ["image", "text", "audio"]
    assert experiment.total_steps == 300
    experiment.check_mesh(1)


@pytest.mark.ci
def test_colab_fits_a_t4(root, tmp_path, monkeypatch):
    own.write(tmp_path / "data" / "own", "stems", own.records(count=600))
    monkeypatch.chdir(tmp_path)
    made = config.load(f"{root / 'configs' / 'own_data.py'}:colab")
    assert "audio" in made.modalities
    assert made.sizes.records > 512
    assert (made.tasks["contrast"].batch_size, made.tasks["masked"].batch_size) == (256, 128)
    usual = config.load(str(root / "configs" / "own_data.py"))
    assert usual.tasks["contrast"].batch_size == 128  # twice as many rows as there
    assert mmjax.plan(made, "t4").fits


def test_few_held_out_records_evaluate_nothing(root, tmp_path):
    module = config.load_module(root / "configs" / "own_data.py")
    own.write(tmp_path / "data", "stems", own.records(count=20))
    made = module.get_config(data=str(tmp_path / "data"))
    assert made.sizes.held_out < module.FEW
    assert made.evaluators == {}
