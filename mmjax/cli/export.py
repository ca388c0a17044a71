"""`mmjax export`: the encoder as a folder for Hugging Face transformers."""

from __future__ import annotations

from mmjax.cli import options

__all__ = ["parser", "run"]

USAGE = f"PATH --out DIR [--parts encoder] [--verify] [--overwrite] {options.CODE_USAGE}"


def parser() -> options.Parser:
    """The command line."""
    text = "Writes a folder for Hugging Face transformers."
    made = options.parser("export", USAGE, text)
    options.add_path(made)
    made.add_argument("--out", required=True, metavar="DIR", help="the folder to make")
    made.add_argument("--parts", default="encoder", metavar="PART", help="encoder")
    made.add_argument(
        "--verify", action="store_true", help="load it in transformers and compare embeddings"
    )
    made.add_argument("--overwrite", action="store_true", help="in place of another export")
    options.add_code(made)
    return made


def run(args: list[str]) -> None:
    """The encoder as a folder for Hugging Face transformers."""
    given = parser().parse_args(args)
    options.trust(given)
    from mmjax import export

    parity = export.export(
        given.path,
        given.out,
        parts=given.parts,
        verify=given.verify,
        overwrite=given.overwrite,
        code=given.code,
    )
    for name, row in parity["modalities"].items():
        print(
            f"{name}: {row['examples']} files, difference at most {row['max_abs']:.2g},"
            f" cosine at least {row['min_cosine']:.7f}"
        )
    if not parity["verified"]:
        print("not compared with transformers; --verify does that")
    print(given.out)
