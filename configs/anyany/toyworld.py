"""ToyWorld: one model from any of fifteen aligned modalities to any of thirteen.

paper: Bachmann et al. 2024, 4M-21: An Any-to-Any Vision Model for Tens of Tasks and Modalities
  (arXiv 2406.09406).
kept: one encoder-decoder over all modalities, learned codes of what comes as numbers, masked
  modelling with budgets drawn by Dirichlet, most of them from one modality to the others; grids in
  parallel, sequences left to right.
differs: scenes that are drawn on the spot; pictures, depth, normals and sounds are read as numbers
  and written as codes; motion and cameras are inputs alone; experts; a contrast of pictures with
  captions and depth in turns.
needs: anyany/toyworld_tokenizers
command: mmjax train configs/anyany/toyworld.py:small --workdir runs/toyworld
result: `small`, two seeds: 105 and 107 of the 156 cells above the constant answer, picture to
  caption R@1 57 and 50 % of 100; the full size was not run
status: simplified

The matrix in the report has 156 cells, from thirteen modalities to each other, judged by the exact
truth of the scene, beside chance and a constant answer. `tiny` is for tests and has no codes.
"""

import dataclasses

from mmjax.data.layouts import Aligned, Masked, Policy
from mmjax.data.task import Task
from mmjax.demo.toyworld import CLASSES, COLOURS, SHAPES, ToyWorld
from mmjax.demo.toyworld_scene import MATERIALS, SIZES
from mmjax.evaluate import BoxIoU, Generation, Losses, Retrieval, SameMetadata
from mmjax.evaluate import map_judges as judges
from mmjax.experiment import Experiment
from mmjax.modalities.audio import Audio
from mmjax.modalities.camera import Camera
from mmjax.modalities.codes import Codes
from mmjax.modalities.dense import Depth, Normals
from mmjax.modalities.graph import Graph
from mmjax.modalities.image import Image
from mmjax.modalities.imu import Imu
from mmjax.modalities.keypoints import Keypoints
from mmjax.modalities.modality import Modality
from mmjax.modalities.palette import Palette
from mmjax.modalities.segmentation import Instances, Segmentation
from mmjax.modalities.structured import Bins, Boxes, Metadata
from mmjax.modalities.table import BinEdges, Table
from mmjax.modalities.text import Text
from mmjax.models import MoE, Transformer
from mmjax.objectives import InfoNCE, MaskedTokens
from mmjax.optim import Muon
from mmjax.tokenizers.sentencepiece import SentencePiece

SIZE = (32, 32)
TOKENIZERS = "runs/toyworld_tokenizers"  # where those of toyworld_tokenizers.py are trained
MARKS = ("middle", "top", "foot", "left", "right")
METRES = BinEdges(at=tuple(n / 4 for n in range(49)))  # a quarter of a metre each
MODALITIES = {
    "image": Image(size=SIZE, patch=8),
    "depth": Depth(size=SIZE, patch=8, low=0.5, high=20.0),
    "normals": Normals(size=SIZE, patch=8),
    "sound": Audio(seconds=0.48, num_mels=32),
    "imu": Imu(rate=8.0, seconds=1.0, patch=4),
    "text": Text(
        field="caption", tokenizer=SentencePiece(vocab_size=400, num_sentinels=16), max_tokens=40
    ),
    "semseg": Segmentation(names=CLASSES, size=SIZE, cell=4),
    "instances": Instances(size=SIZE, cell=4, max_instances=3),
    "boxes": Boxes(max_boxes=3, bins=33),
    "keypoints": Keypoints(joints=MARKS, max_people=3, bins=33),
    "palette": Palette(max_colours=3, bins=16),
    "camera": Camera(bins=101, max_translation=20.0),
    "table": Table(
        columns={
            "shape": SHAPES,
            "colour": COLOURS,
            "size": SIZES,
            "material": MATERIALS,
            **dict.fromkeys(("radius", "height", "distance", "speed"), METRES),
            "degrees": Bins(num=16, low=0, high=64),
        }
    ),
    "graph": Graph(classes=CLASSES, directed=True, max_nodes=3, max_edges=6),
    "scalars": Metadata(
        field="scalars",
        schema={
            "objects": Bins(num=4),
            "mean_depth": Bins(num=16, low=0, high=16),
            "background": Bins(num=16, low=0, high=1),
            "brightness": Bins(num=16, low=0, high=1),
        },
    ),
}
JUDGES = {
    "caption": judges.WordF1(),
    "semseg": judges.MeanIoU(),
    "instances": judges.Covering(),
    "boxes": BoxIoU(),
    "keypoints": judges.PCK(distance=0.1),
    "palette": judges.PaletteF1(distance=0.15),
    "table": judges.SameCells(),
    "graph": judges.GraphF1(),
    "scalars": SameMetadata(),
}
# Of what comes as numbers: asked for only where there are codes of it.
NUMBERS = {
    "image": judges.Within(),
    "depth": judges.DepthDelta(),
    "normals": judges.NormalsWithin(),
    "sound": judges.Within(tolerance=3.0, field="sound"),
}
# All to all; and from one modality, whole, to the others, which is how it is asked.
POLICIES = (
    Policy(weight=0.3, input_alpha=0.5, target_alpha=0.5),
    Policy(weight=0.7, input_alpha=1.0, target_alpha=0.3, keep="all", one_input=True),
)


