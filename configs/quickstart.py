"""One model on real handwriting, words and speech: `make demo`, and `make demo-full`.

paper: Mizrahi et al. 2023 and Bachmann et al. 2024 (4M, 4M-21: masked any-to-any modelling of
  codes) and Akbari et al. 2023 (IMP: alternating one task, one objective, one shape a step);
  Radford et al. 2021 for the contrast.
kept: learned codes, fixed token budgets, Dirichlet masking, one encoder-decoder, experts in a
  shared trunk.
differs: sizes; four streams (`:full`: eight); router balanced across steps.
needs: quickstart_tokenizers
command: mmjax train configs/quickstart.py --workdir runs/demo
status: simplified
"""

import dataclasses

from mmjax.data.layouts import Aligned, Masked, Policy
from mmjax.data.task import Task
from mmjax.demo.judges import NUMBERS_JUDGES, NUMBERS_SPLITS
from mmjax.demo.numbers import Numbers
from mmjax.evaluate import Generation, Losses, Retrieval, ZeroShot
from mmjax.experiment import Experiment, Logging
from mmjax.generate import Decoding
from mmjax.modalities.audio import Audio
from mmjax.modalities.codes import Codes
from mmjax.modalities.image import Image
from mmjax.modalities.structured import Bins, Boxes, Metadata
from mmjax.modalities.text import Text
from mmjax.models import MoE, Transformer
from mmjax.objectives import InfoNCE, MaskedTokens
from mmjax.run.checkpoint import Checkpointing
from mmjax.tokenizers.sentencepiece import SentencePiece

# All-to-all of several widths; from one raw modality to the rest, which is how it is asked; and to
# whole texts, of which the rest would see pieces only.
POLICIES = (
    Policy(weight=0.1, input_alpha=0.1, target_alpha=0.1),
    Policy(weight=0.1, input_alpha=1.0, target_alpha=1.0),
    Policy(weight=0.1, input_alpha=10.0, target_alpha=10.0),
    Policy(
        weight=0.6,
        input_alpha={"text": 1.0, "image": 1.0, "audio": 1.0},
        target_alpha=0.5,
        keep="all",
        one_input=True,
    ),
    Policy(
        weight=0.1,
        input_alpha={"image": 1.0, "audio": 1.0},
        target_alpha={"text": 1.0},
        keep="all",
        one_input=True,
    ),
)
# Where `make demo` and `make demo-full` train configs/quickstart_tokenizers.py.
TOKENIZERS, FULL_TOKENIZERS = "runs/demo_tokenizers", "runs/demo_full_tokenizers"
RAW = ("text", "image", "audio")
IMAGE = Image(size=(8, 16), patch=4, channels=1)
AUDIO = Audio(seconds=0.88)
VOICES = dataclasses.replace(AUDIO, speed_perturbation=0.1)  # of few voices it makes many
# So few pieces that each is met often: numbers that were never seen are put together of them.
TEXT = Text(tokenizer=SentencePiece(vocab_size=380, num_sentinels=16), max_tokens=12)


# Words lie between speech and pictures, so the first two bring all three together.
PAIRS = (("image", "text"), ("audio", "text"), ("audio", "image"))
SCORES = {
    "losses": Losses(tasks=("masked",)),
    "retrieval": Retrieval(
        modalities=RAW, splits={"": "{split}", "new_voice": "{split}_new_voice"}
    ),
    "zero_shot": ZeroShot(modalities=("image", "audio")),
}


def contrast(batch_size: int, pairs: tuple[tuple[str, str], ...] = PAIRS) -> dict[str, Task]:
    """Tasks that bring two modalities together in one space."""
    return {
        f"{a}_{b}": Task(
            source=Numbers(),
            inputs=(a, b),
            layout=Aligned(drop={"audio": 0.25}),
            objective=InfoNCE(),
            batch_size=batch_size,
            group_rows=batch_size // 8,
        )
        for a, b in pairs
    }


def masked(
    batch_size: int,
    inputs: tuple[str, ...],
    targets: tuple[str, ...],
    layout: Masked,
    weight: float = 1.0,
) -> Task:
    """A task that predicts hidden tokens."""
    return Task(
        source=Numbers(),
        inputs=inputs,
        targets=targets,
        layout=layout,
        objective=MaskedTokens(),
        batch_size=batch_size,
        group_rows=batch_size // 8,
        weight=weight,
    )


