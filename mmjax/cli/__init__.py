"""The `mmjax` command: one function a verb, each with a Python twin. `mmjax --help` is instant.

Exit codes: 0 done, 1 a bug of ours, and those of EXIT_CODES. A user's mistake is told in one
short message; MMJAX_TRACEBACK=1 shows where it was found.
"""

from __future__ import annotations

import argparse
import errno
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

import mmjax
from mmjax import console, lifecycle
from mmjax.cli import export as export_command
from mmjax.cli import launch as launch_command
from mmjax.cli import printing
from mmjax.config import code_file
from mmjax.config.error import ConfigError, nearest
from mmjax.processes import children, compile_cache, heap

__all__ = ["EXIT_CODES", "main", "parsers"]

EXIT_CODES: dict[type[BaseException], int] = {
    ConfigError: 2,
    lifecycle.CheckFailed: 3,
    lifecycle.BadDataError: 65,
    lifecycle.NoCheckpoint: 66,
    lifecycle.HostLost: 69,
    lifecycle.NumericsError: 70,
    lifecycle.StorageError: 74,
    lifecycle.Preempted: 75,
    lifecycle.WorkdirBusy: 76,
    KeyboardInterrupt: 130,
}
STORAGE_ERRNOS = (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS)
PATH_HELP = "WORKDIR, WORKDIR@STEP or WORKDIR@best:METRIC"
DATA_USAGE = "check CONFIG [--records N] [--out FILE] [--json] [--any.field value ...]"
CODE_USAGE = "[--code FILE [--code-sha256 HEX]] [--compile-cache PATH]"
CODE_HELP = "the config file of the run, when its config names classes of that file"


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command line (that of the process by default) and returns the exit code."""
    args = list(sys.argv[1:] if argv is None else argv)
    if not args or args[0] in ("-h", "--help", "help"):
        print(_help())
        return 0 if args else 2
    if args[0] in ("-V", "--version"):
        print(f"mmjax {mmjax.__version__}")
        return 0
    try:
        if args[0] not in VERBS:
            raise ConfigError(f"no command {args[0]!r}{nearest(args[0], VERBS)}")
        if argv is None:
            if args[0] in COMPUTING and not _accelerator():
                heap.restart_with()
            elif args[0] in COMPUTING:
                children.refuse_compilers_here()
            children.keep_out_the_working_folder()
        VERBS[args[0]](args[1:])
        return 0
    except SystemExit as stop:  # --help of a verb
        return int(stop.code or 0)
    except BrokenPipeError:  # mmjax list | head
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except BaseException as error:
        return _report(error, args)


def _report(error: BaseException, args: Sequence[str]) -> int:
    code, message = _judge(error, args)
    if not code or os.environ.get("MMJAX_TRACEBACK"):
        text = "".join(traceback.format_exception(error))
        print(console.visible(text), file=sys.stderr, end="")
    if code:
        verb = f" {args[0]}" if args[0] in VERBS else ""
        print(console.visible(f"mmjax{verb}: {message}"), file=sys.stderr)
    return code or 1


def _judge(error: BaseException, args: Sequence[str]) -> tuple[int, str]:
    """Exit code and message; 0 for a bug of ours."""
    for kind, code in EXIT_CODES.items():
        if isinstance(error, kind):
            return code, str(error) or "interrupted"
    if isinstance(error, OSError):
        text = f"{error.strerror or error}: {error.filename!r}" if error.filename else str(error)
        if error.errno in STORAGE_ERRNOS:
            return 74, text
        given = [a.partition("=")[2] or a for a in args[1:] if not a.startswith("-")]
        if error.filename and any(str(error.filename).startswith(g.split("@")[0]) for g in given):
            return 2, text
    if isinstance(error, ValueError) and error.__traceback__:
        # A rule that mmjax states itself is about what the user set; other ValueErrors are bugs.
        frame = traceback.extract_tb(error.__traceback__)[-1]
        is_ours = Path(frame.filename).is_relative_to(Path(mmjax.__file__).parent)
        if is_ours and (frame.line or "").startswith("raise "):
            return 2, str(error)
    return 0, ""


def _accelerator() -> bool:
    """Whether jax may find something better than the CPU, judged without importing it."""
    platforms = os.environ.get("JAX_PLATFORMS", "")
    if platforms:
        return platforms != "cpu"
    names = os.listdir("/dev") if os.path.isdir("/dev") else []
    return any(n.startswith(("nvidia", "accel", "kfd")) for n in names) or any(
        n.isdigit() for n in (os.listdir("/dev/vfio") if os.path.isdir("/dev/vfio") else [])
    )


# ---------------------------------------------------------------------------- parsers


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{message} (mmjax {self.prog.split()[-1]} --help)")


def parsers() -> dict[str, argparse.ArgumentParser]:
    """The parser of each verb."""
    made: dict[str, argparse.ArgumentParser] = {}

    def verb(name: str, usage: str, text: str) -> argparse.ArgumentParser:
        made[name] = _Parser(
            prog=f"mmjax {name}",
            usage=f"mmjax {name} {usage}",
            description=text,
            allow_abbrev=False,
        )
        return made[name]

    doctor = verb("doctor", "[--json]", "Devices, versions, missing extras, and a self-test.")
    listing = verb("list", "[KIND] [--json]", "What there is.")
    listing.add_argument(
        "kind",
        nargs="?",
        metavar="KIND",
        help="recipes, modalities, tokenizers, quantizers, routers, objectives or evaluators",
    )
    data = verb("data", DATA_USAGE, "What the model will get of each source; a page to look at.")
    _add_data_options(data)
    texts = {
        "train": "Trains what CONFIG describes",
        "train-tokenizer": "Trains a tokenizer, and says how well its codes are used",
    }
    for name, text in texts.items():
        train = verb(
            name,
            f"CONFIG --workdir DIR {CODE_USAGE} [--any.field value ...]",
            f"{text}; the same workdir resumes. Any field of the config is set by its dotted path;"
            f" `mmjax {name} CONFIG --help` lists the fields.",
        )
        train.add_argument("config", metavar="CONFIG", help="file.py or file.py:function")
        train.add_argument("--workdir", required=True, metavar="DIR", help="folder of the run")
        _add_code_options(train, "classes that a config.json names")
    usage = f"PATH [--split NAME] {CODE_USAGE} [--json]"
    evaluate = verb("eval", usage, "Runs the evaluators of the config.")
    evaluate.add_argument("--split", metavar="NAME", help="default: the config's eval_split")
    usage = f"PATH --given MODALITY=VALUE ... --out FILE {CODE_USAGE}"
    embed = verb("embed", usage, "Embeds images, sounds and text in the shared space.")
    embed.add_argument("--out", required=True, metavar="FILE", help=".npy or .parquet")
    generate = verb(
        "generate",
        "PATH --given MODALITY=VALUE ... --want MODALITY ... --out DIR [--num N] [--seed N]"
        " [--temperature T] [--steps N] [--guidance W] [--beams N] [--rerank W] [--overwrite]"
        f" {CODE_USAGE}",
        "Makes some modalities from others; writes files and a page to look at.",
    )
    _add_generate_options(generate)
    export = verb("export", export_command.USAGE, "Writes a folder for Hugging Face transformers.")
    export_command.add_arguments(export)
    info = verb("info", "PATH [--verify] [--json]", "What a run or a checkpoint is.")
    info.add_argument("--verify", action="store_true", help="read every byte and check its hash")
    launch = verb("launch", launch_command.USAGE, "Trains on several processes or Cloud TPUs.")
    launch_command.add_arguments(launch)
    text = "Writes WORKDIR/report.html, one self-contained page of a run."
    report = verb("report", "WORKDIR [--json]", text)
    report.add_argument("path", metavar="WORKDIR", help="folder of the run")
    for parser in (embed, generate):
        parser.add_argument(
            "--given",
            nargs="+",
            action="extend",
            required=True,
            metavar="MODALITY=VALUE",
            help='such as image=a.png text="two words"',
        )
    for parser in (evaluate, embed, generate, export, info):
        parser.add_argument("path", metavar="PATH", help=PATH_HELP)
    for parser in (evaluate, embed, generate, export):
        _add_code_options(parser, CODE_HELP)
    for parser in (doctor, listing, data, evaluate, info, report):
        parser.add_argument("--json", action="store_true", help="print JSON")
    return made


def _add_code_options(parser: argparse.ArgumentParser, text: str) -> None:
    parser.add_argument("--code", metavar="FILE", help=text)
    parser.add_argument("--code-sha256", metavar="HEX", help="what that file must have")
    parser.add_argument("--compile-cache", metavar="PATH", help=compile_cache.HELP)


def _add_data_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("what", metavar="check", choices=["check"], help="what to do")
    parser.add_argument("config", metavar="CONFIG", help="file.py or file.py:function")
    parser.add_argument("--records", type=int, default=200, metavar="N", help="of each source")
    parser.add_argument("--out", default="data_check.html", metavar="FILE", help="the page")


def _add_generate_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--want",
        nargs="+",
        action="extend",
        required=True,
        metavar="MODALITY",
        help="in this order; what is made is known to what follows",
    )
    parser.add_argument("--out", required=True, metavar="DIR", help="folder of the samples")
    numbers = (
        ("--num", "N", 1, "samples"),
        ("--seed", "N", 0, "sample i depends on it and on i alone"),
        ("--temperature", "T", None, "0 = most probable; default 0 for one sample, else 0.7"),
        ("--steps", "N", 0, "of what is decoded in parallel; default 1 at temperature 0, else 8"),
        ("--guidance", "W", 1.0, "classifier-free guidance; 1 = off"),
        ("--beams", "N", 1, "of sequences at temperature 0: beginnings that are followed at once"),
        ("--rerank", "W", 0.0, "weight of the contrast in the choice of a beam; 1 = both alike"),
    )
    for option, letter, default, text in numbers:
        kind = int if letter == "N" else float
        parser.add_argument(option, type=kind, default=default, metavar=letter, help=text)
    parser.add_argument("--overwrite", action="store_true", help="in place of other samples")


def _help() -> str:
    lines = [f"  {name:15} {(f.__doc__ or '').splitlines()[0]}" for name, f in VERBS.items()]
    return "\n".join(
        [
            "mmjax: one transformer for all your modalities",
            "",
            "usage: mmjax COMMAND ...      (mmjax COMMAND --help says more)",
            "",
            *lines,
            "",
            f"PATH is {PATH_HELP}.",
            "CONFIG is file.py (its get_config()) or file.py:function.",
        ]
    )


# ------------------------------------------------------------------------------ verbs


def _doctor(args: list[str]) -> None:
    """Devices, versions, what missing extras would enable, and a self-test."""
    options = parsers()["doctor"].parse_args(args)
    from mmjax.cli import doctor

    report = doctor.doctor()
    print(printing.as_json(report) if options.json else doctor.text(report))
    if not report["usable"]:
        raise lifecycle.CheckFailed("; ".join(report["problems"]))


def _list(args: list[str]) -> None:
    """Recipes, modalities, tokenizers, routers, objectives, evaluators."""
    options = parsers()["list"].parse_args(args)
    from mmjax.cli import listing

    found = listing.listing(options.kind)
    print(printing.as_json(found) if options.json else listing.text(found))


def _data(args: list[str]) -> None:
    """Look at what the model will get of each source."""
    options, fields = parsers()["data"].parse_known_args(args)
    from mmjax import config
    from mmjax.cli import data_check
    from mmjax.experiment import Experiment

    experiment = config.override(config.load(options.config, kind=Experiment), fields)
    report = data_check.data_check(experiment, options.out, options.records)
    print(printing.as_json(report) if options.json else data_check.text(report))
    data_check.raise_problems(report)


def _train(args: list[str]) -> None:
    """Pretrain or fine-tune; the same workdir resumes."""
    experiment, workdir, code = _training("train", args)
    from mmjax import train

    train.train(experiment, workdir, code=code)


def _train_tokenizer(args: list[str]) -> None:
    """Train codes for images, sounds or masks."""
    experiment, workdir, code = _training("train-tokenizer", args)
    from mmjax import train_tokenizer

    report = train_tokenizer.train_tokenizer(experiment, workdir, code=code)
    print(train_tokenizer.text(report))


def _training(verb: str, args: list[str]) -> tuple[Any, str, str | None]:
    """Experiment, workdir and the config's file of a command line that trains."""
    wants_help = any(a in ("-h", "--help") for a in args)
    if not args or args[0] in ("-h", "--help"):
        parsers()[verb].parse_args(args)
    if args[0].startswith("-"):
        raise ConfigError(f"CONFIG comes before {args[0]}; mmjax {verb} --help shows the order.")
    target = args[0]
    options, fields = parsers()[verb].parse_known_args(
        [a for a in args if a not in ("-h", "--help")] + (["--workdir="] if wants_help else [])
    )
    if not wants_help:
        _trust(options, options.workdir)
    from mmjax import config

    experiment = config.load(target, code=options.code)
    if wants_help:
        config.override(experiment, ["--help"], prog=f"mmjax {verb} {target} --workdir DIR")
    experiment = config.override(experiment, fields)
    if not options.workdir:
        raise ConfigError("--workdir is empty; name a folder for the run.")
    from mmjax.experiment import Experiment

    if not isinstance(experiment, Experiment):
        raise ConfigError(f"{target} gives a {type(experiment).__name__}, not an Experiment.")
    file = target if Path(target).exists() else target.rpartition(":")[0]
    code = options.code or (file if file.endswith(".py") else None)
    return experiment, options.workdir, code


