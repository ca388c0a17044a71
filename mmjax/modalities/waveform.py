"""Sound as patches of its samples."""

from __future__ import annotations

import dataclasses
import functools
import math
from pathlib import Path
from typing import Annotated, Any, ClassVar

import numpy as np

from mmjax.config import ranges
from mmjax.modalities import maps
from mmjax.modalities.audio import Audio
from mmjax.modalities.modality import Modality
from mmjax.typing import Piece, TokenSpec, positions

__all__ = ["Waveform"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Waveform(Modality):
    """One token per `patch` samples of one channel, as they are (-1..1 of full scale).

    Nothing is lost, phases included, and nothing is made equal: neither loudness nor length.
    Shorter clips have fewer tokens, of which the last is filled up with zeros; longer ones are cut
    at the end, and the tokens counted. For spectrograms see `Audio` and `LogMel`.

    Fields:
      sample_rate: of the tokens, in Hz. seconds: largest length, rounded up to whole patches.
      patch: samples of one token.
      scale: sample that becomes 1; speech has a standard deviation of about 0.1.
      max_samples: as of `Audio`.

    >>> import numpy as np
    >>> sound = Waveform(seconds=0.1, patch=160)
    >>> piece = sound.encode(np.sin(np.arange(500, dtype=np.float32)))
    >>> sound.spec("sound").max_tokens, piece.values_LP.shape, sound.decode(piece).shape
    (10, (4, 160), (640,))
    """

    sample_rate: ranges.Count = 16_000
    seconds: ranges.Positive = 10.0
    patch: ranges.Count = 320
    scale: ranges.Positive = 1.0
    max_samples: Annotated[int, ranges.Range(1, 2**50)] = dataclasses.field(
        default=1 << 26, metadata={"identity": "none"}
    )
    is_finite: ClassVar[bool] = True

    def __post_init__(self):
        ranges.check(self)

    def spec(self, name: str) -> TokenSpec:
        """One continuous grid stream, along time."""
        tokens = self._num_tokens
        return TokenSpec(
            name=name, kind="grid", max_tokens=tokens, width=self.patch, grid=(tokens, 1, 1)
        )

    def encode(self, value: Any) -> Piece | None:
        """Samples float32 (tokens, patch), at least one token; position (t, 0, 0).

        Args:
          value: as of `Audio.encode`. None, and a video without sound, are absent.

        Raises ValueError as `Audio.encode` does.
        """
        most = self._num_tokens
        with maps.said_by("Waveform", of="Audio"):
            heard = self._audio.heard(value, most * self.patch / self.sample_rate)
        if heard is None:
            return None
        samples, total = heard
        wanted = max(1, -(-total // self.patch))
        tokens = min(wanted, most)
        values = np.zeros(tokens * self.patch, np.float32)
        kept = samples[: len(values)]
        values[: len(kept)] = kept / np.float32(self.scale)
        values_LP = values.reshape(tokens, self.patch)
        return Piece(positions((tokens, 1, 1)), values_LP=values_LP, num_cut=wanted - tokens)

    def measure(self, value: Any) -> dict[str, float]:
        """As of `Audio`."""
        return self._audio.measure(value)

    def adapted(self, value: Any) -> str:
        """As of `Audio`."""
        return self._audio.adapted(value)

    def decode(self, piece: Piece) -> np.ndarray:
        """Samples float32 (tokens * patch,)."""
        values = np.asarray([] if piece.values_LP is None else piece.values_LP, np.float32)
        if values.ndim != 2 or values.shape[1] != self.patch:
            raise ValueError(
                f"Waveform: decode needs values of shape (tokens, {self.patch}); this piece is not"
                " of this Waveform."
            )
        return values.reshape(-1) * np.float32(self.scale)

    def read(self, item: str) -> np.ndarray:
        """Waveform float32 of a sound file, at `sample_rate`. Raises ValueError."""
        with maps.said_by("Waveform", of="Audio"):
            return self._audio.read(item)

    def write(self, value: Any, stem: str | Path) -> Path:
        """A WAV file (16 bit, one channel) of a waveform. Raises ValueError for other arrays."""
        return self._audio.write(np.ravel(value), stem)

    @functools.cached_property
    def _audio(self) -> Audio:
        """What reads sounds; its bands are not used."""
        return Audio(
            sample_rate=self.sample_rate,
            seconds=self._num_tokens * self.patch / self.sample_rate,
            num_mels=1,
            max_samples=self.max_samples,
        )

    @property
    def _num_tokens(self) -> int:
        return math.ceil(round(self.seconds * self.sample_rate) / self.patch)
