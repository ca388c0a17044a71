"""ToyWorld: small scenes in many aligned modalities, drawn on the spot, without any download.

One to three solids on a tiled ground before a wall, seen by a pinhole camera. Every stream is
computed from the geometry, so that all of them agree to the pixel.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import zlib
from collections.abc import Callable, Iterator, Mapping
from typing import Annotated, Any

import numpy as np

from mmjax.config import ranges
from mmjax.data.source import Source
from mmjax.demo import toyworld_scene, toyworld_shot, toyworld_streams
from mmjax.demo.toyworld_scene import COLOURS, SHAPES, Scene
from mmjax.demo.toyworld_shot import Shot
from mmjax.demo.toyworld_streams import CLASSES, RATE
from mmjax.demo.toyworld_words import LANGUAGES, caption

__all__ = ["CLASSES", "COLOURS", "LANGUAGES", "RATE", "SHAPES", "STREAMS", "ToyWorld"]

VERSION = 1  # of the examples: a change of any of them changes it
STREAMS = ("caption", *toyworld_streams.STREAMS)
CHEAP = ("image", "depth", "semseg", "boxes", "caption")
ABOUT = ("language", "aligned", "identity", "slices")  # keys beside the streams
SPLITS = ("train", "val", "test", "shifted")
OTHER = 1 << 20  # added to the seed of a scene whose caption is borrowed


@dataclasses.dataclass(frozen=True, kw_only=True)
class ToyWorld(Source):
    """Scenes of one to three solids: pictures, depth, flow, captions, sound and twenty more.

    An example holds the `streams` asked for, and nothing else costs time. S = `size`:

    - pictures: `image` uint8 (S, S, 3); `views` uint8 (num_views, S, S, 3) by other cameras;
      `video` uint8 (frames, S, S, 3), 8 frames per second, the first of which is `image`
    - maps of `image`: `depth` float32 (S, S) in metres along the axis of the camera; `normals`
      float32 (S, S, 3) unit, in the frame of the camera; `semseg` uint8 (S, S) of CLASSES;
      `instances` uint8 (S, S), 0 = none, then bodies from left to right; `edges` bool (S, S);
      `flow` float32 (S, S, 2) pixels right and down to the second frame of `video`; `thermal`
      float32 (S, S) degrees Celsius; `events` uint8 (S, S, 2) darker and brighter steps between
      these frames
    - of the bodies that are seen, from left to right: `boxes` float32 (n, 4) x0, y0, x1, y1 in
      0..1; `box_labels` int64 (n,) of CLASSES
    - of all bodies: `keypoints` float32 (n, 5, 3): x, y in 0..1 and 2 = visible, 1 = behind another
      body, 0 = outside, of middle, top, foot, left and right; `palette` uint8 (n, 3), the largest
      in the picture first; `graph` {"nodes": [class], "edges": [(i, j)]}, where body i is
      in front of body j
    - space: `points` float32 (num_points, 3) metres, in the frame of the camera; `camera`
      {"focal": (2,), "centre": (2,), as fractions of the side, "rotation": (3, 3), "translation":
      (3,)}, all float32, from the world; `view_cameras`, a list of these
    - time: `sound` float32 at 16 kHz, a tone of 0.12 s for each body from left to right, pitch by
      shape, loudness by size; `imu` float32 (frames, 6) specific force in m/s2 and angular rate in
      rad/s in the frame of the camera, from each frame of `video` to the next
    - words and numbers: `caption` str and `language`; `table` dict about the largest body;
      `scalars` {"objects", "mean_depth", "background", "brightness"}

    Always there: `identity` int, equal for equal bodies by shape and colour; `slices` ("seen",), or
    ("unseen",) where a pair of shape and colour is held out of train. With a caption: `aligned`
    bool. An example depends on (split, index) and these fields alone, and no stream on another;
    each is computed when it is asked for.

    Fields:
      streams: what examples hold, of STREAMS.
      size: pixels of a side. max_objects: largest number of bodies.
      antialias: rays along each side of a pixel of a picture; maps have one in its middle.
      train_size, eval_size: examples of train, and of each other split.
      languages, levels: of captions; one of each by chance. Level 0 counts shapes, 1 adds colours,
        2 sizes and places.
      frames, num_views, num_points: of `video` and `imu`, of `views`, of `points`.
      noise: standard deviation of the noise of pictures, as a share of white.
      misaligned: share of captions that are those of another scene.
      missing: share of examples that lack a stream, by its name.
      shift: of the split "shifted": 0 = as the others, 1 = light, colours and ground of dusk.
      held_out: pairs of shape and colour that train lacks; 0..16 of 32.

    >>> scene = ToyWorld(streams=("image", "caption"), size=32).open("val")[4]
    >>> scene["image"].shape, scene["slices"]
    ((32, 32, 3), ('seen',))
    """

    streams: tuple[str, ...] = CHEAP
    size: Annotated[int, ranges.Range(8, 512)] = 32
    antialias: Annotated[int, ranges.Range(1, 4)] = 1
    max_objects: Annotated[int, ranges.Range(1, 3)] = 3
    train_size: ranges.Count = 10_000
    eval_size: ranges.Count = 1000
    languages: tuple[str, ...] = LANGUAGES
    levels: tuple[Annotated[int, ranges.Range(0, 2)], ...] = (0, 1, 2)
    frames: Annotated[int, ranges.Range(2, 16)] = 8
    num_views: Annotated[int, ranges.Range(1, len(toyworld_shot.AZIMUTHS))] = 2
    num_points: ranges.Count = 256
    noise: ranges.Fraction = 0.0
    misaligned: ranges.Fraction = 0.0
    missing: Mapping[str, ranges.Fraction] = dataclasses.field(default_factory=dict)
    shift: ranges.Fraction = 1.0
    held_out: Annotated[int, ranges.Range(0, 16)] = 8

    def __post_init__(self):
        ranges.check(self)
        known = {
            "streams": STREAMS,
            "languages": LANGUAGES,
            "levels": (0, 1, 2),
            "missing": STREAMS,
        }
        for field, names in known.items():
            given = getattr(self, field)
            wrong = [name for name in given if name not in names]
            if wrong or (not given and field != "missing"):
                raise ValueError(
                    f"ToyWorld: {field}={tuple(given)!r} must be one or more of {names}; "
                    f"leave out {wrong!r}."
                )

    def splits(self) -> tuple[str, ...]:
        """Names of the splits."""
        return SPLITS

    def keys(self) -> tuple[str, ...]:
        """The streams asked for, and what is told about an example."""
        about = ABOUT if "caption" in self.streams else ABOUT[2:]
        return (*dict.fromkeys(self.streams), *about)

    def open(self, split: str) -> _Scenes:
        """Random access to one split; ValueError when there is none of that name."""
        if split not in SPLITS:
            raise ValueError(f"ToyWorld: split={split!r} does not exist; use one of {SPLITS}.")
        return _Scenes(self, split)

    def fingerprint(self) -> str:
        """SHA-256 of the version and the fields."""
        fields = dataclasses.asdict(self) | {"missing": sorted(self.missing.items())}
        return hashlib.sha256(f"toyworld {VERSION} {sorted(fields.items())}".encode()).hexdigest()


class _Scenes:
    """One split."""

    def __init__(self, source: ToyWorld, split: str):
        self._source, self._split = source, split
        self._held_out = toyworld_scene.held_out(source.held_out)

    def __len__(self) -> int:
        is_train = self._split == "train"
        return self._source.train_size if is_train else self._source.eval_size

    def __getitem__(self, index: int) -> Mapping[str, Any]:
        if not 0 <= index < len(self):
            raise IndexError(f"ToyWorld: {self._split}[{index}] is outside 0..{len(self) - 1}.")
        source, scene = self._source, self.scene(int(index))
        shot = Shot(
            scene, size=source.size, antialias=source.antialias, frames=source.frames,
            num_views=source.num_views, num_points=source.num_points, noise=source.noise,
            stripes=self._shift,
        )  # fmt: skip
        make: dict[str, Callable[[], Any]] = {
            name: functools.partial(toyworld_streams.STREAMS[name], shot)
            for name in source.streams
            if name != "caption" and not self._is_missing(scene, name)
        }
        pairs = [(body.shape, body.colour) for body in scene.bodies]
        about: dict[str, Any] = {"identity": _number(pairs)}
        about["slices"] = ("seen",) if self._held_out.isdisjoint(pairs) else ("unseen",)
        if "caption" in source.streams and not self._is_missing(scene, "caption"):
            about |= self._worded(scene)
        return _Example(make, about)

    @property
    def _shift(self) -> float:
        return self._source.shift if self._split == "shifted" else 0.0

    def scene(self, index: int, other: int = 0) -> Scene:
        """The geometry of an example; `other` > 0: a scene beside it, to take a caption from."""
        seed = (SPLITS.index(self._split), index, other * OTHER)
        banned = self._held_out if self._split == "train" else frozenset()
        return toyworld_scene.draw(seed, self._source.max_objects, self._shift, banned)

    def _is_missing(self, scene: Scene, name: str) -> bool:
        share = self._source.missing.get(name, 0.0)
        return share > 0 and scene.generator(zlib.crc32(name.encode())).random() < share

    def _worded(self, scene: Scene) -> dict[str, Any]:
        """Caption, language, and whether it is of this scene."""
        source, chance = self._source, scene.generator(11).random(3)
        language = source.languages[int(chance[0] * len(source.languages))]
        level = source.levels[int(chance[1] * len(source.levels))]
        own = text = caption(scene, language, level)
        aligned, other = bool(chance[2] >= source.misaligned), 0
        while not aligned and text == own:
            other += 1
            text = caption(self.scene(scene.seed[1], other), language, level)
        return {"caption": text, "language": language, "aligned": aligned}


class _Example(Mapping[str, Any]):
    """Streams that are computed when they are asked for, once."""

    def __init__(self, make: Mapping[str, Callable[[], Any]], about: Mapping[str, Any]):
        self._make, self._made = make, dict(about)

    def __getitem__(self, name: str) -> Any:
        if name not in self._made:
            self._made[name] = self._make[name]()
        return self._made[name]

    def __contains__(self, name: object) -> bool:
        return name in self._make or name in self._made

    def __iter__(self) -> Iterator[str]:
        return iter(dict.fromkeys((*self._make, *self._made)))

    def __len__(self) -> int:
        return len(self._make.keys() | self._made.keys())


def _number(pairs: list[tuple[int, int]]) -> int:
    """One number for a set of pairs (shape, colour)."""
    number = 0
    for shape, colour in sorted(pairs):
        number = number * (1 + len(SHAPES) * len(COLOURS)) + 1 + shape * len(COLOURS) + colour
    return number


def as_point_cloud(depth: np.ndarray, camera: Mapping[str, np.ndarray]) -> np.ndarray:
    """Points float (S, S, 3) in the frame of the camera, from its depth (S, S)."""
    size = depth.shape[0]
    (fx, fy), (cx, cy) = camera["focal"], camera["centre"]
    place = (np.arange(size) + 0.5) / size
    x, y = (place[None, :] - cx) / fx * depth, (place[:, None] - cy) / fy * depth
    return np.stack([x, y, depth], -1)
