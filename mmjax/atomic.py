"""Files that are whole or not there."""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import Iterator
from typing import Any


@contextlib.contextmanager
def replacing(path: Any) -> Iterator[Any]:
    """A path to write to, beside `path`; at the end the file takes the place of `path`.

    Readers and a second writer see the old file or the whole new one; an error leaves the old one.
    """
    partial = path.parent / f".{path.name}.{uuid.uuid4().hex}.partial"
    try:
        yield partial
        partial.replace(path)  # rename refuses where the file exists
    finally:
        partial.unlink(missing_ok=True)
