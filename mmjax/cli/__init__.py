"""The `mmjax` command: one module per verb, each with a Python equivalent.

Exit codes: 0 = done, 1 = a bug in mmjax, and those of EXIT_CODES. A user's mistake is reported in
one short message; MMJAX_TRACEBACK=1 adds the traceback. Heavy imports are deferred, so that `mmjax
--help` is instant.
"""

from __future__ import annotations

import argparse
import errno
import os
import sys
import traceback
import types
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import mmjax
from mmjax import console
from mmjax.cli import (
    cpu,
    data,
    doctor,
    embed,
    export,
    extend,
    generate,
    info,
    installed,
    launch,
    listing,
    options,
    plan,
    recipes,
    report,
    tokenize,
    train,
    train_tokenizer,
)
from mmjax.cli import eval as evaluate
from mmjax.errors import EXIT_CODES
from mmjax.files import bucket
from mmjax.processes import children

__all__ = ["EXIT_CODES", "main", "parsers"]

STORAGE_ERRNOS = (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command line (by default that of the process) and returns the exit code."""
    args = list(sys.argv[1:] if argv is None else argv)
    if not args or args[0] in ("-h", "--help", "help"):
        print(_help())
        return 0 if args else 2
    if args[0] in ("-V", "--version"):
        print(f"mmjax {mmjax.__version__}")
        return 0
    verb = VERBS.get(args[0])
    try:
        if argv is None:
            if args[0] in COMPUTING and cpu.is_alone():
                cpu.restart()
            elif args[0] in COMPUTING:
                children.refuse_compilers_here()
            children.keep_out_the_working_folder()
        if verb is None:
            verb = installed.load(args[0], VERBS)
        code = verb(args[1:])
        return code if type(code) is int else 0
    except SystemExit as stop:  # --help of a verb
        if isinstance(stop.code, str):
            print(console.visible(stop.code), file=sys.stderr)
        return stop.code if isinstance(stop.code, int) else int(bool(stop.code))
    except BrokenPipeError:  # mmjax list | head
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except BaseException as error:
        return _report(error, args, "mmjax" if verb is None else f"mmjax {args[0]}")


def _report(error: BaseException, args: Sequence[str], who: str = "mmjax") -> int:
    code, message = _judge(error, args)
    if not code or os.environ.get("MMJAX_TRACEBACK"):
        text = "".join(traceback.format_exception(error))
        print(console.visible(text), file=sys.stderr, end="")
    if code:
        print(console.visible(f"{who}: {message}"), file=sys.stderr)
    return code or 1


def _judge(error: BaseException, args: Sequence[str]) -> tuple[int, str]:
    """Exit code and message of an error; 0 for a bug in mmjax."""
    for kind, code in EXIT_CODES.items():
        if isinstance(error, kind):
            return code, str(error) or "interrupted"
    known = None if isinstance(error, ImportError) else bucket.explained(error)
    if known is not None:
        return _judge(known, args)
    if isinstance(error, OSError):
        text = f"{error.strerror or error}: {error.filename!r}" if error.filename else str(error)
        if error.errno in STORAGE_ERRNOS:
            return 74, text
        given = [a.partition("=")[2] or a for a in args[1:] if not a.startswith("-")]
        if error.filename and any(str(error.filename).startswith(g.split("@")[0]) for g in given):
            return 2, text
    if isinstance(error, ValueError) and error.__traceback__:
        # A ValueError that mmjax raises itself is about the user's input; others are bugs.
        frame = traceback.extract_tb(error.__traceback__)[-1]
        is_ours = Path(frame.filename).is_relative_to(Path(mmjax.__file__).parent)
        if is_ours and (frame.line or "").startswith("raise "):
            return 2, str(error)
    return 0, ""


def parsers() -> dict[str, argparse.ArgumentParser]:
    """The parser of each verb."""
    return {name: module.parser() for name, module in MODULES.items()}


def _help() -> str:
    lines = [f"  {name:15} {(f.__doc__ or '').splitlines()[0]}" for name, f in VERBS.items()]
    for verb in installed.verbs(VERBS):
        if verb.wrong:
            print(console.visible(f"mmjax: {verb.problem}"), file=sys.stderr)
        else:
            lines.append(f"  {verb.name:15} from {verb.package}")
    return "\n".join(
        [
            "mmjax: one transformer for all your modalities",
            "",
            "usage: mmjax COMMAND ...      (mmjax COMMAND --help says more)",
            "",
            *lines,
            "",
            f"PATH is {options.PATH_HELP}.",
            "CONFIG is file.py (its get_config()) or file.py:function.",
        ]
    )


# Each verb is registered here and nowhere else.
MODULES: dict[str, types.ModuleType] = {
    "doctor": doctor,
    "list": listing,
    "recipes": recipes,
    "data": data,
    "plan": plan,
    "train": train,
    "extend": extend,
    "train-tokenizer": train_tokenizer,
    "tokenize": tokenize,
    "eval": evaluate,
    "embed": embed,
    "generate": generate,
    "export": export,
    "info": info,
    "launch": launch,
    "report": report,
}
VERBS: dict[str, Callable[[list[str]], Any]] = {n: m.run for n, m in MODULES.items()}
COMPUTING = {*VERBS} - {"doctor", "list", "recipes", "data", "plan", "info", "launch", "report"}
