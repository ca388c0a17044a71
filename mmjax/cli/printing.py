"""Output formats of the commands: JSON, tables, trees."""

from __future__ import annotations

import json
from typing import Any

from mmjax.console import inline, visible

__all__ = ["as_json", "inline", "table", "tree", "visible"]


def as_json(value: Any) -> str:
    """Indented JSON, with arrays of one number as numbers."""
    return json.dumps(value, indent=2, default=lambda v: v.item() if hasattr(v, "item") else str(v))


def table(scores: dict[str, Any]) -> str:
    """Lines of `name value (chance, simple methods)`."""
    flat: dict[str, Any] = {}

    def walk(path: str, value: Any) -> None:
        if isinstance(value, dict) and "value" not in value:
            for key, inner in value.items():
                walk(f"{path}/{key}" if path else str(key), inner)
        else:
            flat[path] = value

    walk("", scores)
    width = max(map(len, flat), default=0)
    lines = []
    for name, value in flat.items():
        levels = (
            {k: v for k, v in value.items() if v is not None} if isinstance(value, dict) else {}
        )
        compared = ", ".join(f"{m} {level:.4g}" for m, level in levels.items() if m != "value")
        number = value["value"] if isinstance(value, dict) else value
        shown = f"{number:.4f}" if isinstance(number, float) else str(number)
        lines.append(f"{name:{width}}  {shown}" + (f"  ({compared})" if compared else ""))
    return visible("\n".join(lines))


def tree(value: Any, indent: str = "") -> str:
    """Nested dicts as indented lines; dicts in a list are numbered."""
    lines = []
    for key, inner in value.items():
        if isinstance(inner, dict) and inner:
            lines += [f"{indent}{key}", tree(inner, f"{indent}  ")]
        elif isinstance(inner, list) and inner and all(isinstance(i, dict) for i in inner):
            numbered = {str(i): item for i, item in enumerate(inner, 1)}
            lines += [f"{indent}{key}", tree(numbered, f"{indent}  ")]
        else:
            shown = ", ".join(map(str, inner)) if isinstance(inner, (list, tuple)) else inner
            shown = f"{shown:,}" if type(shown) is int else shown
            lines.append(f"{indent}{key:{max(1, 24 - len(indent))}} {shown}")
    return visible("\n".join(lines))
