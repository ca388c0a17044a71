"""`mmjax extend`: new modalities for a trained model."""

from __future__ import annotations

from mmjax.cli import cpu, options
from mmjax.config.error import ConfigError

__all__ = ["parser", "run"]

STAGES = ("new", "adapters", "all")


def parser() -> options.Parser:
    """The command line; unknown options set fields of the config."""
    made = options.training_parser(
        "extend",
        "Trains what CONFIG adds to the run at PATH, and says what old modalities lost",
        before="PATH ",
    )
    made.usage = str(made.usage).replace(
        "--workdir DIR", f"--workdir DIR [--stage {'|'.join(STAGES)}]"
    )
    made.add_argument(
        "--stage",
        choices=STAGES,
        default="new",
        help="what is trained: parameters of new modalities, also inserted layers, or everything",
    )
    return made


def run(args: list[str]) -> None:
    """Add modalities to a trained model, which keeps its old ones."""
    if len(args) < 2 or args[0].startswith("-"):
        options.training(parser(), [a for a in args if a in ("-h", "--help")])
        raise ConfigError("PATH and CONFIG come first; mmjax extend --help shows the order.")
    path, rest = args[0], args[1:]
    only = options.Parser(prog="mmjax extend", add_help=False, allow_abbrev=False)
    only.add_argument("--stage", choices=STAGES, default="new")
    given, rest = only.parse_known_args(rest)
    experiment, workdir, code = options.training(parser(), rest)
    from mmjax import extend

    how = {"before_compile": cpu.compile_first, "exit_if_hung": True}
    extend.extend(path, experiment, workdir, stage=given.stage, code=code, **how)
