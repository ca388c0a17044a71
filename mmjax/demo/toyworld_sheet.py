"""A sheet of ToyWorld: a row for each scene, a column for each stream that can be looked at.

python -m mmjax.demo.toyworld_sheet toyworld.png --scenes 6 --size 64 --scale 2
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from mmjax.demo.toyworld import ToyWorld, as_point_cloud
from mmjax.report import arrays

__all__ = ["CLASS_COLOURS", "COLUMNS", "boxed", "dotted", "sheet"]

COLUMNS = (
    *("image", "depth", "normals", "semseg", "instances", "edges", "flow", "thermal", "events"),
    *("boxes", "keypoints", "points", "view", "last"),
)
STREAMS = (
    *("image", "depth", "normals", "semseg", "instances", "edges", "flow", "thermal", "events"),
    *("boxes", "keypoints", "points", "camera", "views", "video"),
)
CLASS_COLOURS = ((225, 228, 232), (190, 182, 170), (222, 98, 86), (86, 130, 214), (92, 178, 110),
                 (240, 190, 70))  # fmt: skip
GAP = 2  # pixels between pictures, before scaling
MARGIN = 24.0  # grey level of a boundary that is drawn


def sheet(source: ToyWorld, split: str, indices: range) -> np.ndarray:
    """uint8 (rows, columns, 3)."""
    records = dataclasses.replace(source, streams=STREAMS).open(split)
    rows = [tiles(records[index]) for index in indices]
    pad = ((0, GAP), (0, GAP), (0, 0))
    joined = [
        np.concatenate([np.pad(row[name], pad, constant_values=255) for name in COLUMNS], 1)
        for row in rows
    ]
    return np.concatenate(joined)[:-GAP, :-GAP]


def tiles(example: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Each column as a picture uint8 (S, S, 3)."""
    image, depth, flow = example["image"], example["depth"], example["flow"]
    events = example["events"].astype(float).clip(0, 8) / 8
    darker, brighter = events[..., 0], events[..., 1]
    white = np.stack([1 - darker, 1 - np.maximum(brighter, darker), 1 - brighter], -1)
    return {
        "image": image,
        "depth": arrays.heat(1 - _stretched(np.log(depth))).astype(np.uint8),
        "normals": _bytes(0.5 - 0.5 * example["normals"] * [-1, 1, 1]),
        "semseg": np.array(CLASS_COLOURS, np.uint8)[example["semseg"]],
        "instances": np.array([(238, 238, 238), *CLASS_COLOURS[2:5]], np.uint8)[
            example["instances"]
        ],
        "edges": _bytes(np.repeat(1.0 - 0.85 * example["edges"][..., None], 3, -1)),
        "flow": arrays.wheel(flow, np.hypot(*np.moveaxis(flow, 2, 0)).max()).astype(np.uint8),
        "thermal": arrays.heat(_stretched(example["thermal"])).astype(np.uint8),
        "events": _bytes(white),
        "boxes": boxed(image, example["boxes"]),
        "keypoints": dotted(image, example["keypoints"]),
        "points": _plan(as_point_cloud(depth, example["camera"]), image, example["camera"]),
        "view": example["views"][0],
        "last": example["video"][-1],
    }


def _bytes(share: np.ndarray) -> np.ndarray:
    return (np.clip(share, 0, 1) * 255 + 0.5).astype(np.uint8)


def _stretched(values: np.ndarray) -> np.ndarray:
    low, high = values.min(), values.max()
    return (values - low) / max(high - low, 1e-9)


def boxed(image: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """A picture uint8 (S, S, 3) with boxes (n, 4) in 0..1."""
    drawn, size = image.copy(), image.shape[0]
    for x0, y0, x1, y1 in (boxes * size).round().astype(int):
        drawn[y0, x0:x1] = drawn[y1 - 1, x0:x1] = MARGIN
        drawn[y0:y1, x0] = drawn[y0:y1, x1 - 1] = MARGIN
    return drawn


def dotted(image: np.ndarray, keypoints: np.ndarray) -> np.ndarray:
    """A faded picture uint8 (S, S, 3) with joints (n, joints, 3) in 0..1: 2 = black, 1 = red."""
    drawn, size = (image * 0.5 + 127).astype(np.uint8), image.shape[0]
    for x, y, kind in keypoints.reshape(-1, 3):
        if kind:
            row, column = int(y * size - 1e-6), int(x * size - 1e-6)
            drawn[max(row - 1, 0) : row + 2, max(column - 1, 0) : column + 2] = (
                (20, 20, 20) if kind == 2 else (225, 60, 60)
            )
    return drawn


def _plan(cloud: np.ndarray, image: np.ndarray, camera: Mapping[str, np.ndarray]) -> np.ndarray:
    """The points as seen from above, each of the colour of its pixel."""
    size = image.shape[0]
    drawn = np.full_like(image, 244)
    world = (cloud.reshape(-1, 3) - camera["translation"]) @ camera["rotation"]
    places = ((world[:, :2] * [1, -1] / 2.6 + [1.0, 1.0]) * size / 2).astype(int)
    order = np.argsort(world[:, 2])
    places, colours = places[order], image.reshape(-1, 3)[order]
    inside = ((places >= 0) & (places < size)).all(1)
    drawn[places[inside, 1], places[inside, 0]] = colours[inside]
    return drawn


def main() -> None:
    """Writes a sheet as PNG."""
    from PIL import Image

    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("path")
    parser.add_argument("--split", default="val")
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--scenes", type=int, default=6)
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--scale", type=int, default=2)
    parser.add_argument("--colours", type=int, default=0, help="of a smaller file; 0 = all")
    given = parser.parse_args()
    indices = range(given.first, given.first + given.scenes)
    drawn = sheet(ToyWorld(size=given.size, antialias=3), given.split, indices)
    picture = Image.fromarray(drawn.repeat(given.scale, 0).repeat(given.scale, 1))
    if given.colours:
        few = picture.quantize(given.colours, kmeans=4)
        picture = picture.quantize(palette=few, dither=Image.Dither.FLOYDSTEINBERG)
    picture.save(given.path, optimize=True)


if __name__ == "__main__":
    main()
