"""A config of pictures, their codes and texts in tar files: what mmjax tokenize reads here.

Run by paths in the environment, as commands do: RAW (folder of tars), CODES (a tokenizer), and
TOKENS (a token set to train on in place of the tars).
"""

from __future__ import annotations

import dataclasses
import io
import os
import tarfile
from pathlib import Path

import numpy as np

from mmjax.data.layouts import Aligned, Masked
from mmjax.data.pictures import Pictures
from mmjax.data.task import Task
from mmjax.data.token_set import TokenSet
from mmjax.data.webdataset import WebDataset
from mmjax.experiment import Experiment
from mmjax.modalities.codes import Codes
from mmjax.modalities.image import Image
from mmjax.modalities.text import Text
from mmjax.models import Transformer
from mmjax.objectives import InfoNCE, MaskedTokens
from mmjax.tokenizers.sentencepiece import SentencePiece

BASE = Image(size=(8, 16), patch=4, channels=1)
WORDS = ("one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")


def write_tars(folder: Path, shards: int = 3, each: int = 20, bad: tuple[int, ...] = ()) -> Path:
    """`shards` tar files; a record number in `bad` has a picture that cannot be read."""
    import PIL.Image

    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    for shard in range(shards):
        with tarfile.open(folder / f"{shard:05d}.tar", "w") as tar:
            for i in range(shard * each, (shard + 1) * each):
                content = io.BytesIO()
                pixels = rng.integers(0, 256, (8, 16), np.uint8)
                PIL.Image.fromarray(pixels).save(content, format="PNG")
                text = f"{WORDS[i % 10]} {WORDS[i // 10 % 10]} {i}"
                png = b"no picture" if i in bad else content.getvalue()
                for suffix, data in (("png", png), ("txt", text.encode())):
                    member = tarfile.TarInfo(f"{i:06d}.{suffix}")
                    member.size = len(data)
                    tar.addfile(member, io.BytesIO(data))
    return folder


def get_config(raw: str = "", codes: str = "", tokens: str = "") -> Experiment:
    """Masked codes and texts, and a contrast of pictures and texts."""
    raw, codes = raw or os.environ["RAW"], codes or os.environ["CODES"]
    tokens = tokens or os.environ.get("TOKENS", "")
    fields = {"image": "png", "text": "txt"}
    source = TokenSet(path=tokens) if tokens else WebDataset(path=f"{raw}/*.tar", fields=fields)
    pieces = SentencePiece(vocab_size=300, num_sentinels=8)
    return Experiment(
        name="toy_set",
        modalities={
            "image": BASE,
            "text": Text(tokenizer=pieces, max_tokens=16),
            "tok_image": Codes(base=BASE, field="image", path=codes),
        },
        model=Transformer(width=16, num_heads=2, encoder_layers=1, decoder_layers=1),
        tasks={
            "masked": Task(
                source=source, inputs=("text", "tok_image"), targets=("text", "tok_image"),
                layout=Masked(input_tokens=12, target_tokens=12), objective=MaskedTokens(),
                batch_size=16, group_rows=2,
            ),
            "contrast": Task(
                source=source, inputs=("image", "text"), layout=Aligned(), objective=InfoNCE(),
                batch_size=16, group_rows=2,
            ),
        },
        total_steps=4,
    )  # fmt: skip


def cropped(raw: str = "", codes: str = "") -> Experiment:
    """Codes of random crops, shared with the pictures that they are of."""
    base = get_config(raw, codes)
    augment = {"image": Pictures(), "tok_image": Pictures(like="image")}
    task = dataclasses.replace(
        base.tasks["masked"], inputs=("image", "text", "tok_image"), augment=augment
    )
    return dataclasses.replace(base, tasks={"masked": task})