def codes() -> dict[str, Codes]:
    """The streams that `mmjax train-tokenizer` has learned codes of."""
    base = {name: dataclasses.replace(MODALITIES[name], field=name) for name in NUMBERS}
    return {
        f"tok_{name}": Codes(base=one, path=f"{TOKENIZERS}/{name}") for name, one in base.items()
    }


def get_config(batch_size: int = 128) -> Experiment:
    """All modalities of 32 x 32 scenes, after their tokenizers have been trained."""
    return of({**MODALITIES, **codes()}, batch_size)


def of(modalities: dict[str, Modality], batch_size: int, train_size: int = 20_000) -> Experiment:
    """One model over these."""
    source = ToyWorld(
        streams=("caption", *(name for name in MODALITIES if name != "text")),
        train_size=train_size,
        levels=(2,),
        languages=("en",),
    )
    names = tuple(modalities)
    wanted = tuple(n for n, m in modalities.items() if isinstance(m, Codes) or m.spec(n).vocab_size)
    contrast = Task(
        source=source,
        inputs=("image", "text", "depth"),
        layout=Aligned(),
        objective=InfoNCE(),
        batch_size=2 * batch_size,
        group_rows=batch_size // 4,
    )
    masked = Task(
        source=source,
        inputs=names,
        targets=wanted,
        layout=Masked(input_tokens=96, target_tokens=96, policies=POLICIES),
        objective=MaskedTokens(),
        batch_size=batch_size,
        group_rows=batch_size // 8,
        weight=4.0,
    )
    judged = {**NUMBERS, **JUDGES}
    asked = judged if codes().keys() <= modalities.keys() else JUDGES
    cells = tuple(f"{a}_to_{b}" for a in judged for b in asked if a != b)
    return Experiment(
        name="toyworld",
        modalities=modalities,
        model=Transformer(width=256, num_heads=4, encoder_layers=8, decoder_layers=4, moe=MoE()),
        tasks={"masked": masked, "contrast": contrast},
        optimizer=Muon(),
        evaluators={
            "losses": Losses(tasks=("masked", "contrast"), num_batches=2),
            "retrieval": Retrieval(modalities=("image", "text", "depth"), num_galleries=1),
            "generation": Generation(judges=judged, cells=cells, num_examples={"*": 50}),
        },
        total_steps=20_000,
    )


def small() -> Experiment:
    """For two cores."""
    full = get_config(batch_size=64)
    model = dataclasses.replace(
        full.model, width=128, encoder_layers=4, decoder_layers=2, moe=MoE(num_experts=4)
    )
    return dataclasses.replace(full, model=model, total_steps=1500)


def tiny() -> Experiment:
    """A few steps of a model that knows nothing; for tests."""
    full = of(MODALITIES, batch_size=16, train_size=256)
    model = dataclasses.replace(
        full.model, width=32, encoder_layers=1, decoder_layers=1, moe=MoE(num_experts=4, every=1)
    )
    few = dataclasses.replace(
        full.evaluators["generation"],
        cells=("image_to_semseg", "caption_to_boxes", "depth_to_caption", "semseg_to_graph"),
        num_examples={"*": 8},
    )
    evaluators = {"losses": full.evaluators["losses"], "generation": few}
    return dataclasses.replace(full, model=model, evaluators=evaluators, total_steps=8)
