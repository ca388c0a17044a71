"""`mmjax data check`: statistics of what a model reads from each source, and a page."""

from __future__ import annotations

from mmjax.cli import options, printing

__all__ = ["parser", "run"]

USAGE = "check CONFIG [--records N] [--out FILE] [--json] [--any.field value ...]"


def parser() -> options.Parser:
    """The command line; unknown options set fields of the config."""
    text = "What the model will get of each source; a page to look at."
    made = options.parser("data", USAGE, text)
    made.add_argument("what", metavar="check", choices=["check"], help="what to do")
    made.add_argument("config", metavar="CONFIG", help="file.py or file.py:function")
    words = "of each split, evenly spaced, in place of all"
    made.add_argument("--records", type=int, metavar="N", help=words)
    made.add_argument("--out", default="data_check.html", metavar="FILE", help="the page")
    options.add_json(made)
    return made


def run(args: list[str]) -> None:
    """Look at what the model will get of each source."""
    given, fields = parser().parse_known_args(args)
    from mmjax import config
    from mmjax.cli import data_check
    from mmjax.data import started
    from mmjax.experiment import Experiment

    with started.making_config_for(""):
        experiment = config.load(given.config, kind=Experiment)
    experiment = config.override(experiment, fields)
    report = data_check.data_check(experiment, given.out, given.records)
    print(printing.as_json(report) if given.json else data_check.text(report))
    data_check.raise_problems(report)
