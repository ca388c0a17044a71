"""4M: masked any-to-any modelling of seven modalities, with the published shapes.

paper: Mizrahi et al. 2023, 4M: Massively Multimodal Masked Modeling (arXiv 2312.06647).
kept: widths, heads, layers and SwiGLU widths of B, L and XL; LayerNorm, sin-cos positions, no
  biases; pixels as input only; vocabularies of the codes; Dirichlet budgets, half of them from
  pixels to all, half all to all; AdamW, its betas, decay and peak for the batch, 10 B tokens of
  warm-up, 500 B in all.
differs: 256 tokens shown and 64 predicted (4M-7: 128 and 128) in a batch of 1,024 (8,192); one
  table of embeddings for both lanes; SentencePiece for WordPiece, which boxes do not share, and
  boxes without classes; memory is projected by one matrix.
command: mmjax train configs/anyany/fourm.py:tiny --workdir runs/fourm_tiny
result: tiny, 60 steps: validation loss 1.19, caption tokens right 0.74
status: shape-only

`base`, `large` and `xlarge` read tar shards whose codes were computed beforehand, as 4M's were:
`000.jpg`, `000.txt`, `000.det.json` and one array of ids a code, `000.tok_rgb.npy`. Set DATA.
`mmjax plan configs/anyany/fourm.py:base --topology v5e-16` says what they take.
"""

import dataclasses
from typing import Literal

import numpy as np

from mmjax.config import ranges
from mmjax.data.layouts import Masked, Policy
from mmjax.data.source import Source
from mmjax.data.task import Task
from mmjax.data.webdataset import WebDataset
from mmjax.evaluate import Losses
from mmjax.experiment import Experiment, Logging
from mmjax.modalities.image import Image
from mmjax.modalities.modality import Modality
from mmjax.modalities.structured import Boxes
from mmjax.modalities.text import Text
from mmjax.models.plan import fourm
from mmjax.objectives import MaskedTokens
from mmjax.optim import AdamW
from mmjax.parallel import MeshConfig
from mmjax.run.checkpoint import Checkpointing
from mmjax.tokenizers.sentencepiece import SentencePiece
from mmjax.typing import Piece, TokenSpec, positions

DATA = "data/cc12m/{00000..01242}.tar"
FILES = {"rgb": "jpg;jpeg;png;webp", "caption": "txt", "det": "det.json"}
CODES = {  # ids of each
    "tok_rgb": 16_384,
    "tok_depth": 8_192,
    "tok_normal": 8_192,
    "tok_semseg": 4_096,
    "tok_clip": 8_192,
}
INPUT_TOKENS, TARGET_TOKENS = 256, 64
POLICIES = (  # half from pixels to all, half all to all
    Policy(input_alpha={"rgb": 1000.0}, target_alpha=0.5),
    Policy(input_alpha=0.5, target_alpha=0.5),
)
COLOURS = {"red": (220, 30, 30), "green": (30, 200, 60), "blue": (40, 60, 230), "white": (250,) * 3}
TINY_CODES = {"tok_rgb": 27, "tok_depth": 8, "tok_semseg": 1 + len(COLOURS)}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Ids(Modality):
    """A grid of ids that were computed beforehand, as an array of whole numbers."""

    vocab_size: ranges.Count
    grid: tuple[ranges.Count, ranges.Count] = (14, 14)

    def __post_init__(self):
        ranges.check(self)

    def spec(self, name: str) -> TokenSpec:
        rows, columns = self.grid
        return TokenSpec(
            name=name, kind="grid", max_tokens=rows * columns, vocab_size=self.vocab_size,
            grid=(1, rows, columns),
        )  # fmt: skip

    def encode(self, value):
        if value is None:
            return None
        ids = np.asarray(value)
        wrong = ids.size != self.grid[0] * self.grid[1] or ids.dtype.kind not in "iu"
        if wrong or ids.min() < 0 or ids.max() >= self.vocab_size:
            raise ValueError(
                f"Ids: an array {ids.shape} of {ids.dtype} is not {self.grid} whole numbers in"
                f" 0..{self.vocab_size - 1}; compute it with the tokenizer of this stream."
            )
        return Piece(positions((1, *self.grid)), ids_L=ids.reshape(-1).astype(np.int32))

    def decode(self, piece):
        return np.asarray(piece.ids_L).reshape(self.grid)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Scenes(Source):
    """A coloured rectangle on another colour, and what the tokenizers would make of it; for tiny().

    Its codes are those of cells of 8 x 8 pixels: the mean colour in thirds, depth, class.
    """

    size: ranges.Count = 512

    def splits(self):
        return ("train", "val")

    def keys(self):
        return (*FILES, *TINY_CODES)

    def open(self, split):
        return _Scenes(self.size, {"train": 0, "val": 1}[split])

    def fingerprint(self):
        return f"scenes {self.size}"


