"""A picture of each modality: one scene of ToyWorld, encoded into tokens and decoded again.

python -m mmjax.demo.modality_cards docs/modalities  # and prints the table of docs/modalities.md
"""

from __future__ import annotations

import argparse
import dataclasses
import io
import json
import tempfile
import textwrap
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from mmjax.demo.toyworld import CLASSES, COLOURS, SHAPES, STREAMS, ToyWorld
from mmjax.demo.toyworld_scene import MATERIALS, SIZES
from mmjax.demo.toyworld_sheet import CLASS_COLOURS, boxed, dotted
from mmjax.modalities.actions import Actions
from mmjax.modalities.audio import Audio
from mmjax.modalities.bands import Bands
from mmjax.modalities.camera import Camera
from mmjax.modalities.dense import Depth, Normals
from mmjax.modalities.edges import Edges
from mmjax.modalities.features import Features, Vector
from mmjax.modalities.graph import Graph
from mmjax.modalities.image import Image
from mmjax.modalities.imu import Imu
from mmjax.modalities.keypoints import Keypoints
from mmjax.modalities.label import Label
from mmjax.modalities.log_mel import LogMel
from mmjax.modalities.modality import Modality
from mmjax.modalities.motion import Events, Flow
from mmjax.modalities.palette import Palette
from mmjax.modalities.points import Points
from mmjax.modalities.raw import Bytes
from mmjax.modalities.segmentation import Instances, Segmentation
from mmjax.modalities.structured import Bins, Boxes, Metadata
from mmjax.modalities.table import BinEdges, Table
from mmjax.modalities.text import Text
from mmjax.modalities.time_series import TimeSeries
from mmjax.modalities.video import Video
from mmjax.modalities.waveform import Waveform
from mmjax.report import arrays
from mmjax.tokenizers.sentencepiece import SentencePiece

__all__ = ["CARDS", "COLUMNS", "MARKS", "SCALARS", "table", "write"]

SIDE, SCENE = 160, 7  # pixels of a card; number of the scene
CAPTIONS = 500  # that pieces of text are learned from
SIZE = (64, 64)
MARKS = ("middle", "top", "foot", "left", "right")
METRES = BinEdges(at=tuple(np.linspace(0, 12, 121).tolist()))
INK, PAPER = (40, 42, 48), (250, 250, 252)


@dataclasses.dataclass(frozen=True)
class Card:
    """A modality, what of a scene it takes, and how what it gives back is drawn."""

    modality: Modality
    value: Callable[[Mapping[str, Any]], Any]
    draw: Callable[[Any, Any], Any]


def of(stream: str) -> Callable[[Mapping[str, Any]], Any]:
    """What is in a stream."""
    return lambda scene: scene[stream]


def write(folder: Path) -> dict[str, int]:
    """PNG files of SIDE x SIDE pixels, and how many tokens each value has."""
    import PIL.Image

    source = ToyWorld(streams=STREAMS, size=SIZE[0], antialias=3, languages=("en",), levels=(2,))
    records = source.open("val")
    scene, captions = records[SCENE], [records[i]["caption"] for i in range(CAPTIONS)]
    folder.mkdir(parents=True, exist_ok=True)
    counts = {}
    for name, shown in CARDS.items():
        with tempfile.TemporaryDirectory() as learned:
            modality = shown.modality.fit(lambda: iter(captions), Path(learned))
        piece = modality.encode(shown.value(scene))
        assert piece is not None
        counts[name] = piece.length
        picture = shown.draw(modality.decode(piece), scene["image"])
        few = picture.quantize(64, dither=PIL.Image.Dither.NONE)
        few.save(folder / f"{name.lower()}.png", optimize=True)
    return counts


def table(counts: Mapping[str, int]) -> str:
    """The rows of docs/modalities.md."""
    rows = []
    for name, number in counts.items():
        made = CARDS[name].modality
        does = (type(made).__doc__ or "").partition("\n")[0].rstrip(".")
        module = type(made).__module__.rpartition(".")[2]
        picture = f"![{name}](modalities/{name.lower()}.png)"
        rows.append(f"| {picture} | `{module}.{name}` | {does} | {number:,} |")
    return "\n".join(rows)


# ------------------------------------------------------------------------------------ drawing


