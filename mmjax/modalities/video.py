"""Video as tubelets, patches over several frames (Arnab et al. 2021, "ViViT")."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar

import numpy as np

from mmjax.config import ranges
from mmjax.modalities import maps
from mmjax.modalities.image import Image, flat
from mmjax.modalities.modality import Modality, Unreadable
from mmjax.typing import Piece, TokenSpec, positions

__all__ = ["Video"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Video(Modality):
    """One token a tubelet: (x - mean) / std of its pixels in 0..1, by row, column, frame, channel.

    Of a longer video those frames are taken that lie in the middles of `num_frames` equal parts; of
    a shorter one the last frame is repeated. Frames are cut and scaled as by `Image`. Files are
    GIF, animated PNG or WebP, whose frames count alike however long each is shown, or .npy; a
    picture is a video of one frame.

    Fields:
      num_frames: that become tokens. frames: of a tubelet; divides `num_frames`.
      size: (height, width) in pixels. patch: side of a tubelet; divides both.
      channels, mean, std, resize: as for `Image`.
      rate: frames a second of the files that `write` makes.
      max_pixels: largest frames times height times width of a file; a larger one counts as bad.

    >>> import numpy as np
    >>> video = Video(num_frames=4, frames=2, size=(8, 12), patch=4)
    >>> piece = video.encode(np.zeros((30, 8, 12, 3), np.uint8))
    >>> video.spec("video").grid, piece.values_LP.shape, video.decode(piece).shape
    ((2, 2, 3), (12, 96), (4, 8, 12, 3))
    """

    num_frames: ranges.Count = 16
    frames: ranges.Count = 2
    size: tuple[ranges.Count, ranges.Count] = (224, 224)
    patch: ranges.Count = 16
    channels: ranges.Count = 3
    mean: tuple[ranges.Finite, ...] = (0.5,)
    std: tuple[ranges.Positive, ...] = (0.5,)
    resize: str = "stretch"
    rate: Annotated[float, ranges.Range(0.1, 1000)] = 8.0
    max_pixels: Annotated[int, ranges.Range(1, 2**50)] = dataclasses.field(
        default=1 << 27, metadata={"identity": "none"}
    )
    is_finite: ClassVar[bool] = True

    def __post_init__(self):
        ranges.check(self)
        if self.num_frames % self.frames:
            raise ValueError(
                f"Video: num_frames={self.num_frames} is not divisible by frames={self.frames}; use"
                " a multiple."
            )
        self._make_image()

    def spec(self, name: str) -> TokenSpec:
        """One continuous grid stream over time, rows and columns."""
        p, depth = self.patch, self.frames * self.channels
        return TokenSpec(
            name=name,
            kind="grid",
            max_tokens=int(np.prod(self._grid)),
            width=p * p * depth,
            grid=self._grid,
            piece=(p, p, depth),
        )

    def encode(self, value: Any) -> Piece | None:
        """Tubelets float32 (times * rows * columns, patch * patch * frames * channels).

        Positions are (time, row, column), counted in tubelets.

        Args:
          value: (T, H, W, C), or (T, H, W) for one channel, uint8 or float in 0..1; or a list of
            frames of one size; or the bytes of a file; None = absent.

        Raises ValueError for other shapes, types and ranges, no frame, frames of several sizes, NaN
        and infinity; its subclass Unreadable for bytes that are no whole video.
        """
        if value is None:
            return None
        _, frames_NHWC, which = self._chosen(value)
        with maps.said_by("Video"):
            pieces = [self._image.encode(frame) for frame in frames_NHWC]
        values_TLP = np.stack([one.values_LP for one in pieces])[which]  # type: ignore[union-attr]
        (times, rows, columns), p = self._grid, self.patch
        values = values_TLP.reshape(times, self.frames, rows * columns, p * p, self.channels)
        values = values.transpose(0, 2, 3, 1, 4).reshape(times * rows * columns, -1)
        return Piece(positions(self._grid), values_LP=values)

    def adapted(self, value: Any) -> str:
        """How many frames are taken or repeated, and the sizes before and after."""
        count, frames_NHWC, _ = self._chosen(value)
        said = ""
        if count > self.num_frames:
            said = f"{self.num_frames} of {count} frames are taken"
        elif count < self.num_frames:
            said = f"the last of {count} frames is repeated, up to {self.num_frames}"
        return "; ".join(filter(None, [said, self._image.adapted(frames_NHWC[0])]))

    def decode(self, piece: Piece) -> np.ndarray:
        """Frames float32 (num_frames, height, width, channels), clipped to 0..1."""
        (times, rows, columns), p = self._grid, self.patch
        shape = (times * rows * columns, p * p * self.frames * self.channels)
        if piece.values_LP is None or np.shape(piece.values_LP) != shape:
            raise ValueError(
                f"Video: decode needs values of shape {shape}; this piece is not of a Video with"
                f" num_frames={self.num_frames}, frames={self.frames}, size={self.size}, patch={p},"
                f" channels={self.channels}."
            )
        values = np.nan_to_num(np.asarray(piece.values_LP, np.float32), nan=0.0).clip(-1e6, 1e6)
        values = values.reshape(times, rows * columns, p * p, self.frames, self.channels)
        values = values.transpose(0, 3, 1, 2, 4).reshape(self.num_frames, rows * columns, -1)
        position_LA = positions((1, rows, columns))
        return np.stack([self._image.decode(Piece(position_LA, values_LP=v)) for v in values])

    def read(self, item: str) -> np.ndarray:
        """All frames of a file: uint8 (T, H, W, 3), or (T, H, W, 1); of .npy as they are.

        Raises ValueError if the file is missing or no video.
        """
        content = maps.read("Video", item)
        if content.startswith(maps.NPY):
            return self._array(maps.stored_array("Video", content))
        return self._opened(content, every=True)[1]

    def write(self, value: Any, stem: str | Path) -> Path:
        """An animated PNG file, which is exact to 8 bits; gray for one channel.

        Raises ValueError as `encode`, and unless there are 1 or 3 channels.
        """
        import PIL.Image

        value = self._opened(value, every=True)[1] if isinstance(value, bytes) else value
        frames_THWC = self._array(value)
        if frames_THWC.shape[3] not in (1, 3):
            raise ValueError(
                f"Video: shape {frames_THWC.shape} cannot be written as PNG; give 1 or 3 channels."
            )
        if frames_THWC.dtype != np.uint8:
            frames_THWC = np.round(frames_THWC.astype(np.float32).clip(0, 1) * 255).astype(np.uint8)
        pixels = frames_THWC[..., 0] if frames_THWC.shape[3] == 1 else frames_THWC
        first, *rest = map(PIL.Image.fromarray, pixels)
        path = Path(f"{stem}.png")
        more = {}
        if rest:
            # Pillow joins frames that are equal in picture and blending to one; all are opaque, so
            # blending changes nothing else.
            blend = [t % 2 for t in range(len(pixels))]
            more = {"save_all": True, "append_images": rest, "blend": blend}
        first.save(path, duration=1000 / self.rate, loop=0, **more)
        return path

    def _chosen(self, value: Any) -> tuple[int, np.ndarray | list[np.ndarray], np.ndarray]:
        """How many frames there are, those that become tokens, and which of these at what time."""
        if isinstance(value, bytes) and not value.startswith(maps.NPY):
            count, frames = self._opened(value)
        else:
            if isinstance(value, bytes):
                value = maps.stored_array("Video", value)
            frames = self._array(value)
            count = len(frames)
            frames = frames[np.unique(self._numbers(count))]
        return count, frames, np.unique(self._numbers(count), return_inverse=True)[1]

    def _numbers(self, count: int) -> np.ndarray:
        """Which of so many frames become tokens, in order, some of them repeatedly."""
        if count < self.num_frames:
            return np.minimum(np.arange(self.num_frames), count - 1)
        return maps.middles(count, self.num_frames)

    def _array(self, value: Any) -> np.ndarray:
        """Frames (T, H, W, C). Raises ValueError."""
        rule = f"give (T, H, W, {self.channels})"
        if isinstance(value, Sequence) and not isinstance(value, str):
            shapes = list(dict.fromkeys(np.shape(frame) for frame in value))
            if len(shapes) > 1:
                raise ValueError(f"Video: frames of shapes {shapes[0]} and {shapes[1]}; {rule}.")
        array = maps.numbers("Video", value, rule)
        if array.ndim == 3 and self.channels == 1:
            array = array[..., None]
        if array.ndim != 4 or 0 in array.shape:
            raise ValueError(f"Video: an array of shape {array.shape} is no video; {rule}.")
        if array.dtype != np.uint8 and array.dtype.kind not in "bf":
            raise ValueError(f"Video: pixels of type {array.dtype}; give uint8, or float in 0..1.")
        if array.dtype.kind == "f":
            maps.check_finite("Video", array)
            if array.min() < -1e-3 or array.max() > 1 + 1e-3:
                raise ValueError(
                    f"Video: float pixels lie in {array.min():.4g}..{array.max():.4g}, not in 0..1;"
                    " divide 8-bit values by 255, or give uint8."
                )
        return array

    def _opened(self, content: bytes, every: bool = False) -> tuple[int, np.ndarray]:
        """How many frames a file has, and those that become tokens, or every one.

        Raises Unreadable.
        """
        mode = "L" if self.channels == 1 else "RGB"
        with maps.opened("Video", content, self.max_pixels) as picture:
            count = getattr(picture, "n_frames", 1)
            if count * picture.width * picture.height > self.max_pixels:
                size = f"{count} frames of {picture.width} x {picture.height} pixels"
                raise Unreadable("video_too_large", f"Video: {size}")
            numbers = range(count) if every else np.unique(self._numbers(count))
            frames = []
            for number in numbers:
                if count > 1:
                    picture.seek(int(number))
                frames.append(np.asarray(flat(picture, mode)))
            frames_NHWC = np.stack(frames)
        return count, frames_NHWC if mode == "RGB" else frames_NHWC[..., None]

    @property
    def _grid(self) -> tuple[int, int, int]:
        height, width = self.size
        return self.num_frames // self.frames, height // self.patch, width // self.patch

    @functools.cached_property
    def _image(self) -> Image:
        return self._make_image()

    def _make_image(self) -> Image:
        with maps.said_by("Video"):
            return Image(
                size=self.size,
                patch=self.patch,
                channels=self.channels,
                mean=self.mean,
                std=self.std,
                resize=self.resize,
            )
