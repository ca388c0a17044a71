"""Bytes of any file or text as a sequence (Xue et al., "ByT5: Towards a token-free future")."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated, Any, ClassVar

import numpy as np

from mmjax.config import ranges
from mmjax.files import confined
from mmjax.modalities import sequence
from mmjax.modalities.modality import Modality
from mmjax.typing import Piece, TokenSpec

__all__ = ["Bytes"]

MAX_FILE = 1 << 30  # bytes of a file named on a command line
NUM_BYTES = 256


@dataclasses.dataclass(frozen=True, kw_only=True)
class Bytes(Modality):
    """One token a byte and an end token; nothing is learned, and no value is refused for its bytes.

    Text becomes its UTF-8 bytes. Bytes beyond `max_tokens` are cut from the end, and counted.
    No byte at all is a value, which is empty.

    Fields:
      max_tokens: largest length, including the end token.
      num_sentinels: ids for masked spans; must exceed the runs of a masked sequence.

    >>> raw = Bytes(num_sentinels=0)
    >>> raw.encode("az").ids_L, raw.decode(raw.encode("az"))
    (array([ 98, 123,   0], dtype=int32), b'az')
    """

    max_tokens: Annotated[int, ranges.Range(2)] = 1024
    num_sentinels: ranges.Natural = 16
    is_finite: ClassVar[bool] = True

    def __post_init__(self):
        ranges.check(self)

    def spec(self, name: str) -> TokenSpec:
        """One sequence stream of 256 ids behind the end token and the sentinels."""
        return sequence.spec(name, NUM_BYTES, self.max_tokens, self.num_sentinels)

    def encode(self, value: bytes | bytearray | str | None) -> Piece | None:
        """Ids int32 (bytes + 1,), the end id last; position (p, p, p).

        Raises ValueError for anything but bytes and text, and for text that is no valid Unicode.
        """
        if value is None:
            return None
        content = self._bytes(value)
        codes = np.frombuffer(content[: self.max_tokens - 1], np.uint8)
        return sequence.piece(codes, self.num_sentinels, num_cut=len(content) - len(codes))

    def measure(self, value: Any) -> dict[str, float]:
        """The number of bytes."""
        return {"bytes": float(len(self._bytes(value)))}

    def adapted(self, value: Any) -> str:
        """How many bytes are cut."""
        count, room = len(self._bytes(value)), self.max_tokens - 1
        return f"{count} bytes are cut to {room}" if count > room else ""

    def decode(self, piece: Piece) -> bytes:
        """The bytes before the end token; sentinels are left out."""
        codes = sequence.codes(piece, "Bytes", self.num_sentinels)
        return codes[(codes >= 0) & (codes < NUM_BYTES)].astype(np.uint8).tobytes()

    def read(self, item: str) -> bytes:
        """The bytes of a file. Raises ValueError if it cannot be read."""
        try:
            return confined.read(item, MAX_FILE)
        except (OSError, ValueError) as error:
            raise ValueError(f"Bytes: {item!r} cannot be read: {error}; give a file.") from error

    def write(self, value: bytes | bytearray | str, stem: str | Path) -> Path:
        """A file of the bytes."""
        path = Path(f"{stem}.bin")
        path.write_bytes(self._bytes(value))
        return path

    def _bytes(self, value: Any) -> bytes:
        if isinstance(value, str):
            try:
                return value.encode()
            except UnicodeError as error:
                raise ValueError(f"Bytes: no valid Unicode ({error}); repair it.") from error
        if not isinstance(value, (bytes, bytearray)):
            shown = repr(value)[:60].replace("\n", " ")
            raise ValueError(f"Bytes: {shown} is neither bytes nor text; give one of them.")
        return bytes(value)
