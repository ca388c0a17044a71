"""What the commands print, and how text of strangers is shown: nothing in it acts or hides."""

from __future__ import annotations

import json
import re
from typing import Any

__all__ = ["as_json", "inline", "table", "tree", "visible"]

# What moves a cursor, colours, retitles or turns the direction of what is shown, and the halves of
# surrogate pairs, which no terminal or file can take.
HIDDEN = re.compile(
    "[\\x00-\\x08\\x0b-\\x1f\\x7f-\\x9f\\u061c\\u200e\\u200f\\u202a-\\u202e\\u2066-\\u2069"
    "\\ud800-\\udfff]"
)
SPACED = re.compile("[\\n\\t\\u2028\\u2029]")


def visible(text: str) -> str:
    """Text with its control and direction characters spelled out, `\\x1b`, `\\u202e`.

    For whatever leaves for a terminal or a page. Newlines and tabs stay: they are ours.
    """
    return HIDDEN.sub(_spelled, text)


def inline(text: str, room: int = 500) -> str:
    """A stranger's text as part of a line of ours: without newlines, and not without end."""
    shown = visible(SPACED.sub(_spelled, text[: room + 1]))
    return shown if len(shown) <= room else f"{shown[: room - 3]}..."


def _spelled(found: re.Match[str]) -> str:
    code = ord(found[0])
    return {9: "\\t", 10: "\\n"}.get(code) or (f"\\x{code:02x}" if code < 256 else f"\\u{code:04x}")


def as_json(value: Any) -> str:
    """Indented, with arrays of one number as numbers."""
    return json.dumps(value, indent=2, default=lambda v: v.item() if hasattr(v, "item") else str(v))


def table(scores: dict[str, Any]) -> str:
    """`name  value  (chance)`, one a line."""
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
        chance = value.get("chance") if isinstance(value, dict) else None
        number = value["value"] if isinstance(value, dict) else value
        shown = f"{number:.4f}" if isinstance(number, float) else str(number)
        lines.append(f"{name:{width}}  {shown}" + (f"  (chance {chance:.4g})" if chance else ""))
    return visible("\n".join(lines))


def tree(value: Any, indent: str = "") -> str:
    """Nested dicts as indented lines, items of a list of dicts by number."""
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
