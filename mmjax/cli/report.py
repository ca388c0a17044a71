"""`mmjax report`: one self-contained page of a run."""

from __future__ import annotations

from mmjax.cli import options, printing

__all__ = ["parser", "run"]


def parser() -> options.Parser:
    """The command line."""
    text = "Writes WORKDIR/report.html, one self-contained page of a run."
    made = options.parser("report", "WORKDIR [--json]", text)
    made.add_argument("path", metavar="WORKDIR", help="folder of the run")
    options.add_json(made)
    return made


def run(args: list[str]) -> None:
    """One self-contained page of a run: samples, scores, curves, time."""
    given = parser().parse_args(args)
    from mmjax import report

    result = report.report(given.path)
    text = "\n".join([*result["summary"], "", result["path"]])
    print(printing.as_json(result) if given.json else text)
