"""`mmjax tokenize`: a data set to tokens, before training."""

from __future__ import annotations

import shlex
from typing import Any

from mmjax.cli import options, printing
from mmjax.config.error import ConfigError

__all__ = ["parser", "run"]

USAGE = (
    "CONFIG --out DIR [--task NAME] [--splits NAME ...] [--add MODALITY ...] [--crops N]"
    " [--shard-examples N] [--workers N | --beam OPTIONS] [--any.field value ...]"
    " | status DIR [--verify] [--json] | finalize DIR [--max-bad-fraction F]"
)
ASKING = ("status", "finalize")


def parser() -> options.Parser:
    """The command line; unknown options set fields of the config."""
    made = options.parser(
        "tokenize",
        USAGE,
        "Computes the tokens of a data set once, into shards that mmjax trains on (TokenSet). The"
        " same command goes on where it stopped; status says how far it is, finalize writes the"
        " manifest of shards that others have made. CONFIG is one of a training on the raw data.",
    )
    made.add_argument("config", metavar="CONFIG", help="file.py or file.py:function")
    made.add_argument("--out", required=True, metavar="DIR", help="folder of the tokens")
    made.add_argument(
        "--task", default="", metavar="NAME", help="whose source, if there are several"
    )
    made.add_argument("--splits", nargs="+", default=[], metavar="NAME", help="in place of all")
    made.add_argument(
        "--add", nargs="+", default=[], metavar="MODALITY", help="a further part of a set in DIR"
    )
    made.add_argument(
        "--crops", type=int, default=0, metavar="N",
        help="variations of each training example, by the task's augment",
    )  # fmt: skip
    made.add_argument(
        "--shard-examples", type=int, default=10_000, metavar="N", help="of a shard, at most"
    )
    who = made.add_mutually_exclusive_group()
    who.add_argument("--workers", type=int, default=1, metavar="N", help="processes")
    who.add_argument(
        "--beam", metavar="OPTIONS",
        help='by Apache Beam, with its options in one word: "--runner=DataflowRunner --region=..."',
    )  # fmt: skip
    return made


def _asking_parser(what: str) -> options.Parser:
    usage = "DIR [--verify] [--json]" if what == "status" else "DIR [--max-bad-fraction F]"
    texts = {"status": "How far the tokens in DIR are", "finalize": "Writes the manifest of DIR"}
    made = options.parser(f"tokenize {what}", usage, texts[what])
    made.add_argument("out", metavar="DIR", help="folder of the tokens")
    if what == "status":
        made.add_argument("--verify", action="store_true", help="hash every shard")
        options.add_json(made)
    else:
        made.add_argument(
            "--max-bad-fraction", type=float, default=0.01, metavar="F", help="rejected at most"
        )
    return made


def run(args: list[str]) -> int | None:
    """Compute the tokens of a data set before training."""
    if args and args[0] in ASKING:
        return _ask(args[0], args[1:])
    given, fields = parser().parse_known_args(args)
    from mmjax import config
    from mmjax.data import started
    from mmjax.experiment import Experiment

    with started.making_config_for(""), started.tokenizing():
        experiment = config.override(config.load(given.config, kind=Experiment), fields)
    from mmjax.tokenize import run as tokenizing

    how = {
        "task": given.task, "splits": given.splits, "add": given.add, "crops": given.crops,
        "shard_examples": given.shard_examples,
    }  # fmt: skip
    if given.beam is None:
        manifest = tokenizing.tokenize(experiment, given.out, workers=given.workers, **how)
    else:
        from mmjax.tokenize import beam

        options = shlex.split(given.beam)
        manifest = beam.tokenize(experiment, given.out, options=options, **how)
    print(text(manifest, given.out))
    return None


def _ask(what: str, args: list[str]) -> int | None:
    given = _asking_parser(what).parse_args(args)
    from mmjax.tokenize import whole

    if what == "finalize":
        if not 0 <= given.max_bad_fraction <= 1:
            raise ConfigError(f"--max-bad-fraction {given.max_bad_fraction} must be 0 to 1.")
        print(text(whole.finalize(given.out, given.max_bad_fraction), given.out))
        return None
    report = whole.status(given.out, given.verify)
    print(printing.as_json(report) if given.json else _status_text(report))
    return 0 if report["finished"] else 3


def text(manifest: dict[str, Any], out: str) -> str:
    """The finished set, for people."""
    lines = [f"tokens       {out}"]
    for split, ends in manifest["splits"].items():
        lines.append(f"{split:12} {ends[-1] if ends else 0} records in {len(ends)} shards")
    for part, about in manifest["parts"].items():
        size = sum(one["bytes"] for found in about["shards"].values() for one in found)
        names = ", ".join(about["streams"])
        lines.append(f"{part:12} {names} ({size / 1e6:.1f} MB)")
    lines.append(f'next         Task(source=TokenSet(path="{out}"), ...) in the config of training')
    return "\n".join(lines)


def _status_text(report: dict[str, Any]) -> str:
    lines = []
    for part, about in report["parts"].items():
        state = "finished" if about["finished"] else "not finished"
        lines.append(
            f"{part}: {about['done']} of {about['shards']} shards, {about['records']} records,"
            f" {sum(about['rejected'].values())} rejected; {state}"
        )
        for name, why in about["failed"].items():
            lines.append(f"  failed   {name} ({why['attempts']} attempts): {why['error']}")
        lines += [f"  damaged  {name}" for name in about["damaged"]]
    return "\n".join(lines)
