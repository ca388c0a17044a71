"""What modalities whose tokens are ids in a row share: the stream, its pieces, and JSON files.

Local ids: the end token, the sentinels of masked spans, then the content, whose numbers from 0 on
are called codes here.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from mmjax.files import confined
from mmjax.typing import Piece, TokenSpec, positions

__all__ = ["END", "MAX_FILE", "codes", "piece", "read", "spec", "write"]

MAX_FILE = 1 << 23  # bytes of JSON
END = 0


def spec(name: str, num_codes: int, max_tokens: int, num_sentinels: int) -> TokenSpec:
    """A sequence stream. `max_tokens` includes the end token."""
    return TokenSpec(
        name=name,
        kind="sequence",
        max_tokens=max_tokens,
        vocab_size=1 + num_sentinels + num_codes,
        first_sentinel=1 if num_sentinels else -1,
        num_sentinels=num_sentinels,
        end_id=END,
    )


def piece(codes_L: Any, num_sentinels: int, num_cut: int = 0) -> Piece:
    """The piece of these codes, with the end token behind them; position (p, p, p)."""
    length = len(codes_L) + 1
    ids_L = np.full(length, END, np.int32)
    ids_L[:-1] = codes_L
    ids_L[:-1] += 1 + num_sentinels
    return Piece(positions(length), ids_L=ids_L, num_cut=num_cut)


def codes(piece: Piece, who: str, num_sentinels: int) -> np.ndarray:
    """Codes int64 (L,) before the end token; those of sentinels are negative.

    Raises ValueError, which begins with `who`, for a piece of another modality.
    """
    if piece.ids_L is None:
        raise ValueError(f"{who}: decode needs ids; this piece holds values of another modality.")
    ids_L = np.asarray(piece.ids_L, np.int64)
    ends = np.flatnonzero(ids_L == END)
    return (ids_L[: ends[0]] if len(ends) else ids_L) - 1 - num_sentinels


def read(who: str, item: str) -> Any:
    """The value in a JSON file, or in JSON text. Raises ValueError when it is neither."""
    try:
        inline = item.lstrip().startswith(("[", "{"))
        return json.loads(item if inline else confined.read(item, MAX_FILE))
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(
            f"{who}: {item!r} cannot be read: {error}; give a JSON file, or JSON text."
        ) from error


def write(value: Any, stem: str | Path) -> Path:
    """A JSON file."""
    path = Path(f"{stem}.json")
    path.write_text(json.dumps(value) + "\n", encoding="utf-8")
    return path