def _pixels(value: Any, _: Any) -> Any:
    """A picture in 0..1, grey or RGB."""
    import PIL.Image

    array = np.asarray(value, np.float64)
    pixels = (np.broadcast_to(np.atleast_3d(array), (*array.shape[:2], 3)) * 255).astype(np.uint8)
    return PIL.Image.fromarray(pixels).resize((SIDE, SIDE), PIL.Image.Resampling.NEAREST)


def _frames(value: Any, image: Any) -> Any:
    """The first four frames of a video."""
    half = SIZE[0] // 2
    some = [frame.reshape(half, 2, half, 2, -1).mean((1, 3)) for frame in np.asarray(value)[::2]]
    return _pixels(
        np.concatenate([np.concatenate(some[:2], 1), np.concatenate(some[2:4], 1)]), image
    )


def _map(value: Any, _: Any) -> Any:
    """Numbers, vectors or directions, as a report shows them."""
    import PIL.Image

    file = io.BytesIO()
    array = np.asarray(value)
    np.save(file, array if array.shape[-1] <= 3 or array.ndim < 3 else array.mean(2))
    drawn = arrays.drawn(file.getvalue())
    assert drawn is not None
    picture = PIL.Image.open(io.BytesIO(drawn[0])).convert("RGB")
    return picture.resize((SIDE, SIDE), PIL.Image.Resampling.NEAREST)


def _spectrogram(value: Any, image: Any) -> Any:
    """Time to the right, high tones above."""
    return _map(np.asarray(value).T[::-1], image)


def _classes(value: Any, image: Any) -> Any:
    """Numbers of classes or instances, each in a colour."""
    return _pixels(np.array(CLASS_COLOURS)[np.asarray(value).astype(int)] / 255, image)


def _boxes(value: Any, image: Any) -> Any:
    return _pixels(boxed(image, np.asarray(value)) / 255, image)


def _marks(value: Any, image: Any) -> Any:
    return _pixels(dotted(image, np.asarray(value)) / 255, image)


def _points(value: Any, _: Any) -> Any:
    """From above: right is right, up is away."""
    picture, pen = _blank()
    xyz = np.asarray(value)[:, :3]
    low, span = xyz.min(0), np.ptp(xyz, axis=0).max()
    for x, _y, z in (xyz - low) / span * (SIDE - 12) + 6:
        pen.ellipse((x - 1.5, SIDE - z - 1.5, x + 1.5, SIDE - z + 1.5), fill=(86, 130, 214))
    return picture


def _swatches(value: Any, _: Any) -> Any:
    picture, pen = _blank()
    wide = SIDE / max(len(value), 1)
    for i, colour in enumerate(np.asarray(value).astype(int)):
        pen.rectangle((i * wide, 0, (i + 1) * wide, SIDE), fill=tuple(colour.tolist()))
    return picture


def _lines(value: Any, _: Any) -> Any:
    """A line a channel over time."""
    picture, pen = _blank()
    array = np.asarray(value, np.float64)
    array = array.reshape(len(array), -1)
    colours = ((86, 130, 214), (222, 98, 86), (92, 178, 110), (240, 170, 60), (150, 90, 200), INK)
    for channel, colour in zip(range(array.shape[1]), colours):  # noqa: B905
        x = np.linspace(4, SIDE - 4, len(array))
        y = array[:, channel]
        y = SIDE / 2 - (y - y.mean()) / max(np.abs(y - y.mean()).max(), 1e-9) * (SIDE / 2 - 8)
        pen.line(list(zip(x.tolist(), y.tolist(), strict=True)), fill=colour)
    return picture


def _words(value: Any, _: Any) -> Any:
    picture, pen = _blank()
    text = value if isinstance(value, str) else _listed(value)
    lines = [part for line in text.split("\n") for part in textwrap.wrap(line, 25) or [""]]
    pen.multiline_text((6, 6), "\n".join(lines[:13]), fill=INK, spacing=2)
    return picture


def _listed(value: Any) -> str:
    """Named values, a line each."""
    if isinstance(value, bytes):
        return value.decode()
    if not isinstance(value, Mapping):
        return str(value)
    plain = lambda x: json.dumps(
        np.round(np.asarray(x, np.float64), 2).tolist() if not isinstance(x, (str, list)) else x
    )
    return "\n".join(f"{name}: {plain(x)}" for name, x in value.items())


