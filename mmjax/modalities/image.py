"""Images as a grid of flattened patches (Dosovitskiy et al., "An Image is Worth 16x16 Words")."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import io
import math
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Annotated, Any, ClassVar

import numpy as np

from mmjax.config import ranges
from mmjax.files import confined
from mmjax.modalities.modality import Modality, Unreadable
from mmjax.typing import Piece, TokenSpec, positions

__all__ = ["Image", "flat"]

MAX_SIDE = 1 << 16  # pixels: the resize filter of a longer side would take gigabytes
MAX_WIDENED = 1 << 24  # pixels of a tall image after resizing its width
MAX_FILE = 1 << 30  # bytes of a file named on a command line
STRIP = 1 << 20  # pixels that are converted at a time
SCANS = 64  # of a JPEG: each may take as long as the whole image, and encoders write about ten
# Pillow knows more formats, some of which start other programs.
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "JPEG2000", "AVIF")
PLAUSIBLE, SMALL = 2_000, 1 << 22  # pixels per byte; pixels that any file may claim
MARKER = re.compile(rb"\xff([\x01-\xcf\xd8-\xfe])")  # of a JPEG, except those inside scans
Box = tuple[int, int, int, int]  # left, top, right, bottom
Plan = tuple[Box, tuple[int, int]]  # what is cut from an image, and the height and width it gets
ORIENTATION, TURNED = 0x0112, (5, 6, 7, 8)  # of EXIF, and those that exchange height and width
LUMA = np.array([0.299, 0.587, 0.114], np.float32)  # ITU-R BT.601, as Pillow's mode "L"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Image(Modality):
    """One token per patch: (x - mean) / std of its pixels in 0..1, by row, column, channel.

    Images of another size are stretched to `size` (bicubic, antialiased), so that boxes in
    fractions of height and width stay aligned; with `resize="crop"` they are cropped at the centre
    and then scaled. Gray becomes RGB by repetition, RGB becomes gray by BT.601 luma.

    Image files are turned upright (EXIF); the first frame of an animation is used, transparent
    becomes white, 16 bits become 8. A file whose header claims more than `max_pixels`, or more than
    its bytes can encode, is refused. Decoding takes up to 6 bytes per pixel (PNG, TIFF, GIF, BMP),
    10 (JPEG, and rotated images), 12 (AVIF), 18 (WebP) or 20 (JPEG 2000), which is 0.2 to 0.65 GB
    for an image of `max_pixels`.

    Fields:
      size: (height, width) in pixels. patch: side of a patch; divides both.
      resize: "stretch" or "crop".
      channels: 1 = gray, 3 = RGB; with another number only arrays of so many channels are accepted.
      mean, std: one number for all channels, or one per channel.
      max_pixels: largest height times width of an image; a larger one counts as bad.

    >>> import numpy as np
    >>> image = Image(size=(8, 12), patch=4)
    >>> piece = image.encode(np.zeros((8, 12, 3), np.uint8))
    >>> image.spec("image").grid, piece.values_LP.shape, image.decode(piece).shape
    ((1, 2, 3), (6, 48), (8, 12, 3))
    """

    size: tuple[ranges.Count, ranges.Count] = (224, 224)
    patch: ranges.Count = 16
    channels: ranges.Count = 3
    mean: tuple[ranges.Finite, ...] = (0.5,)
    std: tuple[ranges.Positive, ...] = (0.5,)
    resize: str = "stretch"
    max_pixels: Annotated[int, ranges.Range(1, 2**50)] = dataclasses.field(
        default=1 << 25, metadata={"identity": "none"}
    )
    is_finite: ClassVar[bool] = True

    def __post_init__(self):
        ranges.check(self)
        height, width = self.size
        if height % self.patch or width % self.patch:
            raise ValueError(
                f"Image: size={self.size} is not divisible by patch={self.patch}; use multiples of"
                " the patch."
            )
        if self.resize not in ("stretch", "crop"):
            raise ValueError(f"Image: resize={self.resize!r} is no rule; use 'stretch' or 'crop'.")
        for name, value in (("mean", self.mean), ("std", self.std)):
            if len(value) not in (1, self.channels):
                raise ValueError(
                    f"Image: {name}={value} has {len(value)} numbers for channels={self.channels};"
                    " give one, or one a channel."
                )

    def spec(self, name: str) -> TokenSpec:
        """One continuous grid stream."""
        rows, columns = self._grid
        return TokenSpec(
            name=name,
            kind="grid",
            max_tokens=rows * columns,
            width=self.patch * self.patch * self.channels,
            grid=(1, rows, columns),
            piece=(self.patch, self.patch, self.channels),
        )

    def encode(self, value: np.ndarray | bytes | None) -> Piece | None:
        """Patches float32 (rows * columns, patch * patch * channels); position (0, row, column).

        Args:
          value: (H, W) or (H, W, C), uint8 or float in 0..1 (bool counts as 0 and 1); or the bytes
            of an image file; None = absent.

        Raises ValueError for other types, shapes and ranges, NaN and infinity, and its subclass
        Unreadable for bytes that are not a complete image.
        """
        if value is None:
            return None
        image_HWC = self._scaled(value)
        scale, shift = self._affine
        (rows, columns), p = self._grid, self.patch
        values = image_HWC * scale + shift
        values = values.reshape(rows, p, columns, p, self.channels).transpose(0, 2, 1, 3, 4)
        return Piece(positions((1, rows, columns)), values_LP=values.reshape(rows * columns, -1))

    def measure(self, value: Any) -> dict[str, float]:
        """Height, width and their ratio of the upright image; nothing is decoded."""
        if not isinstance(value, bytes):
            rows, columns = _array(value).shape[:2]
        else:
            import PIL.Image

            try:
                with PIL.Image.open(io.BytesIO(value), formats=_formats()) as image:
                    columns, rows = image.size
                    if image.getexif().get(ORIENTATION, 1) in TURNED:
                        columns, rows = rows, columns
            except Exception as error:  # decoders raise anything on broken bytes
                raise Unreadable("no_image", f"Image: {error}") from error
        return {"height": float(rows), "width": float(columns), "aspect": columns / rows}

    def adapted(self, value: np.ndarray | bytes) -> str:
        """The sizes before and after, if an image is stretched or cropped."""
        (height, width), shape = self.size, np.shape(self._pixels(value))[:2]
        if shape == self.size:
            return ""
        done = "stretched" if self.resize == "stretch" else "cropped and scaled"
        return f"{shape[0]} x {shape[1]} pixels are {done} to {height} x {width}"

    def decode(self, piece: Piece) -> np.ndarray:
        """Pixels float32 (height, width, channels), clipped to 0..1."""
        (rows, columns), p = self._grid, self.patch
        width = p * p * self.channels
        if piece.values_LP is None or np.shape(piece.values_LP) != (rows * columns, width):
            raise ValueError(
                f"Image: decode needs values of shape {(rows * columns, width)}; this piece is not"
                f" of an Image with size={self.size}, patch={p}, channels={self.channels}."
            )
        scale, shift = self._affine
        values = np.asarray(piece.values_LP, np.float32)
        values = values.reshape(rows, columns, p, p, self.channels).transpose(0, 2, 1, 3, 4)
        return np.clip((values.reshape(*self.size, self.channels) - shift) / scale, 0.0, 1.0)

    def read(self, item: str) -> np.ndarray:
        """Pixels uint8 of an image file: (H, W) for one channel, else (H, W, 3), upright.

        Raises ValueError if the file is missing or not an image.
        """
        try:
            return self._pixels(confined.read(item, MAX_FILE))
        except (OSError, confined.Refused, Unreadable) as error:
            raise ValueError(
                f"Image: {item!r} cannot be read: {error}; give an image file."
            ) from error

    def write(self, value: np.ndarray | bytes, stem: str | Path) -> Path:
        """Writes a PNG file of pixels as `decode` gives them; gray for one channel.

        Raises ValueError for other types, shapes and ranges, and unless there are 1 or 3 channels.
        """
        import PIL.Image

        image_HWC = _checked(_array(self._pixels(value)))
        if image_HWC.shape[2] not in (1, 3):
            raise ValueError(
                f"Image: shape {image_HWC.shape} cannot be written as PNG; give 1 or 3 channels."
            )
        pixels = np.round(image_HWC.clip(0, 1) * 255).astype(np.uint8)
        path = Path(f"{stem}.png")
        PIL.Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels).save(path)
        return path

    @property
    def _grid(self) -> tuple[int, int]:
        return self.size[0] // self.patch, self.size[1] // self.patch

    @functools.cached_property
    def _affine(self) -> tuple[np.ndarray, np.ndarray]:
        mean, std = np.asarray(self.mean, np.float32), np.asarray(self.std, np.float32)
        return 1 / std, -mean / std

    def _pixels(self, value: Any) -> Any:
        """Pixels uint8 of the bytes of an image file; arrays are returned unchanged.

        Raises Unreadable.
        """
        if not isinstance(value, bytes):
            return value
        with self.opened(value) as image:
            channels = 1 if self.channels == 1 else 3
            pixels = np.empty((image.height, image.width, channels), np.uint8)
            for first, strip in _strips(image, self._mode):
                pixels[first : first + len(strip)] = strip
            return pixels if channels == 3 else pixels[:, :, 0]

    @property
    def _mode(self) -> str:
        return "L" if self.channels == 1 else "RGB"

    @contextlib.contextmanager
    def opened(self, content: bytes) -> Iterator[Any]:
        """A file as an upright Pillow image. Raises Unreadable, also for errors inside `with`."""
        import PIL.Image
        import PIL.ImageOps

        try:
            with PIL.Image.open(io.BytesIO(content), formats=_formats()) as image:
                most = max(PLAUSIBLE * len(content), SMALL)
                self._check(*image.size, most)
                if image.format in ("JPEG", "MPO") and _scans(content) > SCANS:
                    raise PIL.Image.DecompressionBombError(f"more than {SCANS} scans")
                PIL.ImageOps.exif_transpose(image, in_place=True)
                self._check(*image.size, most)
                yield image
        except PIL.Image.DecompressionBombError as error:
            raise Unreadable("image_too_large", f"Image: {error}") from error
        except Unreadable:
            raise
        except Exception as error:  # decoders raise anything on broken bytes
            whole = not isinstance(error, PIL.UnidentifiedImageError)
            reason = "broken_image" if whole else "no_image"
            detail = "bytes of no known image format" if reason == "no_image" else error
            raise Unreadable(reason, f"Image: {detail}") from error

    def _check(self, width: int, height: int, most: float = math.inf) -> None:
        """Refuses sizes that take too much memory; `most`: pixels that the bytes can encode."""
        tall = width < self.size[1] and height * self.size[1] > MAX_WIDENED
        if width * height > min(self.max_pixels, most) or max(width, height) > MAX_SIDE or tall:
            raise Unreadable("image_too_large", f"Image: {width} x {height} pixels")

    def reduced(self, value: Any, zoom: float = 1.0, around: int = 1) -> np.ndarray:
        """Pixels (H, W, channels) to cut random crops from; uint8 unless the value has floats.

        Args:
          zoom: of the part that `encode` sees, which is at most that many times `size`.
          around: height and width of the result over those of this part, as far as there is more.
        """

        def plan(rows: int, columns: int) -> Plan:
            left, top, right, bottom = self.box(rows, columns)
            sides = np.array([bottom - top, right - left])
            high, wide = np.minimum((rows, columns), around * sides)
            top, left = (rows - high) // 2, (columns - wide) // 2
            scale = np.minimum(1, zoom * np.array(self.size) / sides)
            height, width = np.maximum(1, np.round((high, wide) * scale)).astype(int).tolist()
            return (int(left), int(top), int(left + wide), int(top + high)), (height, width)

        image_HWC = self._scaled(value, plan)
        if isinstance(value, bytes) or np.asarray(value).dtype == np.uint8:
            return (image_HWC * 255 + 0.5).astype(np.uint8)
        return image_HWC

    def _scaled(self, value: Any, plan: Callable[[int, int], Plan] | None = None) -> np.ndarray:
        """An image, or the bytes of one, as float32 (height, width, channels) in 0..1.

        Args:
          plan: what is cut from an image of these rows and columns, and its size; None = `box`, at
            `size`.
        """
        is_exact = plan is None
        plan = plan or (lambda rows, columns: (self.box(rows, columns), self.size))
        if isinstance(value, bytes):
            if self.channels not in (1, 3):
                raise ValueError(
                    f"Image: a picture in a file does not have channels={self.channels}; give"
                    f" arrays (H, W, {self.channels}), or set channels to 1 or 3."
                )
            with self.opened(value) as image:
                if image.format == "JPEG" and not is_exact:  # decoding a half, quarter or eighth
                    (left, top, right, bottom), (height, width) = plan(image.height, image.width)
                    share = width / (right - left), height / (bottom - top)
                    least = math.ceil(image.width * share[0]), math.ceil(image.height * share[1])
                    image.draft(None, least)
                box, size = plan(image.height, image.width)
                return self._resized(_strips(image, self._mode, box), box, size)
        image_HWC = _array(value)
        # Most arrays need no scaling.
        if is_exact and image_HWC.shape == (*self.size, self.channels):
            return _checked(image_HWC)
        rows, columns, channels = image_HWC.shape
        self._check(columns, rows)
        if channels != self.channels and (channels, self.channels) not in ((1, 3), (3, 1)):
            raise ValueError(
                f"Image: {channels} channels do not become channels={self.channels}; convert first"
                " (an alpha channel: Pillow's convert('RGB')), or set channels."
            )
        box, size = plan(rows, columns)
        left, top, right, bottom = box
        image_HWC = image_HWC[top:bottom, left:right]
        step = max(1, STRIP // (right - left))
        strips = ((i, image_HWC[i : i + step]) for i in range(0, bottom - top, step))
        return self._resized(strips, box, size)

    def box(self, rows: int, columns: int) -> Box:
        """The part of an image that `encode` sees (left, top, right, bottom): all, or the largest
        centre crop with the aspect ratio of `size`."""
        if self.resize != "crop":
            return 0, 0, columns, rows
        height, width = self.size
        scale = min(rows / height, columns / width)
        h, w = max(1, round(height * scale)), max(1, round(width * scale))
        top, left = (rows - h) // 2, (columns - w) // 2
        return left, top, left + w, top + h

    def _converted(self, image_HWC: np.ndarray) -> np.ndarray:
        image_HWC = _checked(image_HWC)
        channels = image_HWC.shape[2]
        if channels == self.channels:
            return image_HWC
        if channels == 1:
            return image_HWC.repeat(self.channels, axis=2)
        return (image_HWC @ LUMA)[:, :, None]

    def _resized(
        self, strips: Iterable[tuple[int, np.ndarray]], box: Box, size: tuple[int, int]
    ) -> np.ndarray:
        """Resizes what `box` cut from an image, given as strips with their first rows.

        Bicubic filters run along rows first, so strips give the same result as the whole image.
        """
        rows, columns = box[3] - box[1], box[2] - box[0]
        height, width = size
        wide = np.empty((rows, width, self.channels), np.float32)
        for first, strip in strips:
            part = self._converted(strip)
            wide[first : first + len(part)] = _filtered(part, len(part), width)
        if (rows, columns) == (height, width):
            return wide
        return _filtered(wide, height, width).clip(0.0, 1.0)  # bicubic overshoots at edges


def _filtered(image_HWC: np.ndarray, height: int, width: int) -> np.ndarray:
    """Resizes: bicubic, antialiased, in float, which Pillow supports for one channel only."""
    import PIL.Image

    if image_HWC.shape[:2] == (height, width):
        return image_HWC
    resized = np.empty((height, width, image_HWC.shape[2]), np.float32)
    for channel in range(image_HWC.shape[2]):
        plane = PIL.Image.fromarray(np.ascontiguousarray(image_HWC[:, :, channel]))
        plane = plane.resize((width, height), PIL.Image.Resampling.BICUBIC)
        resized[:, :, channel] = np.asarray(plane)
    return resized


def _strips(image: Any, mode: str, box: tuple[int, int, int, int] | None = None) -> Iterator[Any]:
    """Strips of a Pillow image, uint8 (rows, width, channels), each with its first row."""
    left, top, right, bottom = box or (0, 0, *image.size)
    step = max(1, STRIP // (right - left))
    for first in range(top, bottom, step):
        place = (left, first, right, min(first + step, bottom))
        part = image if place == (0, 0, *image.size) else image.crop(place)
        pixels = np.asarray(flat(part, mode))
        yield first - top, pixels[:, :, None] if pixels.ndim == 2 else pixels


@functools.cache
def _formats() -> list[str]:
    import PIL.Image

    PIL.Image.init()
    return [name for name in FORMATS if name in PIL.Image.OPEN]


def _scans(content: bytes) -> int:
    """Number of scans of a JPEG, counted by markers; SCANS + 1 stands for more."""
    at, count = 2, 0
    while count <= SCANS and (marker := MARKER.search(content, at)):
        kind, at = marker[1][0], marker.end()
        if kind == 0xD9:  # bytes after the end are not decoded
            break
        count += kind == 0xDA
        if kind not in (0x01, 0xD8):
            at += max(2, int.from_bytes(content[at : at + 2], "big"))
    return count


def flat(image: Any, mode: str) -> Any:
    """A Pillow image converted to another 8-bit mode, on white where it is transparent."""
    import PIL.Image

    if image.mode.startswith("I"):  # Pillow would clip 16 bits to 8
        wide = np.asarray(image).astype(np.int64)
        if wide.min() < 0 or wide.max() > 0xFFFF:
            raise ValueError(f"pixels in {wide.min()}..{wide.max()}, not in 16 bits")
        image = PIL.Image.fromarray(((wide + 128) // 257).astype(np.uint8))
    if image.mode == "F":
        raise ValueError("pixels are floating-point numbers of no known range")
    if image.has_transparency_data:
        white = PIL.Image.new("RGBA", image.size, "white")
        image = PIL.Image.alpha_composite(white, image.convert("RGBA"))
    return image if image.mode == mode else image.convert(mode)


def _array(value: Any) -> np.ndarray:
    """The image as (H, W, C). Raises ValueError for other shapes."""
    image = np.asarray(value)
    if image.ndim == 2:
        image = image[:, :, None]
    if image.ndim != 3 or 0 in image.shape:
        raise ValueError(
            f"Image: an array of shape {np.shape(value)} is no image; give (H, W) or (H, W, C)."
        )
    if image.dtype != np.uint8 and image.dtype.kind not in "bf":
        raise ValueError(f"Image: pixels of type {image.dtype}; give uint8, or float in 0..1.")
    return image


def _checked(image: np.ndarray) -> np.ndarray:
    """Pixels as float32 in 0..1. Raises ValueError for other ranges."""
    if image.dtype == np.uint8:
        return image * np.float32(1 / 255)
    image = image.astype(np.float32)
    low, high = image.min(), image.max()
    if not (np.isfinite(low) and np.isfinite(high)):
        message = "Image: pixels hold NaN or infinity; repair or leave out this example."
        raise Unreadable("not_finite", message)
    if low < -1e-3 or high > 1 + 1e-3:
        raise ValueError(
            f"Image: float pixels lie in {low:.4g}..{high:.4g}, not in 0..1; divide 8-bit values by"
            " 255, or give uint8."
        )
    return image
