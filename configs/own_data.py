"""Your own pictures with texts, and sounds where there are any: one model over all of them.

paper: Radford et al. 2021 (CLIP) for the contrast, Bachmann et al. 2024 (4M-21) for masking,
  Akbari et al. 2023 (IMP) for taking the tasks in turn.
kept: one encoder-decoder over all modalities; one task, one objective, one shape a step.
differs: pictures and sounds are read as patches, without learned codes; text is what is generated.
command: mmjax train configs/own_data.py --workdir runs/own
status: simplified

Copy this file and set DATA: tar shards, a Parquet or ArrayRecord pattern, a folder with
metadata.csv or with 1.jpg beside 1.txt, or a TFDS directory (docs/data.md).
`mmjax data check configs/own_data.py` shows what the model will get.
"""

import dataclasses
from pathlib import Path

from mmjax.data.array_records import ArrayRecords
from mmjax.data.files import Files
from mmjax.data.folder import Folder
from mmjax.data.layouts import Aligned, Masked
from mmjax.data.parquet import Parquet
from mmjax.data.task import Task
from mmjax.data.tfds import TFDS
from mmjax.data.webdataset import WebDataset
from mmjax.evaluate import Losses, Retrieval
from mmjax.experiment import Experiment
from mmjax.modalities.audio import Audio
from mmjax.modalities.image import Image
from mmjax.modalities.text import Text
from mmjax.models import MoE, Transformer
from mmjax.objectives import InfoNCE, MaskedTokens
from mmjax.tokenizers.sentencepiece import SentencePiece

DATA = "data/own"
FILES = {"image": "jpg;jpeg;png;webp", "text": "txt", "audio": "flac;wav;mp3;ogg"}  # by suffix
COLUMNS = {"image": "image;file_name", "text": "text;caption", "audio": "audio"}  # of tables


def source_of(data: str, audio: bool = False) -> Files:
    """The source for a path, by what its name or the folder says that it is."""
    folder = Path(data)
    tables = folder.suffix in (".csv", ".jsonl") or any(
        (folder / name).exists() for name in ("metadata.csv", "metadata.jsonl")
    )
    is_files = data.endswith(".tar") or (folder.is_dir() and not tables)
    names = (FILES if is_files else COLUMNS).items()
    fields = {key: name for key, name in names if audio or key != "audio"}
    if (folder / "dataset_info.json").exists():
        return TFDS(path=data, fields={key: key for key in fields})
    if data.endswith(".tar"):
        return WebDataset(path=data, fields=fields)
    if data.endswith(".parquet"):
        return Parquet(path=data, fields=fields)
    if data.endswith(".array_record"):
        return ArrayRecords(path=data, fields=fields)
    columns = ("file_name", "image", "audio")
    return Folder(path=data, fields=fields, file_columns=columns)


def get_config(
    data: str = DATA,
    size: int = 64,
    audio: bool = False,
    source: Files | None = None,
    batch_size: int = 64,
) -> Experiment:
    """Pictures of `size` x `size` pixels (64 or 224) with their texts, and sounds if asked for."""
    source = source or source_of(data, audio)
    modalities = {
        "image": Image(size=(size, size), patch=16 if size > 64 else 8, resize="crop"),
        "text": Text(tokenizer=SentencePiece(vocab_size=8000), max_tokens=64),
    }
    if audio:
        modalities["audio"] = Audio(seconds=5.0)
    pairs = [("image", "text"), *([("audio", "text"), ("audio", "image")] if audio else [])]
    tasks = {
        f"{a}_{b}": Task(
            source=source,
            inputs=(a, b),
            layout=Aligned(),
            objective=InfoNCE(),
            batch_size=2 * batch_size,
            group_rows=batch_size // 4,
        )
        for a, b in pairs
    }
    tasks["masked"] = Task(
        source=source,
        inputs=tuple(modalities),
        targets=("text",),
        layout=Masked(input_tokens=128, target_tokens=48),
        objective=MaskedTokens(),
        batch_size=batch_size,
        group_rows=batch_size // 8,
        weight=2.0,
    )
    width = 384 if size > 64 else 256
    return Experiment(
        name="own_data",
        modalities=modalities,
        model=Transformer(
            width=width, num_heads=width // 64, encoder_layers=8, decoder_layers=4, moe=MoE()
        ),
        tasks=tasks,
        evaluators={
            "losses": Losses(tasks=("masked",)),
            "retrieval": Retrieval(modalities=tuple(modalities), num_galleries=10),
        },
        total_steps=10_000,
    )


def small() -> Experiment:
    """A first look: a model that two cores train in minutes."""
    full = get_config(batch_size=32)
    model = dataclasses.replace(
        full.model,
        width=128,
        num_heads=4,
        encoder_layers=4,
        decoder_layers=2,
        moe=MoE(num_experts=4),
    )
    return dataclasses.replace(full, model=model, total_steps=300)


def large() -> Experiment:
    """Pictures of 224 x 224 pixels."""
    return get_config(size=224)


def with_audio() -> Experiment:
    """Sounds as well, where a record has one."""
    return get_config(audio=True)