class _Scenes:
    def __init__(self, size: int, split: int):
        self.size, self.split = size, split

    def __len__(self):
        return self.size

    def __getitem__(self, index: int):
        rng = np.random.default_rng((self.split, index))
        ground, colour = rng.choice(len(COLOURS), 2, replace=False)
        (top, bottom), (left, right) = np.sort(rng.choice(np.arange(0, 33, 4), (2, 2)), axis=1)
        bottom, right = max(bottom, top + 4), max(right, left + 4)
        inside = np.zeros((36, 36), bool)
        inside[top:bottom, left:right] = True
        inside = inside[:32, :32]
        names, values = list(COLOURS), np.array(list(COLOURS.values()), np.uint8)
        image = np.where(inside[:, :, None], values[colour], values[ground])
        cells = image.reshape(4, 8, 4, 8, 3).mean((1, 3))
        share = inside.reshape(4, 8, 4, 8).mean((1, 3))
        box = np.clip([left / 32, top / 32, right / 32, bottom / 32], 0, 1)
        return {
            "rgb": image,
            "caption": f"a {names[colour]} box on {names[ground]}",
            "det": [box.tolist()] if inside.any() else [],
            "tok_rgb": (cells // 86).astype(int) @ (1, 3, 9),
            "tok_depth": np.minimum(share * 8, 7).astype(int),
            "tok_semseg": np.where(share > 0.5, 1 + colour, 0),
        }


def base() -> Experiment:
    """4M-B: 12 + 12 layers of width 768."""
    return _full("base", batch_size=1024, rate=1e-4, mesh=MeshConfig())


def large() -> Experiment:
    """4M-L: 24 + 24 layers of width 1,024."""
    return _full("large", batch_size=2048, rate=1e-4, mesh=MeshConfig(data=1, fsdp=-1))


def xlarge() -> Experiment:
    """4M-XL: 24 + 24 layers of width 2,048; the only one whose gradient was clipped."""
    return _full("xlarge", batch_size=2048, rate=2e-5, mesh=MeshConfig(data=1, fsdp=-1), clip=3.0)


def get_config() -> Experiment:
    """The published size that most people begin with."""
    return base()


def tiny() -> Experiment:
    """Seconds on a laptop: drawn scenes, six streams, two layers."""
    modalities = {
        "rgb": Image(size=(32, 32), patch=8),
        "caption": Text(tokenizer=SentencePiece(vocab_size=300, num_sentinels=8), max_tokens=16),
        "det": Boxes(max_boxes=1, bins=33),
        **{name: Ids(vocab_size=size, grid=(4, 4)) for name, size in TINY_CODES.items()},
    }
    model = dataclasses.replace(
        fourm("tiny"), width=64, num_heads=2, mlp_width=0, encoder_layers=1, decoder_layers=1
    )
    return Experiment(
        name="fourm_tiny",
        modalities=modalities,
        model=model,
        tasks={
            "masked": _masked(
                Scenes(),
                modalities,
                32,
                Masked(input_tokens=32, target_tokens=16, policies=POLICIES),
            )
        },
        optimizer=AdamW(learning_rate=2e-3),
        evaluators={"losses": Losses(tasks=("masked",))},
        checkpoint=Checkpointing(every=0),
        logging=Logging(log_every=10),
        total_steps=60,
    )


def _full(
    size: Literal["base", "large", "xlarge"],
    *,
    batch_size: int,
    rate: float,
    mesh: MeshConfig,
    clip: float = 0.0,
) -> Experiment:
    """A published size; `rate` is the learning rate of 256 rows."""
    modalities = {
        "rgb": Image(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225), resize="crop"),
        "caption": Text(tokenizer=SentencePiece(vocab_size=30_000, num_sentinels=200)),
        "det": Boxes(max_boxes=50, num_sentinels=200),
        **{name: Ids(vocab_size=count) for name, count in CODES.items()},
    }
    source = WebDataset(path=DATA, fields=FILES | {name: f"{name}.npy" for name in CODES})
    layout = Masked(input_tokens=INPUT_TOKENS, target_tokens=TARGET_TOKENS, policies=POLICIES)
    tokens_of_a_step = batch_size * (INPUT_TOKENS + TARGET_TOKENS)
    return Experiment(
        name=f"fourm_{size}",
        modalities=modalities,
        model=fourm(size),
        tasks={"masked": _masked(source, modalities, batch_size, layout)},
        optimizer=AdamW(
            learning_rate=rate * batch_size / 256,
            warmup_steps=round(10e9 / tokens_of_a_step),
            grad_clip_norm=clip,
        ),
        mesh=mesh,
        evaluators={"losses": Losses(tasks=("masked",))},
        checkpoint=Checkpointing(every=5000),
        logging=Logging(log_every=100),
        total_steps=round(500e9 / tokens_of_a_step),
    )


def _masked(source: Source, modalities: dict, batch_size: int, layout: Masked) -> Task:
    """All streams to all but the pixels."""
    return Task(
        source=source,
        inputs=tuple(modalities),
        targets=tuple(name for name in modalities if name != "rgb"),
        layout=layout,
        objective=MaskedTokens(),
        batch_size=batch_size,
        group_rows=2 if batch_size < 64 else 4,
    )
