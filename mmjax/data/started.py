"""What a config is made for: a run in a workdir, so that what was found at its first start is found
there, or a reader of the data, so that data in a bucket may be copied to be measured.

Of its own, since every command line that trains imports it, and few configs ask for sizes.
"""

from __future__ import annotations

import contextlib
import contextvars
import os
from collections.abc import Iterator

__all__ = ["making_config_for", "reads_data", "tokenizes", "tokenizing", "workdir"]

_tokenizes: contextvars.ContextVar[bool] = contextvars.ContextVar("tokenizes", default=False)
_workdir: contextvars.ContextVar[str | None] = contextvars.ContextVar("workdir", default=None)


@contextlib.contextmanager
def making_config_for(folder: str | os.PathLike[str] | None) -> Iterator[None]:
    """Inside, `workdir` is this folder, empty = none, and the data are about to be read; of None
    they are not."""
    before = _workdir.set(folder if folder is None else os.fspath(folder))
    try:
        yield
    finally:
        _workdir.reset(before)


def workdir() -> str:
    """The folder; empty = none."""
    return _workdir.get() or ""


def reads_data() -> bool:
    """Whether the config is made for what reads the data anyway, unlike a plan or a listing."""
    return _workdir.get() is not None


@contextlib.contextmanager
def tokenizing() -> Iterator[None]:
    """Inside, a config is made for `mmjax tokenize`, which augments before it computes codes."""
    before = _tokenizes.set(True)
    try:
        yield
    finally:
        _tokenizes.reset(before)


def tokenizes() -> bool:
    """Whether codes are computed of what is augmented."""
    return _tokenizes.get()
