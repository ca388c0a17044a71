"""The general configuration trains on a small set in every format."""

from __future__ import annotations

import dataclasses
import json

import own
import pytest

import mmjax
from mmjax import config
from mmjax.data.folder import Folder
from mmjax.models import MoE
from mmjax.tokenizers.sentencepiece import SentencePiece


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


@pytest.mark.parametrize(
    ("name", "kind"),
    [("a.tar", "WebDataset"), ("a/*.parquet", "Parquet"), ("x.array_record", "ArrayRecords"),
     ("a/table.csv", "Folder"), ("a", "Folder")],
)  # fmt: skip
def test_the_path_says_the_format(name, kind, root):
    module = config.load_module(root / "configs" / "own_data.py")
    source = module.source_of(name, audio=True)
    assert type(source).__name__ == kind
    assert set(source.fields) == {"image", "text", "audio"}


def test_folders_are_told_by_what_is_in_them(root, tmp_path):
    module = config.load_module(root / "configs" / "own_data.py")
    rows = own.records(count=8, size=16)
    for kind, audio in (("stems", True), ("csv", True), ("jsonl", False), ("tfds", True)):
        own.write(tmp_path / kind, kind, rows)
        source = module.source_of(str(tmp_path / kind), audio)
        records = source.open("train")
        keys = {key for i in range(len(records)) for key in records[i]}
        assert keys == {"image", "text", *(["audio"] if audio else [])}, kind
        assert isinstance(source, Folder) == (kind != "tfds")


@pytest.mark.parametrize("size", [64, 224])
def test_both_sizes_are_whole_configs(size, root):
    module = config.load_module(root / "configs" / "own_data.py")
    made = module.get_config(size=size, audio=True)
    assert made.modalities["image"].size == (size, size)
    assert list(made.tasks) == ["image_text", "audio_text", "audio_image", "masked"]


@pytest.mark.slow
@pytest.mark.parametrize("kind", own.FORMATS)
def test_it_trains_on_every_format(kind, root, tmp_path):
    source = own.write(tmp_path / "data", kind, own.records())
    result = mmjax.train(shrunk(root, source=source, audio=True), tmp_path / "run")
    assert result.step == 4
    assert 0 <= result.metrics["retrieval/image_to_text_R@1"] <= 1
    rows = [json.loads(x) for x in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert all(r.get("train/loss", 1) is not None for r in rows)


@pytest.mark.parametrize("name", ["small", "large", "with_audio"])
def test_sizes_are_experiments(name, root, tmp_path, monkeypatch):
    (tmp_path / "data" / "own").mkdir(parents=True)
    (tmp_path / "data" / "own" / "metadata.csv").write_text("file_name,text\na.png,red\n")
    monkeypatch.chdir(tmp_path)
    experiment = config.load(f"{root / 'configs' / 'own_data.py'}:{name}")
    assert ("audio" in experiment.modalities) == (name == "with_audio")
    experiment.check_mesh(1)
