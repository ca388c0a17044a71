"""`mmjax info`: what a run or a checkpoint is."""

from __future__ import annotations

from mmjax import errors
from mmjax.cli import options, printing

__all__ = ["parser", "run"]


def parser() -> options.Parser:
    """The command line."""
    usage = "PATH [--verify] [--json]"
    made = options.parser("info", usage, "What a run or a checkpoint is.")
    options.add_path(made)
    made.add_argument("--verify", action="store_true", help="read every byte and check its hash")
    options.add_json(made)
    return made


def run(args: list[str]) -> None:
    """What is this run or checkpoint."""
    given = parser().parse_args(args)
    from mmjax.run import checkpoint

    facts = checkpoint.info(given.path, verify=given.verify)
    print(printing.as_json(facts) if given.json else printing.tree(facts))
    if facts.get("damaged"):
        steps = ", ".join(map(str, facts["damaged"]))
        raise errors.CheckFailed(f"{given.path}: damaged files in checkpoint(s) {steps}.")