def _trust(options: argparse.Namespace, workdir: str) -> None:
    """What may be run beside mmjax: the file of --code, and programs that are compiled already."""
    code_file.check(options.code, options.code_sha256)
    compile_cache.use(options.compile_cache, workdir)


def _eval(args: list[str]) -> None:
    """The evaluators of the config, on the split that is asked for."""
    options = parsers()["eval"].parse_args(args)
    _trust(options, options.path.partition("@")[0])
    from mmjax import evaluate

    scores = evaluate.evaluate(options.path, split=options.split, code=options.code)
    print(printing.as_json(scores) if options.json else printing.table(scores))


def _embed(args: list[str]) -> None:
    """Embeddings of any modality in the shared space."""
    options = parsers()["embed"].parse_args(args)
    out = Path(options.out)
    if out.suffix not in (".npy", ".parquet"):
        raise ConfigError(f"--out {options.out}: {out.suffix!r} must be .npy or .parquet.")
    rows = _given(options.given)
    given = {m: [v for n, v in rows if n == m] for m, _ in rows}
    _trust(options, options.path.partition("@")[0])
    from mmjax import evaluate

    found = evaluate.embed(options.path, given, code=options.code)
    _write_embeddings(out, rows, found)
    width = next(iter(found.values())).shape[-1]
    print(f"{out}: {len(rows)} embeddings of width {width}, in the order given")


