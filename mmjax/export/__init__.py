"""The verb `export`: a trained model as a folder that Hugging Face transformers loads."""

from __future__ import annotations

import os
from typing import Any

from mmjax.config.code_file import Code

__all__ = ["export"]


def export(
    path: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    parts: str = "encoder",
    verify: bool = False,
    overwrite: bool = False,
    code: Code = None,
) -> dict[str, Any]:
    """Writes a Hugging Face folder of a run's encoder; see `mmjax.export.folder`."""
    from mmjax.export import folder

    return folder.export(path, out, parts=parts, verify=verify, overwrite=overwrite, code=code)
