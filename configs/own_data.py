"""Your own pictures with texts, and sounds where there are any: one model over all of them.

paper: Radford et al. 2021 (CLIP) for the contrast, Bachmann et al. 2024 (4M-21) for masking,
  Akbari et al. 2023 (IMP) for taking the tasks in turn.
kept: one encoder-decoder over all modalities; one task, one objective, one shape a step.
differs: pictures and sounds are read as patches, without learned codes; text is what is generated;
  all pairs of kinds are contrasted in one step.
command: mmjax train configs/own_data.py --workdir runs/own
status: simplified

Copy this file and set DATA: a folder of tar or Parquet shards or a pattern of them, a table whose
columns name files, a folder with 1.jpg beside 1.txt or with a folder a class (docs/data.md).
Which kinds of data there are, their sizes, the batch and the steps are measured at the first start;
`mmjax data check configs/own_data.py` reads all records and says what the model will get.
"""

import dataclasses

from mmjax.data import found, sizes
from mmjax.data.files import Files
from mmjax.data.layouts import Aligned, Masked
from mmjax.data.pictures import Pictures
from mmjax.data.sounds import Sounds
from mmjax.data.task import Task
from mmjax.data.texts import Texts
from mmjax.evaluate import Losses, Retrieval
from mmjax.experiment import DataConfig, Evaluator, Experiment
from mmjax.modalities.audio import Audio
from mmjax.modalities.image import Image
from mmjax.modalities.label import Label
from mmjax.modalities.modality import Modality
from mmjax.modalities.text import Text
from mmjax.models import MoE, Transformer
from mmjax.objectives import InfoNCE, MaskedTokens
from mmjax.tokenizers.sentencepiece import SentencePiece

DATA = "data/own"
FEW = 8  # held-out records below which nothing is evaluated
# Of long runs, in training alone. A flip, hue and grey would contradict captions.
VARIED = {"image": Pictures(area=(0.6, 1.0)), "text": Texts(drop=0.1), "audio": Sounds()}
LONG = 40  # visits of a record from which on; after 6 it had halved the ranks of what was held out


def get_config(
    data: str = DATA,
    size: int | None = None,
    source: Files | None = None,
    batch_size: int = 64,
    most_steps: int = 10_000,
) -> Experiment:
    """All kinds of data that there are; pictures of `size` x `size` pixels, None = by the data.

    A batch has `batch_size` rows, or fewer where there are few records.
    """
    source = source or found.source_of(data)
    fit = sizes.of_source(source)
    modalities = modalities_of(fit, size)
    tasks = tasks_of(source, modalities, rows_of(fit, batch_size))
    steps = min(fit.total_steps, most_steps)
    weights = sum(task.weight for task in tasks.values())
    rows = sum(task.weight * task.batch_size for task in tasks.values()) / weights
    if steps * rows >= LONG * fit.records:
        tasks = varied(tasks)
    width = 384 if (size or 0) > 64 else 256
    return Experiment(
        name="own_data",
        modalities=modalities,
        model=Transformer(
            width=width,
            num_heads=width // 64,
            encoder_layers=8,
            decoder_layers=4,
            moe=MoE(),
        ),
        tasks=tasks,
        evaluators=evaluators_of(fit, tasks, steps),
        data=DataConfig(eval_split=found.eval_split(source)),
        sizes=fit,
        total_steps=steps,
    )


def rows_of(fit: sizes.Sizes, batch_size: int) -> int:
    """So many rows, or fewer where there are few records; the proposal itself stops at 64."""
    rows = min(batch_size, fit.batch_size)
    while 2 * rows <= min(batch_size, fit.records / 4):
        rows *= 2
    return rows


def modalities_of(fit: sizes.Sizes, size: int | None = None) -> dict[str, Modality]:
    """The kinds of data that meet others in a record, in the sizes that fit them."""
    image = Image(size=fit.size, patch=fit.patch, resize=fit.resize)
    if size:
        image = Image(size=(size, size), patch=16 if size > 64 else 8, resize="crop")
    text = Text(tokenizer=SentencePiece(vocab_size=fit.vocab_size), max_tokens=fit.max_tokens)
    every = {"image": image, "text": text, "audio": Audio(seconds=fit.seconds)}
    every |= {"label": Label(names=fit.classes)} if fit.classes else {}
    return {name: modality for name, modality in every.items() if name in fit.modalities}


def varied(tasks: dict[str, Task]) -> dict[str, Task]:
    """With augmentation of what is given; texts that are predicted stay as they are."""
    given = {
        n: [i for i in t.inputs if i in VARIED and i not in t.targets] for n, t in tasks.items()
    }
    return {
        name: dataclasses.replace(task, augment={i: VARIED[i] for i in given[name]})
        for name, task in tasks.items()
    }


def tasks_of(source: Files, modalities: dict[str, Modality], batch_size: int) -> dict[str, Task]:
    """One contrast of all kinds that a record has, each encoded once and compared with each; and
    texts or classes predicted from what surrounds them."""
    room = {name: modality.spec(name).max_tokens for name, modality in modalities.items()}
    same = "text" if "text" in modalities else ""  # captions that repeat are positives
    tasks = {
        "contrast": Task(
            source=source,
            inputs=tuple(modalities),
            layout=Aligned(),
            objective=InfoNCE(),
            batch_size=2 * batch_size,
            group_rows=batch_size // 4,
            weight=2.0,
            positives_by=same,
        )
    }
    targets = tuple(name for name in ("text", "label") if name in modalities)
    if targets:
        budget = min(128, sum(room.values())), min(48, sum(room[name] + 1 for name in targets))
        tasks["masked"] = Task(
            source=source,
            inputs=tuple(modalities),
            targets=targets,
            layout=Masked(input_tokens=budget[0], target_tokens=budget[1]),
            objective=MaskedTokens(),
            batch_size=batch_size,
            group_rows=batch_size // 8,
        )
    return tasks


def evaluators_of(fit: sizes.Sizes, tasks: dict[str, Task], steps: int) -> dict[str, Evaluator]:
    """Losses and retrieval on what is held out, five times in a run."""
    if fit.held_out < FEW:
        return {}
    every, kinds = max(1, steps // 5), tasks["contrast"].inputs
    return {
        "losses": Losses(tasks=tuple(tasks), every=every),
        "retrieval": Retrieval(modalities=kinds, num_galleries=10, every=every),
    }


def small() -> Experiment:
    """A first look: a model that two cores train in minutes."""
    full = get_config(batch_size=32, most_steps=300)
    model = dataclasses.replace(
        full.model,
        width=128,
        num_heads=4,
        encoder_layers=4,
        decoder_layers=2,
        moe=MoE(num_experts=4),
    )
    return dataclasses.replace(full, model=model)


def large() -> Experiment:
    """Pictures of 224 x 224 pixels."""
    return get_config(size=224)


def colab() -> Experiment:
    """For one T4 of Colab (15 GB): the batch that `mmjax plan` says fits, held to by a test."""
    return get_config(batch_size=128)


def with_audio() -> Experiment:
    """As `get_config`, which takes sounds where there are any; the name is of before."""
    return get_config()
