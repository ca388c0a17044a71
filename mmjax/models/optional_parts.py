"""Optional parts of an autoencoder: which tasks may train them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

ALWAYS = ("encoder", "decoder")


def check(task: Any, parts: Mapping[str, Any]) -> None:
    """Raises ValueError for a task that calls a part which is not there, or that trains a part
    together with others: what helps one of two adversaries harms the other."""
    for part in task.objective.parts:
        if part not in parts:
            raise ValueError(
                f"objective {type(task.objective).__name__} needs a {part}, but the model has"
                f" {part}=None; give the Autoencoder one."
            )
    held = [part for part in (*ALWAYS, *parts) if reaches(task.trainable, part)]
    if len(held) > 1 and set(held) - set(ALWAYS):
        raise ValueError(
            f"trainable={task.trainable} holds parameters of {' and '.join(held)}, but an optional"
            " part is trained by a task of its own; use patterns of other parts here, such as"
            f" {tuple(f'{part}/**' for part in ALWAYS)}."
        )


def reaches(patterns: tuple[str, ...], part: str) -> bool:
    """Whether a pattern may match a parameter of a part: up to its first wildcard they agree."""
    starts = [re.split(r"[*?\[]", pattern)[0] for pattern in patterns]
    return any(f"{part}/".startswith(s) or s.startswith(f"{part}/") for s in starts)
