"""One model on real handwriting, words and speech: the demo of `make demo`.

paper: Mizrahi et al. 2023 (4M: masked any-to-any modelling) and Akbari et al. 2023 (IMP:
  alternating one task, one objective, one shape a step); Radford et al. 2021 for the contrast.
kept: fixed token budgets, Dirichlet masking, one encoder-decoder, experts in a shared trunk.
differs: sizes; images and sound are continuous pieces; router balanced across steps.
command: mmjax train configs/quickstart.py --workdir runs/demo
status: simplified
"""

import dataclasses

from mmjax.checkpoint import Checkpointing
from mmjax.data.layouts import Aligned, Masked
from mmjax.data.task import Task
from mmjax.data.toyworld import Numbers
from mmjax.evaluate import Losses, Retrieval, ZeroShot
from mmjax.experiment import Experiment, Logging
from mmjax.modalities.audio import Audio
from mmjax.modalities.image import Image
from mmjax.modalities.text import Text
from mmjax.models import MoE, Transformer
from mmjax.objectives import InfoNCE, MaskedTokens
from mmjax.tokenizers.sentencepiece import SentencePiece

EVERYTHING = ("text", "image", "audio")


def get_config(batch_size: int = 64) -> Experiment:
    """The demo: about eight minutes on two cores."""
    source = Numbers()

    def contrast(a: str, b: str) -> Task:
        return Task(
            source=source,
            inputs=(a, b),
            layout=Aligned(),
            objective=InfoNCE(),
            batch_size=2 * batch_size,
            group_rows=batch_size // 4,
        )

    def masked(names: tuple[str, ...], inputs: int, targets: int) -> Task:
        return Task(
            source=source,
            inputs=names,
            targets=names,
            layout=Masked(input_tokens=inputs, target_tokens=targets),
            objective=MaskedTokens(),
            batch_size=batch_size,
            group_rows=batch_size // 8,
        )

    return Experiment(
        name="quickstart",
        modalities={
            "text": Text(tokenizer=SentencePiece(vocab_size=512, num_sentinels=16), max_tokens=12),
            "image": Image(size=(8, 16), patch=4, channels=1),
            "audio": Audio(seconds=0.88),
        },
        model=Transformer(
            width=128, num_heads=4, encoder_layers=4, decoder_layers=2, moe=MoE(num_experts=4)
        ),
        tasks={
            "masked": masked(EVERYTHING, inputs=28, targets=20),
            "image_text": contrast("image", "text"),
            "audio_text": contrast("audio", "text"),
            "audio_image": contrast("audio", "image"),
            "text": masked(("text",), inputs=12, targets=12),
        },
        evaluators={
            "losses": Losses(tasks=("masked",)),
            "retrieval": Retrieval(
                modalities=EVERYTHING, splits={"": "{split}", "new_voice": "{split}_new_voice"}
            ),
            "zero_shot": ZeroShot(modalities=("image", "audio")),
        },
        total_steps=700,
    )


def short() -> Experiment:
    """Twenty steps of the demo: a first look, and CI."""
    return dataclasses.replace(get_config(), total_steps=20)


def tiny() -> Experiment:
    """The demo shrunk until a step takes milliseconds; for tests."""
    full = get_config(batch_size=16)
    model = dataclasses.replace(
        full.model, width=32, encoder_layers=2, decoder_layers=1, moe=MoE(num_experts=4, width=32)
    )
    return dataclasses.replace(
        full,
        model=model,
        evaluators={"retrieval": Retrieval(modalities=EVERYTHING, num_galleries=1)},
        checkpoint=Checkpointing(every=4),
        logging=Logging(log_every=2),
        total_steps=12,
    )
