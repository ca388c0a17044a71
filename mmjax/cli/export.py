"""`mmjax export` on the command line."""

from __future__ import annotations

import argparse

__all__ = ["USAGE", "add_arguments", "run"]

USAGE = (
    "PATH --out DIR [--parts encoder] [--verify] [--overwrite] [--code FILE [--code-sha256 HEX]]"
    " [--compile-cache PATH]"
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options beside PATH, --code and --compile-cache."""
    parser.add_argument("--out", required=True, metavar="DIR", help="the folder to make")
    parser.add_argument("--parts", default="encoder", metavar="PART", help="encoder")
    parser.add_argument(
        "--verify", action="store_true", help="load it in transformers and compare embeddings"
    )
    parser.add_argument("--overwrite", action="store_true", help="in place of another export")


def run(options: argparse.Namespace) -> None:
    """Exports and says what was written."""
    from mmjax import export

    parity = export.export(
        options.path,
        options.out,
        parts=options.parts,
        verify=options.verify,
        overwrite=options.overwrite,
        code=options.code,
    )
    for name, row in parity["modalities"].items():
        print(
            f"{name}: {row['examples']} files, difference at most {row['max_abs']:.2g},"
            f" cosine at least {row['min_cosine']:.7f}"
        )
    if not parity["verified"]:
        print("not compared with transformers; --verify does that")
    print(options.out)
