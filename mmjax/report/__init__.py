"""`mmjax report`: a run as one self-contained page."""

from __future__ import annotations

from typing import Any

__all__ = ["report"]


def report(workdir: str) -> dict[str, Any]:
    """Writes `WORKDIR/report.html`; gives {"path": ..., "summary": lines}.

    The page holds everything it shows and asks no network. What a run lacks is left out.

    Raises:
      NoCheckpoint: the folder is not the workdir of a run.
    """
    from mmjax import files
    from mmjax.report import page, run

    found = run.read(workdir)
    path = found.folder / "report.html"
    with files.replacing(path) as partial:
        partial.write_text(page.html(found), encoding="utf-8")
    return {"path": str(path), "summary": page.summary_lines(found)}