def get_config(batch_size: int = 64) -> Experiment:
    """The demo of four streams, after `make demo` has trained the tokenizer of images."""
    codes = Codes(base=dataclasses.replace(IMAGE, field="image"), path=f"{TOKENIZERS}/image")
    inputs, targets = (*RAW, "tok_image"), ("text", "tok_image")
    layout = Masked(input_tokens=24, target_tokens=20, policies=POLICIES, drop={"text": 0.3})
    return Experiment(
        name="quickstart",
        modalities={"text": TEXT, "image": IMAGE, "audio": VOICES, "tok_image": codes},
        model=Transformer(
            width=96, num_heads=4, encoder_layers=4, decoder_layers=2, moe=MoE(num_experts=4)
        ),
        tasks={
            "masked": masked(batch_size, inputs, targets, layout, weight=4.0),
            **contrast(2 * batch_size, PAIRS[:2]),
        },
        evaluators={
            **SCORES,
            "generation": Generation(
                judges={name: NUMBERS_JUDGES[name] for name in RAW},
                cells=("text_to_image", "audio_to_image", "image_to_text", "audio_to_text"),
                splits=NUMBERS_SPLITS,
                decodings={"text": Decoding(stream="text", beams=4, rerank=1.0)},
            ),
        },
        total_steps=540,
    )


def full(batch_size: int = 64) -> Experiment:
    """The demo of eight streams, after `make demo-full` has trained the tokenizers."""
    made = {
        "tok_image": Codes(
            base=dataclasses.replace(IMAGE, field="image"), path=f"{FULL_TOKENIZERS}/image"
        ),
        "tok_audio": Codes(
            base=dataclasses.replace(AUDIO, field="audio"), path=f"{FULL_TOKENIZERS}/audio"
        ),
        "tok_mask": Codes(
            base=dataclasses.replace(IMAGE, field="mask"), path=f"{FULL_TOKENIZERS}/mask"
        ),
        "boxes": Boxes(max_boxes=2, bins=129),  # eighths of a pixel
        "metadata": Metadata(
            schema={
                "value": Bins(num=100),
                "parity": Bins(num=2),
                "strokes": Bins(num=32, low=0, high=128),
            }
        ),
    }
    layout = Masked(input_tokens=24, target_tokens=24, policies=POLICIES, drop={"text": 0.3})
    return Experiment(
        name="quickstart",
        modalities={"text": TEXT, "image": IMAGE, "audio": VOICES, **made},
        model=Transformer(
            width=128, num_heads=4, encoder_layers=4, decoder_layers=2, moe=MoE(num_experts=4)
        ),
        tasks={
            "masked": masked(batch_size, (*RAW, *made), ("text", *made), layout, weight=8.0),
            **contrast(2 * batch_size),
            "text": masked(
                batch_size,
                ("text",),
                ("text",),
                Masked(input_tokens=12, target_tokens=12),
                weight=0.25,  # a language model of so few sentences soon knows them by heart
            ),
        },
        evaluators={
            **SCORES,
            "generation": Generation(
                judges=NUMBERS_JUDGES,
                splits=NUMBERS_SPLITS,
                num_examples={"*": 100, "image_to_text": 400, "audio_to_text": 200},
                decodings={"text": Decoding(stream="text", beams=4, rerank=1.0)},
            ),
        },
        total_steps=1100,
    )


def short() -> Experiment:
    """Twenty steps of `get_config`: a first look, and CI."""
    demo = get_config()
    few = {
        "retrieval": dataclasses.replace(demo.evaluators["retrieval"], num_galleries=1),
        "generation": dataclasses.replace(demo.evaluators["generation"], num_examples={"*": 10}),
    }
    return dataclasses.replace(demo, evaluators=demo.evaluators | few, total_steps=20)


def raw(batch_size: int = 64) -> Experiment:
    """The raw modalities alone: sound and pictures are predicted as values, no tokenizer needed."""
    layout = Masked(input_tokens=28, target_tokens=20)
    words = Masked(input_tokens=12, target_tokens=12)
    whole = full(batch_size)
    return dataclasses.replace(
        whole,
        modalities={name: whole.modalities[name] for name in RAW},
        tasks={
            "masked": masked(batch_size, RAW, RAW, layout),
            **contrast(2 * batch_size),
            "text": masked(batch_size, ("text",), ("text",), words),
        },
        evaluators={name: e for name, e in whole.evaluators.items() if name != "generation"},
        total_steps=700,
    )


def tiny() -> Experiment:
    """`raw` shrunk until a step takes milliseconds; for tests."""
    whole = raw(batch_size=16)
    model = dataclasses.replace(
        whole.model, width=32, encoder_layers=2, decoder_layers=1, moe=MoE(num_experts=4, width=32)
    )
    return dataclasses.replace(
        whole,
        model=model,
        evaluators={"retrieval": Retrieval(modalities=RAW, num_galleries=1)},
        checkpoint=Checkpointing(every=4),
        logging=Logging(log_every=2),
        total_steps=12,
    )
