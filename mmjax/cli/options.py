"""Options shared by several verbs: the parser, PATH, --given, --code, --json."""

from __future__ import annotations

import argparse
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from mmjax.config import code_file
from mmjax.config.error import ConfigError
from mmjax.processes import compile_cache

__all__ = [
    "CODE_USAGE",
    "PATH_HELP",
    "Parser",
    "add_code",
    "add_given",
    "add_json",
    "add_path",
    "given",
    "parser",
    "training",
    "training_parser",
    "trust",
]

PATH_HELP = "WORKDIR, WORKDIR@STEP or WORKDIR@best:METRIC"
CODE_USAGE = "[--code FILE|MODULE [--code-sha256 HEX]] [--compile-cache PATH]"
CODE_HELP = (
    "the config file of the run, or a module of an installed package, when its config names classes"
    " of them; may be given again"
)


class Parser(argparse.ArgumentParser):
    """An argument parser that raises mistakes as ConfigError."""

    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{message} (mmjax {self.prog.split()[-1]} --help)")


def parser(verb: str, usage: str, text: str) -> Parser:
    """The parser of `mmjax VERB USAGE`."""
    prog = f"mmjax {verb}"
    return Parser(prog=prog, usage=f"{prog} {usage}", description=text, allow_abbrev=False)


def add_path(made: argparse.ArgumentParser) -> None:
    """Adds PATH."""
    made.add_argument("path", metavar="PATH", help=PATH_HELP)


def add_json(made: argparse.ArgumentParser) -> None:
    """Adds --json."""
    made.add_argument("--json", action="store_true", help="print JSON")


def add_code(made: argparse.ArgumentParser, text: str = CODE_HELP) -> None:
    """Adds --code, --code-sha256 and --compile-cache, which `trust` reads."""
    made.add_argument("--code", action="append", default=[], metavar="FILE|MODULE", help=text)
    made.add_argument(
        "--code-sha256", action="append", metavar="HEX", help="what that file or package must have"
    )
    made.add_argument("--compile-cache", metavar="PATH", help=compile_cache.HELP)


def trust(options: argparse.Namespace) -> None:
    """Checks code from elsewhere that may run: what --code names, and the compile cache."""
    workdir = options.workdir if "workdir" in options else options.path
    if not os.path.isdir(workdir):  # an existing folder is a workdir, even with an @ in its name
        workdir = re.split(r"@(?:best:|[0-9]+$)", workdir)[0]
    code_file.check(options.code, options.code_sha256)
    compile_cache.use(options.compile_cache, workdir)


def add_given(made: argparse.ArgumentParser) -> None:
    """Adds --given, whose items `given` parses."""
    made.add_argument(
        "--given",
        nargs="+",
        action="extend",
        required=True,
        metavar="MODALITY=VALUE",
        help='such as image=a.png text="two words"',
    )


def given(items: Sequence[str]) -> list[tuple[str, str]]:
    """(modality, value) of each MODALITY=VALUE."""
    rows = [item.partition("=") for item in items]
    for (modality, equals, _), item in zip(rows, items, strict=True):
        if not equals or not modality:
            raise ConfigError(f"--given {item}: write MODALITY=VALUE, such as image=a.png.")
    return [(modality, value) for modality, _, value in rows]


def training_parser(verb: str, text: str, before: str = "") -> Parser:
    """The parser of a verb that trains a CONFIG, for `training`; `before` stands before CONFIG."""
    made = parser(
        verb,
        f"{before}CONFIG --workdir DIR {CODE_USAGE} [--profile FIRST:LAST] [--any.field value ...]",
        f"{text}; the same workdir resumes. Any field of the config is set by its dotted path;"
        f" `mmjax {verb} {before}CONFIG --help` lists the fields.",
    )
    made.add_argument("config", metavar="CONFIG", help="file.py or file.py:function")
    made.add_argument("--workdir", required=True, metavar="DIR", help="folder of the run")
    made.add_argument(
        "--profile", metavar="FIRST:LAST", help="steps to trace: short for --logging.profile"
    )
    add_code(made, "classes that a config.json names, of a file or a package; may be given again")
    return made


def training(made: Parser, args: list[str]) -> tuple[Any, str, list[str]]:
    """Experiment, workdir and code of a training command line."""
    wants_help = any(a in ("-h", "--help") for a in args)
    if not args or args[0] in ("-h", "--help"):
        made.parse_args(args)
    if args[0].startswith("-"):
        raise ConfigError(f"CONFIG comes before {args[0]}; {made.prog} --help shows the order.")
    target = args[0]
    args = [re.sub(r"^--profile(?==|$)", "--logging.profile", arg) for arg in args]
    options, fields = made.parse_known_args(
        [a for a in args if a not in ("-h", "--help")] + (["--workdir="] if wants_help else [])
    )
    if not wants_help:
        trust(options)
    from mmjax import config
    from mmjax.data import started

    with started.making_config_for(None if wants_help else options.workdir):
        experiment = config.load(target, code=options.code)
    if wants_help:
        config.override(experiment, ["--help"], prog=f"{made.prog} {target} --workdir DIR")
    experiment = config.override(experiment, fields)
    if not options.workdir:
        raise ConfigError("--workdir is empty; name a folder for the run.")
    from mmjax.experiment import Experiment

    if not isinstance(experiment, Experiment):
        raise ConfigError(f"{target} gives a {type(experiment).__name__}, not an Experiment.")
    file = target if Path(target).exists() else target.rpartition(":")[0]
    return experiment, options.workdir, options.code + [file] * file.endswith(".py")
