"""`mmjax report`: a run as one self-contained page."""

from __future__ import annotations

from typing import Any

__all__ = ["report"]


def report(workdir: str) -> dict[str, Any]:
    """Writes `WORKDIR/report.html`; gives {"path": ..., "summary": lines}.

    The page is self-contained and loads nothing from the network. Sections without data are left
    out.

    Raises:
      NoCheckpoint: the folder is not the workdir of a run.
    """
    from mmjax import files
    from mmjax.report import page, run

    loaded = run.read(workdir)
    path = loaded.folder / "report.html"
    with files.replacing(path) as partial:
        partial.write_text(page.html(loaded), encoding="utf-8")
    return {"path": str(path), "summary": page.summary_lines(loaded)}
