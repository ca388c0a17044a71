"""Tokenizers of the demo: codes of its images, of its speech and of its stroke masks.

paper: Mentzer et al. 2023 (finite scalar quantisation).
kept: the quantiser, in convolutional autoencoders.
differs: sizes; each trains in half a minute on two cores.
command: mmjax train-tokenizer configs/quickstart_tokenizers.py:image
  --workdir runs/demo_tokenizers/image
status: simplified
"""

from typing import Any

from mmjax.data.layouts import Aligned
from mmjax.data.task import Task
from mmjax.demo.numbers import Numbers
from mmjax.experiment import Experiment, Logging
from mmjax.modalities.audio import Audio
from mmjax.modalities.image import Image
from mmjax.modalities.modality import Modality
from mmjax.models import FSQ, Autoencoder
from mmjax.objectives import Reconstruction
from mmjax.optim import AdamW
from mmjax.run.checkpoint import Checkpointing

SMALL: dict[str, Any] = {"width": 48, "expansion": 1, "encoder_layers": 1, "decoder_layers": 1}


def image() -> Experiment:
    """256 codes, 16 of them an image: each for 4 x 2 pixels."""
    model = Autoencoder(piece=(4, 4, 1), code_grid=(2, 8), quantizer=FSQ(levels=(8, 8, 4)), **SMALL)
    return _experiment("image", Image(size=(8, 16), patch=4, channels=1), model)


def audio() -> Experiment:
    """256 codes, 22 of them a clip: each for 4 frames, or 40 ms."""
    model = Autoencoder(
        piece=(4, 1, 64), code_grid=(22, 1), width=96, expansion=1,
        quantizer=FSQ(levels=(8, 8, 4)),
    )  # fmt: skip
    return _experiment("audio", Audio(seconds=0.88), model, batch_size=32, total_steps=1500)


def mask() -> Experiment:
    """256 codes, 8 of them a mask: each for 4 x 4 pixels."""
    model = Autoencoder(
        piece=(4, 4, 1), code_grid=(2, 4), quantizer=FSQ(levels=(4, 4, 4, 4)), **SMALL
    )
    modality = Image(field="mask", size=(8, 16), patch=4, channels=1)
    return _experiment("mask", modality, model, Reconstruction(error="bce"), total_steps=700)


def _experiment(
    name: str,
    modality: Modality,
    model: Autoencoder,
    objective: Reconstruction = Reconstruction(),
    batch_size: int = 128,
    total_steps: int = 1000,
) -> Experiment:
    return Experiment(
        name=f"{name}_tokenizer",
        modalities={name: modality},
        model=model,
        tasks={
            "reconstruct": Task(
                source=Numbers(train_size=4000),
                inputs=(name,),
                layout=Aligned(),
                objective=objective,
                batch_size=batch_size,
                group_rows=4,
            )
        },
        optimizer=AdamW(learning_rate=4e-3, weight_decay=0.0),
        checkpoint=Checkpointing(every=0),
        logging=Logging(log_every=200),
        total_steps=total_steps,
    )
