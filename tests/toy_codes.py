"""An untrained tokenizer of 8 pieces of 16 numbers: all about artefacts without a training run."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import numpy as np
from flax import nnx

from mmjax import config
from mmjax.modalities.image import Image
from mmjax.modalities.modality import Modality
from mmjax.modalities.video import Video
from mmjax.modalities.waveform import Waveform
from mmjax.models import FSQ, LFQ, VQ, Autoencoder, ProductVQ, ResidualVQ, blocks, names
from mmjax.tokenizers.learned import Learned
from mmjax.typing import Batch, Tokens, Values, Vocabulary

BASE = Image(size=(8, 16), patch=4, channels=1)
BASES: dict[str, Modality] = {
    "strided": Waveform(sample_rate=1000, seconds=0.128, patch=16),
    "video": Video(num_frames=4, frames=2, size=(4, 4), patch=2, channels=2),
}
SPEC = BASE.spec("image")
SIZES: dict[str, Any] = {
    "piece": (4, 4, 1), "code_grid": (2, 8), "width": 8, "encoder_layers": 1, "decoder_layers": 1,
}  # fmt: skip
QUANTIZERS = {
    "fsq": FSQ(levels=(4, 3, 3)),
    "vq": VQ(num_codes=20, width=4, dead_threshold=0.5),
    "residual": ResidualVQ(of=VQ(num_codes=10, width=4, cosine=False), num_codebooks=3),
    "product": ProductVQ(of=VQ(num_codes=10, width=3), num_codebooks=2),
    "bsq": LFQ(bits=5, spherical=True),
    "attention": FSQ(levels=(4, 3, 3)),  # and layers of attention
    "strided": ResidualVQ(of=VQ(num_codes=10, width=4, cosine=False), num_codebooks=2),
    "video": FSQ(levels=(4, 3, 3)),
}
FIELDS: dict[str, dict[str, Any]] = {
    "attention": {"num_heads": 2},
    "strided": {"piece": (16, 1, 1), "code_grid": (16, 1), "strides": (2, 2)},
    "video": {"piece": (2, 2, 2, 2), "code_grid": (4, 2, 2)},
}


def model(kind: str = "fsq", **fields) -> Autoencoder:
    """Of width 8, with 20 to 36 codes, 16 times as many of them an image as there are codebooks."""
    return Autoencoder(**{**SIZES, "quantizer": QUANTIZERS[kind], **FIELDS.get(kind, {}), **fields})


def base(kind: str) -> Modality:
    """What is coded; its pieces are 8, of 16 numbers each."""
    return BASES.get(kind, BASE)


@functools.cache
def learned(kind: str = "fsq", seed: int = 0) -> Learned:
    """With fresh weights."""
    return of(base(kind), model(kind), seed)


def of(base: Modality, model: Autoencoder, seed: int = 0) -> Learned:
    """Of the pieces of a modality, with fresh weights."""
    spec = base.spec("image")
    module = model.make(Vocabulary((spec,)), {}, seed)
    _, params, state = nnx.split(module, nnx.Param, blocks.ModelState)
    leaves = names.flatten(nnx.as_pure(params)) | names.flatten(nnx.as_pure(state))
    tensors = {n: np.asarray(x) for n, x in leaves.items() if not n.startswith("codebook/")}
    if "codebook/codes" in leaves:
        tensors["codebook/codes"] = np.asarray(leaves["codebook/codes"])
    return Learned(preprocessing=config.to_json(base), spec=spec, model=model, tensors=tensors)


def write(workdir: Path, kind: str = "fsq", seed: int = 0) -> str:
    """A workdir as `mmjax train-tokenizer` leaves it."""
    learned(kind, seed).write(workdir / "tokenizer")
    return str(workdir)


def batch(rows=16) -> Batch:
    """Random pieces; the last row lacks the stream, the one before it is padding."""
    values = np.random.default_rng(0).normal(size=(rows, 8, 16)).astype(np.float32)
    there = np.ones((rows, 8), np.int32)
    there[-1] = 0
    slot = np.tile(np.arange(8, dtype=np.int32), (rows, 1))
    weight = np.ones((rows, 1), np.float32)
    weight[-2] = 0
    tokens = Tokens(
        ids_BL=np.zeros_like(there), stream_BL=there, segment_BL=there,
        order_BL=np.zeros_like(there), position_BLA=np.zeros((rows, 8, 3), np.float32),
        values={"image": Values(values, slot)},
    )  # fmt: skip
    return Batch(
        views={"image": tokens}, targets={}, present_BSM=np.ones((rows, 1, 1), bool),
        identity_BS=np.zeros((rows, 1), np.int32), sample_BSI=np.zeros((rows, 1, 2), np.uint32),
        weight_BS=weight,
    )  # fmt: skip
