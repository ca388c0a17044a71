"""ToyWorld: one model from any of fifteen aligned modalities to any of ten.

paper: Bachmann et al. 2024, 4M-21: An Any-to-Any Vision Model for Tens of Tasks and Modalities
  (arXiv 2406.09406).
kept: one encoder-decoder over all modalities, masked modelling with budgets drawn by Dirichlet,
  most of them from one modality to the others; grids in parallel, sequences left to right.
differs: scenes that are drawn on the spot; modalities that come as numbers (pictures, depth,
  normals, sound, motion) are inputs alone, as there are no tokenizers of them here; experts; a
  contrast of pictures with captions and depth in turns.
command: mmjax train configs/anyany/toyworld.py:small --workdir runs/toyworld
result: none yet; `tiny` has been run, `small` and the full size have not
status: simplified

The matrix in the report has 108 cells, from thirteen modalities to nine, judged by the exact truth
of the scene, beside chance and a constant answer. `tiny` is for tests.
"""

import dataclasses

from mmjax.data.layouts import Aligned, Masked
from mmjax.data.task import Task
from mmjax.demo.toyworld import CLASSES, COLOURS, SHAPES, ToyWorld
from mmjax.demo.toyworld_scene import MATERIALS, SIZES
from mmjax.evaluate import BoxIoU, Generation, Losses, Retrieval, SameMetadata
from mmjax.evaluate import map_judges as judges
from mmjax.experiment import Experiment
from mmjax.modalities.audio import Audio
from mmjax.modalities.camera import Camera
from mmjax.modalities.dense import Depth, Normals
from mmjax.modalities.graph import Graph
from mmjax.modalities.image import Image
from mmjax.modalities.imu import Imu
from mmjax.modalities.keypoints import Keypoints
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
# Inputs alone: a judge makes each a row of the matrix, and no cell asks for it.
GIVEN = {
    "image": judges.Within(),
    "depth": judges.DepthDelta(),
    "normals": judges.NormalsWithin(),
    "sound": judges.Within(tolerance=3.0, field="sound"),
}


def get_config(batch_size: int = 128, train_size: int = 20_000) -> Experiment:
    """All modalities of 32 x 32 scenes."""
    source = ToyWorld(
        streams=("caption", *(name for name in MODALITIES if name != "text")),
        train_size=train_size,
        levels=(2,),
        languages=("en",),
    )
    names = tuple(MODALITIES)
    wanted = tuple(name for name in names if MODALITIES[name].spec(name).vocab_size)
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
        layout=Masked(input_tokens=96, target_tokens=96),
        objective=MaskedTokens(),
        batch_size=batch_size,
        group_rows=batch_size // 8,
        weight=4.0,
    )
    cells = tuple(f"{a}_to_{b}" for a in (*GIVEN, *JUDGES) for b in JUDGES if a != b)
    return Experiment(
        name="toyworld",
        modalities=MODALITIES,
        model=Transformer(width=256, num_heads=4, encoder_layers=8, decoder_layers=4, moe=MoE()),
        tasks={"masked": masked, "contrast": contrast},
        optimizer=Muon(learning_rate=0.01),
        evaluators={
            "losses": Losses(tasks=("masked", "contrast"), num_batches=2),
            "retrieval": Retrieval(modalities=("image", "text", "depth"), num_galleries=1),
            "generation": Generation(
                judges={**GIVEN, **JUDGES}, cells=cells, num_examples={"*": 50}
            ),
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
    full = get_config(batch_size=16, train_size=256)
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
