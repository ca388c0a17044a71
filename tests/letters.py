"""A small generative world: letters, pictures in patches, and the same pictures in ids.

`get_config` is a config function, so that commands can be tried on runs of it.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import jax
import numpy as np

from mmjax.data.layouts import Masked, Policy, Prefix
from mmjax.data.source import Source
from mmjax.data.task import Task
from mmjax.experiment import Experiment
from mmjax.modalities.audio import Audio
from mmjax.modalities.image import Image
from mmjax.modalities.modality import Modality
from mmjax.models import MoE, Transformer
from mmjax.objectives import MaskedTokens, NextToken
from mmjax.optim import AdamW
from mmjax.run.checkpoint import Checkpointing
from mmjax.typing import Piece, TokenSpec

WORDS = ("cab", "bead", "decade", "fade", "a", "babe", "deaf", "face")
END, SENTINELS = 0, 6  # ids: end, sentinels 1.., letters behind them


@dataclasses.dataclass(frozen=True, kw_only=True)
class Letters(Modality):
    """A letter a token."""

    max_tokens: int = 7

    def spec(self, name):
        return TokenSpec(
            name=name, kind="sequence", max_tokens=self.max_tokens, vocab_size=33, text=True,
            end_id=END, first_sentinel=1, num_sentinels=SENTINELS,
        )  # fmt: skip

    def encode(self, value):
        if value is None:
            return None
        letters = [ord(c) - ord("a") + 1 + SENTINELS for c in value]
        ids = [*letters[: self.max_tokens - 1], END]
        position = np.repeat(np.arange(len(ids), dtype=np.float32)[:, None], 3, axis=1)
        return Piece(position, ids_L=np.int32(ids), num_cut=len(value) + 1 - len(ids))

    def decode(self, piece):
        return "".join(chr(i - 1 - SENTINELS + ord("a")) for i in piece.ids_L if i > SENTINELS)

    def read(self, item):
        return item

    def write(self, value: str, stem: str | Path) -> Path:
        path = Path(f"{stem}.txt")
        path.write_text(value)
        return path


@dataclasses.dataclass(frozen=True, kw_only=True)
class Levels(Modality):
    """Brightness of each patch of 4 x 4 pixels, in 16 levels."""

    def spec(self, name):
        return TokenSpec(name=name, kind="grid", max_tokens=8, vocab_size=16, grid=(1, 2, 4))

    def encode(self, value):
        if value is None:
            return None
        mean = np.asarray(value, np.float32).reshape(2, 4, 4, 4).mean((1, 3)) / 255
        row, column = np.divmod(np.arange(8, dtype=np.float32), 4)
        position = np.stack([0 * row, row, column], axis=1).astype(np.float32)
        return Piece(position, ids_L=np.minimum(mean.reshape(-1) * 16, 15).astype(np.int32))

    def decode(self, piece):
        return np.kron(piece.ids_L.reshape(2, 4) / 15, np.ones((4, 4))).astype(np.float32)

    def read(self, item):
        return Image(size=(8, 16), patch=4, channels=1).read(item)

    def write(self, value, stem: str | Path) -> Path:
        return Image(size=(8, 16), patch=4, channels=1).write(value, stem)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Spelling(Source):
    """Each word has a picture, stripes by letter, and a hum."""

    def splits(self):
        return ("train", "val")

    def keys(self):
        return ("text", "image", "audio")

    def open(self, split):
        return [self.example(w) for w in WORDS] * (8 if split == "train" else 1)

    @staticmethod
    def example(word: str) -> dict[str, Any]:
        image = np.zeros((8, 16), np.uint8)
        for i in range(8):
            level = 40 * (ord(word[i % len(word)]) - ord("a"))
            image[4 * (i // 4) :, 4 * (i % 4) :][:4, :4] = level
        seconds = np.arange(1600) / 16000
        audio = np.sin(seconds * 2000 * len(word)).astype(np.float32)
        return {"text": word, "image": image, "audio": audio, "identity": WORDS.index(word)}

    def fingerprint(self):
        return "words"


MODALITIES = {
    "text": Letters(),
    "image": Image(size=(8, 16), patch=4, channels=1),
    "levels": Levels(field="image"),
    "audio": Audio(seconds=0.1, num_mels=8),
    "smell": Levels(),
}
FROM_ONE = Policy(keep="all", one_input=True)


def get_config(**fields) -> Experiment:
    """An encoder-decoder with experts that goes from any to text and levels."""
    task = Task(
        source=Spelling(),
        inputs=("text", "image", "levels", "audio"),
        targets=("text", "levels"),
        layout=Masked(input_tokens=24, target_tokens=16, policies=(FROM_ONE,)),
        objective=MaskedTokens(),
        batch_size=32,
        group_rows=4,
    )
    tiny = {
        "name": "letters",
        "modalities": MODALITIES,
        "tasks": {"masked": task},
        "model": Transformer(
            width=32, num_heads=4, encoder_layers=1, decoder_layers=2, dtype="float32",
            moe=MoE(num_experts=4, width=32, block_rows=8),
        ),
        "optimizer": AdamW(learning_rate=1e-2),
        "checkpoint": Checkpointing(every=60),
        "total_steps": 60,
    }  # fmt: skip
    return Experiment(**{**tiny, **fields})


def decoder(**fields) -> Experiment:
    """A decoder that writes what it is shown."""
    task = Task(
        source=Spelling(), inputs=("image", "audio"), targets=("text",),
        layout=Prefix(prefix_fraction=(0.0, 0.0)), objective=NextToken(),
        batch_size=32, group_rows=4,
    )  # fmt: skip
    model = Transformer(
        shape="decoder", width=32, num_heads=4, decoder_layers=2, dtype="float32", moe=None
    )
    return get_config(tasks={"write": task}, model=model, **fields)


def fresh(experiment: Experiment, devices=None):
    """A view of a model that has learned nothing, with weights large enough to differ."""
    from mmjax.run import program
    from mmjax.run.view import View

    built = program.build(experiment, devices or jax.devices()[:1])
    state = built.init_state()
    params = jax.jit(
        lambda p: jax.tree.map(lambda x: x * 3 if x.ndim > 2 else x, p),
        out_shardings=built.shardings.params,
    )(state.params)
    return View(
        program=built, params=params, model_state=state.model_state, extra={}, step=0, split="val"
    )


def pieces(view, names, count: int = len(WORDS)) -> list[dict[str, Piece]]:
    """Encoded examples with some of their modalities."""
    modalities = view.program.experiment.modalities
    return [
        {n: modalities[n].encode(view.value(n, e)) for n in names}
        for e in view.examples("val", count)
    ]
