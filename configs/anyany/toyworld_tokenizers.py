"""Tokenizers of ToyWorld: codes of its pictures, depth, normals, sounds and maps of classes.

paper: Mentzer et al. 2023 (finite scalar quantisation); of maps of classes Zhao et al. 2024 (binary
  spherical quantisation).
kept: the quantisers, in convolutional autoencoders.
differs: sizes; that of depth takes 195 s of CPU time, that of classes 378 s.
command: mmjax train-tokenizer configs/anyany/toyworld_tokenizers.py:image
  --workdir runs/toyworld_tokenizers/image
status: simplified
"""

import dataclasses

from mmjax.data.layouts import Aligned
from mmjax.data.task import Task
from mmjax.demo.toyworld import CLASSES, ToyWorld
from mmjax.experiment import Experiment, Logging
from mmjax.modalities.audio import Audio
from mmjax.modalities.dense import Depth, Normals
from mmjax.modalities.image import Image
from mmjax.modalities.modality import Modality
from mmjax.modalities.segmentation import Segmentation
from mmjax.models import FSQ, LFQ, VQ, Autoencoder, FlowDecoder, Quantizer
from mmjax.objectives import FlowMatching, Reconstruction
from mmjax.optim import AdamW
from mmjax.run.checkpoint import Checkpointing

SIZE, GRID = (32, 32), (8, 8)  # pixels, and codes: each for 4 x 4 pixels
IMAGE = Image(size=SIZE, patch=8)
DEPTH = Depth(size=SIZE, patch=8, low=0.5, high=20.0)
NORMALS = Normals(size=SIZE, patch=8)
SOUND = Audio(seconds=0.48, num_mels=32)
SEMSEG = Segmentation(names=CLASSES, size=SIZE, cell=1)


def image() -> Experiment:
    """1,000 codes, 64 of them a picture."""
    model = _model((8, 8, 3), FSQ(levels=(8, 5, 5, 5)))
    return _experiment("image", IMAGE, model, Reconstruction(error="l1"))


def image_vq() -> Experiment:
    """As `image`, with a codebook: 1,024 codes."""
    model = _model((8, 8, 3), VQ(num_codes=1024, width=16))
    return _experiment("image", IMAGE, model, Reconstruction(error="l1"))


def image_flow() -> Experiment:
    """Another decoder for the codes of `image`, by flow matching, from the run of `image` on."""
    first = image()
    task = dataclasses.replace(
        first.tasks["reconstruct"], objective=FlowMatching(), trainable=("flow/**",)
    )
    return dataclasses.replace(
        first,
        name="toyworld_image_flow",
        model=dataclasses.replace(first.model, flow=FlowDecoder(width=128, layers=4)),
        tasks={"flow": task},
        init="runs/toyworld_tokenizers/image",
    )


def depth() -> Experiment:
    """240 codes, 64 of them a map."""
    return _experiment("depth", DEPTH, _model((8, 8, 1), FSQ(levels=(8, 6, 5))))


def normals() -> Experiment:
    """240 codes, 64 of them a map."""
    return _experiment("normals", NORMALS, _model((8, 8, 3), FSQ(levels=(8, 6, 5))))


def sound() -> Experiment:
    """240 codes, 12 of them a sound: each for 40 ms."""
    model = Autoencoder(
        piece=(4, 1, 32), code_grid=(12, 1), width=96, expansion=1, quantizer=FSQ(levels=(8, 6, 5))
    )
    return _experiment("sound", SOUND, model)


def semseg() -> Experiment:
    """1,024 codes, 64 of them a map of 1,024 classes."""
    model = dataclasses.replace(
        _model((1, 1, len(CLASSES) + 1), LFQ(bits=10, spherical=True)), encoder_layers=3
    )
    return _experiment("semseg", SEMSEG, model, Reconstruction(error="cross_entropy"))


def _model(piece: tuple[int, int, int], quantizer: Quantizer) -> Autoencoder:
    return Autoencoder(piece=piece, code_grid=GRID, width=64, expansion=1, quantizer=quantizer)


def _experiment(
    name: str,
    modality: Modality,
    model: Autoencoder,
    objective: Reconstruction = Reconstruction(),
    total_steps: int = 1500,
) -> Experiment:
    return Experiment(
        name=f"toyworld_{name}_tokenizer",
        modalities={name: modality},
        model=model,
        tasks={
            "reconstruct": Task(
                source=ToyWorld(streams=(name,), train_size=5000),  # which memory holds encoded
                inputs=(name,),
                layout=Aligned(),
                objective=objective,
                batch_size=64,
                group_rows=4,
            )
        },
        optimizer=AdamW(learning_rate=4e-3, weight_decay=0.0),
        checkpoint=Checkpointing(every=0),
        logging=Logging(log_every=200),
        total_steps=total_steps,
    )
