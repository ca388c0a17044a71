"""`mmjax generate`: any modalities from any others, as files and a page."""

from __future__ import annotations

from mmjax.cli import options
from mmjax.config.error import ConfigError

__all__ = ["parser", "run"]

USAGE = (
    "PATH --given MODALITY=VALUE ... --want MODALITY ... --out DIR [--num N] [--seed N]"
    " [--temperature T] [--steps N] [--guidance W] [--beams N] [--rerank W] [--overwrite]"
    f" {options.CODE_USAGE}"
)
NUMBERS = (  # option, letter, default, help
    ("--num", "N", 1, "samples"),
    ("--seed", "N", 0, "sample i depends on it and on i alone"),
    ("--temperature", "T", None, "0 = most probable; default 0 for one sample, else 0.7"),
    ("--steps", "N", 0, "of what is decoded in parallel; default 1 at temperature 0, else 8"),
    ("--guidance", "W", 1.0, "classifier-free guidance; 1 = off"),
    ("--beams", "N", 1, "of sequences at temperature 0: beginnings that are followed at once"),
    ("--rerank", "W", 0.0, "weight of the contrast in the choice of a beam; 1 = both alike"),
)
SETTINGS = (*(option[2:] for option, *_ in NUMBERS), "overwrite", "code")


def parser() -> options.Parser:
    """The command line."""
    text = "Makes some modalities from others; writes files and a page to look at."
    made = options.parser("generate", USAGE, text)
    options.add_path(made)
    options.add_given(made)
    made.add_argument(
        "--want",
        nargs="+",
        action="extend",
        required=True,
        metavar="MODALITY",
        help="in this order; what is made is known to what follows",
    )
    made.add_argument("--out", required=True, metavar="DIR", help="folder of the samples")
    for option, letter, default, text in NUMBERS:
        kind = int if letter == "N" else float
        made.add_argument(option, type=kind, default=default, metavar=letter, help=text)
    made.add_argument("--overwrite", action="store_true", help="in place of other samples")
    options.add_code(made)
    return made


def run(args: list[str]) -> None:
    """Any modalities from any others, as files."""
    given = parser().parse_args(args)
    rows = options.given(given.given)
    values = dict(rows)
    if len(values) < len(rows):
        raise ConfigError(f"--given {' '.join(n for n, _ in rows)}: give each modality once.")
    if given.num < 1:
        raise ConfigError(f"--num {given.num} makes no sample; use 1 or more.")
    options.trust(given)
    from mmjax.generate import verbs

    settings = {name: getattr(given, name) for name in SETTINGS}
    record = verbs.write(given.path, values, given.want, given.out, **settings)
    for sample in record["samples"][: given.num]:
        for file in sample["files"].values():
            print(f"{given.out}/{file}")
    print(f"{given.out}/index.html")
