"""Generation: any streams from any others; the verb `generate` and its Python twin."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mmjax.config.code_file import Code
from mmjax.generate.plan import Decoding

__all__ = ["Decoding", "generate", "sample", "write"]


def generate(
    view: Any,
    given: Mapping[str, Any],
    plan: Sequence[Decoding | str],
    *,
    num: int = 1,
    seed: int = 0,
    code: Code = None,
) -> dict[str, list[Any]]:
    """`num` samples of raw values from raw values; see `mmjax.generate.verbs`."""
    from mmjax.generate import verbs

    return verbs.generate(view, given, plan, num=num, seed=seed, code=code)


def write(
    path: str, given: Mapping[str, str], want: Sequence[str], out: str | Path, **settings: Any
) -> dict[str, Any]:
    """Files from files, with a sheet to look at; see `mmjax.generate.verbs`."""
    from mmjax.generate import verbs

    return verbs.write(path, given, want, out, **settings)


def sample(
    view: Any,
    pieces: Sequence[Mapping[str, Any]],
    plan: Sequence[Decoding],
    seeds: Sequence[int],
) -> list[dict[str, Any]]:
    """Pieces of many samples at once; see `mmjax.generate.sampling`."""
    from mmjax.generate import sampling

    return sampling.sample(view, pieces, plan, seeds)