def _blank() -> tuple[Any, Any]:
    import PIL.Image
    from PIL import ImageDraw

    picture = PIL.Image.new("RGB", (SIDE, SIDE), PAPER)
    return picture, ImageDraw.Draw(picture)


def _patched(scene: Mapping[str, Any]) -> np.ndarray:
    """What another network might say of each part of a picture: here means of colours."""
    return scene["image"].reshape(8, 8, 8, 8, 3).mean((1, 3)) / 255


COLUMNS = {
    "shape": SHAPES, "colour": COLOURS, "size": SIZES, "material": MATERIALS,
    **dict.fromkeys(("radius", "height", "distance", "speed"), METRES),
    "degrees": Bins(num=64, low=0, high=64),
}  # fmt: skip
SCALARS = {
    "objects": Bins(num=4), "mean_depth": Bins(num=128, low=0, high=12.8),
    "background": Bins(num=100, low=0, high=1), "brightness": Bins(num=100, low=0, high=1),
}  # fmt: skip
_MOVES: dict[str, tuple[float, float]] = dict.fromkeys(
    ("ax", "ay", "az", "gx", "gy", "gz"), (-20.0, 20.0)
)
CARDS: dict[str, Card] = {
    "Image": Card(Image(size=SIZE, patch=8), of("image"), _pixels),
    "Video": Card(Video(num_frames=8, frames=2, size=SIZE, patch=8), of("video"), _frames),
    "Depth": Card(Depth(size=SIZE, patch=8, low=0.5, high=20), of("depth"), _map),
    "Normals": Card(Normals(size=SIZE, patch=8), of("normals"), _map),
    "Bands": Card(Bands(size=SIZE, patch=8, low=(-10.0,), high=(60.0,)), of("thermal"), _map),
    "Flow": Card(Flow(size=SIZE, patch=8), of("flow"), _map),
    "Events": Card(Events(size=SIZE, patch=8), of("events"), _map),
    "Segmentation": Card(Segmentation(names=CLASSES, size=SIZE, cell=2), of("semseg"), _classes),
    "Instances": Card(Instances(size=SIZE, cell=2, max_instances=4), of("instances"), _classes),
    "Edges": Card(Edges(size=SIZE, cell=2), of("edges"), lambda x, i: _pixels(1 - 0.85 * x, i)),
    "Boxes": Card(Boxes(max_boxes=3), of("boxes"), _boxes),
    "Keypoints": Card(Keypoints(joints=MARKS, max_people=3), of("keypoints"), _marks),
    "Palette": Card(Palette(), of("palette"), _swatches),
    "Points": Card(Points(max_points=256, low=-20, high=20), of("points"), _points),
    "Camera": Card(Camera(max_translation=20), of("camera"), _words),
    "Features": Card(Features(channels=3, grid=(8, 8)), _patched, _pixels),
    "Vector": Card(
        Vector(channels=3), lambda s: _patched(s).mean((0, 1)), lambda x, i: _swatches([x * 255], i)
    ),
    "Waveform": Card(Waveform(seconds=0.48, patch=160), of("sound"), _lines),
    "Audio": Card(Audio(seconds=0.48), of("sound"), _spectrogram),
    "LogMel": Card(LogMel(seconds=0.48), of("sound"), _spectrogram),
    "Imu": Card(Imu(rate=8, seconds=1, patch=4), of("imu"), _lines),
    "TimeSeries": Card(
        TimeSeries(channels=3, rate=8, seconds=1, patch=4), lambda s: s["imu"][:, :3], _lines
    ),
    "Actions": Card(Actions(dims=_MOVES), of("imu"), lambda x, i: _lines(x["actions"], i)),
    "Label": Card(Label(names=CLASSES), lambda s: s["graph"]["nodes"][0], _words),
    "Metadata": Card(Metadata(schema=SCALARS), of("scalars"), _words),
    "Table": Card(Table(columns=COLUMNS), of("table"), _words),
    "Graph": Card(Graph(classes=CLASSES, directed=True), of("graph"), _words),
    "Text": Card(Text(tokenizer=SentencePiece(vocab_size=480)), of("caption"), _words),
    "Bytes": Card(Bytes(max_tokens=256), of("caption"), _words),
}


def main() -> None:
    """Writes a PNG file for each modality."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("folder", type=Path)
    print(table(write(parser.parse_args().folder)))


if __name__ == "__main__":
    main()