def _given(items: Sequence[str]) -> list[tuple[str, str]]:
    """(modality, value) of each MODALITY=VALUE."""
    rows = [item.partition("=") for item in items]
    for (modality, equals, _), item in zip(rows, items, strict=True):
        if not equals or not modality:
            raise ConfigError(f"--given {item}: write MODALITY=VALUE, such as image=a.png.")
    return [(modality, value) for modality, _, value in rows]


def _generate(args: list[str]) -> None:
    """Any modalities from any others, as files."""
    options = parsers()["generate"].parse_args(args)
    rows = _given(options.given)
    given = dict(rows)
    if len(given) < len(rows):
        raise ConfigError(f"--given {' '.join(n for n, _ in rows)}: give each modality once.")
    if options.num < 1:
        raise ConfigError(f"--num {options.num} makes no sample; use 1 or more.")
    _trust(options, options.path.partition("@")[0])
    from mmjax.generate import verbs

    names = ("num", "seed", "temperature", "steps", "guidance", "beams", "rerank")
    settings = {name: getattr(options, name) for name in (*names, "overwrite", "code")}
    found = verbs.write(options.path, given, options.want, options.out, **settings)
    for sample in found["samples"][: options.num]:
        for file in sample["files"].values():
            print(f"{options.out}/{file}")
    print(f"{options.out}/index.html")


