"""Raw images, sounds and texts to arrays, exactly as the model saw them in training.

NumPy, Pillow, soundfile, scipy and sentencepiece only, and PyAV for MP4, WebM and videos. Shape
letters: L tokens, P numbers of a token.
"""

import math
from pathlib import Path

import numpy as np

from .sound_mmjax import MARGIN, decode, resampled

# Pillow knows more; for some of those it starts other programs, such as Ghostscript.
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "JPEG2000", "AVIF")
LUMA = np.array([0.299, 0.587, 0.114], np.float32)  # ITU-R BT.601, as Pillow's mode "L"
QUIET = 1e-8  # band power about 65 dB below a full-scale tone: quieter clips are not raised
PADDING = -1  # of token ids, behind the end of a text


class Image:
    """(L, P): (x - mean) / std of the pixels of each patch, by row, column, channel.

    An image of another size is stretched, or with resize="crop" cut from the middle and scaled.
    """

    def __init__(self, size, patch, channels, mean, std, resize="stretch"):
        self.size, self.patch, self.channels = tuple(size), patch, channels
        self.resize = resize
        self.mean, self.std = np.asarray(mean, np.float32), np.asarray(std, np.float32)

    def __call__(self, value):
        """An image file, a Pillow image, or (H, W[, C]) as uint8 or as float in 0..1."""
        image = self._resized(self._converted(_pixels(value, self.channels)))
        (height, width), p = self.size, self.patch
        values = image * (1 / self.std) + (-self.mean / self.std)
        values = values.reshape(height // p, p, width // p, p, self.channels)
        return values.transpose(0, 2, 1, 3, 4).reshape(-1, p * p * self.channels)

    def _converted(self, image):
        channels = image.shape[2]
        if channels == self.channels:
            return image
        if channels == 1:
            return image.repeat(self.channels, axis=2)
        if (channels, self.channels) == (3, 1):
            return (image @ LUMA)[:, :, None]
        raise ValueError(f"image: {channels} channels do not become {self.channels}.")

    def _resized(self, image):
        height, width = self.size
        if self.resize == "crop":
            image = _cropped(image, height, width)
        if image.shape[:2] == (height, width):
            return image
        import PIL.Image

        resized = np.empty((height, width, self.channels), np.float32)
        for channel in range(self.channels):
            plane = PIL.Image.fromarray(np.ascontiguousarray(image[:, :, channel]))
            plane = plane.resize((width, height), PIL.Image.Resampling.BICUBIC)
            resized[:, :, channel] = np.asarray(plane)
        return resized.clip(0.0, 1.0)  # bicubic overshoots at edges


def _pixels(value, channels):
    """float32 (H, W, C) in 0..1."""
    import PIL.Image
    import PIL.ImageOps

    if isinstance(value, (str, Path)):
        PIL.Image.init()
        known = [name for name in FORMATS if name in PIL.Image.OPEN]
        with PIL.Image.open(value, formats=known) as opened:
            opened.load()
            return _pixels(opened, channels)
    if isinstance(value, PIL.Image.Image):
        value = _flat(PIL.ImageOps.exif_transpose(value), "L" if channels == 1 else "RGB")
    image = np.asarray(value)
    image = image[:, :, None] if image.ndim == 2 else image
    if image.ndim != 3 or 0 in image.shape:
        raise ValueError(f"image: shape {np.shape(value)} is not (H, W) or (H, W, C).")
    if image.dtype == np.uint8:
        return image * np.float32(1 / 255)
    if image.dtype != np.bool_ and not np.issubdtype(image.dtype, np.floating):
        raise ValueError(f"image: pixels of type {image.dtype}; give uint8, or float in 0..1.")
    image = image.astype(np.float32)
    if not (image.min() >= -1e-3 and image.max() <= 1 + 1e-3):  # also NaN
        raise ValueError("image: float pixels must lie in 0..1.")
    return image


def _flat(image, mode):
    """A Pillow image as uint8, on white where it is transparent."""
    import PIL.Image

    if image.mode.startswith("I"):  # Pillow would clip 16 bits to 8
        wide = np.asarray(image).astype(np.int64)
        if wide.min() < 0 or wide.max() > 0xFFFF:
            raise ValueError("image: pixels are not in 16 bits.")
        image = PIL.Image.fromarray(((wide + 128) // 257).astype(np.uint8))
    if image.mode == "F":
        raise ValueError("image: pixels are floating-point numbers of no known range.")
    if image.has_transparency_data:
        white = PIL.Image.new("RGBA", image.size, "white")
        image = PIL.Image.alpha_composite(white, image.convert("RGBA"))
    return image.convert(mode)


def _cropped(image, height, width):
    """The largest middle part whose sides are in the ratio of height to width."""
    rows, columns = image.shape[:2]
    scale = min(rows / height, columns / width)
    h, w = max(1, round(height * scale)), max(1, round(width * scale))
    top, left = (rows - h) // 2, (columns - w) // 2
    return image[top : top + h, left : left + w]


class Audio:
    """(L, P): frames of a log-mel spectrogram, in -2..2 below the loudest band of the clip."""

    def __init__(self, sample_rate, seconds, num_mels, window, hop, patch_frames, dynamic_range):
        self.sample_rate, self.num_mels = sample_rate, num_mels
        self.window, self.hop, self.dynamic_range = window, hop, dynamic_range
        frames = math.ceil(round(seconds * sample_rate) / hop)
        self.num_tokens = -(-frames // patch_frames)
        self.num_frames = self.num_tokens * patch_frames
        self.fft_size = 1 << (window - 1).bit_length()
        hann = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(window) / window)
        self.hann = (hann * (2 / hann.sum())).astype(np.float32)
        self.bands = self._mel_bands()

    def __call__(self, value, sampling_rate=None):
        """A file of a sound or a video, or a waveform, (samples[, channels]).

        sampling_rate: of the waveform; that of the model if None.
        """
        seconds = self.num_frames * self.hop / self.sample_rate
        if isinstance(value, (str, Path)):
            samples, rate, _ = decode(Path(value).read_bytes(), seconds)
            samples = _waveform(samples)
        else:
            rate = self.sample_rate if sampling_rate is None else sampling_rate
            samples = _waveform(value)[: math.ceil((seconds + MARGIN) * rate)]
        samples = resampled(samples, rate, self.sample_rate)
        values = np.full((self.num_frames, self.num_mels), -2.0, np.float32)
        level = self._level(samples[: self.num_frames * self.hop])
        values[: len(level)] = level
        return values.reshape(self.num_tokens, -1)

    def _level(self, samples):
        left = (self.window - self.hop) // 2
        count = min(-(-(len(samples) + left) // self.hop), self.num_frames)
        padded = np.zeros(left + len(samples) + self.window, np.float32)
        padded[left : left + len(samples)] = samples
        frames = np.lib.stride_tricks.sliding_window_view(padded, self.window)
        frames = frames[:: self.hop][:count]
        spectrum = np.fft.rfft(frames * self.hann, self.fft_size)
        power = spectrum.real**2 + spectrum.imag**2
        band = (power[:, None, :] @ self.bands)[:, 0]
        band *= np.float32(1 / max(band.max(initial=0.0), QUIET))
        scale = self.dynamic_range / 10  # powers of ten
        np.maximum(band, np.float32(10**-scale), out=band)
        level = np.log10(band) * np.float32(4 / scale) + np.float32(2)
        return np.maximum(level, np.float32(-2))

    def _mel_bands(self):
        """Triangles over FFT bins on Slaney's mel scale, each of area 1 in Hz."""
        bins = np.arange(self.fft_size // 2 + 1)[:, None] * (self.sample_rate / self.fft_size)
        top = _mel(self.sample_rate / 2)
        edges = np.array([_hertz(m) for m in np.linspace(0, top, self.num_mels + 2)])
        low, centre, high = edges[:-2], edges[1:-1], edges[2:]
        rise, fall = (bins - low) / (centre - low), (high - bins) / (high - centre)
        bands = np.maximum(0, np.minimum(rise, fall)) * (2 / (high - low))
        return bands.astype(np.float32)


def _mel(hertz):
    return 3 * hertz / 200 if hertz < 1000 else 15 + 27 * math.log(hertz / 1000) / math.log(6.4)


def _hertz(mel):
    return 200 * mel / 3 if mel < 15 else 1000 * math.exp((mel - 15) * math.log(6.4) / 27)


def _waveform(value):
    samples = np.asarray(value)
    if samples.ndim not in (1, 2):
        raise ValueError(f"sound: shape {samples.shape} is not (samples,) or (samples, channels).")
    if samples.size == 0:
        return np.zeros(0, np.float32)
    if samples.dtype in (np.int16, np.int32):
        samples = samples * np.float32(1 / -float(np.iinfo(samples.dtype).min))
    elif not np.issubdtype(samples.dtype, np.floating):
        raise ValueError(f"sound: samples of type {samples.dtype}; give float, int16 or int32.")
    if samples.ndim == 2:
        samples = samples.mean(axis=int(samples.shape[0] >= samples.shape[1]))
    samples = samples.astype(np.float32, copy=False)
    if not np.isfinite(samples).all():
        raise ValueError("sound: samples hold NaN or infinity.")
    return samples


class Text:
    """(L,): ids of sentencepiece pieces and an end id, cut to max_tokens."""

    def __init__(self, max_tokens, end_id, model_file):
        self.max_tokens, self.end_id, self.model_file = max_tokens, end_id, model_file
        self.pieces = None

    def load(self, path):
        """Reads the sentencepiece model."""
        import sentencepiece

        self.pieces = sentencepiece.SentencePieceProcessor(model_file=str(path))

    def __call__(self, value):
        value = value.decode() if isinstance(value, bytes) else value
        value = value.removeprefix("\ufeff").replace("\r\n", "\n").rstrip("\r\n")
        ids = self.pieces.encode(value)[: self.max_tokens - 1]
        return np.asarray([*ids, self.end_id], np.int64)


KINDS = {"image": Image, "audio": Audio, "text": Text}


def make(kind, **fields):
    """The preprocessing of one stream."""
    return KINDS[kind](**fields)


def stack(values):
    """Equal arrays to one array; ids of several lengths are padded with -1."""
    if values[0].ndim > 1:
        return np.stack(values)
    length = max(map(len, values))
    return np.stack([np.pad(v, (0, length - len(v)), constant_values=PADDING) for v in values])
