"""Generation: any streams from any others; the verb `generate` and its Python twin."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mmjax.generate.plan import Decoding

__all__ = ["Decoding", "generate", "sample"]


def sample(view: Any, pieces: Sequence[Any], plan: Sequence[Decoding], seeds: Sequence[int]):
    """Pieces of many samples at once; see `mmjax.generate.sampling`."""
    from mmjax.generate import sampling

    return sampling.sample(view, pieces, plan, seeds)