def _write_embeddings(out: Path, rows: Sequence[tuple[str, str]], found: dict[str, Any]) -> None:
    """Rows in the order of the command line; Parquet also names modality and value."""
    import numpy as np

    queues = {m: iter(np.asarray(x)) for m, x in found.items()}
    array_ND = np.stack([next(queues[m]) for m, _ in rows]).astype(np.float32)
    out.parent.mkdir(parents=True, exist_ok=True)
    if out.suffix == ".npy":
        np.save(out, array_ND)
        return
    import pyarrow
    from pyarrow import parquet

    columns = {
        "modality": [m for m, _ in rows],
        "given": [v for _, v in rows],
        "embedding": list(array_ND),
    }
    parquet.write_table(pyarrow.table(columns), out)


def _export(args: list[str]) -> None:
    """The encoder as a folder for Hugging Face transformers."""
    options = parsers()["export"].parse_args(args)
    _trust(options, options.path.partition("@")[0])
    export_command.run(options)


def _info(args: list[str]) -> None:
    """What is this run or checkpoint."""
    options = parsers()["info"].parse_args(args)
    from mmjax import checkpoint

    found = checkpoint.info(options.path, verify=options.verify)
    print(printing.as_json(found) if options.json else printing.tree(found))
    if found.get("damaged"):
        steps = ", ".join(map(str, found["damaged"]))
        raise lifecycle.CheckFailed(f"{options.path}: damaged files in checkpoint(s) {steps}.")


def _launch(args: list[str]) -> None:
    """Train on several local processes, or on Cloud TPUs."""
    sys.exit(launch_command.run(parsers()["launch"].parse_args, args))


def _report_run(args: list[str]) -> None:
    """One self-contained page of a run: samples, scores, curves, time."""
    options = parsers()["report"].parse_args(args)
    from mmjax import report

    found = report.report(options.path)
    print(
        printing.as_json(found)
        if options.json
        else "\n".join([*found["summary"], "", found["path"]])
    )


VERBS: dict[str, Callable[[list[str]], None]] = {
    "doctor": _doctor,
    "list": _list,
    "data": _data,
    "train": _train,
    "train-tokenizer": _train_tokenizer,
    "eval": _eval,
    "embed": _embed,
    "generate": _generate,
    "export": _export,
    "info": _info,
    "launch": _launch,
    "report": _report_run,
}
COMPUTING = ("train", "train-tokenizer", "eval", "embed", "generate", "export")


if __name__ == "__main__":
    sys.exit(main())
