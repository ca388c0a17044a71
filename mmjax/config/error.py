"""The error for a wrong command line or config, and suggestions for misspelled names."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

__all__ = ["ConfigError", "nearest"]


class ConfigError(ValueError):
    """The command line or config is wrong; the message names field, value, rule and remedy."""


def nearest(name: str, names: Iterable[str]) -> str:
    """`; did you mean 'x'?`, or the known names, to append to "no such ..."."""
    names = sorted(set(names))
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.6)
    if close:
        return f"; did you mean {close[0]!r}?"
    return f"; there is {', '.join(names)}." if names else "; there is none."
