"""Templates of `launch/`: files that run as they are, and whose settings the command replaces.

In a script a setting is a line `NAME=value`; in YAML it is a line that ends with `# mmjax: NAME`.
Every value is quoted, so that none can be read as anything but a value.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

__all__ = ["filled", "quoted", "template"]

FOLDER = Path(__file__).parent / "templates"  # in a checkout a link to launch/


def template(name: str) -> str:
    """The text of `launch/NAME`."""
    return (FOLDER / name).read_text()


def filled(name: str, settings: Mapping[str, Any]) -> str:
    """`launch/NAME` with other settings; each must be there."""
    text = template(name)
    for setting, value in settings.items():
        text = (_in_yaml if name.endswith(".yaml") else _in_shell)(text, setting, value)
    return text


def quoted(values: Sequence[str]) -> str:
    """An array of bash."""
    return f"({' '.join(map(shlex.quote, values))})"


def _in_shell(text: str, setting: str, value: str | Sequence[str]) -> str:
    line = f"{setting}={shlex.quote(value) if isinstance(value, str) else quoted(value)}"
    text, count = re.subn(rf"^{setting}=.*$", lambda _: line, text, flags=re.M)
    assert count == 1, f"{setting} stands {count} times in the template"
    return text


def _in_yaml(text: str, setting: str, value: Any) -> str:
    shown = json.dumps(value, ensure_ascii=False)  # JSON is YAML
    pattern = rf"^(\s*(?:- )?(?:[\w./-]+: )?)\S.*(  # mmjax: {setting})$"
    text, count = re.subn(pattern, lambda m: m[1] + shown + m[2], text, flags=re.M)
    assert count, f"{setting} is not in the template"
    return text
