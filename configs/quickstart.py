"""One model on real handwriting, words and speech: the demo of `make demo`.

paper: Mizrahi et al. 2023 (4M: masked any-to-any modelling) and Akbari et al. 2023 (IMP:
  alternating one task, one objective, one shape a step); Radford et al. 2021 for the contrast.
kept: fixed token budgets, Dirichlet masking, one encoder-decoder, experts in a shared trunk.
differs: sizes; images and sound are continuous pieces; router balanced across steps.
command: mmjax train configs/quickstart.py --workdir runs/demo
status: simplified
"""

from mmjax.data.layouts import Aligned, Masked
from mmjax.data.task import Task
from mmjax.data.toyworld import Numbers
from mmjax.evaluate import Losses, Retrieval, ZeroShot
from mmjax.experiment import Experiment
from mmjax.modalities.audio import Audio
from mmjax.modalities.image import Image
from mmjax.modalities.text import Text
from mmjax.models import MoE, Transformer
from mmjax.objectives import InfoNCE, MaskedTokens
from mmjax.tokenizers.sentencepiece import SentencePiece


def get_config() -> Experiment:
    """The demo: about eight minutes on two cores."""
    source = Numbers()
    everything = ("text", "image", "audio")

    def contrast(a: str, b: str) -> Task:
        return Task(
            source=source, inputs=(a, b), layout=Aligned(), objective=InfoNCE(),
            batch_size=128, group_rows=16,
        )  # fmt: skip

    return Experiment(
        name="quickstart",
        modalities={
            "text": Text(tokenizer=SentencePiece(vocab_size=512, num_sentinels=16), max_tokens=16),
            "image": Image(size=(8, 16), patch=4, channels=1),
            "audio": Audio(seconds=0.88),
        },
        model=Transformer(
            width=128, num_heads=4, encoder_layers=4, decoder_layers=2, moe=MoE()
        ),
        tasks={
            "masked": Task(
                source=source, inputs=everything, targets=everything,
                layout=Masked(input_tokens=36, target_tokens=24),
                objective=MaskedTokens(), batch_size=64, group_rows=8,
            ),
            "image_text": contrast("image", "text"),
            "audio_text": contrast("audio", "text"),
            "audio_image": contrast("audio", "image"),
            "text": Task(
                source=source, inputs=("text",), targets=("text",),
                layout=Masked(input_tokens=16, target_tokens=16),
                objective=MaskedTokens(), batch_size=64, group_rows=8, weight=0.25,
            ),
        },
        evaluators={
            "losses": Losses(),
            "retrieval": Retrieval(
                modalities=everything, splits={"": "{split}", "new_voice": "{split}_new_voice"}
            ),
            "zero_shot": ZeroShot(modalities=("image", "audio")),
        },
        total_steps=1000,
    )  # fmt: skip


def short() -> Experiment:
    """A few steps of the demo, for a first look and for CI."""
    import dataclasses

    return dataclasses.replace(get_config(), total_steps=20)
