"""The workdir that a config is made for, so that what was found at the first start is found there.

Of its own, since every command line that trains imports it, and few configs ask for sizes.
"""

from __future__ import annotations

import contextlib
import contextvars
import os
from collections.abc import Iterator

__all__ = ["making_config_for", "workdir"]

_workdir: contextvars.ContextVar[str] = contextvars.ContextVar("workdir", default="")


@contextlib.contextmanager
def making_config_for(folder: str | os.PathLike[str]) -> Iterator[None]:
    """Inside, `workdir` is this folder."""
    before = _workdir.set(os.fspath(folder))
    try:
        yield
    finally:
        _workdir.reset(before)


def workdir() -> str:
    """The folder; empty = none."""
    return _workdir.get()
