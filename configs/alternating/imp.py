"""IMP: one encoder for images, video, sound and text, one task and one objective a step.

paper: Akbari et al. 2023, Alternating Gradient Descent and Mixture-of-Experts for Integrated
  Multimodal Perception (arXiv 2305.06324).
kept: width, heads and layers of B and L, experts in the last six of the layers, QK-norm there;
  256 tokens of an image or a video, 64 of a sound, 16 of a text; DropToken 0.75 of video; noise
  contrast of modality pairs and softmax classification, on means over tokens; six tasks that
  alternate by intervals, their batches of 8,192 and 2,048; AdamW, its betas, peak, warm-up and
  clipping; initial temperatures.
differs: TokenChoice, 16 experts of half the dense width of which a token takes two, where IMP's
  experts have its whole width and take their tokens themselves, one expert a token on average
  (`ExpertChoice(capacity_factor=1.0, allow_unmixed=True)`): a batch of one modality would balance
  experts within it. SwiGLU of the same parameters for GELU; no dropout; sin-cos positions; images
  have a projection of their own; patches of sound span all bands; one temperature for the three
  pairs of a task; class weights are the vectors of the labels. Variants of `video_text` (a quarter
  of the tokens of whole batches, half of those of half batches) for several resolutions. No second
  warm-up, text-only or waveform task.
command: mmjax train configs/alternating/imp.py:tiny --workdir runs/imp_tiny
result: tiny, 60 steps, validation: classes of images and sounds all right, of the four directions
  of videos 0.30 (chance 0.25); contrasts 2.11 to 2.12, where colours alone give log 8 = 2.08. Ten
  steps a task learn colours and tones, and no motion.
status: shape-only

`base`, `large`, `moe_base` and `moe_large` read tar shards: `000.jpg`, `000.txt`, `000.cls` (the
number of the class as text), `000.video.npy` (16 frames of 256 x 256, uint8) and `000.flac`. Set
DATA. `mmjax plan configs/alternating/imp.py:moe_base --topology v5e-64` says what they take.
"""

import dataclasses
from collections.abc import Mapping

import numpy as np

from mmjax.config import ranges
from mmjax.data.layouts import Aligned
from mmjax.data.mixture import Mixture
from mmjax.data.source import Source
from mmjax.data.task import Task, Variant
from mmjax.data.webdataset import WebDataset
from mmjax.evaluate import Losses
from mmjax.experiment import Experiment, Logging
from mmjax.modalities.audio import Audio
from mmjax.modalities.image import Image
from mmjax.modalities.modality import Modality
from mmjax.modalities.text import Text
from mmjax.models import MoE, Transformer
from mmjax.models.embed import VocabularyHead
from mmjax.models.plan import Block, Run
from mmjax.objectives import InfoNCE, Objective
from mmjax.objectives.contrastive import pool, present
from mmjax.objectives.generative import cross_entropy
from mmjax.optim import AdamW
from mmjax.parallel import MeshConfig
from mmjax.run.checkpoint import Checkpointing
from mmjax.tokenizers.sentencepiece import SentencePiece
from mmjax.typing import Loss, Piece, TokenSpec, positions

DATA = {  # shards of each task
    "image_text": "data/image_text/{00000..09999}.tar",
    "image_classes": "data/imagenet21k/{00000..01281}.tar",
    "video_text": "data/video_text/{00000..09999}.tar",
    "video_classes": "data/kinetics/{00000..00599}.tar",
    "video_audio_text": "data/videos_with_sound/{00000..09999}.tar",
    "audio_classes": "data/audioset/{00000..01999}.tar",
}
FILES = {"image": "jpg;jpeg;png;webp", "text": "txt", "video": "video.npy", "audio": "flac;wav;mp3"}
CLASSES = {"image_class": 21_841, "video_class": 600, "audio_class": 527}
INTERVALS = {  # a task takes part in every so manieth round: 40, 40, 3, 8, 3 and 5 % of the steps
    "image_text": 1,
    "image_classes": 1,
    "video_text": 12,
    "video_classes": 5,
    "video_audio_text": 12,
    "audio_classes": 8,
}
DROP = 0.75  # of the tokens of a video
COLOURS = {"red": (220, 30, 30), "green": (30, 200, 60), "blue": (40, 60, 230), "white": (250,) * 3}
MOVES = {"left": (0, -1), "right": (0, 1), "up": (-1, 0), "down": (1, 0)}


