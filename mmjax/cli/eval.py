"""`mmjax eval`: the evaluators of the config."""

from __future__ import annotations

from mmjax.cli import options, printing

__all__ = ["parser", "run"]


def parser() -> options.Parser:
    """The command line."""
    usage = f"PATH [--split NAME] {options.CODE_USAGE} [--json]"
    made = options.parser("eval", usage, "Runs the evaluators of the config.")
    options.add_path(made)
    made.add_argument("--split", metavar="NAME", help="default: the config's eval_split")
    options.add_code(made)
    options.add_json(made)
    return made


def run(args: list[str]) -> None:
    """The evaluators of the config, on the split that is asked for."""
    given = parser().parse_args(args)
    options.trust(given)
    from mmjax import evaluate

    scores = evaluate.evaluate(given.path, split=given.split, code=given.code)
    print(printing.as_json(scores) if given.json else printing.table(scores))