# ------------------------------------------------------------------- parts of this recipe


@dataclasses.dataclass(frozen=True, kw_only=True)
class Video(Modality):
    """Boxes of patch pixels through a clip [frames, height, width, 3] of uint8.

    Fields:
      shape: frames, height and width. Of longer clips every n-th frame is taken. patch: of a token.
    """

    shape: tuple[ranges.Count, ranges.Count, ranges.Count] = (16, 256, 256)
    patch: tuple[ranges.Count, ranges.Count, ranges.Count] = (4, 16, 16)

    def __post_init__(self):
        ranges.check(self)
        if any(size % patch for size, patch in zip(self.shape, self.patch, strict=True)):
            raise ValueError(
                f"Video: shape={self.shape} is not divisible by patch={self.patch}; use multiples."
            )

    @property
    def grid(self) -> tuple[int, int, int]:
        """Tokens along time, height and width."""
        t, h, w = (n // p for n, p in zip(self.shape, self.patch, strict=True))
        return t, h, w

    def spec(self, name: str) -> TokenSpec:
        tokens, width = int(np.prod(self.grid)), 3 * int(np.prod(self.patch))
        return TokenSpec(name=name, kind="grid", max_tokens=tokens, width=width, grid=self.grid)

    def encode(self, value):
        if value is None:
            return None
        clip, frames = np.asarray(value), self.shape[0]
        if clip.dtype != np.uint8 or clip.shape[1:] != (*self.shape[1:], 3) or len(clip) < frames:
            raise ValueError(
                f"Video: an array {clip.shape} of {clip.dtype} is no clip of uint8 with shape"
                f" {(*self.shape, 3)}; decode and scale it beforehand."
            )
        clip = clip[:: len(clip) // frames][:frames]
        (t, h, w), (pt, ph, pw) = self.grid, self.patch
        boxes = clip.reshape(t, pt, h, ph, w, pw, 3).transpose(0, 2, 4, 1, 3, 5, 6)
        values = boxes.reshape(t * h * w, -1).astype(np.float32) / 127.5 - 1
        return Piece(positions(self.grid), values_LP=values)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Label(Modality):
    """The number of a class, as a whole number or as text: a sequence of one token."""

    num_classes: ranges.Count

    def __post_init__(self):
        ranges.check(self)

    def spec(self, name: str) -> TokenSpec:
        return TokenSpec(name=name, kind="sequence", max_tokens=1, vocab_size=self.num_classes)

    def encode(self, value):
        if value is None:
            return None
        number = int(value)
        if not 0 <= number < self.num_classes:
            raise ValueError(f"Label: {number} is no class in 0..{self.num_classes - 1}.")
        return Piece(positions(1), ids_L=np.array([number], np.int32))

    def decode(self, piece):
        return int(np.asarray(piece.ids_L)[0])


@dataclasses.dataclass(frozen=True, kw_only=True)
class Classify(Objective):
    """Softmax cross-entropy of the label, from the mean over the tokens of the other view.

    l_i = logsumexp_c w_c . z_i - w_label(i) . z_i,   w_c = vector of id c of the label stream
    """

    label: str

    def check(self, task, specs, lanes):
        if len(task.inputs) != 2 or task.inputs[1] != self.label:
            raise ValueError(f"inputs={task.inputs} must be a modality, then {self.label!r}.")

    def heads(self, inputs, targets):
        return {"vocabulary": VocabularyHead()}

    def embed(self, model, batch, key):
        view = next(name for name in batch.views if name != self.label)
        encoded = model.encode(batch.views[view], key=key)
        return {view: pool(encoded.x_BLD, batch.views[view], 1)}, encoded.record

    def losses(self, model, features, batch, key, extra):
        ((view, pooled_BSD),) = features.items()
        logits = model.head("vocabulary", pooled_BSD, stream=self.label)
        first, _ = model.vocabulary.range(self.label)
        label_BS = (batch.views[self.label].ids_BL - first).clip(0)
        value_BS, hit_BS = cross_entropy(logits.x, logits.table_VD, label_BS, chunk=0)
        present_BS = present(model, batch, (view, self.label)).reshape(value_BS.shape)
        count = present_BS.sum().clip(1.0)
        accuracy = (hit_BS * present_BS).sum() / count
        return {"class": Loss(value_BS, present_BS / count)}, {"accuracy": accuracy}, {}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Moving(Source):
    """A coloured square that moves across a clip, what it is called, and a tone; for tiny()."""

    size: ranges.Count = 512

    def splits(self):
        return ("train", "val")

    def keys(self):
        return ("image", "text", "video", "audio", *CLASSES)

    def open(self, split):
        return _Moving(self.size, {"train": 0, "val": 1}[split])

    def fingerprint(self):
        return f"moving {self.size}"


class _Moving:
    def __init__(self, size: int, split: int):
        self.size, self.split = size, split

    def __len__(self):
        return self.size

    def __getitem__(self, index: int):
        rng = np.random.default_rng((self.split, index))
        colour, move = rng.integers(len(COLOURS)), rng.integers(len(MOVES))
        name, (down, right) = list(COLOURS)[colour], list(MOVES.values())[move]
        clip = np.full((8, 16, 16, 3), 128, np.uint8)
        top, left = rng.integers(0, 16, 2)
        for t, frame in enumerate(clip):
            rows = (top + 2 * down * t + np.arange(6)) % 16
            columns = (left + 2 * right * t + np.arange(6)) % 16
            frame[np.ix_(rows, columns)] = COLOURS[name]
        seconds = np.arange(1600) / 16_000
        tone = np.sin(2 * np.pi * 400 * 2**colour * seconds + rng.uniform(0, 6))
        return {
            "image": clip[0], "video": clip, "text": f"{name} {list(MOVES)[move]}",
            "audio": (tone + rng.normal(0, 0.3, 1600)).astype(np.float32),
            "image_class": colour, "video_class": move, "audio_class": colour,
        }  # fmt: skip


# --------------------------------------------------------------------------- experiments


def base() -> Experiment:
    """IMP-B, dense: 12 layers of width 768. Fits v5e-64 (estimated 9.0 of 15.7 GiB)."""
    return _full("base", _trunk(768, 12, 12), peak=1e-3, warmup=25_000, mesh=MeshConfig())


def large() -> Experiment:
    """IMP-L, dense: 24 layers of width 1,024. Fits v5e-256 (estimated 4.4 of 15.7 GiB)."""
    mesh = MeshConfig(data=1, fsdp=-1)
    return _full("large", _trunk(1024, 16, 24), peak=5e-4, warmup=50_000, mesh=mesh)


def moe_base() -> Experiment:
    """IMP-MoE-B: experts in the last 6 of 12 layers. Fits v5e-64 (estimated 6.1 of 15.7 GiB)."""
    model, mesh = _trunk(768, 12, 12, experts=16), MeshConfig(data=1, fsdp=-1, expert=8)
    return _full("moe_base", model, peak=1e-3, warmup=25_000, mesh=mesh)


def moe_large() -> Experiment:
    """IMP-MoE-L: experts in the last 6 of 24 layers. Fits v5e-256 (estimated 4.4 of 15.7 GiB)."""
    model, mesh = _trunk(1024, 16, 24, experts=16), MeshConfig(data=1, fsdp=-1, expert=8)
    return _full("moe_large", model, peak=5e-4, warmup=50_000, mesh=mesh)


def get_config() -> Experiment:
    """The published model that most of its results are of."""
    return moe_base()


def tiny() -> Experiment:
    """A few minutes on a laptop, nearly all of them for compiling seven programs; half a minute
    when these are cached. Drawn clips, four experts in the second of two layers."""
    modalities = {
        "image": Image(size=(16, 16), patch=4),
        "video": Video(shape=(8, 16, 16), patch=(2, 4, 4)),
        "clip": Video(field="video", shape=(4, 16, 16), patch=(2, 4, 4)),
        "audio": Audio(seconds=0.1, num_mels=16),
        "text": Text(tokenizer=SentencePiece(vocab_size=300, num_sentinels=0), max_tokens=16),
        **{name: Label(num_classes=len(COLOURS)) for name in CLASSES},
    }
    sizes = dict.fromkeys(INTERVALS, 32)
    return Experiment(
        name="imp_tiny",
        modalities=modalities,
        model=_trunk(64, 2, 2, experts=4, layers_with=1),
        tasks=_tasks(dict.fromkeys(INTERVALS, Moving()), sizes, dict.fromkeys(INTERVALS, 1), 0.2),
        mixture=Mixture(schedule="interval"),
        optimizer=AdamW(learning_rate=3e-3),
        evaluators={"losses": Losses()},
        checkpoint=Checkpointing(every=0),
        logging=Logging(log_every=10),
        total_steps=60,
    )


def _trunk(
    width: int, heads: int, layers: int, *, experts: int = 0, layers_with: int = 6
) -> Transformer:
    """An encoder, dense or with experts in its last layers."""
    model = Transformer(
        shape="encoder", width=width, num_heads=heads, encoder_layers=layers, norm="layer",
        qk_norm=bool(experts), moe=None,
    )  # fmt: skip
    if not experts:
        return model
    last = Block(moe=MoE(num_experts=experts))
    runs = (
        Run(pattern=(Block(),), repeats=layers - layers_with),
        Run(pattern=(last,), repeats=layers_with),
    )
    return dataclasses.replace(model, runs=runs)


def _full(
    name: str, model: Transformer, *, peak: float, warmup: int, mesh: MeshConfig
) -> Experiment:
    modalities = {
        "image": Image(size=(256, 256), resize="crop"),
        "video": Video(),
        "clip": Video(field="video", shape=(4, 256, 256)),
        "audio": Audio(
            seconds=8.192, num_mels=128, window=2048, hop=1024, patch_frames=2
        ),  # 64 tokens of 2 frames
        "text": Text(tokenizer=SentencePiece(vocab_size=32_100, num_sentinels=0), max_tokens=16),
        **{name: Label(num_classes=count) for name, count in CLASSES.items()},
    }
    labels = dict.fromkeys(CLASSES, "cls")
    sources = {n: WebDataset(path=path, fields=FILES | labels) for n, path in DATA.items()}
    sizes = {n: 2048 if n in ("video_classes", "audio_classes") else 8192 for n in INTERVALS}
    temperature = 1.0 if model.runs else 0.2
    return Experiment(
        name=f"imp_{name}",
        modalities=modalities,
        model=model,
        tasks=_tasks(sources, sizes, INTERVALS, temperature),
        mixture=Mixture(schedule="interval"),
        optimizer=AdamW(
            learning_rate=peak, warmup_steps=warmup, final_scale=1e-6 / peak, b2=0.999, eps=1e-7,
            weight_decay=1e-4,
        ),
        mesh=mesh,
        evaluators={"losses": Losses()},
        checkpoint=Checkpointing(every=5000),
        logging=Logging(log_every=100),
        total_steps=500_000,
    )  # fmt: skip


def _tasks(
    sources: Mapping[str, Source], sizes: dict[str, int], intervals: dict[str, int], start: float
) -> dict[str, Task]:
    """The six tasks; `start` is the initial temperature."""
    contrast, rest = InfoNCE(temperature=start), Aligned(drop={"video": DROP})
    parts = {  # inputs, objective
        "image_text": (("image", "text"), contrast),
        "image_classes": (("image", "image_class"), Classify(label="image_class")),
        "video_text": (("video", "text"), contrast),
        "video_classes": (("clip", "video_class"), Classify(label="video_class")),
        "video_audio_text": (("video", "audio", "text"), contrast),
        "audio_classes": (("audio", "audio_class"), Classify(label="audio_class")),
    }
    tasks = {
        name: Task(
            source=sources[name], inputs=inputs, layout=rest, objective=objective,
            batch_size=sizes[name], interval=intervals[name],
        )
        for name, (inputs, objective) in parts.items()
    }  # fmt: skip
    half = Variant(
        weight=0.25, layout=Aligned(drop={"video": 0.5}), batch_size=sizes["video_text"] // 2
    )
    variants = {"quarter": Variant(), "half": half}
    return tasks | {"video_text": dataclasses.replace(tasks["video_text"], variants=variants)}
